"""A worker: claims waiting trials of a study and runs them until none is left or the budget is spent."""

import logging
import os
import signal
import time
import traceback
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from submitit.helpers import Checkpointable, DelayedSubmission

from fairchem_piwsl.jobs.signals import handled
from fairchem_piwsl.jobs.slurm import job_id, outlive_requeue
from fairchem_piwsl.sweeps.folder import load_folder
from fairchem_piwsl.sweeps.heartbeat import STOP, Heartbeat, Observer
from fairchem_piwsl.sweeps.space import suggest
from fairchem_piwsl.sweeps.storage import open_storage
from fairchem_piwsl.sweeps.study import (
    SLOT,
    STEPS,
    WORKER,
    claim,
    fail,
    hand_back,
    load_study,
    retry_dead,
)
from fairchem_piwsl.sweeps.sweep_checks import load_function
from fairchem_piwsl.sweeps.sweep_file import Sweep
from fairchem_piwsl.sweeps.trial_training import Reporter, failure_reason, trial_config
from fairchem_piwsl.training.checkpoints import Preempted

RUNS, PREEMPTED = "runs", "preempted"
TOO_LATE = "trial {} was given to another worker while this one was silent"
#: seconds between two looks for a trial where another worker's may have to be taken over
IDLE = 1.0


class Worker(Checkpointable):
    """What each submitit job runs. It can be pickled; a requeued job starts again from the study's state."""

    def __init__(self, folder: str, index: int = 0) -> None:
        self.folder = folder
        self.index = index

    def __call__(self) -> None:
        """Run trials until there is nothing to do."""
        _Loop(Path(self.folder).resolve(), self.index).run()

    def checkpoint(self) -> DelayedSubmission:
        """For submitit, which requeues the job: the study holds all that is to be kept."""
        outlive_requeue()
        return DelayedSubmission(Worker(self.folder, self.index))


class _Loop:
    """One worker at work."""

    def __init__(self, folder: Path, index: int) -> None:
        self.folder = folder
        self.sweep: Sweep = load_folder(folder, change_directory=True)
        self.storage = open_storage(self.sweep.storage, folder)
        self.index = index
        self.job = job_id()
        self.name = f"{self.job}-{uuid.uuid4().hex[:6]}"
        self.observer = Observer(folder, self.sweep.heartbeat.grace)
        self.heartbeat = Heartbeat(folder, self.name, self.sweep.heartbeat.interval, self._each_beat)
        self.reporter: Reporter | None = None
        self.stop_reason = ""
        self.preempted = False

    def run(self) -> None:
        """Run trials until there is nothing to do."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        numbers = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
        with handled(self._on_signal, *numbers) as before, self.heartbeat:
            self.heartbeat.update(job=self.job, index=self.index, host=os.uname().nodename)
            while self._one_more():
                pass
        handler = before.get(signal.SIGUSR2)
        if self.preempted and callable(handler):
            handler(signal.SIGUSR2, None)  # submitit's: requeues the job and ends this process
        # after TERM SLURM ends the job itself, and queues it again only where it has not ended before
        while self.stop_reason == PREEMPTED and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            signal.pause()

    # ---------------------------------------------------------------- stopping

    def _on_signal(self, number: int, frame: Any) -> None:
        """Only take notes here: this may interrupt a write to the study."""
        if number == signal.SIGINT and self.stop_reason:
            raise KeyboardInterrupt  # the second Ctrl-C
        self.preempted |= number == signal.SIGUSR2
        self._stop("stopped by the user" if number == signal.SIGINT else PREEMPTED)

    def _stop(self, reason: str) -> None:
        self.stop_reason = self.stop_reason or reason
        reporter = self.reporter
        if reporter is not None:
            reporter.stop()

    def _each_beat(self) -> None:
        if (self.folder / STOP).exists():
            self._stop("stopped by the user")

    # ---------------------------------------------------------------- trials

    def _one_more(self) -> bool:
        """Run one trial; False where this worker is done."""
        if self.stop_reason or (self.folder / STOP).exists():
            return False
        study = load_study(self.sweep, self.storage)
        if budget_spent(self.sweep, study):
            return False
        retry_dead(study, self.storage, self.folder, self.observer, self.sweep.retries)
        trial = claim(self.sweep, study, self.storage, self.name)
        if trial is None:
            return self._wait_for_others(study)
        self._run_trial(study, trial)
        return True

    def _wait_for_others(self, study: optuna.Study) -> bool:
        """With nothing to claim, stay only until every other worker with a trial has been seen alive."""
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        workers, within = [t.user_attrs.get(WORKER, "") for t in running], 3 * self.sweep.heartbeat.interval
        if all(self.observer.is_alive(worker, within) for worker in workers):
            return False
        time.sleep(IDLE)
        return True

    def _run_trial(self, study: optuna.Study, trial: optuna.Trial) -> None:
        """One trial from its values to its end, whatever that is."""
        slot = trial.user_attrs[SLOT]
        run = f"{self.sweep.study}-{slot:04d}"
        history = self.folder / RUNS / "validations" / f"{run}.jsonl"
        self.heartbeat.update(trial=trial.number, slot=slot)
        started = time.time()
        try:
            values = suggest(trial, self.sweep.space)
            self.reporter = Reporter(trial, self.sweep.objective, history, lambda: bool(self.stop_reason))
            config = trial_config(self.sweep, values, self.folder / RUNS, run)
            load_function(self.sweep.function, os.getcwd())(config, self.reporter)
            if not self.reporter.history:
                raise RuntimeError("no validation ran: optim.eval_every is larger than the number of steps")
            self._note(trial, started)
            result = self.sweep.objective.final(list(self.reporter.history.values()))
            _tell(study, trial, TrialState.COMPLETE, result)
        except optuna.TrialPruned:
            self._note(trial, started)
            _tell(study, trial, TrialState.PRUNED)
        except Preempted:
            self._note(trial, started)
            hand_back(study, self.storage, self.folder, trial.number, self.stop_reason or PREEMPTED)
        except KeyboardInterrupt:
            hand_back(study, self.storage, self.folder, trial.number, "stopped by the user")
            raise
        except UpdateFinishedTrialError:
            logging.warning(TOO_LATE.format(trial.number))
        except (Exception, SystemExit) as error:
            logging.exception(f"trial {trial.number} failed")
            self._keep_traceback(run)
            self._note(trial, started)
            fail(study, self.storage, trial.number, failure_reason(error))
        finally:
            self.reporter = None
            self.heartbeat.update(trial=None, slot=None)

    def _note(self, trial: optuna.Trial, started: float) -> None:
        """Time and steps of the trial; no longer possible where it has been closed by another worker."""
        with suppress(UpdateFinishedTrialError):
            trial.set_user_attr("seconds", round(time.time() - started, 3))
            if self.reporter is not None:
                trial.set_user_attr(STEPS, self.reporter.steps)

    def _keep_traceback(self, run: str) -> None:
        path = self.folder / RUNS / "errors" / f"{run}.txt"
        with suppress(OSError):  # on a full disk the study's own reason has to do
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(traceback.format_exc() + "\n")


def _tell(
    study: optuna.Study, trial: optuna.Trial, state: TrialState, values: list[float] | None = None
) -> None:
    if study.tell(trial, values, state, skip_if_finished=True).state != state:
        logging.warning(TOO_LATE.format(trial.number))


def budget_spent(sweep: Sweep, study: optuna.Study) -> bool:
    """Whether the hours since the last start, or the training steps of all trials, are used up."""
    started = study.user_attrs.get("started")
    hours, steps = sweep.budget.hours, sweep.budget.steps
    if hours is not None and started is not None and time.time() - started > 3600 * hours:
        return True
    if steps is None:
        return False
    taken: Counter[Any] = Counter()  # by slot: a continued trial counts on, and `|=` keeps the larger number
    for trial in study.get_trials(deepcopy=False):
        taken |= Counter({trial.user_attrs.get(SLOT): trial.user_attrs.get(STEPS, 0)})
    return taken.total() >= steps
