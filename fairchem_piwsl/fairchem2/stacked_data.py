"""The configurations A, C, B of a fairchem-2 batch as one larger batch, with one neighbour list."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fairchem.core.common import gp_utils
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.graph.compute import generate_graph
from torch import Tensor

from fairchem_piwsl.training.copies import repeated

#: entries of a batch that are its neighbour list
EDGES = ("edge_index", "cell_offsets", "nedges")
#: Angstrom; two atoms of a structure are nearer than this, else displacements need no guard
GUARD = 3.0


def stack(batch: AtomicData, positions: Sequence[Tensor], edges: Mapping[str, Tensor] | None) -> AtomicData:
    """A batch of `len(positions)` copies of every structure, each copy at its own positions [N, 3].

    Structures are ordered copy by copy. The incoming batch is not changed; `edges`, if given, stand for its own
    neighbour list in every copy: `edge_index` [2, E], `cell_offsets` [E, 3] and `nedges` [B].
    """
    copies, stacked = len(positions), shallow_copy(batch)
    entries = {key: batch[key] for key in batch.keys()} | dict(edges or {})  # noqa: SIM118
    for key, value in repeated(entries, copies, batch.num_graphs, len(batch.pos), batch.__cat_dim__).items():
        stacked[key] = value
    stacked.pos = torch.cat(list(positions))
    stacked.assign_batch_stats(None, None, None, None)  # which serve to cut structures out again
    return stacked


def model_list(backbone: Any, batch: AtomicData) -> dict[str, Tensor] | None:
    """The list that `backbone` would build for `batch`, as entries of a batch; None where it cannot be lent.

    Graph-parallel ranks cut their own part out of every list, so there the model builds each one.
    """
    builds_own = getattr(backbone, "otf_graph", False) and hasattr(backbone, "_generate_graph")
    if not builds_own or gp_utils.initialized():
        return None
    with torch.no_grad():
        graph = backbone._generate_graph(shallow_copy(batch))
    if graph["edge_index"].shape[1] != len(graph["cell_offsets"]):
        return None  # no atom has a neighbour, and the model put in an edge of its own
    return {name: graph["neighbors" if name == "nedges" else name] for name in EDGES}


def shortest_distances(edges: Mapping[str, Tensor] | None, batch: AtomicData) -> Tensor:
    """Shortest interatomic distance of each structure [B], periodic images included; infinite without neighbours.

    Without `edges`, the structures' list, neighbours are searched within `GUARD`.
    """
    with torch.no_grad():
        if edges is None:
            options = dict(max_neighbors=8, enforce_max_neighbors_strictly=False, radius_pbc_version=2)
            graph = generate_graph(shallow_copy(batch), cutoff=GUARD, pbc=batch.pbc, **options)
            ends, distance = graph["edge_index"], graph["edge_distance"]
        else:
            ends = edges["edge_index"]
            cells = batch.cell.repeat_interleave(edges["nedges"], dim=0)
            shifts = torch.einsum("ei,eij->ej", edges["cell_offsets"].to(cells), cells)
            distance = (batch.pos[ends[0]] - batch.pos[ends[1]] + shifts).norm(dim=-1)
        shortest = batch.pos.new_full((batch.num_graphs,), torch.inf)
        return shortest.scatter_reduce(0, batch.batch[ends[1]], distance, "amin")


def shallow_copy(batch: AtomicData) -> AtomicData:
    """A batch with the same tensors, to which entries can be added without `batch` seeing them."""
    new = copy.copy(batch)
    new.__keys__ = set(batch.__keys__)
    return new
