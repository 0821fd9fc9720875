"""Sweeps from start to best config, on this machine."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from helpers_cluster import make_config, write_lmdb
from helpers_sweep import read_log, sweep_content, write_sweep
from typer.testing import CliRunner

from fairchem_piwsl.cli import app
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.sweeps import launcher
from fairchem_piwsl.sweeps.results import best_config, open_sweep, summary
from fairchem_piwsl.sweeps.study import REASON, counts, slots
from fairchem_piwsl.sweeps.sweep_report import figures, write_report
from fairchem_piwsl.sweeps.trial_training import failure_reason
from fairchem_piwsl.sweeps.worker_jobs import visible_gpus


@pytest.fixture(autouse=True)
def _importable_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def start(folder: Path, content: dict[str, Any], executor: str = "debug", **more: Any) -> Path:
    path = write_sweep(folder / "in", content, more.pop("base", None))
    return launcher.start(path, folder / "out", executor, **more)


def test_finds_the_minimum_and_writes_it(tmp_path: Path) -> None:
    folder = start(tmp_path, sweep_content(trials=15, sampler={"name": "tpe", "n_startup_trials": 5}))
    sweep, study = open_sweep(folder)
    state = summary(sweep, study, folder)
    assert state["complete"] == 15
    assert state["workers"] == []
    assert state["base"]["params"] == {"optim.lr_initial": 0.1}
    found = best_config(folder, tmp_path / "best.yml")
    assert found["params"]["optim.lr_initial"] == pytest.approx(0.3, abs=0.1)
    best = yaml.safe_load((tmp_path / "best.yml").read_text())
    assert best["optim"]["lr_initial"] == found["params"]["optim.lr_initial"]
    assert best["optim"]["optimizer"] == "AdamW"
    with pytest.raises(UserError, match=r"best\.yml exists already"):
        best_config(folder, tmp_path / "best.yml")
    page = write_report(folder).read_text()
    assert page.count("data:image/png;base64") == 3
    assert "lr_initial" in page
    launcher.resume(folder, trials=17)  # with more trials
    assert counts(open_sweep(folder)[1])["complete"] == 17


def test_pareto_front(tmp_path: Path) -> None:
    folder = start(tmp_path, sweep_content(objective={"pareto": ["error", "other"]}, trials=10))
    front = summary(*open_sweep(folder), folder)["best"]
    assert len(front) > 1
    with pytest.raises(UserError, match="choose one with --trial"):
        best_config(folder, tmp_path / "best.yml")
    assert best_config(folder, tmp_path / "best.yml", trial=front[0]["trial"])
    foreign = optuna.create_trial(values=[0.0, 0.0], params={}, distributions={})
    open_sweep(folder)[1].add_trial(foreign)  # a result of one's own, numbered as a slot of a longer sweep is
    assert "(trial optuna-10)" in write_report(folder).read_text()


def test_pruning_sees_intermediate_values(tmp_path: Path) -> None:
    pruner = {"name": "threshold", "upper": 1.03, "n_warmup_steps": 0}
    folder = start(tmp_path, sweep_content(pruner=pruner, trials=8))
    sweep, study = open_sweep(folder)
    for trial in study.trials:
        worst = (trial.params["optim.lr_initial"] - 0.3) ** 2 + 1
        assert trial.state.name == ("PRUNED" if worst > 1.03 else "COMPLETE")
    assert counts(study)["complete"] > 0
    assert study.trials[0].state.name == "PRUNED"
    assert summary(sweep, study, folder)["base"] is None  # its last validation is no result


def test_grid_visits_every_point(tmp_path: Path) -> None:
    space = {"optim.lr_initial": {"type": "categorical", "choices": [0.1, 0.2, 0.3]},
             "optim.optimizer": {"type": "categorical", "choices": ["x[a]", "y[a]"]}}  # fmt: skip
    folder = start(tmp_path, sweep_content(space=space, sampler="grid", trials=6))
    points = [tuple(trial.params.values()) for trial in open_sweep(folder)[1].trials]
    assert len(set(points)) == 6
    assert "[a]" in CliRunner().invoke(app, ["sweep", "status", str(folder)]).output


def test_budget_of_steps(tmp_path: Path) -> None:
    folder = start(tmp_path, sweep_content(trials=10, budget={"steps": 7}))
    assert counts(open_sweep(folder)[1]) == {
        "running": 0,
        "complete": 3,
        "pruned": 0,
        "fail": 0,
        "waiting": 7,
    }


def test_failures_and_a_killed_worker(tmp_path: Path) -> None:
    """Three processes; one trial raises, one is out of memory, one diverges, one kills its worker."""
    folder = start(tmp_path, sweep_content("chaos", trials=9, workers=3), "local")
    study = open_sweep(folder)[1]
    latest = slots(study)
    assert counts(study) == {"running": 0, "complete": 6, "pruned": 0, "fail": 3, "waiting": 0}
    assert latest[2].user_attrs[REASON] == "ValueError: no such thing"
    assert latest[4].user_attrs[REASON].startswith("out of memory: CUDA")
    assert latest[6].user_attrs[REASON] == "diverged: error is nan after step 3"
    assert latest[1].user_attrs["retry_of"] == 1
    ends = Counter(line.split()[0] for line in read_log(folder / "runs") if " end " in line)
    assert ends == {f"{slot:04d}": 1 for slot in (0, 1, 3, 5, 7, 8)}


def test_a_worker_that_is_told_to_end_hands_its_trial_back(tmp_path: Path) -> None:
    folder = start(tmp_path, sweep_content("told_to_end", trials=1, workers=1), "local")
    first, second = open_sweep(folder)[1].trials
    assert (first.user_attrs[REASON], first.user_attrs["steps"]) == ("preempted", 2)
    assert second.state.name == "COMPLETE"
    assert [line.split()[1] for line in read_log(folder / "runs")] == ["begin", "begin", "end"]


def test_ctrl_c_stops_and_resume_finishes(tmp_path: Path) -> None:
    path = write_sweep(tmp_path / "in", sweep_content("slow", trials=6, workers=2))
    command = [
        sys.executable,
        "-m",
        "fairchem_piwsl.cli",
        "sweep",
        "start",
        str(path),
        "--folder",
        str(tmp_path / "out"),
    ]
    launched = subprocess.Popen(
        command,
        start_new_session=True,
        # a shell's background jobs, such as these tests may be, ignore Ctrl-C and hand that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    log = tmp_path / "out" / "runs"
    end = time.monotonic() + 300
    while len(read_log(log)) < 4 and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(launched.pid, signal.SIGINT)  # as a terminal does: launcher and workers alike
    assert launched.wait(timeout=120) != 0
    study = open_sweep(tmp_path / "out")[1]
    number = counts(study)
    assert number["running"] == 0
    assert number["waiting"] > 0
    assert number["fail"] == 0
    launcher.resume(tmp_path / "out", workers=1)
    assert counts(open_sweep(tmp_path / "out")[1])["complete"] == 6


def test_second_start_is_refused(tmp_path: Path) -> None:
    start(tmp_path, sweep_content(trials=1))
    with pytest.raises(UserError, match="sweep resume"):
        start(tmp_path, sweep_content(trials=1))
    with pytest.raises(UserError, match="another search space"):
        start(tmp_path, sweep_content(space={"optim.lr_initial": {"type": "float", "low": 0, "high": 9}}))


def test_mistakes_come_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="sbatch"):
        start(tmp_path, sweep_content(), "slurm")
    with pytest.raises(UserError, match="--executor sge is not known"):
        start(tmp_path, sweep_content(), "sge")
    with pytest.raises(UserError, match="cannot be reached"):
        start(tmp_path, sweep_content(storage="sqlite:////nowhere/x.db"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="holds no sweep"):
        launcher.resume(tmp_path)


@pytest.mark.parametrize("change", [{"trials": -1}, {"workers": 0}, {"trials": 1}, {"executor": "sge"}])
def test_a_refused_resume_changes_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = start(tmp_path, sweep_content(trials=2))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError):
        launcher.resume(folder, **change)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert counts(open_sweep(folder)[1])["complete"] == 2


@pytest.mark.parametrize("storage", ["journal", "sqlite:///{}/study.db"])
def test_a_failing_sbatch_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    for name in ("sbatch", "srun", "squeue", "scancel"):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text("#!/bin/sh\necho 'invalid partition specified: gpu' >&2; exit 1\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    content = sweep_content(trials=2, job={"slurm_partition": "gpu"}, storage=storage.format(tmp_path))
    for workers in (1, 2):
        with pytest.raises(UserError, match="invalid partition specified: gpu"):
            start(tmp_path, content, "slurm", workers=workers)
        assert not (tmp_path / "out").exists()
    assert counts(open_sweep(start(tmp_path, content))[1])["complete"] == 2
    # a resume that fails leaves the sweep as it was, but for the slots it was given
    with pytest.raises(UserError, match="invalid partition"):
        launcher.resume(tmp_path / "out", "slurm", trials=4)
    launcher.resume(tmp_path / "out", "debug")
    assert counts(open_sweep(tmp_path / "out")[1])["complete"] == 4


def test_all_trials_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairchem_piwsl.cli import main

    path = write_sweep(tmp_path / "in", sweep_content("fails", trials=2))
    arguments = ["sweep", "start", str(path), "--folder", str(tmp_path / "out"), "--executor", "debug"]
    monkeypatch.setattr(sys, "argv", ["piwsl", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert f"piwsl: all 2 trials of {tmp_path / 'out'} that ran have failed" in lines[-1]
    assert "ValueError: no such model" in lines[-1]
    assert counts(open_sweep(tmp_path / "out")[1])["fail"] == 2


def test_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the base config does not fit."""
    base = {"optim": {"lr_initial": 0.1}, "notes": "x" * 100_000}
    path = write_sweep(tmp_path / "in", sweep_content(), base)
    command = ["sweep", "start", str(path), "--folder", str(tmp_path / "new" / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "fairchem_piwsl.cli", *command],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"^piwsl: .*base\.yml: File too large; .*free space", done.stderr, re.M)
    assert not (tmp_path / "new").exists()


def test_figures_of_near_values_have_no_offset(tmp_path: Path) -> None:
    """51234.5 + 0.001 x and the like cannot be read; equal values and those over decades are drawn as well."""
    for values in ([51234.5, 51234.501, 51234.502], [0.25] * 3, [1e-5, 1.0, 30.0], [0.1, 0.2, 0.3]):
        study = optuna.create_study()
        for slot, value in enumerate(values):
            trial = study.ask({"x": optuna.distributions.FloatDistribution(0.01, 0.010001)})
            trial.set_user_attr("slot", slot)
            study.tell(trial, value)
        for figure in figures(study, ["error"]).values():
            figure.savefig(tmp_path / "figure.png")
            for axis in (which for axes in figure.axes for which in (axes.xaxis, axes.yaxis)):
                assert "+" not in axis.get_offset_text().get_text()
                labels = [label.get_text() for label in axis.get_ticklabels() if label.get_text()]
                assert len(set(labels)) == len(labels)


def test_gpus_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit takes nothing else, and number 0 may be another one than that of the name."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for listed, expected in (("", [0, 1]), ("3, 5", [3, 5])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        assert visible_gpus() == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937-d72c-4106,GPU-1")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=GPU-8932f937-d72c-4106,GPU-1 names"):
        start(tmp_path, sweep_content(cpu=False), "local")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory: MemoryError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: DefaultCPU"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_reasons(error: Exception, reason: str) -> None:
    assert failure_reason(error).startswith(reason)


def training_sweep(folder: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    base = make_config(folder, max_epochs=2, piwsl={"c_pitc": 0.1})
    base["trainer"] = "fairchem_piwsl.trainer.PIWSLForcesTrainer"
    # LMDBs, which a process can open only once at a time
    base["dataset"] = {
        split: {"format": "lmdb", "src": str(write_lmdb(folder, folder / f"{split}.db"))}
        for split in ("train", "val")
    }
    content = sweep_content(objective={"sum": {"energy_mae": 1, "forces_rmse": 10}}, trials=3, **changes)
    content.pop("function")
    content["space"] = {
        "optim.lr_initial": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
        "optim.piwsl.eps_max": {"type": "float", "low": 0.01, "high": 0.1},
    }
    return content, base


def test_trainings_and_the_best_config_in_main(tmp_path: Path) -> None:
    content, base = training_sweep(tmp_path, set={"optim.eval_every": 4})
    folder = start(tmp_path, content, base=base)
    study = open_sweep(folder)[1]
    assert counts(study)["complete"] == 3
    best = study.best_trial
    assert sorted(best.intermediate_values) == [4, 8]
    assert best.value == min(best.intermediate_values.values())
    assert best.user_attrs["steps"] == 8
    runs = folder / "runs" / "checkpoints"
    assert sorted(p.name for p in runs.iterdir()) == ["toy-0000", "toy-0001", "toy-0002"]
    best_config(folder, tmp_path / "best.yml")
    main = Path(__file__).parents[2] / "main.py"
    command = [sys.executable, main, "--mode", "train", "--config-yml", tmp_path / "best.yml", "--cpu"]
    subprocess.run(
        [*command, "--run-dir", tmp_path / "again", "--timestamp-id", "x"], check=True, capture_output=True
    )
    history = [json.loads(line) for line in
               (folder / "runs" / "validations" / f"toy-{best.number:04d}.jsonl").read_text().splitlines()]  # fmt: skip
    import torch

    one = torch.load(tmp_path / "again" / "checkpoints" / "x" / "checkpoint.pt", weights_only=False)
    two = torch.load(runs / f"toy-{best.number:04d}" / "checkpoint.pt", weights_only=False)
    assert history[-1]["step"] == one["step"] == 8
    assert all(torch.equal(one["state_dict"][k], two["state_dict"][k]) for k in one["state_dict"])


def test_wandb_offline_with_group_and_trial_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    content, base = training_sweep(tmp_path)
    base["logger"] = {"name": "wandb", "project": "test"}
    folder = start(tmp_path, content, base=base, trials=1)
    assert counts(open_sweep(folder)[1])["complete"] == 1
    (run,) = (folder / "runs" / "logs" / "wandb" / "toy-0000" / "wandb").glob("offline-run-*")
    raw = next(run.glob("*.wandb")).read_bytes()
    assert b"toy-0000" in raw  # name and number of the trial
    assert b"\x12\x03toy" in raw or b"toy" in raw.replace(b"toy-0000", b"")  # the group


def test_help_is_instant() -> None:
    started = time.monotonic()
    code = "import sys; from fairchem_piwsl import cli; assert 'torch' not in sys.modules and 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.monotonic() - started < 60
