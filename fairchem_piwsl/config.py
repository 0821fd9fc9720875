"""Base configs of a sweep: reading with `includes`, and reading or replacing entries by dotted key."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fairchem_piwsl.errors import UserError

#: settings under `optim` that a config may leave out
OPTIONAL = (
    "batch_size", "checkpoint_every", "clip_grad_norm", "ema_decay", "ema_warmup", "eval_batch_size", "eval_every",
    "lr_initial", "max_epochs", "num_workers", "optimizer", "scheduler", "weight_decay",
)  # fmt: skip


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML file that must hold a mapping; `what` names its role in errors."""
    if not path.is_file():
        raise UserError(f"{what} {path} does not exist: check the path.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{what} {path} is not valid YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{what} {path} must be a block of keys, not {type(content).__name__}.")
    return content


def load_base(path: Path) -> dict[str, Any]:
    """A training config with its `includes` merged the way fairchem does: the including file wins.

    An included path counts from the including file, or else from the working directory.
    """
    return _load(path, ())


def _load(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise UserError(f"config {path} includes itself: remove the circle from its 'includes'.")
    config = read_yaml(path, "config")
    merged: dict[str, Any] = {}
    for name in config.pop("includes", None) or []:
        candidates = [Path(name), path.parent / name]
        found = next((c for c in candidates if c.is_file()), None)
        if found is None:
            raise UserError(f"config {path} includes {name}, which does not exist: correct its 'includes'.")
        merged = merge(merged, _load(found, (*above, path.resolve())))
    return merge(merged, config)


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`low` with the entries of `high` laid over it, block by block."""
    result = dict(low)
    for key, value in high.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return result


def dotted_keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a config, blocks included, as `optim.piwsl.c_pitc`; list entries count from 0."""
    if isinstance(config, Mapping):
        entries: Any = config.items()
    elif isinstance(config, list):
        entries = enumerate(config)
    else:
        return
    for name, value in entries:
        key = f"{prefix}.{name}" if prefix else str(name)
        yield key
        yield from dotted_keys(value, key)


def check_keys(config: Mapping[str, Any], keys: Any, where: str) -> None:
    """Raise for the first of `keys` that is neither in the config nor a setting that it may leave out."""
    known = set(dotted_keys(config)) | piwsl_keys() | {f"optim.{name}" for name in OPTIONAL}
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "add the key to the base config first."
            raise UserError(f"{where}: '{key}' is not a key of the base config; {hint}")


def piwsl_keys() -> set[str]:
    """The settings of `optim.piwsl`, which a base config may leave at their defaults."""
    from fairchem_piwsl.settings import PIWSLSettings

    return {f"optim.piwsl.{field.name}" for field in dataclasses.fields(PIWSLSettings)}


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config` with the entries at dotted keys replaced; blocks on the way are made."""
    result: dict[str, Any] = copy.deepcopy(dict(config))
    for key, value in values.items():
        *path, last = key.split(".")
        block: Any = result
        for name in path:
            if isinstance(block, list):
                block = block[int(name)]
            else:
                if block.get(name) is None:
                    block[name] = {}
                block = block[name]
        block[int(last) if isinstance(block, list) else last] = copy.deepcopy(value)
    return result


def get_value(config: Any, key: str, default: Any = None) -> Any:
    """The entry at a dotted key, or `default`."""
    for name in key.split("."):
        try:
            config = config[int(name)] if isinstance(config, list) else config[name]
        except (KeyError, IndexError, TypeError, ValueError):
            return default
    return config
