"""Taylor expansion of the energy along a displacement (Eq. 2).

Pure tensor functions. Shapes throughout: energies `[B]`, forces and displacements `[N, 3]`, `batch` `[N]`
(the structure of each atom). Any consistent units, e.g. kcal/mol and Angstrom.
"""

import torch
from torch import Tensor


def segment_sum(values: Tensor, batch: Tensor, num_structures: int) -> Tensor:
    """Sum `values` [N] over the atoms of each structure: `[B]`."""
    if values.shape != batch.shape:
        raise ValueError(f"values {tuple(values.shape)} and batch {tuple(batch.shape)} must both be [N].")
    return values.new_zeros(num_structures).index_add(0, batch, values)


def work(forces: Tensor, displacement: Tensor, batch: Tensor, num_structures: int) -> Tensor:
    """Work that `forces` [N, 3] do along `displacement` [N, 3] in each structure, seg(<d, F>): `[B]`."""
    if forces.shape != displacement.shape:
        raise ValueError(
            f"forces {tuple(forces.shape)} and displacement {tuple(displacement.shape)} must both be [N, 3]."
        )
    return segment_sum((forces * displacement).sum(-1), batch, num_structures)


def extrapolate(energy: Tensor, forces: Tensor, displacement: Tensor, batch: Tensor) -> Tensor:
    """First-order energy after a displacement, T(E, F, d) = E - seg(<d, F>) (Eq. 2): `[B]`."""
    return energy - work(forces, displacement, batch, len(energy))


def leg_forces(start: Tensor, end: Tensor | None, k: float) -> Tensor:
    """Forces that drive the expansion along a leg: (1 - k) F_start + k F_end, `[N, 3]`.

    k = 0 is Eq. 2 and needs no forces at the end; k = 1/2 is the trapezoid rule, whose residual is of
    third order in the displacement and vanishes on a quadratic surface.
    """
    if k == 0:
        return start
    if end is None:
        raise ValueError(f"k = {k} needs the forces at the end of the leg.")
    return torch.lerp(start, end, k)
