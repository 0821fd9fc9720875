"""Forces that are the gradient of the energy, and forces that are not, for every model."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import make_config, make_trainer
from helpers_models import DIRECT, batch_of, build, gradient, structures

from fairchem_piwsl.training.consistent_forces import energy_of_model_is_differentiable, forces_are_gradients
from fairchem_piwsl.training.energy_gradient import energy_is_differentiable
from fairchem_piwsl.training.stacking import SharedGraph


def answer(config: dict, question=forces_are_gradients, share: bool = True, **changes) -> bool:
    model = build(config, otf_graph=True, **changes).train()
    model(batch_of(structures()[:1]))  # some models keep tensors of their first call
    before = torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    found = question(model, batch_of(structures()[:1]), SharedGraph(model, share), lambda m, batch: m(batch))
    assert [module.training for module in model.modules()] == modes
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


def test_heads_that_start_at_zero_are_no_gradient_of_each_other():
    model = build(DIRECT["painn"], otf_graph=True)
    for parameter in model.parameters():
        parameter.data.zero_()
    batch = batch_of(structures()[:1])
    assert not forces_are_gradients(model, batch, SharedGraph(model), lambda m, batch: m(batch))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", DIRECT)
def test_models_whose_energy_can_be_differentiated(name, share):
    """eSCN and Equiformer v2 draw frames of their edges at random and hold them constant."""
    expected = name not in ("escn", "equiformer_v2")
    assert answer(DIRECT[name], energy_of_model_is_differentiable, share) == expected


@pytest.mark.parametrize("name", ["escn", "equiformer_v2"])
def test_frames_that_carry_gradients(name):
    assert answer(gradient(DIRECT[name]), energy_of_model_is_differentiable)


PAINN_HEADS = {
    "name": "hydra",
    "otf_graph": True,
    "backbone": {**{k: v for k, v in DIRECT["painn"].items() if k != "name"}, "model": "painn_backbone"},
    "heads": {"energy": {"module": "painn_energy_head"}, "forces": {"module": "painn_force_head"}},
}
#: differentiates its energy itself
ESEN = {
    "name": "hydra",
    "otf_graph": True,
    "pass_through_head_outputs": True,
    "backbone": dict(
        model="esen_backbone", sphere_channels=4, hidden_channels=4, edge_channels=4, lmax=1, mmax=1, num_layers=1,
        num_distance_basis=8, cutoff=5.0, otf_graph=True, use_pbc=True, max_neighbors=100, distance_function="gaussian",
        norm_type="rms_norm_sh", mlp_type="spectral", act_type="gate", use_envelope=True,
    ),
    "heads": {"energy": {"module": "esen_mlp_efs_head"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "properties", "gradients"),
    [
        (PAINN_HEADS, True, False),
        ({**PAINN_HEADS, "pass_through_head_outputs": True}, False, False),
        (ESEN, False, True),
    ],
)
def test_models_with_heads(model, properties, gradients, tiny_data, tmp_path):
    """Outputs are read as the trainer reads them, also where each head returns a dictionary of its own."""
    config = make_config(tiny_data, tmp_path, piwsl={"auto": True})
    config["model"] = copy.deepcopy(model)
    for name in ("energy", "forces") if properties else ():
        config["outputs"][name]["property"] = name
    trainer = make_trainer(config)
    trainer.settle()
    assert trainer.piwsl.weak != gradients
    trainer = make_trainer({**config, "optim": {**config["optim"], "piwsl": {"c_pitc": 1.0, "eps_max": 0}}})
    trainer.settle()  # has a gradient
    assert trainer.piwsl.differentiates


def harmonic(pos: torch.Tensor, stiffness: torch.Tensor) -> torch.Tensor:
    return 0.5 * stiffness * pos.square().sum(-1)


ENERGIES = {
    "smooth": (harmonic, True),
    "a part held constant": (lambda pos, k: harmonic(pos, k) + harmonic(pos.detach(), k), False),
    "drawn at random": (lambda pos, k: harmonic(pos, k) + torch.rand(1), False),
    "without a graph": (lambda pos, k: harmonic(pos.detach(), k.detach()), False),
}


@pytest.mark.parametrize(("energy", "expected"), ENERGIES.values(), ids=ENERGIES.keys())
def test_energies_that_can_be_differentiated(energy, expected):
    stiffness, pos = torch.tensor(3.0, requires_grad=True), torch.ones(4, 3)
    assert energy_is_differentiable(lambda at: energy(at, stiffness), pos, [stiffness]) == expected
