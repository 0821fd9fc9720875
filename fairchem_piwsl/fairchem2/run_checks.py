"""Runs of fairchem 2 that the weak terms do not fit, refused before the first step."""

import logging
from typing import Any

from fairchem.core.datasets.atomic_data import AtomicData
from torch import Tensor, nn

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.fairchem2 import heads
from fairchem_piwsl.fairchem2.stacked_data import stack
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.training.energy_gradient import energy_is_differentiable
from fairchem_piwsl.training.random_states import random_state, set_random_state

BLOCK = "runner.callbacks: PIWSLCallback"


def check_settings(settings: PIWSLSettings) -> None:
    """Raise `UserError` for settings that have no meaning with fairchem 2."""
    for name in ("c_wl", "noisy_nodes", "validate_consistency"):
        if getattr(settings, name):
            raise UserError(f"{BLOCK}: {name} is there with fairchem 1.10 only; leave it out.")


def applicable(settings: PIWSLSettings, unit: Any) -> PIWSLSettings:
    """The settings for the training `unit`; `auto` switches all off where forces are the gradient of the energy.

    Raises:
        UserError: weak terms or measured gradients would be wrong or impossible there.
    """
    if not (settings.weak or settings.balances):
        return settings
    key = "runner.train_eval_unit"
    if unit.bf16:
        raise UserError(f"{BLOCK} needs digits that bfloat16 does not hold; set {key}.bf16: False.")
    if str(unit.train_strategy) == "fsdp":
        raise UserError(f"{BLOCK} does not work with FSDP; set {key}.train_strategy: ddp.")
    for name in {"energy", "forces"} - {task.property for task in unit.tasks}:
        raise UserError(f"{BLOCK}: no task has the property {name}; add one to {key}.tasks.")
    if getattr(unit, "tf32", False):
        logging.warning(f"PIWSL: tf32 rounds energy differences; set {key}.tf32: False.")
    model = inner_model(unit.model)
    if model is None:
        raise UserError(f"{BLOCK} needs a model with output heads; {type(unit.model).__name__} has none.")
    configs = [getattr(module, "global_cfg", None) for module in model.modules()]
    if any(getattr(config, flag, False) for config in configs for flag in ("use_padding", "use_compile")):
        raise UserError(
            f"{BLOCK} enlarges batches beyond padded sizes; set use_compile and use_padding to False."
        )
    if getattr(getattr(model.backbone, "regress_config", model.backbone), "direct_forces", False):
        return settings
    gradients = f"{BLOCK}: the forces of this model are the gradient of its energy, so"
    if settings.auto and settings.weak_share:
        logging.info(
            f"{gradients} the weak terms have nothing to teach it; they are off, and weights are those set by hand."
        )
        return settings.without_weak_terms()
    if settings.differentiates:
        raise UserError(
            f"{gradients} they agree with it at eps_max: 0; set a displacement, or leave PIWSL out."
        )
    if settings.weak and settings.k_2nd == 0:
        raise UserError(
            f"{gradients} with k_2nd: 0 PITC sees curvature only, which is no error; set k_2nd: 0.5."
        )
    logging.warning(f"{gradients} there is little to gain.")
    return settings


def has_gradient(unit: Any, batch: AtomicData) -> bool:
    """Whether the energy of the unit's model can be differentiated.

    Args:
        batch: structures to look at.
    """
    model: Any = inner_model(unit.model)
    training = model.training

    def energy(pos: Tensor) -> Tensor:
        return heads.prediction(unit.tasks, model(stack(batch, [pos], None)), batch, 1.0).energy

    state = random_state()  # models may draw here, which training must not see
    try:
        model.eval()
        return energy_is_differentiable(energy, batch.pos, [p for p in model.parameters() if p.requires_grad])
    finally:
        model.train(training)
        set_random_state(state)


def inner_model(model: nn.Module) -> Any:
    """The model with backbone and heads below DDP and the like, None where there is none."""
    return next((module for module in model.modules() if hasattr(module, "output_heads")), None)
