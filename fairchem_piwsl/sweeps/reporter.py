"""What a trial calls after each validation, and what is kept of that."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import optuna

from fairchem_piwsl.sweeps.storage import cut_torn_line
from fairchem_piwsl.sweeps.sweep_file import Objective
from fairchem_piwsl.training.checkpoints import Preempted


class DivergedError(Exception):
    """A validation metric of the objective is not a finite number."""


class Reporter:
    """What a trial calls after each validation: `reporter(step, {"forces_mae": 0.1, ...})`.

    Records the metrics beside the run, so that a continued trial keeps its past, and ends the trial with
    an exception where it diverged, is pruned or has to stop.
    """

    def __init__(
        self, trial: optuna.Trial, objective: Objective, path: Path, stopping: Callable[[], bool]
    ) -> None:
        self.trial = trial
        self.objective = objective
        self.path = path
        self.steps = 0
        if path.is_file():
            cut_torn_line(path)
        self.history = read_history(path)
        self._stopping = stopping
        self._ask_to_stop: Callable[[], None] | None = None
        for step, metrics in self.history.items():
            self._report(step, metrics)

    def on_stop(self, ask: Callable[[], None] | None) -> None:
        """Have `ask` called where the trial shall stop; without it the next report ends the trial."""
        self._ask_to_stop = ask
        if ask is not None and self._stopping():
            ask()

    def stop(self) -> None:
        """Safe in a signal handler and from another thread."""
        if self._ask_to_stop is not None:
            self._ask_to_stop()

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a validation after `step` training steps."""
        self.steps = max(self.steps, step)
        self.history[step] = dict(metrics)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "metrics": dict(metrics)}) + "\n")
        for name in self.objective.metrics:
            if name not in metrics:
                raise RuntimeError(f"the validation reports no '{name}', only {', '.join(sorted(metrics))}")
            if not math.isfinite(metrics[name]):
                raise DivergedError(f"{name} is {metrics[name]} after step {step}")
        self._report(step, metrics)
        if not self.objective.pareto and self.trial.should_prune():
            raise optuna.TrialPruned(f"pruned after step {step}")
        if self._stopping() and self._ask_to_stop is None:
            raise Preempted(f"stopped after step {step}")

    def _report(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.objective.pareto:
            return
        value = self.objective.values(metrics)[0]
        if step not in self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values:
            self.trial.report(value, step)


def read_history(path: Path) -> dict[int, dict[str, float]]:
    """Metrics by step; a line that no one can read is left out, a repeated step counts once."""
    history = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                history[int(entry["step"])] = entry["metrics"]
            except (ValueError, KeyError):
                continue
    return dict(sorted(history.items()))


def failure_reason(error: BaseException) -> str:
    """One line for the study: out of memory and divergence by name, anything else by its own words."""
    words = " ".join(str(error).split())[:300]
    memory = (
        "out of memory",
        "can't allocate memory",
        "cannot allocate memory",
        "cublas_status_alloc_failed",
    )
    if isinstance(error, MemoryError) or any(text in words.lower() for text in memory):
        return f"out of memory: {words or type(error).__name__}"
    if isinstance(error, DivergedError):
        return f"diverged: {words}"
    return f"{type(error).__name__}: {words}"
