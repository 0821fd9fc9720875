"""Fine-tuning: start from the weights of a checkpoint and from nothing else, with element references that fit them.

Unlike `--checkpoint`, which resumes a run with its step, optimizer and schedule, `optim.finetune_from` starts
a new run. Normaliser and element references are those of the new config, hence of the new level of theory.

    piwsl references CONFIG.yml element_references.npz

A foundation model and new labels differ by the energies of isolated atoms at two levels of theory, hundreds of
kcal/mol that training would otherwise have to unlearn first. CONFIG is the training config of the fine-tuning;
its data set and model are read, and `optim.finetune_from` where the weights come from a checkpoint.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets import data_list_collater
from fairchem.core.datasets.base_dataset import create_dataset
from fairchem.core.modules.normalization.normalizer import create_normalizer
from fairchem.core.modules.scaling.compat import load_scales_compat
from torch import Tensor, nn
from torch_geometric.data import Data

from fairchem_piwsl.config import get_value
from fairchem_piwsl.datasets.element_references import composition, fit_references
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training.checkpoint_files import copy_averaged_weights, load_weights, read_checkpoint
from fairchem_piwsl.training.data_checks import by_split, splits
from fairchem_piwsl.training.preflight import build_model, check_config, in_new_layout


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


def references_of_difference(
    model: nn.Module, structures: Iterable[Data], in_ev: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """Energy of each element [119] in eV that brings the model's energies closest to the labels.

    Args:
        model: returns `energy` [B] without references.
        structures: records with `energy` in eV, NaN where there is no label.
        in_ev: what the model returns as `energy` in eV, as a normaliser's `denorm`.
    """
    model.eval()
    compositions, differences = [], []
    for structure in structures:
        batch = data_list_collater([structure], otf_graph=True)
        with torch.no_grad():
            predicted = float(in_ev(model(batch)["energy"]))
        compositions.append(composition(structure.atomic_numbers.long().numpy()))
        differences.append(float(structure.energy) - predicted)
    if not np.isfinite(differences).any():
        raise UserError("dataset.train has no energies, to which references could be fitted; add labels.")
    return fit_references(np.array(compositions), np.array(differences))


def from_config(config: Mapping[str, Any]) -> np.ndarray:
    """`references_of_difference` for the model and the training set of a fairchem config."""
    setup_imports()
    config = copy.deepcopy(dict(config))
    # usually the file that is about to be made
    (get_value(by_split(config.get("dataset")), "train.transforms") or {}).pop("element_references", None)
    check_config(config)
    config = in_new_layout(config)
    train = splits(config["dataset"])["train"]
    block = config["model"]
    checkpoint = config["optim"].get("finetune_from")
    if not (checkpoint or block.get("foundation") or block.get("finetune_config")):
        raise UserError(
            "the model of the config has random weights, to which no references can be fitted; name the weights "
            "it starts from in optim.finetune_from or model.foundation."
        )
    model = build_model(block)
    if checkpoint:
        start_from(model, checkpoint)
    normalizer = get_value(train.pop("transforms", None), "normalizer") or {
        "energy": {"mean": 0.0, "rmsd": 1.0}
    }
    if "energy" not in normalizer:
        raise UserError(
            "dataset.train.transforms.normalizer has no block 'energy', without which the model's energies cannot "
            "be told in eV; add its mean and rmsd, or its file."
        )
    denorm = create_normalizer(**normalizer["energy"]).denorm
    name = config["outputs"]["energy"].get("property")

    def in_ev(energy: Tensor | Mapping[str, Tensor]) -> Tensor:
        return denorm(energy[name] if isinstance(energy, Mapping) else energy)

    data = create_dataset(train, "train")
    return references_of_difference(model, (data[i] for i in range(len(data))), in_ev)
