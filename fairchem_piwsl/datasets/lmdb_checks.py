"""What an LMDB file holds, and whether it is whole: a read beyond the end of a truncated one would kill the process."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import lmdb

from fairchem_piwsl.datasets.safe_pickle import unpickle

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
    with (
        lmdb.open(str(source), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        stored = transaction.get(b"length")
        return int(unpickle(stored)) if stored else environment.stat()["entries"]


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
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment:
            expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        # pages at the end that were given back before they were written make a file short, too
        if size < expected and not _survives_reading(path):
            raise lmdb.Error(f"{path.name} is cut off after {size} of {expected} bytes")


def _survives_reading(path: Path) -> bool:
    """Whether all of the file can be read, tried in another process."""
    command = [sys.executable, "-c", _READ_ALL, str(path)]
    return subprocess.run(command, capture_output=True).returncode == 0
