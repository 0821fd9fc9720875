"""What a prediction of a trained model costs, one structure at a time, and what a training step costs; on one thread."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from rich.progress import Progress

from fairchem_piwsl.config import get_value, read_yaml
from fairchem_piwsl.datasets.lmdb_checks import number_of_structures
from fairchem_piwsl.files import read_json, write_json
from fairchem_piwsl.report.curves import read_curves
from recipes.compare import train
from recipes.scale import schedule

BLOCKS, PREDICTIONS, WARMUP = 5, 10, 3
MD_STEPS, TIMESTEP_FS = 200, 0.5
#: length of the training that is timed, and of the part that counts: `auto` measures gradients once in 60 steps
TRAINED, COUNTED = 181, 60


def prediction_cost(checkpoint: Path, test: Path, path: Path, cpu: bool = True) -> dict[str, Any]:
    """Cost of a prediction, measured once and kept in the JSON file `path`.

    Nothing else should run meanwhile.

    Returns:
        `seconds`, of energy and forces of a single structure: the fastest of 5 blocks of 10 predictions;
        `ns_per_day` of NVE dynamics at 0.5 fs, as `piwsl md` counts it; and the number of `atoms` of the structure.
    """
    if path.exists():
        return read_json(path)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from fairchem_piwsl.analysis.potential import load_potential
    from fairchem_piwsl.datasets.read import read_labelled
    from fairchem_piwsl.dynamics.dynamics_report import run_md
    from fairchem_piwsl.dynamics.simulation import MDSettings

    torch.set_num_threads(1)
    structures = [item.atoms for item in read_labelled(test, WARMUP + PREDICTIONS)]
    settings = MDSettings(ensemble="nve", timestep=TIMESTEP_FS)
    with tempfile.TemporaryDirectory() as folder:
        dynamics = run_md(checkpoint, test, settings, steps=MD_STEPS, index=0, out=Path(folder), cpu=cpu)
    cost = {
        "seconds": seconds_per_structure(load_potential(checkpoint, cpu=cpu), structures),
        "ns_per_day": dynamics["runs"][0]["ns_per_day"],
        "atoms": len(structures[0]),
    }
    write_json(path, cost)
    return cost


def seconds_per_structure(potential: Any, structures: Sequence[Atoms]) -> float:
    """Wall time of a single prediction; the fastest block, since other work on the machine only adds to it."""
    for atoms in structures[:WARMUP]:
        potential.predict([atoms])
    blocks = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        for atoms in structures[-PREDICTIONS:]:
            potential.predict([atoms])
        blocks.append((time.perf_counter() - start) / len(structures[-PREDICTIONS:]))
    return min(blocks)


def step_cost(config_file: Path, path: Path, cpu: bool = True) -> float:
    """Seconds of a training step of a config, measured once and kept in the JSON file `path`.

    The start of a training, timed from log line to log line: the fastest 60 steps in a row after the first 60, weak
    terms included that would start later. Nothing else should run meanwhile.
    """
    if not path.exists():
        config = read_yaml(config_file, "config")
        structures = number_of_structures(config["dataset"]["train"]["src"])
        short = schedule(TRAINED, structures, config["optim"]["batch_size"], validations=1)
        arguments = [f"--optim.max_epochs={short['max_epochs']}"]
        if get_value(config, "optim.piwsl.start_step"):
            arguments.append("--optim.piwsl.start_step=0")
        with tempfile.TemporaryDirectory() as folder, Progress() as progress:
            train(config_file, arguments, 0, Path(folder), progress, f"{config_file.stem}: a step", cpu)
            curve = read_curves(next(Path(folder).glob("logs/tensorboard/*")))["train/loss"]
        write_json(path, {"seconds": fastest(curve.step, curve.seconds)})
    return read_json(path)["seconds"]


def fastest(step: np.ndarray, seconds: np.ndarray) -> float:
    """Seconds per step of the fastest `COUNTED` steps in a row, after as many that do not count.

    Args:
        step: numbers of the steps that were logged [K], rising.
        seconds: when they were [K].
    """
    later = step >= COUNTED
    step, seconds = step[later], seconds[later]
    end = np.searchsorted(step, step + COUNTED)
    start = np.flatnonzero(end < len(step))
    end = end[start]
    return float(((seconds[end] - seconds[start]) / (step[end] - step[start])).min())
