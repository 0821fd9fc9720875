"""Bond profiles: what moves, what the curve says, what goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import write
from helpers_analysis import rattled, train, write_lmdb
from typer.testing import CliRunner

from fairchem_piwsl.analysis import figures
from fairchem_piwsl.analysis.bonds import bond_lengths, bonds, fragment
from fairchem_piwsl.analysis.profile import bond_profile, seeds_of_one_run, stretched
from fairchem_piwsl.analysis.reference_calculators import reference_calculator
from fairchem_piwsl.cli import app
from fairchem_piwsl.errors import UserError


@pytest.fixture(scope="module")
def ethanol():
    return molecule("CH3CH2OH")  # C0 C1 O2 H3(O) H4 H5(C1) H6 H7 H8(C0)


def test_bonds_of_ethanol(ethanol):
    pairs, lengths = bonds(ethanol)
    assert sorted(map(tuple, pairs.tolist())) == [
        (0, 1), (0, 6), (0, 7), (0, 8), (1, 2), (1, 4), (1, 5), (2, 3)
    ]  # fmt: skip
    assert bond_lengths(ethanol, pairs) == pytest.approx(lengths)


def test_bonds_across_a_periodic_boundary(ethanol):
    boxed = ethanol.copy()
    boxed.center(vacuum=6.0)
    boxed.pbc = True
    boxed.positions += boxed.cell.lengths() / 2
    boxed.wrap()
    pairs, lengths = bonds(boxed)
    assert len(pairs) == 8
    assert sorted(lengths) == pytest.approx(sorted(bonds(ethanol)[1]))
    assert bond_lengths(boxed, pairs) == pytest.approx(lengths)


def test_the_component_of_the_second_atom_moves(ethanol):
    assert fragment(ethanol, 0, 1).tolist() == [1, 2, 3, 4, 5]
    assert fragment(ethanol, 1, 0).tolist() == [0, 6, 7, 8]
    assert fragment(ethanol, 0, 6).tolist() == [6]
    assert fragment(molecule("C6H6"), 0, 1).tolist() == [1]  # a ring


def test_stretching_changes_one_bond_and_no_other_distance_within_fragments(ethanol):
    frame = stretched(ethanol, (0, 1), fragment(ethanol, 0, 1), np.array([2.0]))[0]
    assert frame.get_distance(0, 1) == pytest.approx(2.0)
    for inside in ([1, 2, 3, 4, 5], [0, 6, 7, 8]):
        assert frame[inside].get_all_distances() == pytest.approx(ethanol[inside].get_all_distances())


@pytest.fixture(scope="module")
def setup(tmp_path_factory, ethanol):
    folder = tmp_path_factory.mktemp("profile")
    data = write_lmdb(folder / "data.lmdb", rattled(["CH3CH2OH"], 6))
    write(folder / "ethanol.xyz", ethanol)
    checkpoint = train("schnet", data, folder / "run") / "best_checkpoint.pt"
    return folder / "ethanol.xyz", checkpoint


def test_reference_curve_is_the_reference(setup, ethanol):
    structure, checkpoint = setup
    result = bond_profile([checkpoint], structure, (1, 4), points=41, reference="emt", units="eV", cpu=True)
    curve = result["curves"]["EMT"]
    moving, lengths = [4], result["lengths"]
    at_start = ethanol.copy()
    at_start.calc = EMT()
    for i in (0, 20, 40):
        atoms = stretched(ethanol, (1, 4), np.array(moving), lengths)[i]
        atoms.calc = EMT()
        expected = atoms.get_potential_energy() - at_start.get_potential_energy()
        assert curve["energy"][i] == pytest.approx(expected, abs=1e-6)
    slope = -np.gradient(curve["energy"], lengths)
    assert curve["force"][5:-5] == pytest.approx(slope[5:-5], abs=0.2)
    assert curve["energy_rmse"] == 0
    model = result["curves"]["schnet"]
    assert model["energy_rmse"] > 0
    assert model["force_against_slope_rmse"] < 0.05
    assert result["initial_length"] == pytest.approx(1.1, abs=0.02)


def test_command_writes_json_and_plot(setup, tmp_path):
    structure, checkpoint = setup
    arguments = [
        "profile",
        str(checkpoint),
        "--structure",
        str(structure),
        "--bond",
        "0",
        "6",
        "--points",
        "7",
    ]
    shown = CliRunner().invoke(app, [*arguments, "--cpu", "--out", str(tmp_path), "--json"])
    assert shown.exit_code == 0, shown.output
    stored = json.loads((tmp_path / "profile.json").read_text())
    assert stored == json.loads(shown.stdout)
    assert stored["moving_atoms"] == [6]
    assert len(stored["curves"]["schnet"]["force"]) == 7
    assert (tmp_path / "profile.png").stat().st_size > 10_000


def test_seeds_of_one_run_are_one_curve_by_their_settings():
    def config(seed: int, rate: float = 0.1, source: str = "a.lmdb") -> dict:
        return {"optim": {"lr_initial": rate}, "dataset": {"src": source}, "cmd": {"seed": seed}}

    configs = {
        "base/seed0": config(0),
        "base/seed1": config(1),
        "seed7/x": config(0, 0.2),
        "seed8/x": config(1, 0.2),
    }
    assert seeds_of_one_run(configs) == {
        "base, 2 seeds": ["base/seed0", "base/seed1"],
        "x, 2 seeds": ["seed7/x", "seed8/x"],
    }
    apart = {"a": config(0), "b": config(0, source="b.lmdb"), "last": config(1), "best": config(1)}
    assert seeds_of_one_run(apart) == {name: [name] for name in apart}  # the last two are one run twice
    alike = {"r0": config(0), "r1": config(1), "r2": config(0, 0.2), "r3": config(1, 0.2)}
    assert list(seeds_of_one_run(alike).values()) == [["r0", "r1"], ["r2", "r3"]]


def test_seeds_share_a_colour_in_the_plot(setup, tmp_path, monkeypatch):
    structure, checkpoint = setup
    second = tmp_path / "other" / "seed1.pt"
    second.parent.mkdir()
    state = torch.load(checkpoint, weights_only=False)
    state["config"]["cmd"]["seed"] = 1
    torch.save(state, second)
    drawn = []
    monkeypatch.setattr(figures, "save", lambda fig, path: drawn.append(fig) or path)
    bond_profile([checkpoint, second], structure, (0, 1), points=5, cpu=True, out=tmp_path / "out")
    top = drawn[0].axes[0]
    labelled = [line for line in top.get_lines() if not line.get_label().startswith("_")]
    assert [line.get_label()[-9:] for line in labelled] == [", 2 seeds"]


def test_bad_input_is_named(setup, ethanol):
    structure, checkpoint = setup
    with pytest.raises(UserError, match="no atom 44; the structure has atoms 0 to 8"):
        bond_profile([checkpoint], structure, (0, 44), cpu=True)
    with pytest.raises(UserError, match="not bonded"):
        fragment(ethanol, 0, 3)
    with pytest.raises(UserError, match="--range"):
        bond_profile([checkpoint], structure, (0, 1), bond_range=(1.8, 0.8))
    with pytest.raises(UserError, match="no such reference"):
        reference_calculator("ccsd")
    with pytest.raises(UserError, match="at least one checkpoint"):
        bond_profile([], structure, (0, 1))


def test_xtb_reference(setup, tmp_path):
    pytest.importorskip("tblite")
    _, checkpoint = setup
    # In a process of its own: tblite has to be loaded before torch (which an LMDB needs too), and the command
    # line does that.
    structure = write_lmdb(tmp_path / "structure.lmdb", rattled(["CH3CH2OH"], 1, amplitude=0.0))
    command = [
        sys.executable,
        "-m",
        "fairchem_piwsl.cli",
        "profile",
        str(checkpoint),
        "--cpu",
        "--units",
        "eV",
    ]
    command += ["--structure", str(structure), "--bond", "0", "6", "--points", "21", "--reference", "xtb"]
    done = subprocess.run([*command, "--out", str(tmp_path), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    curve = result["curves"]["GFN2-xTB"]
    assert result["curves"]["schnet"]["energy_rmse"] > 0
    assert curve["minimum"] == pytest.approx(1.09, abs=0.06)
    assert curve["force_against_slope_rmse"] < 0.5
