"""The block `optim.piwsl`: every mistake is named with its remedy; schedules and units are right."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import get_args

import numpy as np
import pytest
import yaml
from ase import units
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.settings import EnergyUnit, PIWSLSettings
from fairchem_piwsl.units import kcal_in

NAMES = [field.name for field in fields(PIWSLSettings)]


def settings(**block) -> PIWSLSettings:
    return PIWSLSettings.from_config(block)


def error(block) -> str:
    """The message for a bad block; one line, so that the command line can print it."""
    with pytest.raises(UserError) as caught:
        PIWSLSettings.from_config(block)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("c_ptic", "c_pitc"),
        ("c_PITC", "c_pitc"),
        ("epsmax", "eps_max"),
        ("k2nd", "k_2nd"),
        ("every_n_step", "every_n_steps"),
    ],
)
def test_unknown_key_is_named_with_the_one_that_was_meant(typed, meant):
    message = error({typed: 1.0})
    assert f"optim.piwsl.{typed} is not a setting" in message
    assert f"did you mean '{meant}'?" in message


def test_unknown_key_without_likeness_lists_all_settings():
    message = error({"zzz": 1})
    assert "optim.piwsl.zzz" in message
    for name in NAMES:
        assert name in message


@pytest.mark.parametrize("block", [[1], "c_pitc: 1", 3, True])
def test_block_must_be_a_block(block):
    assert "optim.piwsl must be a block" in error(block)


OUT_OF_RANGE = [
    *((name, -1e-9) for name in ("c_pitc", "c_pisc", "c_wl")),
    *((name, value) for name in ("c_pitc", "c_pisc", "c_wl") for value in (float("nan"), float("inf"))),
    ("eps_max", -0.01),
    ("k_2nd", -0.1),
    ("k_2nd", 0.51),
    ("fraction", 0.0),
    ("fraction", 1.01),
    ("max_bond_fraction", 0.0),
    ("max_bond_fraction", 0.5),
    ("start_step", -1),
    ("ramp_steps", -1),
    ("every_n_steps", 0),
    ("weak_share", -0.1),
    ("energy_share", -1.0),
    ("pisc_case", 0),
    ("pisc_case", 4),
]
WRONG_KIND = [
    *((name, "1") for name in ("c_pitc", "c_pisc", "c_wl", "eps_max", "k_2nd", "fraction")),
    *((name, None) for name in NAMES if name not in ("validate_consistency", "energy_share")),
    *(
        (name, True)
        for name in ("c_pitc", "eps_max", "start_step", "ramp_steps", "every_n_steps", "pisc_case")
    ),
    *((name, 1.5) for name in ("start_step", "ramp_steps", "every_n_steps", "pisc_case")),
    *((name, 1) for name in ("auto", "noisy_nodes", "share_graph", "validate_consistency")),
    *((name, "yes") for name in ("auto", "noisy_nodes", "share_graph", "validate_consistency")),
    ("point_loss", "huber"),
    ("wl_forces", "none"),
    ("perturbation", "normal"),
    ("magnitude", "random"),
    ("energy_unit", "ev"),
    ("energy_unit", 1),
    ("c_pitc", [1.0]),
    ("point_loss", ["mse"]),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE + WRONG_KIND)
def test_impossible_value_names_key_and_what_is_possible(name, value):
    message = error({name: value})
    assert message.startswith(f"optim.piwsl.{name} must be ")
    assert repr(value) in message


@pytest.mark.parametrize("name", ["c_pitc", "eps_max"])
def test_number_that_yaml_reads_as_text(name):
    block = yaml.safe_load(f"{name}: 1e-2")
    assert block[name] == "1e-2"
    assert "1.0e-2" in error(block)


@pytest.mark.parametrize("weight", ["c_pitc", "c_pisc", "c_wl"])
def test_noisy_nodes_stands_alone(weight):
    assert "noisy_nodes" in error({"noisy_nodes": True, weight: 0.1})
    assert settings(noisy_nodes=True, c_pitc=0.0).noisy_nodes


@pytest.mark.parametrize(
    "other", [{"c_pisc": 0.1}, {"c_wl": 0.1}, {"noisy_nodes": True}, {"c_pitc": 1.0, "point_loss": "mae"}]
)
def test_without_displacements_there_is_pitc_alone(other):
    assert "eps_max 0" in error({"eps_max": 0, **other})
    assert not settings(**{"eps_max": 0.01, **other}).differentiates
    s = settings(eps_max=0, c_pitc=1.0)
    assert (s.differentiates, s.points) == (True, ())


def test_noisy_nodes_has_no_adversarial_direction():
    assert "perturbation" in error({"noisy_nodes": True, "perturbation": "adversarial"})


# ------------------------------------------------------------------ what is on


def test_no_block_means_off():
    for block in (None, {}):
        off = PIWSLSettings.from_config(block)
        assert off == PIWSLSettings()
        assert not any((off.weak, off.points, off.noisy_nodes, off.validates_consistency))


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        settings().c_pitc = 1.0  # type: ignore[misc]


def test_round_trip_through_a_config_file():
    original = settings(c_pitc=1.2, c_pisc=0.01, eps_max=0.025, k_2nd=0.5, validate_consistency=False)
    block = yaml.safe_load(yaml.safe_dump(asdict(original)))
    assert PIWSLSettings.from_config(block) == original


@pytest.mark.parametrize(
    ("block", "points"),
    [
        ({"c_pitc": 1}, "C"),
        ({"c_wl": 1}, "C"),
        ({"c_pisc": 1}, "CB"),
        ({"c_pisc": 1, "pisc_case": 2}, "B"),
        ({"c_pisc": 1, "pisc_case": 2, "k_2nd": 0.25}, "CB"),
        ({"c_pisc": 1, "pisc_case": 3}, "CB"),
        ({"c_pisc": 1, "pisc_case": 2, "c_pitc": 1}, "CB"),
        ({"c_pisc": 0, "c_pitc": 0}, ""),
    ],
)
def test_which_configurations_are_needed(block, points):
    assert settings(**block).points == tuple(points)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({}, False),
        ({"c_pitc": 1}, True),
        ({"noisy_nodes": True}, False),
        ({"c_pitc": 1, "validate_consistency": False}, False),
        ({"validate_consistency": True}, True),
    ],
)
def test_validation_of_consistency(block, expected):
    assert settings(**block).validates_consistency is expected


# ------------------------------------------------------------------ schedule


def test_weak_terms_are_on_from_the_first_step():
    assert [settings(c_pitc=1).ramp(step) for step in (1, 2, 3)] == [1.0, 1.0, 1.0]


def test_start_step_is_the_first_with_weak_terms():
    late = settings(start_step=5)
    assert [late.ramp(step) for step in range(1, 8)] == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("start", [0, 1, 10])
def test_ramp_grows_linearly_and_never_starts_at_zero(start):
    rising = settings(start_step=start, ramp_steps=4)
    first = max(start, 1)
    assert [rising.ramp(first + i) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_every_n_steps_counts_from_the_first():
    sparse = settings(start_step=3, every_n_steps=3)
    assert [step for step in range(1, 13) if sparse.ramp(step)] == [3, 6, 9, 12]


@pytest.mark.parametrize(("start", "first"), [(0, 61), (2000, 80)])
def test_energies_are_balanced_from_the_start(start, first):
    own = settings(auto=True, start_step=start)
    assert [step for step in range(1, first + 61) if own.measures(step)] == [first, first + 60]


@pytest.mark.parametrize(
    ("block", "steps", "first"),
    [
        ({}, 100, 0),
        ({"start_step": 50}, 100, 0),
        ({"c_pitc": 1}, 100, 1),
        ({"c_pitc": 1, "start_step": 50}, 100, 50),
        ({"c_pitc": 1, "start_step": 50, "ramp_steps": 51}, 100, 100),
        ({"c_pitc": 1, "start_step": 50, "ramp_steps": 52}, 100, 50),
        ({"c_wl": 1, "start_step": 500}, 100, 500),
        ({"noisy_nodes": True, "start_step": 50}, 100, 50),
    ],
)
def test_best_checkpoint_counts_from_full_weights_or_else_from_any(block, steps, first):
    own = settings(**block)
    assert own.counts_from(steps) == first
    if 0 < first <= steps:
        assert own.ramp(first) > 0
        assert own.ramp(first) == 1 or own.ramp(steps) < 1


@limits(deadline=None)
@given(
    start=st.integers(0, 50), ramp=st.integers(0, 50), every=st.integers(1, 9), step=st.integers(1, 200)
)  # fmt: skip
def test_ramp_is_a_factor(start, ramp, every, step):
    factor = settings(start_step=start, ramp_steps=ramp, every_n_steps=every).ramp(step)
    assert 0 <= factor <= 1
    if step < start:
        assert factor == 0
    if step >= start + ramp and step >= 1 and (step - max(start, 1)) % every == 0:
        assert factor == 1


# ------------------------------------------------------------------ units


def test_energy_units_against_ase():
    in_ev = {
        "eV": 1.0,
        "kcal/mol": units.kcal / units.mol,
        "kJ/mol": units.kJ / units.mol,
        "Hartree": units.Ha,
    }
    assert set(in_ev) == set(get_args(EnergyUnit))
    for name, value in in_ev.items():
        assert np.isclose(kcal_in(name) * units.kcal / units.mol, value, rtol=1e-12)
        assert settings(energy_unit=name).kcal_per_label_unit == kcal_in(name)


def test_energy_units_against_numbers_of_the_textbook():
    assert np.isclose(kcal_in("eV"), 23.0605, rtol=1e-5)
    assert np.isclose(kcal_in("Hartree"), 627.509, rtol=1e-5)
    assert np.isclose(kcal_in("kJ/mol"), 1 / 4.184, rtol=1e-9)
