"""One training as a job: ranks, signals, requeue and resume.

fairchem's own runner is unpickled on a SLURM worker without the plugin, saves in the middle of a step from
inside the signal handler, and cannot run on the CPU of a cluster. This one is part of the plugin, stops between
two steps, and joins its ranks with the backend that the config asks for.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fairchem.core import _cli
from fairchem.core.common import distutils
from fairchem.core.common.utils import new_trainer_context
from submitit.helpers import DelayedSubmission

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.jobs.resuming import check_same_run, own_checkpoint
from fairchem_piwsl.jobs.signals import handled
from fairchem_piwsl.jobs.slurm import job_id, outlive_requeue
from fairchem_piwsl.training.checkpoints import Preempted, close_datasets
from fairchem_piwsl.upstream.checkpoint_access import reading_without_code
from fairchem_piwsl.upstream.run_start import exact_timestamps

#: seconds that other ranks wait for the requeue to end them
WAIT_FOR_REQUEUE = 60


class Runner(_cli.Runner):
    """Trains (or predicts with) one config, as a submitit job or in this process."""

    def __call__(self, config: dict[str, Any]) -> str | None:
        """Run to the end, or to a checkpoint and a requeue where the job is preempted or out of time.

        Returns:
            The `timestamp_id` of a run that a signal has asked to end, None for all others. It is at its end where
            the signal came during the last validation.
        """
        config = prepare(config)
        signals = _Signals()
        trainer: Any = None
        try:
            with exact_timestamps(), new_trainer_context(config=config) as context:
                trainer = context.trainer
                if config["mode"] == "train" and not config.get("timestamp_id"):
                    refuse_taken_name(trainer.config["cmd"])
                with reading_without_code(trainer):
                    context.task.setup(trainer)
                with signals.caught_for(trainer):
                    context.task.run()
                return trainer.timestamp_id if signals.end_asked else None
        except Preempted as stop:
            distutils.cleanup()
            logging.info(f"{stop}; checkpoint saved in {trainer.config['cmd']['checkpoint_dir']}")
            signals.give_up_job()
            return trainer.timestamp_id
        finally:
            close_datasets(trainer)
            distutils.cleanup()  # upstream leaves its process group behind where training raises

    def checkpoint(self, *args: Any, **kwargs: Any) -> DelayedSubmission:
        """For submitit's requeue: the same config, which finds its checkpoint by its timestamp_id."""
        outlive_requeue()
        return DelayedSubmission(Runner(), *args, **kwargs)


def run(config: dict[str, Any]) -> str | None:
    """`Runner` as a function, for ranks that are spawned."""
    return Runner()(config)


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The config as this rank needs it: rendezvous in the environment, own checkpoint before a given one."""
    config = {**config, "submit": False}  # upstream's submit branch insists on NCCL and a GPU
    config["world_size"] = join_ranks(config["world_size"])
    own = own_checkpoint(config)
    if own is not None:
        check_same_run(config, own, config["world_size"])
        config["checkpoint"] = str(own)
    if "SLURM_JOB_ID" in os.environ:
        config["slurm"] = {**(config.get("slurm") or {}), "job_id": job_id()}
    return config


def refuse_taken_name(command: dict[str, Any]) -> None:
    """Let no run that was given its name by the clock go on from another run's checkpoint."""
    if os.path.exists(os.path.join(command["checkpoint_dir"], "checkpoint.pt")):
        raise UserError(
            f"--run-dir has a run {command['timestamp_id']} already, of the same time: start again, or give "
            "--timestamp-id."
        )


def rank_count(world_size: int) -> int:
    """Number of ranks: of `srun` (submitit uses it too) where it has started this process, else as asked for."""
    # not SLURM_NTASKS, which an interactive shell, a step of one task, has from its allocation
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    return tasks if tasks > 1 else world_size


def join_ranks(world_size: int) -> int:
    """Put this rank's place into the environment; returns the number of ranks.

    Ranks come from `srun` (submitit uses it too), from torch's elastic launcher, or there is only one.
    """
    environment = os.environ
    tasks = rank_count(1)
    if tasks > 1:
        environment |= {"RANK": environment["SLURM_PROCID"], "LOCAL_RANK": environment["SLURM_LOCALID"]}
        environment["WORLD_SIZE"] = str(tasks)
        environment["MASTER_ADDR"] = first_host(environment["SLURM_STEP_NODELIST"])
        # jobs that share a node must not share a port
        environment["MASTER_PORT"] = str(20000 + int(environment["SLURM_JOB_ID"]) % 20000)
        return tasks
    if world_size == 1:
        distutils.setup_env_local()
    return world_size


def first_host(nodes: str) -> str:
    """The first name in SLURM's list of nodes, such as `node[3-4]`."""
    command = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


class _Signals:
    """USR2: checkpoint, then give up the job. TERM: checkpoint; on SLURM go on, since a USR2 or KILL follows."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.previous: Any = signal.SIG_DFL
        self.end_asked = False

    @contextmanager
    def caught_for(self, trainer: Any) -> Iterator[None]:
        self.trainer = trainer
        numbers = (signal.SIGUSR2, signal.SIGTERM) if hasattr(trainer, "request_stop") else ()
        with handled(self._on_signal, *numbers) as before:
            self.previous = before.get(signal.SIGUSR2, signal.SIG_DFL)
            yield

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
            self.trainer.request_checkpoint()
        else:
            self.end_asked = True
            self.trainer.request_stop()

    def give_up_job(self) -> None:
        """After the checkpoint: requeue the job where there is one; does not return then."""
        if "SLURM_JOB_ID" not in os.environ:
            return
        if int(os.environ.get("SLURM_PROCID", 0)) > 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(WAIT_FOR_REQUEUE)
        elif callable(self.previous):
            self.previous(signal.SIGUSR2, None)  # submitit's: stores the job anew, requeues it and exits
        else:
            outlive_requeue()
            subprocess.run(["scontrol", "requeue", job_id()], check=True)
