"""Pictures of a recipe's results: heat maps, costs with the Pareto front, learning curves, temperatures."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from fairchem_piwsl.analysis import figures
from fairchem_piwsl.report.statistics import Change, half_interval
from recipes.learning_curves import size_families
from recipes.results_file import (
    ENERGIES_ONLY,
    FORCES,
    TITLES,
    Results,
    Run,
    best_baseline,
    by_seed,
    changes,
    families,
    grouped,
    is_baseline,
    is_longer,
)

#: the largest change in the colours of a heat map, %
LARGEST = 60
INTERVALS = "Means over seeds with their 95 % intervals"
#: purple is better, orange worse
DIVERGING = "PuOr_r"


def heat_map(results: Results, path: Path) -> Path | None:
    """Changes of energy and forces against the best baseline, data sets and models down, methods across."""
    rows = dict(_changes(results))
    names = dict.fromkeys(run["method"].removeprefix(ENERGIES_ONLY) for run in results["runs"])
    methods = [name for name in names if any(name in cells for cells in rows.values())]
    if not methods:
        return None
    with figures.figure(3.6 + 1.7 * len(methods), 1.8 + 0.36 * len(rows)) as fig:
        panels = fig.subplots(1, 2, sharey=True)
        for number, (axes, title) in enumerate(zip(panels, ("energy", "forces"), strict=True)):
            found = [
                [cells.get(method, (None, None))[number] for method in methods] for cells in rows.values()
            ]
            values = [[np.nan if c is None else 100 * c.mean for c in row] for row in found]
            image = axes.imshow(values, cmap=DIVERGING, vmin=-LARGEST, vmax=LARGEST, aspect="auto")
            for i, row in enumerate(found):
                for j, change in enumerate(row):
                    if change is not None:
                        _write_change(axes, j, i, change)
            axes.set_xticks(range(len(methods)), [_shown(m) for m in methods], rotation=20, ha="right")
            axes.set_title(title)
            axes.set_facecolor(figures.MISSING)
            _bare(axes)
        panels[0].set_yticks(range(len(rows)), list(rows))
        bar = fig.colorbar(image, ax=panels, shrink=0.9, extend="both")
        bar.set_label("change, %")
        against = "Change against the better baseline (product of errors), %"
        fig.suptitle(f"{against}; bold: 95 % interval without 0; grey: not run", fontsize=11)
        return figures.save(fig, path)


def _changes(results: Results) -> Iterator[tuple[str, dict[str, tuple[Change | None, Change | None]]]]:
    """A row of the heat map: its name and the changes by method, 0 for the baseline that they are against."""
    for (data, model), methods in grouped(results).items():
        for family in families(methods):
            best = best_baseline(family)
            cells = {
                name.removeprefix(ENERGIES_ONLY): changes(runs, family[best])
                for name, runs in family.items()
                if best is not None and not is_longer(runs) and not runs[0]["settings"]
            }
            if len(cells) > 1:
                without = " (no forces)" if next(iter(family)).startswith(ENERGIES_ONLY) else ""
                yield f"{_shown(data)}, {_shown(model)}{without}", cells


def _write_change(axes: Axes, x: int, y: int, change: Change) -> None:
    sure = change.low is not None and change.high is not None and not change.low <= 0 <= change.high
    axes.text(
        x,
        y,
        f"{100 * change.mean:+.0f}".replace("-", "−") if change.mean else "0",
        ha="center",
        va="center",
        color="white" if abs(100 * change.mean) > 0.55 * LARGEST else "black",
        fontweight="bold" if sure else "normal",
    )


def error_against_cost(results: Results, path: Path) -> Path | None:
    """Energy and force errors against the time of a prediction and of the training, with the Pareto fronts.

    Of the first data set with the costs of more than one model; None where there is none.
    """
    groups = grouped({"runs": [run for run in results["runs"] if "cost" in run]})
    data = next((d for d, _ in groups if len({m for other, m in groups if other == d}) > 1), None)
    if data is None:
        return None
    models = [model for d, model in groups if d == data]
    all_methods = dict.fromkeys(m for methods in groups.values() for m in methods)
    methods = [m for m in all_methods if not m.startswith(ENERGIES_ONLY)]
    costs = {"prediction of one structure (ms)": _prediction_ms, "training (min)": _training_minutes}
    with figures.figure(10.5, 7.6) as fig:
        grid = fig.subplots(2, 2, sharex="col", sharey="row")
        for row, error in zip(grid, TITLES, strict=True):
            for axes, (label, cost) in zip(row, costs.items(), strict=True):
                points = []
                for number, model in enumerate(models):
                    own = []
                    for shape, method in enumerate(methods):
                        runs = groups[data, model].get(method)
                        time = cost(runs) if runs else None
                        if runs and time is not None:
                            own.append((time, float(np.mean(list(by_seed(runs, error).values())))))
                            look: Any = {"color": figures.colour(number), "marker": figures.marker(shape)}
                            axes.plot(*own[-1], linestyle="none", markersize=7, alpha=0.9, **look)
                    _name(axes, own, _shown(model), figures.colour(number))
                    points += own
                _draw_front(axes, points)
                axes.margins(0.12)
                axes.set(xlabel=label if error == FORCES else "")
                figures.log_scale(axes.xaxis)
            row[0].set_ylabel(TITLES[error])
            figures.log_scale(row[0].yaxis)
        _legend(fig, {}, methods)
        fig.suptitle(f"{_shown(data)}; line: Pareto front")
        return figures.save(fig, path)


def _prediction_ms(runs: Sequence[Run]) -> float:
    return 1000 * runs[0]["cost"]["seconds"]


def _training_minutes(runs: Sequence[Run]) -> float | None:
    step = runs[0].get("step_seconds")
    return None if step is None else step * runs[0]["steps"] / 60


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of the points (cost, error) that no other one beats in both, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, error in sorted(points):
        if not front or error < front[-1][1]:
            front.append((cost, error))
    return front


def _draw_front(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    front = np.array(pareto_front(points))
    if len(front):
        axes.step(*front.T, where="post", color=figures.REFERENCE, linewidth=1, zorder=0)


def _name(axes: Axes, points: Sequence[tuple[float, float]], name: str, colour: str) -> None:
    """A model's name below the lowest of its points."""
    if points:
        lowest = min(points, key=lambda point: point[1])
        axes.annotate(
            name,
            lowest,
            (0, -7),
            textcoords="offset points",
            ha="center",
            va="top",
            color=colour,
            fontsize=9,
        )


def _legend(fig: Any, colours: Mapping[str, str], methods: Sequence[str], lines: bool = False) -> None:
    """Models by colour and methods by marker, and by line where there are any, below the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=c, marker="s", linestyle="none", label=name) for name, c in colours.items()
    ]
    handles += [
        Line2D(
            [], [], color="#666666", label=_shown(name), **(look if lines else look | {"linestyle": "none"})
        )
        for name in methods
        if (look := _look(name, methods))
    ]
    fig.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(6, len(handles)),
        handlelength=3 if lines else 2,
    )


def learning_curves(results: Results, path: Path) -> Path | None:
    """Errors against the number of training structures, mean with its 95 % interval over seeds."""
    found = size_families(results)
    if not found:
        return None
    names = list(dict.fromkeys(run["method"] for run in results["runs"]))
    counts = {n for methods in found.values() for by_size in methods.values() for n in by_size}
    with figures.figure(10.5, 0.6 + 3.4 * len(found)) as fig:
        grid = fig.subplots(len(found), 2, squeeze=False, sharex=True)
        for row, (data, methods) in zip(grid, found.items(), strict=True):
            for axes, error in zip(row, TITLES, strict=True):
                for method, by_size in sorted(methods.items(), key=lambda item: names.index(item[0])):
                    number = names.index(method)
                    aside = 1.012**number  # bars of several curves beside each other
                    values = {n * aside: list(by_seed(runs, error).values()) for n, runs in by_size.items()}
                    look = {"color": figures.colour(number), **_look(method, names)}
                    _curve(axes, values, label=_shown(method), **look)
                axes.set_ylabel(TITLES[error])
                axes.set_title(_shown(data))
                figures.log_scale(axes.xaxis)
                axes.set_xticks(sorted(counts))
                axes.xaxis.set_minor_locator(NullLocator())
                figures.log_scale(axes.yaxis)
            row[0].legend(handlelength=3)
        for axes in grid[-1]:
            axes.set_xlabel("training structures")
        fig.suptitle(INTERVALS, fontsize=11)
        return figures.save(fig, path)


def temperatures(results: Results, path: Path) -> Path | None:
    """Errors against the temperature of the test structures, mean with its 95 % interval over seeds."""
    names = list(dict.fromkeys(name for run in results["runs"] for name in run.get("tests", {})))
    kelvin = {name: int(match[1]) for name in names if (match := re.fullmatch(r"(\d+) K", name))}
    if not kelvin:
        return None
    groups = grouped(results)
    lines = [
        (model, method, groups[data, model][method])
        for data, model in groups
        for method in groups[data, model]
    ]
    models, methods = (list(dict.fromkeys(line[i] for line in lines)) for i in (0, 1))
    with figures.figure(10.5, 4.8) as fig:
        panels = fig.subplots(1, 2)
        for axes, error in zip(panels, TITLES, strict=True):
            for place, (model, method, runs) in enumerate(lines):
                aside = 0.007 * place * max(kelvin.values())
                values = {
                    t + aside: [r["tests"][name][error] for r in runs if name in r.get("tests", {})]
                    for name, t in kelvin.items()
                }
                colour = figures.colour(models.index(model))
                _curve(axes, values, color=colour, **_look(method, methods))
            axes.set(xlabel="temperature of the test structures (K)", ylabel=TITLES[error])
            axes.set_xticks(sorted(kelvin.values()))
            figures.log_scale(axes.yaxis)
        _legend(fig, {_shown(m): figures.colour(i) for i, m in enumerate(models)}, methods, lines=True)
        fig.suptitle(INTERVALS, fontsize=11)
        return figures.save(fig, path)


def _look(method: str, methods: Sequence[str]) -> dict[str, Any]:
    """A marker of its own for each method, dashed lines for baselines."""
    style = "--" if is_baseline(method) else "-"
    return {"marker": figures.marker(methods.index(method)), "linestyle": style}


def _curve(axes: Axes, values: Mapping[float, Sequence[float]], **look: Any) -> None:
    """Means of `values` with their intervals; those without any are left out."""
    have = {x: y for x, y in sorted(values.items()) if y}
    if have:
        axes.errorbar(
            list(have),
            [float(np.mean(y)) for y in have.values()],
            yerr=np.nan_to_num([half_interval(y) for y in have.values()]),
            capsize=3,
            **look,
        )


def _bare(axes: Axes) -> None:
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _shown(name: str) -> str:
    """A name as words: `rmd17_aspirin_100` -> `rmd17 aspirin 100`."""
    return name.replace("_", " ")


def draw_all(results: Results, folder: Path, only: Collection[str] | None = None) -> list[Path]:
    """Every picture for which there are numbers, as `<recipe>_<picture>.png` in `folder`; those of `only`, if given."""
    from recipes.sensitivity_figure import sensitivity

    pictures: dict[str, Callable[[Results, Path], Path | None]] = {
        "heat_map": heat_map,
        "cost": error_against_cost,
        "learning_curves": learning_curves,
        "sensitivity": sensitivity,
        "temperatures": temperatures,
    }
    files = {f"{results['recipe']}_{name}.png": draw for name, draw in pictures.items()}
    drawn = [draw(results, folder / name) for name, draw in files.items() if only is None or name in only]
    return [path for path in drawn if path is not None]
