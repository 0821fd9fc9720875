"""Energy differences of similar structures against the work of their forces."""

from __future__ import annotations

import numpy as np
from ase.geometry import find_mic
from scipy.spatial.distance import pdist

from fairchem_piwsl.datasets.structure import Structure

#: largest displacement of an atom between two structures that are compared, Angstrom
MAX_DISPLACEMENT = 0.5
MAX_PAIRS = 40


def energy_over_work(structures: list[Structure]) -> np.ndarray:
    """Ratios (E_j - E_i) / (-(F_i + F_j) / 2 . (r_j - r_i)) for the most similar pairs, at most 40.

    They are near 1 when energies and forces have the same unit, up to the error of the trapezoid rule. Only
    labelled structures of the same atoms in the same order (and, where periodic, the same cell) are compared;
    molecules are turned onto each other first.
    """
    group = _largest_group(structures)
    if len(group) < 5:
        return np.zeros(0)
    pairs = _closest_pairs(group)
    ratios = []
    for i, j in pairs:
        step, force = _step_and_force(group[i], group[j])
        work = -float(np.sum(force * step))
        meaningful = abs(work) > 1e-3 * np.linalg.norm(force) * np.linalg.norm(step)
        if meaningful and np.linalg.norm(step, axis=1).max() < MAX_DISPLACEMENT:
            ratios.append((group[j].energy - group[i].energy) / work)
    return np.array(ratios)


def _largest_group(structures: list[Structure]) -> list[Structure]:
    groups: dict[bytes, list[Structure]] = {}
    for s in structures:
        if np.isfinite(s.energy) and np.isfinite(s.forces).all() and len(s) > 1:
            cell = np.round(s.cell, 4) if s.pbc.any() else np.zeros(0)
            groups.setdefault(s.numbers.tobytes() + s.pbc.tobytes() + cell.tobytes(), []).append(s)
    return max(groups.values(), key=len, default=[])


def _closest_pairs(group: list[Structure]) -> list[tuple[int, int]]:
    if group[0].pbc.any():
        features = np.array([s.positions.ravel() for s in group])
    else:
        features = np.array([pdist(s.positions) for s in group])
    i, j = np.triu_indices(len(group), k=1)
    return [(int(i[k]), int(j[k])) for k in np.argsort(pdist(features), kind="stable")[:MAX_PAIRS]]


def _step_and_force(a: Structure, b: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Displacement from a to b and mean force on the way, [N, 3] each."""
    if a.pbc.any():
        step, _ = find_mic(b.positions - a.positions, a.cell, a.pbc)
        return step, (a.forces + b.forces) / 2
    start, end = a.positions - a.positions.mean(axis=0), b.positions - b.positions.mean(axis=0)
    u, _, vt = np.linalg.svd(end.T @ start)  # Kabsch: the rotation that brings b onto a
    rotation = (u * [1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return end @ rotation - start, (a.forces + b.forces @ rotation) / 2
