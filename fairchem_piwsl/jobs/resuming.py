"""Which checkpoint a run goes on from, and whether the run is still the same.

A run resumes when it is asked to: by `--checkpoint`, or by the `--timestamp-id` of a run that has a checkpoint, as
a job does that SLURM queues again. Under its own name it must be the same run; with `--checkpoint` it may differ,
but for what the file brings along, and says in what.
"""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem.core.common.utils import update_config

from fairchem_piwsl.config import entries
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training.checkpoint_files import load_weights, no_training_state, read_checkpoint
from fairchem_piwsl.training.class_arguments import SCHEDULERS, of_signature
from fairchem_piwsl.training.data_checks import by_split
from fairchem_piwsl.training.preflight import build_model

#: what a run may change when it goes on: its length, what it writes and when, how it loads
MAY_CHANGE = (
    "optim.max_epochs", "optim.eval_every", "optim.checkpoint_every", "optim.eval_batch_size", "optim.num_workers"
)  # fmt: skip
#: blocks of a checkpoint's config that say what is trained, and on what, and how a user's config calls them
COMPARED = {
    "model": "model",
    "optim": "optim",
    "loss_functions": "loss_functions",
    "outputs": "outputs",
    "dataset": "dataset.train",
    "val_dataset": "dataset.val",
}
#: what fairchem's trainer loads from a checkpoint over what it made from the config: in words, and by its keys
STAYS = "whose optimizer, schedule, average, normalisers and element references stay"
LOADED = (
    "optim.lr_initial", "optim.weight_decay", "optim.optimizer", "optim.optimizer_params", "optim.scheduler",
    *(f"optim.{name}" for kind in SCHEDULERS.values() for name in of_signature(kind).settings),
    "optim.ema_decay", "optim.ema_warmup",
    "dataset.train.transforms.normalizer", "dataset.train.transforms.element_references",
)  # fmt: skip
#: to be told of at most so many differences
MAX_SHOWN = 8


def own_checkpoint(config: Mapping[str, Any]) -> Path | None:
    """The checkpoint that a training of this name has left; none where it has no name or left nothing."""
    if config.get("mode") != "train" or not config.get("timestamp_id"):
        return None
    path = Path(config.get("run_dir", "./")) / "checkpoints" / config["timestamp_id"] / "checkpoint.pt"
    return path if path.is_file() else None


def is_finished(config: Mapping[str, Any]) -> bool:
    """Whether the run of this name has nothing left to train."""
    path = own_checkpoint(config)
    return path is not None and read_checkpoint(path).get("epoch", 0) >= config["optim"]["max_epochs"]


def check_predictions(config: Mapping[str, Any]) -> None:
    """Refuse to predict under the name of earlier predictions, which upstream would write over."""
    if config["mode"] in ("predict", "run-relaxations") and config.get("timestamp_id"):
        folder = Path(config.get("run_dir", "./")) / "results" / config["timestamp_id"]
        if any(folder.glob("*.npz")):
            raise UserError(f"{folder} holds predictions already: give another --timestamp-id.")


def check_start(config: Mapping[str, Any], ranks: int) -> None:
    """Refuse what `config` cannot start from; log how it differs from the checkpoint of another run.

    Args:
        config: with the keys that `main.py` adds.
        ranks: number of processes that the run will have.

    Raises:
        UserError: the checkpoint is no checkpoint, is of another model, holds weights alone where training is to
            go on, has a state of training that `config` would change, or was left under the same name by a run
            with other settings.
    """
    own = own_checkpoint(config)
    path = own or config.get("checkpoint")
    if path is None:
        return
    key = "--timestamp-id" if own else "--checkpoint"
    checkpoint = read_checkpoint(path, key=key)
    if config["mode"] == "train" and "optimizer" not in checkpoint:
        raise no_training_state(path)
    if own:
        check_same_run(config, own, ranks)
    elif config["mode"] == "train" and (found := differences(checkpoint, config, ranks)):
        if loaded := [difference for difference in found if _is_loaded(difference)]:
            raise UserError(
                f"--checkpoint goes on from {path}, {STAYS}: {_listed(loaded)}. Repeat these settings, or start anew "
                "from its weights with optim.finetune_from."
            )
        logging.warning(f"going on from {path}, {STAYS}, with other settings: {_listed(found)}")
    if (config.get("task") or {}).get("strict_load", True):  # fairchem's key: else what fits is taken
        load_weights(build_model(config["model"]), checkpoint, path, key)


def check_same_run(config: Mapping[str, Any], own: Path, ranks: int) -> None:
    """Refuse a run under the name of one with other settings, whose checkpoint is `own`."""
    found = differences(read_checkpoint(own, key="--timestamp-id"), config, ranks)
    if found:
        raise UserError(
            f"--timestamp-id {config['timestamp_id']} names a run with other settings, in {own.parent}: "
            f"{_listed(found)}. Repeat its settings to go on with it, or give another --timestamp-id for a new run "
            f"(with --checkpoint {own}, {STAYS}, to go on from there)."
        )


def _listed(found: list[str]) -> str:
    return "; ".join(found[:MAX_SHOWN]) + ("; ..." if len(found) > MAX_SHOWN else "")


def differences(checkpoint: Mapping[str, Any], config: Mapping[str, Any], ranks: int) -> list[str]:
    """What a checkpoint's run was given and `config` gives otherwise, one short text for each key."""
    old, new = _settings(checkpoint["config"]), _settings(_as_in_checkpoint(config))
    old["seed"], new["seed"] = checkpoint["config"].get("cmd", {}).get("seed"), config.get("seed")
    old["amp"], new["amp"] = bool(checkpoint["config"].get("amp")), bool(config.get("amp"))
    if "piwsl_resume" in checkpoint:
        old["number of ranks"], new["number of ranks"] = len(checkpoint["piwsl_resume"]["random"]), ranks
    return [
        f"{key} was {_shown(old.get(key))} and is {_shown(new.get(key))}"
        for key in sorted({*old, *new})
        if not _same(key, old.get(key), new.get(key))
    ]


def _is_loaded(difference: str) -> bool:
    """Whether the config would change what is loaded; its files may have moved, and without T_max the run's end holds."""
    key, _, change = difference.partition(" was ")
    free = key.endswith(".file") or (key == "optim.T_max" and change.endswith(" is not set"))
    return not free and any(f"{key}.".startswith(f"{name}.") for name in LOADED)


def _as_in_checkpoint(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as fairchem's trainer stores it, data sets apart and old layouts translated."""
    stored = copy.deepcopy({key: value for key, value in config.items() if key != "dataset"})
    data = by_split(config.get("dataset"))
    stored["dataset"] = copy.deepcopy(data.get("train") or {})
    stored["val_dataset"] = copy.deepcopy(data.get("val") or {})
    stored.setdefault("task", {})
    return update_config(stored)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of what is compared."""
    found = entries({name: config.get(block) for block, name in COMPARED.items()})
    inner = (Mapping, list, tuple, type(None))
    return {key: value for key, value in found if key not in MAY_CHANGE and not isinstance(value, inner)}


def _same(key: str, old: Any, new: Any) -> bool:
    if old == new or (key.startswith("outputs.") and new is None):
        return True  # fairchem's trainer adds to `outputs`
    if ".src" in key and isinstance(old, str) and isinstance(new, str):
        return Path(old).resolve() == Path(new).resolve()
    return False


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
