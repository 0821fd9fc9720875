"""An output folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from fairchem_piwsl.errors import UserError

SUMMARY = "summary.json"
#: everything that `prepare` writes; a folder with anything else in it is never replaced
OWN_NAMES = {
    "train",
    "val",
    "test",
    "element_references.npz",
    "energy_normalizer.npz",
    "forces_normalizer.npz",
    "dataset.yml",
    SUMMARY,
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
    names = {p.name for p in out.iterdir()} if out.is_dir() else set()
    if not names:
        return
    if not overwrite:
        raise UserError(
            f"--out {out} already holds data; give another folder, or --overwrite to replace the data set."
        )
    foreign = sorted(names - OWN_NAMES)
    if foreign or finished(out) is None:
        what = f"{foreign[0]}, which is" if foreign else "files that are"
        raise UserError(
            f"--out {out} holds {what} not from piwsl prepare, so it is not replaced; give another folder."
        )


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `out` when the block ends well, and vanishes otherwise."""
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    partial = _beside(out, "partial")
    try:
        partial.mkdir()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); give another folder.") from error
    try:
        with _terminate_as_exception():
            yield partial
            _take_place(partial, out)
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
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def _terminate_as_exception() -> Iterator[None]:
    """A polite kill (SIGTERM, as batch systems send) ends like Ctrl-C, so that cleaning up happens."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
