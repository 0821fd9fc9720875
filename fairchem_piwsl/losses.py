"""The weak losses: PITC (Eq. 3), PISC (Eqs. 4, A7 to A9), weak label (Eqs. A2, A3) and their point losses.

Pure tensor functions that return one value for each structure, `[B]`; taking the mean is left to the
caller, who knows about other ranks. Energies in kcal/mol, forces in kcal/mol/Angstrom, displacements in
Angstrom; both sides of every identity are differentiated (Eqs. A5, A6), unless forces have been made constants
(`taught_by_labels`).

Points: A is the training structure, C = A + dr, B = A + dr'; dr'' = dr - dr' leads from B to C.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.taylor import extrapolate, leg_forces, segment_sum, work

PointLoss = Literal["mse", "mae", "relu"]


@dataclass(frozen=True)
class Prediction:
    """What a model predicts at one point (A, B or C) for B structures with N atoms in all."""

    #: Energy [B].
    energy: Tensor
    #: Forces [N, 3].
    forces: Tensor
    #: dE/dr [N, 3] with its graph, where it was asked for.
    gradient: Tensor | None = None


def taught_by_labels(prediction: Prediction, labelled: Tensor) -> Prediction:
    """Forces of labelled atoms as constants: there the energy follows the forces, not the reverse.

    Args:
        labelled: atoms with a force label [N].
    """
    forces = torch.where(labelled[:, None], prediction.forces.detach(), prediction.forces)
    return replace(prediction, forces=forces)


def point_loss(residual: Tensor, kind: PointLoss, energy: Tensor, displacement_squared: Tensor) -> Tensor:
    """Point loss l of each structure's residual [B] (Table A12).

    Args:
        residual: T - E_C [B].
        kind: `mse`, `mae`, or `relu`: relu(|T - E_C| - |E_C| |dr|^2) (Eq. A10).
        energy: E_C [B], for `relu`.
        displacement_squared: |dr|^2 summed over the atoms of each structure [B], for `relu`.
    """
    if kind == "mse":
        return residual.square()
    if kind == "mae":
        return residual.abs()
    if kind == "relu":
        return torch.relu(residual.abs() - energy.abs() * displacement_squared)
    raise ValueError(f"unknown point loss {kind!r}.")


def leg_residual(
    start: Prediction, end: Prediction, displacement: Tensor, batch: Tensor, k: float = 0.0
) -> Tensor:
    """T(E_start, F, d) - E_end [B]: what the expansion along a leg misses.

    T(E_start) - E_end = T(E_start - E_end): the energies are subtracted first, since they are large and nearly
    equal and the work is small.
    """
    forces = leg_forces(start.forces, end.forces, k)
    return extrapolate(start.energy - end.energy, forces, displacement, batch)


def pitc(
    a: Prediction,
    c: Prediction,
    dr: Tensor,
    batch: Tensor,
    k: float = 0.0,
    kind: PointLoss = "mse",
) -> Tensor:
    """Taylor-expansion consistency l(E_C, T(E_A, F_A, dr)) (Eq. 3), second order for k > 0: `[B]`.

    With labels as `a` it is the weak label (Eqs. A2, A3), with predicted forces the variant WL + FP (Table A17); NaN
    where a label is missing.
    """
    residual = leg_residual(a, c, dr, batch, k)
    return point_loss(residual, kind, c.energy, _squared(dr, batch, len(residual)))


def pitc_limit(forces: Tensor, gradient: Tensor, batch: Tensor, free: Tensor, num_structures: int) -> Tensor:
    """PITC for displacements that go to zero, in all directions at once: mean of (F + dE/dr)^2 over components, `[B]`.

    A small dr leaves the residual <dr, F + dE/dr>. For independent components of variance s^2 the mean of its square
    is s^2 |F + dE/dr|^2, whatever k is: one derivative sees what 3N displacements would.

    Args:
        forces: at A [N, 3].
        gradient: dE/dr at A [N, 3].
        free: atoms that can move [N]; the others have no part in it.
    """
    squares = torch.where(free, (forces + gradient).square().mean(-1), 0.0)
    atoms = segment_sum(free.to(squares), batch, num_structures)
    return segment_sum(squares, batch, num_structures) / atoms.clamp_min(1)


def pisc(
    a: Prediction,
    b: Prediction,
    c: Prediction | None,
    dr: Tensor,
    dr_b: Tensor,
    batch: Tensor,
    case: Literal[1, 2, 3] = 1,
    k: float = 0.0,
    kind: PointLoss = "mse",
) -> Tensor:
    """Spatial consistency of two paths: `[B]`.

    Case 1: l(E_C, T(E_B, F_B, dr'')) (Eqs. 4, A7).
    Case 2: l(T(E_A, F_A, dr), T(E_B, F_B, dr'')) (Eq. A8); with k = 0 it evaluates nothing at C.
    Case 3: l(E_B, T(E_C, F_C, -dr'')) (Eq. A9).

    Args:
        a, b, c: predictions at A, B and C; only case 2 with k = 0 does without C.
        dr: displacement from A to C [N, 3].
        dr_b: displacement from A to B [N, 3], dr'.
        batch: structure of each atom [N].
        case: which identity.
        k: weight of the forces at the end of every leg, in [0, 1/2].
        kind: point loss.
    """
    if case not in (1, 2, 3):
        raise ValueError(f"PISC has the cases 1, 2 and 3, not {case!r}.")
    b_to_c = dr - dr_b
    if case != 2:
        if c is None:
            raise ValueError(f"PISC case {case} needs the prediction at C.")
        start, end, leg = (b, c, b_to_c) if case == 1 else (c, b, -b_to_c)
        return pitc(start, end, leg, batch, k, kind)
    num_structures, forces_c = len(a.energy), None if c is None else c.forces
    work_ac = work(leg_forces(a.forces, forces_c, k), dr, batch, num_structures)
    work_bc = work(leg_forces(b.forces, forces_c, k), b_to_c, batch, num_structures)
    residual = (b.energy - a.energy) - (work_bc - work_ac)
    return point_loss(residual, kind, a.energy - work_ac, _squared(dr, batch, num_structures))


def consistency_terms(
    settings: PIWSLSettings,
    at: Mapping[str, Prediction],
    moved: Mapping[str, Tensor],
    batch: Tensor,
    free: Tensor,
) -> Iterator[tuple[str, float, Tensor]]:
    """Name, weight and value [B] of PITC and PISC, each where its weight is above 0.

    Args:
        settings: weights, order, case and point loss.
        at: predictions at the points `A`, `C` and `B` that the terms need; at A with its gradient for `eps_max` 0.
        moved: displacements [N, 3] from A: dr at `C`, dr' at `B`.
        batch: structure of each atom [N].
        free: atoms that can move [N]; the displacements of the others are zero.
    """
    s = settings
    if s.differentiates:
        a = at["A"]
        assert a.gradient is not None
        yield "pitc", s.c_pitc, pitc_limit(a.forces, a.gradient, batch, free, len(a.energy))
    elif s.c_pitc:
        yield "pitc", s.c_pitc, pitc(at["A"], at["C"], moved["C"], batch, s.k_2nd, s.point_loss)
    if s.c_pisc:
        legs = moved["C"], moved["B"], batch
        values = pisc(at["A"], at["B"], at.get("C"), *legs, s.pisc_case, s.k_2nd, s.point_loss)
        yield "pisc", s.c_pisc, values


def _squared(displacement: Tensor, batch: Tensor, num_structures: int) -> Tensor:
    """|dr|^2 summed over the atoms of each structure [B]."""
    return segment_sum(displacement.square().sum(-1), batch, num_structures)
