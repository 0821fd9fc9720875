"""The force constant of bonds to hydrogen: a scale of forces that nature gives, the same in every molecule."""

from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols
from scipy.spatial.distance import cdist

from fairchem_piwsl.structures import Labelled

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
