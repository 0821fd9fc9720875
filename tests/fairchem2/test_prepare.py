"""`piwsl prepare --format aselmdb`: what fairchem 2 makes of the files and of the pasted config lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ase.db
import ase.io
import helpers_fairchem2 as helpers
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from fairchem.core.units.mlip_unit.mlip_unit import compute_loss, mt_collater_adapter
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fairchem_piwsl import cli
from fairchem_piwsl.datasets.prepare import prepare
from fairchem_piwsl.datasets.read import read_labelled


def labelled(atoms: Atoms, **without: bool) -> Atoms:
    """The structure with its labels as a file holds them, some of them left out."""
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(apply_constraint=False)}
    atoms.calc = SinglePointCalculator(atoms, **{k: v for k, v in results.items() if k not in without})
    return atoms


def dataset(out: Path, split: str = "train"):
    """The data set of a split, as the config lines of `dataset.yml` make it."""
    lines = OmegaConf.create(yaml.safe_load((out / "dataset.yml").read_text()))
    return instantiate(lines[f"{split}_dataset"]), lines.tasks


def in_order(data) -> list:
    """Records in the order of the file; fairchem shuffles them."""
    [inner] = data.datasets
    return [data[int(i)] for i in np.argsort(inner.indices)]


@pytest.fixture
def partly_labelled(tmp_path: Path) -> tuple[Path, list[Atoms]]:
    """A set in which labels of some structures are missing, some have a charge, and an atom is fixed."""
    frames = helpers.structures(12)
    for number, atoms in enumerate(frames):
        labelled(atoms, **{"forces": True} if number == 1 else {"energy": True} if number == 2 else {})
        if number == 3:
            forces = atoms.calc.results["forces"].copy()
            forces[0] = np.nan
            atoms.calc.results["forces"] = forces
    frames[4].info |= {"charge": -1, "spin": 2}
    frames[5].set_constraint(FixAtoms([0]))
    out = tmp_path / "set of-mine"
    ase.io.write(tmp_path / "train.extxyz", frames)
    ase.io.write(tmp_path / "val.traj", [labelled(a) for a in helpers.structures(3, seed=1)])
    prepare(
        train_files=[tmp_path / "train.extxyz"],
        val_files=[tmp_path / "val.traj"],
        out=out,
        format="aselmdb",
        allow_missing=True,
        quiet=True,
    )
    return out, frames


def test_records_have_labels_states_and_fixed_atoms(partly_labelled: tuple[Path, list[Atoms]]) -> None:
    out, frames = partly_labelled
    records = in_order(dataset(out)[0])
    for number, (record, atoms) in enumerate(zip(records, frames, strict=True)):
        torch.testing.assert_close(record.pos.double().numpy(), atoms.positions, rtol=0, atol=2e-6)
        assert record.dataset == "set_of_mine"
        assert record.pbc.any() == atoms.pbc.any()
        energy, forces = atoms.calc.results.get("energy"), atoms.calc.results.get("forces")
        assert record.energy.item() == (pytest.approx(energy, abs=1e-5) if energy is not None else np.inf)
        if forces is None:
            assert record.forces.isposinf().all()
        else:
            known = np.isfinite(forces)
            np.testing.assert_allclose(record.forces.numpy()[known], forces[known], atol=1e-5)
            assert record.forces[~torch.as_tensor(known)].isposinf().all()
        assert (record.charge.item(), record.spin.item()) == ((-1, 2) if number == 4 else (0, 0))
        assert record.fixed.tolist() == [int(number == 5 and i == 0) for i in range(len(atoms))]


def test_missing_labels_are_left_out_of_the_loss(partly_labelled: tuple[Path, list[Atoms]]) -> None:
    """The losses of fairchem 2 on one batch are the means over what is labelled, after references and scale."""
    helpers.start_process_group()
    out, frames = partly_labelled
    data, lines = dataset(out)
    tasks = [instantiate(task) for task in lines]
    batch = mt_collater_adapter(tasks)(in_order(data))
    batch.batch_full, batch.atomic_numbers_full = batch.batch, batch.atomic_numbers
    predictions = {
        "energy": {"energy": torch.zeros(len(frames), requires_grad=True)},
        "forces": {"forces": torch.zeros(len(batch.pos), 3, requires_grad=True)},
    }
    found = {name: float(value) for name, value in compute_loss(tasks, predictions, batch).items()}
    summary = json.loads((out / "summary.json").read_text())
    refs, rmsd = summary["element_references_eV"], summary["force_scale_eV_A"]
    energies = [
        abs(a.calc.results["energy"] - sum(refs[s] for s in a.symbols)) / rmsd
        for a in frames
        if "energy" in a.calc.results
    ]
    free = [np.isin(np.arange(len(a)), [0] if a.constraints else [], invert=True) for a in frames]
    rows = [
        a.calc.results["forces"][f] for a, f in zip(frames, free, strict=True) if "forces" in a.calc.results
    ]
    norms = np.linalg.norm(np.concatenate(rows), axis=1) / rmsd
    assert found["energy"] == pytest.approx(np.mean(energies), rel=1e-4)
    assert found["forces"] == pytest.approx(30 * np.mean(norms[np.isfinite(norms)]), rel=1e-4)


def test_the_lines_train_with_every_label_missing_somewhere(
    partly_labelled: tuple[Path, list[Atoms]],
) -> None:
    out, _ = partly_labelled
    data, lines = dataset(out)
    tasks = [instantiate(task) for task in lines]
    collate = mt_collater_adapter(tasks)
    records = in_order(data)
    batches = [collate(records[i : i + 4]) for i in range(0, 12, 4)] + [collate(records[1:2])]
    unit = helpers.unit(helpers.model(), tasks=tasks)
    before = helpers.parameters(unit)
    helpers.fit(unit, batches, [])
    after = helpers.parameters(unit)
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_references_reach_elements_that_only_validation_has(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "train.extxyz", [labelled(a) for a in helpers.structures(4)])
    gold = fcc111("Au", (1, 1, 3))
    gold.calc = EMT()
    ase.io.write(tmp_path / "val.extxyz", [labelled(gold)])
    files = {f"{split}_files": [tmp_path / f"{split}.extxyz"] for split in ("train", "val")}
    prepare(**files, out=tmp_path / "set", format="aselmdb", quiet=True)
    data, [task, _] = dataset(tmp_path / "set", "val")
    batch = mt_collater_adapter([instantiate(task)])(in_order(data))
    batch.batch_full, batch.atomic_numbers_full = batch.batch, batch.atomic_numbers
    referenced = instantiate(task).element_references.apply_refs(batch, batch.energy)
    torch.testing.assert_close(referenced, batch.energy.double())


def test_ase_reads_the_rows_in_the_order_of_the_draw(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "all.extxyz", [labelled(a) for a in helpers.structures(30)])
    options = dict(out=tmp_path / "set", val=5, test=5, seed=3, quiet=True)
    prepare([tmp_path / "all.extxyz"], format="aselmdb", train=20, **options)
    with ase.db.connect(tmp_path / "set/train/data.aselmdb", readonly=True) as database:
        rows = list(database.select())
    assert [row.id for row in rows] == list(range(1, 21))
    own = read_labelled(tmp_path / "set/train/data.aselmdb")
    assert [str(row.formula) for row in rows] == [item.formula for item in own]
    natoms = np.load(tmp_path / "set/train/metadata.npz")["natoms"]
    assert natoms.tolist() == [row.natoms for row in rows]
    assert [row.energy for row in rows] == [item.energy for item in own]
    sources = [row.data["sid"] for row in rows]
    options["out"] = tmp_path / "smaller"
    prepare([tmp_path / "all.extxyz"], format="aselmdb", train=8, **options)
    with ase.db.connect(tmp_path / "smaller/train/data.aselmdb", readonly=True) as database:
        assert [row.data["sid"] for row in database.select()] == sources[:8]


def test_slabs_get_a_full_cell_and_molecules_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    slabs = [fcc111("Cu", (1, 1, 3)) for _ in range(4)]
    for slab in slabs:
        assert slab.cell.rank == 2
        slab.positions += rng.normal(scale=0.05, size=slab.positions.shape)
        slab.calc = EMT()
    frames = [labelled(a) for a in [*slabs, *helpers.structures(2)]]
    ase.io.write(tmp_path / "all.extxyz", frames)
    options = dict(out=tmp_path / "set", format="aselmdb", val=0, test=0, quiet=True)
    prepare(train_files=[tmp_path / "all.extxyz"], **options)
    records = in_order(dataset(tmp_path / "set")[0])
    for record, atoms in zip(records, frames, strict=True):
        assert record.pbc.flatten().tolist() == atoms.pbc.tolist()
        assert (torch.linalg.det(record.cell)[0] > 100) == atoms.pbc.any()
        moved = torch.as_tensor(atoms.positions).diff(dim=0) - record.pos.double().diff(dim=0)
        if not atoms.pbc.any():
            torch.testing.assert_close(moved, torch.zeros_like(moved), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("good.extxyz", "--format lmdb is for fairchem-core 1.10.0 and needs it, and 2"),
        ("good.extxyz --format npz", "--format npz: not known; choose one of lmdb, aselmdb"),
        ("odd.extxyz --format aselmdb", "its spin 0.5 is no integer"),
        ("ani1x ani.h5 --format aselmdb", "pip install h5py"),
    ],
)
def test_refusals(arguments: str, message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    frames = [labelled(a) for a in helpers.structures(12)]
    ase.io.write("good.extxyz", frames)
    frames[3].info["spin"] = 0.5
    ase.io.write("odd.extxyz", frames)
    Path("ani.h5").write_bytes(b"something")
    sizes = "" if arguments.startswith("ani1x") else "--train 8 --val 2 --test 2"
    monkeypatch.setattr("sys.argv", ["piwsl", "prepare", *arguments.split(), "--out", "out", *sizes.split()])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    sentence = capsys.readouterr().err
    assert message in sentence
    assert sentence.count("\n") == 1
    assert not Path("out").exists()
