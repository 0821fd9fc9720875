"""What a model's energy is to its forces: whether they are its gradient, and whether it has one to learn from."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_piwsl.training.checkpoints import random_state, set_random_state
from fairchem_piwsl.training.energy_gradient import energy_is_differentiable
from fairchem_piwsl.training.precision import default_dtype, in_double
from fairchem_piwsl.training.stacking import SharedGraph
from fairchem_piwsl.upstream.edge_frames import holds_edge_frames_constant


def forces_are_gradients(model: nn.Module, batch: Batch, graph: SharedGraph) -> bool:
    """Whether F = -dE/dr holds for a model on a batch, to 0.1 %.

    Forces from an output of their own agree with it on no structure, trained or not. Neither the state of the
    random generators nor the model's mode changes.

    Args:
        model: any model with the outputs `energy` and `forces`.
        batch: structures to look at; one is enough.
        graph: the model's; lists of its own making can be differentiated for every model.
    """
    with _evaluated(model, batch, graph) as batch, torch.enable_grad():
        out = model(batch)
        (gradient,) = torch.autograd.grad(out["energy"].sum(), batch.pos, allow_unused=True)
    if gradient is None:
        return False
    forces = out["forces"].detach()
    return torch.allclose(forces, -gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def energy_of_model_is_differentiable(model: nn.Module, batch: Batch, graph: SharedGraph) -> bool:
    """`energy_is_differentiable` for a model on a batch; the arguments are those of `forces_are_gradients`."""
    if holds_edge_frames_constant(model):
        return False
    model = in_double(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with _evaluated(model, batch, SharedGraph(model, graph.share)) as batch, default_dtype(torch.float64):

        def energy(pos: Tensor) -> Tensor:
            batch.pos = pos
            return model(batch)["energy"]

        return energy_is_differentiable(energy, batch.pos.double(), parameters)


@contextmanager
def _evaluated(model: nn.Module, batch: Batch, graph: SharedGraph) -> Iterator[Batch]:
    """A copy of the batch to differentiate by, while the model evaluates; afterwards all is as it was."""
    state, training = random_state(), model.training
    batch = batch.clone()
    batch.pos = batch.pos.detach().requires_grad_()
    model.eval()
    try:
        with torch.no_grad(), graph.of(batch):
            yield batch
    finally:
        model.train(training)
        set_random_state(state)
