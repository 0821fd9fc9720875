"""ASE's databases in LMDB files, which fairchem 2 trains on: rows of compressed JSON, numbered from "1".

Written and read without the package `ase-db-backends`, which comes with fairchem 2 only and writes rows in one order.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db.core import now
from ase.db.row import AtomsRow, atoms2dict
from ase.io.jsonio import decode, encode

from fairchem_piwsl.datasets.lmdb_checks import check_complete
from fairchem_piwsl.datasets.lmdb_writer import LmdbWriter
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import STATES, Labelled, with_full_cell


class AseLmdbWriter(LmdbWriter):
    """Context manager that writes `data.aselmdb`, in any order of the keys, and `metadata.npz` to a new folder."""

    file = "data.aselmdb"

    def entry(self, key: int, structure: Labelled) -> tuple[str, bytes]:
        return str(key + 1), _compressed(row(structure))

    def last_entry(self, count: int) -> tuple[str, bytes]:
        return "nextid", _compressed(count + 1)


def row(structure: Labelled) -> dict[str, Any]:
    """A row of ASE's database; labels that are missing are infinite, which fairchem 2 leaves out of every loss.

    Labels that are absent would not do: a batch has those of its first structure.
    """
    atoms = with_full_cell(structure.atoms)
    atoms.set_constraint([c for c in atoms.constraints if isinstance(c, FixAtoms)])
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=np.inf if np.isnan(structure.energy) else structure.energy,
        forces=np.where(np.isnan(structure.forces), np.inf, structure.forces),
    )
    fields = atoms2dict(atoms) | {"ctime": now(), "mtime": now(), "user": "", "key_value_pairs": {}}
    states = {name: _integer(name, structure) for name in STATES if name in atoms.info}
    return fields | {"cell": atoms.cell.array, "data": {"sid": structure.source, **states}}


def _integer(name: str, structure: Labelled) -> int:
    value = structure.atoms.info[name]
    if not isinstance(value, int | float | np.number) or not float(value).is_integer():
        raise UserError(
            f"{structure.source}: its {name} {value} is no integer, which fairchem 2 needs; correct it or leave it "
            "out."
        )
    return int(value)


class Rows:
    """Structures of such a file in order of their ids, as long as `transaction` lasts."""

    def __init__(self, transaction: lmdb.Transaction):
        self._transaction = transaction
        deleted = set(self._value("deleted_ids") or ())
        self._ids = [number for number in range(1, self._value("nextid") or 1) if number not in deleted]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Atoms:
        """Atoms with labels, NaN where they are infinite; total charge and spin are in `info["data"]`."""
        fields = self._value(str(self._ids[index]))
        if fields is None:
            raise ValueError(f"row {self._ids[index]} is missing")
        atoms = AtomsRow(fields).toatoms(add_additional_information=True)
        results = getattr(atoms.calc, "results", {})
        for name in {"energy", "forces"} & results.keys():
            results[name] = np.where(np.isinf(results[name]), np.nan, results[name])
        return atoms

    def _value(self, key: str) -> Any:
        stored = self._transaction.get(key.encode())
        return None if stored is None else decode(zlib.decompress(stored).decode())


@contextmanager
def opened(path: Path) -> Iterator[Rows]:
    """The rows of a file.

    Raises:
        lmdb.Error: it is cut off, or no LMDB at all.
    """
    check_complete(path)
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False) as environment,
        environment.begin() as transaction,
    ):
        yield Rows(transaction)


def _compressed(value: object) -> bytes:
    return zlib.compress(encode(value).encode())
