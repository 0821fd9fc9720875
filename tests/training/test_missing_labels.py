"""Missing labels: NaN in the batch, no loss, no gradient; upstream's loss where nothing is missing."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import labelled_molecules, make_config, make_trainer, to_data, write_lmdb
from fairchem.core.datasets import data_list_collater
from fairchem.core.modules.loss import DDPLoss
from torch import Tensor

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training.missing_labels import (
    FillMissingLabels,
    LabelledLoss,
    labelled_structures,
    mean_over_ranks,
)

NATOMS = torch.tensor([3, 1, 5])
BATCH = torch.repeat_interleave(torch.arange(3), NATOMS)
TARGETS = {"energy": {"level": "system"}, "forces": {"level": "atom"}}
ENERGY_LOSSES = ["mae", "mse", "per_atom_mae"]
FORCE_LOSSES = ["l2mae", "l2norm", "mae", "mse"]
CASES = [*((name, 3, 1) for name in ENERGY_LOSSES), *((name, 9, 3) for name in FORCE_LOSSES)]


def rand(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=dtype)


def value_and_gradient(loss, prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    variable = prediction.clone().requires_grad_()
    value = loss(variable, label, natoms=NATOMS)
    value.backward()
    return value.detach(), variable.grad


# ------------------------------------------------------------------ loss


@pytest.mark.parametrize(("name", "rows", "columns"), CASES)
@pytest.mark.parametrize("reduction", ["mean", "sum", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_to_upstream_bit_for_bit_where_all_is_labelled(name, rows, columns, reduction, dtype):
    prediction, label = rand(rows, columns, dtype=dtype), rand(rows, columns, 1, dtype)
    upstream = DDPLoss(name, reduction)
    ours = value_and_gradient(LabelledLoss(upstream), prediction, label)
    theirs = value_and_gradient(upstream, prediction, label)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(("name", "rows", "columns"), CASES)
def test_float64_labels_train_every_loss(name, rows, columns):
    """Labels keep float64 where energies need its digits, models predict float32."""
    prediction, label = rand(rows, columns), rand(rows, columns, 1, torch.float64)
    upstream = DDPLoss(name, "mean")
    value, gradient = value_and_gradient(LabelledLoss(upstream), prediction, label)
    _, expected = value_and_gradient(upstream, prediction, label.float())
    torch.testing.assert_close(gradient, expected)
    if name == "mse":  # upstream cannot differentiate it in torch 2.4
        assert torch.equal(value, upstream(prediction, label, natoms=NATOMS))
    else:
        theirs = value_and_gradient(upstream, prediction, label)
        assert torch.equal(value, theirs[0])
        assert torch.equal(gradient, theirs[1])


@pytest.mark.parametrize(("name", "rows", "columns"), CASES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_partial_labels_give_the_loss_over_labelled_rows(name, rows, columns, reduction):
    prediction, label = rand(rows, columns), rand(rows, columns, 1)
    missing = torch.zeros(rows, dtype=torch.bool)
    missing[1] = missing[-1] = True
    label[missing] = torch.nan
    upstream = DDPLoss(name, reduction)
    value, gradient = value_and_gradient(LabelledLoss(upstream), prediction, label)
    kept = prediction[~missing].requires_grad_()
    expected = upstream(kept, label[~missing], natoms=NATOMS[~missing] if rows == 3 else NATOMS)
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient[~missing], kept.grad)
    assert gradient[missing].eq(0).all()


def test_one_missing_component_leaves_out_its_atom():
    prediction, label = rand(9, 3), rand(9, 3, 1)
    label[4, 2] = torch.nan
    _, gradient = value_and_gradient(LabelledLoss(DDPLoss("mae", "mean")), prediction, label)
    assert gradient[4].eq(0).all()
    assert gradient[:4].ne(0).all()


@pytest.mark.parametrize(("name", "rows", "columns"), CASES)
def test_no_label_at_all_is_zero_and_stays_in_the_graph(name, rows, columns):
    """Distributed training waits for a gradient of every parameter."""
    label = torch.full((rows, columns), torch.nan)
    value, gradient = value_and_gradient(LabelledLoss(DDPLoss(name, "mean")), rand(rows, columns), label)
    assert value == 0
    assert gradient.eq(0).all()


def test_a_prediction_that_is_not_a_number_is_not_hidden():
    prediction, label = rand(3, 1), rand(3, 1, 1)
    prediction[1] = torch.nan
    value, _ = value_and_gradient(LabelledLoss(DDPLoss("mae", "mean")), prediction, label)
    assert value.isnan()


@pytest.mark.parametrize("name", ENERGY_LOSSES)
def test_energies_in_float64_train_through_the_trainer(tmp_path, name):
    """As `piwsl prepare` writes them: energy float64, a number without dimension."""
    for split, count in {"train": 8, "val": 3, "test": 3}.items():
        data = [to_data(atoms, i) for i, atoms in enumerate(labelled_molecules(count))]
        for record in data:
            record.energy = record.energy.double()
            assert record.energy.dim() == 0
        write_lmdb(tmp_path / f"{split}.lmdb", data)
    config = make_config(tmp_path, tmp_path, max_epochs=1, piwsl={"c_pitc": 0.1, "c_wl": 0.1})
    config["loss_functions"][0]["energy"]["fn"] = name
    trainer = make_trainer(config)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train(disable_eval_tqdm=True)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


# ------------------------------------------------------------------ filling


def collate(records, targets=TARGETS):
    return FillMissingLabels(partial(data_list_collater, otf_graph=True), targets)(records)


def records(**missing: tuple[int, ...]):
    structures = labelled_molecules(3)
    return [
        to_data(atoms, i, **{name: i not in where for name, where in missing.items()})
        for i, atoms in enumerate(structures)
    ]


def test_complete_records_are_collated_as_upstream_does():
    ours, theirs = collate(records()), data_list_collater(records(), otf_graph=True)
    assert set(ours.keys()) == set(theirs.keys())
    for key in ("energy", "forces", "pos", "batch", "natoms"):
        assert torch.equal(ours[key], theirs[key])


def test_missing_labels_are_nan_in_the_shape_of_the_others():
    batch = collate(records(energy=(1,), forces=(0, 2)))
    assert batch.energy.shape == (3,)
    assert batch.energy.isnan().tolist() == [False, True, False]
    assert batch.forces.shape == (len(batch.pos), 3)
    assert torch.equal(batch.forces.isnan().all(-1), batch.batch != 1)
    assert torch.equal(batch.forces.isnan().any(-1), batch.batch != 1)


@pytest.mark.parametrize("missing", [(0,), (1, 2)])
@pytest.mark.parametrize("form", ["number", "scalar", "vector", "float64"])
def test_any_form_of_energy_mixes_with_missing_ones(missing, form):
    data = records(energy=missing)
    values = []
    for record in data:
        if "energy" in record:
            value = record.energy.double() if form == "float64" else record.energy
            values.append(value)
            record.energy = {"number": value.item(), "vector": value.reshape(1)}.get(form, value)
    energy = collate(data).energy
    assert energy.shape == (3,)
    assert torch.equal(energy[~energy.isnan()], torch.stack(values).to(energy))
    assert energy.dtype == (torch.float64 if form in ("number", "float64") else torch.float32)


def test_a_number_keeps_its_digits():
    """As `ase_db` gives them: a total energy of all electrons, in float32 half an eV off."""
    data = records()
    for record in data:
        record.energy = -6333329.02
    assert collate(data).energy.tolist() == [-6333329.02] * 3


def test_labels_that_no_record_has_are_made_for_all():
    batch = collate(records(forces=(0, 1, 2), energy=(0, 1, 2)))
    assert batch.forces.isnan().all()
    assert batch.energy.isnan().all()
    assert batch.energy.shape == (3,)


def test_data_sets_with_and_without_a_target_are_left_alone():
    batch = collate(records(forces=(0, 1, 2)), targets={"energy": {"level": "system"}})
    assert "forces" not in batch


def test_infinite_label_is_named():
    data = records()
    data[1].forces[0, 0] = torch.inf
    with pytest.raises(UserError, match=r"structure 1 has an infinite label 'forces'.*piwsl prepare"):
        collate(data)


# ------------------------------------------------------------------ helpers


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("cell", None, "lacks 'cell'"),
        ("forces", torch.zeros(4, 2), "'forces' of shape"),
        ("fixed", None, "'fixed'"),
    ],
)
def test_a_record_that_fits_no_batch_is_named(name, value, words):
    batch = records()
    batch[1][name] = value
    with pytest.raises(UserError, match=rf"structure 1 .*{words}.*piwsl prepare"):
        collate(batch)


def test_labelled_structures():
    energy = torch.tensor([1.0, torch.nan, 2.0])
    for shape in ((3,), (3, 1)):
        assert labelled_structures(energy.reshape(shape), None, 3).tolist() == [True, False, True]
    forces = torch.zeros(9, 3)
    forces[3, 1] = torch.nan  # the only atom of structure 1
    forces[8, 0] = torch.nan
    # structure 3 has no rows: all of its atoms are fixed
    assert labelled_structures(forces, BATCH, 4).tolist() == [True, False, False, False]


def test_mean_over_ranks_of_one_rank():
    values = torch.tensor([1.0, 5.0, torch.nan], requires_grad=True)
    assert mean_over_ranks(values[:2]) == 3
    mean = mean_over_ranks(values, torch.tensor([True, True, False]))
    assert mean == 3
    mean.backward()
    assert values.grad.tolist() == [0.5, 0.5, 0.0]
    assert mean_over_ranks(values[:2], torch.zeros(2, dtype=torch.bool)) == 0
