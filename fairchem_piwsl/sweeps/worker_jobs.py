"""The workers of a sweep as jobs: sending them, counting them, stopping them."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import submitit
import torch
from submitit.core.utils import FailedSubmissionError

from fairchem_piwsl.errors import UserError, in_words
from fairchem_piwsl.files import write_json
from fairchem_piwsl.jobs.signals import handled
from fairchem_piwsl.jobs.slurm import MAX_TIMEOUTS, slurm_executor
from fairchem_piwsl.sweeps.folder import LAUNCH, read_launch
from fairchem_piwsl.sweeps.heartbeat import STOP, running_workers
from fairchem_piwsl.sweeps.sweep_file import Sweep
from fairchem_piwsl.sweeps.worker import Worker

#: minutes after which a local worker would be stopped: never, in practice
FOREVER = 365 * 24 * 60


class WorkerJobs:
    """The workers of one sweep: jobs of a SLURM array, or processes on this machine."""

    def __init__(self, folder: Path, sweep: Sweep, executor: str) -> None:
        self.folder = folder
        self.sweep = sweep
        self.executor = executor
        self.jobs: list[submitit.Job[Any]] = []

    def send(self, number: int) -> None:
        """Start this many workers more.

        Raises:
            UserError: SLURM does not take them.
        """
        if number <= 0:
            return
        launch = read_launch(self.folder)
        first = len(launch["jobs"])
        workers = [Worker(str(self.folder), first + i) for i in range(number)]
        if self.executor == "slurm":
            sent = self._send_to_slurm(workers)
        else:
            gpus = [] if self.sweep.cpu else visible_gpus()
            # submitit's process around a local worker would kill it a second after Ctrl-C; the worker itself listens
            # to Ctrl-C again, finishes its step and hands its trial back
            with handled(signal.SIG_IGN, signal.SIGINT, signal.SIGHUP):
                sent = [self._local(gpus, worker.index).submit(worker) for worker in workers]
        self.jobs += sent
        ids = [str(job.job_id) for job in sent]
        in_slurm = slurm_ids(launch) + (ids if self.executor == "slurm" else [])
        launch.update(executor=self.executor, jobs=launch["jobs"] + ids, slurm=in_slurm)
        write_json(self.folder / LAUNCH, launch)

    def _local(self, gpus: list[int], index: int) -> submitit.LocalExecutor:
        """A process of its own per worker; the GPUs of this machine go round."""
        executor = submitit.LocalExecutor(folder=self.folder / "jobs" / "%j")
        executor.update_parameters(timeout_min=FOREVER)
        if gpus:
            executor.update_parameters(gpus_per_node=1, visible_gpus=(gpus[index % len(gpus)],))
        return executor

    def _send_to_slurm(self, workers: list[Worker]) -> list[submitit.Job[Any]]:
        submitter = sweep_executor(self.folder, self.sweep)
        try:
            with submitter.batch():
                return [submitter.submit(worker) for worker in workers]
        except (FailedSubmissionError, RuntimeError, subprocess.SubprocessError) as error:
            reason = " ".join(str(getattr(error, "stderr", None) or error).split())[-300:]
            raise UserError(
                f"sbatch does not take the workers ({reason}); correct 'job' in {self.folder / 'sweep.yml'} or the "
                "sweep file, or ask who runs the cluster."
            ) from error

    def number_alive(self) -> int:
        """Workers that run or wait in the queue, those of earlier launchers included."""
        if self.executor == "slurm":
            return len(queued(slurm_ids(read_launch(self.folder))))
        own = {str(job.job_id) for job in self.jobs}
        others = [
            worker
            for worker in running_workers(self.folder, self.sweep.heartbeat.grace)
            if worker.get("job") not in own
        ]
        return sum(not job.done() for job in self.jobs) + len(others)

    def stop(self, seconds: float) -> None:
        """Have all workers hand their trials back; SLURM cancels those that have not ended after this time."""
        (self.folder / STOP).write_text("", encoding="utf-8")
        jobs = slurm_ids(read_launch(self.folder)) if self.executor == "slurm" else []
        if jobs:
            subprocess.run(["scancel", "--quiet", "--state=PENDING", *jobs], check=False)
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.number_alive():
            time.sleep(0.5)
        if jobs:
            subprocess.run(["scancel", "--quiet", *jobs], check=False)


def slurm_ids(launch: Mapping[str, Any]) -> list[str]:
    """Workers that SLURM has; not processes of this machine, whose numbers may be those of other jobs."""
    return launch.get("slurm", [])


def sweep_executor(folder: Path, sweep: Sweep) -> submitit.AutoExecutor:
    """submitit's executor with the parameters of the sweep file."""
    parameters: dict[str, Any] = {"name": sweep.study, "timeout_min": 24 * 60, "cpus_per_task": 2}
    if not sweep.cpu:
        parameters["gpus_per_node"] = 1
    parameters |= sweep.job.parameters()
    executor = slurm_executor(folder / "jobs", parameters.pop("max_timeouts", MAX_TIMEOUTS))
    try:
        executor.update_parameters(**parameters)
    except (AssertionError, NameError, TypeError, ValueError) as error:
        raise UserError(
            f"job: submitit does not accept these parameters ({in_words(error)}); correct them."
        ) from error
    return executor


def queued(jobs: list[str]) -> list[str]:
    """Those of `jobs` that SLURM runs or holds in its queue; all of them while it does not answer."""
    command = ["squeue", "--noheader", "--array", "--format=%i", "--user", str(os.getuid())]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return jobs
    return [job for job in jobs if job in set(answer.stdout.split())]


def visible_gpus() -> list[int]:
    """Numbers of the GPUs that this process may use, as submitit wants them."""
    listed, count = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    if not listed or not count:
        return list(range(count))
    try:
        return [int(entry) for entry in listed.split(",")[:count]]
    except ValueError:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES={listed} names GPUs otherwise than by their numbers, which local workers need: "
            "set it to those that `nvidia-smi` shows, or use --executor debug."
        ) from None
