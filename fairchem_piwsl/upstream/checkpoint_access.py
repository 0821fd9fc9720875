"""fairchem writes checkpoints in place, and reads them with a loader that runs whatever code they hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairchem_piwsl.training.checkpoint_files import read_checkpoint, save_atomically


@contextmanager
def saving_whole_files(extra: dict[str, Any]) -> Iterator[None]:
    """Within the block, fairchem's trainer writes whole files, with the entries of `extra` added.

    A kill in the middle of fairchem's own write leaves neither the old file nor the new one.
    """
    from fairchem.core.trainers import base_trainer

    def save_checkpoint(
        state: dict[str, Any], checkpoint_dir: str = "checkpoints/", checkpoint_file: str = "checkpoint.pt"
    ) -> str:
        return save_atomically({**state, **extra}, Path(checkpoint_dir) / checkpoint_file)

    original = base_trainer.save_checkpoint
    base_trainer.save_checkpoint = save_checkpoint
    try:
        yield
    finally:
        base_trainer.save_checkpoint = original


@contextmanager
def reading_without_code(trainer: Any) -> Iterator[None]:
    """Within the block, a trainer of fairchem's takes checkpoints from `read_checkpoint`.

    Its own `torch.load` runs the code that a file holds, with torch before 2.6.
    """
    load = trainer.load_checkpoint

    def load_checkpoint(checkpoint_path: str, checkpoint: dict[str, Any] | None = None, **how: Any) -> None:
        load(checkpoint_path, checkpoint or read_checkpoint(checkpoint_path, trainer.device), **how)

    trainer.load_checkpoint = load_checkpoint
    try:
        yield
    finally:
        del trainer.load_checkpoint
