"""Neighbours, frames and rotations of SpinConv as pure functions."""

import math

import torch
from torch import Tensor


def _rank_within(group: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Rank of each entry among the entries of its group (in their order) and the groups' sizes."""
    count = torch.bincount(group, minlength=n_groups)
    order = torch.argsort(group, stable=True)
    first = count.cumsum(0) - count
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group), device=group.device) - first[group[order]]
    return rank, count


def incoming_edges(target: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
    """Edges that arrive at each atom, padded: indices `[N, D]` (padding: 0) and mask `[N, D]`."""
    rank, count = _rank_within(target, n_atoms)
    degree = int(count.max()) if len(target) else 0
    incoming = target.new_zeros(n_atoms, degree)
    incoming[target, rank] = torch.arange(len(target), device=target.device)
    mask = torch.arange(degree, device=target.device) < count[:, None]
    return incoming, mask


def nearest_pairs(edge_index: Tensor, distance: Tensor, n_atoms: int, max_neighbors: int) -> Tensor:
    """Which edges `[2, E]` to keep, as indices: those of pairs among the nearest of either end.

    A pair of atoms stays if any of its edges is among the `max_neighbors` shortest that arrive at one of its
    atoms, in both directions.
    """
    by_distance = torch.argsort(distance, stable=True)
    rank = torch.empty_like(by_distance)
    rank[by_distance] = _rank_within(edge_index[1, by_distance], n_atoms)[0]
    _, pair = torch.unique(edge_index.amin(0) * n_atoms + edge_index.amax(0), return_inverse=True)
    near = torch.zeros_like(pair).index_put((pair[rank < max_neighbors],), pair.new_ones(()))
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
    angle = 2 * math.pi * torch.rand(n_atoms, n_rotations, 3, dtype=like.dtype, device=like.device)
    zero, one = torch.zeros_like(angle[..., 0]), torch.ones_like(angle[..., 0])
    (cx, cy, cz), (sx, sy, sz) = angle.cos().unbind(-1), angle.sin().unbind(-1)

    def matrix(*rows: Tensor) -> Tensor:
        return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))

    about_x = matrix(one, zero, zero, zero, cx, sx, zero, -sx, cx)
    about_y = matrix(cy, zero, -sy, zero, one, zero, sy, zero, cy)
    about_z = matrix(cz, sz, zero, -sz, cz, zero, zero, zero, one)
    return about_x @ about_y @ about_z


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
