"""Starting and resuming sweeps: the study first, then workers as jobs, then a watch until all is done.

The launcher may be killed at any time: it holds nothing that the study and the folder do not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.sweeps.fleet import Fleet
from fairchem_piwsl.sweeps.folder import LAUNCH, SWEEP, load_folder, make_folder, read_launch, write_yaml
from fairchem_piwsl.sweeps.heartbeat import STOP, Watch
from fairchem_piwsl.sweeps.samplers import make_pruner, make_sampler
from fairchem_piwsl.sweeps.spec import Sweep, load_bases, load_sweep
from fairchem_piwsl.sweeps.storage import open_storage
from fairchem_piwsl.sweeps.study import (
    add_slots,
    check_same_space,
    counts,
    create_study,
    load_study,
    retry_dead,
)
from fairchem_piwsl.sweeps.worker import Worker, budget_spent

EXECUTORS = ("local", "slurm", "debug")
Show = Callable[[optuna.Study, Path], None]
#: how often workers are sent again without a trial being finished in between
MAX_STRIKES = 5
#: seconds between two looks at the study
POLL = 1.0
#: seconds given to workers after Ctrl-C
STOP_WAIT = 120.0


def start(
    path: Path,
    folder: Path | None = None,
    executor: str = "local",
    workers: int | None = None,
    trials: int | None = None,
    detach: bool = False,
    show: Show | None = None,
) -> Path:
    """Begin the sweep of a sweep file; everything is checked before any job is sent.

    Args:
        folder: where to keep the sweep, by default `sweeps/<study>`.
        workers, trials: instead of those in the sweep file.
        detach: return once the jobs are sent.
        show: called about once a second with the study and its folder.

    Returns:
        The folder of the sweep.
    """
    check_executor(executor)
    sweep = load_sweep(path, trials)
    make_sampler(sweep)
    make_pruner(sweep)
    folder = (folder or Path("sweeps") / sweep.study).absolute()
    if (folder / LAUNCH).exists():
        _refuse_second_start(sweep, folder)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        create_study(sweep, open_storage(sweep.storage, folder))
        make_folder(folder, sweep, load_bases(path, sweep.source))
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    run(folder, executor, workers, detach, show)
    return folder


def resume(
    folder: Path,
    executor: str | None = None,
    workers: int | None = None,
    trials: int | None = None,
    detach: bool = False,
    show: Show | None = None,
) -> None:
    """Go on with a sweep whose launcher or workers ended, or give it more trials."""
    folder = folder.absolute()
    sweep = load_folder(folder)
    executor = executor or read_launch(folder).get("executor", "local")
    check_executor(executor)
    study = load_study(sweep, open_storage(sweep.storage, folder))
    if "space" in study.user_attrs:
        check_same_space(study, sweep)
    if trials is not None:
        write_yaml(folder / SWEEP, {**sweep.source, "trials": trials})
    add_slots(study, trials or sweep.trials)
    run(folder, executor, workers, detach, show)


def _refuse_second_start(sweep: Sweep, folder: Path) -> None:
    old = load_folder(folder)
    check_same_space(load_study(old, open_storage(old.storage, folder)), sweep)
    raise UserError(f"{folder} holds a sweep already: continue it with `piwsl sweep resume {folder}`.")


def check_executor(executor: str) -> None:
    """Raise where jobs cannot be sent with this executor."""
    if executor not in EXECUTORS:
        raise UserError(f"--executor {executor} is not known; choose one of {', '.join(EXECUTORS)}.")
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise UserError(
            "--executor slurm needs the command 'sbatch', which is not on this machine; "
            "log in to the cluster or use --executor local."
        )


def run(folder: Path, executor: str, workers: int | None, detach: bool, show: Show | None) -> None:
    """Send the workers that are missing and, unless `detach`, stay until the sweep is over."""
    sweep = load_folder(folder)
    storage = open_storage(sweep.storage, folder)
    study = load_study(sweep, storage)
    (folder / STOP).unlink(missing_ok=True)
    study.set_user_attr("started", time.time())
    if executor == "debug":
        Worker(str(folder))()
        return
    fleet = Fleet(folder, sweep, executor)
    wanted = workers or sweep.workers
    fleet.send(min(wanted, open_trials(study)) - fleet.number_alive())
    if detach:
        return
    try:
        _watch(study, storage, folder, fleet, wanted, show)
    except KeyboardInterrupt:
        fleet.stop(STOP_WAIT)
        raise


def _watch(
    study: optuna.Study, storage: BaseStorage, folder: Path, fleet: Fleet, wanted: int, show: Show | None
) -> None:
    """Look after trials and workers until the sweep is over."""
    sweep, observer = fleet.sweep, Watch(folder, fleet.sweep.grace)
    finished, strikes = -1, 0
    while True:
        retry_dead(study, storage, folder, observer, sweep.retries)
        if show is not None:
            show(study, folder)
        number, alive = counts(study), fleet.number_alive()
        over = budget_spent(sweep, study) or not number["waiting"]
        if over and not alive and (not number["running"] or budget_spent(sweep, study)):
            return
        missing = min(wanted - alive, number["waiting"])
        if missing > 0 and not over:
            if open_trials(study) != finished:
                finished, strikes = open_trials(study), 0
            strikes += 1
            if strikes > MAX_STRIKES:
                raise UserError(
                    f"workers of {folder} end before they finish a trial: read the newest files in "
                    f"{folder / 'jobs'}, then use `piwsl sweep resume`."
                )
            fleet.send(missing)
        time.sleep(POLL)


def open_trials(study: optuna.Study) -> int:
    """Slots whose trial is waiting or running."""
    number = counts(study)
    return number["waiting"] + number["running"]
