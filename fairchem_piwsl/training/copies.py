"""Entries of a batch repeated for its copies A, C and B in one larger batch, and outputs cut again."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def repeated(
    entries: Mapping[str, Any],
    copies: int,
    num_structures: int,
    num_atoms: int,
    cat_dim: Callable[[str, Any], Any],
) -> dict[str, Any]:
    """The entries of a batch for some copies of every structure, ordered copy by copy.

    Args:
        entries: tensors, lists with one entry for each structure, and others, which are left out.
        num_structures: B of the batch, the shift of `batch`.
        num_atoms: N of the batch, the shift of `edge_index`.
        cat_dim: of an entry's name and value: where it is concatenated.
    """
    shifts = {"batch": num_structures, "edge_index": num_atoms}
    result: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, Tensor) and value.dim():
            parts = [value + i * shifts[key] if key in shifts else value for i in range(copies)]
            result[key] = torch.cat(parts, dim=cat_dim(key, value))
        elif isinstance(value, list):  # one entry for each structure, e.g. names
            result[key] = value * copies
    return result


def cut(outputs: Any, copies: int) -> list[Any]:
    """The outputs of such a batch, nested mappings of tensors, for each copy."""
    if isinstance(outputs, Mapping):
        parts = {key: cut(value, copies) for key, value in outputs.items()}
        return [{key: values[i] for key, values in parts.items()} for i in range(copies)]
    if isinstance(outputs, Tensor) and outputs.dim():
        return list(outputs.chunk(copies))
    return [outputs] * copies
