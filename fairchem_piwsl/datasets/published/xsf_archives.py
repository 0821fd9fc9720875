"""TiO2 and LMNTO as published: XSF files with aenet's labels, in a tar archive or unpacked."""

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from fairchem_piwsl.datasets.ase_files import broken, read_xsf
from fairchem_piwsl.datasets.ase_labels import LabelOptions, to_structure
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled


class XsfSource:
    """The `.xsf` files of an archive or a folder, in the order of their numbers, so that both give one split."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.name
        self.paths = sorted(path.rglob("*.xsf")) if path.is_dir() else [path]
        self._in_archive = not path.is_dir() and path.suffix != ".xsf"
        #: names of members count from here
        self._root = path if path.is_dir() or self._in_archive else path.parent

    @cached_property
    def _members(self) -> list[str]:
        if self._in_archive:
            with broken(self.path), tarfile.open(self.path) as archive:
                names = [m.name for m in archive if m.isfile() and m.name.endswith(".xsf")]
        else:
            names = [str(p.relative_to(self._root)) for p in self.paths]
        names = [name for name in names if not Path(name).name.startswith(".")]
        if not names:
            raise UserError(f"{self.path} holds no .xsf files; give the archive or folder as published.")
        return sorted(names, key=natural_order)

    def count(self) -> int:
        return len(self._members)

    def read(self, indices: Sequence[int]) -> Iterator[Labelled]:
        wanted = [self._members[i] for i in indices]
        above = os.path.commonpath([os.path.dirname(name) for name in self._members])
        for name, text in self._texts(wanted):
            frames = read_xsf(text, self._root / name)
            yield to_structure(frames[0], os.path.relpath(name, above or "."), LabelOptions())

    def _texts(self, names: list[str]) -> Iterator[tuple[str, str]]:
        if not self._in_archive:
            for name in names:
                with broken(self._root / name):
                    text = (self._root / name).read_text(encoding="utf-8")
                yield name, text
            return
        # one pass over the archive: going back in a compressed file means starting again
        texts, wanted = {}, set(names)
        with broken(self.path), tarfile.open(self.path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name in wanted else None
                if file is not None:
                    texts[member.name] = file.read().decode("utf-8")
        yield from ((name, texts[name]) for name in names)


def natural_order(name: str | Path) -> list[tuple[int, str]]:
    """Sort key: structure9.xsf before structure10.xsf, whatever the folders are called."""
    parts = re.split(r"(\d+)", Path(name).name)
    return [(int(p), "") if p.isdigit() else (-1, p) for p in parts]
