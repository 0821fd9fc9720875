"""Tiny models and batches shared by the tests of `fairchem_piwsl.models`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from fairchem.core.common.registry import registry
from fairchem.core.datasets import data_list_collater
from fairchem.core.preprocessing import AtomsToGraphs
from torch_geometric.data import Batch

CUTOFF = 5.0
MAX_NEIGHBORS = 20
LIST_RADIUS = 3.3  # of stored lists; leaves no structure of these tests with more neighbours than that

SPINCONV = dict(
    name="fairchem_piwsl.models.spinconv.SpinConv",
    hidden_channels=16,
    mid_hidden_channels=16,
    num_interactions=2,
    num_basis_functions=16,
    sphere_size_lat=6,
    sphere_size_long=6,
    max_num_neighbors=MAX_NEIGHBORS,
    cutoff=CUTOFF,
    embedding_size=4,
    max_num_elements=30,
)
ESCN = dict(
    name="escn",
    num_layers=2,
    lmax_list=[2],
    mmax_list=[1],
    sphere_channels=8,
    hidden_channels=8,
    edge_channels=8,
    num_sphere_samples=16,
    distance_resolution=0.2,
    max_num_elements=30,
    cutoff=CUTOFF,
    max_neighbors=MAX_NEIGHBORS,
)
EQUIFORMER_V2 = dict(
    name="equiformer_v2",
    num_layers=2,
    lmax_list=[2],
    mmax_list=[1],
    sphere_channels=8,
    attn_hidden_channels=8,
    num_heads=2,
    attn_alpha_channels=4,
    attn_value_channels=4,
    ffn_hidden_channels=8,
    edge_channels=8,
    max_num_elements=30,
    max_radius=CUTOFF,
    max_neighbors=MAX_NEIGHBORS,
    alpha_drop=0.1,
    drop_path_rate=0.1,
    proj_drop=0.1,
)
PAINN = dict(
    name="painn", hidden_channels=16, num_layers=2, num_rbf=16, cutoff=CUTOFF, max_neighbors=MAX_NEIGHBORS
)
SCHNET = dict(
    name="schnet", hidden_channels=16, num_filters=16, num_interactions=2, num_gaussians=16, cutoff=CUTOFF
)
DIRECT = {
    "spinconv": SPINCONV,
    "escn": ESCN,
    "equiformer_v2": EQUIFORMER_V2,
    "painn": PAINN,
    "schnet": SCHNET,
}


def build(config: dict[str, Any], seed: int = 0, **changes: Any) -> torch.nn.Module:
    """A model as fairchem's trainer builds it, with reproducible weights."""
    torch.manual_seed(seed)
    config = copy.deepcopy(config) | changes
    inner = config.get("model", config)
    inner.update({"use_pbc": True, "otf_graph": False, "regress_forces": True} | inner)
    name = config.pop("name")
    model = registry.get_model_class(name)(**config)
    # tiny eSCN and SpinConv as initialised are linear to rounding: their signals are too small for the activations
    scale = {ESCN["name"]: 4, SPINCONV["name"]: 2}.get(inner.get("name", name), 1)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dim() > 1:
            parameter.data *= scale
    return model


def gradient(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The config of the same model with forces as energy gradients."""
    return {"name": "fairchem_piwsl.models.gradient_forces.GradientForces", "model": config | changes}


def structures() -> list[Atoms]:
    """Two distorted molecules in large cells and a small distorted crystal."""
    rng = np.random.default_rng(7)
    found = [
        molecule("CH3OH", cell=[20.0] * 3, pbc=True),
        molecule("CH3CHO", cell=[20.0] * 3, pbc=True),
        Atoms(
            "TiOTiO", [(0, 0, 0), (2.1, 0.1, 0), (2.0, 2.2, 0.1), (0, 2.1, 0)], cell=(4.3, 4.1, 5.2), pbc=True
        ),
    ]
    for atoms in found:
        atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
    return found


def batch_of(atoms: list[Atoms], dtype: torch.dtype = torch.float32) -> Batch:
    """A batch with a stored neighbour list, so that models run in any precision and no neighbour is cut off."""
    convert = AtomsToGraphs(max_neigh=200, radius=LIST_RADIUS, r_edges=True, r_pbc=True).convert
    data = [convert(a) for a in atoms]
    for record, a in zip(data, atoms, strict=True):
        record.pos = record.pos.to(dtype)  # wrapped into the cell, as the list expects
        record.fixed = torch.zeros(len(a))
    return data_list_collater(data, otf_graph=False)


@contextmanager
def double_precision() -> Iterator[None]:
    """float64 as the default type: some upstream models create tensors of the default type."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
