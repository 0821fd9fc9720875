"""Forces as energy gradients: central differences in float64, with and without random layers; edge frames."""

from __future__ import annotations

import copy

import pytest
import torch
from fairchem.core.models.escn.so3 import SO3_Rotation
from helpers_models import (
    DIRECT,
    EQUIFORMER_V2,
    ESCN,
    PAINN,
    SPINCONV,
    batch_of,
    build,
    double_precision,
    gradient,
    structures,
)

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.upstream.edge_frames import POLES, align_with_y, wigner_matrices

# Equiformer v2 has 600 narrow Gaussians, hence large third derivatives; SpinConv's energy has kinks where a
# neighbour passes from one cell of a sphere to the next
STEP = {"equiformer_v2": 4e-6, "spinconv": 1e-6}


def central_difference(model, batch, direction, step):
    """-dE along a direction, of each structure; two steps remove the error of second order."""

    def difference(h):
        energies = []
        for sign in (1, -1):
            displaced = copy.copy(batch)
            displaced.pos = batch.pos + sign * h * direction
            torch.manual_seed(5)
            energies.append(model(displaced)["energy"].detach().view(-1))
        return (energies[1] - energies[0]) / (2 * h)

    return (4 * difference(step / 2) - difference(step)) / 3


def deviation_from_central_differences(model, batch, step, directions=5):
    """Largest deviation of -dE along random directions, relative to the largest value."""
    torch.manual_seed(5)
    forces = model(batch)["forces"].detach()
    generator = torch.Generator().manual_seed(0)
    deviations, largest = [], 0.0
    for _ in range(directions):
        direction = torch.randn(batch.pos.shape, generator=generator)
        expected = central_difference(model, batch, direction, step)
        found = torch.zeros_like(expected).index_add(0, batch.batch, (forces * direction).sum(-1))
        deviations.append(float((found - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    assert largest > 0
    return max(deviations) / largest


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", DIRECT)
def test_forces_are_energy_gradients(name, training):
    """In training with the same random numbers: dropout, stochastic depth and angles of the edge frames."""
    with double_precision():
        model = build(gradient(DIRECT[name])).train(training)
        batch = batch_of(structures(), torch.float64)
        assert deviation_from_central_differences(model, batch, STEP.get(name, 2e-5)) < 1e-5


def test_spinconvs_own_estimator_is_exact():
    with double_precision():
        model = build(SPINCONV, force_estimator="grad")
        assert (
            deviation_from_central_differences(model, batch_of(structures(), torch.float64), STEP["spinconv"])
            < 1e-5
        )


@pytest.mark.parametrize("config", [ESCN, EQUIFORMER_V2], ids=["escn", "equiformer_v2"])
def test_upstreams_detached_frames_would_give_wrong_forces(config):
    with double_precision():
        model = build(config, regress_forces=False).eval()
        batch = batch_of(structures(), torch.float64)
        batch.pos.requires_grad_()
        torch.manual_seed(5)
        (grad,) = torch.autograd.grad(model(batch)["energy"].sum(), batch.pos)
        batch.pos = batch.pos.detach()
        direction = torch.randn_like(batch.pos)
        expected = central_difference(model, batch, direction, 1e-6)
        found = torch.zeros_like(expected).index_add(0, batch.batch, -(grad * direction).sum(-1))
        assert (found - expected).abs().max() > 1e-4 * expected.abs().max()


def test_upstreams_painn_differentiates_its_embedding_instead_of_the_energy():
    with double_precision():
        batch = batch_of(structures(), torch.float64)
        assert deviation_from_central_differences(build(PAINN, direct_forces=False), batch, 2e-5) > 0.1


@pytest.mark.parametrize("name", DIRECT)
def test_energies_in_evaluation_are_deterministic(name):
    model = build(gradient(DIRECT[name])).eval()
    batch = batch_of(structures())
    assert torch.equal(model(batch)["energy"], model(batch)["energy"])


@pytest.mark.parametrize("config", [ESCN, EQUIFORMER_V2], ids=["escn", "equiformer_v2"])
def test_energies_are_upstreams_within_the_scatter_of_its_frames(config):
    direct = build(config).eval()
    wrapped = build(gradient(config)).eval()
    wrapped.model.load_state_dict(direct.state_dict(), strict=False)
    batch = batch_of(structures())
    with torch.no_grad():
        upstream = torch.stack([direct(batch)["energy"] for _ in range(20)])
        deviation = (wrapped(batch)["energy"] - upstream.mean(0)).abs()
    assert (deviation < 5 * upstream.std(0) + 1e-7).all()


@pytest.mark.parametrize("name", DIRECT)
def test_forces_can_be_trained_and_the_batch_is_left_as_it_came(name):
    model = build(gradient(DIRECT[name])).train()
    batch = batch_of(structures())
    before = batch.pos.clone()
    out = model(batch)
    out["forces"].square().sum().backward()
    assert sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None) > 0
    assert torch.equal(batch.pos, before)
    assert not batch.pos.requires_grad
    copy.deepcopy(model)  # no graph stays behind
    with torch.no_grad():
        assert not model(batch)["forces"].requires_grad


def test_every_parameter_takes_part():
    """Otherwise distributed training stops with an error about unused parameters."""
    for name, config in DIRECT.items():
        model = build(gradient(config)).train()
        out = model(batch_of(structures()))
        (out["energy"].sum() + out["forces"].square().sum()).backward()
        unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not unused, name


def test_mistakes_name_the_key():
    with pytest.raises(UserError, match="name"):
        build({"name": "gradient_forces", "model": {"num_layers": 2}})
    backbone = {k: v for k, v in ESCN.items() if k != "name"} | {
        "model": "escn_backbone",
        "activation_checkpoint": True,
    }
    with pytest.raises(UserError, match="activation_checkpoint"):
        build(
            {
                "name": "gradient_forces",
                "model": {"name": "escn"} | {k: v for k, v in backbone.items() if k != "model"},
            }
        )


# ---------------------------------------------------------------- edge frames


def unit_vectors(count: int) -> torch.Tensor:
    """Random directions, the axes, and the opposites of both poles."""
    generator = torch.Generator().manual_seed(1)
    special = torch.cat([torch.eye(3), -torch.eye(3), -torch.tensor(POLES)])
    return torch.nn.functional.normalize(
        torch.cat([special, torch.randn(count, 3, generator=generator)]), dim=-1
    )


def test_frames_take_edges_to_y():
    with double_precision():
        unit = unit_vectors(200).requires_grad_()
        rotation = align_with_y(unit, 6 * torch.rand(len(unit)))
        identity = torch.eye(3).expand_as(rotation)
        torch.testing.assert_close(rotation @ rotation.mT, identity)
        torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(len(unit)))
        torch.testing.assert_close((rotation @ unit[..., None]).squeeze(-1), identity[:, 1])
        (grad,) = torch.autograd.grad(rotation.square().sum() + rotation.sum(), unit)
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("lmax", [0, 1, 4, 6])
def test_wigner_matrices_are_upstreams(lmax):
    with double_precision():
        unit = unit_vectors(50)
        rotation = align_with_y(unit, 6 * torch.rand(len(unit)))
        torch.testing.assert_close(
            wigner_matrices(rotation, lmax), SO3_Rotation(rotation, lmax).wigner, atol=1e-6, rtol=0
        )
