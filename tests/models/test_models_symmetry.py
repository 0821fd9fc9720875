"""Every model: rotation, translation, permutation, batch independence; shared against separate neighbour lists."""

from __future__ import annotations

import copy
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from ase.build import molecule
from helpers_models import CUTOFF, DIRECT, SPINCONV, batch_of, build, gradient, structures
from scipy.spatial.transform import Rotation

from fairchem_piwsl.training.shared_randomness import shared_randomness
from fairchem_piwsl.training.stacking import SharedGraph, stack

MACE = dict(
    name="fairchem_piwsl.models.mace.MACE",
    elements=["H", "C", "O", "Ti"],
    hidden_irreps="4x0e + 4x1o",
    mlp_irreps="4x0e",
    max_ell=2,
    correlation=2,
    num_bessel=4,
    radial_mlp=[8, 8],
    cutoff=CUTOFF,
)
FINE = {"escn": {"resolution": 14, "num_sphere_samples": 128}, "equiformer_v2": {"grid_resolution": 14}}
MODELS = {name: config | FINE.get(name, {}) for name, config in DIRECT.items()}
MODELS |= {f"{name}, gradient forces": gradient(config) for name, config in MODELS.items()}
MODELS["spinconv, own gradient"] = SPINCONV | {"force_estimator": "grad"}
if find_spec("mace"):
    MODELS["mace"] = MACE

# Largest deviation relative to the largest value. Exact models have rounding only. eSCN and Equiformer v2 sample
# spheres on grids, in random frames unless forces are gradients; SpinConv adds a constant vector to the direction
# that fixes the angle of its frames, and its direct forces are random, so that only their mean turns along.
ROTATION = {
    "schnet": 1e-5,
    "painn": 1e-5,
    "mace": 1e-5,
    "spinconv": 2e-2,
    "escn": 2e-2,
    "equiformer_v2": 1e-2,
}
FRAMES = {"escn": 2e-2, "equiformer_v2": 2e-3}
RANDOM_FORCES = ("spinconv",)


@cache
def model(name: str) -> torch.nn.Module:
    return build(MODELS[name]).eval()


def tolerance(name: str, table: dict[str, float]) -> float:
    deterministic = "gradient" in name and table is FRAMES
    return 2e-5 if deterministic else table.get(name.split(",")[0], 2e-5)


def predict(name: str, atoms: list) -> tuple[np.ndarray, np.ndarray]:
    """Energies and forces; every call draws the same random numbers."""
    net = model(name)
    torch.manual_seed(0)
    out = net(batch_of(atoms))
    return out["energy"].detach().numpy().reshape(-1), out["forces"].detach().numpy()


def assert_close(found: np.ndarray, expected: np.ndarray, relative: float) -> None:
    assert np.abs(found - expected).max() <= relative * np.abs(expected).max()


@pytest.mark.parametrize("name", MODELS)
def test_rotation(name):
    turn = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    rotated = structures()
    for atoms in rotated:
        atoms.set_cell(atoms.cell @ turn.T)
        atoms.positions = atoms.positions @ turn.T
    energy, forces = predict(name, structures())
    turned_energy, turned_forces = predict(name, rotated)
    assert_close(turned_energy, energy, tolerance(name, ROTATION))
    if name not in RANDOM_FORCES:
        assert_close(turned_forces, forces @ turn.T, 5 * tolerance(name, ROTATION))


@pytest.mark.parametrize("name", MODELS)
def test_translation(name):
    moved = structures()
    for atoms in moved:
        atoms.positions += (1.7, -0.4, 2.9)
    energy, forces = predict(name, structures())
    moved_energy, moved_forces = predict(name, moved)
    assert_close(moved_energy, energy, tolerance(name, FRAMES))
    assert_close(moved_forces, forces, max(1e-3, 10 * tolerance(name, FRAMES)))


@pytest.mark.parametrize("name", MODELS)
def test_permutation(name):
    """Only the order of atoms changes; random frames and rotations belong to edges and atoms in their order."""
    atoms = structures()[1]
    order = np.random.default_rng(0).permutation(len(atoms))
    energy, forces = predict(name, [atoms])
    permuted_energy, permuted_forces = predict(name, [atoms[order]])
    assert_close(permuted_energy, energy, tolerance(name, FRAMES))
    if name not in RANDOM_FORCES:
        assert_close(permuted_forces, forces[order], 10 * tolerance(name, FRAMES))


@pytest.mark.parametrize("name", MODELS)
def test_structures_of_a_batch_do_not_see_each_other(name):
    atoms = structures()
    energy, _ = predict(name, atoms)
    alone = np.concatenate([predict(name, [a])[0] for a in atoms])
    assert_close(alone, energy, tolerance(name, FRAMES))
    batch = batch_of(atoms)
    batch.pos.requires_grad_()
    energies = model(name)(batch)["energy"].view(-1)
    for i in range(len(atoms)):
        (grad,) = torch.autograd.grad(energies[i], batch.pos, retain_graph=True)
        assert not grad[batch.batch != i].any()
        assert grad[batch.batch == i].any()


@pytest.mark.parametrize("name", MODELS)
def test_mean_of_random_forces_turns_along(name):
    if name not in RANDOM_FORCES:
        pytest.skip("forces are not random")
    many = copy.deepcopy(model(name))
    many.num_rand_rotations = 200
    turn = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    atoms = structures()[0]
    rotated = atoms.copy()
    rotated.set_cell(atoms.cell @ turn.T)
    rotated.positions = atoms.positions @ turn.T
    with torch.no_grad():
        draws = [
            torch.stack([many(batch_of([a]))["forces"] for _ in range(12)]).numpy() for a in (atoms, rotated)
        ]
    mean, turned = (d.mean(0) for d in draws)
    error = np.sqrt(sum((d.std(0) ** 2).sum(-1) / len(d) for d in draws))
    assert (np.linalg.norm(turned - mean @ turn.T, axis=1) < 4 * error).all()


# ---------------------------------------------------------------- one neighbour list for A, C and B


def molecules_at_the_cutoff() -> list:
    """Two molecules; in the second, one pair is just inside the cutoff."""
    near = molecule("CH3CHO", cell=[30.0] * 3, pbc=True)
    far = near.copy()
    far.extend(molecule("H2O"))
    far.positions[-3:] += far.positions[0] - far.positions[-3] + np.array([CUTOFF - 1e-3, 0, 0])
    return [near, far]


def shared_and_separate(name: str, atoms: list, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies of displaced copies with the list of the undisplaced ones, and with lists of their own."""
    batch = batch_of(atoms)
    for key in ("edge_index", "cell_offsets", "neighbors", "edge_distance_vec", "nedges"):
        del batch[key]
    net = copy.deepcopy(model(name))
    for module in net.modules():
        if hasattr(module, "otf_graph"):
            module.otf_graph = True
    torch.manual_seed(2)
    positions = [batch.pos, batch.pos + size * (2 * torch.rand_like(batch.pos) - 1)]
    results = []
    for share in (True, False):
        torch.manual_seed(3)
        with SharedGraph(net, share).of(batch), shared_randomness(net, batch):
            results.append(net(stack(batch, positions))["energy"].detach().view(2, -1)[1])
    return results[0], results[1]


@pytest.mark.parametrize("name", MODELS)
def test_shared_and_separate_neighbour_lists(name):
    """Equal while no pair crosses the cutoff; then models whose messages end smoothly there hardly notice."""
    shared, separate = shared_and_separate(name, molecules_at_the_cutoff()[:1], 0.01)
    torch.testing.assert_close(shared, separate, rtol=2e-5, atol=1e-6)
    shared, separate = shared_and_separate(name, molecules_at_the_cutoff(), 0.01)
    difference = float(((shared - separate) / separate).abs().max())
    print(f"{name}: relative difference with a pair at the cutoff {difference:.1e}")
    assert difference < (1e-5 if name.split(",")[0] in ("painn", "schnet", "mace") else 0.2)
