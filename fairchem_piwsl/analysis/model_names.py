"""Short names for checkpoints, which tell them apart in tables and figures."""

import re
from collections.abc import Sequence
from pathlib import Path


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """Short names for `paths`, made longer by leading folders until no two are the same.

    A name is the run's for the files that trainings write, else the file's.
    """
    folders = [_telling_parts(path) for path in paths]
    files = [Path(path).resolve().with_suffix("").parts for path in paths]
    # `seed0` alone tells little: the method is in the folder above.
    shortest = 2 if any(re.fullmatch(r"(seed|run|step)?[-_]?\d+", parts[-1]) for parts in folders) else 1
    for parts in (folders, files):
        for depth in range(shortest, max(map(len, parts), default=0) + 1):
            names = ["/".join(part[-depth:]) for part in parts]
            if len(set(names)) == len(names):
                return names
    return [f"{parts[-1]} ({number})" for number, parts in enumerate(folders, 1)]


#: fairchem 2's: year and month, day and hour, minutes and seconds, a random number
_STAMP_2 = re.compile(r"\d{6}-\d{4}-\d{4}-\w{4}")


def _telling_parts(path: str | Path) -> tuple[str, ...]:
    """Telling parts of a path: without `checkpoints`, general file names and upstream's time stamps."""
    parts = [part for part in Path(path).resolve().with_suffix("").parts if part != "checkpoints"]
    if parts[-1] == "inference_ckpt":  # of fairchem 2: <run>/<time stamp>/checkpoints/<final or step>/
        parts = [part for part in parts[:-1] if not _STAMP_2.fullmatch(part)]
        return tuple(parts[:-1] if parts[-1] == "final" else parts)
    if parts[-1] in ("checkpoint", "best_checkpoint"):
        parts.pop()
        stamp = re.fullmatch(r"\d{4}(?:-\d\d){5}(?:\.\d{6})?(?:-(.+))?", parts[-1])
        if stamp:
            parts[-1:] = [stamp[1]] if stamp[1] else []
    return tuple(parts)
