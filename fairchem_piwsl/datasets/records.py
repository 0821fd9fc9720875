"""What is remembered of each structure while a data set is written: distances and statistics of labels, not itself."""

from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import wrap_positions
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from fairchem_piwsl.datasets.ase_labels import FREE_ENERGY
from fairchem_piwsl.datasets.element_references import composition
from fairchem_piwsl.structures import STATES, Labelled, as_molecule, is_isolated

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
    """Distances between all atoms of a molecule, whatever its box, or within `RADIUS` in a periodic structure."""
    if is_isolated(atoms):
        atoms = as_molecule(atoms)
    numbers = atoms.numbers
    if atoms.pbc.any():
        cell = np.asarray(atoms.cell.complete().array)
        i, j, d = _periodic_pairs(atoms.positions, cell, atoms.pbc, RADIUS)
        weight = (1 - d / RADIUS) ** 2
        # of each atom, since all decorations of a lattice have the same pairs in other places
        around = np.bincount(i, weight * numbers[j], minlength=len(atoms))
        # structure factors, for what lies further apart than the radius
        phase = np.exp(2j * np.pi * atoms.positions @ np.linalg.inv(cell))
        rest = [(np.abs(numbers @ phase) ** 2).sum(), abs(np.linalg.det(cell))]
        terms = [(numbers * around**2).sum(), (numbers * around).sum(), *rest]
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


def _number(value: object) -> float:
    """A charge or spin; 0 where there is none, or no number (which formats that keep them refuse)."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 0.0
    return number if np.isfinite(number) else 0.0


#: structures of each split that are kept for comparing energies with forces
N_SAMPLES = 200


class Records:
    """Per-structure numbers of one split, in the order of its keys."""

    def __init__(self, size: int):
        self.source = [""] * size
        self.natoms = np.zeros(size, dtype=int)
        self.energy = np.full(size, np.nan)  # eV
        self.free_energy = np.full(size, np.nan)  # eV, where a file has one beside the energy
        self.composition = np.zeros((size, len(composition(np.array([1])))), dtype=np.int32)
        self.shortest = np.full(size, np.inf)  # Angstrom
        self.bond_ratio = np.full(size, np.nan)  # bonds in sums of covalent radii
        self.fingerprint = np.zeros((size, 4))
        self.states = np.zeros((size, len(STATES)))  # total charge and spin
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
        self.free_energy[key] = structure.atoms.info.get(FREE_ENERGY, np.nan)
        self.composition[key] = composition(structure.atoms.numbers)
        self.shortest[key], self.bond_ratio[key], self.fingerprint[key] = distances(structure.atoms)
        self.states[key] = [_number(structure.atoms.info.get(name)) for name in STATES]
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
