"""`piwsl report`: baseline, PIWSL and rivals over seeds, in one HTML page and a markdown table."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairchem_piwsl.analysis.error_metrics import TITLES, energy_units
from fairchem_piwsl.analysis.evaluate import evaluate
from fairchem_piwsl.analysis.potential import file_digest
from fairchem_piwsl.datasets.readers import split_slice
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import file_name, plain, write_result
from fairchem_piwsl.report import page, printed_results, report_figures
from fairchem_piwsl.report.measurements import add_measurements
from fairchem_piwsl.report.runs import Run, find_runs
from fairchem_piwsl.report.statistics import (
    TIMED,
    Entry,
    add_timed_errors,
    compare_methods,
    families,
    has_diverged,
)

#: error on a test set -> unit
_ERRORS = {
    "energy_rmse": "{e}",
    "energy_mae": "{e}",
    "energy_per_atom_rmse": "{e}/atom",
    "forces_rmse": "{e}/Angstrom",
    "forces_mae": "{e}/Angstrom",
    "forces_cosine": "",
}
# quantity -> title and unit; {e} stands for the energy unit. A run's value may carry a condition, as in
# "energy_rmse@hot_1000K, 500 structures", which makes it a row of its own.
QUANTITIES = {
    **{metric: (TITLES[metric], unit) for metric, unit in _ERRORS.items()},
    **{
        f"val_{metric}_{key}": (f"validation {TITLES[metric]}, {words}", _ERRORS[metric])
        for key, words in (("best", "best"), ("equal_time", "equal wall time"))
        for metric in TIMED
    },
    "force_mismatch": ("force against -dE/dr, RMSE", "{e}/Angstrom"),
    "pitc_slope": ("PITC slope, k = 0", ""),
    "force_curl": ("curl per atom", "{e}/Angstrom^2"),
    "jacobian_asymmetry": ("asymmetry of the force Jacobian", ""),
    "time_to_failure": ("time to failure", "ps"),
    "failed_runs": ("share of failed dynamics", ""),
    "energy_drift": ("drift of the total energy, mean size", "meV/atom/ns"),
    "distances_mae": ("distances h(r), integral of |difference|", ""),
    "wall_time": ("wall time of training", "min"),
    "steps": ("training steps", ""),
}


def make_report(
    folders: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    units: str = "kcal/mol",
    paper_dataset: str | None = None,
    title: str = "Training report",
    out: Path = Path("results/report"),
    **load_options: Any,
) -> dict[str, Any]:
    """Compare the runs below `folders`; write `report.html`, `report.md`, `report.json` and PNGs to `out`.

    data: a test set that every run's checkpoint is evaluated on (results are kept and used again). Without it,
    JSON that `piwsl evaluate` left in the folders is used, beside the validation errors of TensorBoard files.
    paper_dataset: name of the paper's data set, where the path of the training data does not tell it.
    """
    factor, energy_unit, _ = energy_units(units)
    datasets = {item.dataset for item in printed_results.printed_values()}
    if paper_dataset is not None and paper_dataset not in datasets:
        raise UserError(
            f"--paper-dataset {paper_dataset}: not known; choose one of {', '.join(sorted(datasets))}."
        )
    runs = find_runs(folders)
    asked_for = [] if data is None else _evaluate(runs, data, out / "evaluations", load_options)
    add_measurements(runs, folders, units, asked_for)
    names = quantity_names({key for run in runs for key in run.values}, energy_unit)
    sections: list[page.Section] = []
    for (dataset, n_train, model, energies_only), everyone in families(runs).items():
        methods = _finished(everyone)
        limit = add_timed_errors(methods, factor)
        entries = compare_methods(methods, list(names))
        printed = _printed(methods, entries, paper_dataset) if energy_unit == "kcal/mol" else {}
        size = f"{n_train} structures" if n_train is not None else "training set not found"
        heading = f"{dataset}, {size}{' with energies only' if energies_only else ''}, {model}"
        stem = file_name(f"{dataset}_{n_train or 'unknown'}_{model}_{len(sections)}")
        figures = [
            report_figures.plot_errors(entries, printed, names, heading, out / f"errors_{stem}.png"),
            report_figures.plot_survival(methods, heading, out / f"survival_{stem}.png"),
            report_figures.plot_curves(methods, factor, units, limit, heading, out / f"curves_{stem}.png"),
            report_figures.plot_weights(methods, heading, out / f"weights_{stem}.png"),
        ]
        members = [run for group in everyone.values() for run in group]
        kept = [figure for figure in figures if figure is not None]
        notes = _notes(members, limit)
        sections.append(page.Section(heading, entries, printed, limit, kept, members, notes))
    result = _as_dict(sections, energy_unit, names)
    write_result(out / "report.json", result)
    page.write_page(out / "report.html", title, sections, names)
    page.write_markdown(out / "report.md", title, sections, names)
    return result


def _finished(methods: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """The runs that have done all their epochs; all of them where none has."""
    finished = {name: [run for run in members if run.finished] for name, members in methods.items()}
    return {name: members for name, members in finished.items() if members} or methods


def _notes(runs: Sequence[Run], limit: float | None) -> list[str]:
    """What to know about the table of `runs`: the equal wall time in seconds, and which have no part in it."""
    unfinished = [run for run in runs if not run.finished]
    starts = [start for run in runs for found in run.dynamics.values() for start in found]
    bound = "Times to failure are lower bounds: a start without failure counts with its length."
    left_out = ", so left out" if len(unfinished) < len(runs) else ""
    return [
        *([f"Equal wall time: {limit / 60:.3g} min, which every run in the table reached."] if limit else []),
        *([] if all(failed for _, failed in starts) else [bound]),
        *_named(f"Not finished{left_out}", unfinished),
        *_named("No finite validation error", [run for run in runs if has_diverged(run)]),
    ]


def _named(what: str, runs: Sequence[Run]) -> list[str]:
    return [f"{what}: {', '.join(str(run.checkpoint.parent) for run in runs)}."] if runs else []


def quantity_names(measured: Iterable[str], energy_unit: str) -> dict[str, tuple[str, str]]:
    """Titles and units of all quantities of `QUANTITIES`, and of those in `measured` that carry a condition."""
    conditions = sorted({key.partition("@")[2] for key in measured} - {""})
    return {
        f"{key}@{condition}" if condition else key: (
            f"{name}, {condition}" if condition else name,
            unit.format(e=energy_unit),
        )
        for key, (name, unit) in QUANTITIES.items()
        for condition in ("", *conditions)
    }


def _evaluate(
    runs: Sequence[Run], data: str | Path, folder: Path, load_options: dict[str, Any]
) -> list[Path]:
    """JSON files of each checkpoint's test errors; one that is there for `data` and these options is used again."""
    text, frames = split_slice(str(data))
    source = Path(text)
    chosen = "" if frames == slice(None) else f"_{frames}"
    chosen += "".join(f"_{name}={value}" for name, value in sorted(load_options.items()))
    stamp = source.stat().st_mtime_ns if source.exists() else 0
    paths = []
    for number, run in enumerate(runs, 1):
        path = folder / f"{file_digest(run.checkpoint)}_{file_name(source.stem + chosen)}_{stamp}.json"
        paths.append(path)
        if not path.exists():
            print(f"evaluating {number} of {len(runs)}: {run.checkpoint}", file=sys.stderr)
            write_result(path, evaluate([run.checkpoint], data, group_by="none", **load_options))
    return paths


def _printed(
    methods: dict[str, list[Run]], entries: Sequence[Entry], dataset: str | None
) -> dict[tuple[str, str], printed_results.Printed]:
    found = {}
    for entry in entries:
        item = printed_results.printed_for(methods[entry.method][0], entry.quantity, dataset)
        if item is not None:
            found[entry.quantity, entry.method] = item
    return found


def _as_dict(
    sections: Sequence[page.Section], units: str, names: dict[str, tuple[str, str]]
) -> dict[str, Any]:
    return {
        "command": "report",
        "units": units,
        "names": names,
        "sections": [
            {
                "title": section.title,
                "equal_wall_time_seconds": section.equal_time,
                "notes": section.notes,
                "entries": [plain(asdict(entry)) for entry in section.entries],
                "paper": [{"method": method, **asdict(item)} for (_, method), item in section.paper.items()],
                "runs": [
                    {"checkpoint": str(run.checkpoint), "method": run.method, "seed": run.seed, **run.values}
                    for run in section.runs
                ],
            }
            for section in sections
        ],
    }
