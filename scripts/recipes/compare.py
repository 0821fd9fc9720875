"""Train one config with several methods and seeds, and compare their errors on the test set.

Each run is fairchem's own command line in a process of its own. A run that has finished is not repeated, and one
that was interrupted continues from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fairchem_piwsl.config import load_config
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import as_json, read_json, write_json
from fairchem_piwsl.report.curves import read_curves

_STEP = re.compile(r"\bstep: ([0-9.e+]+)")
_TOTAL = re.compile(r"training steps: (\d+)")
_SECONDS = re.compile(r"Total time taken: ([0-9.]+)")
#: name of a run's folders below `checkpoints` and `logs/tensorboard`, the same when it is continued
_RUN = "run"


@dataclass(frozen=True)
class Result:
    """Errors of one run on the test set, and its cost."""

    method: str
    seed: int
    #: kcal/mol
    energy_rmse: float
    #: kcal/mol/Angstrom, over components
    forces_rmse: float
    #: of training on one thread, validations included: of fairchem 1.10 wall time without Python's imports, of
    #: fairchem 2 time on the processor with them
    train_seconds: float
    checkpoint: str


def compare(
    config: Path,
    methods: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    test: Path,
    out: Path,
    side_by_side: int = 2,
    cpu: bool = True,
) -> list[Result]:
    """Train and evaluate every method with every seed.

    Args:
        config: a fairchem config.
        methods: name -> command-line arguments that turn the config into this method.
        seeds: one run of each method with each.
        test: LMDB of the test set.
        out: folder of all runs, `out/<method>/seed<seed>`.
        side_by_side: trainings at the same time, each on one thread. Small models gain little from a second
            thread, and one that has to wait for other work on the machine costs more than it brings.
        cpu: stay off the GPU.
    """
    runs = [(method, seed, out / method / f"seed{seed}") for seed in seeds for method in methods]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress, ThreadPoolExecutor(side_by_side) as pool:
        trainings = [
            pool.submit(
                train, config, methods[method], seed, run_dir, progress, f"{method}, seed {seed}", cpu
            )
            for method, seed, run_dir in runs
        ]
        seconds = [training.result() for training in trainings]
    return [
        evaluated(method, seed, run_dir, test, took)
        for (method, seed, run_dir), took in zip(runs, seconds, strict=True)
    ]


def evaluated(
    method: str, seed: int, run_dir: Path, test: Path, seconds: float, checkpoint: Path | None = None
) -> Result:
    """The errors of a trained model, that of the best checkpoint where none is given, computed once."""
    path = run_dir / "result.json"
    if path.exists():
        return Result(**read_json(path))
    checkpoint = checkpoint or best_checkpoint(run_dir)
    energy, forces = rmse_of(checkpoint, test)
    result = Result(method, seed, energy, forces, train_seconds=seconds, checkpoint=str(checkpoint))
    write_json(path, asdict(result))
    return result


def rmse_of(checkpoint: Path, test: Path) -> tuple[float, float]:
    """RMSE of energies (kcal/mol) and of force components (kcal/mol/Angstrom) on a data set."""
    from fairchem_piwsl.analysis.evaluate import evaluate

    [model] = evaluate([checkpoint], test, group_by="none", n_bootstrap=1, cpu=True)["models"]
    return model["metrics"]["energy_rmse"]["value"], model["metrics"]["forces_rmse"]["value"]


def train(
    config: Path,
    arguments: Sequence[str],
    seed: int,
    run_dir: Path,
    progress: Progress,
    label: str,
    cpu: bool = True,
) -> float:
    """Run fairchem's training on one thread; its output goes to `train.log`.

    A run that has finished is not repeated, an interrupted one continues from its last checkpoint.

    Returns:
        Seconds that training took.

    Raises:
        UserError: training failed (the message holds the last line of its output), or the folder holds a run
            with other settings.
    """
    _check_same_run(run_dir, config, arguments, seed)
    finished = run_dir / "trained.json"
    if finished.exists():
        return read_json(finished)["train_seconds"]
    command = [
        *(sys.executable, "-m", "fairchem_piwsl", "fairchem", "--mode", "train", "--config-yml", str(config)),
        *("--run-dir", str(run_dir), "--timestamp-id", _RUN, "--seed", str(seed), "--print-every", "20"),
        *(["--cpu"] if cpu else []),
        *arguments,
        "--dataset.test=None",  # evaluated once, afterwards, not at every improvement
    ]
    earlier = 0.0
    if (checkpoint := run_dir / "checkpoints" / _RUN / "checkpoint.pt").exists():
        command += ["--checkpoint", str(checkpoint)]
        earlier = _logged_seconds(run_dir)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    bar = progress.add_task(label, total=None)
    with (
        (run_dir / "train.log").open("a") as log,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        seconds, last = float("nan"), ""
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            last = line.strip() or last
            if found := _TOTAL.search(line):
                progress.update(bar, total=int(found[1]))
            elif found := _SECONDS.search(line):
                seconds = earlier + float(found[1])
            elif "optim:" not in line and (found := _STEP.search(line)):
                progress.update(bar, completed=int(float(found[1])))
    if process.returncode:
        raise UserError(f"training '{label}' failed, see {run_dir / 'train.log'}: {last}")
    progress.update(bar, completed=progress.tasks[bar].total or 0)
    write_json(finished, {"train_seconds": seconds})
    return seconds


def _check_same_run(run_dir: Path, config: Path, arguments: Sequence[str], seed: int) -> None:
    """Note the settings of a run in its folder, or compare them with what was noted there before."""
    settings = {"config": load_config(config), "arguments": list(arguments), "seed": seed}
    noted = run_dir / "settings.json"
    if noted.exists() and read_json(noted) != json.loads(as_json(settings)):
        raise UserError(
            f"{run_dir} holds a run with other settings (they are in {noted.name}): "
            "remove that folder, or choose another one for the results."
        )
    write_json(noted, settings)


def _logged_seconds(run_dir: Path) -> float:
    """How long the interrupted parts of a run took, by its TensorBoard files."""
    curves = read_curves(run_dir / "logs" / "tensorboard" / _RUN)
    return max((float(curve.seconds[-1]) for curve in curves.values()), default=0.0)


def best_checkpoint(run_dir: Path) -> Path:
    """The newest best checkpoint below a run's folder."""
    found = sorted(
        (run_dir / "checkpoints").glob("*/best_checkpoint.pt"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        raise UserError(f"{run_dir} has no checkpoints/*/best_checkpoint.pt; did its training finish?")
    return found[-1]
