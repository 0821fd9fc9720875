"""The command line of `main.py`: fairchem's flags, overrides `--key=value`, what both make of a config, their checks.

Names of runs become names of folders; what goes to SLURM becomes lines of a batch script, where a line break
would begin a line of shell.
"""

import argparse
import copy
import itertools
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config

from fairchem_piwsl.config import entries, read_yaml, with_values
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.kinds import MAX_SEED, closest
from fairchem_piwsl.training.config_layout import SLURM


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes are the user's errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `python main.py --help` lists what there is.")


def parser() -> argparse.ArgumentParser:
    """fairchem's flags; --config-yml takes several files, --method several methods, --seeds several seeds."""
    upstream = copy.deepcopy(flags.get_parser())
    parser = _Parser(parents=[upstream], add_help=False, conflict_handler="resolve")
    parser.add_argument(
        "--config-yml",
        required=True,
        type=Path,
        nargs="+",
        help="Path(s) to config files listing data, model, optim parameters.",
    )
    parser.add_argument(
        "--method",
        nargs="+",
        help="Another method for the config: baseline, noisy_nodes, weak_label, second_order, auto, a file "
        "with optim.piwsl, or piwsl, the config's own. Several make one run each.",
    )
    parser.add_argument(
        "--data", type=Path, help="Folder of `piwsl prepare` to train on instead of the config's"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="One run for each of these seeds")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="Load checkpoints and .model files that can run code: for files of people you trust",
    )
    return parser


def read_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The flags of a command line (this process's own where left out), and its overrides `--key=value`.

    Raises:
        UserError: an argument is neither.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    flag_parser = parser()
    known = re.findall(r"--[\w-]+", flag_parser.format_help())

    def is_flag(key: str) -> bool:
        return any(name.startswith(key) for name in known)

    def is_override(argument: str) -> bool:
        """Taken out before argparse, which takes one with a space in its value for another config."""
        key, equals, _ = argument.partition("=")
        return key.startswith("--") and equals == "=" and (key == "--" or not is_flag(key))

    args, others = flag_parser.parse_known_args([a for a in arguments if not is_override(a)])
    if others:
        close = closest(others[0], known)
        hint = f"did you mean {close}?" if close else "an override is --key=value, as --optim.batch_size=4."
        raise UserError(f"'{others[0]}' is not an option; {hint}")
    return args, [a for a in arguments if is_override(a)]


def with_flags(config: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The config with what fairchem makes of its flags, which it does for a file only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yml"
        path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        return build_config(argparse.Namespace(**{**vars(args), "config_yml": path}), [])


def grid(config: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """One config for each combination of the lists in the file of --sweep-yml."""
    found = entries(read_yaml(path, "--sweep-yml"), in_lists=False)
    lists = {key: value for key, value in found if not isinstance(value, Mapping)}
    for key, values in lists.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"--sweep-yml {path}: '{key}' must be a list of values, not {values!r}.")
    members = [
        with_values(config, dict(zip(lists, values, strict=True)))
        for values in itertools.product(*lists.values())
    ]
    return [{**one, "identifier": f"{one['identifier']}_run{i}"} for i, one in enumerate(members)]


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
    for seed in args.seeds or [args.seed]:
        if not 0 <= seed <= MAX_SEED:
            option = "--seeds" if args.seeds else "--seed"
            raise UserError(f"{option} {seed} is out of range: give seeds from 0 to {MAX_SEED}.")
    for option, values in (("--seeds", args.seeds), ("--method", args.method)):
        for value, count in Counter(values).items():
            if count > 1:
                raise UserError(f"{option} names {value} {count} times: give each once.")


def check_slurm(options: Any) -> None:
    """Refuse a config's block `slurm` that would not be what it says in a batch script."""
    SLURM.check(options, "slurm")
    for key in options:
        if not _SBATCH_KEY.fullmatch(str(key)):
            raise UserError(f"slurm.{key!r} is no option of sbatch: give its name without dashes in front.")


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
