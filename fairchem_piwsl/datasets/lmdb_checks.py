"""LMDB files of any age, read with care: nothing in them is executed, and a truncated one is known before it is read.

A read beyond the end of a file would kill the process.
"""

import io
import mmap
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled, no_forces

#: what records consist of; PyG 1 and 2, numpy 1 and 2
_CLASSES = {
    "torch_geometric.data.data": {"Data", "DataEdgeAttr", "DataTensorAttr"},
    "torch_geometric.data.storage": {"BaseStorage", "GlobalStorage", "NodeStorage", "EdgeStorage"},
    "torch._utils": {"_rebuild_tensor", "_rebuild_tensor_v2"},
    "torch": {"Size", "device"},
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "collections": {"OrderedDict"},
    "copyreg": {"_reconstructor"},
    "builtins": {"object"},
    "_codecs": {"encode"},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _tensor
        if name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no record needs")


def _tensor(content: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(content), weights_only=True)


def unpickle(content: bytes) -> Any:
    """The object in `content`.

    Raises:
        pickle.UnpicklingError: it holds more than tensors, arrays, numbers, text and PyG data.
    """
    return _Unpickler(io.BytesIO(content)).load()


_READ_ALL = """
import sys, lmdb
with lmdb.open(sys.argv[1], subdir=False, readonly=True, lock=False).begin() as transaction:
    for key, value in transaction.cursor():
        pass
"""


def number_of_structures(source: str | Path) -> int:
    """Length of a data set in one LMDB file.

    Raises:
        lmdb.Error: it is no LMDB, or does not exist.
    """
    with _open(source) as environment, environment.begin() as transaction:
        return _length(transaction)


def _open(path: str | Path) -> lmdb.Environment:
    return lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)


def _length(transaction: lmdb.Transaction) -> int:
    stored = transaction.get(b"length")
    return transaction.stat()["entries"] if stored is None else int(unpickle(stored))


def check_complete(source: str | Path) -> None:
    """Check the length of an LMDB file, or of each `*.lmdb` in a folder.

    Raises:
        lmdb.Error: a file is shorter than its header says, or no LMDB at all.
    """
    source = Path(source)
    for path in sorted(source.glob("*.lmdb")) if source.is_dir() else [source]:
        size = path.stat().st_size
        if size < 2 * mmap.PAGESIZE:  # not even the two pages of the header
            raise lmdb.Error(f"{path.name} is cut off after {size} bytes")
        with _open(path) as environment:
            expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        # pages at the end that were given back before they were written make a file short, too
        if size < expected and not _survives_reading(path):
            raise lmdb.Error(f"{path.name} is cut off after {size} of {expected} bytes")


def _survives_reading(path: Path) -> bool:
    """Whether all of the file can be read, tried in another process."""
    command = [sys.executable, "-c", _READ_ALL, str(path)]
    return subprocess.run(command, capture_output=True).returncode == 0


class LmdbSource:
    """The structures of an LMDB file in eV and eV/Angstrom; missing labels are NaN."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.paths = path, path.name, [path]

    def count(self) -> int:
        with self._opened() as transaction:
            return _length(transaction)

    def read(self, indices: Sequence[int]) -> Iterator[Labelled]:
        with self._opened() as transaction:
            for key in indices:
                yield _structure(self.path, key, transaction.get(str(key).encode()))

    @contextmanager
    def _opened(self) -> Iterator[lmdb.Transaction]:
        try:
            check_complete(self.path)
            environment = _open(self.path)
        except (lmdb.Error, OSError) as error:
            raise UserError(f"{self.path}: not a readable LMDB ({error}); prepare it again.") from None
        with environment, environment.begin() as transaction:
            yield transaction


def _structure(path: Path, key: int, value: bytes | None) -> Labelled:
    if value is None:
        raise UserError(f"{path}: structure {key} is missing from this LMDB; prepare the data set again.")
    try:
        data = unpickle(value)
        # Objects pickled by PyG 1.x keep their tensors in __dict__ rather than in a store.
        return _labelled(data.__dict__ if "_store" not in data.__dict__ else data.to_dict(), f"{path}:{key}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: its records can be read only where {error.name} is installed, as with fairchem-core 1.10.0; give "
            "an .aselmdb file, or one that ASE reads."
        ) from None
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path}: structure {key} is no PyG record with pos and atomic_numbers ({error}); prepare the data "
            f"set again."
        ) from None


def _labelled(fields: dict[str, Any], source: str) -> Labelled:
    numbers = np.asarray(fields["atomic_numbers"], dtype=int)
    cell, pbc = fields.get("cell"), fields.get("pbc")
    atoms = Atoms(
        numbers=numbers,
        positions=np.asarray(fields["pos"], dtype=float),
        cell=None if cell is None else np.asarray(cell, dtype=float).reshape(3, 3),
        pbc=np.asarray(pbc, dtype=bool).reshape(3) if pbc is not None else cell is not None,
    )
    if (fixed := fields.get("fixed")) is not None:
        atoms.set_constraint(FixAtoms(mask=np.asarray(fixed, dtype=bool)))
    # data sets older than fairchem's present names call the labels y and force
    energy, forces = fields.get("energy", fields.get("y")), fields.get("forces", fields.get("force"))
    return Labelled(
        atoms,
        np.nan if energy is None else float(np.asarray(energy, dtype=float).reshape(())),
        no_forces(len(atoms)) if forces is None else np.asarray(forces, float).reshape(len(atoms), 3),
        source,
    )
