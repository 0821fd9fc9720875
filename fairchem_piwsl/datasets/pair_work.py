"""Similar structures: how their energies differ, and how much work the forces do on the way."""

import warnings
from typing import NamedTuple

import numpy as np
from ase.geometry import find_mic
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from fairchem_piwsl.structures import Labelled

#: largest displacement of an atom between two structures that are compared, Angstrom
MAX_DISPLACEMENT = 0.5
MAX_PAIRS = 40


class Pairs(NamedTuple):
    """Numbers of the most similar pairs (i, j), [n <= 40] each."""

    #: (E_j - E_i) / (-(F_i + F_j) / 2 . (r_j - r_i)): near 1, up to the error of the trapezoid rule
    energy_over_work: np.ndarray
    #: -(F_j - F_i) . (r_j - r_i) / |r_j - r_i|^2 in eV/Angstrom^2: curvature of the energy along the way
    stiffness: np.ndarray


def similar_pairs(structures: list[Labelled]) -> Pairs:
    """The most similar pairs of labelled structures of the same atoms in the same order (and the same cell).

    Molecules are turned onto each other first.
    """
    found = []
    for group in _groups(structures):
        for i, j in _closest_pairs(group):
            step, start, end = _step_and_forces(group[i], group[j])
            if 0 < (size := float(np.linalg.norm(step, axis=1).max())) < MAX_DISPLACEMENT:
                work = -float(np.sum((start + end) * step)) / 2
                scale = np.linalg.norm(start + end) / 2 * np.linalg.norm(step)
                ratio = (group[j].energy - group[i].energy) / work if abs(work) > 1e-3 * scale else np.nan
                found.append((size, ratio, -float(np.sum((end - start) * step)) / float(np.sum(step**2))))
    table = np.array(sorted(found)[:MAX_PAIRS]).reshape(-1, 3)
    return Pairs(table[np.isfinite(table[:, 1]), 1], table[:, 2])


def _groups(structures: list[Labelled]) -> list[list[Labelled]]:
    groups: dict[bytes, list[Labelled]] = {}
    for s in structures:
        if np.isfinite(s.energy) and np.isfinite(s.forces).all() and len(s) > 1:
            cell = np.round(s.atoms.cell.array, 4) if s.atoms.pbc.any() else np.zeros(0)
            key = s.atoms.numbers.tobytes() + s.atoms.pbc.tobytes() + cell.tobytes()
            groups.setdefault(key, []).append(s)
    return [group for group in groups.values() if len(group) > 1]


def _closest_pairs(group: list[Labelled]) -> list[tuple[int, int]]:
    periodic = group[0].atoms.pbc.any()
    features = np.array([s.atoms.positions.ravel() if periodic else pdist(s.atoms.positions) for s in group])
    i, j = np.triu_indices(len(group), k=1)
    order = np.argsort(pdist(features), kind="stable")[: 2 * MAX_PAIRS]
    return [(int(i[k]), int(j[k])) for k in order]


def _step_and_forces(a: Labelled, b: Labelled) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Displacement from a to b, and the forces at both ends, [N, 3] each."""
    r_a, r_b = a.atoms.positions, b.atoms.positions
    if a.atoms.pbc.any():
        return find_mic(r_b - r_a, a.atoms.cell, a.atoms.pbc)[0], a.forces, b.forces
    start, end = r_a - r_a.mean(axis=0), r_b - r_b.mean(axis=0)
    with warnings.catch_warnings():  # of a linear molecule one angle is undetermined
        warnings.simplefilter("ignore")
        turn, _ = Rotation.align_vectors(start, end)
    return turn.apply(end) - start, a.forces, turn.apply(b.forces)
