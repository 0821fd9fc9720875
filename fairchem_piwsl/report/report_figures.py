"""Figures of `piwsl report`: errors of every seed, learning curves over steps and wall time, weights that set themselves."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from fairchem_piwsl.analysis import figures
from fairchem_piwsl.analysis.error_metrics import TITLES, unit_of
from fairchem_piwsl.report.printed_results import Printed
from fairchem_piwsl.report.runs import Run
from fairchem_piwsl.report.statistics import Entry
from fairchem_piwsl.report.tables import kind_of

# The first of each line that is there becomes a panel.
PANELS = (
    ("energy_rmse", "val_energy_rmse_best", "val_energy_mae_best"),
    ("forces_rmse", "val_forces_rmse_best", "val_forces_mae_best"),
)
CURVES = (("val/energy_rmse", "val/energy_mae"), ("val/forces_rmse", "val/forces_mae"))


def plot_errors(
    entries: Sequence[Entry],
    printed: dict[tuple[str, str], Printed],
    names: dict[str, tuple[str, str]],
    title: str,
    path: Path,
) -> Path | None:
    """One dot for each seed, a line for the mean, a diamond for the paper's value; None without errors."""
    # of several test sets the one of most methods
    common = Counter(entry.quantity for entry in entries).most_common()
    available = {kind_of(quantity): quantity for quantity, _ in reversed(common)}
    panels = [next((available[kind] for kind in choices if kind in available), None) for choices in PANELS]
    shown = [quantity for quantity in panels if quantity]
    if not shown:
        return None
    methods = list(dict.fromkeys(entry.method for entry in entries))
    with figures.figure(11.0, 1.6 + 0.45 * len(methods)) as fig:
        axes_list = np.atleast_1d(fig.subplots(1, len(shown), sharey=True))
        for axes, quantity in zip(axes_list, shown, strict=True):
            for row, method in enumerate(methods):
                entry = next((e for e in entries if (e.quantity, e.method) == (quantity, method)), None)
                colour, item = figures.colour(row), printed.get((quantity, method))
                if entry is not None:
                    axes.plot(entry.values, [row] * len(entry.values), "o", color=colour, alpha=0.7)
                    axes.plot([entry.mean] * 2, [row - 0.28, row + 0.28], color=colour, linewidth=2.5)
                if item is not None:
                    axes.plot(item.value, row, "D", mfc="none", color=figures.REFERENCE, markersize=7)
            axes.set_yticks(range(len(methods)), methods)
            label = " in ".join(part for part in names[quantity] if part)
            axes.set(xlabel=label, xlim=(0, 1.06 * axes.dataLim.x1), ylim=(len(methods) - 0.5, -0.5))
        note = "; diamonds: the paper" if printed else ""
        fig.suptitle(f"{title} (dots: seeds, lines: means{note})", fontsize=11)
        return figures.save(fig, path)


def plot_curves(
    methods: dict[str, list[Run]], factor: float, units: str, limit: float | None, title: str, path: Path
) -> Path | None:
    """Validation errors against steps (left) and wall time (right), a line for each run; None without curves."""
    tags = [
        next((tag for tag in choices if any(tag in run.curves for m in methods.values() for run in m)), None)
        for choices in CURVES
    ]
    shown = [tag for tag in tags if tag]
    if not shown:
        return None
    with figures.figure(11.0, 3.6 * len(shown) + 0.6) as fig:
        grid = fig.subplots(len(shown), 2, squeeze=False, sharey="row")
        for row, tag in zip(grid, shown, strict=True):
            for number, (method, runs) in enumerate(methods.items()):
                for i, run in enumerate(run for run in runs if tag in run.curves):
                    curve = run.curves[tag]
                    style = {"color": figures.colour(number), "linewidth": 1.2, "alpha": 0.8}
                    row[0].plot(curve.step, curve.value * factor, label=None if i else method, **style)
                    row[1].plot(curve.seconds / 60, curve.value * factor, **style)
            metric = tag.removeprefix("val/")
            label = f"validation {TITLES[metric]}\n({unit_of(metric, units)})"
            row[0].set(xlabel="training steps", ylabel=label)
            row[1].set(xlabel="wall time (min)" + ("; dashed: reached by all" if limit else ""))
            if limit:
                row[1].axvline(limit / 60, color=figures.REFERENCE, linewidth=0.8, linestyle="--")
            figures.log_scale(row[0].yaxis)
        grid[0][0].legend()
        fig.suptitle(title)
        return figures.save(fig, path)


# Tags of weights that set themselves, and of the norms of gradients that they follow.
DECISIONS = {"train/weight_": "weight of the term", "train/gradient_": "norm of its weighted gradient"}


def plot_weights(methods: dict[str, list[Run]], title: str, path: Path) -> Path | None:
    """Weights of the terms of the loss and norms of their gradients over training; None where none set themselves.

    A row for each method that has them, a line for each run.
    """
    shown = {
        method: logged
        for method, runs in methods.items()
        if (logged := [run for run in runs if any(tag.startswith(tuple(DECISIONS)) for tag in run.curves)])
    }
    if not shown:
        return None
    tags = sorted({tag for runs in shown.values() for run in runs for tag in run.curves})
    terms = list(dict.fromkeys(tag.removeprefix(p) for p in DECISIONS for tag in tags if tag.startswith(p)))
    with figures.figure(11.0, 0.8 + 3.2 * len(shown)) as fig:
        grid = fig.subplots(len(shown), len(DECISIONS), squeeze=False, sharex=True)
        for row, (method, runs) in zip(grid, shown.items(), strict=True):
            for axes, (prefix, label) in zip(row, DECISIONS.items(), strict=True):
                for number, term in enumerate(terms):
                    drawn = [run.curves[prefix + term] for run in runs if prefix + term in run.curves]
                    for i, curve in enumerate(drawn):
                        style = {"color": figures.colour(number), "linewidth": 1.2, "alpha": 0.8}
                        axes.plot(curve.step, curve.value, label=None if i else term, **style)
                axes.set(title=method, ylabel=label)
                axes.set_yscale("log", nonpositive="mask")
                if not axes.lines:
                    axes.text(0.5, 0.5, "not measured in these runs", transform=axes.transAxes, ha="center")
        for axes in grid[-1]:
            axes.set_xlabel("training steps")
        grid[0][0].legend()
        fig.suptitle(title, fontsize=11)
        return figures.save(fig, path)


def plot_survival(methods: dict[str, list[Run]], title: str, path: Path) -> Path | None:
    """Share of dynamics that has not failed by a time, a panel for each kind; None without dynamics."""
    conditions = list(dict.fromkeys(c for runs in methods.values() for run in runs for c in run.dynamics))
    if not conditions:
        return None
    with figures.figure(11.0, 3.8) as fig:
        panels = fig.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
        for axes, condition in zip(panels, conditions, strict=True):
            for number, (method, runs) in enumerate(methods.items()):
                starts = [start for run in runs for start in run.dynamics.get(condition, [])]
                if starts:
                    time, share = survival(starts)
                    label = f"{method}: {len(starts)} starts"
                    axes.step(time, share, where="post", color=figures.colour(number), label=label)
            words = textwrap.fill(condition, max(12, 90 // len(conditions)))
            axes.set(xlabel="time (ps)", title=words, xlim=(0, None), ylim=(-0.03, 1.05))
        panels[0].set_ylabel("share without failure")
        panels[-1].legend()
        fig.suptitle(title, fontsize=11)
        return figures.save(fig, path)


def survival(starts: Sequence[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """Times (ps) and the share of `starts` that is without failure from then on (Kaplan and Meier).

    Each start is its length in ps and whether it failed; one that did not fail counts up to its length.
    """
    ended = stats.CensoredData(
        uncensored=[length for length, failed in starts if failed],
        right=[length for length, failed in starts if not failed],
    )
    survivors = stats.ecdf(ended).sf
    return np.append(0.0, survivors.quantiles), np.append(1.0, survivors.probabilities)
