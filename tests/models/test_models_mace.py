"""MACE: files in the published layout, training through fairchem, export."""

from __future__ import annotations

import copy
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from conftest import KCAL_PER_MOL, make_config, make_trainer
from fairchem.core.common.relaxation.ase_utils import OCPCalculator
from helpers_models import batch_of, build, double_precision, structures
from test_models_gradient_forces import deviation_from_central_differences
from typer.testing import CliRunner

from fairchem_piwsl.analysis.potential import load_potential
from fairchem_piwsl.cli import app
from fairchem_piwsl.errors import UserError

pytest.importorskip(
    "mace",
    reason="mace-torch is not installed (pip install --no-deps -r requirements-mace.txt)",
    exc_type=ImportError,
)
from fairchem_piwsl.models import mace_files
from fairchem_piwsl.training.checkpoint_files import TRUST

DATA = Path(__file__).parents[1] / "data"
TINY = dict(
    name="fairchem_piwsl.models.mace.MACE",
    elements=["H", "C", "O", 22],
    hidden_irreps="4x0e + 4x1o",
    mlp_irreps="4x0e",
    max_ell=1,
    correlation=2,
    num_bessel=4,
    radial_mlp=[8, 8],
    cutoff=5.0,
)


@pytest.fixture(autouse=True)
def _trust(monkeypatch):
    """A file of MACE is a pickle of the whole model."""
    monkeypatch.setenv(TRUST, "1")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A file written by mace-torch 0.3.16 with e3nn 0.4.4, like the published foundation models."""
    path = tmp_path_factory.mktemp("mace") / "published.model"
    path.write_bytes(lzma.decompress((DATA / "mace_e3nn044.model.xz").read_bytes()))
    return path


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory) -> Path:
    """A checkpoint after a few PIWSL steps."""
    folder = tmp_path_factory.mktemp("trained")
    config = make_config(tiny_data, folder, piwsl={"c_pitc": 1.2, "c_pisc": 0.01, "eps_max": 0.025})
    config["model"] = TINY | {"otf_graph": True, "ev_per_output": KCAL_PER_MOL}
    references = np.zeros(119)
    references[[1, 6, 8]] = 0.3, 1.0, -0.5
    np.savez(folder / "references.npz", element_references=references)
    config["dataset"]["train"]["transforms"]["element_references"] = {
        "energy": {"file": str(folder / "references.npz")}
    }
    trainer = make_trainer(config)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train(disable_eval_tqdm=True)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    return Path(trainer.config["cmd"]["checkpoint_dir"]) / "best_checkpoint.pt"


def test_published_files_give_maces_own_numbers(published):
    reference = np.load(DATA / "mace_e3nn044.npz")
    atoms = Atoms(reference["numbers"], positions=reference["positions"], cell=[20.0] * 3, pbc=True)
    with double_precision():
        model = build(
            {"name": "mace", "foundation": str(published), "dtype": "float64", "ev_per_output": 0.5}
        )
        batch = batch_of([atoms], torch.float64)
        batch.pos = torch.tensor(reference["positions"])
        out = model(batch)
    references = mace_files.atomic_energies(mace_files.read_model(published))
    assert references[[1, 6, 8]].tolist() == [-13.6, -1029.5, -2041.25]
    energy = 0.5 * out["energy"].item() + references[atoms.numbers].sum()
    assert energy == pytest.approx(float(reference["energy"]), abs=1e-9)
    np.testing.assert_allclose(0.5 * out["forces"].detach().numpy(), reference["forces"], atol=1e-9)


def test_the_atomic_energies_of_a_head():
    model = build(TINY).mace
    model.heads = ["omol", "omat"]
    model.atomic_energies_fn.atomic_energies = torch.tensor(
        [[-13.5, -1029, -2042, 5], [-12, -1000, -2000, 6]]
    )
    assert mace_files.atomic_energies(model, "omol")[[1, 6, 8, 22]].tolist() == [-13.5, -1029, -2042, 5]
    assert mace_files.atomic_energies(model)[[1, 6, 8, 22]].tolist() == [-12, -1000, -2000, 6]
    with pytest.raises(UserError, match="--head is 'dft', but the MACE file has omol, omat"):
        mace_files.atomic_energies(model, "dft")


def test_forces_are_energy_gradients():
    with double_precision():
        model = build(TINY | {"dtype": "float64"})
        assert deviation_from_central_differences(model, batch_of(structures(), torch.float64), 2e-5) < 1e-5


def test_models_can_be_copied_and_every_parameter_takes_part():
    model = copy.deepcopy(build(TINY))
    model(batch_of(structures()))["forces"].square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_checkpoints_load_into_the_calculator(trained):
    atoms = structures()[0]
    atoms.calc = OCPCalculator(checkpoint_path=str(trained), cpu=True)
    assert np.isfinite(atoms.get_potential_energy())
    rotated = atoms.copy()
    rotated.rotate(40, (1, 2, 3), center="COM")
    rotated.calc = atoms.calc
    assert rotated.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "energy_unit", "in_ev"),
    [
        ("best_checkpoint.pt", "eV", 1.0),
        ("checkpoint.pt", "eV", 1.0),  # has the averaged weights beside the latest
        ("checkpoint.pt", "kcal/mol", units.kcal / units.mol),
    ],
)
def test_exported_models_predict_what_the_checkpoint_predicts(trained, tmp_path, name, energy_unit, in_ev):
    """Through the command, and back in as a foundation."""
    content = torch.load(trained.with_name(name), weights_only=True)
    content["config"]["optim"]["piwsl"]["energy_unit"] = energy_unit
    trained = tmp_path / name
    torch.save(content, trained)
    for command in (
        ["export", str(trained), str(tmp_path / "trained.model")],
        ["references", str(tmp_path / "trained.model"), str(tmp_path / "references.npz")],
    ):
        assert CliRunner().invoke(app, ["mace", *command]).exit_code == 0
    references = np.load(tmp_path / "references.npz")["element_references"]
    assert references[[1, 6, 8]].tolist() == pytest.approx([0.3 * in_ev, in_ev, -0.5 * in_ev])
    model = build({"name": "mace", "foundation": str(tmp_path / "trained.model")})
    predicted = load_potential(trained, cpu=True).predict(structures()[:2])
    for atoms, energy, forces in zip(structures()[:2], predicted.energy, predicted.forces, strict=True):
        out = model(batch_of([atoms]))
        exported = out["energy"].item() + references[atoms.numbers].sum()
        assert exported == pytest.approx(in_ev * energy, abs=1e-4)
        np.testing.assert_allclose(out["forces"].detach().numpy(), in_ev * forces, atol=1e-4)


def test_training_starts_from_a_file(published, tiny_data, tmp_path):
    config = make_config(tiny_data, tmp_path, piwsl={"c_pitc": 0.1}, max_epochs=1)
    config["model"] = {"name": "mace", "foundation": str(published), "otf_graph": True}
    trainer = make_trainer(config)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step == 3


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"elements": None}, "elements"),
        ({"elements": ["H", "Xx"]}, "Xx"),
        ({"foundation": "nowhere.model"}, "nowhere.model"),
        ({"dtype": "half"}, "dtype"),
        ({"head": "dft"}, "head"),
    ],
)
def test_mistakes_name_the_key(wrong, key):
    with pytest.raises(UserError, match=key):
        build(TINY | wrong)


def test_files_need_trust(published, monkeypatch):
    monkeypatch.delenv(TRUST)
    with pytest.raises(UserError, match=r"published\.model is a pickle .*--trust-checkpoint"):
        mace_files.read_model(published)


def test_other_pickles_are_refused(tmp_path):
    torch.save({"a": 1}, tmp_path / "other.model")
    with pytest.raises(UserError, match=r"other\.model holds a dict"):
        build({"name": "mace", "foundation": str(tmp_path / "other.model")})
    (tmp_path / "text.model").write_text("no pickle")
    with pytest.raises(UserError, match=r"text\.model cannot be read"):
        build({"name": "mace", "foundation": str(tmp_path / "text.model")})


def test_unknown_elements_are_named():
    with pytest.raises(UserError, match="Ti"):
        build(TINY | {"elements": ["H", "C", "O"]})(batch_of(structures()))
