"""Element references that bridge a model and labels of another level of theory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import (
    KCAL_PER_MOL,
    labelled_molecules,
    make_config,
    make_trainer,
    parameters,
    to_data,
    write_lmdb,
)
from torch import nn

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training.fine_tuning import from_config, references_of_difference


class Distances(nn.Module):
    """An energy that is no sum over elements: of the distances from the mean position, in kcal/mol."""

    def forward(self, data):
        return {"energy": (data.pos - data.pos.mean(0)).norm(dim=1).sum().view(1)}


def test_the_difference_of_the_levels_is_found():
    shift = {1: -13.6, 6: -1030.0, 8: -2040.0}
    records = [to_data(atoms, i) for i, atoms in enumerate(labelled_molecules(9))]
    for record in records:
        own = float(Distances()(record)["energy"]) * KCAL_PER_MOL
        total = own + sum(shift[z] for z in record.atomic_numbers.tolist())
        record.energy = torch.tensor(total, dtype=torch.float64)
    records[4].energy = torch.tensor(float("nan"))
    references = references_of_difference(Distances(), records, lambda energy: KCAL_PER_MOL * energy)
    assert references[[1, 6, 8]] == pytest.approx([-13.6, -1030.0, -2040.0], abs=1e-4)
    assert np.count_nonzero(references) == 3


def test_from_a_config_with_a_checkpoint(tmp_path):
    records = [to_data(atoms, i) for i, atoms in enumerate(labelled_molecules(12))]
    for split in ("train", "val", "test"):
        write_lmdb(tmp_path / f"{split}.lmdb", records)
    config = make_config(tmp_path, tmp_path, max_epochs=1, eval_every=3, lr_initial=0.01)
    trained = make_trainer(config)
    trained.train()
    [checkpoint] = tmp_path.rglob("best_checkpoint.pt")
    config["optim"]["finetune_from"] = str(checkpoint)
    own = {"energy": {"file": str(tmp_path / "to_be_made.npz")}}
    config["dataset"]["train"]["transforms"]["element_references"] = own
    references = from_config(config)
    config["dataset"]["train"]["transforms"].pop("element_references")

    model = make_trainer(config).model.eval()
    assert not torch.equal(
        parameters(make_trainer(make_config(tmp_path, tmp_path)))[0], next(model.parameters())
    )
    for kind in {tuple(record.atomic_numbers.tolist()) for record in records}:
        of_kind = [record for record in records if tuple(record.atomic_numbers.tolist()) == kind]
        predicted = [float(model(to_batch(record))["energy"].detach()) * KCAL_PER_MOL for record in of_kind]
        labels = [float(record.energy) for record in of_kind]
        # three molecules, three elements: the mean error of each molecule vanishes
        assert np.mean(labels) == pytest.approx(
            np.mean(predicted) + sum(references[z] for z in kind), abs=1e-3
        )


def test_every_kind_of_normaliser_counts(tmp_path):
    """The references take the network's unit and the mean out, whichever way the config gives them."""
    records = [to_data(atoms, i) for i, atoms in enumerate(labelled_molecules(12))]
    for split in ("train", "val", "test"):
        write_lmdb(tmp_path / f"{split}.lmdb", records)
    config = make_config(tmp_path, tmp_path, max_epochs=1, eval_every=3)
    make_trainer(config).train()
    [checkpoint] = tmp_path.rglob("best_checkpoint.pt")
    config["optim"]["finetune_from"] = str(checkpoint)
    np.savez(tmp_path / "normalizer.npz", mean=[1.5], rmsd=[KCAL_PER_MOL])

    def references(**energy):
        config["dataset"]["train"]["transforms"]["normalizer"]["energy"] = energy
        return from_config(config)

    plain = references(mean=0.0, stdev=KCAL_PER_MOL)
    np.testing.assert_allclose(references(mean=0.0, rmsd=KCAL_PER_MOL), plain, atol=1e-6)
    for shifted in (
        references(mean=1.5, rmsd=KCAL_PER_MOL),
        references(file=str(tmp_path / "normalizer.npz")),
    ):
        for record in records:
            kind = record.atomic_numbers.long().numpy()
            assert plain[kind].sum() - shifted[kind].sum() == pytest.approx(1.5, abs=1e-3)
    splits = config["dataset"]
    config["dataset"] = [splits[name] for name in ("train", "val", "test")]
    splits["train"]["transforms"]["element_references"] = {
        "energy": {"file": str(tmp_path / "to_be_made.npz")}
    }
    np.testing.assert_allclose(from_config(config), shifted, atol=1e-6)
    splits["train"]["transforms"]["normalizer"] = {"fit": {"targets": ["energy"], "batch_size": 4}}
    with pytest.raises(UserError, match="normalizer has no block 'energy'"):
        from_config(config)


def to_batch(record):
    from fairchem.core.datasets import data_list_collater

    return data_list_collater([record], otf_graph=True)


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.train\.src"):
        from_config(make_config(tmp_path, tmp_path))


def test_random_weights_are_no_start(tiny_data, tmp_path):
    with pytest.raises(UserError, match=r"random weights.*optim\.finetune_from"):
        from_config(make_config(tiny_data, tmp_path))
