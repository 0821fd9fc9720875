"""Edge frames of eSCN and Equiformer v2 that carry gradients.

Upstream aligns every edge with the y axis by a rotation with a random angle about the edge, and detaches both
the rotation and its Wigner matrices. An energy gradient then misses the change of the frames. Here the frames
are smooth functions of the edge vectors, and the Wigner matrices polynomials of the rotation matrices (no
Euler angles, whose derivatives are infinite for edges along y). They are put in place from outside, through
the method and the attributes that upstream's forward pass reads: no code of upstream is changed or copied.
"""

import math
from functools import lru_cache
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn import functional as F

# A direction along which crystals and molecules in standard orientation have no edges, and a stand-in for
# edges within about a degree of its opposite, where the first leaves the angle about the edge undefined.
POLES = ((0.357, 0.826, -0.437), (-0.826, 0.357, 0.437))
UNDEFINED = 1e-4


def holds_edge_frames_constant(model: nn.Module) -> bool:
    """Whether a model builds edge frames as upstream does, so that no gradient passes through them."""
    methods = [getattr(module, "_init_edge_rot_mat", None) for module in model.modules()]
    return any(method is not None and not isinstance(method, EdgeFrames) for method in methods)


def differentiate_edge_frames(model: nn.Module) -> None:
    """Give every submodule that builds edge frames (eSCN, Equiformer v2, their backbones) differentiable ones.

    In training the angle about each edge stays random, as upstream has it; in evaluation it is fixed, so that
    the energy is a function of the positions alone. A model that has such frames already stays as it is.
    """
    for module in model.modules():
        present = getattr(module, "_init_edge_rot_mat", None)
        if present is not None and not isinstance(present, EdgeFrames):
            frames = EdgeFrames(module)
            module._init_edge_rot_mat = frames  # type: ignore[assignment]
            first_user = (
                module.layer_blocks[0] if hasattr(module, "layer_blocks") else module.edge_degree_embedding
            )
            first_user.register_forward_pre_hook(frames.put_in_place)
            model.register_forward_hook(frames.release)


class EdgeFrames:
    """Takes the place of the method `_init_edge_rot_mat` of one module."""

    def __init__(self, module: Any) -> None:
        self._module = [module]  # in a list: the module owns this object, not the other way round
        self._rotation: Tensor | None = None

    def __call__(self, data: Any, edge_index: Tensor, edge_vector: Tensor) -> Tensor:
        """Rotations `[E, 3, 3]` that take edge vectors `[E, 3]` to the y axis."""
        angle = edge_vector.new_zeros(len(edge_vector))
        if self._module[0].training:
            angle = 2 * math.pi * torch.rand_like(angle)
        with torch.autocast(edge_vector.device.type, enabled=False):
            self._rotation = align_with_y(F.normalize(edge_vector, dim=-1), angle)
        return self._rotation.detach()

    def put_in_place(self, *_: Any) -> None:
        """Forward pre-hook of the first user of the Wigner matrices: replaces the detached ones."""
        assert self._rotation is not None
        for user in self._users():
            with torch.autocast(self._rotation.device.type, enabled=False):
                user.wigner = wigner_matrices(self._rotation, user.lmax)
            user.wigner_inv = user.wigner.transpose(1, 2)

    def release(self, *_: Any) -> None:
        """Forward hook of the whole model: lets go of the graph, so that the model can be copied."""
        self._rotation = None
        for user in self._users():
            user.wigner, user.wigner_inv = user.wigner.detach(), user.wigner_inv.detach()

    def _users(self) -> nn.ModuleList:
        module = self._module[0]
        return module.SO3_edge_rot if hasattr(module, "SO3_edge_rot") else module.SO3_rotation


def align_with_y(unit: Tensor, angle: Tensor) -> Tensor:
    """Rotations `[E, 3, 3]` that take unit vectors `[E, 3]` to y, then turn about y by angles `[E]`.

    The vector is first taken to a fixed pole by a half turn about their bisector, which is smooth but for the
    pole's opposite.
    """
    poles, to_y = _poles(unit.dtype, unit.device)
    second = (1 + unit.detach() @ poles[0] < UNDEFINED).long()
    return o3.matrix_y(angle) @ to_y[second] @ _half_turn(unit + poles[second])


def wigner_matrices(rotation: Tensor, lmax: int) -> Tensor:
    """Block-diagonal Wigner matrices `[E, (lmax + 1)^2, (lmax + 1)^2]` of rotations `[E, 3, 3]`, e3nn's basis.

    D(R) is defined by Y(R p) = D(R) Y(p); solved for enough fixed points p, it is linear in the polynomials Y(R p).
    """
    points, inverses = _solver(lmax, rotation.dtype, rotation.device)
    rotated = torch.einsum("eij,pj->epi", rotation, points)
    harmonics = o3.spherical_harmonics(list(range(lmax + 1)), rotated, normalize=False)
    size = (lmax + 1) ** 2
    wigner = rotation.new_zeros(len(rotation), size, size)
    for degree, inverse in enumerate(inverses):
        block = slice(degree**2, (degree + 1) ** 2)
        wigner[:, block, block] = torch.einsum("epm,np->emn", harmonics[..., block], inverse)
    return wigner


@lru_cache(maxsize=16)
def _solver(lmax: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Points `[P, 3]` spread over the sphere and pseudo-inverses `[2l + 1, P]` of the harmonics there."""
    n_points = 2 * (2 * lmax + 1)
    step = torch.arange(n_points, dtype=torch.float64)
    height = 1 - (2 * step + 1) / n_points
    longitude = step * math.pi * (1 + math.sqrt(5))
    radius = (1 - height.square()).sqrt()
    points = torch.stack([radius * longitude.cos(), radius * longitude.sin(), height], dim=-1)
    inverses = [
        torch.linalg.pinv(o3.spherical_harmonics(degree, points, normalize=False)).to(device, dtype)
        for degree in range(lmax + 1)
    ]
    return points.to(device, dtype), inverses


@lru_cache(maxsize=8)
def _poles(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Unit vectors `[2, 3]` and rotations `[2, 3, 3]` that take them to y."""
    poles = F.normalize(torch.tensor(POLES, dtype=torch.float64), dim=-1)
    to_y = _half_turn(poles + torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    return poles.to(device, dtype), to_y.to(device, dtype)


def _half_turn(axis: Tensor) -> Tensor:
    """Rotations `[E, 3, 3]` by 180 degrees about axes `[E, 3]`, which exchange two vectors with that bisector."""
    axis = F.normalize(axis, dim=-1)
    return 2 * axis[:, :, None] * axis[:, None, :] - torch.eye(3, dtype=axis.dtype, device=axis.device)
