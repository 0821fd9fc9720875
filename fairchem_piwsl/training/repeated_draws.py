"""Random numbers that are drawn for one copy of a batch and repeated for the others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class RepeatedDraws(TorchFunctionMode):
    """Draw the leading dimension for one copy and repeat it for the others, where it holds whole copies."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is None:
            return func(*args, **kwargs)
        return handler(self, func, *args, **kwargs)

    def _repeat(self, one: Tensor) -> Tensor:
        return one.repeat(self.copies, *[1] * (one.dim() - 1))

    def sized(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """torch.rand, torch.randn: shape as one sequence or as separate arguments."""
        size = [int(n) for n in (args[0] if isinstance(args[0], tuple | list) else args)]
        if not size or size[0] % self.copies:
            return func(*args, **kwargs)
        return self._repeat(func((size[0] // self.copies, *size[1:]), **kwargs))

    def like(self, func: Callable[..., Tensor], example: Tensor, **kwargs: Any) -> Tensor:
        """torch.rand_like, torch.randn_like."""
        if not example.dim() or len(example) % self.copies:
            return func(example, **kwargs)
        return self._repeat(func(example[: len(example) // self.copies], **kwargs))

    def bernoulli(self, func: Callable[..., Tensor], probability: Tensor, **kwargs: Any) -> Tensor:
        """torch.bernoulli; the copies may have different probabilities."""
        uniform = self.like(torch.rand_like, probability)
        return (uniform < probability).to(probability.dtype)

    def dropout(
        self,
        func: Callable[..., Tensor],
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        """torch.nn.functional.dropout."""
        if not training or p == 0 or not input.dim() or len(input) % self.copies:
            return func(input, p, training, inplace)
        one = input.new_ones(len(input) // self.copies, *input.shape[1:])
        return input * self._repeat(func(one, p, True))


_HANDLERS: dict[Any, Callable[..., Tensor]] = {
    torch.rand: RepeatedDraws.sized,
    torch.randn: RepeatedDraws.sized,
    torch.rand_like: RepeatedDraws.like,
    torch.randn_like: RepeatedDraws.like,
    torch.bernoulli: RepeatedDraws.bernoulli,
    F.dropout: RepeatedDraws.dropout,
}


def drops(module: nn.Module) -> bool:
    """Whether this module itself draws random numbers in training: dropout, stochastic depth, MOLE's experts."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return any(getattr(module, rate, None) for rate in ("drop_prob", "composition_dropout"))
