"""From a config of the paper to one that a CPU trains in minutes, and from its data folders to others."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from fairchem_piwsl.config import merge
from fairchem_piwsl.datasets.lmdb_checks import number_of_structures
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.report.runs import model_name
from fairchem_piwsl.settings import PIWSLSettings

#: blocks of `optim` that stay when the rest is replaced by the small scale's
KEPT = ("piwsl", "clip_grad_norm", "finetune_from")
#: validation structures of a small run
VALIDATION = 100


def shrink(config: Mapping[str, Any], settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The config with a small model and a short schedule; losses, data and the weak terms stay.

    Args:
        config: a training config, merged.
        settings: `optim`, the small scale's block; `models`, changes by the model's name; and `lr_initial`, by
            the model's name where it is not that of `optim`.
        steps: training steps.

    Raises:
        UserError: `models` has no entry for the model.
    """
    small = copy.deepcopy(dict(config))
    block = innermost_model(small["model"])
    model = model_name(block)
    changes = settings["models"].get(model)
    if changes is None:
        raise UserError(
            f"the small scale has no settings for the model '{model}'; it knows {', '.join(settings['models'])}."
        )
    block |= copy.deepcopy(changes)
    kept = {key: small["optim"][key] for key in KEPT if key in small["optim"]}
    optim = merge(settings["optim"], kept)
    structures = number_of_structures(small["dataset"]["train"]["src"])
    optim["lr_initial"] = settings["lr_initial"].get(model, optim["lr_initial"])
    optim |= schedule(steps, structures, optim["batch_size"], validations=5)
    if "piwsl" in optim:  # a later start of the weak terms, as in the example's 3,003 steps at most
        longest = {"start_step": steps // 6, "ramp_steps": steps // 3}
        own = PIWSLSettings.from_config(optim["piwsl"])  # what auto stands for, too
        shorter = {key: min(getattr(own, key), most) for key, most in longest.items()}
        optim["piwsl"] = {**optim["piwsl"], **shorter}
    small["optim"] = optim
    validation = small["dataset"]["val"]
    if number_of_structures(validation["src"]) > VALIDATION:
        validation["first_n"] = VALIDATION
    return small


def schedule(steps: int, structures: int, batch_size: int, validations: int) -> dict[str, int]:
    """Keys of `optim` for whole epochs with at least `steps` steps, a cosine to zero and some validations."""
    per_epoch = math.ceil(structures / batch_size)
    epochs = math.ceil(steps / per_epoch)
    return {"max_epochs": epochs, "T_max": epochs * per_epoch, "eval_every": max(1, steps // validations)}


def innermost_model(block: dict[str, Any]) -> dict[str, Any]:
    """The block of the model proper, below a wrapper such as GradientForces."""
    return innermost_model(block["model"]) if "model" in block else block
