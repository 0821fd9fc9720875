"""Sources: files that can count their structures and read chosen ones, one at a time.

`open_sources` turns file names and globs into sources; ASE does the parsing. Only the frames that a split
needs are parsed and none are kept, so a file may be larger than memory.
"""

import contextlib
import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from fairchem_piwsl.datasets import ase_files
from fairchem_piwsl.datasets.ase_labels import LabelOptions, to_structure
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled


class Source(Protocol):
    """Something with structures in a fixed order."""

    name: str  # short and unique, start of each structure's identifier
    paths: list[Path]  # files it reads

    def count(self) -> int:
        """Number of structures."""
        ...

    def read(self, indices: Sequence[int]) -> Iterator[Labelled]:
        """The structures at `indices` (increasing), in that order."""
        ...


class AseSource:
    """One file that ASE reads, optionally a slice of it (ASE's `file@start:stop:step`)."""

    def __init__(self, path: Path, frames: slice, options: LabelOptions):
        self.name = path.name
        self.paths = [path]
        self.path = path
        self.frames = frames
        self.options = options
        with ase_files.broken(path):
            self.file_type = _file_type(path)
        self.reader = ase_files.reader_for(self.file_type)

    @cached_property
    def _numbers(self) -> range:
        """Numbers in the file of the frames in the slice."""
        count = self.reader.count(self.path)
        if not count:  # some of ASE's parsers find nothing in the output of a run that was killed
            raise UserError(
                f"{self.path} holds no structure, read as {self.file_type}: repair the file or leave it out."
            )
        return range(count)[self.frames]

    def count(self) -> int:
        return len(self._numbers)

    def read(self, indices: Sequence[int]) -> Iterator[Labelled]:
        wanted = [self._numbers[i] for i in indices]
        if self._numbers.step < 0:
            return reversed(list(self._read(wanted[::-1])))
        return self._read(wanted)

    def _read(self, frames: Sequence[int]) -> Iterator[Labelled]:
        found = self.reader.read(self.path, frames)
        for frame, atoms in zip(frames, found, strict=True):
            yield to_structure(atoms, f"{self.name}:{frame}", self.options)


def in_file_order(sources: Iterable[Source], chosen: np.ndarray) -> Iterator[tuple[int, Any]]:
    """(key, structure) for the chosen indices, read in file order; the key is the place in `chosen`."""
    order = np.argsort(chosen, kind="stable")
    wanted = chosen[order]
    start = 0
    for source in sources:
        end = start + source.count()
        here = slice(*np.searchsorted(wanted, [start, end]))
        if here.stop > here.start:
            yield from zip(
                (int(k) for k in order[here]), source.read((wanted[here] - start).tolist()), strict=True
            )
        start = end


def matching(text: str) -> list[Path]:
    """The files of a glob (`*`, `**`), sorted; a name that exists is none, whatever brackets it has."""
    if glob.has_magic(text) and not Path(text).exists():
        return [Path(path) for path in sorted(glob.glob(text, recursive=True))]
    return [Path(text)]


def open_sources(patterns: Sequence[str | Path], options: LabelOptions) -> list[Source]:
    """Files and globs (`*`, `**`), sorted within a glob; each may end in ASE's `@slice`."""
    sources: list[AseSource] = []
    for pattern in patterns:
        text, frames = split_slice(str(pattern))
        paths = matching(text)
        if not paths:
            raise UserError(f"{text} matches no file; give the names of files that exist.")
        for path in paths:
            if path.is_dir():
                raise UserError(f"{path} is a folder: name the files in it, for example '{path}/*.xsf'.")
            if not path.exists():
                raise UserError(f"{path} does not exist; give the name of a file.")
            if path.stat().st_size == 0:
                raise UserError(f"{path} is empty; make it again or leave it out.")
            if path.suffix == ".npz":
                raise UserError(
                    f"{path} is a numpy file: give it as `piwsl prepare rmd17 {path} ...` "
                    "(or md22, md17_ccsd_t)."
                )
            sources.append(AseSource(path, frames, options))
    _make_names_unique(sources)
    return list(sources)


def split_slice(pattern: str) -> tuple[str, slice]:
    """`name@start:stop:step`, as ASE writes it, into the name and the slice; without @ all frames."""
    text, at, index = pattern.rpartition("@")
    if not at or Path(pattern).exists() or not re.fullmatch(r"[-+\d:\s]*", index):  # a name with @ in it
        return pattern, slice(None)
    try:
        parts = [int(part) if part.strip() else None for part in index.split(":")]
        frames = slice(*parts) if len(parts) > 1 else slice(parts[0], parts[0] + 1 or None)  # type: ignore[operator]
        if frames.step == 0:
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(
            f"{pattern}: @{index} is no slice; write start:stop:step such as @0:100:10."
        ) from None
    return text, frames


def _file_type(path: Path) -> str:
    if path.suffix == ".aselmdb":  # which ASE does not tell by its contents
        return "aselmdb"
    with contextlib.suppress(UnknownFileTypeError):
        name = filetype(str(path), read=True)
        if name in ioformats:
            return name
    raise UserError(f"{path} is of no type that ASE knows; convert it to extxyz.")


def _make_names_unique(sources: list[AseSource]) -> None:
    """Files of one name in several folders keep as much of their path as tells them apart."""
    seen: dict[str, list[AseSource]] = {}
    for source in sources:
        seen.setdefault(source.name, []).append(source)
    for same in seen.values():
        if len(same) == 1:
            continue
        resolved = [s.path.resolve() for s in same]
        for i, source in enumerate(same):
            if resolved[i] in resolved[:i] and same[resolved.index(resolved[i])].frames == source.frames:
                raise UserError(f"{source.path} is given twice; name each file once.")
        for i, source in enumerate(same):
            source.name = str(source.path)
            if resolved.count(resolved[i]) > 1:  # two slices of one file
                source.name += f"@{i}"
