"""Cells for molecules, shortest distances, and a fingerprint that finds duplicates."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.geometry import wrap_positions
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from fairchem_piwsl.datasets.structure import Structure

#: between a molecule and its images, Angstrom: above twice the paper's largest cutoff (12)
VACUUM = 30.0
#: pairs closer than this enter the fingerprint of a periodic structure, Angstrom
FINGERPRINT_RADIUS = 5.0
#: fingerprints that agree to this relative difference belong to one structure
FINGERPRINT_TOLERANCE = 1e-6


def in_cell(structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N, 3] and cell [3, 3] as upstream's periodic neighbour search needs them.

    Along a direction without periodicity the structure is centred in a cell that leaves `VACUUM` to its
    images; along the others the atoms are wrapped into the cell, which upstream's search takes for granted.
    """
    pbc = structure.pbc
    if pbc.all():
        return wrap_positions(structure.positions, structure.cell, pbc, eps=0), structure.cell
    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=pbc)
    if not pbc.any():
        atoms.set_cell(np.zeros((3, 3)))
    atoms.center(vacuum=VACUUM / 2, axis=[axis for axis in range(3) if not pbc[axis]])
    positions, cell = atoms.get_positions(), np.asarray(atoms.cell.array, dtype=float)
    return wrap_positions(positions, cell, pbc, eps=0), cell


def closest(structure: Structure) -> tuple[float, np.ndarray]:
    """Shortest interatomic distance (Angstrom, inf for one atom alone) and the fingerprint [4].

    The fingerprint does not change when a structure is moved, turned or mirrored or its atoms are reordered;
    it varies smoothly with the positions.
    """
    if structure.pbc.any():
        return _closest_periodic(structure)
    i, j = np.triu_indices(len(structure), k=1)
    d = pdist(structure.positions)
    charge = structure.numbers[i].astype(float) * structure.numbers[j]
    fingerprint = np.array([d.sum(), (d**2).sum(), (charge * d).sum(), (charge * d**2).sum()])
    return float(d.min()) if len(d) else np.inf, fingerprint


def _closest_periodic(structure: Structure) -> tuple[float, np.ndarray]:
    cell = np.asarray(Atoms(cell=structure.cell).cell.complete().array)
    i, j, d = _periodic_pairs(structure.positions, cell, structure.pbc, FINGERPRINT_RADIUS)
    weight = (1 - d / FINGERPRINT_RADIUS) ** 2
    charge = structure.numbers[i].astype(float) * structure.numbers[j]
    # structure factors, for what lies further apart than the radius
    phase = np.exp(2j * np.pi * structure.positions @ np.linalg.inv(cell))
    factor = (np.abs(structure.numbers @ phase) ** 2).sum()
    volume = abs(np.linalg.det(cell))
    fingerprint = np.array([weight.sum(), (weight * charge).sum(), factor, volume])
    return float(d.min()) if len(d) else np.inf, fingerprint


def _periodic_pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """i, j and distance of all pairs within `radius`, images included, each pair twice.

    ASE's neighbour list gives the same, more than ten times slower.
    """
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)  # between opposite faces
    repeats = np.where(pbc, np.ceil(radius / heights), 0).astype(int)
    home = wrap_positions(positions, cell, pbc, eps=0)
    shifts = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in repeats), indexing="ij"), axis=-1).reshape(
        -1, 3
    )
    images = (home + (shifts @ cell)[:, None]).reshape(-1, 3)
    found = cKDTree(home).sparse_distance_matrix(cKDTree(images), radius, output_type="ndarray")
    i, j, d = found["i"], found["j"], found["v"]
    unshifted = (shifts == 0).all(axis=1).nonzero()[0][0] * len(home)
    other = j != i + unshifted
    return i[other], j[other] % len(home), d[other]
