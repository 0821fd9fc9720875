"""Forces as the exact negative gradient of an energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def energy_and_forces(energy_of: Callable[[Any], Tensor], data: Any) -> tuple[Tensor, Tensor]:
    """Energies `[B]` of a batch and forces `[N, 3]` = -dE/d(pos).

    `energy_of` maps the batch to energies by way of `data.pos`. The batch is left as it came. Where the caller
    has gradients enabled the forces can be differentiated again (training); under `torch.no_grad` they cannot,
    which is cheaper.
    """
    trainable = torch.is_grad_enabled()
    original = data.pos
    with torch.enable_grad():
        pos = original if original.requires_grad else original.detach().requires_grad_()
        data.pos = pos
        try:
            energy = energy_of(data)
        finally:
            data.pos = original
        (gradient,) = torch.autograd.grad(energy.sum(), pos, create_graph=trainable)
    return (energy if trainable else energy.detach()), -gradient
