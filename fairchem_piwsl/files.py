"""Results on disk: strict JSON, written whole or not at all, never over an earlier result."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_piwsl.errors import UserError


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


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as JSON; an earlier file with other contents stays as `<name>.1`, `.2`, ..."""
    text = json.dumps(plain(value), indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    keep(path, unless=text)
    unfinished.replace(path)
    return path


def keep(path: Path, unless: str | None = None) -> None:
    """Move `path`, where it exists, to the first free `<name>.N`, unless its text is `unless`."""
    if not path.exists() or (unless is not None and path.read_text(encoding="utf-8") == unless):
        return
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    path.rename(path.with_name(f"{path.name}.{number}"))


def read_json(path: Path) -> Any:
    """Read JSON, with a sentence instead of a traceback where the file is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); delete it or write it again.") from None


def file_name(label: str) -> str:
    """`label` as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "_", label).strip("_") or "model"
