"""What is checked before a sweep is written or a job is sent: names, folder, function, and the config of trials."""

import importlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fairchem_piwsl.config import get_value, with_values
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import check_output_folder
from fairchem_piwsl.jobs.slurm import need_commands
from fairchem_piwsl.kinds import did_you_mean, metric_name
from fairchem_piwsl.sweeps.space import extremes
from fairchem_piwsl.sweeps.sweep_file import TRAINING, Sweep
from fairchem_piwsl.training.config_layout import COMMAND_LINE
from fairchem_piwsl.training.metrics import ROOT_MEAN_SQUARES
from fairchem_piwsl.training.preflight import check_config

EXECUTORS = ("local", "slurm", "debug")


def check_executor(executor: str) -> None:
    """Raise where jobs cannot be sent with this executor."""
    if executor not in EXECUTORS:
        raise UserError(f"--executor {executor} is not known; choose one of {', '.join(EXECUTORS)}.")
    if executor == "slurm":
        commands = ("sbatch", "srun", "squeue", "scancel")
        need_commands("--executor slurm", commands, "use --executor local")


def check_new_folder(sweep: Sweep, folder: Path) -> None:
    """Raise for a folder that holds other things, cannot be written, or would end up in a batch script as more."""
    # the study's name becomes a folder, the name of runs and of jobs
    if not re.fullmatch(r"\w([\w .+=-]{0,98}[\w+=-])?", sweep.study):
        raise UserError(
            f"study {sweep.study!r} must begin with a letter or number and hold only these and '_.+=-'; "
            "choose another name."
        )
    if "%" in str(folder) or not str(folder).isprintable():
        raise UserError(
            f"--folder {str(folder)!r}: SLURM does not take a path with % or unprintable characters; "
            "choose another folder."
        )
    check_output_folder(folder, "--folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--folder {folder} is not empty; choose another folder, its files shall stay.")


def load_function(name: str, folder: str) -> Callable[..., Any]:
    """The function that a trial calls with its config and a reporter, by its dotted path, also from `folder`."""
    if folder not in sys.path:  # as `python -m` has it, which starts the workers
        sys.path.append(folder)
    module, _, last = name.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), last)
        inspect.signature(function).bind({}, None)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"function: '{name}' cannot be used ({error}); give the dotted path of a function(config, report)."
        ) from error
    return function


def check_trials(sweep: Sweep) -> None:
    """Raise for trials that could not run: keys that others set, the function, or for trainings the metrics of the
    objective, the config of the first trial and of those at the edges of the search space."""
    others = COMMAND_LINE.keys() - {"print_every"}
    for key in (*sweep.set, *(p.key for p in sweep.space if p.key != "seed")):
        if key in others:
            raise UserError(
                f"'{key}' comes from the sweep file's own keys or the flags of main.py, not from 'set' or 'space'; "
                "remove it there."
            )
    load_function(sweep.function, os.getcwd())
    if sweep.function != TRAINING:
        return
    check_config(sweep.base)
    _check_metrics(sweep.objective.metrics, sweep.base)
    logging.disable(logging.WARNING)  # all there is to say has been said once
    try:
        for values in extremes(sweep.space):
            about_data = any(key.startswith(("dataset.", "outputs.", "model.")) for key in values)
            try:
                check_config(with_values(sweep.base, values), reads_data=about_data)
            except UserError as error:
                where = ", ".join(f"{key} = {value}" for key, value in values.items())
                raise UserError(f"space, at {where}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)


def _check_metrics(metrics: list[str], base: Mapping[str, Any]) -> None:
    """Raise for a metric that the validation of this config will not report."""
    listed = get_value(base, "evaluation_metrics.metrics")
    if not isinstance(listed, Mapping):
        return  # upstream's defaults, which depend on the task
    known = {"loss", *(metric_name(output, name) for output, names in listed.items() for name in names)}
    own = "piwsl" in str(base.get("trainer", "")).lower()
    known |= set(ROOT_MEAN_SQUARES) if own else set()
    for metric in metrics:
        if metric not in known and not (own and metric.startswith(("loss_", "weighted_"))):
            hint = did_you_mean(metric, sorted(known)).replace("settings", "metrics")
            raise UserError(f"objective: the validation reports no '{metric}'; {hint}")
