"""Learning curves: errors against the size of the training set, and how many labels a method is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from fairchem_piwsl.report.statistics import half_interval
from fairchem_piwsl.report.tables import markdown_table
from recipes.results_file import TITLES, Results, Run, by_seed, grouped, is_baseline

#: training size -> runs
Sizes = Mapping[int, list[Run]]


def size_families(results: Results, pattern: str = "*") -> dict[str, dict[str, dict[int, list[Run]]]]:
    """Runs for learning curves: data set without its size -> method -> training size -> runs.

    Only data sets with more than one size; of one model, the first that fits the pattern.
    """
    found: dict[str, dict[str, dict[int, list[Run]]]] = {}
    groups = grouped(results, pattern)
    for (data, model), methods in groups.items():
        name, _, size = data.rpartition("_")
        if size.isdigit() and model == next(iter(groups))[1]:
            for method, runs in methods.items():
                found.setdefault(name, {}).setdefault(method, {})[runs[0]["n_train"]] = runs
    return {
        name: methods for name, methods in found.items() if max(len(sizes) for sizes in methods.values()) > 1
    }


def labels_for(curve: Mapping[int, float], error: float) -> float:
    """Labels with which a method reaches an error, by the power laws between the sizes of its learning curve.

    Args:
        curve: training size -> error.
        error: what another method reaches.

    Returns:
        The smallest such number; infinite where no size is enough, 0 where the smallest is already better.
    """
    sizes = sorted(curve)
    if curve[sizes[0]] < error:
        return 0.0
    for small, large in pairwise(sizes):
        if curve[large] <= error:
            fall = math.log(curve[small] / curve[large])
            part = math.log(curve[small] / error) / fall if fall else 0.0
            return small * (large / small) ** part
    return math.inf


def whole_curves(sizes: Sizes, error: str) -> dict[int, dict[int, float]]:
    """Seed -> learning curve, of the seeds that every size has."""
    errors = {n: by_seed(runs, error) for n, runs in sizes.items()}
    shared = set.intersection(*(set(seeds) for seeds in errors.values()))
    return {seed: {n: seeds[seed] for n, seeds in errors.items()} for seed in sorted(shared)}


def worth(results: Results, pattern: str = "*") -> str:
    """How many times the labels the baselines need for the errors of `auto`: a column for each size that it had.

    Of each seed the baseline that needs the fewest among those with as small a size, then the geometric mean with its 95 % interval; `>` and `<` where
    a seed has left the sizes of the baselines, whose last one is taken.
    """
    found = {d: methods for d, methods in size_families(results, pattern).items() if "auto" in methods}
    counts = sorted({n for methods in found.values() for n in methods["auto"]})
    rows = []
    for data, methods in found.items():
        for error, title in TITLES.items():
            curves = [whole_curves(sizes, error) for name, sizes in methods.items() if is_baseline(name)]
            cells = [_times(by_seed(methods["auto"].get(n, []), error), curves, n) for n in counts]
            rows.append([data, title, *cells])
    return markdown_table(("data", "error", *map(str, counts)), rows, left=(0, 1))


def _times(errors: Mapping[int, float], curves: list[dict[int, dict[int, float]]], n: int) -> str:
    """`1.6 [1.2, 2.1]`: labels that baselines need for errors by seed, over those `n` that they were reached with."""
    factors, sign = [], ""
    for seed, error in errors.items():
        rivals = [of_seed[seed] for of_seed in curves if min(of_seed.get(seed, [math.inf])) <= n]
        if rivals:
            needed = min(labels_for(curve, error) for curve in rivals)
            known = sorted(size for curve in rivals for size in curve)
            sign = {math.inf: "> ", 0.0: "< "}.get(needed, sign)
            factors.append(math.log(min(max(needed, known[0]), known[-1]) / n))
    if not factors:
        return ""
    mean, half = float(np.mean(factors)), half_interval(factors)
    low_high = (
        "" if sign or math.isnan(half) else f" [{math.exp(mean - half):.1f}, {math.exp(mean + half):.1f}]"
    )
    return f"{sign}{math.exp(mean):.1f}{low_high}"
