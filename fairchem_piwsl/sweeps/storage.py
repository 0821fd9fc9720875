"""Where a study lives: a journal file by default, which is safe on NFS, or a database by URL."""

import os
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from fairchem_piwsl.errors import UserError

JOURNAL = "journal.log"
#: seconds after which the lock of a killed writer is broken
LOCK_GRACE = 15


class Journal(JournalFileBackend):
    """Optuna's journal, repaired where a writer was killed in the middle of a line; Optuna does not do that.

    The next line would be glued to the torn one, and the study could never be read again. A line counts only
    with its line break, so a torn end was never seen by any reader and is cut off before the next write.
    """

    def __init__(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().__init__(str(path), lock_obj=_CleaningLock(path))


class _CleaningLock(JournalFileOpenLock):
    """Optuna's lock for NFS; whoever gets it first cuts off a torn last line."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), grace_period=LOCK_GRACE)
        self._path = path

    def acquire(self) -> bool:
        """Take the lock and leave the journal ending in a complete line."""
        taken = super().acquire()
        cut_torn_line(self._path)
        return taken


def cut_torn_line(path: Path) -> int:
    """Remove what follows the last line break of a file; returns the number of bytes removed."""
    with open(path, "rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            block = file.read(end - start)
            if b"\n" in block:
                end = start + block.rindex(b"\n") + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
    return size - end


def journal_path(storage: str, folder: Path) -> Path | None:
    """The file of the storage named in a sweep file; None for a database."""
    if "://" in storage:
        return None
    return folder / JOURNAL if storage == "journal" else Path(storage)


def from_anywhere(storage: str) -> str:
    """The storage named in a sweep file, with the whole path where it is a file."""
    scheme, slashes, path = storage.rpartition(":///")
    is_file = scheme.startswith("sqlite") if slashes else "://" not in storage and storage != "journal"
    return f"{scheme}{slashes}{Path(path).resolve()}" if is_file and path != ":memory:" else storage


def open_storage(storage: str, folder: Path) -> BaseStorage:
    """The storage named in a sweep file: `journal`, a path ending in `.log`, or a database URL."""
    path = journal_path(storage, folder)
    if path is None:
        return _open_database(storage)
    if path.suffix != ".log":
        raise UserError(f"storage '{storage}' must be 'journal', a file ending in .log or a database URL.")
    if not path.parent.is_dir():
        raise UserError(f"storage {path}: the folder {path.parent} does not exist; make it first.")
    try:
        return JournalStorage(Journal(path))
    except OSError as error:
        raise UserError(f"storage {path} cannot be opened ({error}); check its permissions.") from error
    except Exception as error:  # whatever Optuna stumbles over in a file that it did not write
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"storage {path} is not a study's journal ({reason}); put back a copy of it, or start a new sweep."
        ) from error


def _open_database(url: str) -> BaseStorage:
    """Optuna's database storage, with passwords kept out of errors."""
    shown = _without_password(url)
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        options = {"connect_args": {"timeout": 60}}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except ImportError as error:
        missing = getattr(error.__cause__ or error, "name", None) or "of the URL's dialect"
        raise UserError(
            f"storage {shown} needs the database driver {missing}: pip install 'fairchem_piwsl[postgresql]' for "
            "postgresql+psycopg://..., 'fairchem_piwsl[mysql]' for mysql+pymysql://..."
        ) from error
    except Exception as error:  # every driver has errors of its own
        reason = str(error).splitlines()[0].replace(url, shown)
        raise UserError(
            f"storage {shown} cannot be reached ({reason}); check the URL and the server."
        ) from error


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    if "@" not in rest:
        return url
    user, _, host = rest.rpartition("@")
    return f"{scheme}://{user.split(':')[0]}:***@{host}"
