"""scripts/published_data.py: which published structures train, validate and test."""

from __future__ import annotations

import numpy as np
import published_data
import pytest
import rmd17_aspirin
from ase.io import read, write
from conftest import labelled_molecules

from fairchem_piwsl.datasets.read import read_labelled
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.units import KCAL_PER_MOL


def test_small_molecules_are_nested_and_apart_from_validation(tmp_path):
    structures, others = labelled_molecules(40), labelled_molecules(3, seed=1)
    for atoms in (*structures, *others):
        atoms.get_forces()  # calculated, so that they are written
    write(tmp_path / "small_mols_train_eV.extxyz", structures)
    write(tmp_path / "small_mols_test_eV.extxyz", others)
    places = {}
    for train in published_data.SMALL_MOLECULES:
        published_data.small_molecules(tmp_path, train, tmp_path / str(train))
        for split in ("train", "val", "test"):
            found = read_labelled(tmp_path / str(train) / split / "data.lmdb")
            places[train, split] = [where(structures, one.energy) for one in found]
    for smaller, larger in ((50, 100), (100, 200), (200, 400), (400, 900)):
        assert set(places[smaller, "train"]) < set(places[larger, "train"])
    sizes = [len(places[train, "train"]) for train in published_data.SMALL_MOLECULES]
    assert sizes == [2, 4, 8, 16, 36]  # of 40 as 50, 100, ... of 1,000
    assert places[900, "val"] == places[50, "val"] == [9, 19, 29, 39]
    assert not set(places[900, "train"]) & set(places[900, "val"])
    assert places[100, "test"] == [None] * 3


def test_rmd17_aspirin_has_a_data_set_of_its_own(tmp_path, monkeypatch):
    assert rmd17_aspirin.DATA.name not in published_data.jobs(tmp_path, tmp_path)
    files, energies = {}, {"train": np.arange(300.0), "test": 1000.0 + np.arange(7)}
    for name, values in energies.items():
        files[name] = tmp_path / f"{name}.npz"
        positions = np.random.default_rng(len(values)).normal(0, 0.05, (len(values), 4, 3))
        positions += [[0, 0, 0], [0, 0, 1.2], [0, 0.95, -0.6], [0, -0.95, -0.6]]
        apart = positions[:, :, None] - positions[:, None]  # forces along these turn nothing
        strength = np.random.default_rng(0).normal(0, 10, apart.shape[:3])
        forces = ((strength + strength.transpose(0, 2, 1))[..., None] * apart).sum(2)
        arrays = {"coords": positions, "energies": values, "forces": forces}
        np.savez(files[name], nuclear_charges=[6, 8, 1, 1], **arrays)
    monkeypatch.setattr(rmd17_aspirin, "DATA", tmp_path / "out")
    for _ in range(2):  # a second run goes on with what the first one wrote
        rmd17_aspirin.convert(files["train"], files["test"])
    for split, expected in (("train", range(100)), ("val", range(100, 200)), ("test", range(1000, 1007))):
        found = read_labelled(tmp_path / "out" / split / "data.lmdb")
        assert [round(one.energy / KCAL_PER_MOL) for one in found] == list(expected)
    with pytest.raises(UserError, match="out"):
        rmd17_aspirin.convert(files["test"], files["train"])  # other files are not taken for these


def where(structures, energy):
    """Index of the structure with this energy."""
    near = [
        i for i, atoms in enumerate(structures) if np.isclose(atoms.get_potential_energy(), energy, atol=1e-5)
    ]
    return near[0] if near else None


def test_every_data_set_of_the_recipes_has_a_job(tmp_path):
    from recipes.recipe_file import read_recipe

    used = set()
    for name in (
        "self_tuning",
        "hand_chosen",
        "map",
        "learning_curve",
        "sensitivity",
        "extrapolation",
        "ablation",
    ):
        recipe = read_recipe(published_data.ROOT / "scripts" / "paper" / f"{name}.yml")
        used |= {data for block in recipe.runs for data in block.data}
    assert used <= set(published_data.jobs(tmp_path, tmp_path))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no file rmd17_aspirin_train_01\.npz: give the folder"):
        published_data.rmd17(tmp_path, "aspirin", 50, tmp_path / "out")


def test_shipped_hot_structures_are_aspirin_and_spread_with_the_temperature():
    counts = {"train": 100, "val": 100, **{f"test_{kelvin}K": 150 for kelvin in (300, 600, 900, 1200)}}
    found = {name: read(published_data.HOT / f"{name}.extxyz.gz", ":") for name in counts}
    assert {name: len(frames) for name, frames in found.items()} == counts
    frames = [atoms for each in found.values() for atoms in each]
    assert {atoms.get_chemical_formula() for atoms in frames} == {"C9H8O4"}
    assert all(np.isfinite(atoms.get_forces()).all() for atoms in frames)
    assert len({round(atoms.get_potential_energy(), 6) for atoms in frames}) == sum(counts.values())
    tests = [found[f"test_{kelvin}K"] for kelvin in (300, 600, 900, 1200)]
    for quantity in (np.mean, np.std):
        rising = [quantity([atoms.get_potential_energy() for atoms in each]) for each in tests]
        assert rising == sorted(rising)
