"""Reading of labelled structures: all formats, slices, and nothing that a file says is executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from ase import units
from ase.constraints import FixAtoms
from fairchem.core.datasets import LmdbDataset
from helpers_datasets import crystals, molecules, save
from test_datasets_published import ethanol, write_sgdml
from torch.utils.data import DataLoader

from fairchem_piwsl.datasets import lmdb_checks, readers
from fairchem_piwsl.datasets.lmdb_checks import number_of_structures, unpickle
from fairchem_piwsl.datasets.prepare import prepare
from fairchem_piwsl.datasets.read import read_labelled, read_structure
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled, boxed, fixed_atoms, to_batch, to_data


class Mischief:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def write_lmdb(path: Path, values: list[bytes]) -> Path:
    with (
        lmdb.open(str(path), subdir=False, map_size=2**24, lock=False) as file,
        file.begin(write=True) as write,
    ):
        for key, value in enumerate(values):
            write.put(str(key).encode(), value)
        write.put(b"length", pickle.dumps(len(values)))
    return path


def test_every_format_gives_the_same_labels(tmp_path):
    frames = molecules(20, names=("CH3OH",))
    path = save(tmp_path / "a.extxyz", frames)
    prepare([path], tmp_path / "out", 10, 4, 6, quiet=True)
    from_lmdb = {s.source.rsplit(":", 1)[1]: s for s in read_labelled(tmp_path / "out" / "train")}
    assert len(from_lmdb) == 10
    for s in read_labelled(tmp_path / "out" / "train" / "data.lmdb"):
        assert s.energy == pytest.approx(from_lmdb[s.source.rsplit(":", 1)[1]].energy)
    for s, atoms in zip(read_labelled(path), frames, strict=True):
        assert s.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        np.testing.assert_allclose(s.forces, atoms.get_forces(), atol=1e-6)
        assert s.atoms.calc is None


def test_atoms_that_are_held_stay_so_in_every_format(tmp_path):
    frames = molecules(12, names=("CH3OH",))
    for atoms in frames:
        atoms.set_constraint(FixAtoms([0, 3]))
    prepare([save(tmp_path / "a.traj", frames)], tmp_path / "out", 10, 1, 1, quiet=True)
    for path in ("a.traj", "out/train"):
        for item in read_labelled(tmp_path / path):
            assert np.flatnonzero(fixed_atoms(item.atoms)).tolist() == [0, 3]


def test_slices_and_limits(tmp_path):
    path = save(tmp_path / "a.extxyz", molecules(20))
    prepare([path], tmp_path / "out", 10, 4, 6, quiet=True)
    npz = write_sgdml(tmp_path / "a.npz", ethanol(20))
    for data, count in (
        (path, 20),
        (tmp_path / "out/train/data.lmdb", 10),
        (tmp_path / "out/train", 10),
        (npz, 20),
    ):
        energies = [s.energy for s in read_labelled(data)]
        assert len(energies) == count
        for text in ("::3", "2:7", "-1:", "::-2", "4", "-1"):
            expected = energies[int(text)] if ":" not in text else energies[slice(*_parts(text))]
            found = [s.energy for s in read_labelled(f"{data}@{text}")]
            assert found == pytest.approx(np.atleast_1d(expected)), (data, text)
        assert [s.energy for s in read_labelled(f"{data}@1:", limit=3)] == energies[1:4]
        assert [s.energy for s in read_labelled(data, limit=3)] == energies[:3]
    np.testing.assert_allclose(read_structure(path, 3).positions, molecules(20)[3].positions, atol=1e-7)
    with pytest.raises(UserError, match="there is no number 50; choose another"):
        read_structure(path, 50)
    with pytest.raises(UserError, match="@::0 is no slice; write start:stop:step"):
        read_labelled(f"{path}@::0")
    with pytest.raises(UserError, match="is empty"):
        read_labelled(f"{path}@30:")


def test_only_what_is_asked_for_is_parsed(tmp_path, monkeypatch):
    frames = molecules(20)
    path = save(tmp_path / "a.extxyz", frames)
    for kind in ("lmdb", "aselmdb"):
        prepare([path], tmp_path / kind, 14, 3, 3, format=kind, quiet=True)
    parsed = []
    for module, name in ((lmdb_checks, "_structure"), (readers, "to_structure")):
        monkeypatch.setattr(
            module, name, lambda *given, read=getattr(module, name): parsed.append(given) or read(*given)
        )
    for data in (path, tmp_path / "lmdb/train", tmp_path / "aselmdb/train"):
        for read, count in (
            (lambda data=data: read_labelled(data, limit=5), 5),
            (lambda data=data: read_labelled(f"{data}@2:6"), 4),
            (lambda data=data: read_structure(data, 0), 1),
            (lambda data=data: read_structure(f"{data}@:3"), 1),
        ):
            parsed.clear()
            read()
            assert len(parsed) == count
    frames[3].positions[0] = np.nan
    save(path, frames)
    assert len(read_structure(path, 4)) == len(frames[4])  # whatever is wrong with others
    with pytest.raises(UserError, match=r"a\.extxyz:3 has positions or labels that are not finite"):
        read_structure(path, 3)


def _parts(text: str) -> list[int | None]:
    return [int(part) if part else None for part in text.split(":")]


def test_npz_files_are_converted(tmp_path):
    arrays = ethanol(5)
    kcal = read_labelled(write_sgdml(tmp_path / "kcal.npz", arrays))
    factor = units.kcal / units.mol / units.Hartree
    other = arrays | {
        "E": arrays["E"] * factor,
        "F": arrays["F"] * factor * units.Bohr,
        "R": arrays["R"] / units.Bohr,
    }
    hartree = read_labelled(
        write_sgdml(tmp_path / "hartree.npz", other | {"e_unit": "Hartree", "r_unit": "Bohr"})
    )
    for a, b in zip(kcal, hartree, strict=True):
        assert a.energy == pytest.approx(b.energy)
        np.testing.assert_allclose(a.forces, b.forces, atol=1e-9)
        np.testing.assert_allclose(a.atoms.positions, b.atoms.positions)


def test_records_execute_nothing(tmp_path):
    witness = tmp_path / "executed"
    good = pickle.dumps(to_data(Labelled(molecules(1)[0], -1.0, np.ones((6, 3)), "a:0")), protocol=4)
    path = write_lmdb(tmp_path / "bad.lmdb", [good, pickle.dumps(Mischief(witness))])
    assert len(read_labelled(path, limit=1)) == 1
    with pytest.raises(UserError, match=r"structure 1 is no PyG record.*pathlib"):
        read_labelled(path)
    # a tensor whose bytes are a pickle in turn
    with pytest.raises(pickle.UnpicklingError):
        unpickle(pickle.dumps(_Nested(witness)))
    length = tmp_path / "length.lmdb"
    with lmdb.open(str(length), subdir=False, lock=False) as file, file.begin(write=True) as write:
        write.put(b"length", pickle.dumps(Mischief(witness)))
    with pytest.raises(pickle.UnpicklingError, match="which no record needs"):
        number_of_structures(length)
    assert not witness.exists()


class _Nested:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        import io

        file = io.BytesIO()
        torch.save(Mischief(self.path), file)
        return (torch.storage._load_from_bytes, (file.getvalue(),))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_records_of_every_pickle_protocol(protocol):
    data = to_data(Labelled(crystals(1)[0], -1.0, np.ones((4, 3)), "a:0"))
    data.extra = np.arange(3.0)
    data.number = np.float64(2)
    again = unpickle(pickle.dumps(data, protocol=protocol))
    for key, value in data.to_dict().items():
        assert np.array_equal(np.asarray(again[key]), np.asarray(value)), key


def test_a_truncated_file_is_named(tmp_path):
    prepare([save(tmp_path / "a.extxyz", molecules(20))], tmp_path / "out", 10, 4, 6, quiet=True)
    path = tmp_path / "out/train/data.lmdb"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(UserError, match=r"data\.lmdb: not a readable LMDB \(.*cut off.*\); prepare it again"):
        read_labelled(path)


def test_one_box_for_records_and_predictions():
    for atoms in (molecules(1)[0], crystals(1)[0]):
        positions, cell = boxed(atoms)
        record = to_data(Labelled(atoms, 0.0, np.zeros((len(atoms), 3))))
        batch = to_batch([atoms], torch.float64)
        np.testing.assert_allclose(record.pos, positions, atol=1e-5)
        np.testing.assert_allclose(batch.pos, positions)
        np.testing.assert_allclose(batch.cell[0], cell, rtol=1e-6)
        assert torch.equal(record.pbc, batch.pbc)
    assert to_batch([molecules(1)[0], crystals(1)[0]], torch.float32).pbc.all()  # upstream cannot mix


def test_one_file_serves_two_splits_and_a_loader_worker(tmp_path):
    """From lmdb 2 on a file may be open only once in a process."""
    prepare([save(tmp_path / "a.extxyz", molecules(20))], tmp_path / "out", 10, 4, 6, quiet=True)
    source = {"src": str(tmp_path / "out/train/data.lmdb")}
    for _ in range(3):  # data sets are let go of while the next ones are open, as a trainer does
        train, val = LmdbDataset(source), LmdbDataset(source)
        for dataset in (train, val, train):
            assert dataset[0].sid  # read here before the worker is forked
            loader = DataLoader(dataset, num_workers=1, shuffle=True, collate_fn=lambda batch: batch[0].sid)
            assert len(set(loader)) == 10
