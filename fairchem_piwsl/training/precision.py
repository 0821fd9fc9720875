"""Models in double precision."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    """Constants that a model creates on the way get the dtype of its weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_double(model: Any) -> Any:
    """A copy of a model (`nn.Module`) in double precision, with tensors and types that it keeps as attributes."""
    twin = copy.deepcopy(model).double()
    for module in twin.modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(module, name, value.double())
            elif value is torch.float32:
                setattr(module, name, torch.float64)
    return twin
