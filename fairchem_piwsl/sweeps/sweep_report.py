"""One HTML page about a sweep, its figures inside, and the figures as PNG files beside it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import optuna

from fairchem_piwsl.files import check_output_folder, whole_file
from fairchem_piwsl.report.html_page import Part, Table, write_html
from fairchem_piwsl.sweeps.results import open_sweep, summary
from fairchem_piwsl.sweeps.study import REASON, slots
from fairchem_piwsl.sweeps.sweep_figures import figures
from fairchem_piwsl.sweeps.sweep_file import Sweep

TITLES = {
    "history": "History",
    "importance": "Which settings matter",
    "slices": "Value by setting",
    "pareto": "Pareto front",
}


def write_report(folder: Path) -> Path:
    """Write `report/index.html` and its figures into the folder of a sweep; returns the page's path."""
    sweep, study = open_sweep(folder)
    target = folder / "report"
    check_output_folder(target, "report:")
    parts = []
    for name, figure in figures(study, sweep.objective.names).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        with whole_file(target / f"{name}.png") as file:
            file.write(buffer.getvalue())
        parts.append(Part(TITLES[name], images={name: buffer.getvalue()}))
    parts.append(Part("Trials", _table(sweep, study)))
    notes = _notes(summary(sweep, study, folder))
    return write_html(target / "index.html", f"Sweep {sweep.study}", notes, parts)


def _notes(state: dict[str, Any]) -> list[str]:
    """Progress and the best trials in sentences."""
    notes = [
        f"{state['objective']}; {state['complete']} of {state['trials']} trials completed, {state['pruned']} pruned, "
        f"{state['fail']} failed, {state['running']} running, {state['waiting']} waiting; "
        f"{state['training_seconds'] / 3600:.2f} hours of training."
    ]
    for best in state["best"]:
        settings = ", ".join(f"{key} = {_short(value)}" for key, value in best["params"].items())
        notes.append(f"Best: {', '.join(map(_short, best['values']))} (trial {best['trial']}): {settings}")
    if state["base"]:
        notes.append(f"The base config's own settings: {', '.join(map(_short, state['base']['values']))}.")
    return notes


def _table(sweep: Sweep, study: optuna.Study) -> Table:
    keys, names = [parameter.key for parameter in sweep.space], sweep.objective.names
    rows = []
    for slot, trial in slots(study).items():
        values = trial.values or [""] * len(names)
        params = [trial.params.get(key, "") for key in keys]
        notes = [trial.user_attrs.get("seconds", ""), trial.user_attrs.get(REASON, "")]
        rows.append([_short(cell) for cell in (slot, trial.state.name.lower(), *values, *params, *notes)])
    return Table(["trial", "state", *names, *keys, "seconds", "reason"], rows)


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
