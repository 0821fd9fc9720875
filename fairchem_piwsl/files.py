"""Files that appear whole or not at all, strict JSON, and folders for results."""

import errno
import json
import math
import os
import re
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from fairchem_piwsl.errors import UserError


@contextmanager
def whole_file(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to write, "wb" or "w", that takes the place of `path` when the block ends well.

    Readers see the old file or the complete new one, also after a crash of the machine. The folder is made; the
    new file gets the permissions that the umask gives. Whatever ends the block early leaves `path` as it was.

    Raises:
        OSError: the folder cannot be written, or the disk is full; its `filename` is `path`.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open(mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException as error:
        with suppress(OSError):  # where its folder is a file, or not to be written
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(unfinished)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8, whole or not at all."""
    with whole_file(path, "w") as file:
        file.write(text)
    return Path(path)


def plain(value: Any) -> Any:
    """`value` with numpy turned into Python and NaN into null, which strict JSON has no word for."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_json(value: Any) -> str:
    """`value` as the text of a JSON file."""
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as strict JSON, whole or not at all, over what was there."""
    return write_text(path, as_json(value))


def write_result(path: Path, value: Any, *pictures: Path) -> Path:
    """Write a result as JSON; an earlier one with other contents stays, with its pictures, as `<name>.1`, `.2`, ..."""
    text = as_json(value)
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        earlier = [old for old in (path, *pictures) if old.exists()]
        number = 1
        while any(old.with_name(f"{old.name}.{number}").exists() for old in earlier):
            number += 1
        for old in earlier:
            old.rename(old.with_name(f"{old.name}.{number}"))
    return write_text(path, text)


def read_json(path: Path) -> Any:
    """Read JSON, with a sentence instead of a traceback where the file is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); delete it or write it again.") from None


def file_name(label: str) -> str:
    """`label` as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "_", label).strip("_") or "model"


#: errors of the operating system that say that a file cannot be written or read, whatever the command
_DISK = ("EACCES", "EDQUOT", "EFBIG", "EIO", "EISDIR", "ENAMETOOLONG", "ENOSPC", "ENOTDIR", "EPERM", "EROFS")


def disk_sentence(error: OSError) -> str | None:
    """What to tell the user where the disk or its permissions are at fault; None where something else is."""
    if errno.errorcode.get(error.errno or 0) not in _DISK:
        return None
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror}; check its permissions and the free space."


@contextmanager
def errors_as_sentences(program: str) -> Iterator[None]:
    """Whatever is the user's to put right in the block becomes one line on stderr, after `program`, and exit code 2.

    Ctrl-C becomes one as well, with exit code 130.
    """
    try:
        yield
    except (UserError, OSError) as error:
        sentence = disk_sentence(error) if isinstance(error, OSError) else str(error)
        if sentence is None:
            raise
        print(f"{program}: {sentence}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"{program}: interrupted.", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def check_output_folder(folder: str | os.PathLike[str], option: str = "--out") -> None:
    """Refuse a folder for results that cannot be made or written, before any work; nothing is made here."""
    folder = Path(folder)
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise UserError(f"{option} {folder}: {nearest} is no folder; give another one.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{option} {folder}: {nearest} cannot be written; give another folder.")


def check_output_file(path: str | os.PathLike[str], option: str) -> None:
    """Refuse a file for results that cannot be written, before any work; nothing is made here."""
    if Path(path).is_dir():
        raise UserError(f"{option} {path} is a folder; give the path of a file.")
    check_output_folder(Path(path).parent, option)
