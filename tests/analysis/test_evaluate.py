"""`piwsl evaluate`: numbers equal numpy on upstream's predictions; groups, files, and readable errors."""

from __future__ import annotations

import errno
import io
import json
import os
import sys

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from helpers_analysis import rattled, train, write_lmdb
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from fairchem_piwsl.analysis.evaluate import evaluate, group, relative_energies
from fairchem_piwsl.analysis.potential import load_potential
from fairchem_piwsl.cli import app
from fairchem_piwsl.datasets.read import read_labelled
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.report.tables import evaluation_tables
from fairchem_piwsl.units import KCAL_PER_MOL


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def structures():
    return rattled(["CH3CH2OH", "H2O"], 9, seed=4)


@pytest.fixture(scope="module")
def data(folder, structures):
    return write_lmdb(folder / "test.lmdb", structures)


@pytest.fixture(scope="module")
def checkpoints(folder):
    train_data = write_lmdb(folder / "train.lmdb", rattled(["CH3CH2OH", "H2O"], 8))
    return [train(model, train_data, folder / model) / "best_checkpoint.pt" for model in ("schnet", "painn")]


@pytest.mark.parametrize("forces", [True, False], ids=["forces", "energies"])
def test_labels_in_another_unit_are_noticed(checkpoints, structures, tmp_path, forces):
    atoms = [item.copy() for item in structures]
    prediction = load_potential(checkpoints[1], cpu=True).predict(atoms)
    for name, factor in (("eV", 1.0), ("kcal/mol", 23.06), ("Hartree", 1 / 27.2)):
        for number, item in enumerate(atoms):
            item.calc = SinglePointCalculator(
                item, energy=factor * prediction.energy[number], forces=factor * prediction.forces[number]
            )
        data = write_lmdb(tmp_path / f"{name[:4]}.lmdb", atoms, forces=forces)
        warning = evaluate(checkpoints[1:], data, cpu=True, n_bootstrap=2)["warning"]
        if name == "eV":
            assert warning is None
        else:
            assert f"look like {name}" in warning
            assert ("forces" if forces else "energies") in warning


def test_errors_equal_numpy_on_upstreams_predictions(checkpoints, data, structures):
    from fairchem.core.common.relaxation.ase_utils import OCPCalculator

    result = evaluate(checkpoints, data, units="kcal/mol", cpu=True, n_bootstrap=20)
    for path, model in zip(checkpoints, result["models"], strict=True):
        calculator = OCPCalculator(checkpoint_path=path, cpu=True)
        energy_errors, force_errors = [], []
        for atoms in structures:
            other = atoms.copy()
            other.calc = calculator
            energy_errors.append(other.get_potential_energy() - atoms.get_potential_energy())
            force_errors.append((other.get_forces() - atoms.get_forces()).ravel())
        forces = np.concatenate(force_errors)
        metrics = model["metrics"]
        expected = np.sqrt(np.mean(np.square(energy_errors))) / KCAL_PER_MOL
        assert metrics["energy_rmse"]["value"] == pytest.approx(expected, rel=1e-5)
        expected = np.mean(np.abs(energy_errors)) / KCAL_PER_MOL
        assert metrics["energy_mae"]["value"] == pytest.approx(expected, rel=1e-5)
        expected = np.sqrt(np.mean(forces**2)) / KCAL_PER_MOL
        assert metrics["forces_rmse"]["value"] == pytest.approx(expected, rel=1e-4)


def test_forces_on_fixed_atoms_do_not_count_as_in_training(checkpoints, structures, tmp_path):
    held = [atoms.copy() for atoms in structures]
    for atoms, labelled in zip(held, structures, strict=True):
        forces = labelled.get_forces()
        forces[0] += 100.0
        atoms.calc = SinglePointCalculator(atoms, energy=labelled.get_potential_energy(), forces=forces)
        atoms.set_constraint(FixAtoms([0]))
    table = evaluate(checkpoints[:1], write_lmdb(tmp_path / "held.lmdb", held), cpu=True, n_bootstrap=20)
    assert table["models"][0]["metrics"]["forces_rmse"]["value"] < 100.0 / KCAL_PER_MOL / 10


def test_command_writes_json_and_pictures_and_keeps_earlier_results(checkpoints, data, tmp_path):
    out = tmp_path / "results[a]"
    arguments = ["evaluate", *map(str, checkpoints), "--data", str(data), "--cpu", "--out", str(out)]
    shown = CliRunner().invoke(app, [*arguments, "--json"])
    assert shown.exit_code == 0, shown.output
    stored = json.loads((out / "evaluate.json").read_text())
    assert json.loads(shown.stdout) == stored
    assert [model["name"] for model in stored["models"]] == ["schnet", "painn"]
    assert stored["units"]["forces_rmse"] == "kcal/mol/Angstrom"
    assert set(stored["models"][0]["groups"]) == {"C2H6O", "H2O"}
    assert stored["models"][0]["groups"]["C2H6O"]["structures"] == 5
    for name in ("schnet", "painn"):
        with Image.open(out / f"parity_{name}.png") as picture:
            assert min(picture.size) > 300
    part = ["--data", f"{data}@:100", "--units", "eV"]  # not the emoji of a hundred
    table = CliRunner().invoke(app, [*arguments, *part])
    assert table.exit_code == 0
    assert "@:100" in table.stdout
    assert "eV/Angstrom" in table.stdout
    assert "/results[a]" in table.stdout.replace("\n", "")
    assert json.loads((out / "evaluate.json.1").read_text()) == stored


def test_table_of_many_models_names_them_all_on_a_narrow_terminal(checkpoints, data, tmp_path):
    copies = []
    for number in range(5):
        copies.append(tmp_path / f"a_long_name_{number}.pt")
        copies[-1].write_bytes(checkpoints[0].read_bytes())
    result = evaluate(copies, data, cpu=True, n_bootstrap=2)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(evaluation_tables(result)[0])
    text = console.export_text()
    assert all(f"a_long_name_{number} " in text for number in range(5))
    assert text.count("kcal/mol/Å") == 2
    assert "…" not in text


def test_table_of_one_structure_has_no_intervals(checkpoints, data):
    result = evaluate(checkpoints[:1], data, limit=1, cpu=True)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(evaluation_tables(result)[0])
    assert console.export_text().count("[") == 1  # that of the caption


def test_energies_alone_are_enough(checkpoints, structures, tmp_path):
    data = write_lmdb(tmp_path / "energies.lmdb", structures, forces=False)
    result = evaluate(checkpoints[:1], data, cpu=True, n_bootstrap=20, out=tmp_path)
    assert np.isnan(result["models"][0]["metrics"]["forces_rmse"]["value"])
    assert np.isfinite(result["models"][0]["metrics"]["energy_rmse"]["value"])
    assert (
        json.loads((tmp_path / "evaluate.json").read_text())["models"][0]["metrics"]["forces_mae"]["low"]
        is None
    )


def test_groups_by_size_cover_every_structure_once(data):
    structures = read_labelled(data)
    sizes = group(structures, "size")
    assert sorted(np.concatenate(list(sizes.values()))) == list(range(len(structures)))
    assert set(sizes) == {"3 atoms", "9 atoms"}
    assert group(structures[:1], "auto") == {}


def test_relative_energies_keep_the_errors(data):
    structures = read_labelled(data)
    energy = np.array([item.energy for item in structures])
    reference, predicted = relative_energies(structures, energy + 0.5)
    assert predicted - reference == pytest.approx(0.5)
    assert abs(reference).max() < abs(energy - energy.mean()).max()


def test_bad_input_is_named(checkpoints, data, structures, tmp_path):
    out = ["--cpu", "--out", str(tmp_path / "none")]
    with pytest.raises(UserError, match="--units furlong"):
        evaluate(checkpoints, data, units="furlong")
    with pytest.raises(UserError, match="--group-by mood"):
        evaluate(checkpoints, data, group_by="mood")
    missing = CliRunner().invoke(app, ["evaluate", "nowhere.pt", "--data", str(data), *out])
    assert isinstance(missing.exception, UserError)
    assert "nowhere.pt" in str(missing.exception)
    from ase.io import write

    write(tmp_path / "bare.extxyz", [atoms.copy() for atoms in structures])
    with pytest.raises(UserError, match="no structure has an energy or forces"):
        evaluate(checkpoints, tmp_path / "bare.extxyz")
    assert not (tmp_path / "none").exists()


def test_a_full_disk_is_a_sentence(data, checkpoints, tmp_path, monkeypatch, capsys):
    from fairchem_piwsl import cli, files

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    arguments = [
        "evaluate",
        str(checkpoints[0]),
        "--data",
        str(data),
        "--cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "argv", ["piwsl", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    sentence = "No space left on device; check its permissions and the free space."
    assert f"{tmp_path / 'out' / 'evaluate.json'}: {sentence}" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
