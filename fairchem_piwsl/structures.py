"""One labelled structure, its box, and its conversion to PyG; molecules in cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.geometry import wrap_positions

#: from a molecule to its images, Angstrom: above twice the paper's largest cutoff (12)
BOX = 30.0
#: a cell direction with an empty gap of this width separates molecules, Angstrom
VACUUM = 8.0
#: names in `info` of what a model of fairchem 2 may know beside the atoms: total charge in e, spin multiplicity
STATES = ("charge", "spin")


@dataclass(frozen=True)
class Labelled:
    """A structure with its labels in eV and eV/Angstrom; what is absent is NaN (`forces` is [n_atoms, 3])."""

    atoms: Atoms
    energy: float
    forces: np.ndarray
    source: str = ""  # "file:frame", unique within a data set
    hint: str = ""  # where labels might be, for the error message when one is missing

    def __len__(self) -> int:
        return len(self.atoms)

    @property
    def formula(self) -> str:
        """Chemical formula in Hill order."""
        return self.atoms.get_chemical_formula(mode="hill")


def no_forces(n_atoms: int) -> np.ndarray:
    """Forces [n_atoms, 3] that say "not labelled"."""
    return np.full((n_atoms, 3), np.nan)


def periodic_axes(atoms: Atoms) -> np.ndarray:
    """Along which cell vectors `atoms` repeats, [3]; files may say so of one that is not there."""
    return atoms.pbc & atoms.cell.any(1)


def boxed(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Positions [n, 3] and a full cell [3, 3] as fairchem's periodic neighbour search needs them.

    Along a direction without periodicity the structure is centred in a cell that leaves `BOX` to its images;
    along the others the atoms are wrapped into the cell, which the search takes for granted.
    """
    periodic = periodic_axes(atoms)
    whole = Atoms(positions=atoms.positions, cell=atoms.cell.array * periodic[:, None], pbc=periodic)
    if not periodic.all():
        whole.center(vacuum=BOX / 2, axis=np.flatnonzero(~periodic))
    cell = np.array(whole.cell.array)
    return wrap_positions(whole.positions, cell, periodic, eps=0), cell


def with_full_cell(atoms: Atoms) -> Atoms:
    """A copy with a cell of three vectors where anything is periodic, as fairchem 2 needs it."""
    copy = atoms.copy()
    periodic = periodic_axes(atoms)
    if periodic.any() and not periodic.all():
        positions, cell = boxed(atoms)
        copy.set_cell(cell)
        copy.set_positions(positions, apply_constraint=False)
    return copy


def to_data(structure: Labelled) -> Any:
    """A record with the fields that upstream's AtomsToGraphs makes, in eV, Angstrom and eV/Angstrom.

    The energy is a float64 tensor: total energies of -1e4 eV have a resolution of 1 meV in float32. Upstream
    subtracts element references in the dtype of the target, so that the digits survive.
    """
    import torch

    data = _unlabelled(structure.atoms, torch.float32)
    data.energy = torch.tensor(structure.energy, dtype=torch.float64)
    data.forces = torch.tensor(structure.forces, dtype=torch.float32)
    data.sid = structure.source
    return data


def to_batch(structures: Sequence[Atoms], dtype: Any) -> Any:
    """A PyG batch of `structures` as fairchem's models expect it, positions in `dtype` (a torch dtype)."""
    from torch_geometric.data import Batch

    batch = Batch.from_data_list([_unlabelled(atoms, dtype) for atoms in structures])
    if not (batch.pbc == batch.pbc[:1]).all():  # upstream cannot mix boundary conditions
        batch.pbc[:] = True
    return batch


def _unlabelled(atoms: Atoms, dtype: Any) -> Any:
    import torch
    from torch_geometric.data import Data

    positions, cell = boxed(atoms)
    return Data(
        pos=torch.as_tensor(positions, dtype=dtype),
        atomic_numbers=torch.as_tensor(atoms.numbers, dtype=torch.long),
        # the neighbour search multiplies the cell with float32 indices, whatever the positions are
        cell=torch.as_tensor(cell, dtype=torch.float32).view(1, 3, 3),
        pbc=torch.as_tensor(atoms.pbc, dtype=torch.bool).view(1, 3),
        natoms=len(atoms),
        tags=torch.as_tensor(atoms.get_tags(), dtype=torch.int),
        fixed=torch.as_tensor(fixed_atoms(atoms), dtype=torch.int),
    )


def fixed_atoms(atoms: Atoms) -> np.ndarray:
    """Which atoms ASE's `FixAtoms` holds, [N]."""
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
    return fixed


def vacuum_gaps(atoms: Atoms) -> np.ndarray:
    """Widest empty slab along each cell direction in Angstrom, [3]; infinite where not periodic."""
    gaps = np.full(3, np.inf)
    axes = np.flatnonzero(periodic_axes(atoms))
    if not len(axes):
        return gaps
    fractions = atoms.get_scaled_positions(wrap=True)
    reciprocal = atoms.cell.reciprocal()
    for axis in axes:
        gaps[axis] = _widest_gap(fractions[:, axis])[0] / np.linalg.norm(reciprocal[axis])
    return gaps


def _widest_gap(fractions: np.ndarray) -> tuple[float, float]:
    """Width of the widest empty part of a period of 1, and where it ends."""
    ordered = np.sort(fractions)
    gaps = np.diff(ordered, append=ordered[0] + 1.0)
    return gaps.max(), ordered[(np.argmax(gaps) + 1) % len(ordered)]


def is_isolated(atoms: Atoms) -> bool:
    """Whether `atoms` is a molecule or cluster on its own: no cell, or `VACUUM` on every side."""
    return bool(np.all(vacuum_gaps(atoms) > VACUUM))


def as_molecule(atoms: Atoms) -> Atoms:
    """A copy without periodicity in which a molecule that crosses the cell's boundary is whole again."""
    whole = atoms.copy()
    axes = np.flatnonzero(periodic_axes(atoms))
    if len(axes):
        fractions = atoms.get_scaled_positions(wrap=False)  # which would fold along vectors of zero as well
        for axis in axes:
            start = _widest_gap(fractions[:, axis] % 1.0)[1]
            fractions[:, axis] = (fractions[:, axis] - start + 1e-12) % 1.0
        whole.set_positions(fractions @ atoms.cell.complete().array, apply_constraint=False)
    whole.pbc = False
    whole.cell = None
    return whole


def molecule_or_crystal(atoms: Atoms) -> Atoms:
    """A molecule without its box, so that no image and no wrapping disturbs its distances; else a copy.

    A crystal or surface stays periodic along the cell vectors that are there.
    """
    if is_isolated(atoms):
        return as_molecule(atoms)
    copy = atoms.copy()
    copy.pbc = periodic_axes(atoms)
    return copy
