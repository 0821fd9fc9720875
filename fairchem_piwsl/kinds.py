"""What a value of a config may be: kinds of values, and blocks of them, whose errors name key and remedy.

A table of settings is a `Block`: its keys with the kind of each. Kinds are checked against plain YAML values;
the first mistake is raised as a `UserError`.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fairchem_piwsl.errors import UserError


@dataclass(frozen=True)
class Kind:
    """Values for which `holds` is true; `wanted` completes the sentence "... must be"."""

    wanted: str
    holds: Callable[[Any], bool]

    def check(self, value: Any, key: str) -> None:
        """Raise where `value`, which stands at the dotted `key`, is of another kind."""
        if not self.holds(value):
            raise UserError(f"{key} must be {self.wanted}, not {_shown(value)}{self._hint(value)}.")

    def _hint(self, value: Any) -> str:
        try:
            readable = isinstance(value, str) and self.holds(float(value))
        except ValueError:
            return ""
        return " (a number in quotes is text; write 1.0e-2 without)" if readable else ""


@dataclass(frozen=True)
class Block:
    """Named settings, each of its kind; no others unless `others` says what they may be."""

    settings: Mapping[str, AnyKind]
    required: Iterable[str] = ()
    others: AnyKind | None = None

    def check(self, value: Any, key: str) -> None:
        """Raise for what is no block, an unknown or missing key, or a value of another kind."""
        if not isinstance(value, Mapping):
            raise UserError(f"{key or 'the config'} must be a block of settings, not {_shown(value)}.")
        prefix = f"{key}." if key else ""
        for name, entry in value.items():
            kind = self.settings.get(name, self.others)
            if kind is None or (name not in self.settings and closest(name, self.settings, cutoff=0.85)):
                raise UserError(f"{prefix}{name} is not a setting; {did_you_mean(name, self.settings)}")
            kind.check(entry, f"{prefix}{name}")
        for name in self.required:
            if name not in value:
                raise UserError(f"{prefix}{name} is missing; add it to {key or 'the config'}.")


@dataclass(frozen=True)
class Items:
    """A list whose entries are of one kind."""

    kind: AnyKind

    def check(self, value: Any, key: str) -> None:
        """Raise for what is no list, or an entry of another kind."""
        if not isinstance(value, list | tuple):
            raise UserError(f"{key} must be a list, not {_shown(value)}.")
        for index, entry in enumerate(value):
            self.kind.check(entry, f"{key}.{index}")


@dataclass(frozen=True)
class Either:
    """One of several kinds; a value that is of none is judged by the last but null whose type it has."""

    kinds: tuple[AnyKind, ...]

    def check(self, value: Any, key: str) -> None:
        """Raise where no kind fits."""
        errors = []
        for kind in self.kinds:
            try:
                return kind.check(value, key)
            except UserError as error:
                errors.append(error)
        inside = Block if isinstance(value, Mapping) else Items if isinstance(value, list) else Kind
        judged = zip(self.kinds, errors, strict=True)
        fitting = [error for kind, error in judged if isinstance(kind, inside) and kind is not NOTHING]
        raise (fitting or errors)[-1]


#: the largest seed that numpy takes
MAX_SEED = 2**32 - 1

AnyKind = Kind | Block | Items | Either

FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str) and value != "")
ANYTHING = Kind("anything", lambda value: True)
NOTHING = Kind("null", lambda value: value is None)


def number(
    *, low: float = -math.inf, above: float = -math.inf, high: float = math.inf, below: float = math.inf
) -> Kind:
    """Finite numbers with low <= value <= high and above < value < below."""
    return Kind(
        _within("a finite number", low, above, high, below),
        lambda value: _is_number(value) and low <= value <= high and above < value < below,
    )


def whole(low: float = -math.inf, high: float = math.inf) -> Kind:
    """Integers with low <= value <= high."""
    return Kind(
        _within("a whole number", low, -math.inf, high, math.inf),
        lambda value: _is_number(value) and isinstance(value, numbers.Integral) and low <= int(value) <= high,
    )


def one_of(choices: Iterable[Any], what: str = "", also: Callable[[Any], bool] = lambda value: False) -> Kind:
    """One of some values, or one for which `also` holds; a similar one is proposed.

    Args:
        choices: what there is.
        what: names a choice where there are too many to list them in every error.
        also: accepts values that are not listed.
    """
    known = list(choices)
    return _Choice(
        what or f"one of {', '.join(map(str, known))}",
        lambda value: (
            isinstance(value, str | int | float)
            and not isinstance(value, bool)
            and (value in known or also(value))
        ),
        tuple(map(str, known)),
    )


def optional(kind: AnyKind) -> AnyKind:
    """`kind` or null."""
    if isinstance(kind, Kind):
        return Kind(f"{kind.wanted}, or null", lambda value: value is None or kind.holds(value))
    return Either((NOTHING, kind))


def named(kind: AnyKind, names: str) -> dict[str, AnyKind]:
    """Settings of one kind; their names with spaces between."""
    return dict.fromkeys(names.split(), kind)


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """The end of a sentence on an unknown name: the known one that resembles it, or all."""
    names = list(known)
    close = closest(name, names)
    return f"did you mean '{close}'?" if close else f"known settings: {', '.join(names)}."


def metric_name(target: str, function: str) -> str:
    """What upstream's evaluator calls a metric of an output, or of several (target `misc`)."""
    return function if target in function or target == "misc" else f"{target}_{function}"


@dataclass(frozen=True)
class _Choice(Kind):
    known: tuple[str, ...]

    def _hint(self, value: Any) -> str:
        close = closest(value, self.known)
        if close:
            return f"; did you mean '{close}'"
        return "" if self.wanted.startswith("one of") else f" (known: {', '.join(self.known)})"


def closest(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of `known` that `name` may have been meant to be: its letters in another order, or most of them."""
    lower, written = {word.lower(): word for word in known}, str(name).lower()
    swapped = [word for word in lower if sorted(word) == sorted(written)]
    close = swapped or difflib.get_close_matches(written, lower, 1, cutoff)
    return lower[close[0]] if close else None


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _within(what: str, low: float, above: float, high: float, below: float) -> str:
    least, most = max(low, above), min(high, below)
    if math.isfinite(least) and math.isfinite(most):
        return f"in {'[' if least == low else '('}{least:.10g}, {most:.10g}{']' if most == high else ')'}"
    if math.isfinite(least):
        return f"{what} {'>=' if least == low else '>'} {least:g}"
    return what


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
