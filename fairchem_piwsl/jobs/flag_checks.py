"""Checks of the flags of `main.py` and of a config's block `slurm`, before anything is written or sent.

Names of runs become names of folders; what goes to SLURM becomes lines of a batch script, where a line break
would begin a line of shell.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.kinds import MAX_SEED

_NAME = re.compile(r"\w[\w.=+,@-]{0,199}")
_WORD = re.compile(r"\w[\w.,:@/+-]*")
_SBATCH_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_AT_LEAST_ONE = ("num_gpus", "num_nodes", "gp_gpus", "print_every", "slurm_timeout", "slurm_mem")


def check_flags(args: argparse.Namespace) -> None:
    """Refuse values of fairchem's flags that cannot work; a `UserError` names the flag."""
    for option in ("identifier", "timestamp_id"):
        value = getattr(args, option)
        if value and not _NAME.fullmatch(value):
            raise UserError(
                f"{_flag(option)} {value!r} becomes the name of a folder: use letters, digits and _ . = + , @ -, with "
                "a letter or digit first, 200 at most."
            )
    for option in ("slurm_partition", "slurm_account", "slurm_qos"):
        value = getattr(args, option)
        if value is not None and not _WORD.fullmatch(value):
            raise UserError(
                f"{_flag(option)} {value!r} is no name that SLURM knows: `sinfo` lists partitions."
            )
    for option in ("run_dir", "logdir"):
        value = str(getattr(args, option))
        if not value.isprintable() or not value:
            raise UserError(
                f"{_flag(option)} {value!r} is no name for a folder: give one that can be printed."
            )
    if "%" in str(args.logdir):
        raise UserError(f"--logdir {args.logdir} has a %, which SLURM replaces: give a folder without.")
    for option in _AT_LEAST_ONE:
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"{_flag(option)} is {value}: give a whole number of at least 1.")
    _check_seeds("--seeds" if args.seeds else "--seed", args.seeds or [args.seed])


def _check_seeds(option: str, seeds: list[int]) -> None:
    for seed, count in Counter(seeds).items():
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"{option} {seed} is out of range: give seeds from 0 to {MAX_SEED}.")
        if count > 1:
            raise UserError(f"{option} names {seed} {count} times: give each seed once.")


def check_slurm(options: Any) -> None:
    """Refuse a config's block `slurm` that would not be what it says in a batch script."""
    if not isinstance(options, Mapping):
        raise UserError(f"slurm is {options!r}: give a block such as {{constraint: a100}}.")
    for key, value in options.items():
        if not _SBATCH_KEY.fullmatch(str(key)):
            raise UserError(f"slurm.{key!r} is no option of sbatch: give its name without dashes in front.")
        if key == "setup":
            if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
                raise UserError(f"slurm.setup is {value!r}: give a list of shell commands.")
        elif key in ("signal_delay_s", "array_parallelism", "max_timeouts"):
            if not isinstance(value, int) or isinstance(value, bool) or value < (key != "max_timeouts"):
                raise UserError(f"slurm.{key} is {value!r}: give a whole number of at least 1.")
        elif isinstance(value, list | Mapping) or not str(value).isprintable():
            raise UserError(f"slurm.{key} is {value!r}: give one line of text or a number.")


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
