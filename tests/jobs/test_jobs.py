"""From command line to job: names, arrays, ranks, signals; two ranks on this machine."""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_cluster import make_config, write_config

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.jobs import launch, runner
from fairchem_piwsl.jobs.command_line import read_arguments
from fairchem_piwsl.jobs.runner import join_ranks, prepare, rank_count
from fairchem_piwsl.jobs.signals import handled
from fairchem_piwsl.jobs.slurm import job_id, python_ignoring_usr2
from fairchem_piwsl.jobs.submission import build_configs, submit

MAIN = Path(__file__).parents[2] / "main.py"
SCRIPTS = sorted((MAIN.parent / "scripts").glob("*.sbatch"))


def configs_of(*flags: Any) -> tuple[Any, list[dict[str, Any]]]:
    args, overrides = read_arguments([str(flag) for flag in ("--mode", "train", *flags)])
    return args, build_configs(args, overrides)


def test_configs_times_seeds_with_names_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yml").write_text(f"optim: {{lr_initial: 0.1, name: {name}}}\n")
    files = [tmp_path / "a.yml", tmp_path / "b.yml"]
    _, configs = configs_of(
        "--config-yml", *files, "--seeds", 1, 2, "--identifier", "x", "--optim.lr_initial=0.5"
    )
    assert [(c["optim"]["name"], c["seed"]) for c in configs] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert [c["identifier"] for c in configs] == ["x-a-seed1", "x-a-seed2", "x-b-seed1", "x-b-seed2"]
    assert len({c["timestamp_id"] for c in configs}) == 4
    assert all(c["optim"]["lr_initial"] == 0.5 for c in configs)


@pytest.mark.parametrize("more", [[], ["--method", "baseline", "piwsl"]], ids=["config", "methods"])
def test_runs_keep_their_names_when_seeds_join_or_leave(more: list[str]) -> None:
    flags = ["--config-yml", "configs/s2ef/example.yml", "--timestamp-id", "t", *more]
    names = [
        {c["timestamp_id"] for c in configs_of(*flags, "--seeds", *seeds)[1]}
        for seeds in ((0,), (0, 1), (0, 1, 2))
    ]
    assert names[0] < names[1] < names[2]
    assert all(name.startswith("t-") for name in names[2])


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("1/x.yml", "2/x.yml", "x-1.yml")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("optim: {}\n")
    with pytest.raises(UserError, match="2 runs would be called t-x-1 and share a folder: rename a config"):
        configs_of("--config-yml", *files, "--timestamp-id", "t")


def test_one_config_is_left_to_upstream(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("optim: {}\n")
    (config,) = configs_of("--config-yml", tmp_path / "a.yml")[1]
    assert (config["identifier"], config["timestamp_id"], config["seed"]) == ("", None, 0)
    (config,) = configs_of("--config-yml", tmp_path / "a.yml", "--timestamp-id", "mine", "--submit")[1]
    assert config["timestamp_id"] == "mine"
    with pytest.raises(UserError, match=r"gone\.yml does not exist"):
        configs_of("--config-yml", tmp_path / "gone.yml")


def test_no_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yml").write_text("optim: {}\n")
    args, configs = configs_of("--config-yml", tmp_path / "a.yml", "--submit", "--logdir", tmp_path / "logs")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="sbatch"):
        submit(args, configs)
    assert not (tmp_path / "logs").exists()


@pytest.fixture
def refusing_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SLURM that takes no job, and writes down its surroundings."""
    for name in ("sbatch", "srun"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f"#!/bin/sh\nenv > {tmp_path / 'environment'}\n"
            "echo 'error: Batch job submission failed: no partition nope.' >&2; exit 1\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.mark.usefixtures("refusing_sbatch")
def test_jobs_that_slurm_refuses_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("optim: {}\n")
    logs = tmp_path / "logs"
    flags = ["--config-yml", tmp_path / "a.yml", "--submit", "--seeds", 0, 1, "--logdir", logs]
    with pytest.raises(UserError, match=r"sbatch did not take the job \(.*no partition nope\): correct"):
        submit(*configs_of(*flags))
    assert not logs.exists()
    logs.mkdir()
    (logs / "0123.pkl").write_bytes(b"of another command that is just sending its jobs")
    with pytest.raises(UserError, match="sbatch"):
        submit(*configs_of(*flags))
    assert [path.name for path in logs.iterdir()] == ["0123.pkl"]


@pytest.mark.usefixtures("refusing_sbatch")
def test_jobs_sent_from_a_job_have_no_memory_of_its_allocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun ends at once where a job has memory per node and per CPU."""
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    (tmp_path / "a.yml").write_text("optim: {}\n")
    flags = ["--config-yml", tmp_path / "a.yml", "--submit", "--slurm-mem", 1, "--logdir", tmp_path / "logs"]
    with pytest.raises(UserError, match="sbatch did not take the job"):
        submit(*configs_of(*flags))
    environment = (tmp_path / "environment").read_text()
    assert "SLURM_CONF=/etc/slurm.conf\n" in environment
    assert "SLURM_MEM_PER" not in environment


def test_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "runs"))

    (tmp_path / "a.yml").write_text("optim: {}\n")
    monkeypatch.setattr(launch, "build_configs", full)
    with pytest.raises(SystemExit) as end:
        launch.main(["--mode", "train", "--config-yml", str(tmp_path / "a.yml")])
    assert end.value.code == 2
    assert f"main.py: {tmp_path / 'runs'}: No space left on device; check" in capsys.readouterr().err


def test_own_checkpoint_comes_before_a_given_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "mode": "train",
        "timestamp_id": "r",
        "run_dir": str(tmp_path),
        "checkpoint": "other.pt",
        "world_size": 1,
    }
    compared = []
    monkeypatch.setattr(runner, "check_same_run", lambda config, own, ranks: compared.append((own, ranks)))
    assert prepare(config)["checkpoint"] == "other.pt"
    assert compared == []
    own = tmp_path / "checkpoints" / "r" / "checkpoint.pt"
    own.parent.mkdir(parents=True)
    own.touch()
    assert prepare(config)["checkpoint"] == str(own)
    assert config["checkpoint"] == "other.pt"
    assert compared == [(own, 1)]


def test_ranks_of_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho node3; echo node4\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    slurm = {
        "STEP_NUM_TASKS": 4,
        "PROCID": 3,
        "LOCALID": 1,
        "JOB_ID": 41234,
        "STEP_NODELIST": "node[3-4]",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    assert join_ranks(1) == 4
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["3", "1", "4", "node3", "21234"]


def test_interactive_shell_in_an_allocation_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """What salloc's shell has for `--nodes 2 --ntasks 4`; other ranks would never come."""
    for name, value in {"STEP_ID": 4294967290, "NTASKS": 4, "STEP_NUM_TASKS": 1, "PROCID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert (rank_count(1), rank_count(2)) == (1, 2)


def test_number_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local job within an allocation is not the allocation: a sweep counts its own workers by their numbers."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_"))]:
        monkeypatch.delenv(name)
    steps = [({}, f"pid{os.getpid()}"), ({"SLURM_JOB_ID": "8"}, "8"),
             ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}, "7_1"),
             ({"SUBMITIT_LOCAL_JOB_ID": "99"}, "99")]  # fmt: skip
    for more, expected in steps:
        for name, value in more.items():
            monkeypatch.setenv(name, value)
        assert job_id() == expected


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_sbatch_scripts_write_into_folders_that_exist(script: Path) -> None:
    """SLURM makes no folder for a job's output: such a job ends at once without a word."""
    assert not re.search(r"^#SBATCH --(output|error)=.*/", script.read_text(), re.MULTILINE)


def test_the_script_of_sweeps_passes_its_flags_on(tmp_path: Path) -> None:
    (tmp_path / "piwsl").write_text("#!/bin/sh\necho $*\n")
    (tmp_path / "piwsl").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    script = MAIN.parent / "scripts/sweep.sbatch"
    done = subprocess.run(
        ["bash", script, "a.yml", "--trials", "2"], env={"PATH": path}, capture_output=True, text=True
    )
    assert done.stdout == "sweep start a.yml --trials 2 --executor slurm\n"
    assert subprocess.run(["bash", script], env={"PATH": path}, capture_output=True).returncode != 0


def test_python_of_jobs_survives_an_early_signal() -> None:
    code = "import os, signal, sys; os.kill(os.getpid(), signal.SIGUSR2); print(sys.argv[1])"
    shell = f"{python_ignoring_usr2()} -c {shlex.quote(code)} alive"
    assert subprocess.run(shell, shell=True, capture_output=True, text=True).stdout == "alive\n"


def run_main(folder: Path, config: Path, run: str, ranks: int, **environment: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        MAIN,
        "--mode",
        "train",
        "--config-yml",
        config,
        "--cpu",
        "--num-gpus",
        str(ranks),
    ]
    path = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [*command, "--run-dir", folder, "--timestamp-id", run],
        stdout=subprocess.DEVNULL,
        stderr=(folder / f"{run}.err").open("ab"),
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
    )


def test_two_ranks_train_like_one_and_stop_together(tmp_path: Path) -> None:
    """Gradients of two ranks are those of one process; a signal to one rank stops both at the same step."""
    config = make_config(tmp_path, max_epochs=3, optimizer="SGD", lr_initial=0.01, scheduler="Null")
    config["trainer"] = "helpers_slow.SlowTrainer"
    two = write_config(tmp_path, config)
    config["optim"]["batch_size"] = 4
    one = write_config(tmp_path, config, "one.yml")

    interrupted = run_main(tmp_path, two, "interrupted", 2, PIWSL_TEST_HOLD="3")
    other = run_main(tmp_path, two, "two", 2)
    flags = ["--mode", "train", "--config-yml", str(one), "--cpu", "--run-dir", str(tmp_path)]
    launch.main([*flags, "--timestamp-id", "one"])
    held, end = tmp_path / "results" / "interrupted" / "held-3", time.monotonic() + 600
    while not held.exists():
        assert time.monotonic() < end, (tmp_path / "interrupted.err").read_text()[-2000:]
        assert interrupted.poll() is None, (tmp_path / "interrupted.err").read_text()[-2000:]
        time.sleep(0.1)
    os.kill(int(held.read_text()), signal.SIGUSR2)
    assert interrupted.wait(300) == launch.STOPPED, (tmp_path / "interrupted.err").read_text()[-2000:]
    assert load(tmp_path, "interrupted")["step"] == 3
    assert run_main(tmp_path, two, "interrupted", 2).wait() == 0
    assert other.wait() == 0

    states = {run: load(tmp_path, run)["state_dict"] for run in ("one", "two", "interrupted")}
    assert load(tmp_path, "two")["step"] == 6
    for name, value in states["two"].items():
        assert torch.equal(value, states["interrupted"][name])
        torch.testing.assert_close(value, states["one"][name], rtol=1e-4, atol=1e-6)


def test_usr2_to_the_process_that_waits_for_its_ranks_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's launcher passes TERM on to the ranks; USR2 alone would end it, and the ranks without a checkpoint."""

    def elastic_launch(*_: Any) -> Any:
        def wait(_: Any) -> Any:
            with handled(torch_launcher, signal.SIGTERM):
                os.kill(os.getpid(), signal.SIGUSR2)
                time.sleep(5)

        return wait

    def torch_launcher(number: int, frame: Any) -> None:
        raise launch.SignalException("passed on", signal.SIGTERM)

    monkeypatch.setattr(launch, "elastic_launch", elastic_launch)
    assert launch.run_here({"optim": {}, "timestamp_id": "name", "identifier": ""}, 2) == "name"


def load(folder: Path, run: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / run / "checkpoint.pt", weights_only=False)
