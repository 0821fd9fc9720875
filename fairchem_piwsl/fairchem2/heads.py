"""Energy and forces of every structure from the head of its own data set, in kcal/mol."""

from collections.abc import Callable, Mapping, Sequence

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import Tensor

from fairchem_piwsl.losses import Prediction


def of_own_task(
    tasks: Sequence[Task], kind: str, batch: AtomicData, value: Callable[[Task], Tensor], none: float
) -> Tensor:
    """`value` of the task `kind` of each structure's data set, else `none`: [B], or [N, 3] for forces."""
    result = batch.pos.new_full([batch.num_graphs] if kind == "energy" else batch.pos.shape, none)
    for task in tasks:
        if task.property == kind:
            mine = torch.tensor([name in task.datasets for name in batch.dataset], device=batch.pos.device)
            result = torch.where(mine if kind == "energy" else mine[batch.batch, None], value(task), result)
    return result


def as_after_forward(batch: AtomicData) -> AtomicData:
    """`batch` with what a model puts on its argument, where losses and element references read it."""
    batch.atomic_numbers_full, batch.batch_full = batch.atomic_numbers, batch.batch
    return batch


def have_both(tasks: Sequence[Task], batch: AtomicData) -> Tensor:
    """Which structures [B] belong to a data set whose energy and forces are predicted."""
    with_head = lambda kind: {name for task in tasks if task.property == kind for name in task.datasets}
    both = with_head("energy") & with_head("forces")
    return torch.tensor([name in both for name in batch.dataset], device=batch.pos.device)


def prediction(tasks: Sequence[Task], outputs: Mapping, batch: AtomicData, kcal: float) -> Prediction:
    """A model's outputs in kcal/mol and kcal/mol/Angstrom, 0 for structures without such a head.

    The normalisers' means and the element references are not added: they cancel in energy differences, and
    float32 has no digits left behind them.

    Args:
        outputs: the model's, for the B structures with N atoms of `batch`.
        batch: the structures, or others with the same data sets and numbers of atoms in the same order.
        kcal: one energy unit of the labels in kcal/mol.
    """

    def own(kind: str, *shape: int) -> Tensor:
        scaled = lambda task: kcal * task.normalizer.rmsd * outputs[task.name][kind].view(*shape)
        return of_own_task(tasks, kind, batch, scaled, 0.0)

    return Prediction(own("energy", -1), own("forces", -1, 3))


def labels(tasks: Sequence[Task], batch: AtomicData) -> tuple[Tensor, Tensor]:
    """Labels, NaN where missing: energies [B] above mean and element references, forces [N, 3]."""

    def energy(task: Task) -> Tensor:
        label = batch[task.name]
        if task.element_references is not None:
            label = task.element_references.apply_refs(batch, label)
        return (label - task.normalizer.mean).view(-1)

    energies = of_own_task(tasks, "energy", batch, energy, torch.nan)
    return energies.where(energies.isfinite(), torch.nan), force_labels(tasks, batch)


def force_labels(tasks: Sequence[Task], batch: AtomicData) -> Tensor:
    """Labels of forces [N, 3], NaN where missing."""
    forces = of_own_task(tasks, "forces", batch, lambda task: batch[task.name].view(-1, 3), torch.nan)
    return forces.where(forces.isfinite(), torch.nan)
