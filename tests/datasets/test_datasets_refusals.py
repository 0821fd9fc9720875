"""Bad input: one sentence that names the file, and nothing is written."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.trajectory import Trajectory
from helpers_datasets import FREE_ATOMS_EV, crystals, labelled, molecules, records, save
from torch import set_flush_denormal

from fairchem_piwsl.datasets.checks import duplicates
from fairchem_piwsl.datasets.prepare import prepare
from fairchem_piwsl.datasets.records import Records
from fairchem_piwsl.errors import UserError

SMALL = {"train": 10, "val": 4, "test": 6, "quiet": True}
KCAL = units.kcal / units.mol


def relabel(atoms, energy=None, forces=None):
    results = dict(atoms.calc.results)
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=results["energy"] if energy is None else energy,
        forces=results["forces"] if forces is None else forces,
    )


def refused(tmp_path, match, *files, **options):
    """`prepare` raises one sentence and leaves the folder as it was."""
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(UserError, match=match) as error:
        prepare(files, tmp_path / "out", **{**SMALL, **options})
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("what", ["energy", "forces"])
def test_missing_labels(tmp_path, what):
    frames = molecules(20)
    frames[7].calc.results.pop(what)
    path = save(tmp_path / "a.traj", frames)
    refused(tmp_path, rf"a\.traj:7 has no {what}.*\(--allow-missing", path)


def test_the_name_of_an_energy_that_is_found_is_given(tmp_path):
    frames = molecules(20)
    for atoms in frames:
        atoms.calc.results["free_energy"] = atoms.calc.results.pop("energy")
    path = save(tmp_path / "a.traj", frames)
    refused(tmp_path, r"has no energy.*\(perhaps --energy-key free_energy, or --allow-missing\)", path)
    prepare([path], tmp_path / "out", energy_key="free_energy", **SMALL)


def test_a_word_without_a_value_is_no_energy(tmp_path):
    lines = ["2", "energy: -5.07 gnorm: 0.01 xtb: 6.6.1", "H 0 0 0", "H 0 0 0.7"]  # as xtb writes it
    (tmp_path / "xtb.xyz").write_text("\n".join(lines * 20) + "\n")
    refused(tmp_path, r"has no energy, or NaN; .* \(--allow-missing\)", tmp_path / "xtb.xyz")
    refused(
        tmp_path, "energy 'True' is no number", tmp_path / "xtb.xyz", energy_key="energy:", no_forces=True
    )


def test_names_that_several_labels_have_are_alternatives(tmp_path):
    frames = molecules(20)
    for atoms in frames:
        atoms.info |= {
            "dft_energy": -1.0,
            "energy_gap": 3.0,
            "data": {"dft_forces": np.ones((len(atoms), 3))},
        }
        atoms.calc = None
    path = save(tmp_path / "a.traj", frames)
    refused(tmp_path, r"--energy-key dft_energy or energy_gap --forces-key dft_forces, or", path)


def test_a_training_set_without_labels(tmp_path):
    path = save(tmp_path / "a.extxyz", molecules(20))
    wrong = {"energy_key": "enrgy", "forces_key": "frces", "allow_missing": True}
    refused(tmp_path, "No structure for training .* perhaps --energy-key energy --forces-key", path, **wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["energy", "forces"])
def test_labels_that_are_no_numbers(tmp_path, what, value):
    frames = molecules(20)
    label = value
    if what == "forces":
        label = frames[7].get_forces()
        label[0, 1] = value
    relabel(frames[7], **{what: label})
    path = save(tmp_path / "a.traj", frames)
    refused(tmp_path, r"a\.traj:7 has .*(NaN|infinite)", path)
    if np.isinf(value):
        refused(tmp_path, r"a\.traj:7 has an infinite label", path, allow_missing=True)


def test_atoms_on_top_of_each_other(tmp_path):
    frames = molecules(20)
    frames[7].positions[1] = frames[7].positions[0] + 0.01
    relabel(frames[7])
    path = save(tmp_path / "a.traj", frames)
    refused(tmp_path, r"a\.traj:7 has two atoms 0\.017 Angstrom apart", path)
    frames = crystals(20)
    frames[7].positions[1] = frames[7].positions[0] + frames[7].cell[2] + 0.01  # of two images
    relabel(frames[7])
    path = save(tmp_path / "b.traj", frames)
    refused(tmp_path, r"b\.traj:7 has two atoms", path)


def test_broken_geometry(tmp_path):
    frames = molecules(20)
    frames[7].positions[0, 0] = np.nan
    refused(tmp_path, r"a\.traj:7 has positions", save(tmp_path / "a.traj", frames))
    frames = molecules(20)
    frames[7].pbc = True
    refused(tmp_path, r"b\.traj:7 is periodic but its cell", save(tmp_path / "b.traj", frames))


def test_too_few_structures(tmp_path):
    path = save(tmp_path / "a.extxyz", molecules(20))
    refused(tmp_path, "hold 20 structures but 110 are asked for", path, train=100)
    refused(tmp_path, "hold 20 structures but 1011 are asked for", path, train=None, test=1000, val=10)
    refused(tmp_path, "hold 20 structures but --train asks for 30", train_files=[path], train=30)
    refused(tmp_path, "--val -1 is negative", path, val=-1)
    refused(tmp_path, "--train 0", path, train=0)


def test_files(tmp_path):
    refused(tmp_path, "none.xyz does not exist", tmp_path / "none.xyz")
    refused(tmp_path, "matches no file", tmp_path / "*.none")
    refused(tmp_path, "is a folder", tmp_path)
    refused(tmp_path, "No files to train on")
    (tmp_path / "strange.bin").write_bytes(bytes(range(256)))
    refused(tmp_path, "strange.bin is of no type that ASE knows", tmp_path / "strange.bin")
    (tmp_path / "empty.xyz").write_text("")
    refused(tmp_path, "empty.xyz is empty", tmp_path / "empty.xyz")
    path = save(tmp_path / "a.extxyz", molecules(20))
    refused(tmp_path, "a.extxyz is given twice", path, path)
    refused(tmp_path, "--split odd is not known", path, split="odd")
    refused(tmp_path, "--units stone is not known", path, units="stone")


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_extxyz(tmp_path, compressed):
    text = save(tmp_path / "a.extxyz", molecules(20)).read_text()
    cut = text[: len(text) - 150]
    if compressed:
        (tmp_path / "b.extxyz.gz").write_bytes(gzip.compress(text.encode())[:-200])
        refused(tmp_path, r"b\.extxyz\.gz.*cannot be read", tmp_path / "b.extxyz.gz")
    else:
        (tmp_path / "b.extxyz").write_text(cut)
        refused(tmp_path, r"b\.extxyz, frame 19 cannot be read", tmp_path / "b.extxyz")
        lines = text.splitlines()
        lines[0] = "six"
        (tmp_path / "c.extxyz").write_text("\n".join(lines))
        refused(tmp_path, r"c\.extxyz, frame 0 cannot be read", tmp_path / "c.extxyz")


def test_truncated_trajectory(tmp_path):
    path = tmp_path / "a.traj"
    with Trajectory(str(path), "w") as trajectory:
        for atoms in molecules(20):
            trajectory.write(atoms)
    content = path.read_bytes()
    path.write_bytes(content[:2000])
    refused(tmp_path, r"a\.traj.*cannot be read", path)
    (tmp_path / "a.traj.gz").write_bytes(gzip.compress(content))
    refused(tmp_path, r"a\.traj\.gz is compressed.*unpack it", tmp_path / "a.traj.gz")


def test_output_of_a_run_that_was_killed_is_not_left_out_silently(tmp_path):
    path = save(tmp_path / "a.extxyz", molecules(20))
    (tmp_path / "b.pwo").write_text("     Program PWSCF v.6.7 starts on  1Jan2024 at  0: 0: 0\n")
    refused(tmp_path, r"b\.pwo holds no structure, read as espresso-out", path, tmp_path / "b.pwo")


def test_an_output_folder_with_data_stays_as_it_is(tmp_path):
    path = save(tmp_path / "a.extxyz", molecules(20))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    refused(tmp_path, "out already holds data", path)
    refused(tmp_path, "mine.txt, which is not from piwsl prepare", path, overwrite=True)
    assert (tmp_path / "out/mine.txt").read_text() == "mine"
    (tmp_path / "out/mine.txt").unlink()
    prepare([path], tmp_path / "out", **SMALL)  # an empty folder is taken
    (tmp_path / "out/mine.txt").write_text("mine")
    refused(tmp_path, "mine.txt, which is not from piwsl prepare", path, overwrite=True)


def test_duplicates_across_splits(tmp_path):
    frames = molecules(20)
    copy = frames[0].copy()  # moved, turned, its atoms in another order: the same structure
    copy.rotate(70, (1, 2, 3))
    copy.translate((1, 2, 3))
    order = np.arange(len(copy))[::-1]
    copy = copy[order]
    copy.calc = SinglePointCalculator(
        copy, energy=frames[0].get_potential_energy(), forces=np.ones((len(copy), 3))
    )
    save(tmp_path / "train.extxyz", frames[:10])
    save(tmp_path / "val.extxyz", frames[10:14])
    save(tmp_path / "test.extxyz", [*frames[14:19], copy])
    given = {f"{name}_files": [tmp_path / f"{name}.extxyz"] for name in ("train", "val", "test")}
    given.update(train=None, val=None, test=None)
    refused(tmp_path, r"train\.extxyz:0 in train is test\.extxyz:5 in test", **given)
    summary = prepare(out=tmp_path / "out", allow_duplicates=True, quiet=True, **given)
    assert any("1 duplicate across splits" in w for w in summary["warnings"])


def test_duplicates_of_crystals_and_within_a_split(tmp_path):
    frames = crystals(20)
    copy = frames[0].copy()
    copy.positions += copy.cell[0] + 0.3
    copy.calc = SinglePointCalculator(copy, **frames[0].calc.results)
    save(tmp_path / "train.traj", frames[:10])
    save(tmp_path / "val.traj", frames[10:])
    save(tmp_path / "test.traj", [copy])
    given = {f"{name}_files": [tmp_path / f"{name}.traj"] for name in ("train", "val", "test")}
    given.update(train=None, val=None, test=None)
    refused(tmp_path, r"train\.traj:0 in train is test\.traj:0 in test", **given)
    given["train_files"].append(given["test_files"][0])
    given["test_files"] = given["val_files"]
    given["val_files"] = []
    summary = prepare(out=tmp_path / "out", quiet=True, **given)
    assert any("1 duplicate within a split" in w for w in summary["warnings"])


def test_duplicates_of_molecules_in_other_boxes(tmp_path):
    paths = []
    for box in (0, 18, 25):
        frames = molecules(8)
        for atoms in frames:
            atoms.set_cell([box] * 3)
            atoms.pbc = box > 0
            relabel(atoms)
        paths.append(save(tmp_path / f"{box}.traj", frames))
    given = dict(train=None, val=None, test=None, train_files=paths[:1])
    for other in paths[1:]:
        refused(tmp_path, "8 duplicates across splits", test_files=[other], **given)


def test_duplicates_of_crystals_with_one_atom_in_the_cell(tmp_path):
    frames = [labelled(bulk("Cu", a=length)) for length in (3.5, 3.6, 3.7)]
    save(tmp_path / "train.traj", frames)
    save(tmp_path / "val.traj", frames[1:2])
    given = {f"{name}_files": [tmp_path / f"{name}.traj"] for name in ("train", "val")}
    refused(tmp_path, r"train\.traj:1 in train is val\.traj:0", train=None, val=None, test=None, **given)


def test_decorations_of_a_lattice_are_told_apart(tmp_path):
    rng = np.random.default_rng(0)
    frames = []
    for i in range(100):
        atoms = bulk("Cu", a=3.8, cubic=True).repeat(2)
        atoms.numbers[rng.permutation(32)[:16]] = 79
        atoms.calc = SinglePointCalculator(atoms, energy=0.1 * i, forces=np.zeros((32, 3)))
        frames.append(atoms)
    path = save(tmp_path / "a.extxyz", frames)
    summary = prepare([path], tmp_path / "alone", train=50, val=25, test=25, quiet=True)
    assert not any("duplicate" in warning for warning in summary["warnings"])
    given = {"train_files": [path], "test_files": [save(tmp_path / "b.extxyz", frames[:30][::-1])]}
    refused(tmp_path, "30 duplicates across splits", **given, train=None, val=None, test=None)


def test_many_copies_are_each_counted_once():
    """All their pairs would take some 10 GB."""
    rng = np.random.default_rng(0)
    train, test = Records(30_000), Records(2)
    train.fingerprint[:] = 5.0 * (1 + rng.normal(scale=1e-8, size=(30_000, 4)))
    train.source = [f"a:{i}" for i in range(30_000)]
    test.fingerprint[:], test.source = [[5.0] * 4, [5.1] * 4], ["b:0", "b:1"]
    found = duplicates({"train": train, "test": test}, keeps_states=False)
    assert {pair[3] for pair in found} == {*train.source[1:], "b:0"}
    assert len(found) == 30_000


def test_duplicates_are_found_in_a_process_that_has_trained():
    """Training turns denormal numbers off, which scipy's tree relies on at 0."""
    train = Records(40)
    train.fingerprint[:] = np.linspace(1, 1.1, 160).reshape(40, 4)
    train.composition[:10, 1] = 2
    set_flush_denormal(True)
    try:
        assert duplicates({"train": train}, keeps_states=False) == []
    finally:
        set_flush_denormal(False)


def test_fragments_that_only_differ_in_their_distance_are_no_duplicates(tmp_path):
    frames = []
    for i, atoms in enumerate(molecules(1, names=("H2O",)) * 20):
        pair = atoms + atoms
        pair.positions[3:] += (9 + 0.1 * i, 0, 0)
        pair.calc = SinglePointCalculator(pair, energy=0.1 * i, forces=np.ones((6, 3)) * (-1) ** i)
        frames.append(pair)
    prepare([save(tmp_path / "a.extxyz", frames)], tmp_path / "out", **SMALL)
    for pair in frames:
        pair.set_cell([40, 20, 20])
        pair.pbc = True
    prepare([save(tmp_path / "b.extxyz", frames)], tmp_path / "periodic", **SMALL)


def vibrations(count, seed=0, factor=1.0, zero=None):
    """One molecule near its minimum: neighbouring frames for the comparison with the work of forces."""
    return molecules(count, seed, names=("CH3OH",), factor=factor, zero=zero)


@pytest.mark.parametrize("unit", ["kcal/mol", "Hartree", "kJ/mol"])
def test_all_electron_energies_in_another_unit(tmp_path, unit):
    size = {"kcal/mol": KCAL, "Hartree": units.Hartree, "kJ/mol": units.kJ / units.mol}[unit]
    path = save(tmp_path / "a.extxyz", molecules(40, factor=1 / size, zero=FREE_ATOMS_EV))
    refused(tmp_path, f"all-electron energies in {unit}", path)
    prepare([path], tmp_path / "out", units=unit, **SMALL)
    prepare([path], tmp_path / "trusted", trust_units=True, **SMALL)


def test_a_coincidence_with_all_electron_energies_is_recognised_by_the_forces(tmp_path):
    # valence energies in eV, as GFN2-xTB's of ethanol, may be those of all electrons as a number of Rydberg
    zero = {z: energy / units.Rydberg for z, energy in FREE_ATOMS_EV.items()}
    frames = vibrations(60, zero=zero)
    offset = np.mean([atoms.get_potential_energy() for atoms in vibrations(60)])
    for atoms in frames:
        relabel(atoms, energy=atoms.get_potential_energy() - offset)
    path = save(tmp_path / "a.extxyz", frames)
    refused(tmp_path, "all-electron energies in Rydberg", path, train=40, no_forces=True)
    prepare([path], tmp_path / "out", **{**SMALL, "train": 40})


def test_a_coincidence_with_energies_per_atom_is_recognised_by_the_forces(tmp_path):
    """PBE's energies of aluminium, 64 times in Hartree, are those of all electrons."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(40):
        atoms = bulk("Al", a=4.0).repeat(4)
        atoms.positions += rng.normal(scale=0.06, size=(64, 3))
        frames.append(labelled(atoms, zero={13: -3.745}))
    path = save(tmp_path / "a.extxyz", frames)
    summary = prepare([path], tmp_path / "out", **{**SMALL, "train": 30})
    assert not summary["warnings"]
    summary = prepare([path], tmp_path / "energies", no_forces=True, **{**SMALL, "train": 30})
    assert any("may be all-electron energies per atom in Hartree" in w for w in summary["warnings"])


def test_all_electron_energies_per_atom(tmp_path):
    frames = molecules(40, zero=FREE_ATOMS_EV)
    for atoms in frames:
        relabel(atoms, energy=atoms.get_potential_energy() / len(atoms))
    refused(tmp_path, "per atom in eV", save(tmp_path / "a.extxyz", frames))


def test_energies_per_atom_of_structures_of_many_sizes(tmp_path):
    names = ("CH3OH", "H2O", "CH4", "C2H6", "C2H4", "CO2", "CH3CH2OH", "H2CO")
    frames = molecules(60, names=names, zero={1: -3.0, 6: -150.0, 8: -430.0})
    save(tmp_path / "total.extxyz", frames)
    for atoms in frames:
        relabel(atoms, energy=atoms.get_potential_energy() / len(atoms))
    path = save(tmp_path / "a.extxyz", frames)
    refused(tmp_path, "do not grow with the number of atoms", path, train=40)
    prepare([tmp_path / "total.extxyz"], tmp_path / "out", **{**SMALL, "train": 40})


def test_energies_that_do_not_fit_the_forces(tmp_path):
    good = vibrations(60)
    save(tmp_path / "good.extxyz", good)
    for name, scale, match in (
        ("kcal", 1 / KCAL, "times as much as the work of the forces, so the two differ in unit"),
        ("per_atom", 1 / len(good[0]), "per atom or the two differ in unit"),
        ("hartree", 1 / units.Hartree, "per atom or the two differ in unit"),
    ):
        frames = vibrations(60)
        for atoms in frames:
            relabel(atoms, energy=atoms.get_potential_energy() * scale)
        refused(tmp_path, match, save(tmp_path / f"{name}.extxyz", frames), train=40)
    prepare([tmp_path / "good.extxyz"], tmp_path / "out", **{**SMALL, "train": 40})


def test_forces_of_the_wrong_sign(tmp_path):
    frames = vibrations(60)
    for atoms in frames:
        relabel(atoms, forces=-atoms.get_forces())
    refused(tmp_path, "forces point uphill", save(tmp_path / "a.extxyz", frames), train=40)


def test_labels_all_in_kcal(tmp_path):
    path = save(tmp_path / "a.extxyz", vibrations(60, factor=1 / KCAL))
    refused(tmp_path, "look like kcal/mol/Angstrom", path, train=40)
    prepare([path], tmp_path / "out", units="kcal/mol", **{**SMALL, "train": 40})
    energies = [d.energy.item() for d in records(tmp_path / "out")]
    assert abs(np.mean(energies)) < 20


def test_zero_forces_are_reported(tmp_path):
    frames = molecules(20)
    for atoms in frames:
        relabel(atoms, forces=np.zeros((len(atoms), 3)))
    summary = prepare([save(tmp_path / "a.extxyz", frames)], tmp_path / "out", **SMALL)
    assert "All forces are zero." in summary["warnings"]


def test_labels_that_are_noise_are_reported_not_refused(tmp_path):
    rng = np.random.default_rng(0)
    frames = vibrations(60)
    for atoms in frames:
        relabel(atoms, energy=rng.normal(scale=30), forces=rng.normal(size=(len(atoms), 3)))
    path = save(tmp_path / "a.extxyz", frames)
    summary = prepare([path], tmp_path / "out", **{**SMALL, "train": 40})
    assert any("do not belong together" in w for w in summary["warnings"])
