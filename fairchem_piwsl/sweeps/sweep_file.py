"""The sweep file: one YAML that says what to train, what to vary, what to minimise and where to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    field_validator,
    model_validator,
)

from fairchem_piwsl.config import entries, load_parts, read_yaml, with_values
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.kinds import MAX_SEED, closest
from fairchem_piwsl.settings import SETTINGS
from fairchem_piwsl.sweeps.blocks import Block, NaturalInt, PositiveFloat, PositiveInt, checked
from fairchem_piwsl.sweeps.space import Parameter, parse_space

#: settings under `optim` that a config may leave out
OPTIONAL = (
    "batch_size", "checkpoint_every", "clip_grad_norm", "ema_decay", "ema_warmup", "eval_batch_size", "eval_every",
    "lr_initial", "max_epochs", "num_workers", "optimizer", "scheduler", "weight_decay",
)  # fmt: skip
TRAINING = "fairchem_piwsl.sweeps.trial_training.train_trial"


class Objective(Block):
    """What a trial is judged by: one metric, a weighted sum of several, or a Pareto front."""

    metric: str | None = None
    sum: Annotated[dict[str, PositiveFloat], Field(min_length=1)] | None = None
    pareto: Annotated[list[str], Field(min_length=2)] | None = None
    direction: Literal["minimize", "maximize"] = "minimize"
    take: Literal["best", "last"] = "best"

    @model_validator(mode="before")
    @classmethod
    def _one_metric(cls, content: Any) -> Any:
        return {"metric": content} if isinstance(content, str) else content

    @model_validator(mode="after")
    def _one_kind(self) -> Objective:
        if [self.metric, self.sum, self.pareto].count(None) != 2:
            raise ValueError(": give exactly one of 'metric', 'sum' and 'pareto'")
        return self

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that enter."""
        return self.pareto or list(self.sum or [self.metric or ""])

    @property
    def names(self) -> list[str]:
        """A name for each value of a trial."""
        if self.sum:
            return [" + ".join(f"{weight:g} {name}" for name, weight in self.sum.items())]
        return self.metrics

    @property
    def directions(self) -> list[str]:
        """Optuna's directions, one per value of a trial."""
        return [self.direction] * len(self.names)

    def __str__(self) -> str:
        """The objective in a few words."""
        what = " and ".join(self.names) + (" (Pareto front)" if self.pareto else "")
        return f"{self.direction} {what}"

    def values(self, metrics: Mapping[str, float]) -> list[float]:
        """Value(s) of one validation."""
        if self.sum:
            return [sum(weight * metrics[name] for name, weight in self.sum.items())]
        return [float(metrics[name]) for name in self.metrics]

    def final(self, history: list[Mapping[str, float]]) -> list[float]:
        """Value(s) of a trial: those of its best validation (by the first value), or of its last."""
        values = [self.values(metrics) for metrics in history]
        if self.take == "last":
            return values[-1]
        return (max if self.direction == "maximize" else min)(values, key=lambda v: v[0])


class Budget(Block):
    """No new trial begins once either is spent."""

    hours: PositiveFloat | None = None
    steps: PositiveInt | None = None


class HeartbeatTimes(Block):
    """Seconds between the heartbeats of a worker, and of silence after which it counts as dead."""

    interval: PositiveFloat = 10.0
    grace: PositiveFloat = Field(default_factory=lambda data: max(60.0, 6 * data.get("interval", 10.0)))

    @model_validator(mode="after")
    def _several_beats(self) -> HeartbeatTimes:
        if self.grace < 3 * self.interval:
            raise ValueError(".grace must be at least three times heartbeat.interval")
        return self


class Job(Block):
    """submitit's parameters; those of SLURM alone begin with `slurm_`."""

    model_config = ConfigDict(extra="allow")
    others: ClassVar[str | None] = "slurm_"

    timeout_min: PositiveInt | None = None
    mem_gb: PositiveFloat | None = None
    nodes: PositiveInt | None = None
    cpus_per_task: PositiveInt | None = None
    gpus_per_node: NaturalInt | None = None
    tasks_per_node: PositiveInt | None = None
    stderr_to_stdout: StrictBool | None = None
    max_timeouts: NaturalInt | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _safe_in_a_script(self) -> Job:
        for key, value in self.parameters().items():
            if isinstance(value, int | float) and not value >= 0:
                raise ValueError(f".{key} must be 0 or more, not {value!r}")
            # these two are lines of the script by intention
            if key not in ("slurm_setup", "slurm_teardown") and not _is_one_line(value):
                raise ValueError(f".{key} must be one line, not {value!r}")
        return self

    def parameters(self) -> dict[str, Any]:
        """What the file says, for submitit."""
        return self.model_dump(exclude_none=True)


def _is_one_line(value: Any) -> bool:
    """Whether no text in `value` begins a new line of a batch script."""
    return all(text.isprintable() for pair in entries([value]) for text in pair if isinstance(text, str))


def _with_name(block: Any) -> Any:
    """`tpe` or `{name: tpe, seed: 1}` as a dict with a name."""
    block = {"name": block} if isinstance(block, str) else block
    if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
        raise ValueError(" must be a name or a block with a 'name'")
    return dict(block)


Named = Annotated[dict[str, Any], BeforeValidator(_with_name)]
Text = Annotated[str, BeforeValidator(str)]


class Sweep(Block):
    """A sweep file with its base config in place of that one's name. Times in seconds unless the name says otherwise."""

    study: Text
    base: dict[str, Any]
    set: dict[str, Any] = Field(default={})
    space: Annotated[tuple[Parameter, ...], PlainValidator(parse_space)]
    objective: Objective
    trials: PositiveInt
    workers: PositiveInt = 1
    sampler: Named = Field(default={"name": "tpe"})
    pruner: Named = Field(default={"name": "none"})
    budget: Budget = Budget()
    storage: Text = "journal"
    base_first: StrictBool = True
    retries: NaturalInt = 2
    heartbeat: HeartbeatTimes = HeartbeatTimes()
    seed: Annotated[NaturalInt, Field(le=MAX_SEED)] = 0
    cpu: StrictBool = False
    amp: StrictBool = False
    function: Text = TRAINING
    job: Job = Job()

    @field_validator("pruner")
    @classmethod
    def _prunes_one_value(cls, pruner: dict[str, Any], info: Any) -> dict[str, Any]:
        objective = info.data.get("objective")
        if objective is not None and objective.pareto and pruner["name"] != "none":
            raise ValueError(": a Pareto objective cannot be pruned; set 'pruner: none' or use objective.sum")
        return pruner


def load_sweep(path: Path, **instead: Any) -> Sweep:
    """Read and check a sweep file; every mistake is a `UserError` that names the key.

    Args:
        instead: entries in place of the file's, such as `trials`; those that are None do not count.
    """
    content = read_yaml(path, "sweep file")
    return parse_sweep(content, load_bases(path, content), path.stem, f"sweep file {path}", **instead)


def load_bases(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The base config of a sweep file: a config, or parts of one, which are put together like includes."""
    names = content.get("base")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"sweep file {path}: 'base' must name a training config, or a list of parts of one.")
    return load_parts(path, names, "base")


def parse_sweep(
    content: Mapping[str, Any],
    base: dict[str, Any],
    default_name: str = "sweep",
    where: str = "sweep file",
    **instead: Any,
) -> Sweep:
    """A sweep from the contents of its file and its base config; `set` is laid over the latter."""
    given = {**_given(content), **_given(instead)}
    changes = given.get("set", {})
    if isinstance(changes, Mapping):
        _check_keys(base, changes, "set")
        base = with_values(base, changes)
    sweep: Sweep = checked(Sweep, {"study": default_name, **given, "base": base}, where)
    if sweep.function == TRAINING:
        _check_keys(base, [p.key for p in sweep.space], "space")
    return sweep


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _check_keys(config: Mapping[str, Any], keys: Any, where: str) -> None:
    """Raise for the first of `keys` that is neither in the config nor a setting that it may leave out."""
    optional = [
        *(f"optim.{name}" for name in OPTIONAL),
        *(f"optim.piwsl.{name}" for name in SETTINGS.settings),
    ]
    known = {*dict(entries(config)), "seed", *optional}
    for key in keys:
        if key not in known:
            close = closest(key, known)
            hint = f"did you mean '{close}'?" if close else "add the key to the base config first."
            raise UserError(f"{where}: '{key}' is not a key of the base config; {hint}")
