"""Tables and the picture of a method comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fairchem_piwsl.analysis import figures
from fairchem_piwsl.analysis.potential import load_potential
from fairchem_piwsl.datasets.read import read_labelled
from fairchem_piwsl.files import write_json, write_text
from fairchem_piwsl.report.curves import read_curves
from fairchem_piwsl.report.statistics import mean_and_spread, relative_change
from fairchem_piwsl.report.tables import markdown_table as as_markdown
from fairchem_piwsl.units import kcal_in
from recipes.compare import Result
from recipes.results_file import ENERGY, FORCES, TITLES

HEADINGS = ("method", TITLES[ENERGY], "change", TITLES[FORCES], "change", "training, s")
KCAL = kcal_in("eV")


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of each method over its seeds, in the order of first appearance."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.method, []).append(result)
    return groups


def as_recipe(results: Sequence[Result], recipe: str, title: str, data: str, model: str) -> dict[str, Any]:
    """The runs in the layout of docs/results/*.json, whose tables `scripts/publish.py` writes into pages."""
    place = {"data": data, "trained_on": data, "model": model, "length": 1.0}
    runs = [
        {
            **place,
            "method": run.method,
            "seed": run.seed,
            "train_seconds": run.train_seconds,
            "errors": {"energy_rmse": run.energy_rmse, "forces_rmse": run.forces_rmse},
        }
        for run in results
    ]
    units = {"energy": "kcal/mol", "forces": "kcal/mol/Angstrom", "time": "s"}
    return {"recipe": recipe, "title": title, "units": units, "runs": runs}


def present(results: Sequence[Result], out: Path, content: Mapping[str, Any]) -> None:
    """Write `results.json` (`content`, see `as_recipe`) and `table.md`, print the table and what lies in `out`."""
    write_json(out / "results.json", content)
    write_text(out / "table.md", markdown_table(results))
    console = Console(markup=False, emoji=False)
    console.print(rich_table(results, content["title"]))
    console.print("\n".join(str(path) for path in sorted(out.iterdir()) if path.is_file()))


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """One row for each method, compared with the first one; mean ± standard deviation over seeds."""
    groups = by_method(results)
    first = next(iter(groups.values()))
    return [(method, *errors_and_cost(runs, first)) for method, runs in groups.items()]


def errors_and_cost(runs: Sequence[Any], first: Sequence[Any]) -> tuple[str, ...]:
    """Cells: errors of energies and forces with their changes against the runs `first`, and training time."""
    cells: list[str] = []
    for name in TITLES:
        values, before = ([getattr(run, name) for run in group] for group in (runs, first))
        change = relative_change(values, before)
        cells += [
            mean_and_spread(values, 2),
            "" if runs is first or change is None else f"{100 * change:+.1f} %",
        ]
    return (*cells, mean_and_spread([run.train_seconds for run in runs], 0))


def rich_table(results: Sequence[Result], title: str) -> Table:
    """The comparison for the terminal."""
    seeds = len(next(iter(by_method(results).values())))
    spread = "; mean ± standard deviation" if seeds > 1 else ""
    table = Table(title=title, caption=f"test set, {seeds} seed{'s' * (seeds > 1)}{spread}")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows(results):
        table.add_row(*row)
    return table


def markdown_table(results: Sequence[Result]) -> str:
    """The comparison for a page."""
    return as_markdown(HEADINGS, rows(results), left=(0,))


def learning_curve(run: Result, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a validation metric (label units), from the run's TensorBoard log."""
    folder = Path(run.checkpoint).parents[2] / "logs" / "tensorboard" / Path(run.checkpoint).parent.name
    curve = read_curves(folder)[f"val/{metric}"]
    return curve.step.tolist(), curve.value.tolist()


def plot(
    results: Sequence[Result],
    test: Path,
    path: Path,
    title: str,
    curve: Callable[[Result, str], tuple[list[int], list[float]]] = learning_curve,
) -> Path:
    """Parity plots of energies and forces on the test set, and learning curves on the validation set.

    Args:
        curve: steps and values of a run's `energy_rmse` or `forces_rmse` (label units).
    """
    structures = read_labelled(test)
    energy = KCAL * np.array([s.energy for s in structures])
    energy -= energy.mean()
    forces = KCAL * np.concatenate([s.forces for s in structures]).ravel()
    groups: Mapping[str, list[Result]] = by_method(results)
    with figures.figure(11, 8) as fig:
        (parity_e, parity_f), (curve_e, curve_f) = fig.subplots(2, 2)
        fig.suptitle(title)
        for number, (method, runs) in enumerate(groups.items()):
            look = {"color": figures.colour(number), "label": method}
            prediction = load_potential(runs[0].checkpoint, cpu=True).predict([s.atoms for s in structures])
            predicted = KCAL * np.asarray(prediction.energy)
            reference_mean = KCAL * np.mean([s.energy for s in structures])
            dots = {"s": 9, "alpha": 0.6, "linewidths": 0, "rasterized": True}
            parity_e.scatter(energy, predicted - reference_mean, **look, **dots)
            dots.update(s=3, alpha=0.3)
            parity_f.scatter(forces, KCAL * np.concatenate(prediction.forces).ravel(), **look, **dots)
            for axes, metric in ((curve_e, ENERGY), (curve_f, FORCES)):
                for run in runs:
                    steps, values = curve(run, metric)
                    axes.plot(
                        steps,
                        KCAL * np.array(values),
                        **{**look, "label": method if run is runs[0] else None},
                    )
        for axes, label, unit in (
            (parity_e, "energy", "kcal/mol"),
            (parity_f, "force component", "kcal/mol/Å"),
        ):
            low, high = axes.get_xlim()
            axes.plot([low, high], [low, high], color=figures.REFERENCE, linewidth=0.8, zorder=0)
            axes.set(
                xlabel=f"reference {label}, {unit}", ylabel=f"predicted {label}, {unit}", title="test set"
            )
        for axes, metric in ((curve_e, ENERGY), (curve_f, FORCES)):
            axes.set(xlabel="training step", ylabel=TITLES[metric], title="validation set")
            axes.set_ylim(bottom=0)
        for axes in (parity_e, parity_f, curve_e, curve_f):
            axes.legend(markerscale=3)
        return figures.save(fig, path)
