"""What runs were trained with: configs without what is personal, and those of fairchem 2 in the layout of 1.10."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fairchem_piwsl.config import entries
from fairchem_piwsl.errors import UserError

#: parts of a config in which two runs of one method may differ: paths, names, seed, how they load and save
PERSONAL = (
    "cmd", "logger", "slurm", "gpus", "local_rank", "dataset", "val_dataset", "test_dataset",
    "optim.num_workers", "optim.eval_batch_size", "optim.checkpoint_every",
)  # fmt: skip
#: the same of fairchem 2, or read apart
_PERSONAL_2 = ("job_config", "seed", "src", "callbacks", "model", "tasks", "collate_fn", "num_workers")


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys and values of a config, without those of `PERSONAL`, which runs of one method differ in."""
    shared = {key: value for key, value in config.items() if key not in PERSONAL}
    return {
        key: value
        for key, value in entries(shared, in_lists=False)
        if not isinstance(value, Mapping) and key not in PERSONAL
    }


def run_config(checkpoint: Path) -> dict[str, Any]:
    """The config of the run that wrote a checkpoint; of an unknown run, where its files are not there."""
    files = (checkpoint.with_name("resume.yaml"), checkpoint.parent.parent.parent / "canonical_config.yaml")
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return {"model": {"name": "unknown"}}
    try:
        return in_old_layout(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (AttributeError, KeyError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: not the config of a training with fairchem 2 ({error!r}); move it away, or give another run."
        ) from None


def in_old_layout(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of fairchem 2 with the keys under which reports find what a run was."""
    runner = config["runner"]
    unit = runner["train_eval_unit"]
    callbacks = runner.get("callbacks") or []
    piwsl = [one for one in callbacks if str(one["_target_"]).endswith(".PIWSLCallback")]
    return {
        "cmd": {"seed": config["job"].get("seed")},
        "dataset": {"src": next(iter(_sources(runner["train_dataloader"]["dataset"])), "unknown")},
        "model": _model(unit["model"]),
        "optim": {"piwsl": {key: value for one in piwsl for key, value in one.items() if key != "_target_"}},
        "loss_functions": [{task["property"]: _shared(task)} for task in unit["tasks"]],
        "runner": _shared(runner),
    }


def _model(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone under the key `name`; of a fine-tuned model, what it started from."""
    backbone = dict(settings.get("backbone") or {})
    name = backbone.pop("model", None) or settings.get("checkpoint_location") or settings["_target_"]
    others = {key: value for key, value in settings.items() if key not in ("backbone", "_target_")}
    return {"name": str(name).removesuffix(".pt").rsplit("/", 1)[-1], **backbone, **others}


def _sources(dataset: Mapping[str, Any]) -> list[str]:
    """Paths of the training data."""
    splits = [split for one in dataset["dataset_configs"].values() for split in one["splits"].values()]
    return [source for split in splits for source in _as_list(split["src"])]


def _as_list(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _shared(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key not in _PERSONAL_2
    }
