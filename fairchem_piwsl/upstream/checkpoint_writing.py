"""fairchem writes checkpoints in place: a kill in the middle leaves neither the old file nor the new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairchem_piwsl.training.checkpoint_files import save_atomically


@contextmanager
def saving_whole_files(extra: dict[str, Any]) -> Iterator[None]:
    """Within the block, fairchem's trainer writes whole files, with the entries of `extra` added."""
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
