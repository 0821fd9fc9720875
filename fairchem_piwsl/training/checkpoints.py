"""Checkpoints that survive a kill at any moment and continue bit for bit.

Upstream writes `checkpoint.pt` in place and in the middle of a step: before the validation and the
scheduler step that belong to it, and without the state of the random generators. A run resumed from such a
file skips that validation, lags the learning rate by one step and draws other random numbers.
`ResumableMixin` moves the write to the boundary between two steps, adds the random states and renames a
finished temporary file into place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from fairchem.core.common import distutils

from fairchem_piwsl.training.checkpoint_files import read_checkpoint
from fairchem_piwsl.training.data_checks import close
from fairchem_piwsl.training.random_states import random_state, set_random_state
from fairchem_piwsl.upstream.checkpoint_access import saving_whole_files

if TYPE_CHECKING:
    from fairchem.core.trainers import OCPTrainer as _Trainer
else:
    _Trainer = object


CONTINUE, SAVE, STOP = range(3)


class Preempted(BaseException):
    """Training stopped between two steps because `request_stop` was called; `checkpoint.pt` holds that state.

    Derived from BaseException so that a generic `except Exception` does not take it for a failure.
    """


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete temporary files that killed writers left in a checkpoint folder."""
    for leftover in Path(folder).glob(".*.pt.*.tmp"):
        leftover.unlink(missing_ok=True)


class StepBoundary:
    """A data loader that calls `boundary()` before each batch, when the previous step is over in all parts."""

    def __init__(self, loader: Any, boundary: Callable[[], None]) -> None:
        self.loader = loader
        self.boundary = boundary

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not yet set: unpickling or copying
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        for _ in range(len(self.loader)):
            self.boundary()
            try:
                batch = next(batches)
            except StopIteration:  # fewer batches are left where an epoch is continued in its middle
                return
            yield batch


class ResumableMixin(_Trainer):
    """Put before `OCPTrainer` in the bases of a trainer: `class T(ResumableMixin, OCPTrainer)`.

    * periodic checkpoints are written at the end of their step, atomically, with the random states;
    * `request_stop()` ends training with `Preempted` after a checkpoint at the next step boundary, and
      `request_checkpoint()` writes one there and goes on; both are safe to call from a signal handler, and
      all ranks obey at the same step whichever of them was asked;
    * `extra_state` and `load_extra_state` carry whatever else a subclass must remember.
    """

    train_loader: Any
    step: int
    epoch: float
    _requested = CONTINUE
    _in_loop = False
    _due: tuple[Any, str] | None = None
    _resume: dict[str, Any] | None = None

    def extra_state(self) -> dict[str, Any]:
        """Override to keep more than upstream does; it has to be the same on all ranks."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` returned; called before the first batch after a resume."""

    def request_stop(self) -> None:
        """Ask for a checkpoint and `Preempted` at the next step boundary."""
        self._requested = STOP

    def request_checkpoint(self) -> None:
        """Ask for a checkpoint at the next step boundary."""
        self._requested = max(self._requested, SAVE)

    def load_datasets(self) -> None:
        """As upstream, with the training loader announcing every step boundary."""
        super().load_datasets()
        if self.train_loader is not None:
            self.train_loader = StepBoundary(self.train_loader, self._between_steps)

    def train(self, *args: Any, **kwargs: Any) -> None:
        """As upstream; the end of the run is always written."""
        if not self.is_debug and distutils.get_rank() == 0:
            remove_leftovers(self.config["cmd"]["checkpoint_dir"])
        self._in_loop = True
        try:
            super().train(*args, **kwargs)
        finally:
            self._in_loop = False
        self._due = self._due or (None, "checkpoint.pt")
        self._write_due()

    def save(
        self, metrics: Any = None, checkpoint_file: str = "checkpoint.pt", training_state: bool = True
    ) -> str | None:
        """As upstream, but atomic; in the training loop a resumable checkpoint waits for the end of its step."""
        if training_state and self._in_loop:
            self._due = (metrics, checkpoint_file)
            return str(Path(self.config["cmd"]["checkpoint_dir"]) / checkpoint_file)
        extra: dict[str, Any] = {}
        if training_state:
            # the master writes; what a subclass keeps is the same on all ranks
            states = distutils.gather_objects(random_state())
            extra["piwsl_resume"] = {"random": states, "extra": self.extra_state()}
        with saving_whole_files(extra):
            return super().save(metrics, checkpoint_file, training_state)

    def load_checkpoint(
        self, checkpoint_path: str, checkpoint: dict[str, Any] | None = None, inference_only: bool = False
    ) -> None:
        """As upstream; the random states are restored before the first batch."""
        if checkpoint is None:
            checkpoint = read_checkpoint(checkpoint_path, "cpu" if self.cpu else self.device)
        super().load_checkpoint(checkpoint_path, checkpoint, inference_only)
        if not inference_only:
            self._resume = checkpoint.get("piwsl_resume")

    def _between_steps(self) -> None:
        if self._resume is not None:
            state, self._resume = self._resume, None
            if distutils.get_rank() < len(state["random"]):
                set_random_state(state["random"][distutils.get_rank()])
            self.load_extra_state(state["extra"])
        own = self._requested
        requested = _over_ranks(own)
        stop = requested == STOP
        if requested >= SAVE:
            if self._requested == own:  # else a signal has just asked for more
                self._requested = CONTINUE
            self._due = self._due or (None, "checkpoint.pt")
        if self._due is not None:
            # Upstream has already counted the step whose batch is asked for now.
            counted = self.step, self.epoch
            self.step -= 1
            self.epoch = self.step / len(self.train_loader)
            try:
                self._write_due()
            finally:
                if not stop:
                    self.step, self.epoch = counted
        if stop:
            raise Preempted(f"stopped after step {self.step}")

    def _write_due(self) -> None:
        assert self._due is not None
        (metrics, name), self._due = self._due, None
        in_loop, self._in_loop = self._in_loop, False
        try:
            self.save(metrics, name, training_state=True)
        finally:
            self._in_loop = in_loop


def close_datasets(trainer: Any) -> None:
    """Close the LMDBs of a trainer that is done."""
    for name in ("train_dataset", "val_dataset", "test_dataset", "relax_dataset"):
        close(getattr(trainer, name, None))


def _over_ranks(requested: int) -> int:
    """The strongest request of all ranks, so that all of them save or leave at the same step."""
    if distutils.get_world_size() == 1:
        return requested
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    votes = torch.tensor(requested, device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return int(votes.item())
