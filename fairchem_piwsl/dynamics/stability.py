"""When has molecular dynamics failed? The criteria of Fu et al., TMLR 2023 (arXiv 2210.07237).

Molecules: a bond departs more than 0.5 Angstrom from its equilibrium length. Periodic systems: the radial
distribution function of a time window departs from the reference's. Both also see numbers that are not finite.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

from fairchem_piwsl.analysis.bonds import bond_lengths, bonds
from fairchem_piwsl.structures import with_full_cell

BOND_THRESHOLD = 0.5  # Angstrom
RDF_RANGE = 6.0  # Angstrom
RDF_THRESHOLD = 3.0  # Angstrom, the integral of |RDF - reference|; Fu et al. take 3.0 for water


class BondCriterion:
    """Largest departure of a bond from its equilibrium length, Angstrom.

    Bonds are those of `structure`; their equilibrium lengths are the means over `reference` frames where there
    are any, else the lengths in `structure`.
    """

    name = "bond length"
    unit = "Angstrom"

    def __init__(
        self, structure: Atoms, reference: Sequence[Atoms] = (), threshold: float = BOND_THRESHOLD
    ) -> None:
        self.threshold = threshold
        self.pairs, lengths = bonds(structure)
        if reference:
            lengths = np.mean([bond_lengths(frame, self.pairs) for frame in reference], axis=0)
        self.expected = lengths

    def settings(self) -> dict[str, float]:
        """What decides about failure, beside the expected lengths."""
        return {"threshold": self.threshold}

    def departure(self, atoms: Atoms) -> float:
        """Largest departure of a bond in `atoms`; infinite where positions are not finite."""
        if not np.isfinite(atoms.positions).all():
            return float("inf")
        if not len(self.pairs):
            return 0.0
        return float(np.abs(bond_lengths(atoms, self.pairs) - self.expected).max())


class RdfCriterion:
    """Integral of |RDF of a window - reference RDF| over r, Angstrom, at the end of each window of frames.

    The reference RDF is that of `reference` frames; without any, that of the first window of the run itself.
    """

    name = "radial distribution"
    unit = "Angstrom"

    def __init__(
        self,
        reference: Sequence[Atoms] = (),
        window: int = 100,
        threshold: float = RDF_THRESHOLD,
        bins: int = 200,
    ) -> None:
        self.threshold = threshold
        self.window = max(1, window)
        self.edges = np.linspace(0.0, RDF_RANGE, bins + 1)
        self.expected = radial_distribution(reference, self.edges) if reference else None
        self.frames: list[Atoms] = []

    def settings(self) -> dict[str, float]:
        """What decides about failure, beside the expected distribution."""
        return {"threshold": self.threshold, "window": self.window}

    def add(self, atoms: Atoms) -> float:
        """Take a frame; the departure where it ends a window, else NaN."""
        if not np.isfinite(atoms.positions).all():
            return float("inf")
        self.frames.append(atoms.copy())
        if len(self.frames) < self.window:
            return float("nan")
        current = radial_distribution(self.frames, self.edges)
        self.frames = []
        if self.expected is None:
            self.expected = current
        return float(np.abs(current - self.expected).sum() * (self.edges[1] - self.edges[0]))


def radial_distribution(frames: Sequence[Atoms], edges: np.ndarray) -> np.ndarray:
    """g(r) of all pairs, those with periodic images too, in the bins between `edges`, averaged over frames.

    A surface without a third cell vector has the volume of the box in which a model sees it.
    ase.geometry.rdf refuses unit cells, which are small beside its range.
    """
    total = np.zeros(len(edges) - 1)
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    for atoms in frames:
        volume = (atoms if atoms.cell.rank == 3 else with_full_cell(atoms)).get_volume()
        ideal = len(atoms) ** 2 / volume * shells
        total += np.histogram(neighbor_list("d", atoms, float(edges[-1])), edges)[0] / ideal
    return total / len(frames)


def pair_distances(atoms: Atoms) -> np.ndarray:
    """All n (n - 1) / 2 interatomic distances in Angstrom, to nearest images where the cell is periodic."""
    return atoms.get_all_distances(mic=True)[np.triu_indices(len(atoms), k=1)]


def distance_distribution(frames: Sequence[Atoms], edges: np.ndarray) -> np.ndarray:
    """h(r): density of interatomic distances in 1/Angstrom, averaged over frames; its integral is at most 1."""
    counts = sum(np.histogram(pair_distances(atoms), edges)[0] for atoms in frames)
    pairs = len(frames) * len(frames[0]) * (len(frames[0]) - 1) / 2
    return np.asarray(counts / (pairs * np.diff(edges)))


def energy_drift(time_ps: np.ndarray, total: np.ndarray, n_atoms: int) -> float:
    """Slope of the total energy (eV) by least squares, in meV per atom and ns."""
    if len(time_ps) < 2:
        return float("nan")
    return float(np.polyfit(time_ps, total, 1)[0] * 1e6 / n_atoms)


def mean_time(summary: Mapping[str, Any]) -> str:
    """The mean time to failure of the `summary` of `piwsl md` in words, as a bound where a run did not fail."""
    bound = "at least " if summary["is_lower_bound"] else ""
    return f"time to failure {bound}{summary['time_to_failure_mean']:.4g} ps in the mean"
