"""Neighbours, frames and rotations of SpinConv as pure functions."""

import math

import torch
from e3nn import o3
from torch import Tensor
from torch_geometric.utils import to_dense_batch


def incoming_edges(target: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
    """Edges that arrive at each atom, padded: indices `[N, D]` (padding: 0) and mask `[N, D]`."""
    order = torch.argsort(target, stable=True)
    return to_dense_batch(order, target[order], batch_size=n_atoms)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """`x[index]` for a tensor of indices; its gradient is summed fast although padding repeats an index.

    On a GPU the derivative of `x[index]` adds repeated rows one after another, which took a third of a step.
    """
    return x.index_select(0, index.flatten()).unflatten(0, index.shape)


def nearest_pairs(edge_index: Tensor, distance: Tensor, n_atoms: int, max_neighbors: int) -> Tensor:
    """Which edges `[2, E]` to keep, as indices: those of pairs among the nearest of either end.

    A pair of atoms stays if any of its edges is among the `max_neighbors` shortest that arrive at one of its
    atoms, in both directions.
    """
    by_distance = torch.argsort(distance, stable=True)
    arriving, exists = incoming_edges(edge_index[1, by_distance], n_atoms)
    nearest = by_distance[arriving[:, :max_neighbors][exists[:, :max_neighbors]]]
    _, pair = torch.unique(edge_index.amin(0) * n_atoms + edge_index.amax(0), return_inverse=True)
    near = torch.zeros_like(pair).index_put((pair[nearest],), pair.new_ones(()))
    return torch.nonzero(near[pair]).squeeze(-1)


def _normalise(vector: Tensor) -> Tensor:
    return vector / (torch.linalg.vector_norm(vector, dim=-1, keepdim=True) + 1e-7)


def edge_frames(vector: Tensor, distance: Tensor, target: Tensor, n_atoms: int, cutoff: float) -> Tensor:
    """Rotation into the frame of each edge, `[E, 3, 3]`; rows are the frame's axes.

    The polar axis x is the edge; the plane of x and y contains the mean direction of the edges that arrive
    at the edge's target, weighted by a cosine of the distance. Deterministic and smooth in the positions.
    """
    weighted = vector * ((torch.cos(math.pi / cutoff * distance) + 1) / 2)[:, None]
    reference = vector.new_zeros(n_atoms, 3).index_add(0, target, weighted) + 1e-4
    x = _normalise(vector)
    z = _normalise(torch.linalg.cross(x, _normalise(reference)[target]))
    y = _normalise(torch.linalg.cross(x, z))
    return torch.stack([x, y, z], dim=1)


def random_rotations(n_atoms: int, n_rotations: int, like: Tensor) -> Tensor:
    """`[N, R, 3, 3]`: products of rotations about x, y and z by angles drawn uniformly."""
    angle = -2 * math.pi * torch.rand(n_atoms, n_rotations, 3, dtype=like.dtype, device=like.device)
    return o3.matrix_x(angle[..., 0]) @ o3.matrix_y(angle[..., 1]) @ o3.matrix_z(angle[..., 2])


def views_along_axes(rotation: Tensor) -> Tensor:
    """Three frames per rotation `[N, R, 3, 3]`, with its x, y and z as polar axis: `[N, R * 3, 3, 3]`."""
    to_axis = rotation.new_tensor(
        [
            [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
            [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
            [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
        ]
    )
    return torch.einsum("aij,nrjk->nraik", to_axis, rotation).flatten(1, 2)
