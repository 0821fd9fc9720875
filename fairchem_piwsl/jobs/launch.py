"""fairchem's command line with the plugin loaded (`main.py`)."""

import logging
import os
import signal
import sys
import uuid
from typing import Any

from fairchem.core.common.utils import setup_logging
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import check_output_folder, errors_as_sentences
from fairchem_piwsl.jobs.command_line import check_flags, check_slurm, read_arguments
from fairchem_piwsl.jobs.resuming import check_predictions, check_start, is_finished
from fairchem_piwsl.jobs.runner import Runner, rank_count, run
from fairchem_piwsl.jobs.signals import handled
from fairchem_piwsl.jobs.submission import build_configs, submit
from fairchem_piwsl.training.checkpoint_files import trust
from fairchem_piwsl.training.data_checks import splits
from fairchem_piwsl.training.preflight import check_configs
from fairchem_piwsl.upstream.run_start import run_name, send_jobs_with

#: exit code where a signal has ended a run, whichever it was
STOPPED = 128 + signal.SIGTERM

send_jobs_with(Runner)


def main(arguments: list[str] | None = None, program: str = "main.py") -> None:
    """Run fairchem's CLI.

    A `UserError` becomes one line on stderr, after `program`, and exit code 2; a run that a signal has ended
    becomes a line that says how to go on, and exit code 143.
    """
    setup_logging()
    with errors_as_sentences(program):
        start(arguments, program)


def start(arguments: list[str] | None, program: str) -> None:
    """Check everything that was asked for, then run it here or send it to SLURM."""
    args, overrides = read_arguments(arguments)
    check_flags(args)
    if args.trust_checkpoint:
        trust()
    if args.mode is None:
        raise UserError("--mode is missing: give train, validate, predict or run-relaxations.")
    if args.mode != "train" and not args.checkpoint:
        raise UserError(f"--mode {args.mode} needs trained weights: add --checkpoint .../best_checkpoint.pt.")
    check_output_folder(args.run_dir, "--run-dir")
    configs = build_configs(args, overrides)
    check_configs(configs)
    for config in configs:
        check_slurm(config.get("slurm") or {})
        check_predictions(config)
        check_start(config, rank_count(config["world_size"]))
        check_split(config)
    left = [config for config in configs if len(configs) == 1 or not is_finished(config)]
    if len(left) < len(configs):
        logging.info(f"{len(configs) - len(left)} of {len(configs)} runs have finished already")
    if not left:
        return
    if args.submit:
        check_output_folder(args.logdir, "--logdir")
        submit(args, left)
        return
    if len(configs) > 1:
        logging.info(
            f"{len(left)} runs; if they are interrupted, continue with --timestamp-id {args.timestamp_id}"
        )
    for config in left:
        stopped = run_here(config, args.num_gpus)
        if stopped is None or (config is left[-1] and is_finished({**config, "timestamp_id": stopped})):
            continue
        name = args.timestamp_id if len(configs) > 1 else stopped
        sentence = f"stopped by a signal; to continue, run the same command with --timestamp-id {name}."
        print(f"{program}: {sentence}", file=sys.stderr)
        raise SystemExit(STOPPED)


def check_split(config: dict[str, Any]) -> None:
    """Refuse to validate or predict without structures, where upstream fails by an assertion."""
    name = {"validate": "val", "predict": "test"}.get(config["mode"])
    if name and name not in splits(config.get("dataset")):
        raise UserError(
            f"--mode {config['mode']} needs dataset.{name}.src: name a data set there, or prepare one with "
            f"--{name}."
        )


def run_here(config: dict[str, Any], ranks: int) -> str | None:
    """Train in this process, or in `ranks` of this machine; the name of the run where a signal asked for its end."""
    if ranks == 1:
        return run(config)
    # An open LMDB cannot be handed to another process, so the ranks read their data themselves.
    config["optim"]["num_workers"] = 0
    logging.info(f"{ranks} ranks on this machine; optim.num_workers is 0 there")
    # so that this process can say it where the ranks are ended
    config["timestamp_id"] = config["timestamp_id"] or run_name(config["identifier"])
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
    try:
        # torch passes TERM on to the ranks, and dies of USR2
        with handled(lambda *_: os.kill(os.getpid(), signal.SIGTERM), signal.SIGUSR2):
            return next(filter(None, elastic_launch(launch, run)(config).values()), None)
    except SignalException:  # the ranks were given half a minute for their checkpoint
        return config["timestamp_id"]
