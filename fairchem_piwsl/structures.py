"""Labelled structures: reading LMDB data sets and anything ASE reads, and PyG batches for a model."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.geometry import wrap_positions

from fairchem_piwsl.errors import UserError

# Empty space put around molecules, Angstrom: far above any cutoff in use, so that images never meet.
PADDING = 40.0
# A cell direction with an empty gap of this width separates molecules, Angstrom.
VACUUM = 8.0


@dataclass(frozen=True)
class Labelled:
    """A structure with its labels in eV and eV/Angstrom; what is absent is NaN (`forces` is [n_atoms, 3])."""

    atoms: Atoms
    energy: float
    forces: np.ndarray

    @property
    def formula(self) -> str:
        """Chemical formula in Hill order."""
        return self.atoms.get_chemical_formula(mode="hill")


def read_labelled(path: str | Path, limit: int | None = None) -> list[Labelled]:
    """Read an LMDB data set (file, or folder of `*.lmdb`) or any file that ASE reads.

    Energies are taken as eV and forces as eV/Angstrom, the units that `piwsl prepare` writes. Labels that are
    missing become NaN. `limit` reads the first structures only.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: there is no such data set; give the path of an LMDB file or of an extxyz file."
        )
    if path.is_dir():
        files = sorted(path.glob("*.lmdb"))
        if not files:
            raise UserError(f"{path}: this folder holds no *.lmdb file; give the path of a data set.")
    else:
        files = [path]
    structures: list[Labelled] = []
    for file in files:
        left = None if limit is None else limit - len(structures)
        structures += _read_lmdb(file, left) if file.suffix == ".lmdb" else _read_ase(file, left)
        if limit is not None and len(structures) >= limit:
            break
    if not structures:
        raise UserError(f"{path}: this data set is empty; prepare it again.")
    return structures


def read_structure(path: str | Path, index: int = -1) -> Atoms:
    """Read one structure (the last one by default) from an LMDB or any file that ASE reads."""
    structures = read_labelled(path)
    try:
        return structures[index].atoms
    except IndexError:
        raise UserError(
            f"{path}: it holds {len(structures)} structures, there is no number {index}."
        ) from None


def _read_lmdb(path: Path, limit: int | None) -> list[Labelled]:
    import lmdb

    from fairchem_piwsl.datasets.lmdb_checks import check_complete

    with tempfile.TemporaryDirectory() as folder:
        try:
            check_complete(path)
            environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            if "already open" not in str(error):
                raise UserError(f"{path}: not a readable LMDB ({error}); prepare it again.") from None
            # A trainer of this process holds the file and LMDB forbids a second handle: read a copy.
            copy = shutil.copy(path, Path(folder) / "copy.lmdb")
            environment = lmdb.open(str(copy), subdir=False, readonly=True, lock=False)
        with environment, environment.begin() as transaction:
            length = transaction.get(b"length")
            count = pickle.loads(length) if length is not None else transaction.stat()["entries"]
            count = count if limit is None else min(count, limit)
            return [_from_pickle(path, key, transaction.get(str(key).encode())) for key in range(count)]


def _from_pickle(path: Path, key: int, value: bytes | None) -> Labelled:
    if value is None:
        raise UserError(f"{path}: structure {key} is missing from this LMDB; prepare the data set again.")
    try:
        data = pickle.loads(value)
        # Objects pickled by PyG 1.x keep their tensors in __dict__ rather than in a store.
        fields: dict[str, Any] = data.__dict__ if "_store" not in data.__dict__ else data.to_dict()
        return _from_fields(fields)
    except (AttributeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path}: structure {key} is no PyG object with pos and atomic_numbers ({error!r}); prepare the data set again."
        ) from None


def _from_fields(fields: dict[str, Any]) -> Labelled:
    numbers = np.asarray(fields["atomic_numbers"], dtype=int)
    n_atoms = len(numbers)
    cell = fields.get("cell")
    pbc = fields.get("pbc")
    atoms = Atoms(
        numbers=numbers,
        positions=np.asarray(fields["pos"], dtype=float),
        cell=None if cell is None else np.asarray(cell, dtype=float).reshape(3, 3),
        pbc=np.asarray(pbc, dtype=bool).reshape(3) if pbc is not None else cell is not None,
    )
    # Data sets older than fairchem's present names call the labels y and force.
    energy = fields.get("energy", fields.get("y"))
    forces = fields.get("forces", fields.get("force"))
    return Labelled(
        atoms,
        np.nan if energy is None else float(np.asarray(energy, dtype=float).reshape(())),
        np.full((n_atoms, 3), np.nan)
        if forces is None
        else np.asarray(forces, dtype=float).reshape(n_atoms, 3),
    )


def _read_ase(path: Path, limit: int | None) -> list[Labelled]:
    from ase.io import read

    try:
        frames = read(path, index=":" if limit is None else f":{limit}")
    except Exception as error:  # ASE's readers raise whatever their format meets
        raise UserError(
            f"{path}: ASE cannot read this file ({error!r}); is it complete and of a known format?"
        ) from None
    return [_from_atoms(atoms) for atoms in frames]


def _from_atoms(atoms: Atoms) -> Labelled:
    results = atoms.calc.results if atoms.calc is not None else {}
    bare = atoms.copy()
    bare.calc = None
    return Labelled(
        bare,
        float(results.get("energy", np.nan)),
        np.asarray(results.get("forces", np.full((len(atoms), 3), np.nan)), dtype=float),
    )


def vacuum_gaps(atoms: Atoms) -> np.ndarray:
    """Widest empty slab along each cell direction in Angstrom, [3]; infinite where not periodic."""
    gaps = np.full(3, np.inf)
    if not atoms.pbc.any():
        return gaps
    fractions = atoms.get_scaled_positions(wrap=True)
    heights = 1.0 / np.linalg.norm(atoms.cell.reciprocal(), axis=1)
    for axis in np.flatnonzero(atoms.pbc):
        ordered = np.sort(fractions[:, axis])
        gaps[axis] = np.diff(ordered, append=ordered[0] + 1.0).max() * heights[axis]
    return gaps


def is_isolated(atoms: Atoms) -> bool:
    """Whether `atoms` is a molecule or cluster on its own: no cell, or `VACUUM` on every side."""
    return bool(np.all(vacuum_gaps(atoms) > VACUUM))


def as_molecule(atoms: Atoms) -> Atoms:
    """A copy without periodicity in which a molecule that crosses the cell's boundary is whole again."""
    whole = atoms.copy()
    if atoms.pbc.any():
        fractions = atoms.get_scaled_positions(wrap=True)
        for axis in np.flatnonzero(atoms.pbc):
            ordered = np.sort(fractions[:, axis])
            widest = np.argmax(np.diff(ordered, append=ordered[0] + 1.0))
            start = ordered[(widest + 1) % len(ordered)]
            fractions[:, axis] = (fractions[:, axis] - start + 1e-12) % 1.0
        whole.set_positions(fractions @ atoms.cell.array)
    whole.pbc = False
    whole.cell = None
    return whole


def boxed(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Positions [n, 3] and a full cell [3, 3] for models that know periodic cells only.

    Directions without periodicity get a cell vector so long that images never interact; periodic directions
    are wrapped, since fairchem's neighbour search expects atoms inside the cell.
    """
    cell = np.array(atoms.cell.array)
    positions = atoms.get_positions()
    free = [axis for axis in range(3) if not atoms.pbc[axis] or not cell[axis].any()]
    if not free:
        return wrap_positions(positions, cell, pbc=True, eps=0), cell
    cell[free] = 0.0
    cell = np.array(atoms.cell.new(cell).complete())
    periodic = [axis not in free for axis in range(3)]
    if any(periodic):
        positions = wrap_positions(positions, cell, pbc=periodic, eps=0)
    for axis in free:
        unit = cell[axis] / np.linalg.norm(cell[axis])
        cell[axis] = unit * (np.ptp(positions @ unit) + PADDING)
    return positions, cell


def to_batch(structures: Sequence[Atoms], dtype: Any) -> Any:
    """A PyG batch of `structures` as fairchem's models expect it, positions in `dtype` (a torch dtype)."""
    import torch
    from torch_geometric.data import Batch, Data

    data = []
    for atoms in structures:
        positions, cell = boxed(atoms)
        n_atoms = len(atoms)
        data.append(
            Data(
                pos=torch.as_tensor(positions, dtype=dtype),
                # The neighbour search multiplies the cell with float32 indices, whatever the positions are.
                cell=torch.as_tensor(cell, dtype=torch.float32).view(1, 3, 3),
                atomic_numbers=torch.as_tensor(atoms.numbers, dtype=torch.uint8),
                natoms=n_atoms,
                tags=torch.zeros(n_atoms, dtype=torch.int),
                fixed=torch.zeros(n_atoms, dtype=torch.int),
                pbc=torch.ones(3, dtype=torch.bool),
            )
        )
    return Batch.from_data_list(data)
