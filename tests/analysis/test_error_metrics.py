"""Errors equal plain numpy on arrays; intervals shrink with the sample; NaN labels are left out."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from fairchem_piwsl.analysis.error_metrics import energy_units, error_table, in_units, unit_of
from fairchem_piwsl.units import KCAL_PER_MOL


@pytest.fixture
def case():
    random = np.random.default_rng(5)
    natoms = random.integers(2, 9, size=40)
    energy = random.normal(size=40)
    forces = [random.normal(size=(n, 3)) for n in natoms]
    predicted = energy + 0.1 * random.normal(size=40)
    forces_predicted = [force + 0.2 * random.normal(size=force.shape) for force in forces]
    return natoms, energy, forces, predicted, forces_predicted


def test_equals_plain_numpy(case):
    natoms, energy, forces, predicted, forces_predicted = case
    table = error_table(energy, forces, predicted, forces_predicted)
    f, p = np.concatenate(forces), np.concatenate(forces_predicted)
    cosine = (f * p).sum(1) / np.sqrt((f**2).sum(1) * (p**2).sum(1))
    expected = {
        "energy_mae": np.abs(predicted - energy).mean(),
        "energy_rmse": np.sqrt(((predicted - energy) ** 2).mean()),
        "energy_per_atom_mae": np.abs((predicted - energy) / natoms).mean(),
        "energy_per_atom_rmse": np.sqrt((((predicted - energy) / natoms) ** 2).mean()),
        "forces_mae": np.abs(p - f).mean(),
        "forces_rmse": np.sqrt(((p - f) ** 2).mean()),
        "forces_cosine": cosine.mean(),
    }
    assert {key: estimate.value for key, estimate in table.items()} == pytest.approx(expected, rel=1e-12)
    for estimate in table.values():
        assert estimate.low < estimate.value < estimate.high


def test_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        error = random.normal(size=60)
        nothing = [np.full((2, 3), np.nan)] * 60
        table = error_table(np.zeros(60), nothing, error, [np.zeros((2, 3))] * 60, n_bootstrap=300)
        covered.append(table["energy_rmse"].low < 1.0 < table["energy_rmse"].high)
    assert 0.87 < np.mean(covered) < 0.99


def test_intervals_are_those_of_all_draws_at_once_without_their_memory():
    error = np.random.default_rng(0).normal(size=5000)
    nothing = [np.full((1, 3), np.nan)] * 5000
    tracemalloc.start()
    found = error_table(np.zeros(5000), nothing, error, nothing)["energy_mae"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    draws = np.random.default_rng(0).multinomial(5000, np.full(5000, 1 / 5000), size=1000)
    expected = np.percentile(draws @ np.abs(error) / 5000, [2.5, 97.5])
    assert [found.low, found.high] == pytest.approx(expected, rel=1e-12)
    assert peak < draws.nbytes / 4


def test_missing_labels_are_left_out(case):
    _, energy, forces, predicted, forces_predicted = case
    table = error_table(energy[:20], forces[:20], predicted[:20], forces_predicted[:20])
    blank = [np.full_like(force, np.nan) for force in forces[20:]]
    masked = np.where(np.arange(40) < 20, energy, np.nan)
    mixed = error_table(masked, forces[:20] + blank, predicted, forces_predicted)
    for key, estimate in mixed.items():
        assert estimate.value == pytest.approx(table[key].value)
    none = error_table(masked, [np.full_like(force, np.nan) for force in forces], predicted, forces_predicted)
    assert np.isnan(none["forces_rmse"].value)
    assert np.isnan(none["forces_cosine"].low)


def test_one_structure_tells_nothing_about_the_scatter(case):
    _, energy, forces, predicted, forces_predicted = case
    known = np.where(np.arange(3) < 1, energy[:3], np.nan)
    table = error_table(known, forces[:3], predicted[:3], forces_predicted[:3])
    assert table["energy_mae"].value == pytest.approx(abs(predicted[0] - energy[0]))
    assert np.isnan([table["energy_mae"].low, table["energy_mae"].high]).all()
    assert table["forces_mae"].low < table["forces_mae"].value < table["forces_mae"].high


def test_units(case):
    _, energy, forces, predicted, forces_predicted = case
    table = error_table(energy, forces, predicted, forces_predicted, n_bootstrap=10)
    kcal = in_units(table, "kcal/mol")
    assert kcal["forces_rmse"].value == pytest.approx(table["forces_rmse"].value / KCAL_PER_MOL)
    assert kcal["forces_cosine"] == table["forces_cosine"]
    assert unit_of("energy_per_atom_mae", "kcal/mol") == "kcal/mol/atom"
    assert unit_of("forces_mae", "meV") == "meV/Angstrom"
    assert unit_of("forces_rmse", "KJ") == "kJ/mol/Angstrom"
    assert energy_units("kj/mol") == (pytest.approx(96.4853), "kJ/mol", "kJ/mol/Angstrom")
    assert unit_of("forces_cosine", "eV") == ""
