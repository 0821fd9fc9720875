"""Whether an energy has a gradient to learn from, as PITC without displacements needs it, and what is done where not."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.settings import AUTO_DISPLACED, PIWSLSettings


def without_gradient(block: Mapping[str, Any], where: str) -> PIWSLSettings:
    """`auto` with displacements, for an energy without a gradient to learn from.

    Args:
        block: the settings as they were given.
        where: they stand, for messages.

    Raises:
        UserError: `eps_max: 0` was set by hand.
    """
    why = "the gradient of this model's energy cannot be had by automatic differentiation"
    if "eps_max" in block:
        raise UserError(f"{where}: eps_max is 0, but {why}; set a displacement in Angstrom.")
    displaced = PIWSLSettings.from_config({**block, "eps_max": AUTO_DISPLACED["eps_max"]})
    logging.info(f"{where}: eps_max {displaced.eps_max}, since {why}")
    return displaced


def energy_is_differentiable(
    energy: Callable[[Tensor], Tensor], pos: Tensor, parameters: Sequence[Tensor]
) -> bool:
    """Whether automatic differentiation gives dE/dr, to 5 % along its own direction, with a graph to train by.

    Frames of edges that are drawn at random or held constant, for example, are missed by it, and checkpoints of
    activations do not allow it.

    Args:
        energy: of positions [N, 3] in Angstrom; any shape; in float64 if possible, since an untrained one hardly changes.
        pos: near where to look; at a stationary point itself there would be nothing to see.
        parameters: what is trained.
    """
    away = torch.randn(pos.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pos = (pos.detach() + 0.05 * away.to(pos)).requires_grad_()
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(energy(pos).sum(), pos, create_graph=True)
            torch.autograd.grad(gradient.square().sum(), parameters, allow_unused=True)
    except RuntimeError:
        return False
    with torch.no_grad():
        # Angstrom, of all atoms together; as small as digits allow, since some models are far from linear
        step = (3e-4 if pos.dtype == torch.float64 else 3e-3) * gradient / gradient.norm()
        change = energy(pos + step).sum() - energy(pos - step).sum()
    return math.isclose(change, 2 * (step * gradient).sum(), rel_tol=0.05)
