"""Checks of a whole config before anything is written: keys and values, files, the model, the data sets."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports, update_config
from torch import nn

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.kinds import metric_name
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.training.checkpoint_files import load_weights, read_checkpoint
from fairchem_piwsl.training.config_layout import layout
from fairchem_piwsl.training.data_checks import by_split, check_datasets, reason, splits
from fairchem_piwsl.training.metrics import ROOT_MEAN_SQUARES
from fairchem_piwsl.training.random_states import random_state, set_random_state

#: trainers that are given data sets, outputs and losses as here; others are left to themselves
TRAINERS = ("piwsl_forces", "fairchem_piwsl.trainer.PIWSLForcesTrainer", "ocp", "forces", "energy")
#: what tells runs of one config apart
OF_ONE_RUN = ("identifier", "timestamp_id", "seed")
#: formats of data sets in the layout before fairchem 1.0
OLD_FORMATS = (
    "trajectory_lmdb", "lmdb", "trajectory_lmdb_v2", "oc22_lmdb", "ase_read", "ase_read_multi", "ase_db",
    "single_point_lmdb",
)  # fmt: skip


def check(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check a trainer's arguments and fill in what upstream needs but has no default for.

    Returns:
        The arguments, with `evaluation_metrics.primary_metric` set.

    Raises:
        UserError: one sentence that names the key or file at fault and the remedy.
    """
    arguments = dict(arguments)
    if arguments.get("inference_only"):
        PIWSLSettings.from_config(arguments["optimizer"].get("piwsl"))
        return arguments
    of_config = (
        "task",
        "model",
        "outputs",
        "dataset",
        "loss_functions",
        "evaluation_metrics",
        "logger",
        "seed",
    )
    config = {key: arguments[key] for key in of_config if key in arguments}
    config = {**config, "optim": arguments["optimizer"], "trainer": "piwsl_forces"}
    primary = check_config(config, needs_data=False)
    if arguments.get("loss_functions"):  # the layout before fairchem 1.0 gets its metrics from upstream
        evaluation = copy.deepcopy(arguments.get("evaluation_metrics") or {})
        arguments["evaluation_metrics"] = {"primary_metric": primary, **evaluation}
    return arguments


def check_config(config: Mapping[str, Any], needs_data: bool = True, reads_data: bool = True) -> str:
    """Check a config as it stands in a YAML file, its includes and overrides applied.

    Args:
        config: is not changed. What main.py adds to it (`seed`, `run_dir`, ...) may be in it.
        needs_data: whether a config without a training set is a mistake, where its `mode` is to train.
        reads_data: whether the data sets are looked through, which has its time.

    Returns:
        The metric that decides which checkpoint is the best one.

    Raises:
        UserError: one sentence that names the key or file at fault and the remedy.
    """
    if not check_keys(config):
        return ""
    config = in_new_layout(config)
    layout(config).check(config, "")
    own = "piwsl" in config.get("trainer", "ocp").lower()
    settings = PIWSLSettings.from_config(config["optim"].get("piwsl"))
    _check_outputs(config, settings)
    _check_files(config)
    primary = _check_primary_metric(config, settings, own)
    training = config.get("mode", "train") == "train"
    if not own and config["optim"].get("scheduler") == "CosineAnnealingLR" and "T_max" not in config["optim"]:
        raise UserError("optim.T_max is missing, which the stock trainer needs; add it, in steps.")
    present = splits(config["dataset"])
    if training and needs_data and "train" not in present:
        raise UserError(
            "dataset.train.src is missing; add the data set to train on, as `piwsl prepare` prints it."
        )
    if config.get("mode") == "run-relaxations" and not by_split(config["dataset"]).get("relax"):
        raise UserError(
            "--mode run-relaxations relaxes the structures of dataset.relax, which is missing; add it."
        )
    if training and config["optim"].get("scheduler") == "ReduceLROnPlateau" and "val" not in present:
        raise UserError("optim.scheduler ReduceLROnPlateau follows the validation error; add dataset.val.")
    model = build_model(config["model"])
    if source := config["optim"].get("finetune_from"):
        key = "optim.finetune_from"
        load_weights(model, read_checkpoint(source, key=key), source, key)
    labels = check_datasets(config["dataset"], config["outputs"], model) if reads_data else {}
    with_forces = "forces" in labels.get("val", labels.get("train", {"forces"}))
    if not primary:
        target = "forces" if with_forces and "forces" in config["outputs"] else "energy"
        if own and target not in config["outputs"]:
            raise UserError(
                "evaluation_metrics.primary_metric is missing; name a validation metric, such as "
                f"{next(iter(config['outputs']))}_mae (it has a default for labels of energy and forces alone)."
            )
        return f"{target}_rmse"
    if not with_forces and "forces" in primary:
        raise UserError(
            f"evaluation_metrics.primary_metric '{primary}' needs force labels, and dataset.val has none; use "
            "energy_rmse (--evaluation_metrics.primary_metric=energy_rmse)."
        )
    return primary


def check_configs(configs: Iterable[Mapping[str, Any]]) -> None:
    """`check_config` for several runs, once for those that differ in nothing but name and seed."""
    checked: list[dict[str, Any]] = []
    for config in configs:
        check_keys(config)
        settings = {key: value for key, value in config.items() if key not in OF_ONE_RUN}
        if settings not in checked:
            check_config(config)
            checked.append(settings)


def check_keys(config: Mapping[str, Any]) -> bool:
    """Check keys and values, but no files; returns whether the config is for one of the `TRAINERS`.

    Raises:
        UserError: names the key at fault and the remedy.
    """
    setup_imports()
    trainer = config.get("trainer", "ocp")
    layout({}).settings["trainer"].check(trainer, "trainer")
    if trainer in TRAINERS:
        layout(config).check(config, "")
        PIWSLSettings.from_config(config["optim"].get("piwsl"))
        _check_schedule(config["optim"])
    return trainer in TRAINERS


def build_model(model: Mapping[str, Any]) -> nn.Module:
    """The model of a config, on the CPU; random numbers that follow are not changed.

    Raises:
        UserError: what the model's own code says against its settings.
    """
    arguments = copy.deepcopy(dict(model))
    kind = registry.get_model_class(arguments.pop("name"))
    state = random_state()
    try:
        return kind(**arguments)
    except UserError:
        raise
    except Exception as error:  # of any model's code
        raise UserError(
            f"model '{model['name']}' cannot be built ({reason(error)}); correct the block 'model'."
        ) from None
    finally:
        set_random_state(state)


def in_new_layout(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` as upstream translates it where it is written in the layout before fairchem 1.0."""
    config = dict(config)
    if config.get("loss_functions"):
        if not config.get("outputs"):
            raise UserError(
                "outputs is missing; add what the model predicts, e.g. `outputs: {energy: {level: system}}`."
            )
        return config
    task = config.get("task") or {}
    if "loss_fns" not in config and task.get("dataset") not in OLD_FORMATS:
        raise UserError(
            "loss_functions is missing; add a list such as `- energy: {fn: mae, coefficient: 1}` (in the layout "
            f"before fairchem 1.0, task.dataset has to be one of {', '.join(OLD_FORMATS)})."
        )
    parts = by_split(config["dataset"])
    train = copy.deepcopy(dict(parts.get("train") or {}))
    translated = update_config({**config, "task": task, "dataset": train})
    return {**translated, "dataset": {**parts, "train": translated["dataset"]}}


def _check_schedule(optim: Mapping[str, Any]) -> None:
    """Upstream's schedule where none is named, a function of four settings, or three without a warm-up."""
    if "scheduler" in optim:
        return
    needed = ["warmup_steps", "lr_gamma", "lr_milestones"]
    if optim.get("warmup_steps") != -1:
        needed.append("warmup_factor")
    if any(key not in optim for key in needed):
        raise UserError(
            "optim.scheduler is missing; name one, or 'Null' in quotes for a constant learning rate (upstream's "
            f"own schedule needs {', '.join(needed)})."
        )
    if "warmup_epochs" in optim or any(step < 100 for step in optim["lr_milestones"]):
        raise UserError(
            "optim.lr_milestones counts steps, at least 100, not epochs; give it and warmup_steps in steps and "
            "remove warmup_epochs."
        )


def _check_outputs(config: Mapping[str, Any], settings: PIWSLSettings) -> None:
    outputs = config["outputs"]
    needed = (
        ["energy", "forces"] if settings.weak or settings.balances or settings.validates_consistency else []
    )
    for name in needed:
        if name not in outputs:
            raise UserError(
                f"optim.piwsl compares energies with forces, but 'outputs' has no '{name}'; add "
                f"outputs.{name} and let the model predict it (model.regress_forces: true)."
            )
    if "forces" in outputs and config["model"].get("regress_forces") is False:
        raise UserError(
            "outputs.forces asks for forces that the model is told not to predict; set model.regress_forces: true, "
            "or remove outputs.forces and its loss."
        )
    for name, output in outputs.items():
        level = {"energy": "system", "forces": "atom"}.get(name, output["level"])
        if output["level"] != level:
            raise UserError(f"outputs.{name}.level is '{output['level']}'; set '{level}'.")
        for key in ("train_on_free_atoms", "eval_on_free_atoms") if output["level"] == "atom" else ():
            if key not in output:
                raise UserError(
                    f"outputs.{name}.{key} is missing; add true (atoms marked 'fixed' do not count) or false."
                )
    parts = [output.get("decomposition", {}) for output in outputs.values()]
    known = {**{name: part for part in parts for name, part in part.items()}, **outputs}
    metrics = (config.get("evaluation_metrics") or {}).get("metrics") or {}
    losses = [
        (f"loss_functions.{index}.{name}", name, loss)
        for index, terms in enumerate(config["loss_functions"])
        for name, loss in terms.items()
    ]
    used = [(f"evaluation_metrics.metrics.{name}", name) for name in metrics]
    for key, name in [*used, *((key, name) for key, name, _ in losses)]:
        if name not in known and name != "misc":
            raise UserError(
                f"{key} is for an output that the config does not have; remove it, or add outputs.{name}."
            )
    for key, name, loss in losses:
        vector = known[name].get("level") == "atom"
        unfit = ("per_atom_mae",) if vector else ("l2mae", "l2norm") if name == "energy" else ()
        if loss["fn"] in unfit:
            raise UserError(
                f"{key}.fn '{loss['fn']}' is no loss for {'vectors' if vector else 'a number'}; use "
                f"{'l2mae' if vector else 'mae'}."
            )


def _check_files(config: Mapping[str, Any]) -> None:
    """Files beside the data sets: normaliser, element references."""
    transforms = splits(config["dataset"]).get("train", {}).get("transforms") or {}
    for kind in ("element_references", "normalizer"):
        block = transforms.get(kind) or {}
        inner = [(f".{name}", entry) for name, entry in block.items() if isinstance(entry, Mapping)]
        for name, entry in [("", block), *inner]:
            if "file" in entry:
                _check_values_file(Path(entry["file"]), f"dataset.train.transforms.{kind}{name}.file", kind)
                continue
            complete = "tensor" in entry or ("mean" in entry and ("stdev" in entry or "rmsd" in entry))
            if kind == "normalizer" and name not in ("", ".fit") and not complete:
                raise UserError(
                    f"dataset.train.transforms.normalizer{name} needs mean and stdev, or a file; add what is missing."
                )


def _check_values_file(path: Path, key: str, kind: str) -> None:
    remedy = "correct the path, or make the file with `piwsl prepare`"
    if not path.is_file():
        raise UserError(f"{key}: {path} does not exist; {remedy}.")
    if path.suffix not in (".npz", ".pt"):
        raise UserError(f"{key}: {path} is neither .npz nor .pt; {remedy}.")
    if path.suffix != ".npz":
        return
    wanted = {"element_references": ("coeff", "element_references"), "normalizer": ("mean",)}[kind]
    try:
        with np.load(path, allow_pickle=False) as file:
            values = next((file[name] for name in wanted if name in file), None)
    except Exception as error:  # of zip, numpy or the file system
        raise UserError(f"{key}: {path} cannot be read ({type(error).__name__}); {remedy}.") from None
    if values is None or not np.isfinite(values).all():
        raise UserError(f"{key}: {path} has no finite {' or '.join(wanted)}; {remedy}.")


def _check_primary_metric(config: Mapping[str, Any], settings: PIWSLSettings, own: bool) -> str:
    """The metric that the config names, one of those that a validation gives; empty where it names none."""
    evaluation = config.get("evaluation_metrics") or {}
    primary = evaluation.get("primary_metric", "")
    if not primary or not own:
        return primary
    named = [
        metric_name(name, fn)
        for name, functions in (evaluation.get("metrics") or {}).items()
        for fn in functions
    ]
    roots = [name for name in ROOT_MEAN_SQUARES if name.split("_")[0] in config["outputs"]]
    pitc = ["pitc_rmse"] if settings.validates_consistency else []
    known = list(dict.fromkeys([*roots, *pitc, *named, "loss"]))
    if primary not in known and not primary.startswith(("loss_", "weighted_")):
        raise UserError(
            f"evaluation_metrics.primary_metric '{primary}' is not among the validation metrics "
            f"({', '.join(known)}); choose one of these."
        )
    return primary
