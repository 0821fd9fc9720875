"""scripts/fine_tuning.py: a tiny run end to end, going on after an interruption, mistakes."""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import write

from fairchem_piwsl.training.checkpoints import read_checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "fine_tuning.py"
KCAL = 23.0605  # kcal/mol in one eV
SHIFT = -3130.0  # eV, between the two levels; about the energy of all electrons, which tells the unit
MODEL = {
    "name": "fairchem_piwsl.models.gradient_forces.GradientForces",
    "otf_graph": True,
    "model": {"name": "painn", "hidden_channels": 16, "num_layers": 2, "num_rbf": 16, "cutoff": 5.0},
}
SCALE = {
    "title": "Methanol",
    "name": "methanol",
    "split": {"train": 8, "val": 4, "test": 4},
    "sizes": [8],
    "seeds": [0],
    "pretraining_seed": 0,
    "pretraining_data": {"val": 4, "dynamics": {}},
    "methods": {"energies": {}, "energies + PIWSL": {"c_pitc": 1.0, "eps_max": 0.05, "k_2nd": 0.5}},
    "models": {
        "painn": {
            "model": MODEL,
            "optim": {"batch_size": 4, "eval_batch_size": 8, "optimizer": "AdamW", "scheduler": "Null"},
            "pretraining": {"steps": 2, "validations": 1, "lr_initial": 1e-3},
            "fine_tuning": {"steps": 2, "validations": 1, "lr_initial": 1e-4},
        }
    },
}


def methanol(count: int, seed: int) -> list[Atoms]:
    """Distorted molecules labelled by EMT, in eV."""
    rng = np.random.default_rng(seed)
    structures = []
    for _ in range(count):
        atoms = molecule("CH3OH")
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_forces()
        structures.append(atoms)
    return structures


def write_npz(path: Path, structures: list[Atoms], unit: float = KCAL) -> Path:
    """sGDML's layout, in kcal/mol."""
    np.savez(
        path,
        z=structures[0].numbers,
        R=[atoms.positions for atoms in structures],
        E=[[(atoms.get_potential_energy() + SHIFT) * unit] for atoms in structures],
        F=[atoms.get_forces() * unit for atoms in structures],
    )
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, list[object]]:
    """A folder with all input files, and the arguments of a tiny run."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "tiny.yml").write_text(yaml.safe_dump(SCALE))
    write(folder / "cheap.extxyz", methanol(12, 1), format="extxyz")
    labels = write_npz(folder / "methanol_ccsd_t.npz", methanol(16, 2))
    options = ["--scale", folder / "tiny.yml", "--pretraining-data", folder / "cheap.extxyz"]
    return folder, [labels, *options, "--out", folder / "out"]


@pytest.fixture(scope="module")
def finished(inputs) -> Path:
    """Output folder of a tiny run."""
    folder, arguments = inputs
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return folder / "out"


def test_results(finished):
    lines = (finished / "table.md").read_text().splitlines()
    assert [line.split(" | ")[1:3] for line in lines[2:]] == [
        ["", "pre-trained only"],
        ["8", "energies"],
        ["8", "energies + PIWSL"],
    ]
    assert (finished / "fine_tuning.png").stat().st_size > 10_000
    report = (finished / "report" / "report.md").read_text()
    assert "methanol_8, 8 structures with energies only" in report
    assert "PITC 1, eps 0.05, k 0.5" in report


def test_forces_are_in_the_test_set_alone_and_training_sets_are_nested(inputs, tmp_path, monkeypatch):
    from fairchem_piwsl.datasets.read import read_labelled

    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    prepare_labels = importlib.import_module("fine_tuning_data").prepare_labels
    energies = {}
    for seed, size in ((0, 4), (0, 8), (1, 4)):
        folder = prepare_labels([inputs[1][0]], tmp_path, SCALE["split"], size, seed, "kcal/mol", "methanol")
        for split in ("train", "val", "test"):
            structures = read_labelled(folder / split / "data.lmdb")
            known = [np.isfinite(item.forces).all() for item in structures]
            assert all(known) if split == "test" else not any(known)
            energies[split, seed, size] = [item.energy for item in structures]
    assert energies["train", 0, 8][:4] == energies["train", 0, 4]
    assert energies["train", 1, 4] != energies["train", 0, 4]
    for split in ("val", "test"):
        assert energies[split, 0, 4] == energies[split, 0, 8] == energies[split, 1, 4]
    assert len({energy for split in ("train", "val", "test") for energy in energies[split, 0, 8]}) == 16


def test_fine_tuning_starts_from_the_pre_trained_weights_with_references_of_the_new_level(finished):
    [pretrained] = (finished / "pretraining" / "painn").rglob("best_checkpoint.pt")
    [tuned] = (finished / "runs" / "painn_8" / "energies").rglob("best_checkpoint.pt")
    before, after = read_checkpoint(pretrained), read_checkpoint(tuned)
    assert after["config"]["optim"]["finetune_from"] == str(pretrained)
    for name, weights in before["state_dict"].items():
        torch.testing.assert_close(weights, after["state_dict"][name], atol=1e-3, rtol=0.01)
    references = [state["elementrefs"]["energy"]["element_references"] for state in (before, after)]
    counts = torch.tensor(np.bincount(molecule("CH3OH").numbers, minlength=len(references[0])))
    old, new = ((counts * values).sum().item() for values in references)
    assert new - old == pytest.approx(SHIFT, rel=0.01)
    line = (finished / "table.md").read_text().splitlines()[2]
    assert float(line.split(" | ")[4]) < 100  # kcal/mol; 72,000 with the old references


def test_table_compares_methods_of_one_size_over_seeds(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    results = importlib.import_module("fine_tuning_results")
    rows = [results.Row("painn", "pre-trained only", None, 0, 9.0, 9.0, float("nan"))]
    for seed, (before, after) in enumerate(((4.0, 1.0), (6.0, 3.0))):
        rows.append(results.Row("painn", "energies", 50, seed, before, 2.0, 10.0))
        rows.append(results.Row("painn", "energies + PIWSL", 50, seed, after, 3.0, 20.0))
    only, energies, piwsl = results.cells(rows)
    assert only == ("painn", "", "pre-trained only", "", "9.00", "", "9.00", "", "")
    assert energies[3:] == ("2", "5.00 ± 1.41", "", "2.00 ± 0.00", "", "10 ± 0")
    assert piwsl[3:] == ("2", "2.00 ± 1.41", "-60.0 %", "3.00 ± 0.00", "+50.0 %", "20 ± 0")


def run_here(monkeypatch, arguments: list[object]) -> None:
    """The script in this process, which saves importing everything again."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_a_second_call_trains_nothing(finished, inputs, monkeypatch):
    times = {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*.pt")}
    assert len(times) >= 2
    table = (finished / "table.md").read_text()
    run_here(monkeypatch, inputs[1])
    assert {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*.pt")} == times
    assert (finished / "table.md").read_text() == table


def test_mistakes_are_named_before_anything_is_written(inputs, tmp_path, monkeypatch, capsys):
    labels, *options = inputs[1][:5]
    options += ["--out", tmp_path / "out"]
    wrong_unit = write_npz(tmp_path / "in_ev.npz", methanol(16, 2), unit=1.0)
    few = write_npz(tmp_path / "few.npz", methanol(12, 2))
    for case, message in (
        ([tmp_path / "absent.npz", *options], "absent.npz does not exist"),
        ([labels, *options, "--models", "schnet"], "--models schnet: not known; choose among painn"),
        ([labels, *options, "--sizes", "100"], "--sizes 100: the scale has 1 to 8"),
        ([labels, "--scale", "large"], "--scale large: not known; choose one of"),
        ([few, *options], "lower the numbers under `split` of the scale"),
        ([wrong_unit, *options], "Give the right --units"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_here(monkeypatch, case)
        sentence = capsys.readouterr().err.splitlines()[-1]
        assert stopped.value.code == 2
        assert sentence.startswith("fine_tuning.py: ")
        assert message in sentence
        assert not list((tmp_path / "out").rglob("*.lmdb"))


def test_labels_for_pre_training_need_tblite(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tblite", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    labels, *scale = inputs[1][:3]
    with pytest.raises(SystemExit):
        run_here(monkeypatch, [labels, *scale, "--out", tmp_path / "out"])
    assert "pip install 'fairchem_piwsl[xtb]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
