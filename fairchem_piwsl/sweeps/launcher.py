"""Starting and resuming sweeps: the study first, then workers as jobs, then a look after them until all is done.

The launcher may be killed at any time: it holds nothing that the study and the folder do not.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from fairchem_piwsl.config import read_yaml
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import check_output_folder
from fairchem_piwsl.sweeps.folder import LAUNCH, SWEEP, load_folder, make_folder, read_launch, write_yaml
from fairchem_piwsl.sweeps.heartbeat import STOP, Observer
from fairchem_piwsl.sweeps.samplers import check_sampler, make_pruner
from fairchem_piwsl.sweeps.storage import open_storage
from fairchem_piwsl.sweeps.study import (
    REASON,
    add_slots,
    adding_lock,
    check_same_space,
    counts,
    create_study,
    load_study,
    retry_dead,
    slots,
)
from fairchem_piwsl.sweeps.sweep_checks import check_executor, check_new_folder, check_trials, load_function
from fairchem_piwsl.sweeps.sweep_file import Sweep, load_bases, load_sweep
from fairchem_piwsl.sweeps.worker import Worker, budget_spent
from fairchem_piwsl.sweeps.worker_jobs import WorkerJobs, sweep_executor

Show = Callable[[optuna.Study, Path], None]
#: how often workers are sent again without a trial being finished in between
MAX_RESTARTS = 5
#: in the folder while a start fills it
CLAIM = "starting"
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
    """Begin the sweep of a sweep file; everything is checked before anything is written or sent.

    Args:
        folder: where to keep the sweep, by default `sweeps/<study>`.
        workers, trials: instead of those in the sweep file.
        detach: return once the jobs are sent.
        show: called about once a second with the study and its folder.

    Returns:
        The folder of the sweep.

    Raises:
        UserError: a mistake in the sweep file or the options, or all trials failed.
    """
    check_executor(executor)
    sweep = load_sweep(path, trials=trials, workers=workers)
    check_sampler(sweep)
    make_pruner(sweep)
    folder = (folder or Path("sweeps") / sweep.study).absolute()
    if (folder / LAUNCH).exists():
        _refuse_second_start(sweep, folder)
    check_new_folder(sweep, folder)
    check_trials(sweep)
    if executor == "slurm":
        sweep_executor(folder, sweep)
    content = read_yaml(path, "sweep file")
    with _removed_on_error(folder):
        storage = open_storage(sweep.storage, folder)
        study = create_study(sweep, storage)
        try:
            make_folder(folder, content, sweep, load_bases(path, content))
            jobs = _send_first(study, folder, sweep, executor)
        except BaseException:
            with suppress(Exception):  # where its journal is in the folder, that goes as well
                optuna.delete_study(study_name=sweep.study, storage=storage)
            raise
    _look_after(study, storage, folder, jobs, detach, show)
    return folder


def resume(
    folder: Path,
    executor: str | None = None,
    workers: int | None = None,
    trials: int | None = None,
    detach: bool = False,
    show: Show | None = None,
) -> None:
    """Go on with a sweep whose launcher or workers ended, or give it more trials; arguments as for `start`."""
    folder = folder.absolute()
    sweep = load_folder(folder, trials=trials, workers=workers)
    launch = read_launch(folder)
    executor = executor or launch.get("executor", "local")
    check_executor(executor)
    check_output_folder(folder, "folder")
    check_sampler(sweep)
    load_function(sweep.function, launch["workdir"])
    storage = open_storage(sweep.storage, folder)
    study = load_study(sweep, storage)
    check_same_space(study, sweep)
    if trials is not None:
        number = len(slots(study))
        if trials < number:
            raise UserError(f"--trials {trials}: {folder} has {number} already; give a larger number.")
        write_yaml(folder / SWEEP, {**read_yaml(folder / SWEEP, "sweep file"), "trials": sweep.trials})
    with adding_lock(folder):
        add_slots(study, sweep)
    jobs = _send_first(study, folder, sweep, executor)
    _look_after(study, storage, folder, jobs, detach, show)


def _refuse_second_start(sweep: Sweep, folder: Path) -> None:
    old = load_folder(folder)
    check_same_space(load_study(old, open_storage(old.storage, folder)), sweep)
    raise UserError(f"{folder} holds a sweep already: continue it with `piwsl sweep resume {folder}`.")


@contextmanager
def _removed_on_error(folder: Path) -> Iterator[None]:
    """Make an empty folder; where the block does not come to its end, all is as before."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder)
    try:
        yield
        (folder / CLAIM).unlink()
    except BaseException:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in missing:
            with suppress(OSError):  # another sweep has begun in it
                path.rmdir()
        raise


def _claim(folder: Path) -> None:
    """Of several starts that found the folder empty, let one fill it."""
    claim = folder / CLAIM
    taken = UserError(f"{folder} is taken by another start of a sweep: give another --folder.")
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        raise taken from None
    if list(folder.iterdir()) != [claim]:  # of a start that has come to its end meanwhile
        claim.unlink()
        raise taken


def _send_first(study: optuna.Study, folder: Path, sweep: Sweep, executor: str) -> WorkerJobs:
    """Send the workers that are missing."""
    (folder / STOP).unlink(missing_ok=True)
    study.set_user_attr("started", time.time())
    jobs = WorkerJobs(folder, sweep, executor)
    if executor != "debug":
        jobs.send(min(sweep.workers, open_trials(study)) - jobs.number_alive())
    return jobs


def _look_after(
    study: optuna.Study,
    storage: BaseStorage,
    folder: Path,
    jobs: WorkerJobs,
    detach: bool,
    show: Show | None,
) -> None:
    """Stay, unless `detach`, until the sweep is over; raise where no trial has come to a good end."""
    if jobs.executor == "debug":
        Worker(str(folder))()
    elif detach:
        return
    else:
        try:
            _watch(study, storage, folder, jobs, show)
        except KeyboardInterrupt:
            jobs.stop(STOP_WAIT)
            raise
    number = counts(study)
    if number["fail"] and not number["complete"] and not number["pruned"]:
        reasons = [trial.user_attrs[REASON] for trial in slots(study).values() if REASON in trial.user_attrs]
        raise UserError(
            f"all {number['fail']} trials of {folder} that ran have failed, the last with '{reasons[-1]}'; "
            f"read {folder / 'runs' / 'errors'}, correct the sweep file and start it with another --folder."
        )


def _watch(
    study: optuna.Study, storage: BaseStorage, folder: Path, jobs: WorkerJobs, show: Show | None
) -> None:
    """Look after trials and workers until the sweep is over."""
    sweep, observer = jobs.sweep, Observer(folder, jobs.sweep.heartbeat.grace)
    finished, restarts = -1, 0
    while True:
        retry_dead(study, storage, folder, observer, sweep.retries)
        if show is not None:
            show(study, folder)
        number, alive = counts(study), jobs.number_alive()
        over = budget_spent(sweep, study) or not number["waiting"]
        if over and not alive and (not number["running"] or budget_spent(sweep, study)):
            return
        missing = min(sweep.workers - alive, number["waiting"])
        if missing > 0 and not over:
            if open_trials(study) != finished:
                finished, restarts = open_trials(study), 0
            restarts += 1
            if restarts > MAX_RESTARTS:
                raise UserError(
                    f"workers of {folder} end before they finish a trial: read the newest files in "
                    f"{folder / 'jobs'}, then use `piwsl sweep resume`."
                )
            jobs.send(missing)
        time.sleep(POLL)


def open_trials(study: optuna.Study) -> int:
    """Slots whose trial is waiting or running."""
    number = counts(study)
    return number["waiting"] + number["running"]
