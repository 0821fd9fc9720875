"""Count and read frames of the file types that ASE knows, naming file and frame when one is broken."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

import ase.db
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import iread
from ase.io.formats import get_compression, open_with_compression
from ase.io.trajectory import Trajectory

from fairchem_piwsl.datasets import ase_lmdb
from fairchem_piwsl.errors import UserError, in_words
from fairchem_piwsl.units import ENERGY_UNITS, energy_unit

_TOTAL_ENERGY = re.compile(r"total\s+energy\s*[=:]\s*([-+0-9.eEdD]+)\s*([A-Za-z/]+)?")


class FrameReader(Protocol):
    """How one file type is counted and read."""

    def count(self, path: Path) -> int: ...

    def read(self, path: Path, frames: Sequence[int]) -> Iterator[Atoms]: ...


def reader_for(file_type: str) -> FrameReader:
    """The reader for a file type as ASE names it."""
    special: dict[str, FrameReader] = {
        "extxyz": ExtxyzReader(),
        "xyz": ExtxyzReader(),
        "traj": IndexedReader(Trajectory),
        "db": IndexedReader(lambda path: nullcontext(_Rows(path))),
        "json": IndexedReader(lambda path: nullcontext(_Rows(path))),
        "xsf": XsfReader(),
        "aselmdb": IndexedReader(ase_lmdb.opened),
    }
    return special.get(file_type, AnyReader())


@contextmanager
def broken(path: Path, frame: int | None = None) -> Iterator[None]:
    """Turn whatever a parser raises into one sentence with the file's name and the frame."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        where = f"{path}" if frame is None else f"{path}, frame {frame}"
        raise UserError(
            f"{where} cannot be read ({in_words(error)}): repair the file or leave it out."
        ) from error


class ExtxyzReader:
    """(Extended) XYZ, also compressed: frames that are not wanted are skipped, not parsed."""

    def count(self, path: Path) -> int:
        return sum(1 for _ in self._blocks(path, keep=lambda frame: False))

    def read(self, path: Path, frames: Sequence[int]) -> Iterator[Atoms]:
        wanted = set(frames)
        last = max(wanted, default=-1)
        for frame, block in self._blocks(path, keep=wanted.__contains__):
            if frame in wanted:
                with broken(path, frame):
                    atoms = _read_text(block, "extxyz")[0]
                yield atoms
            if frame >= last:
                return

    def _blocks(self, path: Path, keep: Callable[[int], bool]) -> Iterator[tuple[int, str]]:
        with broken(path), open_with_compression(str(path)) as file:
            for frame in itertools.count():
                with broken(path, frame):
                    head = file.readline()
                    if not head.strip():
                        rest = file.read(1024).strip() if head else ""
                        if rest:
                            raise ValueError("an empty line where a number of atoms should be")
                        return
                    lines = [head, *itertools.islice(file, int(head) + 1)]
                    if len(lines) < int(head) + 2:
                        raise ValueError(f"it ends after {len(lines)} of {int(head) + 2} lines")
                yield frame, "".join(lines) if keep(frame) else ""


class IndexedReader:
    """Files whose frames have an index: `opened` gives a sequence of them for the length of a block."""

    def __init__(self, opened: Callable[[Path], AbstractContextManager[Any]]) -> None:
        self._opened = opened

    def count(self, path: Path) -> int:
        if get_compression(str(path))[1]:
            raise UserError(f"{path} is compressed, and a file of this type is read by its index: unpack it.")
        with broken(path), self._opened(path) as rows:
            return len(rows)

    def read(self, path: Path, frames: Sequence[int]) -> Iterator[Atoms]:
        with broken(path), self._opened(path) as rows:
            for frame in frames:
                with broken(path, frame):
                    atoms = rows[frame]
                yield atoms


class _Rows:
    """The rows of an ASE database, in order of their ids."""

    def __init__(self, path: Path) -> None:
        self._database = ase.db.connect(str(path))
        self._ids = sorted(row.id for row in self._database.select(columns=["id"], include_data=False))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, frame: int) -> Atoms:
        return self._database.get_atoms(id=self._ids[frame], add_additional_information=True)


class AnyReader:
    """Everything else that `ase.io.iread` takes."""

    def _all(self, path: Path) -> Iterator[tuple[int, Atoms]]:
        images = iread(str(path), index=":")
        for frame in itertools.count():
            with broken(path, frame):
                atoms = next(images, None)
            if atoms is None:
                return
            yield frame, atoms

    def count(self, path: Path) -> int:
        return sum(1 for _ in self._all(path))

    def read(self, path: Path, frames: Sequence[int]) -> Iterator[Atoms]:
        wanted = set(frames)
        return (atoms for frame, atoms in self._all(path) if frame in wanted)


class XsfReader(AnyReader):
    """XSF; also with the labels of aenet, whose first comment line holds the total energy."""

    def _all(self, path: Path) -> Iterator[tuple[int, Atoms]]:
        with broken(path), open_with_compression(str(path)) as file:
            text = file.read()
        yield from enumerate(read_xsf(text, path))


def read_xsf(text: str, path: Path) -> list[Atoms]:
    """Frames of an XSF file.

    A comment `# total energy = X eV` gives the energy; in such files (aenet's convention) the forces are in
    that unit per Angstrom. Without it the forces are Hartree/Angstrom, as ASE takes them, and are converted.
    """
    with broken(path, 0):
        images = _read_text(text, "xsf")
    head = "\n".join(line for line in text.splitlines()[:20] if line.lstrip().startswith("#"))
    match = _TOTAL_ENERGY.search(head)
    if match is None or len(images) != 1:
        return images
    atoms = images[0]
    with broken(path, 0):
        energy = float(match.group(1).replace("D", "E").replace("d", "e"))
    unit = ENERGY_UNITS[energy_unit(match.group(2) or "eV", f"{path}: total energy in")]
    labels = {"energy": energy * unit}
    if atoms.calc is not None and "forces" in atoms.calc.results:
        labels["forces"] = atoms.calc.results["forces"] / units.Hartree * unit
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return images


def _read_text(text: str, file_type: str) -> list[Atoms]:
    return list(iread(StringIO(text), index=":", format=file_type))
