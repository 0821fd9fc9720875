"""Train one config of fairchem 2 with several methods and seeds, and compare their errors on the test set.

Each run is fairchem's own command line in a process of its own. A run that has finished is not repeated, and one
that was interrupted continues from its last checkpoint.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fairchem_piwsl.datasets.prepare import prepare
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import read_json, write_json
from recipes.compare import Result, evaluated

#: steps between the lines of a log that tell the step
PRINT_EVERY = 50


def compare(
    config: Path,
    methods: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    structures: Path,
    out: Path,
    side_by_side: int = 2,
) -> list[Result]:
    """Train and evaluate every method with every seed, in the order of the seeds.

    Args:
        config: a config of fairchem 2 with the key `data`.
        methods: name -> overrides that turn the config into this method.
        structures: folder with train, val and test.extxyz.gz.
        out: folder of all runs, `out/METHOD/seedN`, and of the data set.
        side_by_side: trainings at the same time, each on one thread.
    """
    files = {f"{split}_files": [structures / f"{split}.extxyz.gz"] for split in ("train", "val")}
    data = (out / "data").resolve()
    prepare(**files, out=data, format="aselmdb", reuse=True, quiet=True)
    runs = [
        (method, seed, out / re.sub(r"\W+", "_", method) / f"seed{seed}")
        for seed in seeds
        for method in methods
    ]

    def result(run: tuple[str, int, Path]) -> Result:
        method, seed, folder = run
        fixed = [f"data={data}", f"job.seed={seed}", f"job.run_dir={folder}", "+job.timestamp_id=run"]
        seconds = train(config, [*methods[method], *fixed], folder, f"{method}, seed {seed}")
        checkpoint = folder / "run" / "checkpoints" / "final" / "inference_ckpt.pt"
        return evaluated(method, seed, folder, structures / "test.extxyz.gz", seconds, checkpoint)

    with ThreadPoolExecutor(side_by_side) as pool:
        return list(pool.map(result, runs))


def train(config: Path, overrides: Sequence[str], folder: Path, label: str) -> float:
    """Run fairchem's training on one thread, its output in `train.log`.

    Returns:
        Its seconds on the processor; of an interrupted part too, unless that was killed together with this process.

    Raises:
        UserError: training failed (the message holds the last line of its output), or the folder holds a run
            with other settings.
    """
    settings = {"config": config.read_text(), "overrides": list(overrides)}
    noted, spent, finished = (folder / f"{name}.json" for name in ("settings", "interrupted", "trained"))
    if noted.exists() and read_json(noted) != settings:
        raise UserError(f"{folder} holds a run with other settings; remove it, or choose another folder.")
    write_json(noted, settings)
    if finished.exists():
        return read_json(finished)["train_seconds"]
    # `.metadata` is written last: a folder without it was left half way
    whole = folder.glob("run/checkpoints/step_*/.metadata")
    interrupted = sorted((path.with_name("resume.yaml") for path in whole), key=_step)
    start = ["-c", str(interrupted[-1])] if interrupted else ["-c", str(config), *overrides]
    earlier = read_json(spent)["train_seconds"] if interrupted and spent.exists() else 0.0
    command = [str(Path(sys.executable).with_name("fairchem")), *start]
    print(f"{label}: training{' goes on' if interrupted else ''}", flush=True)
    with (folder / "train.log").open("a") as log:
        log.write(f"\n{' '.join(command)}\n")
        log.flush()
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ | {"OMP_NUM_THREADS": "1"},
            file_actions=[(os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)],
        )
        _, status, usage = os.wait4(pid, 0)
    seconds = earlier + usage.ru_utime + usage.ru_stime
    write_json(spent if status else finished, {"train_seconds": seconds})
    if status:
        last = (folder / "train.log").read_text().strip().splitlines()[-1]
        raise UserError(f"training '{label}' failed, see {folder / 'train.log'}: {last}")
    return seconds


def learning_curve(run: Result, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of `energy_rmse` (eV) or `forces_rmse` (eV/Angstrom) on the validation set, from the log."""
    log = (Path(run.checkpoint).parents[3] / "train.log").read_text()
    name = metric.removesuffix("_rmse")
    steps, values, step = [], [], 0
    for found in re.finditer(rf"'train/step': (\d+)|val/\w+\.val,{name},mse: ([\d.e+-]+)", log):
        if found[1]:
            step = int(found[1]) + PRINT_EVERY
        else:
            steps.append(step)
            values.append(float(found[2]) ** 0.5)
    return steps, values


def _step(resume: Path) -> int:
    return int(resume.parent.name.removeprefix("step_"))
