"""The stand-in against the compiled torch_scatter, and against plain loops where that is not installed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairchem_piwsl.upstream import torch_scatter as own

try:
    import torch_scatter

    compiled = torch_scatter if hasattr(torch_scatter, "__version__") else None
except ImportError:
    compiled = None

needs_compiled = pytest.mark.skipif(compiled is None, reason="torch-scatter is not installed")
REDUCTIONS = ["sum", "add", "mean", "min", "max"]
DTYPES = [torch.float32, torch.float64, torch.int64]


def loop(src: Tensor, index: Tensor, size: int, reduce: str) -> Tensor:
    """The definition for a one-dimensional index along dimension 0."""
    out = torch.zeros(size, *src.shape[1:], dtype=src.dtype)
    for slot in range(size):
        group = src[index == slot]
        if len(group) > 0:
            value = {
                "sum": group.sum,
                "add": group.sum,
                "mean": group.mean,
                "min": group.amin,
                "max": group.amax,
            }
            out[slot] = value[reduce](dim=0)
    return out


@st.composite
def problems(draw: st.DrawFn, smallest: int = 0) -> tuple[Tensor, Tensor, int]:
    """Values [n, 3] with many ties, an unsorted index [n] and a number of slots, some of them empty."""
    n, size = draw(st.integers(smallest, 12)), draw(st.integers(1, 6))
    index = draw(st.lists(st.integers(0, size - 1), min_size=n, max_size=n))
    values = draw(st.lists(st.integers(-4, 4), min_size=3 * n, max_size=3 * n))
    return (
        torch.tensor(values, dtype=torch.float64).view(n, 3) / 2,
        torch.tensor(index, dtype=torch.long),
        size + draw(st.integers(0, 2)),
    )


def value_and_gradient(function, src: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
    """Value, and the gradient of a nonlinear scalar of it."""
    src = src.clone().requires_grad_()
    value = function(src, *args, **kwargs)
    (gradient,) = torch.autograd.grad((value**3).sum(), src)
    return value.detach(), gradient


@pytest.mark.parametrize("reduce", REDUCTIONS)
@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_matches_the_definition(reduce: str, problem: tuple[Tensor, Tensor, int]) -> None:
    src, index, size = problem
    expected = loop(src, index, size, reduce)
    assert torch.allclose(own.scatter(src, index, dim=0, dim_size=size, reduce=reduce), expected)
    index, order = index.sort()
    src = src[order]
    assert torch.allclose(own.segment_coo(src, index, dim_size=size, reduce=reduce), expected)
    indptr = torch.searchsorted(index, torch.arange(size + 1))
    assert torch.allclose(own.segment_csr(src, indptr, reduce=reduce), expected)


@needs_compiled
@pytest.mark.parametrize("reduce", REDUCTIONS)
@settings(max_examples=30, deadline=None)
@given(problem=problems(smallest=1))  # the compiled functions crash the interpreter on empty input
def test_values_and_gradients_match_the_compiled_package(
    reduce: str, problem: tuple[Tensor, Tensor, int]
) -> None:
    src, index, size = problem
    index, order = index.sort()
    src = src[order]
    indptr = torch.searchsorted(index, torch.arange(size + 1))
    for name, args, kwargs in [
        ("scatter", (index,), {"dim": 0, "dim_size": size}),
        ("segment_coo", (index,), {"dim_size": size}),
        ("segment_csr", (indptr,), {}),
    ]:
        ours, theirs = (
            value_and_gradient(getattr(package, name), src, *args, reduce=reduce, **kwargs)
            for package in (own, compiled)
        )
        torch.testing.assert_close(ours, theirs, msg=f"{name} {reduce}")


@needs_compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_shapes_and_dimensions_match_the_compiled_package(reduce: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    src = torch.randint(-9, 9, (4, 6, 5), generator=generator).to(dtype)
    short = torch.tensor([0, 0, 1, 3, 3, 3])
    full = torch.randint(0, 4, src.shape, generator=generator)
    ranges = torch.tensor([[0, 2, 6], [0, 0, 6], [1, 2, 3], [6, 6, 6]])
    cases = [
        ("scatter", (short,), {"dim": 1}),
        ("scatter", (short,), {"dim": -2, "dim_size": 7}),
        ("scatter", (torch.tensor([2, 0, 2, 2, 0]),), {}),
        ("scatter", (full,), {"dim": 1, "dim_size": 4}),
        ("scatter", (full[:, :, 0],), {"dim": 1, "dim_size": 4}),
        ("segment_coo", (short[None, :],), {}),
        ("segment_coo", (short[None, :],), {"dim_size": 9}),
        ("segment_csr", (ranges,), {}),
        ("segment_csr", (torch.tensor([[1, 3, 5]]),), {}),
    ]
    for name, args, kwargs in cases:
        kwargs["reduce"] = reduce
        expected = getattr(compiled, name)(src, *args, **kwargs)
        result = getattr(own, name)(src, *args, **kwargs)
        assert result.dtype == dtype
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6, msg=f"{name} {kwargs}")


@needs_compiled
def test_sums_are_bit_for_bit_those_of_the_compiled_package() -> None:
    src = torch.randn(2000, 8, generator=torch.Generator().manual_seed(1))
    index = torch.randint(0, 50, (2000,), generator=torch.Generator().manual_seed(2))
    assert torch.equal(own.scatter(src, index, 0), compiled.scatter(src, index, 0))
    for dim in (0, 1, -1, -2):
        short = index[: src.shape[dim]]
        expected = compiled.utils.broadcast(short, src, dim)
        assert torch.equal(own.broadcast(short, src, dim), expected)


def test_double_precision_gradients() -> None:
    src = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 0, 3, 3, 3, 1])
    for reduce in ("sum", "mean", "min", "max"):

        def function(x: Tensor, reduce: str = reduce) -> Tensor:
            return own.scatter(x, index, dim=0, dim_size=5, reduce=reduce) ** 2

        assert torch.autograd.gradcheck(function, src)
        assert torch.autograd.gradgradcheck(function, src)


def test_first_of_equal_extremes_gets_the_gradient() -> None:
    src = torch.tensor([1.0, 5.0, 5.0, 1.0], requires_grad=True)
    index = torch.zeros(4, dtype=torch.long)
    for reduce, expected in (("min", [1.0, 0, 0, 0]), ("max", [0, 1.0, 0, 0])):
        (gradient,) = torch.autograd.grad(own.scatter(src, index, reduce=reduce).sum(), src)
        assert gradient.tolist() == expected


def test_nan_is_passed_on() -> None:
    src = torch.tensor([1.0, float("nan"), 2.0])
    for reduce in REDUCTIONS:
        value = own.scatter(src, torch.tensor([0, 0, 1]), reduce=reduce)
        assert value.isnan().tolist() == [True, False]


def test_reduction_that_is_not_offered() -> None:
    with pytest.raises(ValueError, match="'mul' is not one of sum"):
        own.scatter(torch.ones(2), torch.zeros(2, dtype=torch.long), reduce="mul")
