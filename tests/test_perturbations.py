"""Draws of displacements: bounds, distribution, fixed atoms, fraction, guard, repeatability."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from fairchem_piwsl.perturbations import (
    adversarial_direction,
    choose_atoms,
    draw,
    limit_to_bonds,
    step_generator,
)
from fairchem_piwsl.settings import PIWSLSettings

CPU = torch.device("cpu")
quick = limits(max_examples=40, deadline=None)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Structures:
    """Structures of given sizes, some atoms of which are fixed."""

    def __init__(self, sizes: list[int], fixed: Tensor | None = None) -> None:
        self.natoms = torch.tensor(sizes)
        self.batch = torch.repeat_interleave(torch.arange(len(sizes)), self.natoms)
        self.pos = torch.zeros(len(self.batch), 3, dtype=torch.float64)
        self.free = torch.ones(len(self.batch), dtype=torch.bool) if fixed is None else ~fixed
        self.shortest = torch.full((len(sizes),), torch.inf, dtype=torch.float64)

    def draw(self, seed: int = 0, direction: Tensor | None = None, **block) -> Tensor:
        return draw(
            PIWSLSettings.from_config(block),
            self.pos,
            self.batch,
            self.natoms,
            self.free,
            self.shortest,
            generator(seed),
            direction,
        )

    def longest_component(self, dr: Tensor) -> Tensor:
        """Largest component of each structure."""
        return torch.stack([dr[i == self.batch].abs().max() for i in range(len(self.natoms))])


MANY = Structures([4] * 2000)


# ------------------------------------------------------------------ distribution


@quick
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    eps=st.floats(1e-3, 0.2),
    kind=st.sampled_from(["uniform", "sphere"]),
    magnitude=st.sampled_from(["drawn", "fixed"]),
    seed=st.integers(0, 2**31),
)
def test_bounds(sizes, eps, kind, magnitude, seed):
    dr = Structures(sizes).draw(seed, eps_max=eps, perturbation=kind, magnitude=magnitude)
    assert dr.shape == (sum(sizes), 3)
    assert dr.abs().max() <= eps * (1 + 1e-12)
    if kind == "sphere":
        assert dr.norm(dim=-1).max() <= eps * (1 + 1e-12)


def test_fixed_magnitude_is_uniform_in_the_cube():
    """Components of dr / eps: U(-1, 1) with mean 0, variance 1/3, fourth moment 1/5, all independent."""
    x = MANY.draw(eps_max=0.05, magnitude="fixed") / 0.05
    noise = 5 / math.sqrt(x.numel())
    assert abs(x.mean()) < noise
    assert abs(x.square().mean() - 1 / 3) < noise
    assert abs(x.pow(4).mean() - 1 / 5) < noise
    correlation = np.corrcoef(x.reshape(-1, 12).T.numpy()) - np.eye(12)
    assert np.abs(correlation).max() < 5 / math.sqrt(2000)


def test_drawn_magnitude_is_one_for_each_structure():
    """eps ~ U(0, eps_max) (B.1): atoms of a structure share it, structures do not."""
    dr = MANY.draw(eps_max=0.05, magnitude="drawn", perturbation="sphere").reshape(2000, 4, 3)
    eps = dr.norm(dim=-1)
    torch.testing.assert_close(eps, eps[:, :1].expand_as(eps))
    share = torch.sort(eps[:, 0] / 0.05).values
    # Kolmogorov-Smirnov distance to U(0, 1)
    assert (share - torch.linspace(0, 1, 2000, dtype=share.dtype)).abs().max() < 2 / math.sqrt(2000)


def test_drawn_and_fixed_magnitude_differ_by_a_factor_only():
    structures = Structures([2, 5, 3])
    fixed, drawn = (structures.draw(eps_max=0.1, magnitude=kind) for kind in ("fixed", "drawn"))
    ratio = drawn / fixed
    for i in range(3):
        own = ratio[i == structures.batch]
        torch.testing.assert_close(own, own[:1, :1].expand_as(own))
        assert 0 <= own[0, 0] <= 1


def test_sphere_has_unit_directions():
    dr = MANY.draw(eps_max=0.02, magnitude="fixed", perturbation="sphere")
    torch.testing.assert_close(dr.norm(dim=-1), torch.full((8000,), 0.02, dtype=dr.dtype))
    assert abs(dr.mean()) < 0.02 * 5 / math.sqrt(3 * dr.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_follows_positions(dtype):
    structures = Structures([2, 3])
    structures.pos = structures.pos.to(dtype)
    for kind in ("uniform", "sphere"):
        assert structures.draw(perturbation=kind).dtype == dtype


# ------------------------------------------------------------------ adversarial


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def test_adversarial_direction_against_numpy():
    """g = -sign(E - E_ref) (F - F_ref) up to one sign per structure, of unit length per atom."""
    structures = Structures([3, 1, 4, 2])
    energy_error, force_error = rand(4), rand(10, 3, seed=1)
    g = adversarial_direction(energy_error, force_error, structures.batch, generator())
    for i in range(4):
        own = (i == structures.batch).numpy()
        expected = -np.sign(energy_error[i].item()) * force_error.numpy()[own]
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        sign = np.sign(np.sum(g.numpy()[own] * expected))
        np.testing.assert_allclose(g.numpy()[own], sign * expected, rtol=1e-12)


def test_adversarial_direction_is_the_gradient_of_the_energy_error():
    """Eq. 7 by finite differences: |E - E_ref| changes fastest along g."""
    pos, reference = rand(5, 3), rand(5, 3, seed=1)
    error = lambda x: torch.sin(x * reference).sum() + 0.3
    variable = pos.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(error(variable).abs(), variable)
    force_error = -torch.autograd.grad(error(variable), variable)[0]
    batch = torch.zeros(5, dtype=torch.long)
    g = adversarial_direction(error(pos)[None], force_error, batch, generator())
    torch.testing.assert_close(g * torch.sign((g * gradient).sum()), normalize(gradient, dim=-1))


def test_signs_flip_for_whole_structures_half_of_the_time():
    structures = Structures([2] * 1000)
    force_error = rand(2000, 3)
    g = adversarial_direction(torch.ones(1000), force_error, structures.batch, generator(3))
    sign = torch.sign((g * -force_error).sum(-1)).reshape(1000, 2)
    assert sign[:, 0].eq(sign[:, 1]).all()
    assert abs(sign.mean()) < 5 / math.sqrt(1000)


def test_missing_energy_label_still_has_a_direction():
    structures = Structures([2, 2])
    g = adversarial_direction(
        torch.tensor([torch.nan, 1.0]), rand(4, 3), structures.batch, generator()
    )  # fmt: skip
    torch.testing.assert_close(g.norm(dim=-1), torch.ones(4, dtype=g.dtype))


def test_no_force_error_is_no_direction():
    structures = Structures([1, 2])
    g = adversarial_direction(rand(2), torch.zeros(3, 3), structures.batch, generator())
    assert g.eq(0).all()


def test_no_gradient_flows_through_the_direction():
    structures = Structures([2, 2])
    energy_error, force_error = rand(2).requires_grad_(), rand(4, 3, seed=1).requires_grad_()
    assert not adversarial_direction(energy_error, force_error, structures.batch, generator()).requires_grad


def test_adversarial_draw_follows_its_direction():
    structures = Structures([3, 2])
    direction = normalize(rand(5, 3), dim=-1)
    dr = structures.draw(perturbation="adversarial", magnitude="fixed", eps_max=0.05, direction=direction)
    torch.testing.assert_close(dr, 0.05 * direction)
    with pytest.raises(ValueError, match="direction"):
        structures.draw(perturbation="adversarial")


# ------------------------------------------------------------------ which atoms move


@quick
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    percent=st.sampled_from(range(10, 101, 10)),
    fixed_share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_fraction_moves_the_exact_number_of_free_atoms(sizes, percent, fixed_share, seed):
    total = sum(sizes)
    fixed = torch.rand(total, generator=generator(seed)) < fixed_share
    structures = Structures(sizes, fixed)
    dr = structures.draw(seed, fraction=percent / 100, magnitude="fixed")
    moved = dr.abs().sum(-1) > 0
    assert not (moved & fixed).any()
    for i in range(len(sizes)):
        own = i == structures.batch
        free = int((own & ~fixed).sum())
        assert int((moved & own).sum()) == -(-percent * free // 100)  # ceiling, in whole numbers


def test_every_atom_gets_its_turn():
    structures = Structures([10, 20])
    counts = torch.zeros(30)
    for seed in range(400):
        counts += choose_atoms(
            structures.batch, structures.natoms, structures.free, 0.3, generator(seed)
        ).float()
    assert (counts / 400 - 0.3).abs().max() < 5 * math.sqrt(0.21 / 400)


def test_fixed_atoms_are_unmoved_in_every_kind_of_draw():
    fixed = torch.tensor([True, False, True, False, False, True])
    structures = Structures([3, 3], fixed)
    direction = normalize(rand(6, 3), dim=-1)
    for kind in ("uniform", "sphere", "adversarial"):
        dr = structures.draw(perturbation=kind, magnitude="fixed", direction=direction)
        assert dr[fixed].eq(0).all()
        assert dr[~fixed].ne(0).any(-1).all()


def test_choice_of_atoms_leaves_the_other_numbers_alone():
    """With another fraction the atoms that move, move as they would have."""
    structures = Structures([8, 8])
    whole, part = (structures.draw(fraction=f) for f in (1.0, 0.5))
    moved = part.ne(0).any(-1)
    assert torch.equal(whole[moved], part[moved])


# ------------------------------------------------------------------ guard


@quick
@given(shortest=st.floats(0.05, 3), eps=st.floats(0.01, 2), share=st.sampled_from([0.1, 0.3, 0.45]))
def test_guard_keeps_displacements_below_a_share_of_the_shortest_bond(shortest, eps, share):
    structures = Structures([5, 4])
    free_draw = structures.draw(eps_max=eps, magnitude="fixed")
    structures.shortest = torch.tensor([shortest, torch.inf], dtype=torch.float64)
    dr = structures.draw(eps_max=eps, magnitude="fixed", max_bond_fraction=share)
    length = dr.norm(dim=-1)
    assert length[:5].max() <= share * shortest * (1 + 1e-9)
    assert torch.equal(dr[5:], free_draw[5:])  # no bond known, nothing to guard
    below = free_draw.norm(dim=-1) <= share * shortest
    torch.testing.assert_close(dr[below], free_draw[below])
    # shortened, not turned
    torch.testing.assert_close(normalize(dr, dim=-1), normalize(free_draw, dim=-1))


def test_guard_takes_zero_displacements_and_zero_distances():
    zero = torch.zeros(2, 3)
    batch = torch.tensor([0, 1])
    assert limit_to_bonds(zero, torch.tensor([1.0, torch.inf]), batch, 0.3).eq(0).all()
    assert limit_to_bonds(zero + 1, torch.tensor([0.0, 0.0]), batch, 0.3).eq(0).all()


# ------------------------------------------------------------------ repeatability


def numbers(*key: int) -> Tensor:
    return torch.rand(200, generator=step_generator(*key[:3], CPU, *key[3:]))


@quick
@given(seed=st.integers(0, 2**63), rank=st.integers(0, 1000), step=st.integers(0, 10**7))
def test_same_seed_rank_and_step_draw_the_same(seed, rank, step):
    before = torch.get_rng_state()
    assert torch.equal(numbers(seed, rank, step), numbers(seed, rank, step))
    assert torch.equal(before, torch.get_rng_state())  # the global generator is not touched


def test_seed_rank_step_and_stream_are_independent():
    keys = [
        (seed, rank, step, stream)
        for seed in (0, 1, 2)
        for rank in (0, 1, 2)
        for step in (0, 1, 2)
        for stream in (0, 1)
    ]
    drawn = torch.stack([numbers(*key) for key in keys])
    correlation = np.corrcoef(drawn.numpy()) - np.eye(len(keys))
    assert np.abs(correlation).max() < 5 / math.sqrt(200)


def test_repeated_visit_repeats_the_draw():
    structures = Structures([3, 4])
    block = PIWSLSettings.from_config({"fraction": 0.5})

    def visit(step: int) -> Tensor:
        source = step_generator(7, 0, step, CPU)
        return draw(
            block,
            structures.pos,
            structures.batch,
            structures.natoms,
            structures.free,
            structures.shortest,
            source,
        )

    assert torch.equal(visit(5), visit(5))
    assert not torch.equal(visit(5), visit(6))


def test_dr_and_dr_prime_are_independent():
    """Two draws from one generator, as C and B get them."""
    source, kind = generator(), PIWSLSettings.from_config({"magnitude": "drawn", "eps_max": 1.0})
    arguments = (MANY.pos, MANY.batch, MANY.natoms, MANY.free, MANY.shortest, source)
    dr, dr_b = draw(kind, *arguments), draw(kind, *arguments)
    correlation = np.corrcoef(dr.flatten(), dr_b.flatten())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(dr.numel())
    first, second = MANY.longest_component(dr), MANY.longest_component(dr_b)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(2000)


def test_components_fill_the_open_interval():
    values = MANY.draw(eps_max=0.05, magnitude="fixed") / 0.05
    assert values.min() >= -1
    assert values.max() < 1
    assert values.min() < -0.999
    assert values.max() > 0.999
