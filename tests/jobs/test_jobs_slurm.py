"""Trainings as SLURM jobs: preemption, time limit, bare requeue, job arrays, several nodes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_cluster import make_config, write_config
from helpers_slurm import preempt, queue, slurm, wait_for  # noqa: F401  slurm is a fixture

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]
MAIN = Path(__file__).parents[2] / "main.py"


def command(folder: Path, config: Path, *more: str) -> list[str]:
    flags = ["--mode", "train", "--config-yml", str(config), "--cpu", "--run-dir", str(folder), *more]
    return [sys.executable, str(MAIN), *flags]


def submit(folder: Path, config: Path, *more: str) -> list[str]:
    """Job numbers of `main.py --submit`, sent from this process to save the time of another start."""
    from fairchem_piwsl.jobs.command_line import read_arguments
    from fairchem_piwsl.jobs.submission import build_configs
    from fairchem_piwsl.jobs.submission import submit as send

    flags = [*command(folder, config)[2:], "--submit", "--slurm-mem", "1", "--slurm-timeout", "1"]
    args, overrides = read_arguments([*flags, "--logdir", str(folder / "logs"), *more])
    assert isinstance(args, argparse.Namespace)
    return [job.job_id for job in send(args, build_configs(args, overrides))]


def plain_sbatch(folder: Path, config: Path) -> str:
    """Number of a job of scripts/train.sbatch, without its GPU and with two tasks on each of two nodes."""
    script = (MAIN.parent / "scripts" / "train.sbatch").read_text()
    assert "#SBATCH --gpus-per-node=1\n" in script
    copy = folder / "train.sbatch"
    copy.write_text(script.replace("#SBATCH --gpus-per-node=1\n", ""))
    size = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--mem-per-cpu=1G"]
    size.append(f"--output={folder}/sbatch.out")
    flags = [str(config), "--cpu", "--run-dir", str(folder)]
    done = subprocess.run(
        ["sbatch", "--parsable", f"--chdir={MAIN.parent}", *size, copy, *flags],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    return done.stdout.strip()


def let_time_run_out(job: str) -> None:
    """Cut a job's time limit, so that SLURM sends its signal soon; give it time again once it is queued anew."""
    hours, minutes, seconds = map(int, field(job, "RunTime").split("-")[-1].split(":"))
    # at least half a minute is left for the checkpoint
    limit = 60 * hours + minutes + (1 if seconds < 30 else 2)
    subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={limit}"], check=True)
    wait_for(lambda: field(job, "Restarts") == "1", "the requeue at the time limit")
    subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=60"], check=True)


def field(job: str, name: str) -> str:
    """One entry of `scontrol show job`; empty where the controller is too busy to answer."""
    shown = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True).stdout
    return dict(word.split("=", 1) for word in shown.split() if "=" in word).get(name, "")


def checkpoint(folder: Path, run: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / run / "checkpoint.pt", weights_only=False)


def steps(folder: Path, run: str) -> list[tuple[int, str]]:
    """Step and process of every training step, in order."""
    path = folder / "results" / run / "steps.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


def test_interrupted_jobs_end_like_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, max_epochs=4, checkpoint_every=4, piwsl={"c_pitc": 1.0, "c_pisc": 0.1})
    config["trainer"] = "helpers_slow.SlowTrainer"
    plain = write_config(tmp_path, config)
    config["slurm"] = {"signal_delay_s": 60}
    limited = write_config(tmp_path, config, "limited.yml")

    def held(run: str, step: int) -> None:
        wait_for((tmp_path / "results" / run / f"held-{step}").exists, f"step {step} of {run}")

    monkeypatch.setenv("PIWSL_TEST_HOLD", "3,8,9")
    (preempted,) = submit(tmp_path, plain, "--timestamp-id", "preempted")
    monkeypatch.setenv("PIWSL_TEST_HOLD", "6")
    (requeued,) = submit(tmp_path, plain, "--timestamp-id", "requeued")
    (timed,) = submit(tmp_path, limited, "--timestamp-id", "timed")
    monkeypatch.delenv("PIWSL_TEST_HOLD")
    subprocess.run(command(tmp_path, plain, "--timestamp-id", "whole"), check=True, capture_output=True)

    held("requeued", 6)
    subprocess.run(["scontrol", "requeue", requeued], check=True)
    for step in (3, 8, 9):
        held("preempted", step)
        preempt(preempted)
    held("timed", 6)
    let_time_run_out(timed)
    wait_for(lambda: not queue(), "the end of all jobs")

    expected = checkpoint(tmp_path, "whole")
    assert expected["step"] == 16
    for run in ("preempted", "requeued", "timed"):
        found = checkpoint(tmp_path, run)
        assert found["step"] == 16, run
        for name, value in expected["state_dict"].items():
            assert torch.equal(value, found["state_dict"][name]), (run, name)
        for ours, theirs in zip(expected["ema"]["shadow_params"], found["ema"]["shadow_params"], strict=True):
            assert torch.equal(ours, theirs), run
    # signals lose no step, a bare requeue those since the last periodic checkpoint
    assert [step for step, _ in steps(tmp_path, "preempted")] == list(range(1, 17))
    assert len({process for _, process in steps(tmp_path, "preempted")}) == 4
    assert [step for step, _ in steps(tmp_path, "timed")] == list(range(1, 17))
    assert len({process for _, process in steps(tmp_path, "timed")}) == 2
    assert [step for step, _ in steps(tmp_path, "requeued")] == [*range(1, 7), *range(5, 17)]


def test_two_nodes_of_two_tasks_train_like_one_process(tmp_path: Path) -> None:
    """Data parallel over 4 ranks, gloo on CPUs: the same weights as one process with four times the batch."""
    config = make_config(tmp_path, max_epochs=6, optimizer="SGD", lr_initial=0.01, scheduler="Null")
    config["trainer"] = "fairchem_piwsl.trainer.PIWSLForcesTrainer"
    four = write_config(tmp_path, config)
    config["optim"]["batch_size"] = 8
    one = write_config(tmp_path, config, "one.yml")
    size = ["--num-nodes", "2", "--num-gpus", "2"]
    submit(tmp_path, four, "--timestamp-id", "four", *size)
    jobs = submit(tmp_path, one, "--timestamp-id", "one", "--seeds", "0", "1")
    assert jobs[0].split("_")[0] == jobs[1].split("_")[0]  # an array
    rows = wait_for(lambda: [row for row in queue("%D", "%C") if row[1] == "2"], "the start of the large job")
    assert rows[0][2] == "4"
    plain = plain_sbatch(tmp_path, four)
    wait_for(lambda: not queue(), "the end of all jobs")

    ours = checkpoint(tmp_path, "four")
    assert ours["step"] == 6
    same = checkpoint(tmp_path, f"job-{plain}")
    assert all(torch.equal(value, same["state_dict"][name]) for name, value in ours["state_dict"].items())
    reference, other = checkpoint(tmp_path, "one-seed0"), checkpoint(tmp_path, "one-seed1")
    strip = {name.removeprefix("module."): value for name, value in reference["state_dict"].items()}
    for name, value in ours["state_dict"].items():
        torch.testing.assert_close(value, strip[name.removeprefix("module.")], rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(v, other["state_dict"][n]) for n, v in reference["state_dict"].items())
