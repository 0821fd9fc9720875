"""Batches of a validation know their number, on which their displacements depend."""

from collections.abc import Iterator

from torch.utils.data import DataLoader
from torch_geometric.data import Batch

_KEY = "validation_batch"


class NumberedBatches:
    """A data loader whose batches carry their number, so that every validation displaces alike."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.loader):
            batch[_KEY] = number
            yield batch


def batch_number(batch: Batch) -> int | None:
    """The number of a batch of `NumberedBatches`, None for any other."""
    return batch.get(_KEY)
