"""Data sets of recipes: the configs of which they take, and how long small models train on them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fairchem_piwsl.config import data_folder, load_config, load_parts, moved, read_yaml
from fairchem_piwsl.errors import UserError

#: case of Table A3 that models without a printed one get: the most frequent one
OTHER_CASE = "B"


@dataclass(frozen=True)
class DataSet:
    """A data set in folder `data/<name>`."""

    name: str
    #: data set of configs/s2ef whose configs are taken; its own where empty
    like: str = ""
    #: training steps of the small scale, and structures a step
    steps: int = 3003
    batch_size: int = 8

    def config(self, folder: Path, model: str) -> dict[str, Any]:
        """The whole training config of a model.

        Args:
            folder: of the configs, `configs/s2ef`. Where it has no file for this data set and model, the config
                is made of its parts, with case B of the weak terms.
            model: name of a file in `folder/models`.

        Raises:
            UserError: there is neither a config nor all of its parts.
        """
        source = self.like or self.name
        path = folder / source / f"{model}.yml"
        parts = ["base.yml", f"datasets/{source}.yml", f"models/{model}.yml", f"cases/{OTHER_CASE}.yml"]
        if path.is_file():
            config = load_config(path)
        elif all((folder / part).is_file() for part in parts):
            config = load_parts(folder / f"{source}_{model}.yml", parts)
        else:
            raise UserError(f"{path} does not exist; correct the recipe's 'runs'.")
        return moved(config, data_folder(config), Path("data", self.name)) if self.like else config


def read_data_sets(path: Path) -> dict[str, DataSet]:
    """The data sets of `small/data_sets.yml` by name.

    Raises:
        UserError: an entry has a key that is not known.
    """
    known = {item.name for item in fields(DataSet)} - {"name"}
    content = read_yaml(path, "data sets")
    for name, entry in content.items():
        if not isinstance(entry, dict) or not entry.keys() <= known:
            raise UserError(f"{path}: {name} must be a block of {', '.join(sorted(known))}, not {entry!r}.")
    return {name: DataSet(name, **entry) for name, entry in content.items()}
