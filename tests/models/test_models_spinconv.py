"""SpinConv: published reference values, the straightforward formulation, checkpoints, settings."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from fairchem.core.datasets import data_list_collater
from fairchem.core.preprocessing import AtomsToGraphs
from helpers_models import SPINCONV, batch_of, build, structures
from helpers_spinconv import StraightforwardSpinConv

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.models.sphere import circular_convolution, fourier_tables, sphere_coordinates
from fairchem_piwsl.models.spinconv import SpinConv
from fairchem_piwsl.models.spinconv_geometry import nearest_pairs, random_rotations, rows

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "spinconv_reference.npz")


@pytest.fixture(scope="module")
def reference_model() -> SpinConv:
    model = SpinConv(
        hidden_channels=16,
        mid_hidden_channels=24,
        num_interactions=2,
        num_basis_functions=32,
        sphere_size_lat=8,
        sphere_size_long=6,
        max_num_neighbors=12,
        cutoff=5.0,
        embedding_size=8,
        max_num_elements=30,
        otf_graph=True,
    )
    state = {key.removeprefix("state/"): torch.tensor(REFERENCE[key]) for key in REFERENCE if "state/" in key}
    model.load_state_dict(state, strict=True)
    return model.eval()


def reference_batch(*indices: int):
    convert = AtomsToGraphs(r_edges=False, r_pbc=True).convert
    data = []
    for i in indices:
        entry = {key: REFERENCE[f"structure{i}/{key}"] for key in ("numbers", "pos", "cell")}
        data.append(convert(Atoms(entry["numbers"], positions=entry["pos"], cell=entry["cell"], pbc=True)))
    return data_list_collater(data, otf_graph=True)


@pytest.mark.parametrize("indices", [(0, 1, 2), (0,), (1,), (2,)])
def test_published_energies(reference_model, indices):
    with torch.no_grad():
        energy = reference_model(reference_batch(*indices))["energy"].numpy()
    np.testing.assert_allclose(energy, REFERENCE["energy"][list(indices)], rtol=1e-5)


def test_published_forces(reference_model):
    model = copy.deepcopy(reference_model)
    model.num_rand_rotations = 20
    batch = reference_batch(0, 1, 2)
    torch.manual_seed(3)
    with torch.no_grad():
        draws = torch.stack(
            [model(batch)["forces"] for _ in range(160)]
        )  # as many rotations as the reference
    standard_error = draws.std(0) / len(draws) ** 0.5
    reference, reference_error = (
        torch.tensor(REFERENCE[key]) for key in ("forces_mean", "forces_standard_error")
    )
    deviation = (draws.mean(0) - reference) / (standard_error**2 + reference_error**2).sqrt()
    assert deviation.abs().max() < 3
    assert 0.8 < deviation.square().mean().sqrt() < 1.2


@pytest.mark.parametrize("n_long", [6, 7])
def test_equals_the_straightforward_formulation(n_long):
    """Forces and all parameter gradients, with the same random rotations."""
    model = build(SPINCONV, sphere_size_long=n_long)
    plain = copy.deepcopy(model)
    plain.__class__ = StraightforwardSpinConv
    batch = batch_of(structures())
    results = []
    for candidate in (model, plain):
        torch.manual_seed(1)
        out = candidate(batch)
        (out["energy"].sum() + out["forces"].square().sum()).backward()
        results.append((out, [p.grad for p in candidate.parameters()]))
    (out, grads), (plain_out, plain_grads) = results
    torch.testing.assert_close(out["energy"], plain_out["energy"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["forces"], plain_out["forces"], rtol=1e-4, atol=1e-5)
    for grad, plain_grad in zip(grads, plain_grads, strict=True):
        torch.testing.assert_close(
            grad, plain_grad, rtol=1e-3, atol=1e-4 * float(plain_grad.abs().max() + 1e-6)
        )


@pytest.mark.parametrize("n_long", [1, 2, 5, 6, 12])
def test_convolution_in_fourier_space_is_torch_conv1d(n_long):
    groups, n_lat, channels, n_out = 2, 3, 4, 6
    conv = torch.nn.Conv1d(channels * n_lat, n_out, n_long, groups=groups).double()
    grid = torch.randn(5, channels, n_lat, n_long, dtype=torch.float64)
    analysis, _, _ = fourier_tables(n_long, torch.float64, torch.device("cpu"))
    spectrum = torch.einsum("sclx,xkp->sckpl", grid, analysis).flatten(2)
    out = circular_convolution(spectrum, conv.weight, conv.bias, groups)
    pad = n_long // 2
    padded = torch.cat([grid[..., n_long - pad :], grid, grid[..., :pad]], dim=-1)
    expected = conv(padded.flatten(1, 2))[..., :n_long]
    torch.testing.assert_close(out.permute(2, 0, 3, 1).reshape(5, n_out, n_long), expected)


def test_coordinates_at_the_poles_are_constant_and_differentiable():
    unit = torch.tensor(
        [[-1.0, 1e-8, -2e-8], [-1.0, 0, 0], [1.0, 0, 3e-8], [0.6, 0.8, 0]], requires_grad=True
    )
    latitude, longitude = sphere_coordinates(unit, 16, 12)
    assert latitude[:2].tolist() == pytest.approx([0.005 * 15] * 2, abs=1e-6)
    assert longitude[0] == longitude[1]
    (grad,) = torch.autograd.grad(latitude.sum() + longitude.sum(), unit)
    assert torch.isfinite(grad).all()
    assert not grad[:3].any()
    assert grad[3].any()


def test_mixed_precision_keeps_the_geometry():
    model, batch = build(SPINCONV), batch_of(structures())
    expected = model(batch)["energy"].detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        energy = model(batch)["energy"].detach().float()
    torch.testing.assert_close(energy, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_rotations_are_rotations():
    rotation = random_rotations(50, 3, torch.zeros(1, dtype=torch.float64))
    identity = torch.eye(3, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, identity)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(50, 3, dtype=torch.float64))


def test_rows_and_their_derivatives_are_those_of_indexing():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[4, 0, 0], [1, 4, 0]])
    assert torch.equal(rows(x, index), x[index])
    factors = torch.arange(1.0, 7.0, dtype=torch.float64).view(2, 3, 1)
    ours, torchs = (torch.autograd.grad((y * factors).sum(), x)[0] for y in (rows(x, index), x[index]))
    torch.testing.assert_close(ours, torchs)
    assert torch.autograd.gradgradcheck(lambda x: rows(x, index).pow(3), (x,))


def test_pairs_stay_where_they_are_near_for_either_end():
    edge_index = torch.tensor([[1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]])
    distance = torch.tensor([1.0, 2.0, 1.0, 1.5, 2.0, 1.5])  # nearest: 0-1, 1-0, 2-1
    assert nearest_pairs(edge_index, distance, 3, 1).tolist() == [0, 2, 3, 5]
    assert nearest_pairs(edge_index, distance, 3, 2).tolist() == list(range(6))


def test_a_structure_without_neighbours_has_an_energy():
    lonely = Atoms("HH", [(0, 0, 0), (9, 0, 0)], cell=[30.0] * 3, pbc=True)
    convert = AtomsToGraphs(r_edges=False, r_pbc=True).convert
    batch = data_list_collater([convert(atoms) for atoms in (*structures(), lonely)], otf_graph=True)
    out = build(SPINCONV, otf_graph=True)(batch)
    assert torch.isfinite(out["energy"]).all()
    assert torch.isfinite(out["forces"]).all()


@pytest.mark.parametrize(
    "wrong", [{"force_estimator": "gradient"}, {"hidden_channels": 12}, {"sphere_message": "rotated"}]
)
def test_wrong_settings_name_the_key(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        build(SPINCONV | wrong)
