"""One HTML page about a sweep, its figures inside, and the figures as PNG files beside it.

Optuna's own figures take a trial that was tried again for several, and show none that failed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from fairchem_piwsl.analysis.figures import log_scale, save
from fairchem_piwsl.files import check_output_folder
from fairchem_piwsl.report.html_page import Part, Table, write_html
from fairchem_piwsl.sweeps.results import describe_trial, open_sweep, summary
from fairchem_piwsl.sweeps.study import REASON, completed, slots
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
        picture = save(figure, target / f"{name}.png", dpi=120)
        parts.append(Part(TITLES[name], images={name: picture.read_bytes()}))
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


DONE, BEST, LOST = "#4477aa", "#cc3311", "#999999"
#: half of the height of a value axis is at least this part of the values: fewer digits than that are noise
LEAST_SPREAD = 2e-4


def figures(study: optuna.Study, names: Sequence[str]) -> dict[str, Figure]:
    """All figures that this study has trials for, by name; `names` are those of a trial's values."""
    found = {draw.__name__: draw(study, names) for draw in (history, importance, slices, pareto)}
    return {name: figure for name, figure in found.items() if figure is not None}


def _value_axis(axis: Any, values: Sequence[float], name: str, which: str = "y") -> None:
    """An axis on which values can be read: logarithmic over decades, and never as offsets from a long number."""
    low, high, middle = min(values), max(values), (min(values) + max(values)) / 2
    if low > 0 and high / low > 20:
        log_scale(getattr(axis, f"{which}axis"))
    else:
        axis.ticklabel_format(axis=which, useOffset=False)
        least = LEAST_SPREAD * abs(middle)
        if high - low < 2 * least:
            axis.set(**{f"{which}lim": (middle - least, middle + least)})
    axis.set(**{f"{which}label": name})


def history(study: optuna.Study, names: Sequence[str]) -> Figure:
    """Values by trial with the best so far; pruned and failed trials stand at the lower edge."""
    latest = slots(study)
    figure = Figure(figsize=(6.4, 3.2 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for index, (name, axis) in enumerate(zip(names, axes, strict=True)):
        done = [(slot, t.values[index]) for slot, t in latest.items() if t.state == TrialState.COMPLETE]
        if done:
            x, y = np.array(done, dtype=float).T
            best = np.minimum if study.directions[index].name == "MINIMIZE" else np.maximum
            axis.plot(x, y, "o", color=DONE, ms=5, label="completed")
            axis.step(x, best.accumulate(y), where="post", color=BEST, label="best")
            _value_axis(axis, y, name)
        for state, marker, label in ((TrialState.PRUNED, "|", "pruned"), (TrialState.FAIL, "x", "failed")):
            others = [slot for slot, trial in latest.items() if trial.state == state]
            if others:
                edge = axis.get_xaxis_transform()
                axis.plot(others, [0.03] * len(others), marker, color=LOST, transform=edge, label=label)
        axis.set(xlabel="trial", ylabel=name)
        if axis.lines:
            axis.legend(fontsize="small")
    return figure


def importances(study: optuna.Study, index: int = 0) -> dict[str, float]:
    """Share of each parameter in reaching the best tenth of the trials (PED-ANOVA); empty with few trials."""
    done = completed(study)
    if len(done) < 4:
        return {}
    # the evaluator takes the lowest targets for the best ones
    sign = -1 if study.directions[index] == StudyDirection.MAXIMIZE else 1
    target = None if len(study.directions) == 1 else (lambda trial: sign * trial.values[index])
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, 2 / len(done)))
    try:
        return get_param_importances(study, evaluator=evaluator, target=target)
    except (ValueError, RuntimeError):  # no parameter is common to all trials, or all values are equal
        return {}


def importance(study: optuna.Study, names: Sequence[str]) -> Figure | None:
    """Bars of `importances`, one group per value."""
    found = [importances(study, index) for index in range(len(names))]
    if not all(found):
        return None
    keys = sorted(found[0], key=lambda key: found[0][key])
    figure = Figure(figsize=(6.4, 0.8 + 0.45 * len(keys) * len(names)), layout="constrained")
    axis, height, at = figure.subplots(), 0.8 / len(names), np.arange(len(keys))
    for index, (name, shares) in enumerate(zip(names, found, strict=True)):
        place = at + (index - (len(names) - 1) / 2) * height
        widths = [shares.get(key, 0.0) for key in keys]
        axis.barh(place, widths, height, label=name, color=[DONE, BEST][index % 2])
    axis.set_yticks(at, keys)
    axis.set(xlabel="importance (PED-ANOVA)")
    if len(names) > 1:
        axis.legend(fontsize="small")
    return figure


def slices(study: optuna.Study, names: Sequence[str]) -> Figure | None:
    """Values against each parameter, with the best trial marked."""
    done = completed(study)
    keys = sorted({key for trial in done for key in trial.params})
    if not keys:
        return None
    figure = Figure(figsize=(3.0 * len(keys) + 0.8, 2.9 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(keys), squeeze=False, sharey="row")
    for row, name in enumerate(names):
        best = min if study.directions[row].name == "MINIMIZE" else max
        for axis, key in zip(axes[row], keys, strict=True):
            _slice(axis, done, best(done, key=lambda trial: trial.values[row]), key, row)
        _value_axis(axes[row, 0], [trial.values[row] for trial in done], name)
    return figure


def _slice(axis: Any, done: list[FrozenTrial], best: FrozenTrial, key: str, row: int) -> None:
    trials = [trial for trial in done if key in trial.params]
    distribution = trials[0].distributions[key]
    choices = getattr(distribution, "choices", ())
    for some, style in ((trials, {"marker": "o", "ms": 5, "color": DONE, "alpha": 0.7}),
                        ([t for t in trials if t is best], {"marker": "*", "ms": 13, "color": BEST})):  # fmt: skip
        places = [choices.index(t.params[key]) if choices else t.params[key] for t in some]
        axis.plot(places, [t.values[row] for t in some], linestyle="", **style)
    axis.set(xlabel=key.removeprefix("optim.piwsl."))
    if choices:
        axis.set_xticks(range(len(choices)), [str(choice) for choice in choices])
        axis.set_xlim(-0.5, len(choices) - 0.5)
    elif getattr(distribution, "log", False):
        log_scale(axis.xaxis)
    else:
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.locator_params(axis="x", nbins=4)


def pareto(study: optuna.Study, names: Sequence[str]) -> Figure | None:
    """The first two values against each other, with the front."""
    done = completed(study)
    if len(names) < 2 or not done:
        return None
    figure = Figure(figsize=(5.2, 4.0), layout="constrained")
    axis = figure.subplots()
    x, y = ([trial.values[index] for trial in done] for index in (0, 1))
    axis.plot(x, y, "o", color=DONE, label="completed")
    front = sorted(study.best_trials, key=lambda trial: trial.values[0])
    axis.plot(
        [t.values[0] for t in front], [t.values[1] for t in front], "*-", ms=11, color=BEST, label="front"
    )
    for trial in front:
        place = (trial.values[0], trial.values[1])
        axis.annotate(str(describe_trial(trial)["trial"]), place, xytext=(5, 5), textcoords="offset points")
    _value_axis(axis, x, names[0], "x")
    _value_axis(axis, y, names[1])
    axis.legend(fontsize="small")
    return figure
