"""One trial as a training: the config's own trainer, which reports every validation, and what is kept of that."""

import gc
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import new_trainer_context, setup_imports

from fairchem_piwsl.config import with_values
from fairchem_piwsl.errors import DivergedError, UserError, in_words
from fairchem_piwsl.jobs.command_line import parser, with_flags
from fairchem_piwsl.sweeps.storage import cut_torn_line
from fairchem_piwsl.sweeps.sweep_file import Objective, Sweep
from fairchem_piwsl.training.checkpoints import Preempted, ResumableMixin, close_datasets


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
        """Take the metrics of a validation after `step` training steps; numbers of numpy and torch as well."""
        step, metrics = int(step), {name: float(value) for name, value in metrics.items()}
        self.steps = max(self.steps, step)
        self.history[step] = metrics
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "metrics": metrics}) + "\n")
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
    words = in_words(error)
    memory = (
        "out of memory",
        "can't allocate memory",
        "cannot allocate memory",
        "cublas_status_alloc_failed",
    )
    if isinstance(error, MemoryError) or any(text in words.lower() for text in memory):
        return f"out of memory: {words}"
    if isinstance(error, DivergedError):
        return f"diverged: {words}"
    return f"{type(error).__name__}: {words}"


TRIAL_TRAINER = "piwsl_sweep_trial"


def trial_config(sweep: Sweep, values: Mapping[str, Any], run_dir: Path, run: str) -> dict[str, Any]:
    """The config of a trial as main.py would make it, for one process; `run` names run and folders."""
    config = with_values(sweep.base, values)
    logger = config.get("logger", "tensorboard")
    if isinstance(logger, Mapping) and logger["name"] == "wandb":  # all runs of a sweep are one group
        logger = {"group": sweep.study, **logger}
    elif logger == "wandb":
        logger = {"group": sweep.study, "name": logger}
    flags = {
        "mode": "train", "config-yml": "unused", "identifier": run, "timestamp-id": run, "run-dir": run_dir,
        "seed": values.get("seed", sweep.seed), "print-every": config.get("print_every", 100),
    }  # fmt: skip
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    arguments += [f"--{name}" for name in ("cpu", "amp") if getattr(sweep, name)]
    made = with_flags(config, parser().parse_args(arguments))
    return {**made, "logger": logger, "hide_eval_progressbar": True}


def train_trial(config: Mapping[str, Any], reporter: Reporter) -> None:
    """Train `config`, reporting each validation; continues from the run's checkpoint where there is one."""
    gc.collect()  # a trainer that failed while it was made may still hold its data
    setup_imports()
    name = config.get("trainer", "ocp")
    kind = registry.get_trainer_class(name)
    registry.register_trainer(TRIAL_TRAINER)(_reporting(kind, reporter))
    config = {**config, "trainer": TRIAL_TRAINER}
    if name in ("forces", "energy"):
        raise UserError(f"trainer '{name}' is an old name of upstream's: write 'ocp' into the base config.")
    distutils.setup_env_local()
    trainer: Any = None
    try:
        with new_trainer_context(config=dict(config)) as context:
            trainer = context.trainer
            context.task.setup(trainer)
            reporter.on_stop(trainer.request_stop)
            context.task.run()
            if trainer.val_loader is not None and trainer.step not in reporter.history:
                trainer.validate(split="val", disable_tqdm=True)
    finally:
        if trainer is not None:
            reporter.steps = trainer.step
            close_datasets(trainer)
        reporter.on_stop(None)
        del trainer
        _clean_up()


def _reporting(kind: Any, reporter: Reporter) -> type:
    """The trainer class with checkpoints between steps and a report of every validation."""
    bases = (kind,) if issubclass(kind, ResumableMixin) else (ResumableMixin, kind)
    base: Any = type("ResumableTrainer", bases, {})

    class TrialTrainer(base):
        """The trainer of one trial."""

        def validate(self, split: str = "val", disable_tqdm: bool = False) -> Any:
            """As the config's trainer, and tell the study."""
            metrics = super().validate(split=split, disable_tqdm=disable_tqdm)
            if split == "val":
                reporter(self.step, {name: float(entry["metric"]) for name, entry in metrics.items()})
            return metrics

    return TrialTrainer


def _clean_up() -> None:
    """Leave nothing of one trial to the next in the same process."""
    distutils.cleanup()
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
