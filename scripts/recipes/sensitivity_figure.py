"""How errors depend on weight and displacement of PITC: a grid of runs, with the point that `auto` chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fairchem_piwsl.analysis import figures
from recipes.results_file import TITLES, Run, grouped

AXES = ("c_pitc", "eps_max")
#: weights and displacements of a data set's runs
Ticks = tuple[list[float], list[float]]


def sensitivity(results: Mapping[str, Any], path: Path) -> Path | None:
    """Heat maps of the errors over c_pitc and eps_max, for each data set, error and k; a star where `auto` ended.

    None where no runs vary both settings.
    """
    found = {
        data: runs
        for (data, _), methods in grouped(results).items()
        if (runs := [run for [run, *_] in methods.values() if set(AXES) <= run["settings"].keys()])
    }
    if not found:
        return None
    orders = sorted({run["settings"].get("k_2nd", 0.0) for runs in found.values() for run in runs})
    rows = [(data, error) for data in found for error in TITLES]
    with figures.figure(1 + 4.6 * len(orders), 0.8 + 3.0 * len(rows)) as fig:
        grid = fig.subplots(len(rows), len(orders), squeeze=False)
        for row, (data, error) in zip(grid, rows, strict=True):
            runs = found[data]
            values = [run["errors"][error] for run in runs]
            limits = min(values), max(1.1 * min(values), float(np.quantile(values, 0.9)))
            for axes, k in zip(row, orders, strict=True):
                members = [run for run in runs if run["settings"].get("k_2nd", 0.0) == k]
                star = _star(_ticks(runs), _chosen(results, data) if k == orders[-1] else None)
                _panel(axes, members, _ticks(runs), error, limits, star)
                axes.set_title(f"{data.replace('_', ' ')}, k = {k:g}: {TITLES[error]}")
        note = "colours share their limits for each error; bold: best of a panel; star: where auto_displaced ended"
        fig.suptitle(note, fontsize=10)
        return figures.save(fig, path)


def _chosen(results: Mapping[str, Any], data: str) -> tuple[float, float] | None:
    """Weight and displacement (Angstrom) that `auto` had at its end, in the mean over logarithms and seeds.

    The weight is that of a step: `auto` has a larger one in every n-th, the runs of the grid have theirs in each.
    """
    decided = [run["decided"] for run in results["runs"] if run["data"] == data and "decided" in run]
    points = [
        [one["weight_pitc"] / one["every_n_steps"], one["eps_max"]]
        for one in decided
        if {"weight_pitc", "eps_max"} <= one.keys()
    ]
    if not points or not np.all(np.array(points) > 0):
        return None
    weight, eps = np.exp(np.log(points).mean(axis=0))
    return float(weight), float(eps)


def _panel(
    axes: Axes,
    runs: Sequence[Run],
    ticks: Ticks,
    error: str,
    limits: tuple[float, float],
    star: tuple[float, float] | None,
) -> None:
    weights, steps = ticks
    table = np.full((len(weights), len(steps)), np.nan)
    for run in runs:
        c, eps = (run["settings"][name] for name in AXES)
        table[weights.index(c), steps.index(eps)] = run["errors"][error]
    axes.imshow(table, cmap="cividis_r", vmin=limits[0], vmax=limits[1], aspect="auto", origin="lower")
    middle = (limits[0] + limits[1]) / 2
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            best = value == np.nanmin(table)
            beside = 0.0  # the star
            if star is not None and max(abs(star[0] - j), abs(star[1] - i)) < 0.5:
                beside = -0.3 if star[1] > i else 0.3
            axes.text(
                j,
                i + beside,
                f"{value:.2f}" if value < 100 else f"{value:.0f}",
                ha="center",
                va="center",
                color="white" if value > middle else "black",
                fontweight="bold" if best else "normal",
            )
    axes.set_xticks(range(len(steps)), [f"{s:g}" for s in steps])
    axes.set_yticks(range(len(weights)), [f"{c:g}" for c in weights])
    axes.set(xlabel="eps_max (Å)", ylabel="c_pitc")
    axes.grid(False)
    axes.set_facecolor(figures.MISSING)
    if star is not None:
        look: Any = {"markerfacecolor": "none", "markeredgecolor": figures.colour(1), "markeredgewidth": 1.5}
        axes.plot(*star, "*", markersize=20, clip_on=False, **look)


def _ticks(runs: Sequence[Run]) -> Ticks:
    weights, steps = (sorted({run["settings"][name] for run in runs}) for name in AXES)
    return weights, steps


def _star(ticks: Ticks, chosen: tuple[float, float] | None) -> tuple[float, float] | None:
    """Where a point lies between the cells of the grid, whose settings are about evenly spaced in their logarithms."""
    if chosen is None:
        return None
    y, x = (
        float(np.clip(_position(value, along), -0.5, len(along) - 0.5))
        for value, along in zip(chosen, ticks, strict=True)
    )
    return x, y


def _position(value: float, ticks: Sequence[float]) -> float:
    """Where `value` lies on an axis with rising `ticks` at 0, 1, 2, ...; beyond them as far as their mean spacing says."""
    logs = np.log(ticks)
    spacing = (logs[-1] - logs[0]) / max(len(logs) - 1, 1) or 1.0
    x = np.log(value)
    outside = min(x - logs[0], 0) + max(x - logs[-1], 0)
    return float(np.interp(x, logs, np.arange(len(logs))) + outside / spacing)
