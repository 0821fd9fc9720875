"""Draws of displacements dr (Secs. 4.4 and B.1, Eqs. 6 and 7).

Pure tensor functions. N atoms in B structures; `batch` [N] is the structure of each atom, `natoms` [B] the
number of atoms of each structure; lengths in Angstrom. Every random number comes from the generator that is
passed in, so a draw can be repeated.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fairchem_piwsl.settings import PIWSLSettings


def step_generator(seed: int, rank: int, step: int, device: torch.device, stream: int = 0) -> torch.Generator:
    """A generator that depends on its integer arguments alone, so that a resumed run repeats its draws.

    `stream` keeps draws for different purposes at the same step independent.
    """
    state = np.random.SeedSequence((seed, rank, step, stream)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) & (2**63 - 1))


def adversarial_direction(
    energy_error: Tensor, force_error: Tensor, batch: Tensor, generator: torch.Generator
) -> Tensor:
    """Unit vectors [N, 3] along the gradient of |E - E_ref|, sign flipped at random (Eqs. 7, A1).

    Args:
        energy_error: E - E_ref [B]; NaN where there is no energy label.
        force_error: F - F_ref [N, 3], with F_ref = 0 where there is no force label.
        batch: structure of each atom [N].
        generator: source of the flips, one for each structure.
    """
    coin = torch.rand(len(energy_error), generator=generator, device=energy_error.device) < 0.5
    flip = torch.where(coin, -1.0, 1.0).to(force_error)
    # without an energy label the sign is unknown, and the flip makes it irrelevant
    sign = torch.sign(torch.nan_to_num(energy_error.detach(), nan=1.0)).to(force_error)
    return normalize(-(sign * flip)[batch, None] * force_error.detach(), dim=-1)


def choose_atoms(
    batch: Tensor, natoms: Tensor, free: Tensor, fraction: float, generator: torch.Generator
) -> Tensor:
    """Which atoms move [N]: in each structure ceil(fraction * free atoms) of its free atoms, at random.

    `batch` must be sorted, as it is in every batch.
    """
    if fraction >= 1:
        return free
    # sort atoms by structure, free ones first, at random among themselves; then count within the structure
    lottery = torch.rand(len(batch), generator=generator, device=batch.device, dtype=torch.float64)
    order = torch.argsort(3.0 * batch + 1.0 * ~free + lottery)
    first = torch.cumsum(natoms, 0) - natoms
    place = torch.empty_like(batch)
    place[order] = torch.arange(len(batch), device=batch.device) - first[batch[order]]
    num_free = torch.zeros_like(natoms).index_add(0, batch, free.to(natoms.dtype))
    # the small offset keeps e.g. 0.1 * 10, a hair above 1 in binary, at one atom
    winners = torch.ceil(fraction * num_free.double() - 1e-9)
    return free & (place < winners[batch])


def limit_to_bonds(displacement: Tensor, shortest: Tensor, batch: Tensor, max_fraction: float) -> Tensor:
    """Shorten displacements [N, 3] to `max_fraction` of their structure's `shortest` distance [B] (Sec. 4.4)."""
    length = displacement.norm(dim=-1)
    longest = (max_fraction * shortest)[batch].to(length)
    return displacement * torch.clamp(longest / length.clamp_min(1e-30), max=1.0)[:, None]


def draw(
    settings: PIWSLSettings,
    pos: Tensor,
    batch: Tensor,
    natoms: Tensor,
    free: Tensor,
    shortest: Tensor,
    generator: torch.Generator,
    direction: Tensor | None = None,
) -> Tensor:
    """Displacements dr [N, 3] of one visit.

    Args:
        settings: kind, magnitude, fraction and guard.
        pos: positions [N, 3]; only their number, type and device are used.
        batch: structure of each atom [N], sorted.
        natoms: atoms of each structure [B].
        free: which atoms may move [N].
        shortest: shortest interatomic distance of each structure [B], infinite where unknown.
        generator: source of every random number.
        direction: unit vectors [N, 3] of an `adversarial` draw.
    """
    uniform = lambda *shape: torch.rand(shape, generator=generator, device=pos.device, dtype=pos.dtype)
    if settings.perturbation == "adversarial":
        if direction is None:
            raise ValueError("an adversarial draw needs its direction.")
    else:
        direction = 2 * uniform(*pos.shape) - 1
        if settings.perturbation == "sphere":
            direction = normalize(direction, dim=-1)
    eps = pos.new_full((len(natoms),), settings.eps_max)
    if settings.magnitude == "drawn":
        eps = eps * uniform(len(natoms))
    moves = choose_atoms(batch, natoms, free, settings.fraction, generator)
    displacement = torch.where(moves[:, None], eps[batch, None] * direction, 0.0)
    return limit_to_bonds(displacement, shortest, batch, settings.max_bond_fraction)
