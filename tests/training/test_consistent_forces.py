"""Forces that are the gradient of the energy, and forces that are not, for every model."""

from __future__ import annotations

import pytest
import torch
from helpers_models import DIRECT, batch_of, build, gradient, structures

from fairchem_piwsl.training.consistent_forces import forces_are_gradients
from fairchem_piwsl.training.stacking import SharedGraph


def answer(config: dict, **changes) -> bool:
    model = build(config, otf_graph=True, **changes).train()
    before = torch.get_rng_state()
    found = forces_are_gradients(model, batch_of(structures()[:1]), SharedGraph(model))
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    return found


@pytest.mark.parametrize("name", DIRECT)
def test_models_as_they_come(name):
    assert answer(DIRECT[name]) == (name == "schnet")


@pytest.mark.parametrize("name", DIRECT)
def test_models_with_gradient_forces(name):
    assert answer(gradient(DIRECT[name]))


def test_painn_with_its_own_gradient_forces():
    """fairchem's: the gradient of the sum of its features, which is not that of its energy."""
    assert not answer(DIRECT["painn"], direct_forces=False)
