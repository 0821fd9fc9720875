"""Fine-tuning: start from the weights of a checkpoint, and from nothing else.

Unlike `--checkpoint`, which resumes a run with its step, optimizer and schedule, `optim.finetune_from` starts
a new run. Normaliser and element references are those of the new config, hence of the new level of theory.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from fairchem.core.common.utils import match_state_dict
from fairchem.core.modules.scaling.compat import load_scales_compat
from torch import nn

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training.checkpoints import read_checkpoint


def start_from(model: nn.Module, path: str) -> None:
    """Give `model` the weights of a checkpoint, averaged (EMA) where the file has the average.

    Raises:
        UserError: the file is missing, damaged, or belongs to another model.
    """
    checkpoint = read_checkpoint(path, key="optim.finetune_from")
    if "state_dict" not in checkpoint:
        raise UserError(f"optim.finetune_from: {path} is not a fairchem checkpoint (it has no 'state_dict').")
    weights = match_state_dict(model.state_dict(), checkpoint["state_dict"])
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        name = checkpoint.get("config", {}).get("model", {}).get("name", "unknown")
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"optim.finetune_from: {path} holds a model '{name}' whose weights do not fit the block 'model' "
            f"of this config; give both the same hyperparameters ({reason})."
        ) from None
    averaged = _use_average(model, checkpoint.get("ema"))
    if checkpoint.get("scale_dict"):
        load_scales_compat(model, checkpoint["scale_dict"])
    logging.info(f"Fine-tuning from the {'averaged ' if averaged else ''}weights of {path}.")


def _use_average(model: nn.Module, ema: dict[str, Any] | None) -> bool:
    """Copy the averaged weights of a `checkpoint.pt`; `best_checkpoint.pt` holds them as its weights already."""
    if not ema:
        return False
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter, average in zip(trainable, ema["shadow_params"], strict=True):
            parameter.copy_(average)
    return True
