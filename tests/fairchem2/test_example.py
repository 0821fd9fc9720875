"""The example configs from end to end: `fairchem -c`, then the checkpoint in ASE; and on from it by fine-tuning."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import load_predict_unit

ROOT = Path(__file__).parents[2]
REFERENCES = ROOT / "scripts/fairchem2_references.py"


def aspirins(split: str) -> list[Atoms]:
    return ase.io.read(ROOT / f"examples/aspirin/{split}.extxyz.gz", ":6")


def write(folder: Path, split: str, structures: Sequence[Atoms]) -> None:
    folder.mkdir(exist_ok=True)
    with ase.db.connect(folder / f"{split}.aselmdb") as database:
        for atoms in structures:
            database.write(atoms)


def trained(config: str, folder: Path, *changes: str) -> tuple[Path, str]:
    """Checkpoint and log of a training by fairchem's own command line."""
    fixed = [f"job.run_dir={folder}", "steps=4", "runner.train_eval_unit.print_every=1"]
    done = subprocess.run(
        [
            Path(sys.executable).with_name("fairchem"),
            "-c",
            ROOT / "configs/fairchem2" / config,
            *fixed,
            *changes,
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [checkpoint] = folder.glob("**/final/inference_ckpt.pt")
    return checkpoint, done.stderr


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("example")
    for split in ("train", "val"):
        write(folder / "data", split, aspirins(split))
    return trained(
        "aspirin_direct.yml",
        folder,
        f"data={folder / 'data'}",
        "runner.callbacks.0.checkpoint_every_n_steps=4",
        "runner.callbacks.1.start_step=0",
    )


def test_the_example_trains_and_the_calculator_reads_its_checkpoint(example: tuple[Path, str]) -> None:
    checkpoint, log = example
    assert log.count("'train/loss_pitc': ") == 4
    atoms = aspirins("val")[0]
    atoms.calc = FAIRChemCalculator(load_predict_unit(checkpoint, device="cpu"), task_name="aspirin")
    assert abs(atoms.get_potential_energy() + 1077) < 20
    assert np.isfinite(atoms.get_forces()).all()


def with_emt(atoms: Atoms, forces: bool) -> Atoms:
    """Labels of another level of theory."""
    found = {"energy": EMT().get_potential_energy(atoms), "forces": EMT().get_forces(atoms)}
    if not forces:
        found["forces"] = np.full_like(found["forces"], np.inf)
    atoms.calc = SinglePointCalculator(atoms, **found)
    return atoms


def test_fine_tuning_to_another_level_of_theory(
    example: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    for split in ("train", "val"):
        write(data, split, [with_emt(atoms, forces=i % 2 == 0) for i, atoms in enumerate(aspirins(split))])
    start = str(example[0])
    monkeypatch.setattr("sys.argv", [str(REFERENCES), start, str(data / "train.aselmdb")])
    runpy.run_path(str(REFERENCES), run_name="__main__")
    override = capsys.readouterr().out.strip().splitlines()[-1]
    references = [
        float(value) for value in override.removeprefix("references=[").removesuffix("]").split(",")
    ]
    assert len(references) == 9
    checkpoint, log = trained(
        "aspirin_fine_tune.yml", tmp_path, f"data={data}", f"checkpoint={start}", override
    )
    assert log.count("'train/loss_pitc': ") == 4

    def errors(path: str | Path, shift: float) -> np.ndarray:
        calculator = FAIRChemCalculator(load_predict_unit(path, device="cpu"), task_name="aspirin")
        return np.array(
            [
                calculator.get_potential_energy(atoms) + shift - EMT().get_potential_energy(atoms)
                for atoms in aspirins("train")
            ]
        )

    shift = sum(references[z] for z in aspirins("train")[0].numbers)
    assert abs(shift) > 500
    before = errors(start, shift)
    assert abs(before.mean()) < 1e-3  # least squares over one composition
    after = errors(checkpoint, 0.0)
    assert not np.allclose(after, before, rtol=0, atol=1e-6)
    assert np.abs(after).max() < np.abs(before).max() + 1
