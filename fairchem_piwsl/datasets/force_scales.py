"""Scales of forces in the structures themselves: the stretch of bonds to hydrogen, and the work between similar ones.

The force constant of bonds to hydrogen is the same in every molecule. Between similar structures energies change by
the work of the forces on the way.
"""

import warnings
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols
from ase.geometry import find_mic
from scipy.spatial.distance import cdist, pdist
from scipy.spatial.transform import Rotation

from fairchem_piwsl.datasets.splits import evenly
from fairchem_piwsl.structures import STATES, Labelled

#: eV/Angstrom^2 of the stretch of X-H, and what labels may differ from it by method, temperature and surroundings
EXPECTED = {6: (30.0, 1.5), 8: (40.0, 2.5), 7: (36.0, 2.5)}
MIN_BONDS = 20
#: lengths spread by less (in parts of the length), or forces that follow them less well, tell nothing
MIN_SPREAD = 0.008
MIN_CORRELATION = 0.85
#: part of the length within which the force is about linear
_LINEAR = 0.12


class Stretch(NamedTuple):
    """Force constant of one kind of bond, by regression of the force along the bond on its length."""

    bond: str  # C-H, O-H or N-H
    bonds: int  # how many were used
    constant: float  # eV/Angstrom^2; negative where the forces point the wrong way
    ratio: float  # constant / what is expected
    tolerance: float  # the ratio of right labels lies between 1 / tolerance and tolerance


def hydrogen_stretch(structures: list[Labelled]) -> Stretch | None:
    """From the bonds that say it most sharply; None where there are too few, too rigid or too noisy ones."""
    for element, (expected, tolerance) in EXPECTED.items():
        lengths, forces = _along_bonds(structures, element)
        if len(lengths) < MIN_BONDS:
            continue
        near = np.abs(lengths / np.median(lengths) - 1) < _LINEAR
        lengths, forces = lengths[near], forces[near]
        if len(lengths) < MIN_BONDS or lengths.std() < MIN_SPREAD * lengths.mean() or forces.std() == 0:
            continue
        if abs(np.corrcoef(lengths, forces)[0, 1]) < MIN_CORRELATION:
            continue
        constant = -float(np.polyfit(lengths, forces, 1)[0])
        bond = f"{chemical_symbols[element]}-H"
        return Stretch(bond, len(lengths), constant, constant / expected, tolerance)
    return None


def _along_bonds(structures: list[Labelled], element: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (Angstrom) of all bonds of hydrogen to `element`, and the force that stretches each (eV/Angstrom)."""
    found = []
    for s in structures:
        hydrogens, others = np.flatnonzero(s.atoms.numbers == 1), np.flatnonzero(s.atoms.numbers != 1)
        if not len(hydrogens) or not len(others) or not np.isfinite(s.forces).all():
            continue
        r = s.atoms.positions
        partners = others[cdist(r[hydrogens], r[others]).argmin(axis=1)]
        bonded = s.atoms.numbers[partners] == element
        bonds = r[hydrogens[bonded]] - r[partners[bonded]]
        lengths = np.linalg.norm(bonds, axis=1)
        found += list(zip(lengths, (s.forces[hydrogens[bonded]] * bonds).sum(axis=1) / lengths, strict=True))
    table = np.array(found).reshape(-1, 2)
    return table[:, 0], table[:, 1]


#: eV/Angstrom, RMS of components: smaller forces are those of minima, where errors turn a molecule as well
_AT_REST = 0.1


def torques(structures: list[Labelled]) -> np.ndarray:
    """Torque on each labelled molecule without net force, over sqrt(sum (r F)^2); 0 where labels are right."""
    found = []
    for s in structures:
        lever, force = s.atoms.positions - s.atoms.positions.mean(axis=0), s.forces
        free = np.linalg.norm(force.sum(axis=0)) < 0.03 * np.linalg.norm(force)
        if free and len(s) > 2 and not s.atoms.pbc.any() and np.std(force) > _AT_REST:
            size = np.linalg.norm(np.linalg.norm(lever, axis=1) * np.linalg.norm(force, axis=1))
            found.append(np.linalg.norm(np.cross(lever, force).sum(axis=0)) / size)
    return np.array(found)


#: two structures are compared if their atoms lie this far apart at most, Angstrom; nearer ones are copies
MIN_DISPLACEMENT, MAX_DISPLACEMENT = 1e-4, 0.5
MAX_PAIRS = 40
#: atoms of a molecule whose distances to all others rank the pairs
ANCHORS = 30


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
            size = float(np.linalg.norm(step, axis=1).max())
            if MIN_DISPLACEMENT < size < MAX_DISPLACEMENT:
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
            key += repr([s.atoms.info.get(name) for name in STATES]).encode()
            groups.setdefault(key, []).append(s)
    return [group for group in groups.values() if len(group) > 1]


def _closest_pairs(group: list[Labelled]) -> list[tuple[int, int]]:
    """The pairs that look nearest, by positions, or in molecules by distances; of copies the first counts."""
    anchors = evenly(len(group[0]), ANCHORS)
    periodic = group[0].atoms.pbc.any()
    positions = [s.atoms.positions for s in group]
    apart = pdist([r.ravel() if periodic else cdist(r[anchors], r).ravel() for r in positions])
    i, j = np.triu_indices(len(group), k=1)
    repeated = j[apart <= MIN_DISPLACEMENT]
    order = np.argsort(apart, kind="stable")
    order = order[~np.isin([i, j], repeated).any(axis=0)[order]][: 2 * MAX_PAIRS]
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
