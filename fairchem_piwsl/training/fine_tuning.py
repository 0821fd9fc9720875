"""Fine-tuning: start from the weights of a checkpoint, and from nothing else.

Unlike `--checkpoint`, which resumes a run with its step, optimizer and schedule, `optim.finetune_from` starts
a new run. Normaliser and element references are those of the new config, hence of the new level of theory.
"""

from __future__ import annotations

import logging

from fairchem.core.modules.scaling.compat import load_scales_compat
from torch import nn

from fairchem_piwsl.training.checkpoint_files import copy_averaged_weights, load_weights, read_checkpoint


def start_from(model: nn.Module, path: str) -> None:
    """Give `model` the weights of a checkpoint, averaged (EMA) where the file has the average.

    Raises:
        UserError: the file is missing, damaged, or belongs to another model.
    """
    key = "optim.finetune_from"
    checkpoint = read_checkpoint(path, key=key)
    load_weights(model, checkpoint, path, key)
    averaged = copy_averaged_weights(model, checkpoint)
    if checkpoint.get("scale_dict"):
        load_scales_compat(model, checkpoint["scale_dict"])
    logging.info(f"Fine-tuning from the {'averaged ' if averaged else ''}weights of {path}.")
