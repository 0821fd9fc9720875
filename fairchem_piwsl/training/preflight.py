"""Checks of a run before anything is written: settings, outputs, data sets, labels."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lmdb
import torch
from fairchem.core.datasets.base_dataset import create_dataset
from torch_geometric.data import Data

from fairchem_piwsl.datasets.lmdb_checks import check_complete
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.settings import PIWSLSettings

SPLITS = ("train", "val", "test")


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check the trainer's arguments and fill in what upstream needs but has no default for.

    Returns:
        The arguments, with `evaluation_metrics.primary_metric` set.

    Raises:
        UserError: one sentence that names the key or file at fault and the remedy.
    """
    config = dict(config)
    settings = PIWSLSettings.from_config(config["optimizer"].get("piwsl"))
    if not config.get("loss_functions"):
        return config  # the layout before fairchem 1.0, which upstream translates later
    _check_outputs(config, settings)
    _check_normalizers(config["dataset"])
    source = config["optimizer"].get("finetune_from")
    if source and not Path(source).is_file():
        raise UserError(f"checkpoint {source} does not exist: check the path given to optim.finetune_from.")
    with_forces = True
    if not config.get("inference_only"):
        with_forces = _check_datasets(config["dataset"], config["outputs"])
    evaluation = copy.deepcopy(config.get("evaluation_metrics") or {})
    primary = "forces_rmse" if with_forces and "forces" in config["outputs"] else "energy_rmse"
    evaluation.setdefault("primary_metric", primary)
    if not with_forces and "forces" in evaluation["primary_metric"]:
        raise UserError(
            f"evaluation_metrics.primary_metric '{evaluation['primary_metric']}' needs force labels, and "
            "dataset.val has none; use energy_rmse."
        )
    config["evaluation_metrics"] = evaluation
    return config


def _check_outputs(config: Mapping[str, Any], settings: PIWSLSettings) -> None:
    needed = ["energy", "forces"] if settings.weak or settings.validates_consistency else []
    for name in needed:
        if name not in config["outputs"]:
            raise UserError(
                f"the weak terms of optim.piwsl compare energies with forces, but 'outputs' has no '{name}'; add "
                f"outputs.{name} and let the model predict it (model.regress_forces: true)."
            )
    if "forces" in config["outputs"] and config["model"].get("regress_forces") is False:
        raise UserError(
            "outputs.forces asks for forces that the model is told not to predict; set model.regress_forces: true, "
            "or remove outputs.forces and its loss."
        )


def _check_normalizers(dataset: Any) -> None:
    train = _split(dataset, "train")
    for name, values in ((train.get("transforms") or {}).get("normalizer") or {}).items():
        width = values.get("stdev", values.get("rmsd")) if isinstance(values, Mapping) else None
        if isinstance(width, (int, float)) and not width > 0:
            raise UserError(f"dataset.train.transforms.normalizer.{name}.stdev must be > 0, not {width}.")


def _check_datasets(dataset: Any, outputs: Mapping[str, Any]) -> bool:
    """Look at each data set; returns whether the validation set (or training set) has any force label."""
    has_forces: dict[str, bool] = {}
    for name in SPLITS:
        split = (
            {**_split(dataset, "train"), **_split(dataset, name)}
            if name != "train"
            else _split(dataset, name)
        )
        if "src" not in _split(dataset, name):
            continue
        for path in split["src"] if isinstance(split["src"], list) else [split["src"]]:
            if not Path(path).exists():
                raise UserError(
                    f"dataset.{name}.src: {path} does not exist; make it with `piwsl prepare`, or correct the "
                    "path (it counts from the folder of the command)."
                )
        if split.get("format", "lmdb") == "lmdb":
            has_forces[name] = _check_lmdb(name, split, outputs)
    if "train" in has_forces and not has_forces["train"] and "forces" in outputs:
        logging.info("The training set has no force labels: the supervised force loss is zero.")
    return has_forces.get("val", has_forces.get("train", True))


def _check_lmdb(name: str, split: Mapping[str, Any], outputs: Mapping[str, Any]) -> bool:
    """Read structures until labels of every output are found; returns whether there are force labels."""
    source = f"dataset.{name}.src: {split['src']}"
    without_transforms = {key: value for key, value in split.items() if key != "transforms"}
    try:
        for path in split["src"] if isinstance(split["src"], list) else [split["src"]]:
            check_complete(path)
        data = create_dataset(without_transforms, name)
        if len(data) == 0:
            raise UserError(f"{source} holds no structures; make it again with `piwsl prepare`.")
        seen = _labels(data, [key for key in ("energy", "forces") if key in outputs])
    except (lmdb.Error, OSError, EOFError, TypeError, AssertionError) as error:
        if "already open" in str(error):
            raise UserError(
                f"{source} is open already in this process, which LMDB allows only once; give each split a file "
                "of its own, and let go of other data sets or trainers that read it."
            ) from None
        raise UserError(
            f"{source} cannot be read as LMDB ({error}); make it again with `piwsl prepare`."
        ) from None
    if name == "train" and not any(seen.values()):
        raise UserError(
            f"{source} has none of the labels {', '.join(seen)}; name them with dataset.train.key_mapping "
            "(e.g. {y: energy, force: forces}) or make the data set again with `piwsl prepare`."
        )
    return seen.get("forces", False)


def _labels(data: Any, names: list[str]) -> dict[str, bool]:
    """Which labels the data set has at all; stops at the first structure that settles it."""
    seen = dict.fromkeys(names, False)
    for index in range(len(data)):
        structure: Data = data[index]
        for name in names:
            label = structure.get(name)
            seen[name] |= label is not None and not bool(torch.as_tensor(label).isnan().any())
        if all(seen.values()):
            break
    return seen


def _split(dataset: Any, name: str) -> dict[str, Any]:
    """One split of upstream's `dataset`, a block or a list."""
    if isinstance(dataset, list):
        dataset = dict(zip(SPLITS, dataset, strict=False))
    elif "src" in dataset:
        dataset = {"train": dataset}
    return dict(dataset.get(name) or {})
