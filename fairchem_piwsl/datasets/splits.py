"""Which structure goes where.

The test set is drawn first and the validation set last, so that for one seed the test set is the same for
every training size, and a larger training set contains the smaller ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fairchem_piwsl.errors import UserError

SPLITS = ("train", "val", "test")
MODES = ("shuffle", "blocks")
#: structures of a data set that are looked at, where not all are needed
SAMPLE = 1000


@dataclass(frozen=True)
class Sizes:
    """Structures asked for; `train=None` takes all that the other two leave."""

    train: int | None
    val: int
    test: int

    def complete(self, total: int) -> tuple[int, int, int]:
        """Numbers for train, val and test of `total`, or a `UserError` that says how many there are."""
        needed = self.val + self.test + (1 if self.train is None else self.train)
        if needed > total:
            train = "at least 1" if self.train is None else str(self.train)
            raise UserError(
                f"The files hold {total} structures but {needed} are asked for ({train} train, {self.val} "
                f"val, {self.test} test): lower --train, --val or --test."
            )
        return total - self.val - self.test if self.train is None else self.train, self.val, self.test


def check_numbers(options: Mapping[str, int | None]) -> None:
    """Refuse options below 0, and a training set of none; None is an option that was left out."""
    if options["train"] == 0:
        raise UserError("--train 0 leaves nothing to train on; give at least 1.")
    for name, value in options.items():
        if value is not None and value < 0:
            raise UserError(f"--{name} {value} is negative; give a whole number from 0.")


def split(counts: Sequence[int], sizes: Sizes, seed: int, mode: str = "shuffle") -> dict[str, np.ndarray]:
    """Indices into the concatenated sources for train, val and test.

    Args:
        counts: structures in each source.
        sizes: structures asked for.
        seed: of the shuffle; in `blocks` of the draw from each trajectory's training part.
        mode: `shuffle`: drawn from everything. `blocks`: every source is a trajectory whose last frames are
            test, those before them validation, and the training set is drawn from what comes before.
    """
    if mode not in MODES:
        raise UserError(f"--split {mode} is not known: give one of {', '.join(MODES)}.")
    n_train, n_val, n_test = sizes.complete(sum(counts))
    rng = np.random.default_rng(seed)
    if mode == "blocks":
        return _blocks(counts, n_train, n_val, n_test, rng)
    order = rng.permutation(sum(counts))
    return {
        "train": order[n_test : n_test + n_train],
        "val": order[::-1][:n_val],
        "test": order[:n_test],
    }


def _blocks(
    counts: Sequence[int], n_train: int, n_val: int, n_test: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Contiguous blocks of every trajectory, each giving its share."""
    sizes = np.asarray(counts)
    test = share(n_test, sizes, sizes)
    val = share(n_val, sizes, sizes - test)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    ends = starts + sizes
    pools = [np.arange(s, e - v - t) for s, e, v, t in zip(starts, ends, val, test, strict=True)]
    blocks_val = [np.arange(e - v - t, e - t) for e, v, t in zip(ends, val, test, strict=True)]
    blocks_test = [np.arange(e - t, e) for e, t in zip(ends, test, strict=True)]
    return {
        "train": rng.permutation(np.concatenate(pools))[:n_train],
        "val": np.concatenate(blocks_val),
        "test": np.concatenate(blocks_test),
    }


def share(n: int, sizes: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Divide n over sources in proportion to `sizes`, at most `room` in each."""
    parts = np.zeros(len(sizes), dtype=int)
    if n == 0:
        return parts
    exact = n * sizes / sizes.sum()
    parts = np.minimum(np.floor(exact).astype(int), room)
    for i in np.argsort(-(exact - np.floor(exact)), kind="stable"):
        if parts.sum() < n and parts[i] < room[i]:
            parts[i] += 1
    while parts.sum() < n:  # some sources are full: the ones with room left take the rest
        parts[np.argmax(room - parts)] += 1
    return parts


def evenly(total: int, most: int = SAMPLE) -> list[int]:
    """Indices of up to `most` structures of `total`, spread evenly."""
    return np.unique(np.linspace(0, total - 1, most).astype(int)).tolist()
