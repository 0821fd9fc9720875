"""Whether a model's forces are the gradient of its energy, so that the weak terms have nothing to teach it."""

import torch
from torch import nn
from torch_geometric.data import Batch

from fairchem_piwsl.training.checkpoints import random_state, set_random_state
from fairchem_piwsl.training.stacking import SharedGraph


def forces_are_gradients(model: nn.Module, batch: Batch, graph: SharedGraph) -> bool:
    """Whether F = -dE/dr holds for a model on a batch, to 0.1 %.

    Forces from an output of their own agree with it on no structure, trained or not. Neither the state of the
    random generators nor the model's mode changes.

    Args:
        model: any model with the outputs `energy` and `forces`.
        batch: structures to look at; one is enough.
        graph: the model's; lists of its own making can be differentiated for every model.
    """
    state, training = random_state(), model.training
    batch = batch.clone()
    batch.pos = batch.pos.detach().requires_grad_()
    model.eval()
    try:
        with torch.enable_grad(), graph.of(batch):
            out = model(batch)
            (gradient,) = torch.autograd.grad(out["energy"].sum(), batch.pos, allow_unused=True)
    finally:
        model.train(training)
        set_random_state(state)
    if gradient is None:
        return False
    forces = out["forces"].detach()
    return torch.allclose(forces, -gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))
