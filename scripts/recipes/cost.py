"""What a prediction of a trained model costs, one structure at a time, on one thread."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase import Atoms

from fairchem_piwsl.files import read_json, write_json

BLOCKS, PREDICTIONS, WARMUP = 5, 10, 3
MD_STEPS, TIMESTEP_FS = 200, 0.5


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
