"""Labels that are missing: NaN in every batch, ignored by every loss and metric."""

import copy
from collections.abc import Callable, Collection, Mapping

import torch
from fairchem.core.common import distutils
from fairchem.core.modules.loss import DDPLoss, MSELoss
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training.data_checks import problems


class FillMissingLabels:
    """Collater that gives every structure all labels, NaN where the data set has none.

    Args:
        collate: upstream's collater.
        targets: upstream's output targets; `level` decides the label's shape.
    """

    def __init__(self, collate: Callable[[list[Data]], Batch], targets: Mapping[str, Mapping]) -> None:
        self.collate = collate
        self.targets = {name: target.get("level", "system") for name, target in targets.items()}

    def __call__(self, structures: list[Data]) -> Batch:
        """A batch; a record that cannot be in one, and was in no sample before the run, is named."""
        try:
            return self._batch(structures)
        except (AttributeError, KeyError, RuntimeError, TypeError):
            outputs = {name: {"level": level} for name, level in self.targets.items()}
            for structure in structures:
                for problem in problems(structure, outputs, nn.Identity()):
                    raise UserError(
                        f"structure {structure.get('sid', '?')} {problem}; make the data set again with "
                        "`piwsl prepare`."
                    ) from None
            raise

    def _batch(self, structures: list[Data]) -> Batch:
        for name, level in self.targets.items():
            labels = [_label(structure, name) for structure in structures]
            # the labels of a batch must agree in shape and type
            example = next((label for label in labels if label is not None), torch.zeros(1))
            for structure, label in zip(structures, labels, strict=True):
                if label is None:
                    shape = (len(structure.pos), 3) if level == "atom" else example.shape
                    label = torch.full(shape, torch.nan, dtype=example.dtype)
                structure[name] = label
        return self.collate(structures)


def _label(structure: Data, name: str) -> Tensor | None:
    """A structure's label with at least one dimension, None where it is missing."""
    label = structure.get(name)
    if label is None:
        return None
    # a Python float has digits that a total energy needs, and torch would take float32
    label = torch.as_tensor(label, dtype=torch.float64 if isinstance(label, float) else None)
    if label.isinf().any():
        raise UserError(
            f"structure {structure.get('sid', '?')} has an infinite label '{name}'; remove it or make the data "
            "set again with `piwsl prepare`, which checks labels."
        )
    return torch.atleast_1d(label)


def with_free_atoms(batch: Batch, outputs: Collection[str]) -> Batch:
    """The batch; without a free atom, one like it whose atoms are free and unlabelled.

    Upstream cannot reshape the labels of no atoms.

    Args:
        outputs: those of which only free atoms count.
    """
    if not outputs or (batch.fixed == 0).any():  # upstream waits for the device here as well, to select atoms
        return batch
    seen = copy.copy(batch)
    seen.fixed = torch.zeros_like(batch.fixed)
    for name in outputs:
        seen[name] = torch.full_like(batch[name], torch.nan)
    return seen


class LabelledLoss(nn.Module):
    """Upstream's loss over the labelled rows of all ranks.

    Equal to `DDPLoss` bit for bit where no label is missing. A missing row is given the prediction as its
    label: its loss and gradient are zero, and every parameter stays part of the graph, which distributed
    training requires.

    Args:
        loss: upstream's wrapped loss.
    """

    def __init__(self, loss: DDPLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, pred: Tensor, target: Tensor, natoms: Tensor) -> Tensor:
        """Loss of predictions against labels, both `[B, 1]` or `[N, 3]`, normalised; NaN marks no label."""
        missing = target.isnan().any(-1)
        target = torch.where(missing[:, None], pred.detach(), target)
        if pred.dtype != target.dtype and isinstance(self.loss.loss_fn, MSELoss):
            # torch 2.4 evaluates `mse_loss` of mixed types in the wider one, but cannot differentiate it
            pred = pred.to(target.dtype)
        values = self.loss.loss_fn(pred, target, natoms)
        total = values.sum()
        if self.loss.reduction == "mean":
            labelled = (~missing).sum() * (values.numel() // max(len(missing), 1))
            labelled = distutils.all_reduce(labelled, device=total.device).clamp_min(1)
            total = total * distutils.get_world_size() / labelled
        return total


def mean_over_ranks(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over the structures of all ranks, to be averaged over ranks by distributed training.

    Args:
        values: one value for each structure of this rank [B].
        valid: structures that count [B]; all where None.
    """
    if valid is None:
        count = torch.full((), len(values), device=values.device)
    else:
        values, count = torch.where(valid, values, 0.0), valid.sum()
    count = distutils.all_reduce(count, device=values.device).clamp_min(1)
    return values.sum() * distutils.get_world_size() / count


def labelled_structures(label: Tensor, structure: Tensor | None, num_structures: int) -> Tensor:
    """Which structures have a complete label [B]; one without a row has none.

    Args:
        label: `[B]` or `[B, 1]` (structure level), or `[N, 3]` with the structure of each row.
        structure: structure of each row [N], None at structure level.
        num_structures: B.
    """
    missing = label.reshape(len(label), -1).isnan().any(-1)
    if structure is None:
        return ~missing
    none = structure.new_zeros(num_structures)
    return none.scatter_reduce(0, structure, (~missing).to(structure), "amin", include_self=False) == 1
