"""Sums per structure and the Taylor expansion along a displacement."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from fairchem_piwsl.taylor import extrapolate, leg_forces, segment_sum, work

SIZES = (3, 1, 5)
BATCH = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@limits(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6), shuffled=st.booleans())
def test_segment_sum_equals_a_loop(sizes, shuffled):
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    if shuffled:
        batch = batch[torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))]
    values = rand(len(batch))
    expected = torch.stack([values[batch == i].sum() for i in range(len(sizes))])
    torch.testing.assert_close(segment_sum(values, batch, len(sizes)), expected)


def test_structure_without_atoms_sums_to_zero():
    assert segment_sum(torch.ones(2), torch.tensor([0, 2]), 3).tolist() == [1, 0, 1]


def test_extrapolation_equals_a_loop_over_structures():
    energy, forces, step = rand(3), rand(9, 3, seed=1), rand(9, 3, seed=2)
    expected = [energy[i] - (forces[i == BATCH] * step[i == BATCH]).sum() for i in range(3)]
    torch.testing.assert_close(extrapolate(energy, forces, step, BATCH), torch.stack(expected))


def test_forces_point_downhill():
    """Moving along the force lowers the energy: the sign of Eq. 2."""
    energy, forces = torch.zeros(1), torch.tensor([[2.0, 0, 0]])
    assert extrapolate(energy, forces, 0.1 * forces, torch.tensor([0])) < 0


def test_order_of_atoms_does_not_matter():
    energy, forces, step = rand(3), rand(9, 3, seed=1), rand(9, 3, seed=2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        extrapolate(energy, forces[order], step[order], BATCH[order]),
        extrapolate(energy, forces, step, BATCH),
    )


def test_forces_of_a_leg():
    start, end = rand(9, 3), rand(9, 3, seed=1)
    assert leg_forces(start, None, 0.0) is start
    torch.testing.assert_close(leg_forces(start, end, 0.5), (start + end) / 2)
    torch.testing.assert_close(leg_forces(start, end, 0.2), 0.8 * start + 0.2 * end)
    with pytest.raises(ValueError, match="end of the leg"):
        leg_forces(start, None, 0.5)


def test_wrong_shapes_are_printed():
    with pytest.raises(ValueError, match=r"\(9, 2\).*\(9, 3\)"):
        work(rand(9, 2), rand(9, 3), BATCH, 3)
    with pytest.raises(ValueError, match=r"\(8,\).*\(9,\)"):
        segment_sum(rand(8), BATCH, 3)


def test_gradients_in_float64():
    energy, forces, step = (x.requires_grad_() for x in (rand(3), rand(9, 3, seed=1), rand(9, 3, seed=2)))
    function = lambda e, f, d: extrapolate(e, f, d, BATCH)
    assert torch.autograd.gradcheck(function, (energy, forces, step))
    assert torch.autograd.gradgradcheck(function, (energy, forces, step))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_is_kept(dtype):
    out = extrapolate(rand(3).to(dtype), rand(9, 3).to(dtype), rand(9, 3).to(dtype), BATCH)
    assert out.dtype == dtype
    assert out.shape == (3,)
