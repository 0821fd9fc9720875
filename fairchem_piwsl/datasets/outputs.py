"""An output folder that appears whole or not at all."""

import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb

from fairchem_piwsl.datasets.splits import SPLITS
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import check_output_folder
from fairchem_piwsl.jobs.signals import handled

SUMMARY = "summary.json"
_IN_SPLIT = ("data.lmdb", "data.lmdb-lock", "data.aselmdb", "data.aselmdb-lock", "metadata.npz")
#: every file that `prepare` writes (or LMDB beside it); a folder with anything else in it is never replaced
OWN_FILES = {
    "element_references.npz",
    "energy_normalizer.npz",
    "forces_normalizer.npz",
    "dataset.yml",
    SUMMARY,
    *(f"{split}/{name}" for split in SPLITS for name in _IN_SPLIT),
}


def finished(out: Path) -> dict[str, Any] | None:
    """The summary of a finished data set in `out`, if there is one."""
    try:
        return json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse an output folder that holds something, unless it is a data set that may be replaced."""
    if out.is_file():
        raise UserError(f"--out {out} is a file; give another folder.")
    is_filled = out.is_dir() and any(out.iterdir())
    if is_filled and not overwrite:
        raise UserError(
            f"--out {out} already holds data; give another folder, or --overwrite to replace the data set."
        )
    foreign = sorted(name for path in out.rglob("*") if (name := _foreign(path, out)))
    if foreign or (is_filled and finished(out) is None):
        what = f"{foreign[0]}, which is" if foreign else "files that are"
        raise UserError(
            f"--out {out} holds {what} not from piwsl prepare, so it is not replaced; give another folder."
        )
    check_output_folder(out)


def _foreign(path: Path, out: Path) -> str:
    """Name of a path in `out` that `prepare` did not write, or ""."""
    name = path.relative_to(out).as_posix()
    own = name in SPLITS if path.is_dir() else name in OWN_FILES
    return "" if own and not path.is_symlink() else name


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `out` when the block ends well, and vanishes otherwise.

    Where `out` is a symbolic link, the folder that it points to is replaced and the link stays.
    """
    out = Path(os.path.realpath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    partial = _beside(out, "partial")
    try:
        partial.mkdir()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); give another folder.") from error
    try:
        with handled(_stop, signal.SIGTERM):
            yield partial
            _take_place(partial, out)
    except lmdb.Error as error:
        raise UserError(
            f"--out {out} cannot be written ({error}); free space, or give another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _take_place(partial: Path, out: Path) -> None:
    old = _beside(out, "replaced")
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(out: Path, kind: str) -> Path:
    return out.parent / f".{out.name}.{kind}-{socket.gethostname()}-{os.getpid()}"


def _remove_abandoned(out: Path) -> None:
    """Remove what a process of this machine left that was killed without warning."""
    prefix = f".{out.name}.partial-{socket.gethostname()}-"
    for folder in out.parent.iterdir():
        pid = folder.name.removeprefix(prefix)
        if folder.name.startswith(prefix) and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _stop(*_: Any) -> None:
    """A polite kill (SIGTERM, as batch systems send) ends like Ctrl-C, so that cleaning up happens."""
    raise KeyboardInterrupt
