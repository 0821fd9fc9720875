"""Bonds of a structure: which atoms are bonded, what moves when a bond is stretched."""

import numpy as np
from ase import Atoms
from ase.geometry import find_mic
from ase.neighborlist import natural_cutoffs, neighbor_list
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from fairchem_piwsl.errors import UserError

# Two atoms closer than this times the sum of their covalent radii count as bonded.
BOND_FACTOR = 1.2


def bonds(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Bonded pairs [n_bonds, 2] (i < j, each once) and their lengths [n_bonds] in Angstrom."""
    i, j, length = neighbor_list("ijd", atoms, natural_cutoffs(atoms, mult=BOND_FACTOR))
    once = i < j
    return np.stack([i[once], j[once]], axis=1), length[once]


def bond_lengths(atoms: Atoms, pairs: np.ndarray) -> np.ndarray:
    """Distances [n_pairs] in Angstrom, to the nearest image where the cell is periodic."""
    if not len(pairs):
        return np.zeros(0)
    vectors = atoms.positions[pairs[:, 1]] - atoms.positions[pairs[:, 0]]
    return find_mic(vectors, atoms.cell, atoms.pbc)[1]


def fragment(atoms: Atoms, fixed: int, moving: int) -> np.ndarray:
    """Indices of the atoms that follow atom `moving` when its bond to atom `fixed` is stretched.

    The bond graph without that bond falls apart: the connected component of `moving` follows. In a ring it
    does not fall apart, then `moving` goes alone.
    """
    for index in (fixed, moving):
        if not 0 <= index < len(atoms):
            raise UserError(
                f"--bond: there is no atom {index}; the structure has atoms 0 to {len(atoms) - 1}."
            )
    if fixed == moving:
        raise UserError("--bond: give two different atoms.")
    pairs, _ = bonds(atoms)
    is_bond = (pairs == sorted((fixed, moving))).all(axis=1)
    others = pairs[~is_bond]
    matrix = coo_matrix((np.ones(len(others)), (others[:, 0], others[:, 1])), shape=(len(atoms),) * 2)
    component = connected_components(matrix, directed=False)[1]
    if component[fixed] != component[moving]:
        return np.flatnonzero(component == component[moving])
    if not is_bond.any():
        distance = atoms.get_distance(fixed, moving, mic=True)
        raise UserError(
            f"--bond {fixed} {moving}: these atoms are not bonded ({distance:.2f} Angstrom apart)."
        )
    return np.array([moving])
