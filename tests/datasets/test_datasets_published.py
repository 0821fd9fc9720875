"""The paper's data sets in their published layouts, made small."""

from __future__ import annotations

import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ase import units
from ase.build import molecule
from ase.io import write
from helpers_datasets import crystals, labelled, molecules, records, run_piwsl, sids

from fairchem_piwsl.datasets.published.paper_splits import PaperSplit, Request, choose_sizes
from fairchem_piwsl.datasets.published.plans import PAPER, prepare_published
from fairchem_piwsl.errors import UserError

KCAL = units.kcal / units.mol


def ethanol(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of distorted ethanol in kcal/mol."""
    frames = molecules(count, seed, names=("CH3CH2OH",))
    return {
        "z": frames[0].numbers.astype(np.uint8),
        "R": np.array([a.positions for a in frames]),
        "E": np.array([[a.get_potential_energy() / KCAL] for a in frames]),
        "F": np.array([a.get_forces() / KCAL for a in frames]),
    }


def write_sgdml(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, type="d", name=np.bytes_("ethanol"), theory="CCSD(T)", md5=np.bytes_("0"), **arrays)
    return path


def write_rmd17(path: Path, arrays: dict[str, np.ndarray], frames: np.ndarray) -> Path:
    """Rows `frames` of the arrays, as rMD17 has them; `old_indices` tells them apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        nuclear_charges=arrays["z"],
        coords=arrays["R"][frames],
        energies=arrays["E"][frames, 0],
        forces=arrays["F"][frames],
        old_indices=frames + 1000,
        old_energies=arrays["E"][frames, 0] - 400,
        old_forces=arrays["F"][frames],
    )
    return path


def write_ani1x(path: Path, names=("CH3OH", "H2O", "CH4", "C2H6"), each: int = 20) -> dict[str, list]:
    """An HDF5 file with the groups and levels of ANI-1x; every fifth structure lacks ccsd(t) and tz labels."""
    frames = {}
    with h5py.File(path, "w") as file:
        for k, name in enumerate(names):
            group = file.create_group(molecule(name).get_chemical_formula())
            these = molecules(each, k, names=(name,))
            frames[group.name.strip("/")] = these
            energies = np.array([a.get_potential_energy() for a in these]) / units.Hartree
            forces = np.array([a.get_forces() for a in these]) / units.Hartree
            missing = np.arange(each) % 5 == 0
            group["atomic_numbers"] = these[0].numbers.astype(np.uint8)
            group["coordinates"] = np.array([a.positions for a in these], dtype=np.float32)
            group["wb97x_dz.energy"] = energies
            group["wb97x_dz.forces"] = forces.astype(np.float32)
            group["wb97x_tz.energy"] = np.where(missing, np.nan, energies)
            group["wb97x_tz.forces"] = np.where(missing[:, None, None], np.nan, forces)
            group["ccsd(t)_cbs.energy"] = np.where(missing, np.nan, energies - 0.1)
    return frames


def write_xsf_folder(folder: Path, count: int, seed: int = 0) -> list:
    """Copper crystals as XSF with aenet's labels, `structure<i>.xsf`."""
    folder.mkdir(parents=True)
    frames = crystals(count, seed)
    for i, atoms in enumerate(frames):
        write(folder / "tmp.xsf", atoms)
        lines = (folder / "tmp.xsf").read_text().splitlines()
        rows = [
            "Cu " + " ".join(f"{x:.10f}" for x in (*p, *f))
            for p, f in zip(atoms.positions, atoms.get_forces(), strict=True)
        ]
        head = [f"# total energy = {atoms.get_potential_energy():.10f} eV", ""]
        text = "\n".join([*head, *lines[: -len(atoms)], *rows]) + "\n"
        (folder / f"structure{i}.xsf").write_text(text)
    (folder / "tmp.xsf").unlink()
    return frames


def test_ani1x(tmp_path):
    frames = write_ani1x(tmp_path / "ani1x-release.h5")
    out = tmp_path / "out"
    options = {"train": 10, "val": 5, "test": 20, "quiet": True}
    prepare_published("ani1x", [tmp_path / "ani1x-release.h5"], out, **options)
    found = [d for split in ("train", "val", "test") for d in records(out, split)]
    assert len(found) == 35
    for data in found:
        formula, row = data.sid.split(":")
        atoms = frames[formula][int(row)]
        assert data.energy.item() == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(data.forces, atoms.get_forces(), atol=1e-5)
        assert data.atomic_numbers.tolist() == atoms.numbers.tolist()


def test_levels_of_ani1x(tmp_path):
    path = tmp_path / "ani1x.h5"
    frames = write_ani1x(path)
    options = {"train": 10, "val": 10, "test": 44, "quiet": True}
    summary = prepare_published("ani1x", [path], tmp_path / "tz", level="wb97x_tz", **options)
    assert "16 structures have no wb97x_tz labels and were left out." in summary["notes"]
    rows = [int(s.split(":")[1]) for split in ("train", "val", "test") for s in sids(tmp_path / "tz", split)]
    assert len(rows) == 64
    assert all(row % 5 for row in rows)
    summary = prepare_published("ani1x", [path], tmp_path / "cc", level="ccsd(t)_cbs", **options)
    assert any("energies alone" in note for note in summary["notes"])
    for data in records(tmp_path / "cc"):
        formula, row = data.sid.split(":")
        expected = frames[formula][int(row)].get_potential_energy() - 0.1 * units.Hartree
        assert data.energy.item() == pytest.approx(expected, abs=1e-8)
        assert torch.isnan(data.forces).all()
    with pytest.raises(UserError, match=r"no level mp2; give --level ccsd\(t\)_cbs or wb97x_dz or wb97x_tz"):
        prepare_published("ani1x", [path], tmp_path / "mp2", level="mp2", **options)


@pytest.mark.parametrize("name", ["md22", "md17_ccsd_t"])
def test_sgdml_files(tmp_path, name):
    arrays = ethanol(60)
    path = write_sgdml(tmp_path / f"{name}_ethanol.npz", arrays)
    out = tmp_path / "out"
    summary = prepare_published(name, [path], out, train=12, val=10, quiet=True)
    assert summary["splits"]["test"]["structures"] == 24  # 40 % of the set
    assert "The set holds 60 structures" in summary["notes"][0]
    for data in records(out):
        row = int(data.sid.split(":")[1])
        assert data.energy.item() == pytest.approx(arrays["E"][row, 0] * KCAL, abs=1e-8)
        np.testing.assert_allclose(data.forces, arrays["F"][row] * KCAL, atol=1e-5)


def test_published_train_and_test_files_are_kept(tmp_path):
    write_sgdml(tmp_path / "aspirin_ccsd-train.npz", ethanol(30))
    write_sgdml(tmp_path / "aspirin_ccsd-test.npz", ethanol(15, 1))
    write_sgdml(tmp_path / "toluene_ccsd_t-train.npz", ethanol(30, 2))
    with pytest.raises(UserError, match="hold aspirin, toluene: choose one with --molecule"):
        prepare_published("md17_ccsd_t", [tmp_path], tmp_path / "out", train=10)
    summary = prepare_published(
        "md17_ccsd_t", [tmp_path], tmp_path / "out", train=10, molecule="aspirin", quiet=True
    )
    assert [summary["splits"][s]["structures"] for s in ("train", "val", "test")] == [10, 20, 15]
    assert sids(tmp_path / "out", "test") == [f"aspirin_ccsd-test.npz:{i}" for i in range(15)]
    assert sids(tmp_path / "out", "train") == [f"aspirin_ccsd-train.npz:{i}" for i in range(10)]
    assert any("validation set has 20" in note for note in summary["notes"])


def rmd17_folder(folder: Path) -> dict[str, np.ndarray]:
    """Full file of 200 frames, two published splits as index files and as npz files of 30 + 20."""
    arrays = ethanol(200)
    write_rmd17(folder / "npz_data/rmd17_ethanol.npz", arrays, np.arange(200))
    (folder / "splits").mkdir()
    for number in (1, 2):
        order = np.random.default_rng(number).permutation(200)
        parts = {"train": order[:30], "test": order[30:50]}
        for role, rows in parts.items():
            np.savetxt(folder / f"splits/index_{role}_{number:02d}.csv", rows, fmt="%d")
            write_rmd17(folder / f"pairs/rmd17_ethanol_{role}_{number:02d}.npz", arrays, rows)
            arrays[f"{role}{number}"] = rows
    return arrays


def md17_frames(out: Path, split: str, arrays: dict[str, np.ndarray]) -> list[int]:
    """Rows of the full file, recognised by their energies."""
    energies = arrays["E"][:, 0] * KCAL
    return [int(np.abs(energies - d.energy.item()).argmin()) for d in records(out, split)]


def test_rmd17_published_pairs(tmp_path):
    arrays = rmd17_folder(tmp_path)
    out = tmp_path / "out"
    summary = prepare_published("rmd17", [tmp_path / "pairs"], out, train=10, quiet=True)
    train, val, test = (md17_frames(out, split, arrays) for split in ("train", "val", "test"))
    assert train == arrays["train1"][:10].tolist()
    assert test == arrays["test1"].tolist()
    assert not {*val} & {*train, *test}
    assert len({*val}) == len(val)  # frames of split 02 that split 01 does not have, each once
    assert {*val} | {*train, *test} == {
        *(i for k in ("train1", "test1", "train2", "test2") for i in arrays[k])
    }
    assert any("all that is left, not 9000" in note for note in summary["notes"])
    prepare_published("rmd17", [tmp_path / "pairs"], tmp_path / "all", train=30, quiet=True)
    assert md17_frames(tmp_path / "all", "test", arrays) == test
    assert md17_frames(tmp_path / "all", "train", arrays)[:10] == train
    second = tmp_path / "second"
    prepare_published("rmd17", [tmp_path / "pairs"], second, train=10, published_split="2", quiet=True)
    assert md17_frames(second, "test", arrays) == arrays["test2"].tolist()
    seeded = tmp_path / "seeded"
    prepare_published("rmd17", [tmp_path / "pairs"], seeded, train=10, seed=1, quiet=True)
    assert md17_frames(seeded, "test", arrays) == test
    assert md17_frames(seeded, "train", arrays) != train
    pair = [tmp_path / f"pairs/rmd17_ethanol_{role}_01.npz" for role in ("train", "test")]
    with pytest.raises(UserError, match="leaves none for validation"):
        prepare_published("rmd17", pair, tmp_path / "none", train=30)
    with pytest.raises(UserError, match="holds 30 structures but --train asks for 31"):
        prepare_published("rmd17", pair, tmp_path / "none", train=31)


def test_rmd17_full_file(tmp_path):
    arrays = rmd17_folder(tmp_path)
    found = {}
    for train in (10, 40):
        out = tmp_path / f"out{train}"
        prepare_published("rmd17", [tmp_path / "npz_data"], out, train=train, val=20, quiet=True)
        found[train] = [md17_frames(out, split, arrays) for split in ("train", "val", "test")]
        assert [len(part) for part in found[train]] == [train, 20, 80]
    assert found[10][2] == found[40][2]
    assert found[40][0][:10] == found[10][0]
    out = tmp_path / "split"
    paths = [tmp_path / "npz_data", tmp_path / "splits"]
    prepare_published("rmd17", paths, out, train=10, published_split="02", quiet=True)
    assert md17_frames(out, "train", arrays) == arrays["train2"][:10].tolist()
    assert md17_frames(out, "test", arrays) == arrays["test2"].tolist()
    assert len(records(out, "val")) == 150
    prepare_published("rmd17", paths, out, train=10, published_split="02", quiet=True)  # already done
    np.savetxt(tmp_path / "splits/index_train_02.csv", arrays["train1"], fmt="%d")
    with pytest.raises(UserError, match="already holds data"):
        prepare_published("rmd17", paths, out, train=10, published_split="02", quiet=True)
    with pytest.raises(UserError, match="--published-split 07 is not among the files"):
        prepare_published("rmd17", paths, tmp_path / "none", published_split="07")


@pytest.mark.parametrize("name", ["tio2", "lmnto"])
def test_xsf_archives_and_folders_give_one_split(tmp_path, name):
    frames = write_xsf_folder(tmp_path / "dir_xsf", 30)
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "dir_xsf", arcname="dir_xsf")
    options = {"train": 10, "val": 5, "quiet": True}
    summary = prepare_published(name, [tmp_path / "set.tar.gz"], tmp_path / "a", **options)
    prepare_published(name, [tmp_path / "dir_xsf"], tmp_path / "b", **options)
    prepare_published(name, [tmp_path / "dir_xsf/*.xsf"], tmp_path / "c", **options)
    (tmp_path / "folder").mkdir()
    (tmp_path / "set.tar.gz").rename(tmp_path / "folder/set.tar.gz")
    prepare_published(name, [tmp_path / "folder"], tmp_path / "d", **options)
    assert summary["splits"]["test"]["structures"] == 12
    for split in ("train", "val", "test"):
        for other in "bcd":
            assert sids(tmp_path / "a", split) == sids(tmp_path / other, split)
    for data in records(tmp_path / "a"):
        atoms = frames[int(data.sid.removeprefix("structure").removesuffix(".xsf"))]
        assert data.energy.item() == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(data.forces, atoms.get_forces(), atol=1e-6)


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path):
    for k, name in enumerate("ab"):
        write_xsf_folder(tmp_path / "set" / name, 10, seed=k)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "set", arcname="set")
    expected = {f"{name}/structure{i}.xsf" for name in "ab" for i in range(10)}
    for path in (tmp_path / "set", tmp_path / "set.tar"):
        out = tmp_path / f"out{path.suffix}"
        prepare_published("tio2", [path], out, train=10, val=5, test=5, quiet=True)
        assert {sid for split in ("train", "val", "test") for sid in sids(out, split)} == expected


def test_finished_work_is_not_repeated(tmp_path, capsys):
    path = write_sgdml(tmp_path / "run[1]" / "md22_ethanol.npz", ethanol(60))
    out = tmp_path / "out"
    prepare_published("md22", [path], out, train=12, val=10)
    stamp = (out / "summary.json").stat().st_mtime_ns
    capsys.readouterr()
    prepare_published("md22", [path], out, train=12, val=10)
    assert "already done" in capsys.readouterr().out
    assert (out / "summary.json").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="already holds data"):
        prepare_published("md22", [path], out, train=13, val=10)
    prepare_published("md22", [path], out, train=13, val=10, overwrite=True, quiet=True)
    assert len(sids(out)) == 13
    (out / "val/data.lmdb").unlink()
    with pytest.raises(UserError, match="already holds data"):
        prepare_published("md22", [path], out, train=13, val=10)


@pytest.mark.parametrize(
    ("total", "train", "expected"),
    [
        (7815, 100, (100, 100, 1000)),
        (7815, None, (1000, 1000, 1000)),
        (2600, 1000, (1000, 600, 1000)),  # the paper's LMNTO: less validation, the test set as it is
        (1000, 100, (100, 100, 400)),
        (1000, None, (100, 100, 400)),
        (824, 400, (400, 95, 329)),
    ],
)
def test_sizes_of_the_paper_or_what_the_set_allows(total, train, expected):
    sizes = choose_sizes(PAPER["tio2"], total, Request("tio2", train))
    assert (sizes.train, sizes.val, sizes.test) == expected
    complete = total >= 7815
    assert bool(sizes.notes) != complete


def test_splits_of_the_paper():
    """B.1 as method.md has it."""
    assert {name: split.test for name, split in PAPER.items() if name not in ("md22", "md17_ccsd_t")} == {
        "ani1x": 10_000,
        "rmd17": 10_000,
        "tio2": 1_000,
        "lmnto": 1_000,
    }
    assert PAPER["rmd17"].validation(100) == 9_000
    assert PAPER["ani1x"].validation(50) == 100
    assert PAPER["ani1x"].validation(10_000) == 10_000


def test_sizes_that_do_not_fit(tmp_path):
    paper = PaperSplit(trainings=(100, 1000), test=1000)
    with pytest.raises(UserError, match="The set holds 1000 structures, of which 400 are for the test"):
        choose_sizes(paper, 1000, Request("tio2", 1000))
    with pytest.raises(UserError, match="fewer than the paper's smallest split needs"):
        choose_sizes(paper, 50, Request("tio2"))


def test_wrong_files_and_options(tmp_path):
    def refused(match, name, *paths, **options):
        with pytest.raises(UserError, match=match) as error:
            prepare_published(name, paths, tmp_path / "out", **options)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

    refused("There is no data set qm9", "qm9", tmp_path)
    refused("nothing.npz does not exist", "md22", tmp_path / "nothing.npz")
    refused("has no .npz files", "md22", tmp_path)
    refused("holds no .xsf or .tar.gz files", "tio2", tmp_path)
    np.savez(tmp_path / "md22_odd.npz", a=1)
    refused("has the arrays a but not", "md22", tmp_path)
    arrays = ethanol(60)
    write_sgdml(tmp_path / "md22_odd.npz", {**arrays, "F": arrays["F"][:5]})
    refused("which do not belong together", "md22", tmp_path)
    (tmp_path / "md22_odd.npz").write_bytes(b"PK cut")
    refused("md22_odd.npz cannot be read", "md22", tmp_path)
    (tmp_path / "a.h5").write_bytes(b"cut")
    refused("a.h5 cannot be read", "ani1x", tmp_path / "a.h5")
    (tmp_path / "a.tar.gz").write_bytes(b"cut")
    refused("a.tar.gz cannot be read", "lmnto", tmp_path / "a.tar.gz")
    for unit in ("kcal/mol", "eV"):  # of labels that are in the other one: none of the options tells it
        factor = KCAL if unit == "kcal/mol" else 1 / KCAL
        labels = {name: arrays[name] * factor for name in "EF"}
        np.savez(tmp_path / "md22_odd.npz", e_unit=unit, r_unit="Ang", **{**arrays, **labels})
        refused(f"do not fit {unit} .* as e_unit and r_unit, or", "md22", tmp_path, train=40, val=10, test=10)
    with h5py.File(tmp_path / "spice.h5", "w") as file:
        file["aspirin/conformations"] = np.zeros((1, 2, 3))
    refused("no level wb97x_dz; give ANI-1x's file as published", "ani1x", tmp_path / "spice.h5")
    refused("--level has no meaning for tio2", "tio2", tmp_path, level="wb97x_dz")
    refused("--train 0 leaves nothing to train on", "tio2", tmp_path, train=0)


@pytest.mark.parametrize("content", [b"# total energy = -1 eV\n\nCRYSTAL\nPRIMVEC\n1 0 0\n", b"# \xe5\n"])
@pytest.mark.parametrize("given", [".", "*.xsf"])
def test_a_broken_xsf_file_is_named(tmp_path, given, content):
    write_xsf_folder(tmp_path / "x", 20)
    (tmp_path / "x/structure3.xsf").write_bytes(content)
    with pytest.raises(UserError, match=r"/x/structure3\.xsf\b(?!/)"):
        prepare_published("tio2", [tmp_path / "x" / given], tmp_path / "out", train=10, val=2, quiet=True)
    assert not (tmp_path / "out").exists()


def test_labelled_helper_is_consistent():
    """The labels that these tests trust: forces are minus the gradient of the energy."""
    atoms = molecules(1)[0]
    moved = atoms.copy()
    moved.positions[0, 0] += 1e-4
    slope = (labelled(moved).get_potential_energy() - atoms.get_potential_energy()) / 1e-4
    assert -slope == pytest.approx(atoms.get_forces()[0, 0], abs=1e-2)


def test_command_line(tmp_path, monkeypatch, capsys):
    write_sgdml(tmp_path / "md22_ethanol.npz", ethanol(60))
    monkeypatch.chdir(tmp_path)
    command = ["prepare", "md22", "md22_ethanol.npz", "--out", "out", "--train", "10"]
    assert run_piwsl(command) == 0
    assert "note: The set holds 60 structures, too few for a test set of 1000" in capsys.readouterr().out
    assert run_piwsl(command) == 0
    assert "already done" in capsys.readouterr().out


def test_options_of_the_other_form_are_refused(tmp_path, capsys):
    for arguments, option in (
        (["md22", "x.npz", "--no-forces"], "--no-forces"),
        (["rmd17", "x.npz", "--split", "blocks"], "--split"),
        (["x.extxyz", "--molecule", "aspirin"], "--molecule"),
    ):
        assert run_piwsl(["prepare", *arguments, "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.startswith(f"piwsl: {option} cannot be used here")
