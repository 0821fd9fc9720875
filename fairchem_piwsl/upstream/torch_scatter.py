"""The four functions of torch_scatter that fairchem-core 1.10.0 imports, on torch's own operations.

They serve where the compiled package is missing (see `stand_ins.py`). torch_geometric's `scatter` has other
gradients where extremes are equal, takes no `out` and no index of several dimensions. Values, shapes and gradients follow
torch_scatter 2.1; of several equal extremes the first receives the gradient. Two points differ on purpose:
a NaN is passed on by `min` and `max` (torch_scatter skips it), and `reduce="mul"` is not offered, since
fairchem does not use it.
"""

import torch
from torch import Tensor


def broadcast(src: Tensor, other: Tensor, dim: int) -> Tensor:
    """Expand the index `src`, which has one dimension or leads `other`'s, to the shape of `other`."""
    if src.dim() == 1:
        src = src.view([1] * (dim % other.dim()) + [-1])
    return src.view(src.shape + (1,) * (other.dim() - src.dim())).expand_as(other)


def scatter(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> Tensor:
    """Reduce the entries of `src` that share an index along `dim`; slots without entries are 0.

    `index` has the shape of `src` or is broadcast to it. `out` is added to (sum, mean) or compared with
    (min, max) and changed in place; otherwise the result has `dim_size` slots, by default the largest index
    plus one. The mean of integers is rounded down.
    """
    return _reduce(src, broadcast(index, src, dim), dim, out, dim_size, reduce, "floor")


def segment_coo(
    src: Tensor,
    index: Tensor,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> Tensor:
    """`scatter` along the last dimension of the sorted `index`; the mean of integers is cut towards 0."""
    dim = index.dim() - 1
    index = index.expand(src.shape[: dim + 1])
    return _reduce(src, broadcast(index, src, dim), dim, out, dim_size, reduce, "trunc")


def segment_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None, reduce: str = "sum") -> Tensor:
    """Reduce `src` over the ranges `indptr[i]:indptr[i + 1]` in the last dimension of `indptr`.

    The result has one slot less than `indptr` has entries, and empty ranges are 0; `out` is overwritten.
    """
    dim = indptr.dim() - 1
    indptr = indptr.expand(*src.shape[:dim], -1).contiguous()
    count = max(indptr.shape[dim] - 1, 0)
    place = torch.arange(src.shape[dim], device=src.device).expand(src.shape[: dim + 1]).contiguous()
    index = torch.searchsorted(indptr, place, right=True) - 1
    # Entries outside every range go to one more slot, which is cut off again.
    index = torch.where(index < 0, count, index)
    value = _reduce(src, broadcast(index, src, dim), dim, None, count + 1, reduce, "trunc")
    value = value.narrow(dim, 0, count)
    return value if out is None else out.copy_(value)


def _reduce(
    src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None, reduce: str, rounding: str
) -> Tensor:
    """Apply one reduction; `index` has the shape of `src`."""
    if dim_size is None:
        dim_size = int(index.max()) + 1 if index.numel() > 0 else 0
    shape = list(src.shape) if out is None else list(out.shape)
    if out is None:
        shape[dim] = dim_size
    if reduce in ("sum", "add", "mean"):
        total = src.new_zeros(shape) if out is None else out
        total.scatter_add_(dim, index, src)
        if reduce != "mean":
            return total
        count = src.new_zeros(shape).scatter_add_(dim, index, torch.ones_like(src)).clamp_(min=1)
        return total.div_(count, rounding_mode=None if total.is_floating_point() else rounding)
    if reduce in ("min", "max"):
        return _extreme(src, index, dim, shape, out, reduce)
    raise ValueError(
        f"reduce: {reduce!r} is not one of sum, add, mean, min, max; install torch-scatter for it."
    )


def _extreme(
    src: Tensor, index: Tensor, dim: int, shape: list[int], out: Tensor | None, reduce: str
) -> Tensor:
    """Smallest or largest entry per slot: a gather of the first winner, which alone gets the gradient."""
    n = src.shape[dim]
    if n == 0:
        return src.new_zeros(shape) if out is None else out
    with torch.no_grad():
        best = src.new_zeros(shape).scatter_reduce(dim, index, src, f"a{reduce}", include_self=False)
        place = torch.arange(n, device=src.device)
        place = broadcast(place, src, dim)
        wins = (src == best.gather(dim, index)) | (src != src)
        first = index.new_full(shape, n).scatter_reduce(dim, index, torch.where(wins, place, n), "amin")
        empty = first == n
    value = src.gather(dim, first.clamp(max=n - 1))
    if out is None:
        return value.masked_fill(empty, 0)
    stays = empty | (out <= value if reduce == "min" else out >= value)
    return out.copy_(torch.where(stays, out, value))
