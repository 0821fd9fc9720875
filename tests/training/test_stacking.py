"""A, C and B in one batch: what it holds, what a model makes of it, and how often lists are built."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from conftest import MODELS, labelled_molecules, to_data
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import radius_graph_pbc
from fairchem.core.datasets import data_list_collater
from fairchem.core.models import base
from torch import Tensor
from torch_geometric.data import Batch, Data

from fairchem_piwsl.training.stacking import SharedGraph, stack

HYDRA = {
    "name": "hydra",
    "backbone": {**MODELS["painn"], "model": "painn_backbone"},
    "heads": {"energy": {"module": "painn_energy_head"}, "forces": {"module": "painn_force_head"}},
}
HYDRA["backbone"].pop("name")
ESEN = {
    "name": "hydra",
    "pass_through_head_outputs": True,
    "backbone": dict(model="esen_backbone", sphere_channels=4, hidden_channels=4, edge_channels=4, lmax=1, mmax=1,
                     num_layers=1, num_distance_basis=8, cutoff=5.0, otf_graph=True, use_pbc=True,
                     distance_function="gaussian", norm_type="rms_norm_sh", mlp_type="spectral",
                     act_type="gate", use_envelope=True),
    "heads": {"energy": {"module": "esen_mlp_efs_head"}},
}  # fmt: skip
ROUNDING = {"rtol": 2e-5, "atol": 2e-6}
ALL_MODELS = {**MODELS, "hydra": HYDRA, "esen": ESEN}


def build(name: str, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = copy.deepcopy({**ALL_MODELS[name], **changes})
    # enough for all neighbours: a truncated list depends on positions
    if name == "schnet":  # always cuts at 50
        config["cutoff"] = min(config["cutoff"], 4.7)
    else:
        config.get("backbone", config)["max_neighbors"] = 100
    return registry.get_model_class(config.pop("name"))(**config)


def crystals() -> list[Atoms]:
    """Small cells, in which an atom neighbours its own images."""
    rng = np.random.default_rng(1)
    structures = [bulk("Cu", cubic=True), bulk("Al", cubic=True) * (2, 1, 1)]
    for atoms in structures:
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.calc = EMT()
    return structures


def records(structures: list[Atoms], edges: bool = False) -> list[Data]:
    data = [to_data(atoms, i) for i, atoms in enumerate(structures)]
    for record in data:
        record.energy = record.energy.reshape(1)
        record.label = f"name-{record.sid}"
        record.nothing = None
        if edges:
            single = Batch.from_data_list([record])
            record.edge_index, record.cell_offsets, _ = radius_graph_pbc(single, 5.0, 100)
    return data


def make_batch(kind: str = "molecules", edges: bool = False) -> Batch:
    structures = labelled_molecules(3) if kind == "molecules" else crystals()
    return data_list_collater(records(structures, edges), otf_graph=not edges)


def displaced(batch: Batch, size: float = 0.01, copies: int = 3) -> list[Tensor]:
    """Positions of A and of copies that are displaced at random."""
    generator = torch.Generator().manual_seed(1)
    noise = [
        torch.rand(batch.pos.shape, generator=generator, dtype=batch.pos.dtype) for _ in range(copies - 1)
    ]
    return [batch.pos, *(batch.pos + size * (2 * x - 1) for x in noise)]


def outputs(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Energy and forces, also of models that return one block for each head."""
    out = model(batch)
    return {key: value[key] if isinstance(value, dict) else value for key, value in out.items()}


# ------------------------------------------------------------------ the stacked batch


@pytest.mark.parametrize("kind", ["molecules", "crystals"])
@pytest.mark.parametrize("edges", [False, True], ids=["", "edges"])
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_stack_equals_a_batch_of_all_copies(kind, edges, copies):
    batch = make_batch(kind, edges)
    positions = displaced(batch, copies=copies)
    stacked = stack(batch, positions)
    parts = []
    for place in positions:
        for record, own in zip(batch.to_data_list(), place.split(batch.natoms.tolist()), strict=True):
            parts.append(record.clone())
            parts[-1].pos = own
    expected = data_list_collater(parts, otf_graph=not edges)

    assert stacked.num_graphs == len(stacked) == expected.num_graphs
    assert set(stacked.keys()) == set(expected.keys())
    for key in expected.keys():  # noqa: SIM118  a batch iterates over its structures
        assert_same(stacked[key], expected[key], key)
    for i in range(len(expected)):
        for key, value in expected[i].to_dict().items():
            if key != "neighbors":  # of the batch, not of a structure
                assert_same(stacked[i][key], value, key)


def assert_same(left: Any, right: Any, key: str) -> None:
    if isinstance(right, Tensor):
        assert left.dtype == right.dtype, key
        assert torch.equal(left, right), key
    else:
        assert left == right, key


@pytest.mark.parametrize("edges", [False, True])
def test_stack_leaves_the_incoming_batch_alone(edges):
    batch = make_batch(edges=edges)
    before, pointers = (
        batch.clone(),
        {key: batch[key].data_ptr() for key in ("pos", "batch", "natoms", "ptr")},
    )
    stacked = stack(batch, displaced(batch))
    for key in before.keys():  # noqa: SIM118
        assert_same(batch[key], before[key], key)
    assert batch.num_graphs == before.num_graphs
    for key, pointer in pointers.items():
        assert batch[key].data_ptr() == pointer
        assert stacked[key].data_ptr() != pointer
    stacked.pos += 1
    stacked.batch += 1
    stacked.new = 1
    assert torch.equal(batch.pos, before.pos)
    assert torch.equal(batch.batch, before.batch)
    assert "new" not in batch


def test_gradients_pass_to_the_positions():
    batch = make_batch()
    moved = (batch.pos + 0.01).requires_grad_()
    stack(batch, [batch.pos, moved]).pos.sum().backward()
    assert moved.grad.eq(1).all()


# ------------------------------------------------------------------ what a model makes of it


@pytest.mark.parametrize("name", ALL_MODELS)
@pytest.mark.parametrize("kind", ["molecules", "crystals"])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "own"])
def test_one_call_equals_separate_calls(name, kind, share):
    """With small steps and no pair at the cutoff, own lists and shared ones give the same."""
    model, batch = build(name), make_batch(kind)
    positions = displaced(batch)
    expected = []
    for place in positions:
        single = batch.clone()
        single.pos = place.clone()
        expected.append(outputs(model, single))
    with SharedGraph(model, share).of(batch):
        together = outputs(model, stack(batch, positions))
    for key in ("energy", "forces"):
        torch.testing.assert_close(
            together[key].reshape(-1),
            torch.cat([out[key].reshape(-1) for out in expected]),
            **ROUNDING,
        )


@pytest.mark.parametrize("name", MODELS)
def test_single_precision_stays_within_rounding(name):
    model, batch = build(name), make_batch()
    alone = model(batch.clone())
    with SharedGraph(model).of(batch):
        together = model(stack(batch, displaced(batch)))
        again = model(stack(batch, [batch.pos]))
    for key in ("energy", "forces"):
        assert torch.equal(again[key], alone[key])  # the same list and the same operations
        torch.testing.assert_close(together[key].chunk(3)[0], alone[key], **ROUNDING)


@pytest.mark.parametrize("kind", ["molecules", "crystals"])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("single", [True, False], ids=["use_pbc_single", ""])
def test_lists_of_one_structure_at_a_time(kind, share, single):
    model, batch = build("painn"), make_batch(kind)
    model.use_pbc_single = single
    positions = displaced(batch)
    with SharedGraph(model, share).of(batch):
        together = model(stack(batch, positions))
    for i, place in enumerate(positions):
        alone = batch.clone()
        alone.pos = place.clone()
        expected = model(alone)
        torch.testing.assert_close(together["energy"].chunk(3)[i], expected["energy"], **ROUNDING)
        torch.testing.assert_close(together["forces"].chunk(3)[i], expected["forces"], **ROUNDING)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("kind", ["molecules", "crystals"])
def test_lists_that_the_data_set_brings_along(monkeypatch, kind, share):
    """otf_graph: false takes edges from the batch and builds none."""
    found = build("painn")
    expected = found(make_batch(kind))
    monkeypatch.setattr(base, "radius_graph_pbc", None)
    given, batch = build("painn", otf_graph=False), make_batch(kind, edges=True)
    with SharedGraph(given, share).of(batch):
        together = given(stack(batch, displaced(batch)))
    for key in ("energy", "forces"):
        torch.testing.assert_close(together[key].chunk(3)[0], expected[key], **ROUNDING)
        assert not torch.allclose(together[key].chunk(3)[1], expected[key], **ROUNDING)


def test_shared_list_is_that_of_the_undisplaced_structures():
    """A pair that crosses the cutoff keeps its state in C: in it or not, as in A."""
    model, batch = build("schnet"), make_batch("crystals")
    far = [
        batch.pos,
        batch.pos + 0.4 * torch.randn(batch.pos.shape, generator=torch.Generator().manual_seed(0)),
    ]
    with SharedGraph(model).of(batch):
        list_of_c = model.generate_graph(stack(batch, far))
    expected = model.generate_graph(batch)
    num_edges, num_atoms = expected.edge_index.shape[1], len(batch.pos)
    assert torch.equal(list_of_c.edge_index[:, num_edges:], expected.edge_index + num_atoms)
    assert torch.equal(list_of_c.neighbors, expected.neighbors.repeat(2))
    assert torch.equal(list_of_c.cell_offsets, expected.cell_offsets.repeat(2, 1))
    row, col = expected.edge_index
    vectors = far[1][row] - far[1][col] + expected.offset_distances
    torch.testing.assert_close(list_of_c.edge_distance_vec[num_edges:], vectors)
    torch.testing.assert_close(list_of_c.edge_distance[num_edges:], vectors.norm(dim=-1))
    assert list_of_c.edge_distance.max() > model.cutoff


def test_distances_are_differentiable():
    model, batch = build("schnet"), make_batch()
    moved = (batch.pos + 0.01).requires_grad_()
    with SharedGraph(model).of(batch):
        energy = model(stack(batch, [batch.pos, moved]))["energy"].chunk(2)[1].sum()
    alone = batch.clone()
    alone.pos = moved.detach().clone()
    torch.testing.assert_close(-torch.autograd.grad(energy, moved)[0], model(alone)["forces"], **ROUNDING)


# ------------------------------------------------------------------ how often lists are built


@pytest.fixture
def searches(monkeypatch) -> list[int]:
    """Number of atoms of each neighbour search."""
    found: list[int] = []

    def counting(data: Batch, *args: Any, **kwargs: Any) -> Any:
        found.append(len(data.pos))
        return radius_graph_pbc(data, *args, **kwargs)

    monkeypatch.setattr(base, "radius_graph_pbc", counting)
    return found


@pytest.mark.parametrize("name", ALL_MODELS)
def test_shared_list_is_built_once_for_the_undisplaced_atoms(searches, name):
    model, batch = build(name), make_batch()
    with SharedGraph(model).of(batch) as graph:
        graph.shortest_distances()
        model(stack(batch, displaced(batch)))
        model(stack(batch, displaced(batch, copies=2)))
        graph.shortest_distances()
    assert searches == [len(batch.pos)]


def test_own_lists_are_built_anew(searches):
    model, batch = build("schnet"), make_batch()
    with SharedGraph(model, share=False).of(batch):
        model(stack(batch, displaced(batch)))
    assert searches == [3 * len(batch.pos)]


def test_each_batch_gets_its_own_list(searches):
    model, batch, other = build("schnet"), make_batch(), make_batch("crystals")
    shared = SharedGraph(model)
    for one in (batch, other, batch):
        with shared.of(one):
            model(stack(one, [one.pos]))
    assert searches == [len(one.pos) for one in (batch, other, batch)]


def test_model_that_asks_for_several_cutoffs(searches):
    """As GemNet-OC does: one list for each request."""
    model, batch = build("schnet"), make_batch()
    with SharedGraph(model).of(batch):
        for _ in range(2):
            for cutoff in (2.0, 5.0):
                graph = model.generate_graph(stack(batch, displaced(batch)), cutoff=cutoff)
                assert graph.edge_distance.max() < cutoff + 0.1
    assert len(searches) == 2


@pytest.mark.parametrize("name", ALL_MODELS)
def test_nothing_is_left_behind_after_an_exception(name):
    model, batch = build(name), make_batch()
    owners = [module for module in model.modules() if isinstance(module, base.GraphModelMixin)]
    original = base.GraphModelMixin.generate_graph
    with pytest.raises(KeyError, match="stop"), SharedGraph(model).of(batch):  # noqa: PT012
        model(stack(batch, displaced(batch)))
        raise KeyError("stop")
    assert base.GraphModelMixin.generate_graph is original
    assert owners
    for module in owners:
        assert "generate_graph" not in vars(module)


def test_other_models_are_not_touched(searches):
    model, other, batch = build("schnet"), build("schnet", cutoff=4.0), make_batch()
    with SharedGraph(model).of(batch):
        other(stack(batch, displaced(batch)))
    assert searches == [3 * len(batch.pos)]


# ------------------------------------------------------------------ shortest distances


@pytest.mark.parametrize("kind", ["molecules", "crystals"])
@pytest.mark.parametrize("share", [True, False])
def test_shortest_distances_equal_those_of_ase(kind, share):
    structures = labelled_molecules(3) if kind == "molecules" else crystals()
    model = build("schnet")
    with SharedGraph(model, share).of(make_batch(kind)) as graph:
        found = graph.shortest_distances()
    expected = []
    for atoms in structures:
        table = atoms.get_all_distances(mic=True)
        expected.append(table[table > 0].min())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_structure_without_neighbours_has_no_shortest_distance():
    lonely = Atoms("He", cell=[20.0] * 3, pbc=True)
    lonely.calc = EMT()
    water = labelled_molecules(2)[1]
    data = [to_data(water, 0), to_data(water, 1, energy=False, forces=False)]
    data[1].pos, data[1].atomic_numbers, data[1].natoms = torch.zeros(1, 3), torch.tensor([2]), 1
    data[1].tags = data[1].fixed = torch.zeros(1)
    del data[0].energy, data[0].forces
    with SharedGraph(build("schnet")).of(data_list_collater(data, otf_graph=True)) as graph:
        shortest = graph.shortest_distances()
    assert 0.8 < shortest[0] < 1.1
    assert torch.isinf(shortest[1])


def test_model_without_a_list_has_no_shortest_distance():
    batch = make_batch()
    with SharedGraph(torch.nn.Linear(1, 1)).of(batch) as graph:
        assert torch.isinf(graph.shortest_distances()).all()
