"""fairchem's command line with the plugin loaded (`main.py`)."""

from __future__ import annotations

import logging
import sys
import uuid
from pathlib import Path
from typing import Any

from fairchem.core import _cli
from fairchem.core.common.utils import setup_logging
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.jobs.command_line import read_arguments
from fairchem_piwsl.jobs.runner import Runner, run
from fairchem_piwsl.jobs.submission import build_configs, submit
from fairchem_piwsl.training import preflight

#: the names of `PIWSLForcesTrainer` in a config
OWN_TRAINER = ("piwsl_forces", "fairchem_piwsl.trainer.PIWSLForcesTrainer")

# so that fairchem's own command line and Python API send jobs that bring the plugin along
_cli.Runner = Runner


def main(arguments: list[str] | None = None, program: str = "main.py") -> None:
    """Run fairchem's CLI; a `UserError` becomes one line on stderr, after `program`, and exit code 2."""
    setup_logging()
    try:
        args, overrides = read_arguments(arguments)
        if args.num_gpus < 1:
            raise UserError("--num-gpus is the number of ranks on a node and must be at least 1.")
        check_checkpoint(args.mode, args.checkpoint)
        configs = build_configs(args, overrides)
        if args.submit:
            submit(args, configs)
            return
        for config in configs:
            run_here(config, args.num_gpus)
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def check_checkpoint(mode: str, checkpoint: str | None) -> None:
    """A missing checkpoint, before anything is written."""
    if checkpoint and not Path(checkpoint).exists():
        raise UserError(f"checkpoint {checkpoint} does not exist: check the path given to --checkpoint.")
    if mode != "train" and not checkpoint:
        raise UserError(f"--mode {mode} needs trained weights: add --checkpoint .../best_checkpoint.pt.")


def run_here(config: dict[str, Any], ranks: int) -> None:
    """Train in this process, or in `ranks` processes of this machine."""
    if ranks == 1:
        run(config)
        return
    if config.get("trainer") in OWN_TRAINER:
        # before ranks start, each of which would print a mistake with a traceback
        keys = ("model", "outputs", "dataset", "loss_functions", "evaluation_metrics")
        preflight.check({"optimizer": config["optim"], **{key: config.get(key, {}) for key in keys}})
    # An open LMDB cannot be handed to another process, so the ranks read their data themselves.
    config["optim"]["num_workers"] = 0
    logging.info(f"{ranks} ranks on this machine; optim.num_workers is 0 there")
    # A free port and a name of its own: at torch's default port two runs on one machine would meet.
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(uuid.uuid4()),
        max_restarts=0,
    )
    elastic_launch(launch, run)(config)
