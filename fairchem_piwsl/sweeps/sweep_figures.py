"""Figures of a sweep: history, importance of the parameters, slices, Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from fairchem_piwsl.sweeps.study import SLOT, slots

DONE, BEST, LOST = "#4477aa", "#cc3311", "#999999"


def history(study: optuna.Study, names: Sequence[str]) -> Figure:
    """Values by trial with the best so far; pruned and failed trials stand at the lower edge."""
    latest = slots(study)
    figure, axes = plt.subplots(len(names), 1, figsize=(6.4, 3.2 * len(names)), squeeze=False)
    for index, (name, axis) in enumerate(zip(names, axes[:, 0], strict=True)):
        done = [(slot, t.values[index]) for slot, t in latest.items() if t.state == TrialState.COMPLETE]
        if done:
            x, y = np.array(done, dtype=float).T
            lower = study.directions[index].name == "MINIMIZE"
            axis.plot(x, y, "o", color=DONE, ms=5, label="completed")
            axis.step(
                x, (np.minimum if lower else np.maximum).accumulate(y), where="post", color=BEST, label="best"
            )
            if y.min() > 0 and y.max() / y.min() > 20:
                axis.set_yscale("log")
        for state, marker in ((TrialState.PRUNED, "|"), (TrialState.FAIL, "x")):
            others = [slot for slot, trial in latest.items() if trial.state == state]
            if others:
                label = "pruned" if state == TrialState.PRUNED else "failed"
                axis.plot(
                    others,
                    [0.03] * len(others),
                    marker,
                    color=LOST,
                    transform=axis.get_xaxis_transform(),
                    label=label,
                )
        axis.set(xlabel="trial", ylabel=name)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")
    figure.tight_layout()
    return figure


def importances(study: optuna.Study, index: int = 0) -> dict[str, float]:
    """Share of each parameter in reaching the best tenth of the trials (PED-ANOVA); empty with few trials."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < 4:
        return {}
    target = None if len(study.directions) == 1 else (lambda trial: trial.values[index])
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
    figure, axis = plt.subplots(figsize=(6.4, 0.8 + 0.45 * len(keys) * len(names)))
    height = 0.8 / len(names)
    for index, (name, shares) in enumerate(zip(names, found, strict=True)):
        at = np.arange(len(keys)) + (index - (len(names) - 1) / 2) * height
        axis.barh(
            at, [shares.get(key, 0.0) for key in keys], height, label=name, color=[DONE, BEST][index % 2]
        )
    axis.set_yticks(np.arange(len(keys)), keys)
    axis.set(xlabel="importance (PED-ANOVA)")
    if len(names) > 1:
        axis.legend(fontsize="small")
    figure.tight_layout()
    return figure


def slices(study: optuna.Study, names: Sequence[str]) -> Figure | None:
    """Values against each parameter, with the best trial marked."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    keys = sorted({key for trial in done for key in trial.params})
    if not keys:
        return None
    figure, axes = plt.subplots(
        len(names), len(keys), figsize=(3.0 * len(keys) + 0.8, 2.9 * len(names)), squeeze=False, sharey="row"
    )
    for row, name in enumerate(names):
        lower = study.directions[row].name == "MINIMIZE"
        best = (min if lower else max)(done, key=lambda trial: trial.values[row])
        for axis, key in zip(axes[row], keys, strict=True):
            _slice(axis, [t for t in done if key in t.params], best, key, row)
        axes[row, 0].set_ylabel(name)
    figure.tight_layout()
    return figure


def _slice(axis: Any, trials: list[FrozenTrial], best: FrozenTrial, key: str, row: int) -> None:
    distribution = trials[0].distributions[key]
    choices = getattr(distribution, "choices", ())

    def place(trial: FrozenTrial) -> Any:
        return choices.index(trial.params[key]) if choices else trial.params[key]

    if choices:
        axis.set_xticks(range(len(choices)), [str(choice) for choice in choices])
        axis.set_xlim(-0.5, len(choices) - 0.5)
    axis.plot([place(t) for t in trials], [t.values[row] for t in trials], "o", ms=5, color=DONE, alpha=0.7)
    if key in best.params:
        axis.plot([place(best)], [best.values[row]], "*", ms=13, color=BEST)
    if getattr(distribution, "log", False):
        axis.set_xscale("log")
    values = [t.values[row] for t in trials]
    if min(values) > 0 and max(values) / min(values) > 20:
        axis.set_yscale("log")
    axis.set_xlabel(key.removeprefix("optim.piwsl."))


def pareto(study: optuna.Study, names: Sequence[str]) -> Figure | None:
    """The first two values against each other, with the front."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(names) < 2 or not done:
        return None
    figure, axis = plt.subplots(figsize=(5.2, 4.0))
    axis.plot([t.values[0] for t in done], [t.values[1] for t in done], "o", color=DONE, label="completed")
    front = sorted(study.best_trials, key=lambda trial: trial.values[0])
    axis.plot(
        [t.values[0] for t in front], [t.values[1] for t in front], "*-", ms=11, color=BEST, label="front"
    )
    for trial in front:
        place = (trial.values[0], trial.values[1])
        axis.annotate(str(trial.user_attrs[SLOT]), place, xytext=(5, 5), textcoords="offset points")
    axis.set(xlabel=names[0], ylabel=names[1])
    axis.legend(fontsize="small")
    figure.tight_layout()
    return figure
