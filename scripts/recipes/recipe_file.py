"""A recipe: which configs make up a table or figure, how to shorten them, and what to measure afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fairchem_piwsl.config import read_yaml
from fairchem_piwsl.errors import UserError


@dataclass(frozen=True)
class Smoke:
    """How `--scale smoke` shortens a recipe."""

    #: patterns of configs; those of the recipe where empty
    configs: tuple[str, ...] = ()
    #: training steps of the shortest run
    steps: int = 300
    #: what to do instead, where there is no small scale
    instead: str = ""
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Recipe:
    """One table or figure of the paper."""

    name: str
    title: str
    #: patterns of files below the folder of configs
    configs: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    smoke: Smoke = field(default_factory=Smoke)
    #: command of `piwsl` (consistency, profile or md) -> its settings
    measure: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: the paper's name of the data set, where it is not that of the data's folder
    paper_dataset: str | None = None


MEASUREMENTS = ("consistency", "profile", "md")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe's YAML file.

    Raises:
        UserError: the file is missing, or holds an unknown key.
    """
    content = read_yaml(path, "recipe")
    smoke = content.get("smoke", {})
    _check_keys(
        path,
        content,
        {"title", "configs", "seeds", "smoke", "measure", "paper_dataset"},
        {"title", "configs"},
    )
    _check_keys(path, smoke, {item.name for item in fields(Smoke)}, set())
    _check_keys(path, content.get("measure", {}), set(MEASUREMENTS), set())
    return Recipe(name=path.stem, **_tuples(content | {"smoke": Smoke(**_tuples(smoke))}))


def _tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}


def _check_keys(path: Path, content: Mapping[str, Any], known: set[str], needed: set[str]) -> None:
    for key in content:
        if key not in known:
            raise UserError(f"{path}: key '{key}' is not known; choose among {', '.join(sorted(known))}.")
    for key in sorted(needed - set(content)):
        raise UserError(f"{path}: key '{key}' is missing.")


def find_configs(folder: Path, patterns: tuple[str, ...], only: str | None = None) -> dict[str, Path]:
    """Config files by name, `<folder>/<file without suffix>`, in the order of the patterns.

    Args:
        folder: folder of the configs, `configs/s2ef`.
        patterns: shell patterns below it.
        only: a part of the names to keep, or a shell pattern of them.

    Raises:
        UserError: a pattern, or `only`, matches nothing.
    """
    from fnmatch import fnmatch

    found: dict[str, Path] = {}
    for pattern in patterns:
        paths = sorted(folder.glob(pattern))
        if not paths:
            raise UserError(f"{folder / pattern} matches no config.")
        found |= {f"{path.parent.name}/{path.stem}": path for path in paths}
    kept = {name: path for name, path in found.items() if only is None or only in name or fnmatch(name, only)}
    if not kept:
        raise UserError(f"--only {only} matches no run of this recipe; it has {', '.join(found)}.")
    return kept
