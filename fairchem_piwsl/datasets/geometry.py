"""Distances in a structure: the shortest, how long its bonds are, and a fingerprint that finds duplicates."""

from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import wrap_positions
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

#: pairs closer than this count in a periodic structure, Angstrom
RADIUS = 5.0
#: fingerprints that agree to this relative difference belong to one structure
FINGERPRINT_TOLERANCE = 1e-6
_NOBLE_GASES = (2, 10, 18, 36, 54, 86)


class Distances(NamedTuple):
    """What the distances between the atoms of one structure say."""

    shortest: float  # Angstrom, inf without a pair
    #: over the atoms, median of the nearest distance in sums of covalent radii; NaN where atoms do not bond
    bond_ratio: float
    #: [4]; does not change when a structure is moved, turned or mirrored or its atoms are reordered, and varies
    #: smoothly with the positions
    fingerprint: np.ndarray


def distances(atoms: Atoms) -> Distances:
    """Distances between all atoms of a molecule, or within `RADIUS` in a periodic structure."""
    numbers = atoms.numbers
    if atoms.pbc.any():
        cell = np.asarray(atoms.cell.complete().array)
        i, j, d = _periodic_pairs(atoms.positions, cell, atoms.pbc, RADIUS)
        weight = (1 - d / RADIUS) ** 2
        # structure factors, for what lies further apart than the radius
        phase = np.exp(2j * np.pi * atoms.positions @ np.linalg.inv(cell))
        rest = [(np.abs(numbers @ phase) ** 2).sum(), abs(np.linalg.det(cell))]
        terms = [weight.sum(), (weight * numbers[i].astype(float) * numbers[j]).sum(), *rest]
    else:
        i, j = np.triu_indices(len(atoms), k=1)
        d = pdist(atoms.positions)
        charge = numbers[i].astype(float) * numbers[j]
        terms = [d.sum(), (d**2).sum(), (charge * d).sum(), (charge * d**2).sum()]
    return Distances(float(d.min()) if len(d) else np.inf, _bond_ratio(numbers, i, j, d), np.array(terms))


def _bond_ratio(numbers: np.ndarray, i: np.ndarray, j: np.ndarray, d: np.ndarray) -> float:
    ratio = d / (covalent_radii[numbers[i]] + covalent_radii[numbers[j]])
    nearest = np.full(len(numbers), np.inf)
    np.minimum.at(nearest, i, ratio)
    np.minimum.at(nearest, j, ratio)
    bonding = nearest[np.isfinite(nearest) & ~np.isin(numbers, _NOBLE_GASES)]
    return float(np.median(bonding)) if len(bonding) else np.nan


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
