"""The four functions of torch_scatter that fairchem-core 1.10.0 imports, on torch's own operations.

They serve where the compiled package is missing (see `stand_ins.py`). torch_geometric's `scatter` has other
gradients where extremes are equal, and takes no index of several dimensions. Values, shapes and gradients follow
torch_scatter 2.1; of several equal extremes the first receives the gradient. Two points differ on purpose:
a NaN is passed on by `min` and `max` (torch_scatter skips it), and neither `reduce="mul"` nor an `out` is offered,
since fairchem does not use them.
"""

import torch
from torch import Tensor


def broadcast(src: Tensor, other: Tensor, dim: int) -> Tensor:
    """Expand the index `src`, which has one dimension or leads `other`'s, to the shape of `other`."""
    if src.dim() == 1:
        src = src.view([1] * (dim % other.dim()) + [-1])
    return src.view(src.shape + (1,) * (other.dim() - src.dim())).expand_as(other)


def scatter(
    src: Tensor, index: Tensor, dim: int = -1, *, dim_size: int | None = None, reduce: str = "sum"
) -> Tensor:
    """Reduce the entries of `src` that share an index along `dim`; slots without entries are 0.

    `index` has the shape of `src` or is broadcast to it. The result has `dim_size` slots, by default the largest
    index plus one. The mean of integers is rounded down.
    """
    return _reduce(src, broadcast(index, src, dim), dim, dim_size, reduce, "floor")


def segment_coo(src: Tensor, index: Tensor, *, dim_size: int | None = None, reduce: str = "sum") -> Tensor:
    """`scatter` along the last dimension of the sorted `index`; the mean of integers is cut towards 0."""
    dim = index.dim() - 1
    index = index.expand(src.shape[: dim + 1])
    return _reduce(src, broadcast(index, src, dim), dim, dim_size, reduce, "trunc")


def segment_csr(src: Tensor, indptr: Tensor, *, reduce: str = "sum") -> Tensor:
    """Reduce `src` over the ranges `indptr[i]:indptr[i + 1]` in the last dimension of `indptr`.

    The result has one slot less than `indptr` has entries, and empty ranges are 0.
    """
    dim = indptr.dim() - 1
    indptr = indptr.expand(*src.shape[:dim], -1).contiguous()
    count = max(indptr.shape[dim] - 1, 0)
    place = torch.arange(src.shape[dim], device=src.device).expand(src.shape[: dim + 1]).contiguous()
    index = torch.searchsorted(indptr, place, right=True) - 1
    # Entries outside every range go to one more slot, which is cut off again.
    index = torch.where(index < 0, count, index)
    return _reduce(src, broadcast(index, src, dim), dim, count + 1, reduce, "trunc").narrow(dim, 0, count)


def _reduce(src: Tensor, index: Tensor, dim: int, dim_size: int | None, reduce: str, rounding: str) -> Tensor:
    """Apply one reduction; `index` has the shape of `src`."""
    shape = list(src.shape)
    shape[dim] = dim_size if dim_size is not None else int(index.max()) + 1 if index.numel() else 0
    if reduce in ("min", "max"):
        return _extreme(src, index, dim, shape, reduce)
    if reduce not in ("sum", "add", "mean"):
        raise ValueError(
            f"reduce: {reduce!r} is not one of sum, add, mean, min, max; install torch-scatter for it."
        )
    total = src.new_zeros(shape).scatter_add_(dim, index, src)
    if reduce != "mean":
        return total
    count = src.new_zeros(shape).scatter_add_(dim, index, torch.ones_like(src)).clamp_(min=1)
    return total.div_(count, rounding_mode=None if total.is_floating_point() else rounding)


def _extreme(src: Tensor, index: Tensor, dim: int, shape: list[int], reduce: str) -> Tensor:
    """Smallest or largest entry per slot: a gather of the first winner, which alone gets the gradient."""
    n = src.shape[dim]
    if n == 0:
        return src.new_zeros(shape)
    with torch.no_grad():
        best = src.new_zeros(shape).scatter_reduce(dim, index, src, f"a{reduce}", include_self=False)
        place = broadcast(torch.arange(n, device=src.device), src, dim)
        wins = (src == best.gather(dim, index)) | (src != src)
        first = index.new_full(shape, n).scatter_reduce(dim, index, torch.where(wins, place, n), "amin")
    return src.gather(dim, first.clamp(max=n - 1)).masked_fill(first == n, 0)
