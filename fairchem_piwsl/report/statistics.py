"""Means over seeds, changes against a baseline, paired tests, and errors at equal wall time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fairchem_piwsl.analysis.run_configs import settings_of
from fairchem_piwsl.report.curves import Curve
from fairchem_piwsl.report.runs import Run, family_of, is_baseline

# Validation errors that are compared at equal wall time.
TIMED = ("energy_rmse", "energy_mae", "forces_rmse", "forces_mae")


@dataclass(frozen=True)
class Entry:
    """One quantity of one method. `change` is relative to the mean of `baseline`, `p` a paired t-test over seeds."""

    quantity: str
    method: str
    values: tuple[float, ...]
    mean: float
    std: float
    baseline: str | None
    change: float | None
    p: float | None
    pairs: int


def families(runs: Sequence[Run]) -> dict[tuple[str, int | None, str, bool], dict[str, list[Run]]]:
    """Runs by family and method, the baseline first."""
    grouped: dict[tuple[str, int | None, str, bool], dict[str, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: (not is_baseline(run.method), run.method, run.seed or 0)):
        grouped.setdefault(family_of(run), {}).setdefault(run.method, []).append(run)
    return dict(sorted(grouped.items(), key=lambda item: str(item[0])))


def compare_methods(methods: dict[str, list[Run]], quantities: Sequence[str]) -> list[Entry]:
    """All quantities of all methods of one family, each compared with its baseline."""
    baselines = {name: _baseline_of(name, methods) for name in methods}
    entries = []
    for quantity in quantities:
        for name, members in methods.items():
            have = [run for run in members if quantity in run.values]
            if not have:
                continue
            values = np.array([run.values[quantity] for run in have])
            baseline, change, p, pairs = baselines[name], None, None, 0
            if baseline is not None:
                before = [run for run in methods[baseline] if quantity in run.values]
                change = relative_change(values.tolist(), [run.values[quantity] for run in before])
                ours, theirs = _by_seed(have, quantity), _by_seed(before, quantity)
                shared = sorted(ours.keys() & theirs.keys())
                pairs = len(shared)
                p = paired_p([ours[seed] for seed in shared], [theirs[seed] for seed in shared])
            std = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
            mean = float(values.mean())
            entries.append(Entry(quantity, name, tuple(values), mean, std, baseline, change, p, pairs))
    return entries


def _baseline_of(method: str, methods: Mapping[str, Sequence[Run]]) -> str | None:
    """The baseline whose settings differ least from those of `method`, its weak terms apart; None for a baseline."""
    if is_baseline(method):
        return None
    own = settings_of(methods[method][0].config)

    def distance(other: str) -> int:
        theirs = settings_of(methods[other][0].config)
        keys = [key for key in own.keys() | theirs.keys() if not key.startswith("optim.piwsl")]
        return sum(own.get(key) != theirs.get(key) for key in keys)

    return min(filter(is_baseline, methods), key=distance, default=None)


def _by_seed(runs: Sequence[Run], quantity: str) -> dict[int, float]:
    """Means of the runs of each seed: repeated, they are one sample still; without a seed, no partner of any."""
    seeds = {run.seed for run in runs if run.seed is not None}
    return {
        seed: float(np.mean([run.values[quantity] for run in runs if run.seed == seed])) for seed in seeds
    }


def mean_and_spread(values: Sequence[float], decimals: int | None = None) -> str:
    """`12.3 ± 0.4`: mean and standard deviation over seeds; of a single value the mean alone.

    Without `decimals` the spread has two digits and the mean reaches as far; a spread of zero is left out then.
    """
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    if decimals is None:
        if not std > 1e-12 * abs(mean):  # rounding counts as none
            return f"{mean:.4g}"
        decimals = min(max(0, 1 - math.floor(math.log10(std))), 8)
    return f"{mean:.{decimals}f}" + ("" if math.isnan(std) else f" ± {std:.{decimals}f}")


def relative_change(values: Sequence[float], before: Sequence[float]) -> float | None:
    """Change of the mean relative to the mean of `before`; None where that is zero or there is none."""
    return float(np.mean(values) / np.mean(before) - 1) if len(before) and np.mean(before) else None


def paired_p(values: Sequence[float], before: Sequence[float]) -> float | None:
    """Two-sided p of a paired t-test; None for fewer than two pairs or differences that are all the same."""
    difference = np.asarray(values) - np.asarray(before)
    if len(difference) < 2 or np.ptp(difference) == 0:
        return None
    return float(stats.ttest_rel(values, before).pvalue)


@dataclass(frozen=True)
class Change:
    """Geometric mean of the ratios of paired values, less 1; 1 is a doubling.

    `low` and `high`: its 95 % interval; `p` of the paired t-test of the logarithms. All three are None for fewer
    than two pairs.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None


def paired_change(values: Mapping[int, float], before: Mapping[int, float]) -> Change | None:
    """The change from `before` to `values`, both positive and by seed; None where they share no seed.

    Of logarithms, so that an interval cannot reach below -100 %; it excludes zero exactly where p is below 5 %.
    """
    seeds = sorted(values.keys() & before.keys())
    if not seeds:
        return None
    after, first = (np.log([group[seed] for seed in seeds]) for group in (values, before))
    mean, half = float((after - first).mean()), half_interval(after - first)
    low, high = (None, None) if math.isnan(half) else (math.expm1(mean - half), math.expm1(mean + half))
    return Change(math.expm1(mean), low, high, paired_p(after.tolist(), first.tolist()))


def half_interval(values: Sequence[float] | np.ndarray) -> float:
    """Half the width of the 95 % t-interval of the mean of `values`; NaN for fewer than two."""
    count = len(values)
    if count < 2:
        return math.nan
    return float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def equal_time(runs: Sequence[Run]) -> float | None:
    """The longest wall time in seconds that every run with validation curves has reached."""
    validated = [[curve for tag, curve in run.curves.items() if tag.startswith("val/")] for run in runs]
    return min((max(curve.seconds[-1] for curve in curves) for curves in validated if curves), default=None)


def add_timed_errors(methods: dict[str, list[Run]], factor: float) -> float | None:
    """Give each run its best validation errors up to the wall time that all runs reached; return that time.

    factor: unit of the report per eV, in which curves are logged.
    """
    runs = [run for members in methods.values() for run in members]
    limit = equal_time(runs)
    if limit is None:
        return None
    for run in runs:
        for metric in TIMED:
            if f"val/{metric}" not in run.curves:
                continue
            for name, seconds in (("equal_time", limit), ("best", math.inf)):
                best = best_until(run.curves[f"val/{metric}"], seconds)
                if math.isfinite(best):
                    run.values[f"val_{metric}_{name}"] = best * factor
    return limit


def has_diverged(run: Run) -> bool:
    """Whether a validation error was never finite."""
    curves = [run.curves[f"val/{metric}"] for metric in TIMED if f"val/{metric}" in run.curves]
    return any(not np.isfinite(curve.value).any() for curve in curves)


def best_until(curve: Curve, seconds: float) -> float:
    """Smallest finite value of `curve` up to `seconds`; NaN where it has none by then."""
    reached = curve.value[(curve.seconds <= seconds) & np.isfinite(curve.value)]
    return float(reached.min()) if len(reached) else math.nan
