"""ASE's LMDB for fairchem 2, written and read where fairchem 1.10 is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.constraints import FixAtoms
from ase.io import write
from helpers_datasets import crystals, molecules

from fairchem_piwsl.datasets.ase_labels import LabelOptions, to_structure
from fairchem_piwsl.datasets.ase_lmdb import AseLmdbWriter, row
from fairchem_piwsl.datasets.prepare import prepare
from fairchem_piwsl.datasets.read import read_labelled
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled, no_forces


def structures() -> list[Labelled]:
    """Molecules and crystals; labels of the first two are missing, the third is an anion with a fixed atom."""
    frames = [*molecules(4), *crystals(2)]
    frames[2].info |= {"charge": -1, "spin": 2}
    frames[2].set_constraint(FixAtoms([1]))
    found = [to_structure(atoms, f"frames:{i}", LabelOptions()) for i, atoms in enumerate(frames)]
    found[0] = Labelled(found[0].atoms, np.nan, found[0].forces, "frames:0")
    found[1] = Labelled(found[1].atoms, found[1].energy, no_forces(len(found[1])), "frames:1")
    return found


def written(folder: Path) -> Path:
    """A file whose rows are written backwards."""
    with AseLmdbWriter(folder) as writer:
        for key, structure in reversed(list(enumerate(structures()))):
            writer.write(key, structure)
    return folder / "data.aselmdb"


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    found = read_labelled(written(tmp_path / "set"))
    for mine, other in zip(found, structures(), strict=True):
        assert np.array_equal(mine.atoms.numbers, other.atoms.numbers)
        assert np.array_equal(mine.atoms.positions, other.atoms.positions)
        assert np.array_equal(mine.atoms.cell.array, other.atoms.cell.array)
        assert np.array_equal(mine.atoms.pbc, other.atoms.pbc)
        np.testing.assert_equal(mine.energy, other.energy)
        np.testing.assert_equal(mine.forces, other.forces)
    assert (found[2].atoms.info["charge"], found[2].atoms.info["spin"]) == (-1, 2)
    assert found[2].atoms.constraints[0].index.tolist() == [1]
    assert np.load(tmp_path / "set/metadata.npz")["natoms"].tolist() == [len(item) for item in found]


def test_slices_limits_and_folders(tmp_path: Path) -> None:
    path = written(tmp_path / "set")
    everything = [item.formula for item in read_labelled(path)]
    assert [item.formula for item in read_labelled(f"{path}@1::2")] == everything[1::2]
    assert [item.formula for item in read_labelled(path.parent, limit=3)] == everything[:3]
    assert [item.formula for item in read_labelled(f"{path.parent}@-2:")] == everything[-2:]


def test_missing_labels_are_infinite(tmp_path: Path) -> None:
    first, second = (row(structure) for structure in structures()[:2])
    assert np.isposinf(first["energy"])
    assert np.isfinite(first["forces"]).all()
    assert np.isfinite(second["energy"])
    assert np.isposinf(second["forces"]).all()


@pytest.mark.parametrize("value", [0.5, np.nan, "high", [1, 2]])
def test_a_state_that_is_no_integer_is_refused(value: object) -> None:
    structure = structures()[3]
    structure.atoms.info["spin"] = value
    with pytest.raises(UserError, match=r"frames:3: its spin .* is no integer"):
        row(structure)


@pytest.mark.parametrize("name", ["charge", "total_charge"])
def test_states_tell_structures_apart_where_they_are_kept(tmp_path: Path, name: str) -> None:
    paths = []
    for charge in (0, 1):
        frames = molecules(30, names=("CH3OH",))
        for atoms in frames:
            atoms.info[name] = charge
            atoms.calc.results["energy"] += 8 * charge
        paths.append(tmp_path / f"{charge}.extxyz")
        write(paths[-1], frames)
    options = dict(train_files=paths[:1], test_files=paths[1:], quiet=True)
    assert not prepare(out=tmp_path / "new", format="aselmdb", **options)["warnings"]
    with pytest.raises(UserError, match="30 duplicates across splits"):
        prepare(out=tmp_path / "old", **options)
    warnings = prepare(out=tmp_path / "old", allow_duplicates=True, **options)["warnings"]
    assert any("Charge or spin differ" in warning for warning in warnings)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "set")
    whole = path.read_bytes()
    for size, message in ((100, "is cut off after 100 bytes"), (9000, "row 1 is missing")):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf"data\.aselmdb.* cannot be read \(.*{message}"):
            read_labelled(path)


def test_a_data_set_of_fairchem_2_can_be_prepared_again_for_another(tmp_path: Path, capsys) -> None:
    """Both formats have the same structures in the same order; one folder replaces the other."""
    frames = molecules(40)
    write(tmp_path / "all.extxyz", frames)
    options = dict(train=20, val=5, test=5, seed=1)
    prepare([tmp_path / "all.extxyz"], tmp_path / "new", format="aselmdb", **options)
    assert "tasks: ${tasks}" in capsys.readouterr().out
    prepare([tmp_path / "all.extxyz"], tmp_path / "old", quiet=True, **options)
    for split in ("train", "val", "test"):
        new = read_labelled(tmp_path / "new" / split)
        for mine, other in zip(new, read_labelled(tmp_path / "old" / split), strict=True):
            assert mine.energy == other.energy
            np.testing.assert_allclose(mine.forces, other.forces, rtol=1e-6)
    prepare([tmp_path / "all.extxyz"], tmp_path / "new", overwrite=True, quiet=True, **options)
    assert not list(tmp_path.glob("new/**/*.aselmdb"))


def test_energies_that_single_precision_rounds_are_told_of(tmp_path: Path) -> None:
    frames = molecules(10, zero={1: 0.0, 6: -1025.57, 8: -20356.6})
    write(tmp_path / "all.extxyz", frames)
    options = dict(train=8, val=0, test=0, trust_units=True, quiet=True)
    notes = prepare([tmp_path / "all.extxyz"], tmp_path / "new", format="aselmdb", **options)["notes"]
    assert any("steps of 2 meV in single precision" in note for note in notes)
    notes = prepare([tmp_path / "all.extxyz"], tmp_path / "old", **options)["notes"]
    assert not any("single precision" in note for note in notes)
