"""`prepare`: what it writes is what was read, upstream trains on it, and splits are as promised."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from conftest import make_config, make_trainer
from fairchem.core.datasets import LmdbDataset, data_list_collater
from fairchem.core.modules.normalization.element_references import create_element_references
from fairchem.core.modules.normalization.normalizer import create_normalizer
from helpers_datasets import FREE_ATOMS_EV, crystals, labelled, molecules, records, run_piwsl, save, sids

from fairchem_piwsl.analysis.evaluate import check_labels
from fairchem_piwsl.config import merge
from fairchem_piwsl.datasets import prepare as prepare_module
from fairchem_piwsl.datasets.prepare import prepare
from fairchem_piwsl.datasets.read import read_labelled
from fairchem_piwsl.datasets.summary import config_lines
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.settings import PIWSLSettings

SMALL = {"train": 10, "val": 4, "test": 6, "quiet": True}


def frame_of(sid: str) -> int:
    return int(sid.rsplit(":", 1)[1])


def test_round_trip_through_upstreams_dataset_and_collater(tmp_path):
    frames = molecules(20)
    path = save(tmp_path / "all.extxyz", frames)
    summary = prepare([path], tmp_path / "out", **SMALL)
    dataset = LmdbDataset({"src": str(tmp_path / "out/train/data.lmdb")})
    assert len(dataset) == 10
    batch = data_list_collater([dataset[i] for i in range(10)], otf_graph=True)
    assert batch.energy.dtype == torch.float64
    assert batch.energy.shape == (10,)
    assert batch.pbc.shape == (10, 3)
    for i in range(10):
        data = dataset[i]
        atoms = frames[frame_of(data.sid)]
        n = len(atoms)
        assert data.natoms == n
        assert data.atomic_numbers.tolist() == atoms.numbers.tolist()
        assert data.energy.item() == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(data.forces, atoms.get_forces(), atol=1e-6)
        np.testing.assert_allclose(
            torch.pdist(data.pos), torch.pdist(torch.tensor(atoms.positions)), atol=1e-5
        )
        assert data.cell.shape == (1, 3, 3)
        assert data.fixed.tolist() == [0] * n
        assert data.tags.tolist() == [0] * n
    natoms = np.load(tmp_path / "out/train/metadata.npz")["natoms"]
    assert natoms.tolist() == batch.natoms.tolist()
    assert dataset.get_metadata("natoms", 3) == natoms[3]
    assert summary["splits"]["train"]["structures"] == 10
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("trainer", ["ocp", "piwsl_forces"])
def test_the_pasted_config_lines_train(tmp_path, trainer):
    path = save(tmp_path / "all.extxyz", molecules(20, zero=FREE_ATOMS_EV))
    out = tmp_path / "out"
    summary = prepare([path], out, **SMALL)
    pasted = yaml.safe_load(config_lines(out, summary))
    assert pasted["trainer"] == "fairchem_piwsl.trainer.PIWSLForcesTrainer"
    assert [output["prediction_dtype"] for output in pasted["outputs"].values()] == ["float32"] * 2
    config = merge(make_config(tmp_path, tmp_path, batch_size=5, max_epochs=1), pasted)
    assert PIWSLSettings.from_config(config["optim"]["piwsl"]).auto
    trainer = make_trainer(config, trainer)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step == 2
    metrics = trainer.validate("val", disable_tqdm=True)
    assert metrics["energy_mae"]["metric"] < 50
    assert trainer.elementrefs["energy"].element_references.dtype == torch.float64


def test_the_dataset_file_can_be_included(tmp_path):
    path = save(tmp_path / "all.extxyz", molecules(20))
    out = tmp_path / "out"
    summary = prepare([path], out, **SMALL)
    block = yaml.safe_load((out / "dataset.yml").read_text())
    assert block["dataset"]["train"]["src"] == str(out / "train/data.lmdb")
    assert block["dataset"] == yaml.safe_load(config_lines(out, summary))["dataset"]


def test_no_digit_of_a_large_energy_is_lost(tmp_path):
    frames = molecules(30, zero={z: 3 * e for z, e in FREE_ATOMS_EV.items()})
    out = tmp_path / "out"
    prepare([save(tmp_path / "a.extxyz", frames)], out, 20, 4, 6, trust_units=True, quiet=True)
    batch = data_list_collater(records(out), otf_graph=True)
    file = out / "element_references.npz"
    left = create_element_references(file=file).dereference(batch.energy.view(-1, 1), batch).ravel()
    references = np.load(file)["element_references"]
    for data, residual in zip(records(out), left, strict=True):
        atoms = frames[frame_of(data.sid)]
        exact = atoms.get_potential_energy() - sum(references[z] for z in atoms.numbers)
        assert residual.item() == pytest.approx(exact, abs=1e-8)


def test_references_are_the_least_squares_fit_of_the_training_split(tmp_path):
    out = tmp_path / "out"
    summary = prepare([save(tmp_path / "a.extxyz", molecules(40))], out, 20, 10, 10, quiet=True)
    data = records(out)
    counts = np.array([[(d.atomic_numbers == z).sum().item() for z in (1, 6, 8)] for d in data], float)
    energies = np.array([d.energy.item() for d in data])
    expected = np.linalg.lstsq(counts, energies, rcond=None)[0]
    found = [summary["element_references_eV"][s] for s in ("H", "C", "O")]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    forces = torch.cat([d.forces for d in data])
    assert summary["force_scale_eV_A"] == pytest.approx(forces.pow(2).mean().sqrt().item(), rel=1e-5)
    scale = create_normalizer(file=out / "forces_normalizer.npz")
    assert scale.rmsd.item() == pytest.approx(summary["force_scale_eV_A"])
    assert scale.mean.item() == 0


def test_one_molecule_gets_references_of_smallest_norm(tmp_path):
    out = tmp_path / "out"
    prepare([save(tmp_path / "a.extxyz", molecules(20, names=("CH3OH",)))], out, **SMALL)
    references = np.load(out / "element_references.npz")["element_references"]
    assert references.dtype == np.float64
    assert references[6] == pytest.approx(references[8])  # one C, one O
    assert references[1] == pytest.approx(4 * references[6])  # four H
    mean = np.mean([d.energy.item() for d in records(out)])
    assert 4 * references[1] + references[6] + references[8] == pytest.approx(mean)


@pytest.mark.parametrize("name", ["a.extxyz", "a.extxyz.gz", "a.xyz", "a.traj", "a.db", "a.json"])
def test_file_types(tmp_path, name):
    frames = molecules(20)
    frames[3].set_constraint(FixAtoms([0, 1]))
    path = tmp_path / name
    if name.startswith("a.extxyz") or name.endswith("xyz"):
        write(path, frames, format="extxyz")
    else:
        write(path, frames)
    out = tmp_path / "out"
    prepare([path], out, 14, 2, 4, quiet=True)
    found = {frame_of(d.sid): d for split in ("train", "val", "test") for d in records(out, split)}
    assert sorted(found) == list(range(20))
    for i, atoms in enumerate(frames):
        assert found[i].energy.item() == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(found[i].forces, atoms.get_forces(apply_constraint=False), atol=1e-6)
    assert found[3].fixed.tolist()[:3] == [1, 1, 0]


@pytest.mark.parametrize("packed", [False, True])
def test_xsf_with_aenet_labels_and_with_ases(tmp_path, packed):
    frames = crystals(8)
    for i, atoms in enumerate(frames):
        write(tmp_path / f"s{i}.xsf", atoms)
        lines = (tmp_path / f"s{i}.xsf").read_text().splitlines()
        n = len(atoms)
        rows = [
            f"Cu {' '.join(f'{x:.10f}' for x in (*p, *f))}"
            for p, f in zip(atoms.positions, atoms.get_forces(), strict=True)
        ]
        head = [f"# total energy = {atoms.get_potential_energy():.10f} eV", ""]
        (tmp_path / f"s{i}.xsf").write_text("\n".join([*head, *lines[:-n], *rows]) + "\n")
        if packed:
            (tmp_path / f"s{i}.xsf.gz").write_bytes(gzip.compress((tmp_path / f"s{i}.xsf").read_bytes()))
    pattern = "s*.xsf.gz" if packed else "s*.xsf"
    prepare([tmp_path / pattern], tmp_path / "out", 4, 2, 2, quiet=True)
    for data in records(tmp_path / "out"):
        atoms = frames[int(data.sid[1])]
        assert data.energy.item() == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(data.forces, atoms.get_forces(), atol=1e-6)
    write(tmp_path / "plain.xsf", frames)  # ASE writes Hartree/Angstrom and no energy
    prepare([tmp_path / "plain.xsf"], tmp_path / "plain", 4, 2, 2, allow_missing=True, quiet=True)
    data = records(tmp_path / "plain")[0]
    assert torch.isnan(data.energy)
    np.testing.assert_allclose(data.forces, frames[frame_of(data.sid)].get_forces(), atol=1e-6)


def test_several_files_globs_and_slices(tmp_path):
    frames = molecules(30)
    save(tmp_path / "a/x.extxyz", frames[:10])
    save(tmp_path / "b/x.extxyz", frames[10:20])
    save(tmp_path / "y.traj", frames[20:])
    out = tmp_path / "out"
    prepare([tmp_path / "*/x.extxyz", f"{tmp_path}/y.traj@::2"], out, 19, 3, 3, quiet=True)
    found = [s for split in ("train", "val", "test") for s in sids(out, split)]
    assert len(set(found)) == 25
    assert sorted(frame_of(s) for s in found if s.startswith("y.traj")) == [0, 2, 4, 6, 8]
    assert {s.rsplit(":", 1)[0] for s in found} == {
        str(tmp_path / "a/x.extxyz"),
        str(tmp_path / "b/x.extxyz"),
        "y.traj",
    }


@pytest.mark.parametrize(
    ("unit", "size"),
    [("kcal/mol", units.kcal / units.mol), ("Hartree", units.Hartree), ("ha", units.Hartree)],
)
def test_units(tmp_path, unit, size):
    frames = molecules(20)
    save(tmp_path / "ev.extxyz", frames)
    save(tmp_path / "other.extxyz", molecules(20, factor=1 / size))
    prepare([tmp_path / "ev.extxyz"], tmp_path / "ev", **SMALL)
    prepare([tmp_path / "other.extxyz"], tmp_path / "other", units=unit, **SMALL)
    for a, b in zip(records(tmp_path / "ev"), records(tmp_path / "other"), strict=True):
        assert a.energy.item() == pytest.approx(b.energy.item(), abs=1e-6)
        np.testing.assert_allclose(a.forces, b.forces, atol=1e-5)


def test_labels_of_other_names(tmp_path):
    frames = molecules(20)
    for atoms in frames:
        atoms.info["REF_energy"] = atoms.get_potential_energy()
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = None
    path = save(tmp_path / "a.extxyz", frames)
    with pytest.raises(UserError, match="--energy-key REF_energy --forces-key REF_forces"):
        prepare([path], tmp_path / "out", **SMALL)
    with pytest.raises(
        UserError, match="piwsl prepare, perhaps --energy-key REF_energy --forces-key REF_forces"
    ):
        check_labels(read_labelled(path), path)
    prepare([path], tmp_path / "out", energy_key="REF_energy", forces_key="REF_forces", **SMALL)
    data = records(tmp_path / "out")[0]
    assert data.energy.item() == pytest.approx(frames[frame_of(data.sid)].info["REF_energy"])


def test_the_cell_of_a_molecule_keeps_images_away(tmp_path):
    path = save(tmp_path / "a.extxyz", molecules(20))
    prepare([path], tmp_path / "out", **SMALL)
    for data in records(tmp_path / "out"):
        assert data.pbc.tolist() == [[False] * 3]
        extent = data.pos.max(0).values - data.pos.min(0).values
        cell = data.cell[0].diagonal()
        assert torch.equal(data.cell[0], torch.diag(cell))
        assert (cell - extent).min() > 24  # twice the largest cutoff in use
        assert (data.pos >= 0).all()
        assert (data.pos <= cell).all()


def test_periodic_structures_are_wrapped_and_graphs_agree_with_ase(tmp_path):
    from ase.neighborlist import neighbor_list
    from fairchem.core.common.utils import radius_graph_pbc

    frames = crystals(20)
    prepare([save(tmp_path / "a.extxyz", frames)], tmp_path / "out", **SMALL)
    for data in records(tmp_path / "out")[:3]:
        scaled = data.pos @ torch.linalg.inv(data.cell[0])
        assert (scaled > -1e-5).all()
        assert (scaled < 1 + 1e-5).all()
        batch = data_list_collater([data], otf_graph=True)
        edges, _, _ = radius_graph_pbc(batch, 4.0, 200)
        expected = neighbor_list("i", frames[frame_of(data.sid)], 4.0)
        assert edges.shape[1] == len(expected)


def test_graphs_of_molecules_equal_those_of_free_space(tmp_path):
    from fairchem.core.common.utils import radius_graph_pbc

    prepare([save(tmp_path / "a.extxyz", molecules(20))], tmp_path / "out", **SMALL)
    found = records(tmp_path / "out")
    edges, _, _ = radius_graph_pbc(data_list_collater(found, otf_graph=True), 12.0, 200)
    for data in found:
        del data.pbc
    periodic, _, _ = radius_graph_pbc(data_list_collater(found, otf_graph=True), 12.0, 200)
    free = sum(d.natoms * (d.natoms - 1) for d in found)
    assert edges.shape[1] == periodic.shape[1] == free


def test_slabs_get_vacuum_along_the_open_direction(tmp_path):
    frames = crystals(20)
    for atoms in frames:
        atoms.pbc = (True, True, False)
        atoms.cell[2] = 0
    frames = [labelled(atoms) for atoms in frames]
    prepare([save(tmp_path / "a.traj", frames)], tmp_path / "out", **SMALL)
    for data in records(tmp_path / "out"):
        assert data.pbc.tolist() == [[True, True, False]]
        assert data.cell[0, 2, 2] - (data.pos[:, 2].max() - data.pos[:, 2].min()) > 24


def test_mixed_boundary_conditions_become_periodic(tmp_path):
    frames = [atoms for pair in zip(molecules(10), crystals(10), strict=True) for atoms in pair]
    summary = prepare([save(tmp_path / "a.extxyz", frames)], tmp_path / "out", **SMALL)
    assert any("periodic" in w for w in summary["warnings"])
    batch = data_list_collater(records(tmp_path / "out"), otf_graph=True)
    assert batch.pbc.all()


def test_the_test_set_is_the_same_for_every_training_size(tmp_path):
    path = save(tmp_path / "a.extxyz", molecules(60))
    found = {}
    for train, val in ((5, 10), (10, 10), (30, 20)):
        out = tmp_path / f"n{train}"
        prepare([path], out, train, val, 10, seed=3, quiet=True)
        found[train] = {split: sids(out, split) for split in ("train", "val", "test")}
        assert len({s for split in found[train].values() for s in split}) == train + val + 10
    assert found[5]["test"] == found[10]["test"] == found[30]["test"]
    assert found[30]["train"][:10] == found[10]["train"]
    assert found[10]["train"][:5] == found[5]["train"]
    assert found[30]["val"][:10] == found[10]["val"]


def test_seeds(tmp_path):
    path = save(tmp_path / "a.extxyz", molecules(20))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare([path], tmp_path / name, seed=seed, **SMALL)
    assert sids(tmp_path / "a") == sids(tmp_path / "b")
    assert sids(tmp_path / "a") != sids(tmp_path / "c")


def test_blocks_keep_the_order_of_trajectories(tmp_path):
    frames = molecules(40)
    a, b = save(tmp_path / "a.traj", frames[:30]), save(tmp_path / "b.traj", frames[30:])
    out = tmp_path / "out"
    prepare([a, b], out, 12, 4, 8, split="blocks", quiet=True)
    for name, length in (("a.traj", 30), ("b.traj", 10)):
        train, val, test = (
            sorted(frame_of(s) for s in sids(out, split) if s.startswith(name))
            for split in ("train", "val", "test")
        )
        assert test == list(range(length - len(test), length))
        assert val == list(range(test[0] - len(val), test[0]))
        assert max(train) < val[0]
        assert len(test) == 8 * length // 40


def test_given_splits_are_kept(tmp_path):
    frames = molecules(30)
    parts = {"train": frames[:10], "val": frames[10:15], "test": frames[15:]}
    for name, part in parts.items():
        save(tmp_path / f"{name}.extxyz", part)
    given = {f"{name}_files": [tmp_path / f"{name}.extxyz"] for name in parts}
    out = tmp_path / "out"
    prepare(out=out, **given, quiet=True)
    for name, part in parts.items():
        assert sids(out, name) == [f"{name}.extxyz:{i}" for i in range(len(part))]
    prepare(out=tmp_path / "fewer", train=4, test=7, **given, quiet=True)
    assert [len(sids(tmp_path / "fewer", name)) for name in parts] == [4, 5, 7]
    prepare(
        [tmp_path / "train.extxyz"], tmp_path / "mixed", val=3, test_files=given["test_files"], quiet=True
    )
    assert [len(sids(tmp_path / "mixed", name)) for name in parts] == [7, 3, 15]


def test_missing_labels_on_request(tmp_path):
    frames = molecules(20)
    for atoms in frames[::2]:
        atoms.calc.results.pop("forces")
    path = save(tmp_path / "a.extxyz", frames)
    summary = prepare([path], tmp_path / "out", allow_missing=True, **SMALL)
    for data in records(tmp_path / "out"):
        assert torch.isnan(data.forces).all() == (frame_of(data.sid) % 2 == 0)
    assert summary["splits"]["train"]["with_forces"] < 10
    assert any("lack forces" in w for w in summary["warnings"])
    summary = prepare([path], tmp_path / "none", no_forces=True, **SMALL)
    assert all(torch.isnan(d.forces).all() for d in records(tmp_path / "none"))
    assert summary["splits"]["train"]["with_forces"] == 0
    assert summary["splits"]["train"]["with_energy"] == 10
    assert not any("lack forces" in w for w in summary["warnings"])


def test_an_energy_that_forces_do_not_belong_to_is_warned_of(tmp_path):
    frames = molecules(20)
    for number, atoms in enumerate(frames):
        atoms.calc.results["free_energy"] = atoms.get_potential_energy() + 0.15 * (number % 2)
    path = save(tmp_path / "a.extxyz", frames)
    warnings = prepare([path], tmp_path / "out", **SMALL)["warnings"]
    assert [w for w in warnings if "differ by up to 0.15 eV in 10 structures" in w and "--energy-key" in w]
    for name, options in {"free": {"energy_key": "free_energy"}, "alone": {"no_forces": True}}.items():
        warnings = prepare([path], tmp_path / name, **options, **SMALL)["warnings"]
        assert not [w for w in warnings if "free_energy" in w]
    for data in records(tmp_path / "free"):
        expected = frames[frame_of(data.sid)].calc.results["free_energy"]
        assert data.energy.item() == pytest.approx(expected, abs=1e-7)


def test_elements_that_training_never_sees_are_reported(tmp_path):
    save(tmp_path / "train.extxyz", molecules(10, names=("CH4",)))
    save(tmp_path / "test.extxyz", molecules(5, names=("CH3OH",)))
    save(tmp_path / "val.extxyz", molecules(5, 1, names=("CH4",)))
    summary = prepare(
        out=tmp_path / "out",
        train_files=[tmp_path / "train.extxyz"],
        val_files=[tmp_path / "val.extxyz"],
        test_files=[tmp_path / "test.extxyz"],
        quiet=True,
    )
    assert any(w.startswith("O in test but not in train") for w in summary["warnings"])


def test_finished_work_is_not_repeated_on_request(tmp_path, capsys):
    path = save(tmp_path / "a.extxyz", molecules(20))
    options = {**SMALL, "quiet": False}
    prepare([path], tmp_path / "out", reuse=True, **options)
    before = (tmp_path / "out/summary.json").stat().st_mtime_ns
    capsys.readouterr()
    again = prepare([path], tmp_path / "out", reuse=True, **options)
    assert "already done" in capsys.readouterr().out
    assert again["splits"]["train"]["structures"] == 10
    (tmp_path / "moved").mkdir()
    path = path.rename(tmp_path / "moved" / "a.extxyz")
    path.touch()  # as a fresh checkout does
    prepare([path], tmp_path / "out", reuse=True, **options)
    assert (tmp_path / "out/summary.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="already holds data"):
        prepare([path], tmp_path / "out", reuse=True, **{**options, "train": 9})
    save(path, molecules(20, seed=1))  # other contents
    with pytest.raises(UserError, match="already holds data"):
        prepare([path], tmp_path / "out", reuse=True, **options)


def test_a_data_set_with_its_splits_exchanged_is_another_one(tmp_path):
    first, second = (save(tmp_path / n / "data.extxyz", molecules(9, seed=k)) for k, n in enumerate("ab"))
    prepare(train_files=[first], test_files=[second], out=tmp_path / "out", reuse=True, quiet=True)
    with pytest.raises(UserError, match="already holds data"):
        prepare(train_files=[second], test_files=[first], out=tmp_path / "out", reuse=True, quiet=True)


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    path = save(tmp_path / "a.extxyz", molecules(20))
    monkeypatch.setattr(prepare_module, "_write_rest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare([path], tmp_path / "out", **SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.extxyz"]


def test_an_interrupted_replacement_keeps_the_old_data(tmp_path, monkeypatch):
    path = save(tmp_path / "a.extxyz", molecules(20))
    prepare([path], tmp_path / "out", **SMALL)
    old = sids(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_write_rest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare([path], tmp_path / "out", overwrite=True, seed=5, **SMALL)
    assert sids(tmp_path / "out") == old
    prepare([path], tmp_path / "out", overwrite=True, seed=5, **SMALL)
    assert sids(tmp_path / "out") != old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.extxyz", "out"]


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_conversion_leaves_no_data_set(tmp_path, kill):
    save(tmp_path / "a.extxyz", molecules(20))
    script = (
        "import time; from fairchem_piwsl.datasets import prepare as p\n"
        "p._write_rest = lambda *_: (print('writing', flush=True), time.sleep(60))\n"
        "p.prepare(['a.extxyz'], 'out', 10, 4, 6)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(kill)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "out").exists()
    left = list(tmp_path.glob(".out*"))
    assert bool(left) == (kill == signal.SIGKILL)
    prepare([tmp_path / "a.extxyz"], tmp_path / "out", **SMALL)  # also removes what was left
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.extxyz", "out"]


def test_command_line(tmp_path, monkeypatch, capsys):
    save(tmp_path / "a.extxyz.gz", molecules(20), format="extxyz")
    monkeypatch.chdir(tmp_path)
    command = ["prepare", "a.extxyz.gz", "--out", "run[a]", "--train", "10", "--val", "4", "--test", "6"]
    assert run_piwsl(command) == 0
    printed = capsys.readouterr().out
    for text in (
        "run[a] (eV",
        "H C O",
        "element_references",
        "stdev: 0.0433641",
        "src: run[a]/train/data.lmdb",
        "energy - references, std",
    ):
        assert text in printed
    assert "primary_metric" not in printed
    assert run_piwsl(command) == 2
    complaint = capsys.readouterr().err
    assert len(complaint.strip().splitlines()) == 1
    assert "run[a] already holds data" in complaint
    assert json.loads((tmp_path / "run[a]/summary.json").read_text())["arguments"]["train"] == 10
    assert run_piwsl([*command[:3], "alone@:100:", *command[4:], "--no-forces"]) == 0
    printed = capsys.readouterr().out
    assert "alone@:100: (eV" in printed  # no emoji
    assert "--data alone@:100: --evaluation_metrics.primary_metric=energy_rmse`" in printed
    assert "evaluation_metrics:\n  primary_metric: energy_rmse\n" in printed


def test_the_calculator_agrees_on_molecules_without_a_cell(tmp_path):
    """Trained on molecules in a cell, used on molecules as they are: one energy, one set of forces."""
    from fairchem.core.common.relaxation.ase_utils import OCPCalculator

    frames = molecules(20)
    out = tmp_path / "out"
    summary = prepare([save(tmp_path / "all.extxyz", frames)], out, **SMALL)
    pasted = yaml.safe_load(config_lines(out, summary))
    config = merge(make_config(tmp_path, tmp_path, batch_size=5, max_epochs=1), pasted)
    trainer = make_trainer(config, "ocp")
    trainer.train(disable_eval_tqdm=True)
    checkpoint = trainer.save(checkpoint_file="checkpoint.pt", training_state=False)
    calculator = OCPCalculator(checkpoint_path=checkpoint, cpu=True, seed=0)
    for data in records(out, "test")[:3]:
        batch = data_list_collater([data], otf_graph=True)
        expected = calculator.trainer.predict(batch, per_image=False, disable_tqdm=True)
        atoms = frames[frame_of(data.sid)].copy()
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(expected["energy"].item(), abs=1e-4)
        np.testing.assert_allclose(atoms.get_forces(), expected["forces"], atol=1e-4)


def test_a_linked_folder_is_replaced_and_the_link_stays(tmp_path):
    path = save(tmp_path / "a.extxyz", molecules(20))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    prepare([path], tmp_path / "out", **SMALL)
    old = sids(tmp_path / "elsewhere")
    prepare([path], tmp_path / "out", overwrite=True, seed=5, **SMALL)
    assert (tmp_path / "out").is_symlink()
    assert sids(tmp_path / "out") == sids(tmp_path / "elsewhere") != old
    block = yaml.safe_load((tmp_path / "out/dataset.yml").read_text())
    assert block["dataset"]["train"]["src"] == str(tmp_path / "out/train/data.lmdb")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.extxyz", "elsewhere", "out"]


@pytest.mark.parametrize("name", ["train/mine.txt", "val/more/mine.txt", "test/data.lmdb/mine.txt", "mine/x"])
def test_replacing_deletes_nothing_of_the_users(tmp_path, name):
    path = save(tmp_path / "a.extxyz", molecules(20))
    out = tmp_path / "out"
    prepare([path], out, **SMALL)
    if name.startswith("test/data.lmdb"):
        (out / "test/data.lmdb").unlink()
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    with pytest.raises(UserError, match="not from piwsl prepare, so it is not replaced"):
        prepare([path], out, overwrite=True, **SMALL)
    assert (out / name).read_text() == "mine"


def test_a_link_in_a_data_set_is_the_users(tmp_path):
    path = save(tmp_path / "a.extxyz", molecules(20))
    out = tmp_path / "out"
    prepare([path], out, **SMALL)
    (out / "train").rename(tmp_path / "big_disk")
    (out / "train").symlink_to(tmp_path / "big_disk")
    with pytest.raises(UserError, match="train, which is not from piwsl prepare"):
        prepare([path], out, overwrite=True, **SMALL)
    assert (tmp_path / "big_disk/data.lmdb").exists()


def test_energies_of_free_atoms_are_the_references(tmp_path, capsys):
    from ase import Atoms

    frames = molecules(20)
    energies = {"H": -13.6, "C": -1025.0, "O": -2035.0, "N": -1480.0}
    atoms = [Atoms(symbol) for symbol in energies]
    for atom, energy in zip(atoms, energies.values(), strict=True):
        atom.calc = SinglePointCalculator(atom, energy=energy / units.Hartree)
    save(tmp_path / "atoms.extxyz", atoms)
    path = save(tmp_path / "a.extxyz", molecules(20, factor=1 / units.Hartree))
    options = {"reference_files": [tmp_path / "atoms.extxyz"], "units": "Hartree", **SMALL, "quiet": False}
    summary = prepare([path], tmp_path / "out", **options)
    assert "Element references (eV, from --reference-file)" in capsys.readouterr().out
    assert summary["element_references_eV"] == pytest.approx({s: energies[s] for s in ("H", "C", "O")})
    file = np.load(tmp_path / "out/element_references.npz")["element_references"]
    assert file.dtype == np.float64
    assert [file[z] for z in (1, 6, 8)] == pytest.approx([energies[s] for s in ("H", "C", "O")])
    data = records(tmp_path / "out")[0]
    assert data.energy.item() == pytest.approx(frames[frame_of(data.sid)].get_potential_energy())


def test_a_disk_that_is_full_is_one_sentence(tmp_path):
    save(tmp_path / "a.extxyz", molecules(20))
    script = (
        "import resource; from fairchem_piwsl.datasets import prepare as p\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: p.prepare(['a.extxyz'], 'out', 10, 4, 6)\n"
        "except p.UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("--out "), done.stderr
    assert "out cannot be written" in done.stdout
    assert "free space" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.extxyz"]
