"""One trial as a training: the config's own trainer, with every validation reported to the study."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.sweeps.reporter import Reporter

TRIAL_TRAINER = "piwsl_sweep_trial"


def command_line(
    config: Mapping[str, Any], *, run_dir: Path, run: str, seed: int, cpu: bool, amp: bool = False
) -> dict[str, Any]:
    """`config` with what fairchem's command line adds to it, for one process; `run` names run and folders."""
    return {
        **config,
        "mode": "train",
        "identifier": run,
        "timestamp_id": run,
        "seed": seed,
        "is_debug": False,
        "run_dir": str(run_dir),
        "print_every": config.get("print_every", 100),
        "amp": amp,
        "checkpoint": None,
        "cpu": cpu,
        "submit": False,
        "summit": False,
        "world_size": 1,
        "distributed_backend": "gloo" if cpu else "nccl",
        "gp_gpus": None,
        "hide_eval_progressbar": True,
    }


def with_group(config: Mapping[str, Any], group: str) -> dict[str, Any]:
    """`config` whose logger, where it is wandb, puts all runs of a sweep into one group."""
    logger = config.get("logger", "tensorboard")
    logger = {"name": logger} if isinstance(logger, str) else dict(logger)
    if logger["name"] == "wandb":
        return {**config, "logger": {"group": group, **logger}}
    return {**config, "logger": config.get("logger", "tensorboard")}


def train_trial(config: Mapping[str, Any], reporter: Reporter) -> None:
    """Train `config`, reporting each validation; continues from the run's checkpoint where there is one."""
    from fairchem.core.common import distutils
    from fairchem.core.common.registry import registry
    from fairchem.core.common.utils import new_trainer_context, setup_imports

    import fairchem_piwsl.trainer  # noqa: F401  registers its trainer
    from fairchem_piwsl.training.checkpoints import close_datasets

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
    from fairchem_piwsl.training.checkpoints import ResumableMixin

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
    import torch
    from fairchem.core.common import distutils

    distutils.cleanup()
    try:
        import wandb

        if wandb.run is not None:
            wandb.finish()
    except ImportError:
        pass
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
