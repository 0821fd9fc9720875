"""Upstream's LMDB format: pickled PyG `Data` under "0", "1", ... and their number under "length"."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import TracebackType

import lmdb
import numpy as np
import torch

from fairchem_piwsl.structures import Labelled, to_data

_FIRST_MAP_SIZE = 64 * 2**20
_BYTES_PER_COMMIT = 16 * 2**20


class LmdbWriter:
    """Context manager that writes `folder/data.lmdb`, in any order of the keys, and `folder/metadata.npz`."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.folder = folder
        self.env = lmdb.open(
            str(folder / "data.lmdb"), subdir=False, lock=False, meminit=False, map_size=_FIRST_MAP_SIZE
        )
        self.natoms: dict[int, int] = {}
        self.waiting: list[tuple[bytes, bytes]] = []
        self.waiting_bytes = 0

    def __enter__(self) -> LmdbWriter:
        return self

    def write(self, key: int, structure: Labelled) -> None:
        """Store a structure under `key`; keys must end up being 0 to n - 1."""
        data = to_data(structure)
        self.natoms[key] = data.natoms
        self._put(str(key), data)

    def _put(self, key: str, value: object) -> None:
        pickled = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        self.waiting.append((key.encode("ascii"), pickled))
        self.waiting_bytes += len(pickled)
        if self.waiting_bytes > _BYTES_PER_COMMIT:
            self._commit()

    def _commit(self) -> None:
        while True:
            try:
                with self.env.begin(write=True) as transaction:
                    for key, value in self.waiting:
                        transaction.put(key, value)
                break
            except lmdb.MapFullError:  # the transaction was rolled back: enlarge and repeat it
                self.env.set_mapsize(2 * self.env.info()["map_size"])
        self.waiting, self.waiting_bytes = [], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._put("length", len(self.natoms))
                self._commit()
                natoms = np.array([self.natoms[key] for key in range(len(self.natoms))], dtype=np.int64)
                np.savez(self.folder / "metadata.npz", natoms=natoms)
                self.env.sync()
        finally:
            self.env.close()


def call_all_periodic(path: Path) -> None:
    """Mark every structure of an LMDB as periodic along all three directions.

    Upstream cannot mix boundary conditions in one batch. The vacuum is large enough, so only time is lost.
    """
    env = lmdb.open(str(path), subdir=False, lock=False, map_size=2 * path.stat().st_size + _FIRST_MAP_SIZE)
    with env.begin() as transaction:
        length = pickle.loads(transaction.get(b"length") or b"")
    for key in (str(i).encode("ascii") for i in range(length)):
        with env.begin(write=True) as transaction:
            data = pickle.loads(transaction.get(key) or b"")
            data.pbc = torch.ones(1, 3, dtype=torch.bool)
            transaction.put(key, pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL))
    env.sync()
    env.close()
