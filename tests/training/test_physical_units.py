"""Outputs and labels in kcal/mol, without a trainer."""

from __future__ import annotations

import pytest
import torch
from fairchem.core.modules.normalization.element_references import LinearReferences
from fairchem.core.modules.normalization.normalizer import Normalizer
from torch_geometric.data import Batch, Data

from fairchem_piwsl.training.physical_units import PhysicalUnits

EV = 23.060548
MEAN, WIDTH, FORCE_WIDTH = -4.0, 0.5, 1.5
OXYGEN, HYDROGEN = -2041.0, -13.6


def normalizers() -> dict:
    return {"energy": Normalizer(MEAN, WIDTH), "forces": Normalizer(0.0, FORCE_WIDTH)}


def references() -> dict:
    table = torch.zeros(10, dtype=torch.float64)
    table[8], table[1] = OXYGEN, HYDROGEN
    return {"energy": LinearReferences(table)}


def batch() -> Batch:
    """Water with and water without labels."""
    water = dict(atomic_numbers=torch.tensor([8, 1, 1]), natoms=3)
    labelled = Data(
        **water,
        energy=torch.tensor([-2070.0], dtype=torch.float64),
        forces=torch.full((3, 3), 0.2),
        pos=torch.zeros(3, 3),
    )
    missing = Data(
        **water,
        energy=torch.tensor([torch.nan], dtype=torch.float64),
        forces=torch.full((3, 3), torch.nan),
        pos=torch.zeros(3, 3),
    )
    return Batch.from_data_list([labelled, missing])


def test_outputs_without_normaliser_are_label_units():
    outputs = {"energy": torch.tensor([[1.0], [2.0]]), "forces": torch.ones(6, 3)}
    found = PhysicalUnits(EV, {}, {}).prediction(outputs)
    torch.testing.assert_close(found.energy, torch.tensor([EV, 2 * EV]))
    torch.testing.assert_close(found.forces, torch.full((6, 3), EV))


def test_normalised_outputs():
    """Energies count from the normaliser's mean, forces from zero."""
    outputs = {"energy": torch.tensor([[1.0], [2.0]]), "forces": torch.ones(6, 3)}
    units = PhysicalUnits(EV, normalizers(), references())
    found = units.prediction(outputs)
    torch.testing.assert_close(found.energy, WIDTH * EV * torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(found.forces, torch.full((6, 3), FORCE_WIDTH * EV))
    assert float(units.kcal_per_output) == pytest.approx(WIDTH * EV)
    assert PhysicalUnits(EV, {}, {}).kcal_per_output == EV


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float(dtype):
    outputs = {"energy": torch.ones(2, 1, dtype=dtype), "forces": torch.ones(6, 3, dtype=dtype)}
    found = PhysicalUnits(1.0, {}, {}).prediction(outputs)
    assert found.energy.dtype == found.forces.dtype == torch.float32


def test_labels_have_the_zero_of_the_predictions():
    """A model that is right about a label predicts that label's energy, whatever normaliser and references are."""
    plain = PhysicalUnits(EV, {}, {})
    torch.testing.assert_close(plain.energy_labels(batch())[0].item(), -2070.0 * EV)
    total = -2070.0 - OXYGEN - 2 * HYDROGEN
    full = PhysicalUnits(EV, normalizers(), references())
    label = full.energy_labels(batch())
    assert label[0].item() == pytest.approx((total - MEAN) * EV, rel=1e-6)
    right = {"energy": torch.tensor([[(total - MEAN) / WIDTH]]), "forces": torch.zeros(3, 3)}
    assert full.prediction(right).energy.item() == pytest.approx(label[0].item(), rel=1e-6)


def test_force_labels_are_not_normalised():
    found = PhysicalUnits(EV, normalizers(), references()).force_labels(batch())
    torch.testing.assert_close(found[:3], torch.full((3, 3), 0.2 * EV))


def test_missing_labels_are_nan():
    units = PhysicalUnits(EV, normalizers(), references())
    assert units.energy_labels(batch()).isnan().tolist() == [False, True]
    assert units.force_labels(batch()).isnan().all(-1).tolist() == [False] * 3 + [True] * 3
