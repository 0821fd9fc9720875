"""Runs of fairchem 2 that the weak terms do not fit, refused before the first step."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.settings import PIWSLSettings

BLOCK = "runner.callbacks: PIWSLCallback"


def check_settings(settings: PIWSLSettings) -> None:
    """Raise `UserError` for settings that have no meaning with fairchem 2."""
    for name in ("c_wl", "noisy_nodes", "validate_consistency", "auto", "weak_share", "energy_share"):
        if getattr(settings, name):
            raise UserError(
                f"{BLOCK}: {name} is there with fairchem 1.10 only; leave it out, and set c_pitc."
            )


def check_unit(unit: Any, settings: PIWSLSettings) -> None:
    """Raise `UserError` where weak terms would be wrong or impossible in the training `unit`."""
    key = "runner.train_eval_unit"
    if unit.bf16:
        raise UserError(
            f"{BLOCK} needs energy differences of 0.01 kcal/mol, which bfloat16 does not hold; set {key}.bf16: False."
        )
    if str(unit.train_strategy) == "fsdp":
        raise UserError(f"{BLOCK} does not work with FSDP; set {key}.train_strategy: ddp.")
    for name in {"energy", "forces"} - {task.property for task in unit.tasks}:
        raise UserError(
            f"{BLOCK} compares energies with forces, but no task has the property {name}; add one to {key}.tasks."
        )
    if getattr(unit, "tf32", False):
        logging.warning(f"PIWSL: tf32 rounds energy differences; set {key}.tf32: False.")
    model = inner_model(unit.model)
    if model is None:
        raise UserError(
            f"{BLOCK} needs a model with a backbone and output heads (hydra); {type(unit.model).__name__} has none."
        )
    configs = [getattr(module, "global_cfg", None) for module in model.modules()]
    if any(getattr(config, flag, False) for config in configs for flag in ("use_padding", "use_compile")):
        raise UserError(
            f"{BLOCK} enlarges batches, which a model compiled for padded sizes cannot take; set use_compile and "
            "use_padding of the backbone to False."
        )
    if not getattr(getattr(model.backbone, "regress_config", model.backbone), "direct_forces", False):
        if settings.k_2nd == 0:
            raise UserError(
                f"{BLOCK}: the forces of this model are the gradient of its energy, so with k_2nd: 0 all that PITC sees "
                "is the curvature of the energy, which is no error; set k_2nd: 0.5, or leave the callback out."
            )
        logging.warning("PIWSL has little to gain: the forces of this model are the gradient of its energy.")


def inner_model(model: nn.Module) -> Any:
    """The model with backbone and heads below DDP and the like, None where there is none."""
    return next((module for module in model.modules() if hasattr(module, "output_heads")), None)
