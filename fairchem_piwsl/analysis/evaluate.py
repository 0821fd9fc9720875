"""`piwsl evaluate`: how wrong are the energies and forces of trained models on a labelled data set."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_piwsl.analysis import figures
from fairchem_piwsl.analysis.error_metrics import TITLES, energy_units, error_table, in_units, unit_of
from fairchem_piwsl.analysis.potential import Potential, Predictions, load_potentials
from fairchem_piwsl.datasets.element_references import composition, fit_references
from fairchem_piwsl.datasets.read import read_labelled
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import file_name, write_result
from fairchem_piwsl.structures import Labelled, fixed_atoms
from fairchem_piwsl.units import ENERGY_UNITS

MOST_COMPOSITIONS = 12
SIZE_BINS = 4
CONFIDENCE = 0.95
# Cosine between labels and predictions from which on their ratio tells a unit.
SAME_PATTERN = 0.8


def evaluate(
    checkpoints: Sequence[str | Path],
    data: str | Path,
    *,
    units: str = "kcal/mol",
    group_by: str = "auto",
    limit: int | None = None,
    batch_size: int = 16,
    n_bootstrap: int = 1000,
    out: Path | None = None,
    **load_options: Any,
) -> dict[str, Any]:
    """Errors of every checkpoint on `data`, as a dictionary ready for JSON.

    units: an energy unit, such as "kcal/mol" or "eV". group_by: "composition", "size", "none", or "auto": by composition
    where there are 2 to 12 of them, by size where there are more. out: a folder for `evaluate.json` and
    parity plots, written when all models are done.
    load_options go to `load_potential` (cpu, dtype, ema, gradient_forces, task_name).
    """
    energy_units(units)
    structures = [_of_free_atoms(item) for item in read_labelled(data, limit)]
    check_labels(structures, data)
    groups = group(structures, group_by)
    potentials = load_potentials(checkpoints, **load_options)
    atoms = [item.atoms for item in structures]
    predictions = [potential.predict(atoms, batch_size) for potential in potentials]
    models = [
        _describe(potential, structures, prediction, groups, units, n_bootstrap)
        for potential, prediction in zip(potentials, predictions, strict=True)
    ]
    result = {
        "command": "evaluate",
        "data": str(data),
        "structures": len(structures),
        "atoms": sum(map(len, atoms)),
        "confidence": CONFIDENCE,
        "units": {metric: unit_of(metric, units) for metric in TITLES},
        "models": models,
        "warning": unit_warning(structures, predictions, data),
    }
    if out is not None:
        stems = [file_name(potential.name) for potential in potentials]
        pictures = [
            out / f"parity_{stem}{f'_{number}' if stem in stems[:number] else ''}.png"
            for number, stem in enumerate(stems)
        ]
        write_result(out / "evaluate.json", result, *pictures)
        for potential, prediction, path in zip(potentials, predictions, pictures, strict=True):
            plot_parity(structures, prediction, units, potential.name, path)
    return result


def _of_free_atoms(item: Labelled) -> Labelled:
    """Without the forces on fixed atoms, which training and validation leave out as well."""
    return replace(item, forces=np.where(fixed_atoms(item.atoms)[:, None], np.nan, item.forces))


def check_labels(structures: Sequence[Labelled], data: str | Path) -> None:
    """Refuse data without any label; say which one is needed."""
    no_energy = all(np.isnan(item.energy) for item in structures)
    if no_energy and all(np.isnan(item.forces).all() for item in structures):
        keys = f", {structures[0].hint}" if structures[0].hint else ""
        raise UserError(
            f"{data}: no structure has an energy or forces; give a labelled data set, or make one from "
            f"this (piwsl prepare{keys})."
        )


def unit_warning(
    structures: Sequence[Labelled], predictions: Sequence[Predictions], data: str | Path
) -> str | None:
    """A sentence where labels would fit a model's predictions in another unit than eV, else None.

    Judged by the forces, without them by the energies less a fit per element. Labels in another unit make a
    good model look like a bad one.
    """
    name = "forces" if any(np.isfinite(item.forces).any() for item in structures) else "energies"

    def judged(energy: np.ndarray, forces: Sequence[np.ndarray]) -> np.ndarray:
        return (
            np.concatenate(forces).ravel() if name == "forces" else energy - _element_fit(structures, energy)
        )

    labels = judged(np.array([item.energy for item in structures]), [item.forces for item in structures])
    known = np.isfinite(labels)
    for prediction in predictions:
        predicted = judged(prediction.energy, prediction.forces)
        sizes = np.linalg.norm(labels[known]), np.linalg.norm(predicted[known])
        if min(sizes) == 0 or labels[known] @ predicted[known] < SAME_PATTERN * sizes[0] * sizes[1]:
            continue
        ratio = float(sizes[0] / sizes[1])
        for unit, size in ENERGY_UNITS.items():
            if unit != "eV" and 0.7 < ratio * size < 1.4:
                return (
                    f"The {name} in {data} are about {ratio:.3g} times the predicted ones: they look like {unit}, "
                    "but labels are taken as eV and eV/Angstrom (piwsl prepare --units converts them)."
                )
    return None


def group(structures: Sequence[Labelled], by: str) -> dict[str, np.ndarray]:
    """Indices of `structures` under a name for each composition or size; empty where one group would do."""
    if by not in ("auto", "composition", "size", "none"):
        raise UserError(f"--group-by {by}: not known; choose auto, composition, size or none.")
    formulas = np.array([item.formula for item in structures])
    names, counts = np.unique(formulas, return_counts=True)
    if by == "auto":
        by = "none" if len(names) == 1 else "composition" if len(names) <= MOST_COMPOSITIONS else "size"
    if by == "composition":
        ordered = names[np.argsort(-counts, kind="stable")]
        return {str(name): np.flatnonzero(formulas == name) for name in ordered}
    if by == "size":
        sizes = np.array([len(item.atoms) for item in structures])
        starts = np.unique(np.quantile(sizes, np.linspace(0, 1, SIZE_BINS, endpoint=False)).round())
        bins = pairwise([*starts, sizes.max() + 1])
        members = [np.flatnonzero((sizes >= low) & (sizes < high)) for low, high in bins]
        return {_size_range(sizes[indices]): indices for indices in members if len(indices)}
    return {}


def _size_range(sizes: np.ndarray) -> str:
    low, high = sizes.min(), sizes.max()
    return f"{low} atoms" if low == high else f"{low} to {high} atoms"


def relative_energies(structures: Sequence[Labelled], predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reference and predicted energies [S] less a least-squares fit per element of the reference.

    With one composition the fit is the mean. Both get the same shift, so errors stay as they are.
    """
    reference = np.array([item.energy for item in structures])
    fit = _element_fit(structures, reference)
    return reference - fit, predicted - fit


def _element_fit(structures: Sequence[Labelled], energy: np.ndarray) -> np.ndarray:
    """Sums [S] of one energy per element, by least squares to `energy` [S] where that is known."""
    counts = np.array([composition(item.atoms.numbers) for item in structures])
    return np.asarray(counts @ fit_references(counts, energy))


def plot_parity(
    structures: Sequence[Labelled], prediction: Predictions, units: str, title: str, path: Path
) -> Path:
    """Predicted against reference energies and force components, one panel for each label that is there."""
    factor, energy_unit, force_unit = energy_units(units)
    panels = []
    if any(np.isfinite(item.energy) for item in structures):
        reference, predicted = relative_energies(structures, prediction.energy)
        shift = "mean" if len({item.formula for item in structures}) == 1 else "a fit per element"
        panels.append(
            ("energy", f"{energy_unit}, relative to {shift}", reference * factor, predicted * factor)
        )
    forces = np.concatenate([item.forces.ravel() for item in structures])
    if np.isfinite(forces).any():
        predicted = np.concatenate([force.ravel() for force in prediction.forces])
        panels.append(("force component", force_unit, forces * factor, predicted * factor))
    with figures.figure(4.6 * len(panels), 4.4) as fig:
        for number, (name, unit, x, y) in enumerate(panels):
            axes = fig.add_subplot(1, len(panels), number + 1)
            known = np.isfinite(x)
            _parity_panel(fig, axes, x[known], y[known])
            axes.set(xlabel=f"reference {name} ({unit})", ylabel=f"predicted {name}")
            axes.locator_params(nbins=6)
        fig.suptitle(title)
        return figures.save(fig, path)


def _parity_panel(fig: Any, axes: Any, x: np.ndarray, y: np.ndarray) -> None:
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.04 * (high - low or 1.0)
    limits = (low - margin, high + margin)
    figures.diagonal(axes, *limits)
    if len(x) > 2000:
        drawn = axes.hexbin(
            x, y, gridsize=70, bins="log", mincnt=1, cmap="viridis", extent=(*limits, *limits)
        )
        fig.colorbar(drawn, ax=axes, label="count", shrink=0.7)
    else:
        axes.scatter(x, y, s=12, alpha=0.6, color=figures.colour(0), linewidths=0, zorder=2)
    error = y - x
    text = f"MAE {np.abs(error).mean():.3g}\nRMSE {np.sqrt((error**2).mean()):.3g}"
    axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top")


def _describe(
    potential: Potential,
    structures: Sequence[Labelled],
    prediction: Predictions,
    groups: dict[str, np.ndarray],
    units: str,
    n_bootstrap: int,
) -> dict[str, Any]:
    def table(indices: np.ndarray) -> dict[str, dict[str, float]]:
        errors = error_table(
            np.array([structures[i].energy for i in indices]),
            [structures[i].forces for i in indices],
            prediction.energy[indices],
            [prediction.forces[i] for i in indices],
            n_bootstrap=n_bootstrap,
            confidence=CONFIDENCE,
        )
        return {metric: estimate._asdict() for metric, estimate in in_units(errors, units).items()}

    return {
        "name": potential.name,
        "checkpoint": str(potential.path),
        "forces": "gradient of the energy" if potential.gradient_forces else "output of the model",
        "metrics": table(np.arange(len(structures))),
        "groups": {name: {"structures": len(indices), **table(indices)} for name, indices in groups.items()},
    }
