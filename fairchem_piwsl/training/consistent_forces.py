"""What a model's energy is to its forces: whether they are its gradient, and whether it has one to learn from."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch_geometric.data import Batch

from fairchem_piwsl.training.energy_gradient import energy_is_differentiable
from fairchem_piwsl.training.precision import default_dtype, in_double
from fairchem_piwsl.training.random_states import random_state, set_random_state
from fairchem_piwsl.training.stacking import SharedGraph
from fairchem_piwsl.upstream.edge_frames import holds_edge_frames_constant

OutputsOf: TypeAlias = Callable[[nn.Module, Batch], Mapping[str, Tensor]]


def forces_are_gradients(model: nn.Module, batch: Batch, graph: SharedGraph, outputs: OutputsOf) -> bool:
    """Whether F = -dE/dr holds for a model on a batch, to 0.1 %.

    Forces from an output of their own agree with it on no structure, trained or not. Neither the state of the
    random generators nor the model's mode changes.

    Args:
        model: any model.
        batch: structures to look at; one is enough.
        graph: the model's; lists of its own making can be differentiated for every model.
        outputs: `energy` and `forces` that a model gives for a batch.
    """
    with _repeatable(model, batch, graph, outputs) as (batch, evaluate), torch.enable_grad():
        out = evaluate()
        (gradient,) = torch.autograd.grad(out["energy"].sum(), batch.pos, allow_unused=True)
    if gradient is None or not gradient.any():  # heads that start at zero tell nothing
        return False
    forces = out["forces"].detach()
    return torch.allclose(forces, -gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def energy_of_model_is_differentiable(
    model: nn.Module, batch: Batch, graph: SharedGraph, outputs: OutputsOf
) -> bool:
    """`energy_is_differentiable` for a model on a batch; the arguments are those of `forces_are_gradients`."""
    if holds_edge_frames_constant(model):
        return False
    model = in_double(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with (
        _repeatable(model, batch, SharedGraph(model, graph.share), outputs) as (batch, evaluate),
        default_dtype(torch.float64),
    ):

        def energy(pos: Tensor) -> Tensor:
            batch.pos = pos
            return evaluate()["energy"]

        return energy_is_differentiable(energy, batch.pos.double(), parameters)


@contextmanager
def _repeatable(
    model: nn.Module, batch: Batch, graph: SharedGraph, outputs: OutputsOf
) -> Iterator[tuple[Batch, Callable[[], Mapping[str, Tensor]]]]:
    """A copy of the batch to differentiate by, and what gives the outputs for it, with the same draws each time.

    As in training, since models that differentiate their energy themselves keep its graph there only; afterwards all is
    as it was.
    """
    state, modes = random_state(), {module: module.training for module in model.modules()}
    batch = batch.clone()
    batch.pos = batch.pos.detach().requires_grad_()
    for module in modes:
        module.training = not isinstance(module, _BatchNorm)  # which counts what it has seen

    def evaluate() -> Mapping[str, Tensor]:
        set_random_state(state)
        return outputs(model, batch)

    try:
        with torch.no_grad(), graph.of(batch):
            yield batch, evaluate
    finally:
        for module, training in modes.items():
            module.training = training
        set_random_state(state)
