"""The search space: which entries of a config vary, between which bounds and under which condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from pydantic import Field, StrictBool, field_validator, model_validator

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.sweeps.blocks import Block, Float, PositiveFloat, checked


class _Entry(Block):
    type: str
    when: dict[str, tuple[Any, ...]] = Field(default={})

    @field_validator("when", mode="before")
    @classmethod
    def _lists(cls, when: Any) -> Any:
        if isinstance(when, Mapping):
            return {key: value if isinstance(value, list) else [value] for key, value in when.items()}
        return {} if when is None else when


class Range(_Entry):
    """Real or whole numbers from `low` to `high`."""

    low: Float
    high: Float
    log: StrictBool = False
    step: PositiveFloat | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Range:
        for name in ("low", "high", "step") if self.type == "int" else ():
            if (getattr(self, name) or 0) % 1:
                raise ValueError(f": {name} must be a whole number, not {getattr(self, name)}")
        if self.low >= self.high:
            raise ValueError(f": low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f": log needs a low above 0, not {self.low}; 0 may be a categorical choice")
        if self.log and self.step is not None:
            raise ValueError(": log and step exclude each other; remove one")
        return self

    def distribution(self) -> BaseDistribution:
        """As Optuna knows it."""
        if self.type == "int":
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


class Choices(_Entry):
    """One of several values."""

    choices: list[Any]

    @field_validator("choices")
    @classmethod
    def _plain_and_different(cls, choices: list[Any]) -> list[Any]:
        if not choices:
            raise ValueError(" must be a list of values")
        if not all(choice is None or isinstance(choice, bool | int | float | str) for choice in choices):
            raise ValueError(" may hold numbers, texts, true, false and null only")
        if len(set(choices)) < len(choices):  # Optuna takes the first that is equal
            raise ValueError(" names a value twice (true is 1, false is 0); remove one")
        return choices

    def distribution(self) -> BaseDistribution:
        """As Optuna knows it."""
        return CategoricalDistribution(self.choices)


@dataclass(frozen=True)
class Parameter:
    """One searched entry; it is drawn only where every key of `when` has one of the values listed."""

    key: str
    distribution: BaseDistribution
    when: Mapping[str, tuple[Any, ...]]


KINDS: dict[str, type[Range | Choices]] = {"float": Range, "int": Range, "categorical": Choices}


def parse_space(block: Any) -> tuple[Parameter, ...]:
    """The block `space` of a sweep file.

    ```yaml
    space:
      optim.piwsl.c_pitc: {type: float, low: 0.01, high: 10, log: true}
      optim.batch_size: {type: int, low: 2, high: 16, log: true}
      optim.piwsl.perturbation: {type: categorical, choices: [uniform, sphere]}
      optim.piwsl.fraction: {type: float, low: 0.1, high: 1, when: {optim.piwsl.perturbation: uniform}}
    ```
    """
    if not isinstance(block, Mapping) or not block:
        raise UserError("space: name at least one dotted key to search, as in 'optim.lr_initial: {...}'.")
    entries: dict[str, Any] = {}
    for key, content in block.items():
        if not isinstance(key, str):
            raise UserError(f"space: {key!r} is no dotted key; name an entry of the config.")
        if not isinstance(content, Mapping):
            raise UserError(f"space.{key} must be a block such as {{type: float, low: 0.1, high: 1}}.")
        kind = content.get("type")
        if not isinstance(kind, str) or kind not in KINDS:
            raise UserError(f"space.{key}: type must be one of {', '.join(KINDS)}, not {kind!r}.")
        entries[key] = checked(KINDS[kind], content, f"space.{key}")
        for parent, allowed in entries[key].when.items():
            if parent not in list(entries)[:-1]:
                raise UserError(
                    f"space.{key}: when names '{parent}', which must stand above it in the search space."
                )
            for value in allowed:
                if not contains(entries[parent].distribution(), value):
                    raise UserError(
                        f"space.{key}: when asks for {value!r}, which '{parent}' never is; correct it."
                    )
    return tuple(Parameter(key, entry.distribution(), entry.when) for key, entry in entries.items())


SUGGEST = {FloatDistribution: "float", IntDistribution: "int", CategoricalDistribution: "categorical"}


def suggest(trial: optuna.Trial, space: tuple[Parameter, ...]) -> dict[str, Any]:
    """Draw the active entries for a trial; the others keep the value of the base config."""
    return active(
        space,
        lambda p: getattr(trial, f"suggest_{SUGGEST[type(p.distribution)]}")(p.key, **vars(p.distribution)),
    )


def active(space: tuple[Parameter, ...], draw: Callable[[Parameter], Any]) -> dict[str, Any]:
    """What `draw` gives for each entry whose condition holds."""
    values: dict[str, Any] = {}
    for parameter in space:
        if all(parent in values and values[parent] in allowed for parent, allowed in parameter.when.items()):
            values[parameter.key] = draw(parameter)
    return values


def extremes(space: tuple[Parameter, ...]) -> list[dict[str, Any]]:
    """Points at the edges: each bound and choice with what its `when` asks for, then all lowest, all highest."""
    points = [active(space, lambda p, i=i: ends(p.distribution)[i]) for i in (0, -1)]  # type: ignore[misc]
    for parameter in space:
        for value in ends(parameter.distribution):
            point = {parameter.key: value}
            for other in reversed(space):
                for parent, allowed in other.when.items() if other.key in point else ():
                    point.setdefault(parent, allowed[0])
            points.append(point)
    return points


def ends(distribution: BaseDistribution) -> list[Any]:
    """Both bounds of a distribution, or all its choices."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return [distribution.low, distribution.high]  # type: ignore[attr-defined]


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value can be drawn from the distribution."""
    if isinstance(distribution, CategoricalDistribution):
        # 0 is 0.0, but false is neither
        return any(
            value == choice and isinstance(value, bool) == isinstance(choice, bool)
            for choice in distribution.choices
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(distribution, IntDistribution) and value != int(value):
        return False
    steps = 0.0 if distribution.step is None else (value - distribution.low) / distribution.step
    return distribution.low <= value <= distribution.high and abs(steps - round(steps)) < 1e-8


def fingerprint(space: tuple[Parameter, ...]) -> dict[str, str]:
    """One text per entry that tells two search spaces apart."""
    return {p.key: f"{distribution_to_json(p.distribution)} when {dict(p.when)}" for p in space}
