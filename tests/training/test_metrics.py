"""Errors over a whole set: square roots last, batches of any size, labels partly missing."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from fairchem.core.modules.evaluator import Evaluator
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import Tensor

from fairchem_piwsl.training.metrics import (
    LabelledEvaluator,
    add,
    add_squares,
    finish,
    lower_is_better,
    summable,
)

LEVELS = {"energy": "system", "forces": "atom"}
UPSTREAM = {
    "energy": ["mae", "mse", "per_atom_mae", "energy_within_threshold"],
    "forces": ["mae", "forcesx_mae", "cosine_similarity", "magnitude_error"],
    "misc": ["energy_forces_within_threshold"],
}


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_batches(sizes: list[list[int]]) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Predictions and labels of batches, each a list of structure sizes."""
    batches = []
    for i, natoms in enumerate(map(torch.tensor, sizes)):
        total = int(natoms.sum())
        pair = []
        for side in (0, 1):
            values = {
                "energy": rand(len(natoms), 1, seed=10 * i + side),
                "forces": rand(total, 3, seed=10 * i + side),
            }
            pair.append({**values, "natoms": natoms})
        batches.append(tuple(pair))
    return batches


def evaluate(batches, functions=UPSTREAM) -> dict:
    evaluator, metrics = LabelledEvaluator(Evaluator(eval_metrics=functions), LEVELS), {}
    for prediction, label in batches:
        metrics = evaluator.eval(prediction, label, metrics)
    return finish(metrics)


SIZES = [[3, 1, 5], [2], [4, 4, 4, 1, 7]]


# ------------------------------------------------------------------ root mean squares


def numpy_errors(batches) -> dict[str, float]:
    """The definitions, over all structures and atoms at once."""
    energy = np.concatenate([(p["energy"] - t["energy"]).numpy().ravel() for p, t in batches])
    natoms = np.concatenate([t["natoms"].numpy() for _, t in batches])
    forces = np.concatenate([(p["forces"] - t["forces"]).numpy() for p, t in batches])
    return {
        "energy_rmse": np.sqrt(np.nanmean(energy**2)),
        "energy_per_atom_rmse": np.sqrt(np.nanmean((energy / natoms) ** 2)),
        "forces_rmse": np.sqrt(np.nanmean(forces**2)),
    }


@limits(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=4)
)  # fmt: skip
def test_rmse_equals_numpy_over_the_whole_set(sizes):
    batches = make_batches(sizes)
    found = evaluate(batches)
    for name, expected in numpy_errors(batches).items():
        assert found[name]["metric"] == pytest.approx(expected, rel=1e-6)


def test_rmse_is_no_mean_of_batch_values():
    batches = make_batches(SIZES)
    batches[1][0]["energy"] *= 10
    mean = np.mean([evaluate([batch])["energy_rmse"]["metric"] for batch in batches])
    assert evaluate(batches)["energy_rmse"]["metric"] != pytest.approx(mean, rel=1e-3)


def test_fixed_atoms_do_not_change_the_energy_per_atom():
    """`natoms` counts free atoms there; an energy per atom counts all of them, as `ptr` does."""
    ((prediction, label),) = make_batches([[3, 2]])
    label["ptr"] = torch.tensor([0, 13, 20])
    error = (prediction["energy"] - label["energy"]).ravel() / torch.tensor([13, 7])
    found = evaluate([(prediction, label)])["energy_per_atom_rmse"]["metric"]
    assert found == pytest.approx(error.square().mean().sqrt().item())


def test_total_energies_keep_their_digits():
    ((prediction, label),) = make_batches([[3, 2]])
    prediction["energy"] = torch.tensor([[-17000.001], [-17000.0]], dtype=torch.float64)
    label["energy"] = torch.tensor([[-17000.0], [-17000.0]], dtype=torch.float64)
    found = evaluate([(prediction, label)])["energy_rmse"]["metric"]
    assert found == pytest.approx(0.001 / math.sqrt(2), rel=1e-6)


def test_upstreams_rmse_of_norms_does_not_take_the_name():
    """Upstream's `rmse` is a mean of norms."""
    batches = make_batches(SIZES)
    found = evaluate(batches, {"energy": ["rmse", "mae"], "forces": ["rmse", "mae"]})
    for name, expected in numpy_errors(batches).items():
        assert found[name]["metric"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("level", "rows"), [("system", (5, 9)), ("atom", (12, 1))])
def test_any_output_has_a_root_mean_square_where_it_is_asked_for(level, rows):
    natoms = torch.tensor([3, 1, 5, 1, 2])
    prediction, label = ({"stress": rand(*rows, seed=seed), "natoms": natoms} for seed in (1, 2))
    label["stress"][-1] = torch.nan
    counted = slice(None, -1 if level == "system" else -2)  # the last structure has two atoms
    error = (prediction["stress"] - label["stress"])[counted].numpy()
    for function, expected in {"rmse": np.sqrt(np.mean(error**2)), "mae": np.mean(np.abs(error))}.items():
        evaluator = LabelledEvaluator(Evaluator(eval_metrics={"stress": [function]}), {"stress": level})
        found = finish(evaluator.eval(prediction, label))
        assert list(found) == [f"stress_{function}"]
        assert found[f"stress_{function}"]["metric"] == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------ upstream's metrics


def test_upstreams_metrics_are_upstreams():
    batches = make_batches(SIZES)
    metrics: dict = {}
    for prediction, label in batches:
        metrics = Evaluator(eval_metrics=UPSTREAM).eval(
            copy.deepcopy(prediction), copy.deepcopy(label), metrics
        )
    found = evaluate(batches)
    for name, entry in metrics.items():
        assert found[name]["metric"] == pytest.approx(entry["metric"], rel=1e-12)
        assert (found[name]["total"], found[name]["numel"]) == (entry["total"], entry["numel"])


def test_a_metric_waits_for_the_device_once(monkeypatch):
    """To ask whether all structures are labelled; each root mean square asks as well."""
    batches, asked, every = make_batches([[3, 1]]), [], Tensor.all
    monkeypatch.setattr(Tensor, "all", lambda *args: asked.append(args[1:]) or every(*args))
    metrics = evaluate(batches)
    assert asked.count(()) == len(metrics)


# ------------------------------------------------------------------ missing labels


def hide(batches, energy: dict[int, list[int]], forces: dict[int, list[int]]):
    """Labels of the given structures of each batch made NaN."""
    hidden = copy.deepcopy(batches)
    for i, (_, label) in enumerate(hidden):
        structure = torch.repeat_interleave(torch.arange(len(label["natoms"])), label["natoms"])
        for j in energy.get(i, []):
            label["energy"][j] = torch.nan
        for j in forces.get(i, []):
            label["forces"][structure == j] = torch.nan
    return hidden


def without(batches, gone: dict[int, list[int]]):
    """The same batches without some structures, complete."""
    kept = []
    for i, sides in enumerate(batches):
        parts = []
        for values in sides:
            natoms = values["natoms"]
            structure = torch.repeat_interleave(torch.arange(len(natoms)), natoms)
            keep = torch.tensor([j not in gone.get(i, []) for j in range(len(natoms))])
            parts.append(
                {
                    "energy": values["energy"][keep],
                    "forces": values["forces"][keep[structure]],
                    "natoms": natoms[keep],
                }
            )
        if len(parts[0]["natoms"]):
            kept.append(tuple(parts))
    return kept


def test_metrics_are_taken_over_what_is_labelled():
    batches = make_batches(SIZES)
    no_energy, no_forces = {0: [1], 2: [0, 4]}, {0: [0, 1], 1: [0], 2: [3]}
    found = evaluate(hide(batches, no_energy, no_forces))
    energies, forces = evaluate(without(batches, no_energy)), evaluate(without(batches, no_forces))
    both = {i: no_energy.get(i, []) + no_forces.get(i, []) for i in range(3)}
    joint = evaluate(without(batches, both))
    for name, entry in found.items():
        expected = energies if name.startswith("energy") else forces
        expected = joint if name == "energy_forces_within_threshold" else expected
        assert entry == pytest.approx(expected[name], rel=1e-6), name
    assert found.keys() == energies.keys()


def test_metrics_without_a_single_label_are_left_out():
    batches = hide(make_batches([[3, 1], [2]]), {}, {0: [0, 1], 1: [0]})
    found = evaluate(batches)
    assert {"energy_rmse", "energy_mae", "energy_per_atom_rmse"} <= found.keys()
    assert not [name for name in found if "forces" in name or name == "cosine_similarity"]


def test_forces_of_fixed_atoms_count_where_they_are_asked_for():
    """`natoms` counts free atoms there too; `batch` is the structure of every atom."""
    ((prediction, label),) = hide(make_batches([[3, 2]]), {}, {0: [1]})
    label["batch"] = torch.repeat_interleave(torch.arange(2), label["natoms"])
    natoms = {"natoms": torch.tensor([2, 0])}
    found = evaluate([(prediction | natoms, label | natoms)], {"forces": ["mae"]})
    error = (prediction["forces"] - label["forces"])[:3]
    assert found["forces_mae"]["metric"] == pytest.approx(error.abs().mean().item())
    assert found["forces_rmse"]["metric"] == pytest.approx(error.square().mean().sqrt().item())


def test_entry_exists_on_every_rank():
    """Ranks must agree on the names that they reduce together, whatever labels each of them has."""
    evaluator = LabelledEvaluator(Evaluator(eval_metrics=UPSTREAM), LEVELS)
    complete = make_batches([[3, 1]])
    with_labels = evaluator.eval(*complete[0])
    ((prediction, label),) = hide(complete, {0: [0, 1]}, {0: [0, 1]})
    bare = evaluator.eval(prediction, label)
    assert list(with_labels) == list(bare)
    for entry in bare.values():
        assert entry["numel"] == 0
    sums = [entry[key] for entry in summable(bare | with_labels).values() for key in ("total", "numel")]
    assert {value.dtype for value in sums} == {torch.float64}
    assert finish(bare) == {}


# ------------------------------------------------------------------ helpers


@pytest.mark.parametrize(
    ("name", "lower"),
    [
        ("energy_mae", True),
        ("forces_rmse", True),
        ("energy_mse", True),
        ("pitc_rmse", True),
        ("loss", True),
        ("forces_magnitude_error", True),
        ("forces_cosine_similarity", False),
        ("energy_forces_within_threshold", False),
        ("energy_within_threshold", False),
    ],
)
def test_direction_of_a_metric(name, lower):
    assert lower_is_better(name) is lower


def test_sums_add_up():
    metrics: dict = {}
    add(metrics, "energy_mae", 3.0, 2)
    add(metrics, "energy_mae", 0.0, 0)
    add(metrics, "energy_mae", 1.0, 2)
    add_squares(metrics, "pitc_rmse", torch.tensor([3.0, 4.0]))
    add_squares(metrics, "pitc_rmse", torch.tensor([5.0, torch.nan]), torch.tensor([True, False]))
    add(metrics, "empty", 0.0, 0)
    assert finish(metrics) == {
        "energy_mae": {"metric": 1.0, "total": 4.0, "numel": 4.0},
        "pitc_rmse": {"metric": pytest.approx(math.sqrt(50 / 3)), "total": 50.0, "numel": 3.0},
    }
