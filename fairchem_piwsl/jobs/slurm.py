"""Jobs on SLURM, of trainings and of sweeps: what sends them, how they start, what they are called."""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import submitit

from fairchem_piwsl.errors import UserError

#: a job that reaches its time limit is queued again at most this often
MAX_TIMEOUTS = 1000


def need_commands(option: str, commands: Iterable[str], otherwise: str) -> None:
    """Refuse `option` where a command of SLURM is missing; `otherwise` is what to do here instead."""
    for command in commands:
        if shutil.which(command) is None:
            raise UserError(
                f"{option} needs the command '{command}', which is not on this machine; log in to the cluster or "
                f"{otherwise}."
            )


def python_ignoring_usr2() -> str:
    """A shell command for this Python that ignores USR2 until submitit listens to it.

    By default the signal would end a process that is still importing, and a job that ends by itself is not
    queued again.
    """
    return f'sh -c \'trap "" USR2; exec "$@"\' sh {shlex.quote(sys.executable)}'


def slurm_executor(folder: Path, timeouts: int = MAX_TIMEOUTS) -> submitit.AutoExecutor:
    """submitit's executor for SLURM, with a folder for each job in `folder`."""
    # of an allocation around this process: srun in a job refuses two kinds
    for kind in ("CPU", "GPU", "NODE"):
        os.environ.pop(f"SLURM_MEM_PER_{kind}", None)
    python = python_ignoring_usr2()
    return submitit.AutoExecutor(
        folder=folder / "%j", cluster="slurm", slurm_max_num_timeout=timeouts, slurm_python=python
    )


def job_id() -> str:
    """The job of this process as submitit and `squeue` write it, `1234_5` in an array; without one the process."""
    environment = os.environ
    if "SUBMITIT_LOCAL_JOB_ID" in environment:  # also within an allocation, whose number all would share
        return environment["SUBMITIT_LOCAL_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID") or f"pid{os.getpid()}"


def outlive_requeue() -> None:
    """Called before a job is queued again, which sends SIGTERM to all its processes, `scontrol requeue` among them.

    An ignored signal is inherited, so that this child lives to its end.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
