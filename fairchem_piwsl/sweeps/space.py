"""The search space: which entries of a config vary, between which bounds and under which condition."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

from fairchem_piwsl.errors import UserError

TYPES = ("float", "int", "categorical")


@dataclass(frozen=True)
class Parameter:
    """One searched entry; it is drawn only where every key of `when` has one of the values listed."""

    key: str
    distribution: BaseDistribution
    when: Mapping[str, tuple[Any, ...]]


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
    parameters: list[Parameter] = []
    for key, entry in block.items():
        parameters.append(_parse(str(key), entry, [p.key for p in parameters]))
    return tuple(parameters)


def _parse(key: str, entry: Any, earlier: list[str]) -> Parameter:
    if not isinstance(entry, Mapping):
        raise UserError(f"space.{key} must be a block such as {{type: float, low: 0.1, high: 1}}.")
    options = dict(entry)
    kind = options.pop("type", None)
    when = options.pop("when", None)
    if kind not in TYPES:
        raise UserError(f"space.{key}.type must be one of {', '.join(TYPES)}, not {kind!r}.")
    distribution = _categorical(key, options) if kind == "categorical" else _number(key, kind, options)
    return Parameter(key, distribution, _condition(key, when, earlier))


def _categorical(key: str, options: dict[str, Any]) -> CategoricalDistribution:
    choices = options.pop("choices", None)
    _no_more(key, options)
    if not isinstance(choices, list) or not choices:
        raise UserError(f"space.{key}.choices must be a list of values.")
    if not all(choice is None or isinstance(choice, bool | int | float | str) for choice in choices):
        raise UserError(f"space.{key}.choices may hold numbers, texts, true, false and null only.")
    if len({(type(choice), choice) for choice in choices}) < len(choices):
        raise UserError(f"space.{key}.choices names a value twice: remove one.")
    return CategoricalDistribution(choices)


def _number(key: str, kind: str, options: dict[str, Any]) -> FloatDistribution | IntDistribution:
    low = read_number(f"space.{key}.low", options.pop("low", None), kind)
    high = read_number(f"space.{key}.high", options.pop("high", None), kind)
    step = options.pop("step", None)
    log = options.pop("log", False)
    _no_more(key, options)
    if not isinstance(log, bool):
        raise UserError(f"space.{key}.log must be true or false, not {log!r}.")
    if low >= high:
        raise UserError(f"space.{key}: low ({low}) must be below high ({high}).")
    if log and low <= 0:
        raise UserError(f"space.{key}: log needs a low above 0, not {low}; 0 may be a categorical choice.")
    if log and step is not None:
        raise UserError(f"space.{key}: log and step exclude each other; remove one.")
    if step is not None:
        step = read_number(f"space.{key}.step", step, kind)
        if step <= 0:
            raise UserError(f"space.{key}.step must be above 0, not {step}.")
    if kind == "int":
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return FloatDistribution(low, high, log=log, step=step)


def read_number(name: str, value: Any, kind: str = "float") -> float:
    """A finite number; text such as `1e-3`, which YAML does not take for a number, is understood."""
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name} must be a number, not {value!r}.")
    if kind == "int" and number != int(number):
        raise UserError(f"{name} must be a whole number, not {value!r}.")
    return int(number) if kind == "int" else number


def _condition(key: str, when: Any, earlier: list[str]) -> dict[str, tuple[Any, ...]]:
    if when is None:
        return {}
    if not isinstance(when, Mapping):
        raise UserError(f"space.{key}.when must be a block such as {{optim.optimizer: AdamW}}.")
    for parent in when:
        if parent not in earlier:
            raise UserError(
                f"space.{key}.when names '{parent}', which must stand above it in the search space."
            )
    return {p: tuple(v) if isinstance(v, list) else (v,) for p, v in when.items()}


def _no_more(key: str, options: Mapping[str, Any]) -> None:
    if options:
        raise UserError(f"space.{key}: '{next(iter(options))}' is not an option here; remove it.")


def suggest(trial: optuna.Trial, space: tuple[Parameter, ...]) -> dict[str, Any]:
    """Draw the active entries for a trial; the others keep the value of the base config."""
    values: dict[str, Any] = {}
    for parameter in space:
        if all(values.get(parent, _ABSENT) in allowed for parent, allowed in parameter.when.items()):
            values[parameter.key] = _suggest(trial, parameter.key, parameter.distribution)
    return values


_ABSENT = object()


def _suggest(trial: optuna.Trial, key: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(key, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            key, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(
        key, distribution.low, distribution.high, step=distribution.step, log=distribution.log
    )


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value can be drawn from the distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return any(value == choice and type(value) is type(choice) for choice in distribution.choices)
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
