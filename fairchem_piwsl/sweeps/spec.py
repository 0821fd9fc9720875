"""The sweep file: one YAML that says what to train, what to vary, what to minimise and where to run."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairchem_piwsl.config import check_keys, get_value, load_parts, read_yaml, with_values
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.sweeps.space import Parameter, parse_space, read_number

#: metrics of PIWSLForcesTrainer beside those of `evaluation_metrics`
OWN_METRICS = ("energy_rmse", "energy_per_atom_rmse", "forces_rmse", "pitc_rmse")
TRAINING = "fairchem_piwsl.sweeps.trial_training.train_trial"


@dataclass(frozen=True)
class Objective:
    """What a trial is judged by: one metric, a weighted sum of several, or a Pareto front."""

    metrics: tuple[str, ...]
    weights: tuple[float, ...] = (1.0,)
    pareto: bool = False
    maximize: bool = False
    take: str = "best"

    @property
    def directions(self) -> list[str]:
        """Optuna's directions, one per value of a trial."""
        one = "maximize" if self.maximize else "minimize"
        return [one] * (len(self.metrics) if self.pareto else 1)

    def values(self, metrics: Mapping[str, float]) -> list[float]:
        """Value(s) of one validation."""
        numbers = [float(metrics[name]) for name in self.metrics]
        if self.pareto:
            return numbers
        return [sum(weight * number for weight, number in zip(self.weights, numbers, strict=True))]

    def final(self, history: list[Mapping[str, float]]) -> list[float]:
        """Value(s) of a trial: those of its best validation (by the first value), or of its last."""
        values = [self.values(metrics) for metrics in history]
        if self.take == "last":
            return values[-1]
        return (max if self.maximize else min)(values, key=lambda v: v[0])


@dataclass(frozen=True)
class Sweep:
    """A parsed sweep file. Times in seconds unless the name says otherwise."""

    study: str
    base: dict[str, Any]
    space: tuple[Parameter, ...]
    objective: Objective
    trials: int
    workers: int = 1
    sampler: dict[str, Any] = field(default_factory=lambda: {"name": "tpe"})
    pruner: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    hours: float | None = None
    steps: int | None = None
    storage: str = "journal"
    retries: int = 2
    beat: float = 10.0
    grace: float = 60.0
    seed: int = 0
    cpu: bool = False
    amp: bool = False
    base_first: bool = True
    function: str = TRAINING
    job: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)


KEYS = (
    "study", "base", "set", "space", "objective", "sampler", "pruner", "trials", "workers", "budget",
    "storage", "base_first", "retries", "heartbeat", "seed", "cpu", "amp", "function", "job",
)  # fmt: skip


def load_sweep(path: Path, trials: int | None = None) -> Sweep:
    """Read and check a sweep file; every mistake is a `UserError` that names the key.

    Args:
        trials: number of trials instead of the file's.
    """
    content = read_yaml(path, "sweep file")
    if trials is not None:
        content["trials"] = trials
    return parse_sweep(content, load_bases(path, content), path.stem)


def load_bases(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The base config of a sweep file: a config, or parts of one, which are put together like includes."""
    names = content.get("base")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"sweep file {path}: 'base' must name a training config, or a list of parts of one.")
    return load_parts(path, names, "base")


def parse_sweep(content: Mapping[str, Any], base: dict[str, Any], default_name: str = "sweep") -> Sweep:
    """A sweep from the contents of its file and its base config."""
    _known("sweep file", content, KEYS)
    changes = content.get("set") or {}
    if not isinstance(changes, Mapping):
        raise UserError("set must be a block of dotted keys and values, as in 'optim.max_epochs: 30'.")
    check_keys(base, changes, "set")
    base = with_values(base, changes)
    space = parse_space(content.get("space"))
    function = str(content.get("function", TRAINING))
    if function == TRAINING:
        check_keys(base, [p.key for p in space], "space")
    objective = _objective(content.get("objective"), base if function == TRAINING else None)
    pruner = _named("pruner", content.get("pruner", "none"))
    if objective.pareto and pruner["name"] != "none":
        raise UserError(
            "pruner: a Pareto objective cannot be pruned; set 'pruner: none' or use objective.sum."
        )
    budget = content.get("budget") or {}
    _known("budget", budget, ("hours", "steps"))
    heartbeat = content.get("heartbeat") or {}
    _known("heartbeat", heartbeat, ("interval", "grace"))
    beat = _positive("heartbeat.interval", heartbeat.get("interval", 10.0))
    grace = _positive("heartbeat.grace", heartbeat.get("grace", max(60.0, 6 * beat)))
    if grace < 3 * beat:
        raise UserError("heartbeat.grace must be at least three times heartbeat.interval.")
    if "trials" not in content:
        raise UserError("trials: say how many trials the sweep shall have, as in 'trials: 40'.")
    job = content.get("job") or {}
    if not isinstance(job, Mapping):
        raise UserError("job must be a block of submitit's parameters, as in 'timeout_min: 240'.")
    for flag in ("cpu", "amp", "base_first"):
        if not isinstance(content.get(flag, False), bool):
            raise UserError(f"{flag} must be true or false, not {content[flag]!r}.")
    return Sweep(
        study=str(content.get("study", default_name)),
        base=base,
        space=space,
        objective=objective,
        trials=int(_positive("trials", content["trials"], "int")),
        workers=int(_positive("workers", content.get("workers", 1), "int")),
        sampler=_named("sampler", content.get("sampler", "tpe")),
        pruner=pruner,
        hours=_optional("budget.hours", budget.get("hours")),
        steps=None if budget.get("steps") is None else int(_positive("budget.steps", budget["steps"], "int")),
        storage=str(content.get("storage", "journal")),
        retries=int(read_number("retries", content.get("retries", 2), "int")),
        beat=beat,
        grace=grace,
        seed=int(read_number("seed", content.get("seed", 0), "int")),
        cpu=content.get("cpu", False),
        amp=content.get("amp", False),
        base_first=content.get("base_first", True),
        function=function,
        job=dict(job),
        source=dict(content),
    )


def _objective(block: Any, base: Mapping[str, Any] | None) -> Objective:
    if isinstance(block, str):
        block = {"metric": block}
    if not isinstance(block, Mapping):
        raise UserError("objective: name a validation metric, as in 'objective: forces_mae'.")
    _known("objective", block, ("metric", "sum", "pareto", "direction", "take"))
    direction, take = block.get("direction", "minimize"), block.get("take", "best")
    if direction not in ("minimize", "maximize"):
        raise UserError(f"objective.direction must be minimize or maximize, not {direction!r}.")
    if take not in ("best", "last"):
        raise UserError(f"objective.take must be best or last, not {take!r}.")
    if sum(name in block for name in ("metric", "sum", "pareto")) != 1:
        raise UserError("objective: give exactly one of 'metric', 'sum' and 'pareto'.")
    weights: tuple[float, ...] = (1.0,)
    if "metric" in block:
        metrics: tuple[str, ...] = (str(block["metric"]),)
    elif "sum" in block:
        if not isinstance(block["sum"], Mapping) or not block["sum"]:
            raise UserError("objective.sum must be a block of metrics and weights.")
        metrics = tuple(map(str, block["sum"]))
        weights = tuple(_positive(f"objective.sum.{m}", w) for m, w in block["sum"].items())
    else:
        if not isinstance(block["pareto"], list) or len(block["pareto"]) < 2:
            raise UserError("objective.pareto must be a list of at least two metrics.")
        metrics = tuple(map(str, block["pareto"]))
        weights = (1.0,) * len(metrics)
    if base is not None:
        _check_metrics(metrics, base)
    return Objective(metrics, weights, "pareto" in block, direction == "maximize", take)


def _check_metrics(metrics: tuple[str, ...], base: Mapping[str, Any]) -> None:
    """Raise for a metric that the validation of this config will not report."""
    listed = get_value(base, "evaluation_metrics.metrics")
    if not isinstance(listed, Mapping):
        return  # upstream's defaults, which depend on the task
    known = {"loss"} | {f"{target}_{name}" for target, names in listed.items() for name in names}
    if "piwsl" in str(base.get("trainer", "")).lower():
        known |= set(OWN_METRICS)
    for metric in metrics:
        if metric not in known:
            close = difflib.get_close_matches(metric, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "add it to evaluation_metrics.metrics."
            raise UserError(f"objective: the validation reports no '{metric}'; {hint}")


def _named(what: str, block: Any) -> dict[str, Any]:
    """`tpe` or `{name: tpe, seed: 1}` as a dict with a name."""
    if block is None or isinstance(block, str):
        block = {"name": block or "none"}
    if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
        raise UserError(f"{what} must be a name or a block with a 'name'.")
    return dict(block)


def _known(where: str, block: Any, keys: tuple[str, ...]) -> None:
    if not isinstance(block, Mapping):
        raise UserError(f"{where} must be a block of keys, not {block!r}.")
    for key in block:
        if key not in keys:
            close = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(keys)}."
            raise UserError(f"{where}: '{key}' is not a key; {hint}")


def _positive(name: str, value: Any, kind: str = "float") -> float:
    number = read_number(name, value, kind)
    if number <= 0:
        raise UserError(f"{name} must be above 0, not {value!r}.")
    return number


def _optional(name: str, value: Any) -> float | None:
    return None if value is None else _positive(name, value)
