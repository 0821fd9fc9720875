"""One labelled structure, as every reader yields it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from ase.data import chemical_symbols


@dataclass
class Structure:
    """A structure with its labels; missing labels are NaN."""

    numbers: np.ndarray  # [N] atomic numbers
    positions: np.ndarray  # [N, 3] Angstrom
    cell: np.ndarray  # [3, 3] Angstrom, rows are the cell vectors, zeros where there is none
    pbc: np.ndarray  # [3] bool
    energy: float  # eV
    forces: np.ndarray  # [N, 3] eV/Angstrom
    source: str  # "file:frame", unique within a data set
    tags: np.ndarray = field(default_factory=lambda: np.zeros(0, int))  # [N] or empty: zeros
    fixed: np.ndarray = field(default_factory=lambda: np.zeros(0, int))  # [N] 0/1 or empty: zeros
    hint: str = ""  # where labels might be, for the error message when one is missing

    def __len__(self) -> int:
        return len(self.numbers)


def formula(numbers: np.ndarray) -> str:
    """Sum formula in order of atomic number, `H8C9O4`."""
    unique, counts = np.unique(numbers, return_counts=True)
    return "".join(f"{chemical_symbols[z]}{c if c > 1 else ''}" for z, c in zip(unique, counts, strict=True))


def no_forces(n_atoms: int) -> np.ndarray:
    """Forces [n_atoms, 3] that say "not labelled"."""
    return np.full((n_atoms, 3), np.nan)
