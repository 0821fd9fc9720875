"""Checkpoints: a resumed run ends exactly as one that was never stopped; files are readable at any moment."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import pickle
import random
import resource
import signal
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_cluster import make_config, runnable

import fairchem_piwsl  # noqa: F401  before fairchem
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training import checkpoint_files
from fairchem_piwsl.training.checkpoint_files import read_checkpoint, read_torch_file, save_atomically
from fairchem_piwsl.training.checkpoints import Preempted, ResumableMixin
from fairchem_piwsl.training.random_states import random_state, set_random_state


def make_trainer(stop_after: tuple[int, ...] = ()) -> type:
    from fairchem.core.common.registry import registry
    from fairchem.core.trainers import OCPTrainer

    class Noisy(ResumableMixin, OCPTrainer):
        """Draws random numbers in training, as dropout does, and asks for a stop in the middle of a step."""

        def _forward(self, batch: Any) -> Any:
            out = super()._forward(batch)
            if self.model.training:
                out["energy"] = out["energy"] * (1 + 0.1 * torch.rand(()))
                if self.step in stop_after:
                    self.request_stop()
            return out

    registry.register_trainer("noisy")(Noisy)
    return Noisy


def train(config: dict[str, Any]) -> Any:
    from fairchem.core.common import distutils
    from fairchem.core.common.utils import new_trainer_context

    distutils.setup_env_local()
    try:
        with new_trainer_context(config=config) as context:
            context.task.setup(context.trainer)
            context.task.run()
            return context.trainer
    finally:
        distutils.cleanup()


def final(run_dir: Path, name: str = "checkpoint.pt") -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "run" / name, weights_only=False)


def assert_same(left: Any, right: Any, path: str = "") -> None:
    """Bit for bit, through nested dicts and lists."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    elif isinstance(left, np.ndarray):
        assert np.array_equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{path}[{index}]")
    else:
        assert left == right, path


SCHEDULERS = {
    "cosine": {},
    "plateau": {"scheduler": "ReduceLROnPlateau", "factor": 0.5, "patience": 0, "threshold": 0.5},
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_stopped_three_times_ends_as_uninterrupted(tmp_path: Path, scheduler: str) -> None:
    optim = {"eval_every": 3, **SCHEDULERS[scheduler]}
    config = {**make_config(tmp_path, **optim), "trainer": "noisy"}
    make_trainer()
    train(runnable(config, tmp_path / "whole"))
    # 3 has a validation, 8 is the last step of an epoch, 9 is both the first of an epoch and a validation
    for stop in (3, 8, 9):
        make_trainer((stop,))
        with pytest.raises(Preempted):
            train(runnable(config, tmp_path / "parts"))
        assert final(tmp_path / "parts")["step"] == stop
    make_trainer()
    train(runnable(config, tmp_path / "parts"))
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    # max_epochs * batches = 16 steps; the end is written though the last validation was at step 15
    assert whole["step"] == parts["step"] == 16
    for key in ("state_dict", "optimizer", "scheduler", "ema", "best_val_metric", "piwsl_resume"):
        assert_same(whole[key], parts[key], key)
    assert_same(final(tmp_path / "whole", "best_checkpoint.pt")["state_dict"],
                final(tmp_path / "parts", "best_checkpoint.pt")["state_dict"])  # fmt: skip


def test_killed_run_resumes_from_its_periodic_checkpoint(tmp_path: Path) -> None:
    config = {**make_config(tmp_path, checkpoint_every=2, eval_every=4), "trainer": "noisy"}
    make_trainer()
    train(runnable(config, tmp_path / "whole"))

    from fairchem.core.common.registry import registry

    base = make_trainer()

    class Dies(base):  # type: ignore[misc, valid-type]
        def _forward(self, batch: Any) -> Any:
            if self.model.training and self.step == 8:
                raise KeyboardInterrupt
            return super()._forward(batch)

    registry.register_trainer("noisy")(Dies)
    with pytest.raises(KeyboardInterrupt):
        train(runnable(config, tmp_path / "parts"))
    assert final(tmp_path / "parts")["step"] == 6
    make_trainer()
    train(runnable(config, tmp_path / "parts"))
    assert_same(final(tmp_path / "whole")["state_dict"], final(tmp_path / "parts")["state_dict"])


def test_same_training_as_upstream(tmp_path: Path) -> None:
    """The mixin draws no random numbers and changes no step: weights equal those of upstream's trainer."""
    from fairchem.core.common.registry import registry
    from fairchem.core.trainers import OCPTrainer

    class Noisy(OCPTrainer):
        def _forward(self, batch: Any) -> Any:
            out = super()._forward(batch)
            if self.model.training:
                out["energy"] = out["energy"] * (1 + 0.1 * torch.rand(()))
            return out

    registry.register_trainer("noisy")(Noisy)
    config = {**make_config(tmp_path), "trainer": "noisy"}
    upstream = train(runnable(config, tmp_path / "upstream"))
    make_trainer()
    own = train(runnable(config, tmp_path / "own"))
    assert_same(upstream.model.state_dict(), own.model.state_dict())


def write_on_and_on(path: Path, written: Any) -> None:
    for i in itertools.count(1):
        save_atomically({"i": i, "x": torch.full((300_000,), float(i))}, path)
        written.set()


def test_kill_while_writing_leaves_a_readable_checkpoint(tmp_path: Path) -> None:
    path, context = tmp_path / "checkpoint.pt", multiprocessing.get_context("fork")
    for delay in (0.001, 0.004, 0.009):
        written = context.Event()
        writer = context.Process(target=write_on_and_on, args=(path, written))
        writer.start()
        assert written.wait(600)
        time.sleep(delay)
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        state = read_torch_file(path)
        assert (state["x"] == state["i"]).all()


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_atomically({"a": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        save_atomically({"a": lambda: None}, path)
    assert read_torch_file(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_atomically({"a": 1}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"checkpoint\.pt cannot be written .*--run-dir"):
            save_atomically({"a": torch.zeros(10_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_torch_file(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_unreadable_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(UserError, match=r"checkpoint\.pt does not exist"):
        read_checkpoint(path)
    path.write_bytes(b"half")
    with pytest.raises(UserError, match=r"checkpoint\.pt cannot be read"):
        read_checkpoint(path)


# ------------------------------------------------------------------ files that could run code


class Malicious:
    """A pickle that makes a file when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Malicious()))


def old_format(path: Path) -> None:
    torch.save({"state_dict": Malicious()}, path, _use_new_zipfile_serialization=False)


def old_tar(path: Path) -> None:
    """The format before 0.1.10, which torch before 2.6 loads with Python's pickle whatever it is told."""
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Malicious())
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def zipped(path: Path) -> None:
    torch.save({"state_dict": Malicious()}, path)


@pytest.mark.parametrize("write", [plain_pickle, old_format, old_tar, zipped])
def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        read_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "executed").exists()


def test_trust_is_explicit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"state_dict": torch.nn.Linear(1, 1)}, path)
    with pytest.raises(UserError, match=r"Linear.*PIWSL_TRUST_CHECKPOINT=1.*--trust-checkpoint"):
        read_torch_file(path)
    monkeypatch.setenv(checkpoint_files.TRUST, "1")
    assert isinstance(read_torch_file(path)["state_dict"], torch.nn.Linear)


def test_values_of_numpy_need_no_trust(tmp_path: Path) -> None:
    values = {"array": np.arange(3.0), "metric": np.float64(1.5), "flag": np.bool_(True)}
    torch.save(values, tmp_path / "checkpoint.pt")
    read = read_torch_file(tmp_path / "checkpoint.pt")
    assert np.array_equal(read["array"], values["array"])
    assert (read["metric"], read["flag"]) == (1.5, True)


def test_random_states_are_plain(tmp_path: Path) -> None:
    """torch's strict loading takes them as they are, so that fairchem's own loading does."""
    torch.save(random_state(), tmp_path / "state.pt")
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        state = torch.load(tmp_path / "state.pt", weights_only=True)
    finally:
        torch.serialization.add_safe_globals(before)
    expected = np.random.rand(3), random.random()
    set_random_state(state)
    assert np.array_equal(np.random.rand(3), expected[0])
    assert random.random() == expected[1]
