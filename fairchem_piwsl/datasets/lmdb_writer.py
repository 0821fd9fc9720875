"""Upstream's LMDB format: pickled PyG `Data` under "0", "1", ... and their number under "length"."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import TracebackType

import lmdb
import numpy as np
import torch

from fairchem_piwsl.structures import Labelled, to_data

#: address space, of which a file takes what it needs; upstream's size
_MAP_SIZE = 2**40


class LmdbWriter:
    """Context manager that writes `folder/data.lmdb`, in any order of the keys, and `folder/metadata.npz`."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.folder = folder
        self.env = _open(folder / "data.lmdb")
        self.natoms: dict[int, int] = {}

    def __enter__(self) -> LmdbWriter:
        return self

    def write(self, key: int, structure: Labelled) -> None:
        """Store a structure under `key`; keys must end up being 0 to n - 1."""
        data = to_data(structure)
        self.natoms[key] = data.natoms
        _put(self.env, str(key), data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                _put(self.env, "length", len(self.natoms))
                natoms = np.array([self.natoms[key] for key in range(len(self.natoms))], dtype=np.int64)
                np.savez(self.folder / "metadata.npz", natoms=natoms)
                self.env.sync()
        finally:
            self.env.close()


def call_all_periodic(path: Path) -> None:
    """Mark every structure of an LMDB as periodic along all three directions.

    Upstream cannot mix boundary conditions in one batch. The vacuum is large enough, so only time is lost.
    """
    env = _open(path)
    for key in map(str, range(env.stat()["entries"] - 1)):  # all but the length
        with env.begin() as transaction:
            data = pickle.loads(transaction.get(key.encode()))
        data.pbc = torch.ones(1, 3, dtype=torch.bool)
        _put(env, key, data)
    env.sync()
    env.close()


def _open(path: Path) -> lmdb.Environment:
    """For writing; without `sync` at every commit, which `env.sync()` at the end makes up for."""
    return lmdb.open(str(path), subdir=False, lock=False, meminit=False, sync=False, map_size=_MAP_SIZE)


def _put(env: lmdb.Environment, key: str, value: object) -> None:
    with env.begin(write=True) as transaction:
        transaction.put(key.encode(), pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))
