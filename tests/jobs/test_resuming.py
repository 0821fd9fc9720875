"""Runs start anew, go on when they are asked to, and stay the same while they do."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from fairchem.core import _cli
from fairchem.core.common.registry import registry
from helpers_cluster import make_config, runnable, write_config

import fairchem_piwsl.jobs.launch as launch
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.jobs.resuming import check_start, differences, is_finished, own_checkpoint
from fairchem_piwsl.jobs.runner import Runner
from fairchem_piwsl.trainer import PIWSLForcesTrainer
from fairchem_piwsl.training.checkpoint_files import read_checkpoint
from fairchem_piwsl.upstream import run_start

MAIN = Path(__file__).parents[2] / "main.py"
OWN = "fairchem_piwsl.trainer.PIWSLForcesTrainer"


def checkpoints(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("checkpoints/*/checkpoint.pt"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The config of a run of 4 steps that has ended, under the name `run`."""
    folder = tmp_path_factory.mktemp("finished")
    config = make_config(folder, max_epochs=1, piwsl={"c_pitc": 1.0})
    config["trainer"] = OWN
    config = runnable(config, folder)
    Runner()(config)
    return config


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The config with other values at dotted keys, written with __ for the dot."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        block = config
        *above, last = key.split("__")
        for name in above:
            block = block[name]
        block[last] = value
    return config


def from_checkpoint(finished: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A new run from the checkpoint of the finished one."""
    return changed(finished, timestamp_id="new", checkpoint=str(own_checkpoint(finished)), **changes)


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("trainer", ["ocp", OWN])
def test_two_runs_of_one_folder_are_two_runs(tmp_path: Path, trainer: str) -> None:
    """Both start within the same second, the second with another seed: each trains from its own weights."""
    config = {**make_config(tmp_path, max_epochs=1), "trainer": trainer}
    for seed in (0, 1):
        Runner()(runnable(config, tmp_path / "both", None, seed=seed))
    Runner()(runnable(config, tmp_path / "alone", None, seed=1))
    first, second = (torch.load(path, weights_only=True) for path in checkpoints(tmp_path / "both"))
    (alone,) = (torch.load(path, weights_only=True) for path in checkpoints(tmp_path / "alone"))
    assert first["step"] == second["step"] == 4
    names = list(second["state_dict"])
    assert all(torch.equal(second["state_dict"][name], alone["state_dict"][name]) for name in names)
    assert any(not torch.equal(first["state_dict"][name], second["state_dict"][name]) for name in names)


def test_a_name_that_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should two clocks agree to the microsecond, the second run does not start."""
    monkeypatch.setattr(run_start, "run_name", lambda suffix=None: "now")
    config = {**make_config(tmp_path, max_epochs=1), "trainer": OWN}
    Runner()(runnable(config, tmp_path, None))
    before = (tmp_path / "checkpoints" / "now" / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match=r"has a run now already"):
        Runner()(runnable(config, tmp_path, None, seed=1))
    assert (tmp_path / "checkpoints" / "now" / "checkpoint.pt").read_bytes() == before


def test_names_hold_time_and_identifier() -> None:
    first, second = run_start.run_name("x"), run_start.run_name("x")
    assert first != second
    assert first.endswith("-x")
    assert len(first) == len("2026-01-01-00-00-00.000000-x")


def test_fairchems_own_command_line_sends_our_jobs() -> None:
    assert _cli.Runner is Runner


# ------------------------------------------------------------------ the same run


def test_the_same_settings_are_the_same_run(finished: dict[str, Any]) -> None:
    assert differences(read_checkpoint(str(own_checkpoint(finished))), finished, 1) == []
    check_start(finished, 1)


def test_what_may_change(finished: dict[str, Any]) -> None:
    longer = changed(
        finished, optim__max_epochs=3, optim__eval_every=7, optim__checkpoint_every=2, optim__num_workers=1,
        optim__eval_batch_size=1, logger="wandb", print_every=1, identifier="other",
    )  # fmt: skip
    check_start(longer, 1)
    relative = os.path.relpath(finished["dataset"]["train"]["src"])
    check_start(changed(finished, dataset__train__src=relative), 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"optim__lr_initial": 0.5}, "optim.lr_initial was 0.01 and is 0.5"),
        ({"optim__piwsl": {}}, "optim.piwsl.c_pitc was 1.0 and is not set"),
        ({"optim__finetune_from": "a.pt"}, "optim.finetune_from was not set and is 'a.pt'"),
        ({"model__cutoff": 5.0}, "model.cutoff was 6.0 and is 5.0"),
        ({"dataset__train__src": "/elsewhere/train.db"}, "dataset.train.src was "),
        ({"dataset__val__src": "/elsewhere/val.db"}, "dataset.val.src was "),
        ({"amp": True}, "amp was False and is True"),
        ({"loss_functions": [{"energy": {"fn": "mae", "coefficient": 2}}]},
         "loss_functions.0.energy.coefficient was 1 and is 2"),
    ],
    ids=["seed", "optim", "piwsl", "weights", "model", "data", "validation", "amp", "loss"],
)  # fmt: skip
def test_other_settings_under_the_same_name(
    finished: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    config = changed(finished, **changes)
    for refuse in (lambda: check_start(config, 1), lambda: Runner()(config)):
        with pytest.raises(UserError, match="--timestamp-id run names a run with other settings") as caught:
            refuse()
        assert words in str(caught.value)
        assert "--checkpoint" in str(caught.value)


def test_another_number_of_ranks(finished: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="number of ranks was 1 and is 2"):
        check_start(finished, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 3}, "seed was 0 and is 3"),
        ({"loss_functions": [{"energy": {"fn": "mae", "coefficient": 2}}]},
         "loss_functions.0.energy.coefficient was 1 and is 2"),
        ({"optim__lr_milestones": [200]}, "optim.lr_milestones.0 was not set and is 200"),
        ({"optim__T_max": None}, "optim.T_max was 16 and is not set"),
        ({"dataset__train__transforms": {"normalizer": {"file": "moved.npz"}}},
         "dataset.train.transforms.normalizer.file was not set and is 'moved.npz'"),
    ],
    ids=["seed", "loss", "default-schedule", "to-the-end", "moved"],
)  # fmt: skip
def test_a_given_checkpoint_says_what_differs(
    finished: dict[str, Any], caplog: Any, changes: dict[str, Any], words: str
) -> None:
    check_start(from_checkpoint(finished, **changes), 1)
    assert f"with other settings: {words}" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim__lr_initial": 0.5}, "optim.lr_initial was 0.01 and is 0.5"),
        ({"optim__weight_decay": 0.1}, "optim.weight_decay was not set and is 0.1"),
        ({"optim__optimizer": "SGD"}, "optim.optimizer was 'AdamW' and is 'SGD'"),
        ({"optim__optimizer_params": {"betas": [0.8, 0.9]}}, "optim.optimizer_params.betas.0 was not set and is 0.8"),
        ({"optim__scheduler": "Null"}, "optim.scheduler was 'CosineAnnealingLR' and is 'Null'"),
        ({"optim__T_max": 32}, "optim.T_max was 16 and is 32"),
        ({"optim__ema_decay": 0.5}, "optim.ema_decay was 0.9 and is 0.5"),
        ({"dataset__train__transforms": {"normalizer": {"forces": {"mean": 0.0, "stdev": 1.0}}}},
         "dataset.train.transforms.normalizer.forces.mean was not set and is 0.0"),
    ],
    ids=["rate", "decay", "optimizer", "optimizer-params", "schedule", "T_max", "average", "normaliser"],
)  # fmt: skip
def test_what_a_checkpoint_brings_along_stays(
    finished: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    """Fairchem loads it over what the config says, which would be without effect."""
    with pytest.raises(UserError, match="--checkpoint goes on from ") as caught:
        check_start(from_checkpoint(finished, seed=3, **changes), 1)
    assert words in str(caught.value)
    assert "seed" not in str(caught.value)
    assert "optim.finetune_from" in str(caught.value)


def test_old_layouts_are_compared_after_translation(tmp_path: Path) -> None:
    config = make_config(tmp_path, max_epochs=1)
    reader = {"format": "ase_db", "a2g_args": {"r_energy": True, "r_forces": True}}
    sources = [{"src": part["src"], **reader} for part in config["dataset"].values()]
    old = {key: config[key] for key in ("trainer", "logger", "model", "optim")}
    old |= {"dataset": sources, "task": {"dataset": "ase_db", "primary_metric": "forces_mae"}}
    old = runnable(old, tmp_path)
    Runner()(old)
    check_start(old, 1)
    with pytest.raises(UserError, match="other settings"):
        check_start(changed(old, optim__force_coefficient=3), 1)


def test_finished_runs_are_known(finished: dict[str, Any]) -> None:
    assert is_finished(finished)
    assert not is_finished(changed(finished, optim__max_epochs=2))
    assert not is_finished(changed(finished, timestamp_id="other"))


# ------------------------------------------------------------------ several seeds, stopped


def command(folder: Path, config: Path, *more: str) -> list[str]:
    flags = ["--mode", "train", "--config-yml", str(config), "--run-dir", str(folder), "--cpu", *more]
    return [sys.executable, str(MAIN), *flags]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def start_and_hold(folder: Path, arguments: list[str], held: Path) -> subprocess.Popen[str]:
    """A command that waits in a step, until a signal asks it to stop."""
    process = subprocess.Popen(
        arguments, env=environment(PIWSL_TEST_HOLD="2"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    end = time.monotonic() + 600
    while not held.exists():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < end
        time.sleep(0.1)
    return process


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_seeds_and_the_rest_is_trained_later(tmp_path: Path, how: signal.Signals) -> None:
    config = make_config(tmp_path, max_epochs=1, checkpoint_every=1)
    config["trainer"] = "helpers_slow.SlowTrainer"
    path = write_config(tmp_path, config)
    arguments = command(tmp_path, path, "--seeds", "0", "1", "2", "--timestamp-id", "s")
    # seed 0 has ended, seed 1 is stopped
    launch.main(command(tmp_path, path, "--seed", "0", "--timestamp-id", "s-seed0")[2:])
    first = tmp_path / "checkpoints" / "s-seed0" / "checkpoint.pt"
    before = first.stat().st_mtime_ns
    stopped = start_and_hold(tmp_path, arguments, tmp_path / "results" / "s-seed1" / "held-2")
    stopped.send_signal(how)
    errors = stopped.communicate()[1]
    if how == signal.SIGTERM:
        assert stopped.returncode == launch.STOPPED, errors[-2000:]
        assert "run the same command with --timestamp-id s." in errors.splitlines()[-1]
        assert (
            torch.load(tmp_path / "checkpoints" / "s-seed1" / "checkpoint.pt", weights_only=True)["step"] == 2
        )
    assert not (tmp_path / "checkpoints" / "s-seed2").exists()

    launch.main(arguments[2:])
    assert [torch.load(p, weights_only=True)["step"] for p in checkpoints(tmp_path)] == [4, 4, 4]
    assert first.stat().st_mtime_ns == before
    steps = (tmp_path / "results" / "s-seed1" / "steps.txt").read_text().split("\n")
    assert [int(line.split()[0]) for line in steps if line] == (
        [1, 2, 3, 4] if how == signal.SIGTERM else [1, 2, 2, 3, 4]
    )


def test_a_signal_after_the_last_step_ends_the_other_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(PIWSLForcesTrainer):
        """Is signalled while the last checkpoint of a run is written."""

        def save(self, *args: Any, training_state: bool = True, **more: Any) -> Any:
            if training_state and not self._in_loop:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().save(*args, training_state=training_state, **more)

    registry.register_trainer("late")(Late)
    config = write_config(tmp_path, {**make_config(tmp_path, max_epochs=1), "trainer": "late"})
    words = command(tmp_path, config, "--timestamp-id", "late", "--seeds", "0", "1")[2:]
    for _ in range(2):  # seed 0, then seed 1
        last = bool(checkpoints(tmp_path))
        with nullcontext() if last else pytest.raises(SystemExit, match="143"):
            launch.main(words)
    assert [torch.load(path, weights_only=True)["step"] for path in checkpoints(tmp_path)] == [4, 4]


@pytest.mark.parametrize("more", [[], ["--submit"]])
def test_all_seeds_have_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, more: list[str]
) -> None:
    """The same command once more trains nothing, sends nothing and ends well."""
    monkeypatch.setattr(launch, "is_finished", lambda config: True)
    monkeypatch.setattr(launch, "run_here", lambda *_: pytest.fail("a finished run was started"))
    path = write_config(tmp_path, {**make_config(tmp_path, max_epochs=1), "trainer": OWN})
    flags = ["--seeds", "0", "1", "--cpu", "--logdir", str(tmp_path / "logs"), *more]
    with caplog.at_level("INFO"):
        launch.main(["--mode", "train", "--config-yml", str(path), *flags])
    assert "2 of 2 runs have finished already" in caplog.text
