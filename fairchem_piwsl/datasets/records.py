"""What is remembered of each structure while a data set is written: labels' statistics, not the structure."""

import numpy as np

from fairchem_piwsl.datasets.element_references import composition
from fairchem_piwsl.datasets.geometry import distances
from fairchem_piwsl.structures import Labelled

#: structures of each split that are kept for comparing energies with forces
N_SAMPLES = 200


class Records:
    """Per-structure numbers of one split, in the order of its keys."""

    def __init__(self, size: int):
        self.source = [""] * size
        self.natoms = np.zeros(size, dtype=int)
        self.energy = np.full(size, np.nan)  # eV
        self.composition = np.zeros((size, len(composition(np.array([1])))), dtype=np.int32)
        self.shortest = np.full(size, np.inf)  # Angstrom
        self.bond_ratio = np.full(size, np.nan)  # bonds in sums of covalent radii
        self.fingerprint = np.zeros((size, 4))
        self.force_squares = np.zeros(size)  # sum over labelled components, (eV/Angstrom)^2
        self.force_components = np.zeros(size, dtype=int)  # labelled ones
        self.force_max = np.full(size, np.nan)  # largest component, eV/Angstrom
        self.net_force = np.full(size, np.nan)  # norm of the sum over atoms, eV/Angstrom
        self.pbc = np.zeros((size, 3), dtype=bool)
        self.samples: list[Labelled] = []

    def __len__(self) -> int:
        return len(self.source)

    def add(self, key: int, structure: Labelled) -> None:
        """Take down the structure that is written under `key`."""
        self.source[key] = structure.source
        self.natoms[key] = len(structure)
        self.energy[key] = structure.energy
        self.composition[key] = composition(structure.atoms.numbers)
        self.shortest[key], self.bond_ratio[key], self.fingerprint[key] = distances(structure.atoms)
        labelled = structure.forces[np.isfinite(structure.forces)]
        self.force_components[key] = len(labelled)
        self.force_squares[key] = np.sum(labelled**2)
        if len(labelled):
            self.force_max[key] = np.abs(labelled).max()
        if len(labelled) == 3 * len(structure):
            self.net_force[key] = np.linalg.norm(structure.forces.sum(axis=0))
        self.pbc[key] = structure.atoms.pbc
        if key < N_SAMPLES:
            self.samples.append(structure)

    @property
    def force_rms(self) -> float:
        """RMS of the labelled force components, eV/Angstrom; NaN without labels."""
        n = self.force_components.sum()
        return float(np.sqrt(self.force_squares.sum() / n)) if n else float("nan")
