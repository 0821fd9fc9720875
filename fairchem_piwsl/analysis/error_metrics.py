"""Errors of predicted energies and forces, with bootstrap intervals over structures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fairchem_piwsl.units import ENERGY_UNITS, energy_unit

#: what tables and figures call them
TITLES = {
    "energy_mae": "energy MAE",
    "energy_rmse": "energy RMSE",
    "energy_per_atom_mae": "energy MAE per atom",
    "energy_per_atom_rmse": "energy RMSE per atom",
    "forces_mae": "force MAE",
    "forces_rmse": "force RMSE",
    "forces_cosine": "force cosine",
}
#: residuals of Eqs. 3 and 4 with k of Eq. 2, as `piwsl consistency` names them
TAYLOR = {
    "pitc_k0": "PITC, k = 0",
    "pitc_k0.5": "PITC, k = 1/2",
    "pisc_k0": "PISC, k = 0",
    "pisc_k0.5": "PISC, k = 1/2",
}


def energy_units(name: str) -> tuple[float, str, str]:
    """Factor from eV, energy unit and force unit of an option --units."""
    unit = energy_unit(name)
    return 1 / ENERGY_UNITS[unit], unit, f"{unit}/Angstrom"


class Estimate(NamedTuple):
    """A value with its bootstrap interval; NaN where no structure has the label, the interval also where only one has."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit."""
        return Estimate(*(factor * number for number in self))


def error_table(
    energy: np.ndarray,
    forces: Sequence[np.ndarray],
    energy_predicted: np.ndarray,
    forces_predicted: Sequence[np.ndarray],
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Errors in the unit of the input, each with a bootstrap interval over structures.

    energy, energy_predicted: [S]; forces, forces_predicted: one [n_atoms, 3] array per structure.
    NaN labels are left out. Force MAE and RMSE are over Cartesian components; the cosine is the mean over
    atoms of the cosine between predicted and reference force, and has no unit.
    """
    sums = _sums(energy, forces, energy_predicted, forces_predicted)
    n_structures = len(energy)
    random, shares = np.random.default_rng(0), np.full(n_structures, 1.0 / max(n_structures, 1))
    columns = np.stack([part for pair in sums.values() for part in pair], axis=1)
    # one draw at a time: all of them are 8 GB for a million structures
    draws = [random.multinomial(n_structures, shares) @ columns for _ in range(n_bootstrap)]
    drawn = np.array(draws).reshape(n_bootstrap, len(sums), 2)
    table = {}
    tail = 50.0 * (1.0 - confidence)
    for number, (metric, (numerator, count)) in enumerate(sums.items()):
        value = _ratio(metric, numerator.sum(), count.sum())
        resampled = _ratio(metric, drawn[:, number, 0], drawn[:, number, 1])
        scatters = (count > 0).sum() > 1  # of one structure every draw is the same
        resampled = resampled[np.isfinite(resampled) & scatters]
        low, high = np.percentile(resampled, [tail, 100.0 - tail]) if resampled.size else (np.nan, np.nan)
        table[metric] = Estimate(float(value), float(low), float(high))
    return table


def in_units(table: dict[str, Estimate], units: str) -> dict[str, Estimate]:
    """A table in eV turned into `units`, an energy unit; the cosine stays."""
    factor = energy_units(units)[0]
    return {key: value if key == "forces_cosine" else value.scaled(factor) for key, value in table.items()}


def unit_of(metric: str, units: str) -> str:
    """The unit of `metric` when energies are in `units`, for table heads and axes."""
    _, energy, force = energy_units(units)
    if metric == "forces_cosine":
        return ""
    if metric.startswith("forces"):
        return force
    return f"{energy}/atom" if "per_atom" in metric else energy


def _sums(
    energy: np.ndarray,
    forces: Sequence[np.ndarray],
    energy_predicted: np.ndarray,
    forces_predicted: Sequence[np.ndarray],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per structure: the sum that a metric averages, and how many terms it has, each [S]."""
    natoms = np.array([len(force) for force in forces])
    structure = np.repeat(np.arange(len(natoms)), natoms)

    def over_atoms(values: np.ndarray) -> np.ndarray:
        return np.bincount(structure, values, minlength=len(natoms))

    known = np.isfinite(energy).astype(float)
    error = np.where(known > 0, np.asarray(energy_predicted) - energy, 0.0)
    reference, predicted = np.concatenate(forces), np.concatenate(forces_predicted)
    labelled = np.isfinite(reference)
    difference = np.where(labelled, predicted - reference, 0.0)
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(predicted, axis=1)
    defined = norms > 0  # false where a component is NaN
    cosines = np.divide((reference * predicted).sum(1), norms, out=np.zeros(len(norms)), where=defined)
    components = over_atoms(labelled.sum(1))
    return {
        "energy_mae": (np.abs(error), known),
        "energy_rmse": (error**2, known),
        "energy_per_atom_mae": (np.abs(error / natoms), known),
        "energy_per_atom_rmse": ((error / natoms) ** 2, known),
        "forces_mae": (over_atoms(np.abs(difference).sum(1)), components),
        "forces_rmse": (over_atoms((difference**2).sum(1)), components),
        "forces_cosine": (over_atoms(cosines), over_atoms(defined)),
    }


def _ratio(metric: str, numerator: np.ndarray | float, count: np.ndarray | float) -> np.ndarray:
    numerator, count = np.asarray(numerator, dtype=float), np.asarray(count, dtype=float)
    mean = np.divide(numerator, count, out=np.full(numerator.shape, np.nan), where=count > 0)
    return np.sqrt(mean) if metric.endswith("rmse") else mean
