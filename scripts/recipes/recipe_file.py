"""A recipe: which runs make up a table or figure, how to shorten them, and what to measure afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from fairchem_piwsl.config import read_yaml, with_method, with_values
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.kinds import did_you_mean
from fairchem_piwsl.sweeps.blocks import Block, NaturalInt, PositiveInt, checked
from recipes.data_sets import DataSet, read_data_sets

#: commands of `piwsl` that a recipe may ask for
MEASUREMENTS = ("consistency", "profile", "md")
Names = Annotated[list[str], Field(min_length=1)]


class Runs(Block):
    """Runs of each model on each data set with each method."""

    data: Names
    models: Names
    #: name -> dotted keys of the config with their values; and `method`, where it is not the name, `length`, the
    #: factor on the length of the training, and `vary`, dotted keys with lists of values, a run for each combination
    methods: Mapping[str, Mapping[str, Any]]

    @field_validator("methods", mode="before")
    @classmethod
    def _are_named(cls, methods: Any) -> Any:
        methods = dict.fromkeys(methods) if isinstance(methods, list) else methods
        if not isinstance(methods, dict) or not all(isinstance(v, dict | None) for v in methods.values()):
            raise ValueError(" must be names, or names with blocks of keys and values")
        return {name: changes or {} for name, changes in methods.items()}


@dataclass(frozen=True)
class PlannedRun:
    """One run: a data set, a model, a method, and what else it changes."""

    #: of the configs, `configs/s2ef`
    folder: Path
    data: DataSet
    model: str
    #: name of the method within the recipe
    label: str
    #: what `--method` takes
    method: str
    #: dotted keys of the config with their values
    changes: Mapping[str, Any]
    #: factor on the length of the training
    length: float = 1.0
    #: last part of a dotted key -> value, of what the recipe varies
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`<data set>/<model>_<method>`."""
        return f"{self.data.name}/{self.model}_{self.label}"

    def config(self) -> dict[str, Any]:
        """The whole training config."""
        config = with_method(self.data.config(self.folder, self.model), self.method)
        epochs = config["optim"]["max_epochs"]
        longer = {"optim.max_epochs": round(self.length * epochs)} if self.length != 1 else {}
        return with_values(config, {**longer, **self.changes})


class Smoke(Block):
    """How `--scale smoke` shortens a recipe."""

    #: patterns of the runs that are made; all where empty
    only: list[str] = Field(default=[])
    #: training steps of the shortest run; None: those of its data set, on that data set and no other
    steps: PositiveInt | None = 300
    #: what to do instead, where there is no small scale
    instead: str = ""
    seeds: list[NaturalInt] = Field(default=[0])


class RecipeFile(Block):
    """What the file of a table or figure of the paper says."""

    title: str
    runs: list[Runs]
    seeds: list[NaturalInt] = Field(default=[0, 1, 2])
    smoke: Smoke = Smoke()
    #: command of `piwsl` -> its settings
    measure: Mapping[str, Mapping[str, Any]] = {}
    #: name -> a further test set, a file of the project that `piwsl evaluate` reads
    tests: Mapping[str, str] = {}
    #: the paper's name of the data set, where it is not that of the data's folder
    paper_dataset: str | None = None

    @field_validator("measure")
    @classmethod
    def _is_measured(cls, measure: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in measure:
            if name not in MEASUREMENTS:
                raise ValueError(f": '{name}' is no measurement; {did_you_mean(name, MEASUREMENTS)}")
        return measure


class Recipe(RecipeFile):
    """One table or figure of the paper."""

    name: str
    #: data sets that are none of configs/s2ef, and those with lengths of their own
    data_sets: Mapping[str, DataSet]

    def plan(self, folder: Path, small: bool = False, only: str | None = None) -> dict[str, PlannedRun]:
        """Runs by name, `<data set>/<model>_<method>`.

        Args:
            folder: folder of the configs, `configs/s2ef`.
            small: leave out what the small scale leaves out.
            only: a part of the names to keep, or a shell pattern of them.

        Raises:
            UserError: `only` matches no name.
        """
        found = {}
        for block in self.runs:
            for data, model in itertools.product(block.data, block.models):
                data_set = self.data_sets.get(data, DataSet(data))
                for name, changes in block.methods.items():
                    for run in _variants(folder, data_set, model, name, changes):
                        found[run.name] = run
        if small:
            found = _matching(found, self.smoke.only)
        kept = _matching(found, [only] if only else [])
        if not kept:
            raise UserError(f"--only {only} matches no run of this recipe; it has {', '.join(found)}.")
        return kept


def _variants(
    folder: Path, data: DataSet, model: str, name: str, block: Mapping[str, Any]
) -> Iterator[PlannedRun]:
    """The run of a method, or one for each combination of what it varies, named by the values."""
    varied = block.get("vary", {})
    others = {key: value for key, value in block.items() if key not in ("method", "length", "vary")}
    method = block.get("method", "piwsl" if others else name)
    for values in itertools.product(*varied.values()):
        changes = dict(zip(varied, values, strict=True))
        settings = {key.rpartition(".")[2]: value for key, value in changes.items()}
        label = "_".join([name, *(f"{key}{value:g}" for key, value in settings.items())])
        length = block.get("length", 1.0)
        yield PlannedRun(folder, data, model, label, method, {**others, **changes}, length, settings)


def _matching(runs: Mapping[str, PlannedRun], patterns: Sequence[str]) -> dict[str, PlannedRun]:
    return {
        name: run
        for name, run in runs.items()
        if not patterns or any(pattern in name or fnmatch(name, pattern) for pattern in patterns)
    }


def read_recipe(path: Path) -> Recipe:
    """Read a recipe's YAML file, and the data sets of `small/data_sets.yml` beside it, where that is.

    Raises:
        UserError: the file is missing, or holds an unknown key or a wrong block.
    """
    content = checked(RecipeFile, read_yaml(path, "recipe"), str(path))
    listed = path.parent / "small" / "data_sets.yml"
    data_sets = read_data_sets(listed) if listed.is_file() else {}
    return Recipe.model_construct(**dict(content), name=path.stem, data_sets=data_sets)
