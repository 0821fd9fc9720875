"""One HTML page about a sweep, its figures inside, and the figures as PNG files beside it."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

from fairchem_piwsl.files import check_output_folder
from fairchem_piwsl.sweeps import sweep_figures
from fairchem_piwsl.sweeps.results import open_sweep, summary
from fairchem_piwsl.sweeps.study import REASON, slots

STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .2em .7em; border-bottom: 1px solid #ddd }
th { text-align: left } img { max-width: 100% } code { background: #f3f3f3; padding: 0 .2em }
"""


def write_report(folder: Path) -> Path:
    """Write `report/index.html` and its figures into the folder of a sweep; returns the page's path."""
    from matplotlib import pyplot as plt

    sweep, study = open_sweep(folder)
    names = sweep.objective.names
    figures = {
        "history": sweep_figures.history(study, names),
        "importance": sweep_figures.importance(study, names),
        "slices": sweep_figures.slices(study, names),
        "pareto": sweep_figures.pareto(study, names),
    }
    target = folder / "report"
    check_output_folder(target, "report:")
    target.mkdir(exist_ok=True)
    images = {}
    for name, figure in figures.items():
        if figure is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=120)
            plt.close(figure)
            images[name] = buffer.getvalue()
            (target / f"{name}.png").write_bytes(images[name])
    page = target / "index.html"
    page.write_text(_page(sweep, study, summary(sweep, study, folder), names, images), encoding="utf-8")
    return page


TITLES = {
    "history": "History",
    "importance": "Which settings matter",
    "slices": "Value by setting",
    "pareto": "Pareto front",
}


def _page(sweep: Any, study: Any, state: dict[str, Any], names: list[str], images: dict[str, bytes]) -> str:
    escape = html.escape
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(sweep.study)}</title>",
        f"<style>{STYLE}</style><h1>Sweep {escape(sweep.study)}</h1>",
        f"<p>{escape(state['objective'])}; {state['complete']} of {state['trials']} trials completed, "
        f"{state['pruned']} pruned, {state['fail']} failed, {state['running']} running, {state['waiting']} waiting; "
        f"{state['training_seconds'] / 3600:.2f} hours of training.</p>",
    ]
    for best in state["best"]:
        settings = ", ".join(f"{key} = {_short(value)}" for key, value in best["params"].items())
        values = ", ".join(_short(value) for value in best["values"])
        parts.append(f"<p><b>Best: {values}</b> (trial {best['trial']}): <code>{escape(settings)}</code></p>")
    if state["base"]:
        values = ", ".join(_short(value) for value in state["base"]["values"])
        parts.append(f"<p>The base config's own settings: {values}.</p>")
    for name, image in images.items():
        data = base64.b64encode(image).decode()
        parts.append(f"<h2>{TITLES[name]}</h2><img alt='{name}' src='data:image/png;base64,{data}'>")
    parts += ["<h2>Trials</h2>", _table(sweep, study, names), "</html>"]
    return "\n".join(parts)


def _table(sweep: Any, study: Any, names: list[str]) -> str:
    keys = [parameter.key for parameter in sweep.space]
    head = ["trial", "state", *names, *keys, "seconds", "reason"]
    rows = []
    for slot, trial in slots(study).items():
        values = [_short(v) for v in trial.values] if trial.values else [""] * len(names)
        params = [_short(trial.params.get(key, "")) for key in keys]
        notes = [_short(trial.user_attrs.get("seconds", "")), str(trial.user_attrs.get(REASON, ""))]
        rows.append([str(slot), trial.state.name.lower(), *values, *params, *notes])
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = [f"<tr>{cells}</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "\n".join(lines) + "</table>"


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
