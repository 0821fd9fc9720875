"""Steps of a trainer taken one by one, and what they should give, computed another way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from conftest import make_config, make_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_piwsl.units import kcal_in

CASE_D = {"c_pitc": 1.2, "c_pisc": 0.01, "eps_max": 0.025}
#: one eV in kcal/mol
EV = kcal_in("eV")


def trainer_at_step(
    data: Path, run_dir: Path, piwsl: dict | None, step: int = 1, primary: str = "forces_mae", **optim: Any
):
    """A trainer in training mode, about to take `step`."""
    config = make_config(data, run_dir, piwsl=piwsl, **optim)
    config["evaluation_metrics"]["primary_metric"] = primary
    trainer = make_trainer(config)
    trainer.step = step
    trainer.model.train()
    return trainer


def first_batch(trainer, split: str = "train") -> Batch:
    """The first batch of a split."""
    return next(iter(trainer.train_loader.loader if split == "train" else trainer.val_loader))


@contextmanager
def counted_calls(trainer) -> Iterator[list[int]]:
    """Number of structures in each call of the trainer's model."""
    sizes: list[int] = []
    handle = trainer.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0].natoms)))
    try:
        yield sizes
    finally:
        handle.remove()


def forward_and_loss(trainer, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Outputs and total loss of one step."""
    out = trainer._forward(batch)
    return out, trainer._compute_loss(out, batch)


def separate_call(model: nn.Module, batch: Batch, pos: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Energy [B] and forces [N, 3] of a model as it comes, at `pos`, with a neighbour list of its own."""
    single = batch.clone()
    single.pos = pos.detach().clone()
    out = model(single)
    return (out[key].detach().double().numpy().reshape(shape) for key, shape in SHAPES.items())  # type: ignore[return-value]


SHAPES: dict[str, Any] = {"energy": -1, "forces": (-1, 3)}


def seg(values: np.ndarray, batch: Batch) -> np.ndarray:
    """Sum over the atoms of each structure."""
    index = batch.batch.numpy()
    return np.array([values[index == i].sum() for i in range(batch.num_graphs)])


def logged(trainer, split: str, name: str) -> list[float]:
    """Values that a trainer wrote to its TensorBoard files, in the order of steps."""
    trainer.logger.writer.flush()
    events = EventAccumulator(trainer.config["cmd"]["logs_dir"])
    events.Reload()
    tags = events.Tags()["scalars"]
    tag = next((tag for tag in tags if tag in (f"{split}/{name}", name)), None)
    assert tag is not None, f"{split}/{name} is not among {tags}"
    return [event.value for event in events.Scalars(tag)]
