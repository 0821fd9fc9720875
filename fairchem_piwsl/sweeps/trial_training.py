"""One trial as a training: the config's own trainer, with every validation reported to the study."""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem_piwsl.config import with_values
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.jobs.command_line import parser, with_flags
from fairchem_piwsl.sweeps.reporter import Reporter
from fairchem_piwsl.sweeps.sweep_file import Sweep

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
        "seed": sweep.seed, "print-every": config.get("print_every", 100),
    }  # fmt: skip
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    arguments += [f"--{name}" for name in ("cpu", "amp") if getattr(sweep, name)]
    made = with_flags(config, parser().parse_args(arguments))
    return {**made, "logger": logger, "hide_eval_progressbar": True}


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
