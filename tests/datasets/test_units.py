"""The unit table, and what labels say about the units that they have."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from helpers_datasets import crystals, molecules, records, save

from fairchem_piwsl.datasets.ase_labels import LabelOptions, to_structure
from fairchem_piwsl.datasets.force_scales import hydrogen_stretch, similar_pairs
from fairchem_piwsl.datasets.prepare import prepare
from fairchem_piwsl.datasets.records import distances
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled
from fairchem_piwsl.units import KCAL_PER_MOL, energy_unit, force_in_ev_per_angstrom, force_unit, length_unit

SMALL = {"train": 40, "val": 10, "test": 10, "quiet": True}


def quadratic(count: int, seed: int = 0, stiffness: float = 30.0) -> list[Labelled]:
    """Water on E = k/2 sum (d - 1)^2 over its two bonds, in eV and Angstrom, turned at random."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        atoms = Atoms("OH2", [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
        atoms.positions += rng.normal(scale=0.05, size=(3, 3))
        atoms.rotate(rng.uniform(0, 360), rng.normal(size=3))
        bonds = atoms.positions[1:] - atoms.positions[0]
        d = np.linalg.norm(bonds, axis=1)
        pull = -stiffness * ((d - 1) / d)[:, None] * bonds
        energy = stiffness / 2 * float(np.sum((d - 1) ** 2))
        found.append(Labelled(atoms, energy, np.vstack([-pull.sum(axis=0), pull])))
    return found


def test_names_of_units():
    assert energy_unit(" KCAL/mol") == "kcal/mol"
    assert energy_unit("Eh") == "Hartree"
    assert length_unit("bohr") == "Bohr"
    assert force_unit("kcal/mol/ang") == "kcal/mol/Angstrom"
    assert force_in_ev_per_angstrom("Hartree/Bohr") == pytest.approx(51.42208619083232, rel=1e-6)
    assert pytest.approx(units.kcal / units.mol, rel=1e-6) == KCAL_PER_MOL
    with pytest.raises(UserError, match="--force-units eV is no force"):
        force_unit("eV")


def test_hartree_and_bohr_become_ev_and_angstrom():
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 1.4]], cell=[9, 9, 9], pbc=True)
    forces = np.array([[0, 0, 0.1], [0, 0, -0.1]])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.1, forces=forces)
    found = to_structure(atoms, "a", LabelOptions("Hartree", length_units="Bohr"))
    assert found.energy == pytest.approx(-1.1 * units.Hartree)
    np.testing.assert_allclose(found.forces, forces * units.Hartree / units.Bohr)
    np.testing.assert_allclose(found.atoms.positions, atoms.positions * units.Bohr)
    np.testing.assert_allclose(found.atoms.cell.array, np.eye(3) * 9 * units.Bohr)
    found = to_structure(atoms, "a", LabelOptions("eV", force_units="Hartree/Bohr"))
    assert found.energy == -1.1
    np.testing.assert_allclose(found.forces, forces * units.Hartree / units.Bohr)
    np.testing.assert_array_equal(found.atoms.positions, atoms.positions)


def test_prepare_converts_what_it_is_told(tmp_path):
    frames = molecules(60, names=("CH3OH",))
    save(tmp_path / "right.extxyz", frames)
    for atoms in frames:
        energy, forces = atoms.get_potential_energy() / units.Hartree, atoms.get_forces()
        atoms.positions /= units.Bohr
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces * units.Bohr / units.Hartree)
    save(tmp_path / "atomic.extxyz", frames)
    prepare([tmp_path / "right.extxyz"], tmp_path / "a", **SMALL)
    prepare([tmp_path / "atomic.extxyz"], tmp_path / "b", units="Hartree", length_units="Bohr", **SMALL)
    for a, b in zip(records(tmp_path / "a"), records(tmp_path / "b"), strict=True):
        assert a.energy.item() == pytest.approx(b.energy.item(), abs=1e-6)
        np.testing.assert_allclose(a.forces, b.forces, atol=1e-5)
        np.testing.assert_allclose(a.pos, b.pos, atol=1e-5)


def test_the_force_constant_of_bonds_to_hydrogen():
    stretch = hydrogen_stretch(quadratic(40))
    assert stretch.bond == "O-H"
    assert 70 < stretch.bonds <= 80  # those within the linear range
    assert stretch.constant == pytest.approx(30, rel=1e-6)
    turned = [Labelled(s.atoms, s.energy, -s.forces) for s in quadratic(40)]
    assert hydrogen_stretch(turned).constant == pytest.approx(-30, rel=1e-6)
    assert hydrogen_stretch(quadratic(5)) is None  # too few
    noise = np.random.default_rng(0)
    assert (
        hydrogen_stretch([Labelled(s.atoms, 0.0, noise.normal(size=(3, 3))) for s in quadratic(40)]) is None
    )


def test_energies_change_by_the_work_of_the_forces_between_similar_structures():
    pairs = similar_pairs(quadratic(60))
    assert len(pairs.energy_over_work) > 30
    assert np.median(pairs.energy_over_work) == pytest.approx(1, abs=0.02)
    assert 0 < np.median(pairs.stiffness) < 2 * 30  # the largest eigenvalue of one bond's Hessian
    twice = [Labelled(s.atoms, 2 * s.energy, s.forces) for s in quadratic(60)]
    np.testing.assert_allclose(similar_pairs(twice).energy_over_work, 2 * pairs.energy_over_work)
    assert len(similar_pairs(quadratic(1)).stiffness) == 0


def test_copies_tell_nothing_of_the_work(tmp_path):
    frames = molecules(60, names=("CH3OH",))
    files = {
        "train_files": [save(tmp_path / "a.extxyz", frames[:40] * 2)],
        "test_files": [save(tmp_path / "b.extxyz", frames[40:])],
    }
    summary = prepare(out=tmp_path / "out", quiet=True, **files)
    (warning,) = summary["warnings"]
    assert warning.startswith("40 duplicates within a split")
    assert "the work of the forces (40 pairs" in summary["notes"][0]
    for once, twice in zip(similar_pairs(quadratic(8)), similar_pairs(quadratic(8) * 2), strict=True):
        np.testing.assert_array_equal(once, twice)


def test_structures_of_another_charge_are_not_compared():
    neutral, cations = quadratic(30), [replace(s, energy=s.energy + 8) for s in quadratic(60)[30:]]
    for s in cations:
        s.atoms.info["charge"] = 1
    assert np.quantile(np.abs(similar_pairs(neutral + cations).energy_over_work), 0.8) < 1.2


def test_pairs_of_large_clusters_are_found_in_little_memory():
    rng = np.random.default_rng(0)
    start, step = rng.uniform(0, 30, (900, 3)), rng.normal(scale=0.1, size=(900, 3))
    lengths = rng.permutation(60)  # along one line: the nearest are neighbours
    clusters = [Labelled(Atoms("Cu900", start + 0.02 * n * step), float(n), step) for n in lengths]
    tracemalloc.start()
    pairs = similar_pairs(clusters)
    assert tracemalloc.get_traced_memory()[1] < 1e8  # 2e8 with all distances
    tracemalloc.stop()
    np.testing.assert_allclose(pairs.energy_over_work, pairs.energy_over_work[0], rtol=0.01)


def test_bonds_are_as_long_as_covalent_radii():
    for atoms in (*molecules(6), *crystals(3)):
        assert 0.7 < distances(atoms).bond_ratio < 1.4
        atoms.set_cell(atoms.cell.array / units.Bohr)
        atoms.positions /= units.Bohr
        assert distances(atoms).bond_ratio > 1.5
    assert np.isnan(distances(Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]])).bond_ratio)


def test_what_was_found_and_what_cannot_be_told_is_said(tmp_path):
    path = save(tmp_path / "a.extxyz", molecules(60, names=("CH3OH",)))
    summary = prepare([path], tmp_path / "out", **SMALL)
    assert not summary["warnings"]
    (note,) = summary["notes"]
    for text in ("sum of covalent radii", "C-H bonds is", "the work of the forces (40 pairs"):
        assert text in note
    path = save(tmp_path / "few.extxyz", molecules(8))
    summary = prepare([path], tmp_path / "few", train=4, val=2, test=2, quiet=True)
    assert "Not told by the labels" in summary["notes"][-1]
    assert "too few" in summary["notes"][-1]


@pytest.mark.parametrize("count", [20, 60])
@pytest.mark.parametrize(
    ("energy", "forces", "lengths", "match"),
    [
        (1, -1, 1, "uphill"),
        (1, units.Bohr, 1, "eV/Bohr|times as much as the work"),
        (1, 1, 1 / units.Bohr, "positions are not in Angstrom"),
        (1, units.Bohr, 1 / units.Bohr, "positions are not in Angstrom"),
        (1 / units.Hartree, 1 / units.Hartree, 1, "Hartree/Angstrom"),
        (1 / units.Hartree, units.Bohr / units.Hartree, 1, "Hartree/Bohr"),
    ],
)
def test_molecules_in_other_units(tmp_path, count, energy, forces, lengths, match):
    frames = molecules(count, names=("CH3OH",))
    for atoms in frames:
        labels = {"energy": atoms.get_potential_energy() * energy, "forces": atoms.get_forces() * forces}
        atoms.positions *= lengths
        atoms.calc = SinglePointCalculator(atoms, **labels)
    path = save(tmp_path / "a.extxyz", frames)
    with pytest.raises(UserError, match=match):
        prepare([path], tmp_path / "out", train=count - 8, val=4, test=4, quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["orientation", "order"])
def test_forces_of_another_orientation_or_order_of_the_atoms(tmp_path, what):
    frames = molecules(60)
    for atoms in frames:
        forces = atoms.get_forces()
        if what == "orientation":
            atoms.rotate(70, (1, 2, 3))
        else:
            forces = forces[::-1]
        atoms.calc = SinglePointCalculator(atoms, energy=atoms.calc.results["energy"], forces=forces)
    path = save(tmp_path / "a.extxyz", frames)
    with pytest.raises(UserError, match=r"forces turn the molecules.* Give both as they stand"):
        prepare([path], tmp_path / "out", **SMALL)


def test_crystals_have_no_hydrogen_but_similar_pairs(tmp_path):
    frames = crystals(60)
    summary = prepare([save(tmp_path / "right.traj", frames)], tmp_path / "right", **SMALL)
    assert not summary["warnings"]
    for factor, match in (
        (-1, "uphill"),
        (units.Bohr, r"energies change 1\.\d+ times"),
        (50, "beyond the stiffest"),
    ):
        for atoms in (changed := [atoms.copy() for atoms in frames]):
            source = frames[len([a for a in changed if a.calc is not None])]
            atoms.calc = SinglePointCalculator(
                atoms, energy=source.get_potential_energy(), forces=source.get_forces() * factor
            )
        path = save(tmp_path / f"{factor}.traj", changed)
        with pytest.raises(UserError, match=match):
            prepare([path], tmp_path / "out", **SMALL)


def test_hartree_energies_of_27_atoms_are_not_called_per_atom_alone(tmp_path):
    """One Hartree is 27.2 eV: both readings are named."""
    zero = {1: -13.6057, 6: -1025.57}
    frames = molecules(30, names=("C2H6",))
    big = []
    for k in range(0, 30, 3):  # 24 atoms
        atoms = sum((f for f in frames[k + 1 : k + 3]), frames[k].copy())
        for n in range(3):
            atoms.positions[8 * n : 8 * n + 8] += (9.0 * n, 0, 0) - atoms.positions[8 * n : 8 * n + 8].mean(
                axis=0
            )
        atoms += Atoms("H3", [[-9, 0, 0], [-9, 0, 0.9], [-9, 0.8, 0.4]])
        energy = sum(zero[z] for z in atoms.numbers) / units.Hartree
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.ones((27, 3)) * [[1.0, 0.2, 0.1]])
        big.append(atoms)
    path = save(tmp_path / "a.extxyz", big)
    with pytest.raises(UserError, match="all-electron energies per atom in eV or in Hartree"):
        prepare([path], tmp_path / "out", train=8, val=1, test=1, quiet=True)
