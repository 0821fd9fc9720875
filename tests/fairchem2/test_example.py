"""The example config from end to end: `fairchem -c`, then the checkpoint in ASE."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ase.db
import ase.io
import numpy as np
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import load_predict_unit

ROOT = Path(__file__).parents[2]


def test_the_example_trains_and_the_calculator_reads_its_checkpoint(tmp_path: Path) -> None:
    for split in ("train", "val"):
        structures = ase.io.read(ROOT / f"examples/aspirin/{split}.extxyz.gz", ":6")
        with ase.db.connect(tmp_path / f"{split}.aselmdb") as database:
            for atoms in structures:
                database.write(atoms)
    arguments = [f"data={tmp_path}", "steps=4", f"job.run_dir={tmp_path}"]
    changes = ["runner.train_eval_unit.print_every=1", "runner.callbacks.0.checkpoint_every_n_steps=4"]
    config = ROOT / "configs/fairchem2/aspirin_direct.yml"
    done = subprocess.run(
        [Path(sys.executable).with_name("fairchem"), "-c", config, *arguments, *changes],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("'train/loss_pitc': ") == 4
    [checkpoint] = tmp_path.glob("**/final/inference_ckpt.pt")
    atoms.calc = FAIRChemCalculator(load_predict_unit(checkpoint, device="cpu"), task_name="aspirin")
    assert abs(atoms.get_potential_energy() + 1077) < 20
    assert np.isfinite(atoms.get_forces()).all()
