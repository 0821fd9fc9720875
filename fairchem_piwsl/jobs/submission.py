"""From a command line to jobs: several configs and seeds, one job array."""

import argparse
import copy
import itertools
import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from fairchem_piwsl.config import read_config, with_overrides
from fairchem_piwsl.errors import UserError, in_words
from fairchem_piwsl.files import file_name
from fairchem_piwsl.jobs.command_line import grid, with_flags
from fairchem_piwsl.jobs.runner import Runner
from fairchem_piwsl.jobs.slurm import MAX_TIMEOUTS, need_commands, slurm_executor
from fairchem_piwsl.upstream.run_start import run_name


def build_configs(args: argparse.Namespace, overrides: list[str]) -> list[dict[str, Any]]:
    """One config for each file, method and seed, each with a run name that no other has.

    Where there are several, `args.timestamp_id` becomes the one that the same command continues them with.

    Raises:
        UserError: a config is missing, or two runs would have one name.
    """
    for path in args.config_yml:
        if not path.exists():
            raise UserError(f"config {path} does not exist: check --config-yml; an override is --key=value.")
    choices = list(itertools.product(args.config_yml, args.method or [None]))
    bases = {choice: read_config(choice[0], method=choice[1], data=args.data) for choice in choices}
    configs: list[dict[str, Any]] = []
    for (path, method), seed in itertools.product(choices, args.seeds or [args.seed]):
        config = with_flags(bases[path, method], argparse.Namespace(**{**vars(args), "seed": seed}))
        config = with_overrides(config, overrides)
        members = grid(config, args.sweep_yml) if args.sweep_yml else [config]
        parts = [file_name(path.stem)] if len(args.config_yml) > 1 else []
        parts += [file_name(Path(method).stem)] if len(args.method or ()) > 1 else []
        parts += [f"seed{seed}"] if args.seeds else []
        for member in members:
            member["identifier"] = "-".join([part for part in [member["identifier"], *parts] if part])
        configs += members
    several = len(configs) > 1 or bool(args.seeds)
    if several or args.submit:
        # Upstream takes the time of the job's start, which the jobs of an array share; and a job that starts
        # again must find its name in the config.
        named = bool(args.timestamp_id) and not several
        args.timestamp_id = args.timestamp_id or run_name()
        # members of a grid are alike but for their place; the rest keep their names when others join them
        same = Counter(config["identifier"] for config in configs)
        for index, config in enumerate(configs):
            alike = same[config["identifier"]] > 1
            parts = [args.timestamp_id, "" if named else config["identifier"], str(index) if alike else ""]
            config["timestamp_id"] = "-".join(part for part in parts if part)
        [(name, runs)] = Counter(config["timestamp_id"] for config in configs).most_common(1)
        if runs > 1:
            raise UserError(f"{runs} runs would be called {name} and share a folder: rename a config.")
    return configs


def submit(args: argparse.Namespace, configs: list[dict[str, Any]]) -> list[submitit.Job[Any]]:
    """Send the configs to SLURM, as a job array where there are several."""
    need_commands("--submit", ("sbatch", "srun"), "leave --submit out")
    options = dict(configs[0].get("slurm") or {})
    if any((config.get("slurm") or {}) != options for config in configs):
        raise UserError(
            "the configs differ in their blocks 'slurm', which jobs of one array share: submit them apart."
        )
    executor = slurm_executor(args.logdir, int(options.pop("max_timeouts", MAX_TIMEOUTS)))
    of_submitit = [name for name in ("setup", "signal_delay_s", "array_parallelism") if name in options]
    own = {name: options.pop(name) for name in of_submitit}
    parameters = {
        "name": args.identifier or "piwsl",
        "mem_gb": args.slurm_mem,
        "timeout_min": args.slurm_timeout * 60,
        "slurm_partition": args.slurm_partition,
        "slurm_qos": args.slurm_qos,
        "slurm_account": args.slurm_account,
        "cpus_per_task": max(config["optim"].get("num_workers", 0) for config in configs) + 1,
        "tasks_per_node": args.num_gpus,
        "nodes": args.num_nodes,
        "gpus_per_node": None if args.cpu else args.num_gpus,
        "slurm_additional_parameters": options,
        **{f"slurm_{name}": value for name, value in own.items()},
    }
    mark = f"# sent as {run_name()}"
    parameters["slurm_setup"] = [mark, *own.get("setup", [])]
    executor.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
    for config in configs:
        # without "folder": upstream would rewrite the job's pickle in place to store a name it has already
        config["slurm"] = copy.deepcopy(executor.parameters)
    new = not args.logdir.exists()
    try:
        jobs = executor.map_array(Runner(), configs)
    except (FailedJobError, FailedSubmissionError) as error:
        _remove_unsent(args.logdir, mark, new)
        raise UserError(
            f"sbatch did not take the job ({in_words(error)}): correct the --slurm flags."
        ) from None
    _log(args.logdir, jobs, configs)
    return jobs


def _remove_unsent(folder: Path, mark: str, new: bool) -> None:
    """Delete what submitit wrote for jobs that were refused; its files hold the mark of these jobs alone."""
    for path in [*folder.glob("*.pkl"), *folder.glob(".submission_file_*.sh")]:
        if mark.encode() in path.read_bytes():
            path.unlink()
    if new and not any(folder.iterdir()):
        folder.rmdir()


def _log(folder: Path, jobs: list[submitit.Job[Any]], configs: list[dict[str, Any]]) -> None:
    path = folder / "exp" / time.strftime("%Y-%m-%d-%H-%M-%S.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for job, config in zip(jobs, configs, strict=True):
            print(json.dumps({"slurm_id": job.job_id, "config": config}, default=str), file=file)
            logging.info(f"job {job.job_id}: {config['timestamp_id']}")
    logging.info(f"submitted {len(jobs)} jobs, noted in {path}")
