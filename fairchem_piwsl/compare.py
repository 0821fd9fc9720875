"""Train one config with several methods and seeds, and compare their errors on the test set.

Each run is fairchem's own command line in a process of its own. A run that has finished is not repeated, so
an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fairchem_piwsl.errors import UserError

_STEP = re.compile(r"\bstep: ([0-9.e+]+)")
_SECONDS = re.compile(r"Total time taken: ([0-9.]+)")


@dataclass(frozen=True)
class Result:
    """Errors of one run on the test set, and its cost."""

    method: str
    seed: int
    #: kcal/mol
    energy_rmse: float
    #: kcal/mol/Angstrom, over components
    forces_rmse: float
    #: wall time of the training process without Python's imports, validations included
    train_seconds: float
    checkpoint: str


def compare(
    config: Path,
    methods: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    test: Path,
    out: Path,
) -> list[Result]:
    """Train and evaluate every method with every seed.

    Args:
        config: a fairchem config.
        methods: name -> command-line arguments that turn the config into this method.
        seeds: one run of each method with each.
        test: LMDB of the test set.
        out: folder of all runs, `out/<method>/seed<seed>`.
    """
    results = []
    for seed in seeds:
        for method, arguments in methods.items():
            run_dir = out / method / f"seed{seed}"
            results.append(_finished(run_dir) or _run(config, method, arguments, seed, test, run_dir))
    return results


def _finished(run_dir: Path) -> Result | None:
    path = run_dir / "result.json"
    return Result(**json.loads(path.read_text())) if path.exists() else None


def _run(config: Path, method: str, arguments: Sequence[str], seed: int, test: Path, run_dir: Path) -> Result:
    from fairchem_piwsl.analysis.errors import error_table, in_units
    from fairchem_piwsl.analysis.potential import load_potential
    from fairchem_piwsl.analysis.structures import read_labelled

    seconds = train(config, arguments, seed, run_dir, label=f"{method}, seed {seed}")
    checkpoint = best_checkpoint(run_dir)
    structures = read_labelled(test)
    prediction = load_potential(checkpoint, cpu=True).predict([s.atoms for s in structures])
    errors = in_units(
        error_table(
            np.array([s.energy for s in structures]),
            [s.forces for s in structures],
            prediction.energy,
            prediction.forces,
        ),
        "kcal/mol",
    )
    result = Result(
        method=method,
        seed=seed,
        energy_rmse=errors["energy_rmse"].value,
        forces_rmse=errors["forces_rmse"].value,
        train_seconds=seconds,
        checkpoint=str(checkpoint),
    )
    (run_dir / "result.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    return result


def train(config: Path, arguments: Sequence[str], seed: int, run_dir: Path, label: str) -> float:
    """Run `main.py --mode train` with a progress bar; its output goes to `run_dir/train.log`.

    Returns:
        Seconds that training took.

    Raises:
        UserError: training failed; the message holds the last line of its output.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "fairchem_piwsl", "--mode", "train", "--config-yml", str(config)),
        *("--run-dir", str(run_dir), "--seed", str(seed), "--print-every", "20", "--cpu", *arguments),
        "--dataset.test=None",  # evaluated once, afterwards, not at every improvement
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, TimeRemainingColumn()) as progress,
        (run_dir / "train.log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        bar = progress.add_task(label, total=None)
        seconds, last = float("nan"), ""
        for line in _lines(process):
            log.write(line)
            last = line.strip() or last
            if "optim:" not in line and (found := _STEP.search(line)):
                progress.update(bar, completed=int(float(found[1])))
            if found := _SECONDS.search(line):
                seconds = float(found[1])
            if found := re.search(r"training steps: (\d+)", line):
                progress.update(bar, total=int(found[1]))
    if process.returncode:
        raise UserError(f"training '{label}' failed, see {run_dir / 'train.log'}: {last}")
    return seconds


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    yield from process.stdout


def best_checkpoint(run_dir: Path) -> Path:
    """The newest best checkpoint below a run's folder."""
    found = sorted(
        (run_dir / "checkpoints").glob("*/best_checkpoint.pt"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        raise UserError(f"{run_dir} has no checkpoints/*/best_checkpoint.pt; did its training finish?")
    return found[-1]
