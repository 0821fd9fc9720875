"""Energy and forces of every structure from the head of its own data set, in kcal/mol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import Tensor

from fairchem_piwsl.losses import Prediction


def own_tasks(tasks: Sequence[Task], kind: str, batch: AtomicData) -> Iterator[tuple[Task, Tensor]]:
    """The tasks of the property `kind`, each with the structures [B] of its data sets."""
    for task in tasks:
        if task.property == kind:
            mine = [name in task.datasets for name in batch.dataset]
            yield task, torch.tensor(mine, device=batch.pos.device)


def have_both(tasks: Sequence[Task], batch: AtomicData) -> Tensor:
    """Which structures [B] belong to a data set whose energy and forces are predicted."""
    both = torch.ones(batch.num_graphs, dtype=torch.bool, device=batch.pos.device)
    for kind in ("energy", "forces"):
        both &= torch.stack([mine for _, mine in own_tasks(tasks, kind, batch)]).any(0)
    return both


def prediction(
    tasks: Sequence[Task], outputs: Mapping[str, Any], batch: AtomicData, kcal: float
) -> Prediction:
    """A model's outputs in kcal/mol and kcal/mol/Angstrom, 0 for structures without such a head.

    The normalisers' means and the element references are not added: they cancel in energy differences, and
    float32 has no digits left behind them.

    Args:
        outputs: the model's, for the B structures with N atoms of `batch`.
        batch: the structures, or others with the same data sets and numbers of atoms in the same order.
        kcal: one energy unit of the labels in kcal/mol.
    """
    energy: Tensor | float = 0.0
    for task, mine in own_tasks(tasks, "energy", batch):
        values = kcal * task.normalizer.rmsd * outputs[task.name]["energy"].view(-1)
        energy = torch.where(mine, values, energy)
    forces: Tensor | float = 0.0
    for task, mine in own_tasks(tasks, "forces", batch):
        values = kcal * task.normalizer.rmsd * outputs[task.name]["forces"].view(-1, 3)
        forces = torch.where(mine[batch.batch, None], values, forces)
    assert isinstance(energy, Tensor) and isinstance(forces, Tensor), "checked before training"  # noqa: PT018
    return Prediction(energy, forces)


def kcal_per_output(tasks: Sequence[Task], batch: AtomicData, kcal: float) -> Tensor:
    """One unit of each structure's energy output in kcal/mol [B]."""
    unit = torch.ones(batch.num_graphs, device=batch.pos.device)
    for task, mine in own_tasks(tasks, "energy", batch):
        unit = torch.where(mine, kcal * task.normalizer.rmsd, unit)
    return unit


def errors(
    tasks: Sequence[Task], predicted: Prediction, batch: AtomicData, kcal: float
) -> tuple[Tensor, Tensor]:
    """Errors of a prediction in kcal/mol: energies [B], NaN without a label, and forces [N, 3].

    Where there is no force label it counts as 0 (Sec. A of the paper).
    """
    energy = torch.full_like(predicted.energy, torch.nan)
    for task, mine in own_tasks(tasks, "energy", batch):
        target = batch[task.name].clone()
        if task.element_references is not None:
            target = task.element_references.apply_refs(batch, target)
        target = kcal * (target - task.normalizer.mean).view(-1)
        energy = torch.where(mine & target.isfinite(), predicted.energy - target.to(energy), energy)
    forces = predicted.forces
    for task, mine in own_tasks(tasks, "forces", batch):
        target = batch[task.name].view(-1, 3)
        known = mine[batch.batch, None] & target.isfinite()
        forces = torch.where(known, predicted.forces - kcal * target, forces)
    return energy, forces
