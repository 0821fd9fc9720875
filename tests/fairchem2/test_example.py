"""The example configs from end to end: `fairchem -c`, then the checkpoint in ASE; and on from it by fine-tuning."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Sequence
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import load_predict_unit
from fairchem.core.units.mlip_unit.api.inference import InferenceSettings
from fairchem.core.units.mlip_unit.mlip_unit import initialize_finetuning_model
from hydra.utils import instantiate
from omegaconf import OmegaConf
from recipes.compare import Result
from recipes.compare_fairchem2 import learning_curve, train

from fairchem_piwsl.errors import UserError

ROOT = Path(__file__).parents[2]
REFERENCES = ROOT / "scripts/fairchem2_references.py"


def aspirins(split: str) -> list[Atoms]:
    return ase.io.read(ROOT / f"examples/aspirin/{split}.extxyz.gz", ":6")


def write(folder: Path, split: str, structures: Sequence[Atoms]) -> None:
    """Where `piwsl prepare --format aselmdb` has it."""
    (folder / split).mkdir(parents=True)
    with ase.db.connect(folder / split / "data.aselmdb") as database:
        for atoms in structures:
            database.write(atoms, data=atoms.info)


def trained(config: str, folder: Path, *changes: str) -> tuple[Path, str]:
    """Checkpoint and log of a training by fairchem's own command line."""
    fixed = [
        f"job.run_dir={folder}",
        "+job.timestamp_id=run",
        "steps=4",
        "runner.train_eval_unit.print_every=1",
    ]
    train(ROOT / "configs/fairchem2" / config, [*fixed, *changes], folder, "test")
    return folder / "run/checkpoints/final/inference_ckpt.pt", (folder / "train.log").read_text()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str]]:
    folder = tmp_path_factory.mktemp("example")
    for split in ("train", "val"):
        write(folder / "data", split, aspirins(split))
    changes = [
        f"data={folder / 'data'}",
        "runner.callbacks.0.checkpoint_every_n_steps=2",
        "+runner.callbacks.1.every_n_steps=1",
        "+runner.callbacks.1.ramp_steps=0",
    ]
    return *trained("aspirin_direct.yml", folder, *changes), changes


def test_the_example_trains_and_the_calculator_reads_its_checkpoint(
    example: tuple[Path, str, list[str]],
) -> None:
    checkpoint, log, _ = example
    assert log.count("'train/loss_pitc': ") == 4
    atoms = aspirins("val")[0]
    atoms.calc = FAIRChemCalculator(load_predict_unit(checkpoint, device="cpu"), task_name="aspirin")
    assert abs(atoms.get_potential_energy() + 1077) < 20
    assert np.isfinite(atoms.get_forces()).all()


@pytest.mark.parametrize("config", ["aspirin_direct", "aspirin_fine_tune"])
def test_charge_and_spin_are_read_in_training_as_the_calculator_reads_them(
    config: str, tmp_path: Path
) -> None:
    [atoms] = aspirins("train")[:1]
    atoms.info |= {"charge": 1, "spin": 2}
    write(tmp_path, "train", [atoms])
    lines = OmegaConf.load(ROOT / f"configs/fairchem2/{config}.yml")
    lines.data = str(tmp_path)
    record = instantiate(lines.runner.train_dataloader.dataset)[0]
    assert (record.charge.item(), record.spin.item()) == (1, 2)


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
    monkeypatch.setattr("sys.argv", [str(REFERENCES), start, str(data / "train/data.aselmdb")])
    runpy.run_path(str(REFERENCES), run_name="__main__")
    override = capsys.readouterr().out.strip().splitlines()[-1]
    references = [
        float(value) for value in override.removeprefix("references=[").removesuffix("]").split(",")
    ]
    assert len(references) == 119
    checkpoint, log = trained(
        "aspirin_fine_tune.yml", tmp_path, f"data={data}", f"checkpoint={start}", override
    )
    assert log.count("'train/loss_pitc': ") == 4

    def errors(path: str | Path, shift: float) -> np.ndarray:
        """With the weights that fine-tuning starts from, which are not the average of those before."""
        predictor = load_predict_unit(path, InferenceSettings(), device="cpu")
        predictor.model.module.load_state_dict(initialize_finetuning_model(str(path)).state_dict())
        calculator = FAIRChemCalculator(predictor, task_name="aspirin")
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
    assert np.abs(after - before).max() < abs(shift) / 100  # nothing of the shift had to be learnt


def test_an_interrupted_run_ends_like_an_uninterrupted_one(example: tuple[Path, str, list[str]]) -> None:
    checkpoint, _, changes = example
    folder = checkpoint.parents[3]
    whole = torch.load(checkpoint, weights_only=False)
    shutil.rmtree(checkpoint.parent)
    (folder / "trained.json").unlink()
    with pytest.raises(UserError, match="other settings"):
        trained("aspirin_direct.yml", folder, *changes, "steps=5")
    assert trained("aspirin_direct.yml", folder, *changes)[1].count("setting sampler state to 0, 2") == 1
    resumed = torch.load(checkpoint, weights_only=False)
    for kind in ("model_state_dict", "ema_state_dict"):
        one, other = getattr(whole, kind), getattr(resumed, kind)
        assert one.keys() == other.keys()
        for name in one:  # upstream's own resumed runs differ in the last digits
            torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-6)


def test_learning_curves_come_from_the_log(tmp_path: Path) -> None:
    log = "{'train/step': 0, }\n{'train/step': 50}\n  val/aspirin.val,energy,mse: 0.2500\n  val/aspirin.val,forces,mse: 4.0\n"
    (tmp_path / "train.log").write_text(log + log.replace("'train/step': 50", "'train/step': 150"))
    run = Result("m", 0, 0.0, 0.0, 0.0, str(tmp_path / "run/checkpoints/final/inference_ckpt.pt"))
    assert learning_curve(run, "energy_rmse") == ([100, 200], [0.5, 0.5])
    assert learning_curve(run, "forces_rmse") == ([100, 200], [2.0, 2.0])
