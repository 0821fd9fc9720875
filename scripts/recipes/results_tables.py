"""Tables of a recipe's results as markdown, and their places in a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.report.statistics import Change, mean_and_spread, paired_change
from fairchem_piwsl.report.tables import markdown_table
from recipes.learning_curves import size_families, worth
from recipes.results_file import (
    ENERGIES_ONLY,
    ENERGY,
    FORCES,
    TITLES,
    Results,
    Run,
    best_baseline,
    by_seed,
    changes,
    families,
    grouped,
    is_longer,
    matching,
    of_shared_seeds,
    product_of_errors,
)

E, F = TITLES.values()
CHANGE = "change [95 %]"
MARKED = re.compile(
    r"(?P<start>^<!-- results: (?P<recipe>\S+) (?P<table>\S+)(?: (?P<pattern>\S+))? -->\n)"
    r"(?P<body>(?:(?!^<!-- results: ).)*?)(?P<end><!-- end of results -->)",
    re.DOTALL | re.MULTILINE,
)
START = re.compile(r"^<!-- results: ", re.MULTILINE)
CHANGED = re.compile(
    r"(?P<start><!-- change: (?P<recipe>\S+) (?P<place>\S+) (?P<method>\S+) (?P<error>\S+) -->)"
    r"(?P<body>[^\n]*?)(?P<end><!-- end of change -->)"
)


def comparison(results: Results, pattern: str = "*") -> str:
    """Every method with as many steps as the best baseline, and its changes against that."""
    headings = ("data", "model", "method", "runs", E, CHANGE, F, CHANGE)
    return markdown_table(headings, _compared(results, pattern), left=(0, 1, 2))


def short(results: Results, pattern: str = "*") -> str:
    """The comparison for one data set and model: methods, errors and changes."""
    rows = [[row[2], *row[4:8]] for row in _compared(results, pattern)]
    return markdown_table(("method", E, CHANGE, F, CHANGE), rows, left=(0,))


def gains(results: Results, pattern: str = "*") -> str:
    """A row for each data set and model: errors of the best baseline and of `auto`, and the change."""
    headings = ("data", "model", "labels", "seeds", E, CHANGE, F, CHANGE)
    return markdown_table(headings, _gains(results, pattern), left=(0, 1, 2))


def glance(results: Results, pattern: str = "*") -> str:
    """The changes of `gains` alone."""
    rows = [[*row[:3], row[5], row[7]] for row in _gains(results, pattern)]
    return markdown_table(
        ("trained on", "model", "labels", "energy error", "force error"), rows, left=(0, 1, 2)
    )


def _gains(results: Results, pattern: str) -> list[list[str]]:
    rows = []
    for (data, model), methods in grouped(results, pattern).items():
        for family in families(methods):
            best, auto = best_baseline(family), _auto(family)
            if best is not None and auto is not None:
                before, after = of_shared_seeds(family[best], family[auto])
                labels = "energies" if auto.startswith(ENERGIES_ONLY) else "energies, forces"
                energy, forces = (_percent(change) for change in changes(after, before))
                errors = [_from_to(before, after, ENERGY), energy, _from_to(before, after, FORCES), forces]
                rows.append([data, model, labels, str(len(after)), *errors])
    return rows


def _compared(results: Results, pattern: str) -> list[list[str]]:
    rows = []
    for (data, model), methods in grouped(results, pattern).items():
        for family in families(methods):
            best = best_baseline(family)
            for method, runs in family.items():
                if not is_longer(runs):
                    before = [] if best in (None, method) else family[best]
                    rows.append([data, model, method, str(len(runs)), *_errors(runs, before)])
    return rows


def equal_time(results: Results, pattern: str = "*") -> str:
    """`auto` against the best baseline that had more steps."""
    return _auto_against(results, pattern, lambda methods: best_baseline(methods, longer=True))


def hand_chosen(results: Results, pattern: str = "*") -> str:
    """`auto` against the best of the runs that vary settings, by the product of energy and force error."""

    def best(methods: Mapping[str, list[Run]]) -> str | None:
        varied = [name for name, runs in methods.items() if runs[0]["settings"]]
        return min(varied, key=lambda name: product_of_errors(methods[name]), default=None)

    return _auto_against(results, pattern, best)


def _auto_against(
    results: Results, pattern: str, rival: Callable[[Mapping[str, list[Run]]], str | None]
) -> str:
    """Two rows for each data set, model and kind of labels: the rival, and `auto` with its changes; shared seeds."""
    rows = []
    for (data, model), methods in grouped(results, pattern).items():
        for family in families(methods):
            name, auto = rival(family), _auto(family)
            if name is not None and auto is not None:
                before, runs = of_shared_seeds(family[name], family[auto])
                rows.append([data, model, name, *_errors(before)])
                rows.append(["", "", auto, *_errors(runs, before)])
    return markdown_table(("data", "model", "method", E, CHANGE, F, CHANGE), rows, left=(0, 1, 2))


def _auto(methods: Mapping[str, Any]) -> str | None:
    return next((name for name in methods if name.removeprefix(ENERGIES_ONLY) == "auto"), None)


def further_tests(results: Results, pattern: str = "*") -> str:
    """Energy and force errors on further test sets, a column each."""
    names = list(dict.fromkeys(name for run in results["runs"] for name in run.get("tests", {})))
    rows = [
        [model, method, *(_test_errors(runs, name) for name in names)]
        for (_, model), methods in grouped(results, pattern).items()
        for method, runs in methods.items()
    ]
    return markdown_table(("model", "method", *(f"{name}: E, F" for name in names)), rows)


def sizes(results: Results, pattern: str = "*") -> str:
    """Errors against the size of the training set, a column each."""
    found = size_families(results, pattern)
    counts = sorted({n for methods in found.values() for by_size in methods.values() for n in by_size})
    rows = [
        [data, title, method, *(_spread(by_size[n], error) if n in by_size else "" for n in counts)]
        for data, methods in found.items()
        for error, title in TITLES.items()
        for method, by_size in methods.items()
    ]
    return markdown_table(("data", "error", "method", *map(str, counts)), rows, left=(0, 1, 2))


def grid(results: Results, pattern: str = "*") -> str:
    """Energy and force errors of runs that vary several settings: the last one across, the others down."""
    rows, columns = [], _values(results, -1)
    for (data, model), methods in grouped(results, pattern).items():
        lines: dict[tuple[str, ...], dict[float, Run]] = {}
        for method, [run, *_] in methods.items():
            if run["settings"]:
                *keys, last = run["settings"].items()
                labels = ["energies only"] * method.startswith(ENERGIES_ONLY)
                lines.setdefault((*labels, *(f"{k} {v:g}" for k, v in keys)), {})[last[1]] = run
        for names, cells in lines.items():
            rows.append([data, model, ", ".join(names), *(_pair(cells.get(value)) for value in columns)])
    last_key = next((list(run["settings"])[-1] for run in results["runs"] if run["settings"]), "")
    header = ("data", "model", "settings", *(f"{last_key} {v:g}: E, F" for v in columns))
    return markdown_table(header, rows, left=(0, 1, 2))


def cost(results: Results, pattern: str = "*") -> str:
    """Seconds of a training step and of a prediction, and dynamics in a day, where either was measured."""
    rows = []
    for (data, model), methods in grouped(results, pattern).items():
        measured = next((run["cost"] for runs in methods.values() for run in runs if "cost" in run), None)
        best = best_baseline(methods)
        before = _step(methods[best]) if best is not None else None
        auto = _step(methods["auto"]) if "auto" in methods else None
        if measured is None and before is None:
            continue
        rows.append(
            [
                data,
                model,
                "" if before is None else f"{1000 * before:.0f}",
                "" if before is None or auto is None else f"{auto / before:.2f}",
                "" if measured is None else f"{1000 * measured['seconds']:.1f}",
                "" if measured is None else f"{measured['ns_per_day']:.2g}",
            ]
        )
    heads = ("baseline step, ms", "auto / baseline", "prediction, ms", "ns/day at 0.5 fs")
    return markdown_table(("data", "model", *heads), rows)


def steps(results: Results, pattern: str = "*") -> str:
    """Seconds of a training step, of `scripts/bench_models.py`: against a plain step and an enlarged batch."""
    names = ("piwsl_over_baseline", "three_calls_over_baseline", "piwsl_over_enlarged_batch")
    spread = "{median:.2f} [{lower_quartile:.2f}, {upper_quartile:.2f}]"
    rows = []
    for run in (run for run in matching(results, pattern) if "ratios" in run):
        ratios = [spread.format(**run["ratios"][name]) for name in names]
        plain, ours = run["variants"]["baseline"], run["variants"]["piwsl"]
        kernels = [f"{1000 * v['kernel_seconds']:.0f}" for v in (plain, ours) if "kernel_seconds" in v]
        memory = " → ".join(f"{v['peak_bytes'] / 1e9:.1f}" for v in (plain, ours))
        size = f"{run['configurations']} × {run['structures']}"
        step = f"{1000 * plain['seconds']['median']:.0f}"
        rows.append([run["model"], size, step, *ratios, " → ".join(kernels), memory])
    heads = ("plain step, ms", "over plain", "separate calls over plain", "over enlarged batch")
    more = ("GPU busy, ms", "peak memory, GB")
    return markdown_table(("model", "structures", *heads, *more), rows)


TABLES: dict[str, Callable[[Results, str], str]] = {
    "comparison": comparison,
    "short": short,
    "gains": gains,
    "glance": glance,
    "equal_time": equal_time,
    "hand_chosen": hand_chosen,
    "tests": further_tests,
    "sizes": sizes,
    "worth": worth,
    "grid": grid,
    "cost": cost,
    "steps": steps,
}


def change(results: Results, place: str, method: str, error: str) -> str:
    """`5.49 ± 0.17 → 3.11 ± 0.07: −43.3 % [−53, −33]`, from the best baseline of as many steps to a method.

    All of the seeds that both have.

    Args:
        results: content of a results file.
        place: `<data set>/<model>`.
        method: its name in the recipe.
        error: energy or forces.

    Raises:
        UserError: the results lack the method, or a baseline beside it, or the error is neither of the two.
    """
    groups = grouped(results, place)
    family = next((f for methods in groups.values() for f in families(methods) if method in f), {})
    best = best_baseline(family)
    if best is None or error not in ("energy", "forces"):
        raise UserError(
            f"change: the results have no {error} of {method} beside a baseline for {place}; "
            "name a data set/model and method of the recipe, and energy or forces."
        )
    key = ENERGY if error == "energy" else FORCES
    before, after = of_shared_seeds(family[best], family[method])
    difference = paired_change(by_seed(after, key), by_seed(before, key))
    return f"{_from_to(before, after, key)}: {_percent(difference)}"


def fill(page: str, read: Callable[[str], Results]) -> str:
    """A markdown page with each marked table and each marked change written anew.

    A table stands between a line `<!-- results: RECIPE TABLE PATTERN -->` and `<!-- end of results -->`; TABLE is one of
    `TABLES`, the shell pattern of `<data set>/<model>` may be left out. A change stands within a line between
    `<!-- change: RECIPE DATA/MODEL METHOD energy|forces -->` and `<!-- end of change -->`.

    Args:
        page: its text.
        read: the results of a recipe by its name.

    Raises:
        UserError: a table or a change is not known, or a mark has no end.
    """
    if len(START.findall(page)) != len(MARKED.findall(page)):
        raise UserError(
            "a mark '<!-- results: RECIPE TABLE -->' lacks its '<!-- end of results -->'; add it."
        )

    if page.count("<!-- change: ") != len(CHANGED.findall(page)):
        raise UserError("a mark '<!-- change: ... -->' lacks its '<!-- end of change -->'; add it.")

    def written(mark: re.Match[str]) -> str:
        if mark["table"] not in TABLES:
            raise UserError(f"results: {mark['table']} is no table; choose one of {', '.join(TABLES)}.")
        table = TABLES[mark["table"]](read(mark["recipe"]), mark["pattern"] or "*")
        return f"{mark['start']}{table}{mark['end']}"

    def changed(mark: re.Match[str]) -> str:
        text = change(read(mark["recipe"]), mark["place"], mark["method"], mark["error"])
        return f"{mark['start']}{text}{mark['end']}"

    return CHANGED.sub(changed, MARKED.sub(written, page))


def _errors(runs: Sequence[Run], before: Sequence[Run] = ()) -> list[str]:
    """Energy and force error, each with its change; where one side lacks seeds, with how many both have."""
    shared, most = len(of_shared_seeds(before, runs)[0]), max(len(before), len(runs))
    note = f" ({shared} of {most} seeds)" if 0 < shared < most else ""
    energy, forces = (f"{_percent(change)}{note}" for change in changes(runs, before))
    return [_spread(runs, ENERGY), energy, _spread(runs, FORCES), forces]


def _percent(change: Change | None) -> str:
    """`−48.4 % [−52, −45]`."""
    if change is None:
        return ""
    text = f"{100 * change.mean:+.1f} %"
    if change.low is not None and change.high is not None:
        text += f" [{100 * change.low:+.0f}, {100 * change.high:+.0f}]"
    return text.replace("-", "−")


def _spread(runs: Sequence[Run], error: str) -> str:
    return mean_and_spread(list(by_seed(runs, error).values()), 2)


def _step(runs: Sequence[Run]) -> float | None:
    """Seconds of a training step, where it was measured."""
    return runs[0].get("step_seconds")


def _from_to(before: Sequence[Run], after: Sequence[Run], error: str) -> str:
    return f"{_spread(before, error)} → {_spread(after, error)}"


def _test_errors(runs: Sequence[Run], name: str) -> str:
    found = [run["tests"][name] for run in runs if name in run.get("tests", {})]
    return ", ".join(mean_and_spread([e[key] for e in found], 1) for key in (ENERGY, FORCES)) if found else ""


def _values(results: Results, position: int) -> list[float]:
    """Values of the setting at a position among those that the runs vary."""
    varied = [list(run["settings"].values()) for run in results["runs"] if run["settings"]]
    return sorted({values[position] for values in varied})


def _pair(run: Run | None) -> str:
    return "" if run is None else f"{run['errors'][ENERGY]:.2f}, {run['errors'][FORCES]:.2f}"
