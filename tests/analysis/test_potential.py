"""The loader: same numbers as upstream's calculator, averaged weights, gradients, readable errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from helpers_analysis import rattled, train, write_lmdb
from helpers_models import EQUIFORMER_V2, ESCN, PAINN, SCHNET, build, gradient

from fairchem_piwsl.analysis.model_names import short_names
from fairchem_piwsl.analysis.potential import load_potential
from fairchem_piwsl.datasets.read import read_labelled
from fairchem_piwsl.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("potential")


@pytest.fixture(scope="module")
def structures():
    return rattled(["CH3CH2OH", "H2O", "C6H6"], 7)


@pytest.fixture(scope="module")
def checkpoints(folder, structures):
    data = write_lmdb(folder / "train.lmdb", structures)
    return {model: train(model, data, folder / model) for model in ("schnet", "painn")}


@pytest.fixture(scope="module")
def untrained(checkpoints, folder):
    """Checkpoints of models with random weights, beside the normalisers of a trained one."""
    state = torch.load(checkpoints["painn"] / "best_checkpoint.pt", weights_only=False)
    configs = {c["name"]: c for c in (SCHNET, PAINN, ESCN, EQUIFORMER_V2)} | {
        "gradient_forces": gradient(ESCN)
    }
    paths = {}
    for name, config in configs.items():
        state["state_dict"] = build(config).state_dict()
        inner = config.get("model", config) | {"use_pbc": True, "regress_forces": True}
        state["config"]["model"] = config | ({"model": inner} if "model" in config else inner)
        paths[name] = folder / f"{name}.pt"
        torch.save(state, paths[name])
    return paths


@pytest.mark.parametrize("model", ["schnet", "painn"])
def test_batches_of_any_size_agree_with_upstreams_calculator(checkpoints, structures, model):
    from fairchem.core.common.relaxation.ase_utils import OCPCalculator

    path = checkpoints[model] / "best_checkpoint.pt"
    potential = load_potential(path, cpu=True)
    together = potential.predict(structures, batch_size=16)
    alone = potential.predict(structures, batch_size=1)
    calculator = OCPCalculator(checkpoint_path=path, cpu=True)
    for number, atoms in enumerate(structures):
        other = atoms.copy()
        other.calc = calculator
        assert together.energy[number] == pytest.approx(other.get_potential_energy(), abs=1e-5)
        assert together.forces[number] == pytest.approx(other.get_forces(), abs=1e-5)
        assert alone.energy[number] == pytest.approx(together.energy[number], abs=1e-5)
        assert alone.forces[number] == pytest.approx(together.forces[number], abs=1e-5)


def test_checkpoint_uses_averaged_weights_unless_told_otherwise(checkpoints, structures):
    last = checkpoints["painn"] / "checkpoint.pt"
    state = torch.load(last, map_location="cpu", weights_only=False)
    averaged = load_potential(last, cpu=True)
    raw = load_potential(last, cpu=True, ema=False)
    trained = [parameter for parameter in averaged.model.parameters() if parameter.requires_grad]
    for parameter, shadow in zip(trained, state["ema"]["shadow_params"], strict=True):
        assert torch.equal(parameter, shadow)
    for key, value in raw.model.state_dict().items():
        assert torch.equal(value, state["state_dict"][key])
    assert not np.allclose(averaged.predict(structures).energy, raw.predict(structures).energy)


@pytest.mark.parametrize("model", ["schnet", "painn", "escn", "equiformer_v2", "gradient_forces"])
def test_gradient_forces_equal_central_differences_of_the_energy(untrained, structures, model):
    """Upstream detaches the edge frames of eSCN and Equiformer v2; here the gradient goes through them."""
    potential = load_potential(untrained[model], cpu=True, dtype="float64", gradient_forces=True)
    deviations, largest = [], 0.0
    for number, atoms in enumerate(structures[:2]):
        step = np.random.default_rng(number).normal(size=atoms.positions.shape)
        points = [atoms.copy() for _ in range(4)]
        for point, multiple in zip(points, (-2, -1, 1, 2), strict=True):
            point.positions += multiple * 1e-5 * step
        energy = potential.predict(points).energy
        expected = -(energy @ [1, -8, 8, -1]) / 12e-5
        deviations.append(abs((potential.predict([atoms]).forces[0] * step).sum() - expected))
        largest = max(largest, abs(expected))
    assert max(deviations) < 1e-5 * largest


def test_models_that_draw_edge_frames_repeat_themselves_and_leave_the_generator_alone(untrained, structures):
    potential = load_potential(untrained["escn"], cpu=True)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = potential.predict(structures)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert np.array_equal(potential.predict(structures).energy, first.energy)


def test_double_precision_confirms_single_precision(checkpoints, structures):
    path = checkpoints["painn"] / "best_checkpoint.pt"
    single = load_potential(path, cpu=True).predict(structures)
    double = load_potential(path, cpu=True, dtype="float64").predict(structures)
    assert single.energy == pytest.approx(double.energy, abs=1e-5)
    assert not np.array_equal(single.energy, double.energy)


def test_molecule_without_a_cell_and_moved_across_the_boundary(checkpoints, structures):
    potential = load_potential(checkpoints["schnet"] / "best_checkpoint.pt", cpu=True)
    boxed = structures[0].copy()
    bare = boxed.copy()
    bare.pbc = False
    bare.cell = None
    moved = boxed.copy()
    moved.positions += boxed.cell.lengths() * 0.5
    prediction = potential.predict([boxed, bare, moved])
    assert prediction.energy == pytest.approx(prediction.energy[0], abs=1e-5)
    assert prediction.forces[1] == pytest.approx(prediction.forces[0], abs=1e-5)
    assert prediction.forces[2] == pytest.approx(prediction.forces[0], abs=1e-5)


def test_calculator_drives_ase(checkpoints, structures):
    potential = load_potential(checkpoints["painn"] / "best_checkpoint.pt", cpu=True)
    atoms = structures[0].copy()
    atoms.calc = potential.calculator()
    reference = potential.predict([atoms])
    assert atoms.get_potential_energy() == pytest.approx(reference.energy[0])
    assert atoms.get_forces() == pytest.approx(reference.forces[0])


def test_calculator_notices_another_charge(checkpoints, structures):
    calculator = load_potential(checkpoints["painn"] / "best_checkpoint.pt", cpu=True).calculator()
    atoms = structures[0].copy()
    calculator.get_potential_energy(atoms)
    assert not calculator.calculation_required(atoms, ["energy"])
    atoms.info["charge"] = 1
    assert calculator.calculation_required(atoms, ["energy"])


def test_gradient_forces_serve_models_without_a_forces_output(checkpoints, structures, tmp_path):
    state = torch.load(checkpoints["schnet"] / "best_checkpoint.pt", weights_only=False)
    del state["config"]["outputs"]["forces"]
    path = tmp_path / "energy_only.pt"
    torch.save(state, path)
    with pytest.raises(UserError, match="no forces output"):
        load_potential(path, cpu=True)
    potential = load_potential(path, cpu=True, gradient_forces=True)
    full = load_potential(checkpoints["schnet"] / "best_checkpoint.pt", cpu=True)
    forces = potential.predict(structures).forces
    assert forces[0] == pytest.approx(full.predict(structures).forces[0], abs=1e-5)


def test_bad_checkpoints_are_named(checkpoints, tmp_path):
    good = checkpoints["painn"] / "best_checkpoint.pt"
    with pytest.raises(UserError, match=r"missing\.pt does not exist"):
        load_potential(tmp_path / "missing.pt")
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(good.read_bytes()[:2000])
    with pytest.raises(UserError, match="truncated"):
        load_potential(truncated)
    foreign = tmp_path / "foreign.pt"
    torch.save({"weights": torch.zeros(3)}, foreign)
    with pytest.raises(UserError, match=r"foreign\.pt is not a fairchem checkpoint"):
        load_potential(foreign)
    state = torch.load(good, weights_only=False)
    state["config"]["model"]["hidden_channels"] = 24
    other = tmp_path / "other.pt"
    torch.save(state, other)
    with pytest.raises(UserError, match="do not fit"):
        load_potential(other, cpu=True)
    state["config"]["model"]["name"] = "no_such_model"
    torch.save(state, other)
    with pytest.raises(UserError, match="no_such_model"):
        load_potential(other, cpu=True)


def test_structures_that_a_model_cannot_do_are_named(checkpoints, structures):
    potential = load_potential(checkpoints["painn"] / "best_checkpoint.pt", cpu=True)
    for atoms, words in (
        (Atoms("CfH", [[0, 0, 0], [0, 0, 1.5]]), "all elements of C, Cf, H, O"),
        (Atoms("H"), "no two atoms are within"),
        (Atoms("H2", [[0, 0, 0], [0, 0, np.nan]]), "not finite"),
    ):
        with pytest.raises(UserError, match=words):
            potential.predict([structures[0], atoms])


def test_names_tell_checkpoints_apart(tmp_path):
    one, two = tmp_path / "one" / "model", tmp_path / "two" / "model"
    best, last = "best_checkpoint.pt", "checkpoint.pt"
    assert short_names([one / best]) == ["model"]
    assert short_names([one / best, two / best]) == ["one/model", "two/model"]
    assert short_names([one / best, one / last]) == ["best_checkpoint", "checkpoint"]
    assert short_names([one / "a.pt", one / "b.pt"]) == ["a", "b"]
    stamp = "2026-11-20-08-53-20"
    runs = [tmp_path / method / "seed0" / "checkpoints" / stamp / best for method in ("base", "weak")]
    assert short_names(runs[:1]) == ["base/seed0"]
    assert short_names(runs) == ["base/seed0", "weak/seed0"]
    named = [tmp_path / method / "checkpoints" / stamp / best for method in ("baseline", "piwsl")]
    assert short_names(named) == ["baseline", "piwsl"]
    for time in (stamp, f"{stamp}.012345"):
        assert short_names([tmp_path / "run" / "checkpoints" / f"{time}-case-F" / best]) == ["case-F"]
    assert short_names([one / last, one / last]) == ["model (1)", "model (2)"]


def test_lmdb_labels_old_names_and_missing_forces(tmp_path, structures):
    now = read_labelled(write_lmdb(tmp_path / "now.lmdb", structures))
    old = read_labelled(write_lmdb(tmp_path / "old.lmdb", structures, names=("y", "force")))
    none = read_labelled(write_lmdb(tmp_path / "none.lmdb", structures, forces=False), limit=3)
    for atoms, a, b in zip(structures, now, old, strict=True):
        assert a.energy == b.energy == atoms.get_potential_energy()
        assert a.forces == pytest.approx(atoms.get_forces(), abs=1e-5)
        assert np.array_equal(a.forces, b.forces)
        assert a.atoms.positions == pytest.approx(atoms.positions, abs=1e-5)
    assert len(none) == 3
    assert all(np.isnan(item.forces).all() for item in none)


def test_bad_data_are_named(tmp_path):
    with pytest.raises(UserError, match="no such data set"):
        read_labelled(tmp_path / "absent.lmdb")
    (tmp_path / "broken.lmdb").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable LMDB"):
        read_labelled(tmp_path / "broken.lmdb")
    (tmp_path / "broken.extxyz").write_text("3\nonly a header\nH 0 0 0\n")
    with pytest.raises(UserError, match=r"broken\.extxyz, frame 0 cannot be read"):
        read_labelled(tmp_path / "broken.extxyz")
