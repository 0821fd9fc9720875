"""Upstream's LMDB format: pickled PyG `Data` under "0", "1", ... and their number under "length"."""

from __future__ import annotations

import pickle
from pathlib import Path

import lmdb
import numpy as np

from fairchem_piwsl.structures import Labelled, to_data

#: address space, of which a file takes what it needs; upstream's size
_MAP_SIZE = 2**40


class LmdbWriter:
    """Context manager that writes an LMDB file in any order of its keys, and `metadata.npz`, to a new folder."""

    file = "data.lmdb"

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.folder = folder
        self.env = _open(folder / self.file)
        self.natoms: dict[int, int] = {}

    def __enter__(self) -> LmdbWriter:
        return self

    def write(self, key: int, structure: Labelled) -> None:
        """Store a structure under `key`; keys must end up being 0 to n - 1."""
        self.natoms[key] = len(structure)
        _put(self.env, *self.entry(key, structure))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                _put(self.env, *self.last_entry(len(self.natoms)))
                natoms = np.array([self.natoms[key] for key in range(len(self.natoms))], dtype=np.int64)
                np.savez(self.folder / "metadata.npz", natoms=natoms)
                self.env.sync()
        finally:
            self.env.close()

    def entry(self, key: int, structure: Labelled) -> tuple[str, bytes]:
        """Key and content of one structure in the file."""
        return str(key), _pickled(to_data(structure))

    def last_entry(self, count: int) -> tuple[str, bytes]:
        """What the file holds beside its `count` structures."""
        return "length", _pickled(count)


def call_all_periodic(path: Path) -> None:
    """Mark every structure of an LMDB as periodic along all three directions.

    Upstream cannot mix boundary conditions in one batch. The vacuum is large enough, so only time is lost.
    """
    import torch

    env = _open(path)
    for key in map(str, range(env.stat()["entries"] - 1)):  # all but the length
        with env.begin() as transaction:
            data = pickle.loads(transaction.get(key.encode()))
        data.pbc = torch.ones(1, 3, dtype=torch.bool)
        _put(env, key, _pickled(data))
    env.sync()
    env.close()


def _open(path: Path) -> lmdb.Environment:
    """For writing; without `sync` at every commit, which `env.sync()` at the end makes up for."""
    return lmdb.open(str(path), subdir=False, lock=False, meminit=False, sync=False, map_size=_MAP_SIZE)


def _pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


def _put(env: lmdb.Environment, key: str, value: bytes) -> None:
    with env.begin(write=True) as transaction:
        transaction.put(key.encode(), value)
