"""Consistency measures against analytic force fields and against tiny trained models."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from helpers_analysis import rattled, train, write_lmdb
from typer.testing import CliRunner

from fairchem_piwsl.analysis import consistency as measures
from fairchem_piwsl.analysis import consistency_report
from fairchem_piwsl.analysis.consistency_report import check_consistency
from fairchem_piwsl.analysis.potential import Predictions
from fairchem_piwsl.cli import app
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import as_molecule, is_isolated


class Analytic:
    """A potential from two functions of the flat positions [3n]."""

    def __init__(self, energy, forces):
        self.energy, self.forces = energy, forces

    def predict(self, structures, batch_size=16):
        flat = [atoms.positions.ravel() for atoms in structures]
        return Predictions(
            np.array([self.energy(x) for x in flat]), [self.forces(x).reshape(-1, 3) for x in flat]
        )


class Emt:
    """EMT, optionally with a rotational field added to the forces."""

    def __init__(self, swirl=0.0):
        self.swirl = swirl

    def predict(self, structures, batch_size=16):
        energy, forces = [], []
        for atoms in structures:
            atoms = atoms.copy()
            atoms.calc = EMT()
            energy.append(atoms.get_potential_energy())
            centred = atoms.positions - atoms.positions.mean(axis=0)
            forces.append(atoms.get_forces() + self.swirl * np.cross([0, 0, 1], centred))
        return Predictions(np.array(energy), forces)


@pytest.fixture
def water():
    return molecule("H2O")


def quadratic(size, seed=0):
    random = np.random.default_rng(seed)
    root = random.normal(size=(size, size))
    matrix = root + root.T
    return Analytic(lambda x: 0.5 * x @ matrix @ x, lambda x: -matrix @ x), matrix


def test_quadratic_surface_has_no_residual_with_the_trapezoid_rule(water):
    potential, _ = quadratic(9)
    magnitudes = np.array([0.01, 0.1])
    residuals = measures.taylor_residuals(potential, [water], magnitudes, np.random.default_rng(0))
    assert residuals["pitc_k0.5"] == pytest.approx(0, abs=1e-12)
    assert residuals["pisc_k0.5"] == pytest.approx(0, abs=1e-12)
    for key in ("pitc_k0", "pisc_k0"):
        assert residuals[key][1] == pytest.approx(100 * residuals[key][0], rel=1e-9)


def test_slopes_are_two_and_three_on_a_smooth_surface_and_one_with_wrong_forces():
    structures = rattled(["CH3CH2OH", "H2O"], 6)
    magnitudes = np.geomspace(1e-3, 1e-2, 5)
    for potential, expected in ((Emt(), (2, 3)), (Emt(swirl=0.5), (1, 1))):
        residuals = measures.taylor_residuals(potential, structures, magnitudes, np.random.default_rng(1))
        slopes = [
            measures.fitted_slope(magnitudes, measures.root_mean_square(residuals[key], axis=1))
            for key in ("pitc_k0", "pitc_k0.5")
        ]
        assert slopes == pytest.approx(expected, abs=0.15)


def test_jacobian_curl_and_asymmetry_are_those_of_the_field(water):
    potential, matrix = quadratic(9)
    jacobian = measures.force_jacobian(potential, water, 1e-3)
    assert jacobian == pytest.approx(-matrix, abs=1e-9)
    curl, asymmetry = measures.curl_measures(jacobian)
    assert curl == pytest.approx(0, abs=1e-9)
    assert asymmetry < 1e-10
    # F_i = omega x r_i has the curl 2 |omega| at every atom, and no symmetric part at all.
    omega = np.array([0.3, -0.2, 0.6])
    turning = Analytic(lambda x: 0.0, lambda x: np.cross(omega, x.reshape(-1, 3)))
    curl, _ = measures.curl_measures(measures.force_jacobian(turning, water, 1e-3))
    assert curl == pytest.approx(2 * np.linalg.norm(omega))
    mixed = Analytic(lambda x: 0.0, lambda x: -x + 0.1 * np.cross(omega, x.reshape(-1, 3)).ravel())
    _, asymmetry = measures.curl_measures(measures.force_jacobian(mixed, water, 1e-3))
    assert asymmetry == pytest.approx(0.1 * np.linalg.norm(omega) * np.sqrt(2 / 3))


def test_directional_mismatch_recovers_a_planted_force_error():
    structures = rattled(["C6H6"], 3)
    good = measures.directional_derivatives(Emt(), structures, 40, 1e-3, np.random.default_rng(0))
    assert good[2] == 0
    assert good[0] == pytest.approx(good[1], abs=1e-6)
    bad = measures.directional_derivatives(Emt(0.5), structures, 40, 1e-3, np.random.default_rng(0))
    planted = [0.5 * np.cross([0, 0, 1], a.positions - a.positions.mean(axis=0)) for a in structures]
    expected = measures.root_mean_square(np.concatenate(planted))
    assert measures.root_mean_square(bad[0] - bad[1]) == pytest.approx(expected, rel=0.2)


def test_jumps_are_stepped_around(water):
    """As of a model whose energy and forces jump where a pair passes its cutoff."""
    smooth, matrix = quadratic(9)
    edge = water.positions.ravel()[4] + 3e-4
    jumping = Analytic(
        lambda x: smooth.energy(x) + 0.1 * (x[4] > edge), lambda x: smooth.forces(x) + 0.1 * (x[4] > edge)
    )
    true, found, share = measures.directional_derivatives(
        jumping, [water], 30, 1e-3, np.random.default_rng(0), refinements=3
    )
    assert found == pytest.approx(true, abs=1e-7)
    assert 0.5 < share < 1  # directions that hardly move atom 1 along y do not reach the jump
    _, crude, _ = measures.directional_derivatives(jumping, [water], 30, 1e-3, np.random.default_rng(0))
    assert np.abs(crude - true).max() > 10
    assert measures.force_jacobian(jumping, water, 1e-3, refinements=3) == pytest.approx(-matrix, abs=1e-7)


def test_net_force_and_torque_of_isolated_molecules_only(water):
    pull = [np.tile([0.1, 0.0, 0.0], (3, 1))]
    twist = [np.cross([0, 0, 1.0], water.positions - water.positions.mean(axis=0))]
    assert measures.net_force_and_torque([water], pull)["force_rms"] == pytest.approx(0.3)
    net = measures.net_force_and_torque([water], twist)
    assert net["force_rms"] == pytest.approx(0, abs=1e-12)
    assert net["torque_rms"] > 0.1
    crystal = Atoms("Cu", cell=[3, 3, 3], pbc=True)
    assert measures.net_force_and_torque([crystal], [np.zeros((1, 3))]) is None
    boxed = molecule("H2O", vacuum=10.0, pbc=True)
    boxed.positions[:, 2] += 10.0  # now it crosses the boundary
    boxed.wrap()
    boxed.set_constraint(FixAtoms([0]))  # an atom that is held fixed is put back to its molecule as well
    assert is_isolated(boxed)
    assert as_molecule(boxed).get_all_distances() == pytest.approx(water.get_all_distances())
    layer = boxed.copy()  # periodic along two directions, and no vector along the third
    layer.pbc[2], layer.cell[2] = False, 0.0
    layer.positions[:] = water.positions
    assert as_molecule(layer).get_all_distances() == pytest.approx(water.get_all_distances())
    layer.pbc = True  # as some files say whether or not there is a vector
    assert as_molecule(layer).get_all_distances() == pytest.approx(water.get_all_distances())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consistency")
    data = write_lmdb(folder / "data.lmdb", rattled(["CH3CH2OH", "H2O"], 8))
    checkpoints = {m: train(m, data, folder / m) / "best_checkpoint.pt" for m in ("schnet", "painn")}
    return data, checkpoints


def test_gradient_model_is_conservative_to_rounding_and_direct_model_is_not(trained):
    data, checkpoints = trained
    options = {"structures": 4, "jacobians": 1, "directions": 4, "points": 4, "cpu": True}
    schnet = check_consistency(checkpoints["schnet"], data, **options)
    assert schnet["precision"] == "float64"
    assert schnet["conservative"]
    assert schnet["force_mismatch"]["relative"] < 1e-7
    assert schnet["curl"]["asymmetry"] < 1e-7
    assert schnet["net"]["force_rms"] < 1e-8
    assert schnet["slopes"]["pitc_k0"] == pytest.approx(2, abs=0.2)
    assert schnet["slopes"]["pitc_k0.5"] == pytest.approx(3, abs=0.3)
    painn = check_consistency(checkpoints["painn"], data, **options)
    assert not painn["conservative"]
    assert painn["force_mismatch"]["relative"] > 0.05
    assert painn["curl"]["asymmetry"] > 1e-3
    assert painn["slopes"]["pitc_k0"] == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(("energy", "relative"), [(lambda x: x @ x, 1.0), (lambda x: 0.0, 0.0)])
def test_a_model_that_predicts_no_force_is_judged(trained, monkeypatch, energy, relative):
    still = Analytic(energy, np.zeros_like)
    still.name = still.path = "still"
    monkeypatch.setattr(consistency_report, "load_precise", lambda *_: (still, "float64"))
    found = check_consistency("still", trained[0], structures=2, jacobians=1, points=2)
    assert found["force_mismatch"]["relative"] == pytest.approx(relative)
    assert found["conservative"] == (relative == 0)


def test_command_writes_json_and_plot(trained, tmp_path):
    data, checkpoints = trained
    small = ["--structures", "2", "--jacobians", "1", "--directions", "2", "--cpu", "--out", str(tmp_path)]
    shown = CliRunner().invoke(app, ["consistency", str(checkpoints["painn"]), "--data", str(data), *small])
    assert shown.exit_code == 0, shown.output
    assert "curl per atom" in shown.stdout
    stored = json.loads((tmp_path / "consistency_painn.json").read_text())
    assert stored["units"]["curl"] == "kcal/mol/Angstrom^2"
    assert (tmp_path / "consistency_painn.png").stat().st_size > 10_000


def test_models_of_one_short_name_keep_their_results(trained, tmp_path):
    data, checkpoints = trained
    small = {
        "structures": 1,
        "jacobians": 0,
        "directions": 1,
        "points": 2,
        "cpu": True,
        "out": tmp_path / "out",
    }
    twins = []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "consistency_model_3.json").write_text("{half")  # somebody else's, or cut off
    for number, name in enumerate(("schnet", "painn")):
        twins.append(tmp_path / str(number) / "model.pt")
        twins[-1].parent.mkdir()
        shutil.copy(checkpoints[name], twins[-1])
        check_consistency(twins[-1], data, **small)
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    assert sorted(pictures) == ["consistency_model.png", "consistency_model_2.png"]
    stored = [tmp_path / "out" / f"consistency_model{end}.json" for end in ("", "_2")]
    assert [json.loads(path.read_text())["checkpoint"] for path in stored] == [str(path) for path in twins]
    shutil.copytree(twins[0].parent, tmp_path / "3")
    check_consistency(tmp_path / "3" / "model.pt", data, **small)
    assert (tmp_path / "out" / "consistency_model_3.json").read_text() == "{half"
    assert (tmp_path / "out" / "consistency_model_4.png").exists()
    check_consistency(
        twins[0], data, **small | {"directions": 2}
    )  # again: its own files, the earlier ones stay
    assert (tmp_path / "out" / "consistency_model.png.1").read_bytes() == pictures["consistency_model.png"]
    assert (tmp_path / "out" / "consistency_model_2.png").read_bytes() == pictures["consistency_model_2.png"]


def test_bad_input_is_named(trained):
    data, checkpoints = trained
    with pytest.raises(UserError, match="--dr"):
        check_consistency(checkpoints["painn"], data, dr_range=(0.1, 0.01))
    with pytest.raises(UserError, match="no such data set"):
        check_consistency(checkpoints["painn"], "absent.lmdb")
