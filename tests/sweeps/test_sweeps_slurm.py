"""Sweeps on SLURM: nothing is lost or run twice while workers, trials and the launcher come to harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers_slurm import preempt, queue, slurm, wait_for  # noqa: F401  slurm is a fixture
from helpers_sweep import read_log, sweep_content, write_sweep

from fairchem_piwsl.sweeps import launcher
from fairchem_piwsl.sweeps.heartbeat import read_workers
from fairchem_piwsl.sweeps.results import open_sweep
from fairchem_piwsl.sweeps.study import REASON, counts, slots

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]
JOB = {"mem_gb": 0.5, "cpus_per_task": 1, "timeout_min": 60}


def test_chaos(tmp_path: Path) -> None:
    """12 trials, 3 workers: one killed, one preempted, one trial raises, one out of memory; launcher killed."""
    content = sweep_content("chaos", trials=12, workers=3, job=JOB)
    path, folder = write_sweep(tmp_path / "in", content), tmp_path / "out"
    command = ["sweep", "start", str(path), "--folder", str(folder), "--executor", "slurm"]
    start = subprocess.Popen([sys.executable, "-m", "fairchem_piwsl.cli", *command], start_new_session=True)

    def log() -> list[str]:
        return read_log(folder / "runs")

    wait_for(lambda: len([line for line in log() if " begin " in line]) >= 3, "the start of trials")
    os.killpg(start.pid, signal.SIGKILL)
    start.wait()
    # preempt a worker that is in the middle of a trial, not the one that the trial of slot 1 kills
    busy = wait_for(
        lambda: [
            w
            for w in read_workers(folder).values()
            if w["state"] == "running" and w.get("slot", 1) not in (1, None)
        ],
        "a busy worker",
    )
    preempt(busy[0]["job"])
    launcher.resume(folder)

    study = open_sweep(folder)[1]
    latest = slots(study)
    assert sorted(latest) == list(range(12))
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    assert counts(study) == {"running": 0, "complete": 9, "pruned": 0, "fail": 3, "waiting": 0}
    assert latest[2].user_attrs[REASON] == "ValueError: no such thing"
    assert latest[4].user_attrs[REASON].startswith("out of memory")
    assert latest[6].user_attrs[REASON].startswith("diverged")
    # each slot came to its end once; only the killed and the preempted trial began twice
    ends = Counter(line.split()[0] for line in log() if " end " in line)
    assert ends == {f"{slot:04d}": 1 for slot in range(12) if slot not in (2, 4, 6)}
    reasons = Counter(t.user_attrs[REASON].split(" (")[0] for t in study.trials if t.user_attrs.get("retry"))
    assert reasons["worker died"] == 1
    assert set(reasons) <= {"worker died", "preempted"}
    assert len(study.trials) == 12 + sum(reasons.values())
    begins = Counter(line.split()[0] for line in log() if " begin " in line)
    assert sum(begins.values()) == len(study.trials)
    # the preempted job was queued again and took part to the end, or had nothing left to do
    assert not queue()


def test_a_worker_that_gets_term_alone(tmp_path: Path) -> None:
    """A requeue by hand, like a preemption without a signal of its own, is no death: no step is lost."""
    content = sweep_content("slow", trials=1, workers=1, retries=0, job=JOB)
    path, folder = write_sweep(tmp_path / "in", content), tmp_path / "out"
    launcher.start(path, folder, "slurm", detach=True)
    wait_for(lambda: read_log(folder / "runs"), "the start of the trial")
    (worker,) = read_workers(folder).values()
    subprocess.run(["scontrol", "requeue", worker["job"]], check=True)
    wait_for(lambda: not queue(), "the end of the worker")
    study = open_sweep(folder)[1]
    assert [t.user_attrs.get(REASON) for t in study.trials] == ["preempted", None]
    assert counts(study)["complete"] == 1


def test_200_trials_by_8_workers(tmp_path: Path) -> None:
    # with the default's grace: a busy worker may be silent for seconds, and its trial would rightly be given away
    content = sweep_content("parabola", trials=200, workers=8, job=JOB, heartbeat={"interval": 0.5})
    path = write_sweep(tmp_path / "in", content)
    started = time.monotonic()
    folder = launcher.start(path, tmp_path / "out", "slurm")
    wall = time.monotonic() - started
    study = open_sweep(folder)[1]
    assert [trial.number for trial in study.trials] == list(range(200))
    assert counts(study)["complete"] == 200
    assert sorted(slots(study)) == list(range(200))
    seconds = sum(trial.user_attrs["seconds"] for trial in study.trials)
    workers = {trial.user_attrs["worker"] for trial in study.trials}
    print(f"wall {wall:.1f} s, in trials {seconds:.1f} s, {len(workers)} workers took part")
