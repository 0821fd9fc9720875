"""The configurations A, C, B of a fairchem-2 batch as one larger batch, with one neighbour list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from torch import Tensor

from fairchem_piwsl.fairchem2.neighbour_lists import shallow_copy


def stack(batch: AtomicData, positions: Sequence[Tensor], edges: Mapping[str, Tensor] | None) -> AtomicData:
    """A batch of `len(positions)` copies of every structure, each copy at its own positions [N, 3].

    Structures are ordered copy by copy. The incoming batch is not changed.

    Args:
        edges: `edge_index` [2, E], `cell_offsets` [E, 3] and `nedges` [B] to repeat for every copy; where None,
            those of the batch are repeated.
    """
    copies, num_atoms, num_structures = len(positions), len(batch.pos), batch.num_graphs
    stacked = shallow_copy(batch)
    for key, value in ({key: batch[key] for key in batch.keys()} | dict(edges or {})).items():  # noqa: SIM118
        if isinstance(value, Tensor) and value.dim():
            step = {"batch": num_structures, "edge_index": num_atoms}.get(key, 0)
            parts = [value + i * step if step else value for i in range(copies)]
            stacked[key] = torch.cat(parts, dim=batch.__cat_dim__(key, value))
        elif isinstance(value, list):  # one entry for each structure, e.g. the names of data sets
            stacked[key] = value * copies
    stacked.pos = torch.cat(list(positions))
    stacked.assign_batch_stats(None, None, None, None)  # which serve to cut structures out again
    return stacked


def unstack(outputs: Any, copies: int) -> list[Any]:
    """The outputs of a stacked batch, nested mappings of tensors, for each copy."""
    if isinstance(outputs, Mapping):
        parts = {key: unstack(value, copies) for key, value in outputs.items()}
        return [{key: values[i] for key, values in parts.items()} for i in range(copies)]
    if isinstance(outputs, Tensor) and outputs.dim():
        return list(outputs.chunk(copies))
    return [outputs] * copies
