"""Dynamics: energy conservation, failure, exact continuation, distances, readable errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.cluster import Icosahedron
from ase.constraints import FixAtoms
from ase.io import write
from ase.io.trajectory import Trajectory
from helpers_analysis import rattled, train, write_lmdb
from typer.testing import CliRunner

from fairchem_piwsl.analysis import figures
from fairchem_piwsl.analysis.potential import load_potential
from fairchem_piwsl.cli import app
from fairchem_piwsl.dynamics import stability
from fairchem_piwsl.dynamics.dynamics_report import run_md
from fairchem_piwsl.dynamics.run_folder import RunFolder
from fairchem_piwsl.dynamics.simulation import MDSettings, rigid_motions, simulate, thermalise
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.report.tables import md_tables


class Never(stability.BondCriterion):
    """No failure whatever bonds do."""

    def __init__(self, atoms: Atoms) -> None:
        super().__init__(atoms, threshold=1e9)


class Springs(Calculator):
    """Harmonic bonds; from evaluation `explode_at` on, atom 0 is pulled away."""

    implemented_properties = ("energy", "forces")

    def __init__(self, atoms, explode_at=None, fails=False):
        super().__init__()
        self.pairs, self.lengths = stability.bonds(atoms)
        self.explode_at, self.fails, self.count = explode_at, fails, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, list(properties), list(system_changes))
        self.count += 1
        forces = np.zeros((len(atoms), 3))
        energy = 0.0
        for (i, j), length in zip(self.pairs, self.lengths, strict=True):
            vector = atoms.positions[j] - atoms.positions[i]
            distance = np.linalg.norm(vector)
            energy += 10.0 * (distance - length) ** 2
            pull = 20.0 * (distance - length) * vector / distance
            forces[i] += pull
            forces[j] -= pull
        if self.explode_at is not None and self.count > self.explode_at:
            if self.fails:
                raise FloatingPointError("diverged")
            forces[0] += [0.0, 0.0, 500.0]
        self.results = {"energy": energy, "forces": forces}


@pytest.fixture
def cluster():
    atoms = Icosahedron("Cu", noshells=2)
    atoms.rattle(0.05, seed=1)
    return atoms


def run(atoms, calculator, folder, steps, seed=0, **options):
    settings = MDSettings(**{"interval": 5, "temperature": 300.0, **options})
    return simulate(atoms, calculator, settings, steps, seed, folder, Never(atoms))


def test_energy_spread_of_a_good_potential_falls_with_the_timestep_squared(cluster, tmp_path):
    spreads = []
    for number, timestep in enumerate((4.0, 2.0, 1.0)):
        run(cluster, EMT(), tmp_path / str(number), round(400 / timestep), timestep=timestep, interval=1)
        table = RunFolder(tmp_path / str(number)).table()
        spreads.append(np.std(table["total"]))
        drift = stability.energy_drift(table["time_ps"], table["total"], len(cluster))
        assert abs(drift) * table["time_ps"][-1] * 1e-3 < 3 * spreads[-1] * 1000 / len(cluster)
    assert spreads[0] / spreads[1] == pytest.approx(4, rel=0.35)
    assert spreads[1] / spreads[2] == pytest.approx(4, rel=0.35)


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_continued_run_is_bit_identical(cluster, tmp_path, ensemble):
    """Also one that stops between two records: its last step must enter neither files nor verdicts."""
    settings = MDSettings(ensemble, interval=5)
    cluster.center(vacuum=5.0)  # radial distributions need a volume
    for steps, folder in ((40, "whole"), (13, "parts"), (25, "parts"), (40, "parts")):
        criterion = stability.RdfCriterion(window=2, threshold=1e9)
        progress = simulate(cluster, EMT(), settings, steps, 0, tmp_path / folder, criterion)
        assert progress.step == steps
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    for a, b in zip(whole.frames(), parts.frames(), strict=True):
        assert np.array_equal(a.positions, b.positions)
        assert np.array_equal(a.get_momenta(), b.get_momenta())
    assert whole.log.read_text() == parts.log.read_text()


def test_what_a_killed_process_left_behind_is_cut_off(cluster, tmp_path):
    run(cluster, EMT(), tmp_path / "whole", 30)
    run(cluster, EMT(), tmp_path / "killed", 20)
    files = RunFolder(tmp_path / "killed")
    state = files.state.read_bytes()
    run(cluster, EMT(), tmp_path / "killed", 25)
    files.state.write_bytes(state)  # killed after the frame was written, before the state
    run(cluster, EMT(), tmp_path / "killed", 30)
    whole = RunFolder(tmp_path / "whole")
    assert np.array_equal(files.frames()[-1].positions, whole.frames()[-1].positions)
    assert files.log.read_text() == whole.log.read_text()
    assert len(files.frames()) == 7


def test_a_start_that_lost_its_first_state_starts_again(cluster, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", lambda *args, **options: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            run(cluster, EMT(), tmp_path, 10)
    files = RunFolder(tmp_path)
    assert len(files.frames()) == 1
    for steps in (10, 20):
        run(cluster, EMT(), tmp_path, steps, temperature=900.0)
    assert files.table()["step"].tolist() == [0, 5, 10, 15, 20]
    assert len(files.frames()) == 5
    files.state.unlink()  # more than a lost start is nothing to be removed
    for _ in range(2):
        with pytest.raises(UserError, match=r"without state\.npz; move the folder"):
            run(cluster, EMT(), tmp_path, 30)
        files.log.unlink(missing_ok=True)
    assert len(files.frames()) == 5


def test_truncated_trajectory_is_named(cluster, tmp_path):
    run(cluster, EMT(), tmp_path, 20)
    with Trajectory(str(tmp_path / "short.traj"), "w") as short:
        for frame in RunFolder(tmp_path).frames()[:2]:
            short.write(frame)
    (tmp_path / "short.traj").replace(tmp_path / "trajectory.traj")
    with pytest.raises(UserError, match="truncated"):
        run(cluster, EMT(), tmp_path, 30)
    (tmp_path / "trajectory.traj").write_bytes(b"half a file")
    with pytest.raises(UserError, match="truncated or damaged"):
        run(cluster, EMT(), tmp_path, 30)


@pytest.mark.parametrize("fails", [False, True])
def test_planted_explosion_is_found_within_one_interval(tmp_path, fails):
    atoms = molecule("CH3CH2OH")
    calculator = Springs(atoms, explode_at=60, fails=fails)
    criterion = stability.BondCriterion(atoms)
    settings = MDSettings(interval=20, timestep=0.5)
    progress = simulate(atoms, calculator, settings, 200, 0, tmp_path, criterion)
    assert 60 <= progress.failure_step <= 80
    assert ("diverged" if fails else "bond length") in progress.reason
    again = simulate(atoms, Springs(atoms), settings, 400, 0, tmp_path, criterion)
    assert again.failure_step == progress.failure_step  # a failed run stays failed


def test_running_out_of_memory_is_no_failure_of_the_model(tmp_path):
    class Greedy(Springs):
        def calculate(self, *args, **options):
            super().calculate(*args, **options)
            if self.count == 60:
                raise MemoryError

    atoms = molecule("CH3CH2OH")
    settings, criterion = MDSettings(interval=20), stability.BondCriterion(atoms)
    with pytest.raises(MemoryError):
        simulate(atoms, Greedy(atoms), settings, 100, 0, tmp_path, criterion)
    progress = simulate(atoms, Springs(atoms), settings, 100, 0, tmp_path, criterion)
    assert (progress.step, progress.failure_step) == (100, None)


def test_a_molecule_beyond_the_cutoff_ends_its_run(tmp_path):
    """A model that raises then must not end the whole command."""

    class Refusing(Springs):
        def calculate(self, *args, **options):
            super().calculate(*args, **options)
            if self.count > 60:
                raise UserError("no two atoms are within its cutoff")

    atoms = molecule("CH3CH2OH")
    settings, criterion = MDSettings(interval=20), stability.BondCriterion(atoms)
    progress = simulate(atoms, Refusing(atoms), settings, 100, 0, tmp_path, criterion)
    assert progress.failure_step == 60
    assert "cutoff" in progress.reason


def test_stable_run_does_not_fail(tmp_path):
    atoms = molecule("CH3CH2OH")
    criterion = stability.BondCriterion(atoms)
    progress = simulate(atoms, Springs(atoms), MDSettings(interval=20), 200, 0, tmp_path, criterion)
    assert progress.failure_step is None
    assert progress.step == 200
    assert len(RunFolder(tmp_path).frames()) == 11


@pytest.mark.parametrize(
    ("atoms", "modes"),
    [
        (molecule("C6H6"), 30),
        (molecule("H2O"), 3),
        (molecule("CO2"), 4),
        (molecule("N2"), 1),
        (bulk("Cu", cubic=True), 9),
        (Atoms("Cu4", bulk("Cu", cubic=True).positions, constraint=FixAtoms([0])), 9),
    ],
    ids=["molecule", "water", "linear", "diatomic", "crystal", "fixed"],
)
def test_every_mode_starts_at_the_temperature_asked_for(atoms, modes, tmp_path):
    atoms.rotate(30, (1, 2, 3), rotate_cell=True)
    rigid, kinetic = rigid_motions(atoms), []
    for seed in range(500):
        thermalise(atoms, 300.0, np.random.default_rng(seed), rigid)
        kinetic.append(atoms.get_kinetic_energy())
    sigma = 300 * np.sqrt(2 / modes / len(kinetic))
    assert 2 * np.mean(kinetic) / (modes * units.kB) == pytest.approx(300, abs=3 * sigma)
    run(atoms, Springs(atoms), tmp_path, 1)
    temperature = RunFolder(tmp_path).table()["temperature"][0]
    assert temperature == pytest.approx(2 * kinetic[0] / (modes * units.kB))


def test_langevin_reaches_its_temperature(tmp_path):
    atoms = bulk("Cu", cubic=True).repeat((2, 2, 2))
    settings = MDSettings("nvt", temperature=500, timestep=5.0, friction=0.02, interval=5)
    simulate(atoms, EMT(), settings, 500, 0, tmp_path, Never(atoms))
    temperature = RunFolder(tmp_path).table()["temperature"][25:]
    assert temperature.mean() == pytest.approx(500, rel=0.12)
    momenta = np.array([frame.get_momenta().sum(axis=0) for frame in RunFolder(tmp_path).frames()])
    # The centre of mass is thermal as well: it is not held fixed.
    spread = np.sqrt(len(atoms) * atoms.get_masses()[0] * units.kB * 500)
    assert 0.3 < momenta[25:].std() / spread < 2


def test_bond_criterion_takes_mean_lengths_of_the_reference():
    atoms = molecule("H2O")
    longer = atoms.copy()
    longer.positions = atoms.positions * 1.1
    criterion = stability.BondCriterion(atoms, [atoms, longer])
    mean = 1.05 * bond_length(atoms)
    assert criterion.expected == pytest.approx(mean)
    assert criterion.departure(longer) == pytest.approx(1.1 * bond_length(atoms) - mean)
    longer.positions[0] = np.nan
    assert criterion.departure(longer) == np.inf


def bond_length(atoms):
    return atoms.get_distance(0, 1)


def test_radial_distribution_criterion_sees_melting_and_not_vibration():
    crystal = bulk("Cu", cubic=True).repeat((3, 3, 3))
    random = np.random.default_rng(0)

    def frame(amplitude):
        atoms = crystal.copy()
        atoms.positions += random.normal(scale=amplitude, size=atoms.positions.shape)
        return atoms

    criterion = stability.RdfCriterion([frame(0.1) for _ in range(10)], window=3)
    cold = [criterion.add(frame(0.1)) for _ in range(6)]
    assert np.isnan([cold[0], cold[1], cold[3], cold[4]]).all()
    assert max(cold[2], cold[5]) < 0.5
    molten = [criterion.add(frame(1.5)) for _ in range(3)]
    assert molten[2] > 1.5
    own = stability.RdfCriterion(window=2)
    departures = [own.add(frame(0.1)) for _ in range(4)]
    assert departures[1] == 0
    assert 0 < departures[3] < 1


def test_radial_distribution_criterion_sees_melting_in_a_unit_cell():
    crystal = bulk("Cu", cubic=True)
    molten = crystal.copy()
    molten.rattle(0.5, seed=0)
    criterion = stability.RdfCriterion([crystal], window=1)
    assert criterion.add(crystal) == 0
    assert criterion.add(molten) > stability.RDF_THRESHOLD


def test_radial_distribution_of_an_ideal_gas_is_one():
    random = np.random.default_rng(0)
    gas = [
        Atoms("H200", positions=random.uniform(0, 20, (200, 3)), cell=[20] * 3, pbc=True) for _ in range(40)
    ]
    g = stability.radial_distribution(gas, np.linspace(2, 10, 9))
    assert g == pytest.approx(1, abs=0.05)


def test_distance_distribution_is_a_density():
    atoms = molecule("CH3CH2OH")
    h = stability.distance_distribution([atoms], np.linspace(0, 10, 201))
    assert h.sum() * 0.05 == pytest.approx(1)
    assert h[int(1.512 / 0.05)] > 0  # the C-C bond


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("md")
    structures = rattled(["H2O"], 8)
    data = write_lmdb(folder / "data.lmdb", structures)
    write(folder / "water.xyz", molecule("H2O"))
    return data, folder / "water.xyz", train("schnet", data, folder / "run") / "best_checkpoint.pt"


def test_model_continues_bit_identically(trained, tmp_path):
    _, _, checkpoint = trained
    atoms = molecule("H2O")
    for steps, folder in ((20, "whole"), (10, "parts"), (20, "parts")):
        run(atoms, load_potential(checkpoint, cpu=True).calculator(), tmp_path / folder, steps)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    assert np.array_equal(whole.frames()[-1].positions, parts.frames()[-1].positions)
    assert whole.log.read_text() == parts.log.read_text()


def test_command_runs_seeds_extends_them_and_compares_distances(trained, tmp_path):
    data, water, checkpoint = trained
    common = ["md", str(checkpoint), "--structure", str(water), "--cpu", "--out", str(tmp_path), "--json"]
    common += ["--seeds", "2", "--interval", "5", "--bond-threshold", "1000"]
    reference = ["--reference-trajectory", str(data)]
    first = CliRunner().invoke(app, [*common, *reference, "--steps", "10"])
    assert first.exit_code == 0, first.output
    longer = CliRunner().invoke(app, [*common, *reference, "--steps", "20"])
    assert longer.exit_code == 0, longer.output
    stored = json.loads((tmp_path / "schnet" / "md.json").read_text())
    assert [entry["steps"] for entry in stored["runs"]] == [20, 20]
    assert stored["runs"][0]["temperature"] != stored["runs"][1]["temperature"]
    assert stored["units"]["drift"] == "meV/atom/ns"
    assert 0 < stored["distances"]["mae"] <= 2
    assert (tmp_path / "schnet" / "md.png").stat().st_size > 10_000
    other = CliRunner().invoke(app, [*common, *reference, "--steps", "20", "--timestep", "0.25"])
    assert "another timestep" in str(other.exception)
    # A verdict once stored must not pass for one by another criterion.
    other = CliRunner().invoke(app, [*common, "--steps", "20"])
    assert "another failure reference" in str(other.exception)
    common[common.index("1000")] = "0.4"
    other = CliRunner().invoke(app, [*common, *reference, "--steps", "20"])
    assert "another failure threshold (1000.0 instead of 0.4)" in str(other.exception)


def test_a_command_that_could_not_start_leaves_its_folder_to_others(trained, tmp_path):
    _, water, checkpoint = trained
    write(tmp_path / "no_model_knows.xyz", Atoms("LrH", [[0, 0, 0], [0, 0, 1.5]]))
    with pytest.raises(UserError, match="does it know all elements"):
        run_md(checkpoint, tmp_path / "no_model_knows.xyz", MDSettings(), steps=1, out=tmp_path, cpu=True)
    result = run_md(checkpoint, water, MDSettings(), steps=1, out=tmp_path, cpu=True)
    assert result["formula"] == "H2O"


@pytest.fixture
def copper(tmp_path):
    """A crystal of four atoms, as read from `copper.traj`."""
    atoms = bulk("Cu", cubic=True)
    write(tmp_path / "copper.traj", atoms)
    return atoms


@pytest.mark.parametrize("change", ["cell", "constraints", "masses", "charge"])
def test_a_run_continues_with_the_same_surroundings_only(copper, tmp_path, change):
    options = {"steps": 1, "calculator": "emt", "out": tmp_path}
    run_md(None, tmp_path / "copper.traj", MDSettings(), **options)
    run_md(None, tmp_path / "copper.traj", MDSettings(), **options)
    if change == "cell":
        copper.set_cell(copper.cell * 1.03)
    elif change == "constraints":
        copper.set_constraint(FixAtoms([0, 1]))
    elif change == "masses":
        copper.set_masses([200.0] * 4)
    else:
        copper.info["charge"] = 1
    write(tmp_path / "copper.extxyz", copper)
    with pytest.raises(UserError, match=f"another {change} "):
        run_md(None, tmp_path / "copper.extxyz", MDSettings(), **options)


def test_a_run_too_short_for_its_criterion_is_not_judged(copper, tmp_path):
    options = {"calculator": "emt", "rdf_window": 0.01, "out": tmp_path}  # of five frames
    for steps, reason in ((8, "not judged: too short for --rdf-window"), (9, ""), (7, "")):
        result = run_md(
            None, tmp_path / "copper.traj", MDSettings(interval=1, timestep=2.0), steps=steps, **options
        )
        assert result["runs"][0]["reason"] == reason
        assert not result["runs"][0]["failed"]
    assert result["length"] == result["runs"][0]["time"] == pytest.approx(0.018)  # nine steps are there


def test_a_single_record_has_no_spread(tmp_path):
    write(tmp_path / "cluster.xyz", Icosahedron("Cu", noshells=2))
    options = {"calculator": "emt", "bond_threshold": 1e-4, "out": tmp_path}
    result = run_md(None, tmp_path / "cluster.xyz", MDSettings(), steps=40, **options)
    (start,) = result["runs"]
    assert start["failed"]
    assert start["energy_std"] is None
    assert np.isnan(start["drift"])


@pytest.mark.parametrize("seeds", [10, 11])
def test_a_legend_of_many_seeds_is_left_out(copper, tmp_path, monkeypatch, seeds):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    run_md(None, tmp_path / "copper.traj", MDSettings(), steps=1, seeds=seeds, calculator="emt", out=tmp_path)
    assert (drawn[0].axes[0].get_legend() is None) == (seeds > 10)


def test_a_run_continues_with_its_checkpoint_in_another_folder(trained, tmp_path):
    _, water, checkpoint = trained
    for steps, folder in enumerate(("my runs", "my other runs"), 1):
        (tmp_path / folder).mkdir()
        moved = shutil.copy(checkpoint, tmp_path / folder / "model.pt")
        result = run_md(moved, water, MDSettings(), steps=steps, out=tmp_path, cpu=True)
        assert result["source"].startswith(f"{moved} sha256=")
        assert result["runs"][0]["steps"] == steps


def test_reference_calculator_needs_no_checkpoint(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(figures, "save", lambda figure, path: titles.append(figure.get_suptitle()))
    write(tmp_path / "cluster.xyz", Icosahedron("Cu", noshells=2))
    settings = MDSettings(interval=10, timestep=2.0)
    result = run_md(None, tmp_path / "cluster.xyz", settings, steps=40, calculator="emt", out=tmp_path)
    assert result["model"] == "EMT"
    assert result["summary"]["failed"] == 0
    assert result["summary"]["is_lower_bound"]
    words = "time to failure at least 0.08 ps in the mean"
    assert words in md_tables(result)[0].caption
    assert titles[0].endswith(f"0 of 1 runs failed, {words}")


@pytest.mark.parametrize("pbc", [(True, True, False), True], ids=["two directions", "three in name"])
def test_a_surface_needs_no_third_cell_vector(tmp_path, pbc):
    surface = fcc111("Cu", (3, 3, 3))
    surface.pbc = pbc
    assert surface.cell.rank == 2
    write(tmp_path / "surface.traj", surface)
    settings = MDSettings(interval=1, timestep=2.0)
    options = {"steps": 20, "calculator": "emt", "rdf_window": 0.02, "rdf_threshold": 100.0, "out": tmp_path}
    result = run_md(None, tmp_path / "surface.traj", settings, **options)
    assert result["summary"]["failed"] == 0
    departure = RunFolder(tmp_path / "EMT" / "seed_0").table()["departure"]
    assert 0 < np.nanmax(departure) < 100


def test_xtb_conserves_energy_as_far_as_verlets_integrator_does(tmp_path):
    """The fluctuation falls fourfold with half the time step, and there is next to no drift beside it."""
    pytest.importorskip("tblite")
    write(tmp_path / "ethanol.xyz", molecule("CH3CH2OH"))
    spreads = []
    for timestep, steps, interval in ((1.0, 400, 2), (0.5, 800, 4)):
        # In a process of its own: tblite has to be loaded before torch.
        out = tmp_path / str(timestep)
        command = [sys.executable, "-m", "fairchem_piwsl.cli", "md", "--calculator", "xtb"]
        command += ["--structure", str(tmp_path / "ethanol.xyz"), "--timestep", str(timestep)]
        command += ["--steps", str(steps), "--interval", str(interval), "--out", str(out), "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (start,) = json.loads(done.stdout)["runs"]
        spreads.append(start["energy_std"])
        drifted = abs(start["drift"]) * start["time"] * 1e-3  # meV/atom over the run
        assert drifted < 0.2 * start["energy_std"]
    assert spreads[0] / spreads[1] == pytest.approx(4, rel=0.1)


def test_bad_input_is_named(trained, copper, tmp_path):
    _, water, checkpoint = trained
    settings = MDSettings()
    with pytest.raises(UserError, match="--ensemble npt"):
        MDSettings(ensemble="npt")
    with pytest.raises(UserError, match="--timestep 0"):
        MDSettings(timestep=0)
    with pytest.raises(UserError, match="either a checkpoint or --calculator"):
        run_md(None, water, settings, steps=1, out=tmp_path)
    with pytest.raises(UserError, match="no such reference"):
        run_md(None, water, settings, steps=1, calculator="dft", out=tmp_path)
    write(tmp_path / "bare.xyz", copper, plain=True)
    with pytest.raises(UserError, match="--reference-trajectory has no cell"):
        run_md(
            None, tmp_path / "copper.traj", settings, steps=1, calculator="emt", out=tmp_path,
            reference_trajectory=tmp_path / "bare.xyz",
        )  # fmt: skip
    write(tmp_path / "other.xyz", molecule("CH4"))
    with pytest.raises(UserError, match="same order"):
        run_md(
            checkpoint, water, settings, steps=1, out=tmp_path, cpu=True,
            reference_trajectory=tmp_path / "other.xyz",
        )  # fmt: skip
    assert not (tmp_path / "schnet").exists()
