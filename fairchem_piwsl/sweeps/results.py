"""What a sweep has found: a summary for people and programs, and the best config."""

import time
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fairchem_piwsl.config import load_config, with_values
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import check_output_folder
from fairchem_piwsl.sweeps.folder import load_folder, write_yaml
from fairchem_piwsl.sweeps.heartbeat import running_workers
from fairchem_piwsl.sweeps.storage import open_storage
from fairchem_piwsl.sweeps.study import BASE, REASON, SLOT, best_trials, completed, counts, load_study, slots
from fairchem_piwsl.sweeps.sweep_file import Sweep


def open_sweep(folder: Path) -> tuple[Sweep, optuna.Study]:
    """The sweep and the study of a folder."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = folder.absolute()
    sweep = load_folder(folder)
    return sweep, load_study(sweep, open_storage(sweep.storage, folder))


def summary(sweep: Sweep, study: optuna.Study, folder: Path) -> dict[str, Any]:
    """Progress, best so far, failures and workers as plain values."""
    latest = slots(study)
    failed = {slot: trial for slot, trial in latest.items() if trial.state == TrialState.FAIL}
    seconds = [trial.user_attrs.get("seconds", 0.0) for trial in study.get_trials(deepcopy=False)]
    within = max(sweep.heartbeat.grace, 10 * sweep.heartbeat.interval)
    return {
        "study": sweep.study,
        "objective": str(sweep.objective),
        "trials": len(latest),
        **counts(study),
        "retries": len(study.get_trials(deepcopy=False)) - len(latest),
        "training_seconds": round(sum(seconds), 1),
        # Optuna takes the last validation of a pruned trial for its value
        "base": next((describe_trial(t) for t in completed(study) if t.user_attrs.get(BASE)), None),
        "best": [describe_trial(trial) for trial in best_trials(study)],
        "failures": {slot: trial.user_attrs.get(REASON, "unknown reason") for slot, trial in failed.items()},
        "workers": [describe_worker(worker) for worker in running_workers(folder, within)],
    }


def describe_worker(content: dict[str, Any]) -> dict[str, Any]:
    """A running worker; `silent` is the number of seconds since its last heartbeat."""
    kept = {key: content.get(key) for key in ("job", "host", "trial", "slot")}
    return {**kept, "silent": round(max(0.0, time.time() - content["time"]), 1)}


def describe_trial(trial: FrozenTrial) -> dict[str, Any]:
    """Slot, values and parameters of a completed trial; one that was added with Optuna has no slot, but a name."""
    name = trial.user_attrs.get(SLOT, f"optuna-{trial.number}")
    return {"trial": name, "values": trial.values, "params": trial.params}


def best_config(
    folder: Path, output: Path, trial: int | None = None, without_set: bool = False
) -> dict[str, Any]:
    """Write the config of the best trial, ready for `main.py`.

    Args:
        trial: another trial than the best; where the objective is a Pareto front, choose one of it.
        without_set: leave out the changes under `set` in the sweep file, for instance a shorter training.

    Returns:
        The description of the trial.
    """
    sweep, study = open_sweep(folder)
    chosen = _choose(study, trial, folder)
    if output.exists():
        raise UserError(f"{output} exists already: choose another --output.")
    check_output_folder(output.parent, "--output")
    config = with_values(load_config(folder / "base.yml") if without_set else sweep.base, chosen.params)
    found = describe_trial(chosen)
    values = ", ".join(f"{value:.6g}" for value in chosen.values)
    head = f"Trial {found['trial']} of the sweep {sweep.study}: {sweep.objective} = {values}"
    command = f"python main.py --mode train --config-yml {output}{' --cpu' if sweep.cpu else ''}"
    command += f" --seed {chosen.params.get('seed', sweep.seed)}{' --amp' if sweep.amp else ''}"
    write_yaml(output, config, f"{head}\n{command}")
    return found


def _choose(study: optuna.Study, number: int | None, folder: Path) -> FrozenTrial:
    front = best_trials(study)
    if number is not None:
        chosen = slots(study).get(number)
        if chosen is None or chosen.state != TrialState.COMPLETE:
            raise UserError(
                f"--trial {number} is not a completed trial of {folder}; see `piwsl sweep status`."
            )
        return chosen
    if not front:
        raise UserError(f"{folder} has no completed trial yet; see `piwsl sweep status {folder}`.")
    if len(study.directions) > 1 and len(front) > 1:
        numbers = ", ".join(str(describe_trial(trial)["trial"]) for trial in front)
        raise UserError(f"{folder} has a Pareto front of trials {numbers}: choose one with --trial.")
    return front[0]
