"""The same random numbers for all displaced copies of a structure.

PITC compares energies of configurations that differ by hundredths of an Angstrom. Dropout, stochastic depth
and random edge frames would add noise far above that difference if every copy drew its own; with shared
numbers the residual of an undisplaced copy is zero.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training.repeated_draws import RepeatedDraws, drops
from fairchem_piwsl.upstream.edge_frames import EdgeFrames


@contextmanager
def shared_randomness(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Inside the block all copies of `batch`'s structures meet the same random numbers in `model`.

    A call of `model` with k copies of `batch` stacked copy by copy draws for one copy and repeats the numbers;
    every further call in the same block starts again from the same state of the generator. Models without
    active random layers are not touched.
    """
    if not draws_random_numbers(model):
        yield
        return
    if any(getattr(module, "activation_checkpoint", False) for module in _CANDIDATES[model]):
        raise UserError(
            "model.activation_checkpoint repeats the forward pass without the shared random numbers of the weak "
            "losses: set it to False."
        )
    states: list[Tensor] = []
    modes: list[RepeatedDraws] = []

    def enter(_module: nn.Module, args: tuple[Any, ...]) -> None:
        pos = args[0].pos
        if states:
            _set_state(pos.device, states[0])
        else:
            states.append(_get_state(pos.device))
        modes.append(RepeatedDraws(len(pos) // len(batch.pos)))
        modes[-1].__enter__()

    def leave(*_: Any) -> None:
        if modes:
            modes.pop().__exit__(None, None, None)

    handles = [
        model.register_forward_pre_hook(enter),
        model.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def draws_random_numbers(model: nn.Module) -> bool:
    """Whether a forward pass of `model` in its present mode (training or not) depends on random numbers."""
    if model not in _CANDIDATES:
        _CANDIDATES[model] = [module for module in model.modules() if _may_be_random(module)]
    return any(_is_random(module) for module in _CANDIDATES[model])


#: submodules that may draw random numbers in some mode, or forbid sharing them: looking through all of a model takes
#: long in every step
_CANDIDATES: WeakKeyDictionary[nn.Module, list[nn.Module]] = WeakKeyDictionary()


def _may_be_random(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.modules.dropout._DropoutNd)
        or any(hasattr(module, name) for name in ("_init_edge_rot_mat", "drop_prob", "draws_random_numbers"))
        or getattr(module, "activation_checkpoint", False)
    )


def _is_random(module: nn.Module) -> bool:
    frames = getattr(module, "_init_edge_rot_mat", None)
    if frames is not None:  # eSCN, Equiformer v2: upstream draws edge frames in every mode
        return module.training or not isinstance(frames, EdgeFrames)
    return getattr(module, "draws_random_numbers", False) or (module.training and drops(module))


def _get_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
