"""The configurations A, C, B of a batch as one larger batch, with one neighbour list.

A, C and B differ by hundredths of an Angstrom: they share A's neighbour list, whose distances are computed
anew for each, and pass through the model in one call.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from fairchem.core.models.base import GraphData, GraphModelMixin
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_piwsl.training.copies import repeated

#: what a model's `generate_graph` returns; eSEN makes a dict without `offset_distances` and `neighbors` of it
Graph: TypeAlias = GraphData | dict[str, Any]


def stack(batch: Batch, positions: Sequence[Tensor]) -> Batch:
    """A batch of `len(positions)` copies of every structure, each copy at its own positions [N, 3].

    Structures are ordered copy by copy. The incoming batch is not changed, and nothing waits for the device.
    """
    copies, num_atoms, num_structures = len(positions), batch.num_nodes, batch.num_graphs
    stacked = copy.copy(batch)
    entries = repeated(batch.to_dict(), copies, num_structures, num_atoms, batch.__cat_dim__)
    for key, value in entries.items():
        stacked[key] = value
    stacked.pos = torch.cat(list(positions))
    stacked.ptr = torch.cat([batch.ptr[:1], *(batch.ptr[1:] + i * num_atoms for i in range(copies))])
    # what Batch.__getitem__ needs to cut structures out again; these live on the CPU
    stacked._num_graphs = copies * num_structures
    stacked._slice_dict = {
        key: torch.cat([cuts[:1], *(cuts[1:] + i * cuts[-1] for i in range(copies))])
        for key, cuts in batch._slice_dict.items()
    }
    stacked._inc_dict = {
        key: None
        if inc is None
        else torch.cat([inc + i * (num_atoms if key == "edge_index" else 0) for i in range(copies)])
        for key, inc in batch._inc_dict.items()
    }
    return stacked


class SharedGraph:
    """Gives a model the neighbour lists of undisplaced structures for all their displaced copies.

    Inside `with shared.of(batch):`, the model's `generate_graph` builds the list of `batch` once, whatever
    cutoff the model asks for, and repeats it for a stacked batch; distances come from the stacked
    positions, differentiably, with the operations that upstream uses.

    Args:
        model: any model with a submodule that has fairchem's `GraphModelMixin.generate_graph`.
        share: False leaves the lists of displaced structures to the model.
    """

    def __init__(self, model: nn.Module, share: bool = True) -> None:
        # a wrapper (HydraModel) has the mixin too, but no cutoff of its own
        self._builders = [
            module
            for module in model.modules()
            if isinstance(module, GraphModelMixin) and hasattr(module, "cutoff")
        ]
        self.share = share
        #: module and arguments of the model's latest request
        self._request: tuple[Any, tuple, dict] | None = None
        self._batch: Batch | None = None
        self._graphs: dict[Any, Graph] = {}

    @contextmanager
    def of(self, batch: Batch) -> Iterator[SharedGraph]:
        """Share the lists of `batch` until the block ends."""
        self._batch, self._graphs = batch, {}
        if self.share:
            for module in self._builders:
                module.generate_graph = self._interceptor(module)
        try:
            yield self
        finally:
            for module in self._builders:
                module.__dict__.pop("generate_graph", None)
            self._batch, self._graphs = None, {}

    def shortest_distances(self) -> Tensor:
        """Shortest interatomic distance of each structure [B], infinite where no pair is in the list."""
        batch = self._batch
        assert batch is not None, "only inside `with shared.of(batch)`"
        shortest = batch.pos.new_full((batch.num_graphs,), torch.inf)
        if not self._builders:
            return shortest
        module, args, kwargs = self._request or (self._builders[-1], (), {})
        graph = _fields(self._graph(module, args, kwargs))
        structure = batch.batch[graph["edge_index"][1]]
        return shortest.scatter_reduce(0, structure, graph["edge_distance"].to(shortest), "amin")

    def _graph(self, module: Any, args: tuple, kwargs: dict) -> Graph:
        """The list of the undisplaced batch for one request of the model, built once."""
        key = (id(module), args, tuple(sorted(kwargs.items())))
        if key not in self._graphs:
            with torch.no_grad():
                self._graphs[key] = type(module).generate_graph(module, self._batch, *args, **kwargs)
        return self._graphs[key]

    def _interceptor(self, module: Any):
        def generate_graph(data: Batch, *args: Any, **kwargs: Any) -> Graph:
            self._request = (module, args, kwargs)
            return _repeat(self._graph(module, args, kwargs), data)

        return generate_graph


def _fields(graph: Graph) -> dict[str, Any]:
    return graph if isinstance(graph, dict) else vars(graph)


def _repeat(graph: Graph, data: Batch) -> Graph:
    """The list `graph` for every copy in `data`, with distances from the positions in `data`."""
    old = _fields(graph)
    num_atoms, num_edges = len(old["batch_full"]), old["edge_index"].shape[1]
    copies = len(data.pos) // num_atoms
    shift = num_atoms * torch.arange(copies, device=data.pos.device).repeat_interleave(num_edges)
    edge_index = old["edge_index"].repeat(1, copies) + shift
    cell_offsets = old["cell_offsets"].repeat(copies, 1)
    if old["offset_distances"] is None:
        cell = data.cell[data.batch[edge_index[1]]]
        offsets = cell_offsets.float().view(-1, 1, 3).bmm(cell.float()).view(-1, 3)
    else:
        offsets = old["offset_distances"].repeat(copies, 1)
    vectors = data.pos[edge_index[0]] - data.pos[edge_index[1]]
    vectors = vectors + offsets
    new = {
        **old,
        "edge_index": edge_index,
        # a copy, since PaiNN writes to it, which the gradient of a norm does not survive
        "edge_distance": vectors.norm(dim=-1).clone(),
        "edge_distance_vec": vectors,
        "cell_offsets": cell_offsets,
        "offset_distances": None if old["offset_distances"] is None else offsets,
        "neighbors": None if old["neighbors"] is None else old["neighbors"].repeat(copies),
        "batch_full": data.batch,
        "atomic_numbers_full": data.atomic_numbers.long(),
    }
    return new if isinstance(graph, dict) else GraphData(**new)
