"""Labelled structures of an LMDB file, also of one that is older than fairchem's present names."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from fairchem_piwsl.datasets.lmdb_checks import check_complete
from fairchem_piwsl.datasets.safe_pickle import unpickle
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled, no_forces


def read_lmdb(path: Path, limit: int | None = None) -> Iterator[Labelled]:
    """The structures of an LMDB file in eV and eV/Angstrom, the first `limit`; missing labels are NaN."""
    import lmdb

    try:
        check_complete(path)
        environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
    except (lmdb.Error, OSError) as error:
        raise UserError(f"{path}: not a readable LMDB ({error}); prepare it again.") from None
    with environment, environment.begin() as transaction:
        length = transaction.get(b"length")
        count = transaction.stat()["entries"] if length is None else unpickle(length)
        for key in range(count if limit is None else min(count, limit)):
            yield _structure(path, key, transaction.get(str(key).encode()))


def _structure(path: Path, key: int, value: bytes | None) -> Labelled:
    if value is None:
        raise UserError(f"{path}: structure {key} is missing from this LMDB; prepare the data set again.")
    try:
        data = unpickle(value)
        # Objects pickled by PyG 1.x keep their tensors in __dict__ rather than in a store.
        return _labelled(data.__dict__ if "_store" not in data.__dict__ else data.to_dict(), f"{path}:{key}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: its records can be read only where {error.name} is installed, as with fairchem-core 1.10.0; give "
            "an .aselmdb file, or one that ASE reads."
        ) from None
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path}: structure {key} is no PyG record with pos and atomic_numbers ({error}); prepare the data "
            f"set again."
        ) from None


def _labelled(fields: dict[str, Any], source: str) -> Labelled:
    numbers = np.asarray(fields["atomic_numbers"], dtype=int)
    cell, pbc = fields.get("cell"), fields.get("pbc")
    atoms = Atoms(
        numbers=numbers,
        positions=np.asarray(fields["pos"], dtype=float),
        cell=None if cell is None else np.asarray(cell, dtype=float).reshape(3, 3),
        pbc=np.asarray(pbc, dtype=bool).reshape(3) if pbc is not None else cell is not None,
    )
    # data sets older than fairchem's present names call the labels y and force
    energy, forces = fields.get("energy", fields.get("y")), fields.get("forces", fields.get("force"))
    return Labelled(
        atoms,
        np.nan if energy is None else float(np.asarray(energy, dtype=float).reshape(())),
        no_forces(len(atoms)) if forces is None else np.asarray(forces, float).reshape(len(atoms), 3),
        source,
    )
