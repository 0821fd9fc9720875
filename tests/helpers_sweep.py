"""Cheap objectives in place of trainings, importable by worker processes, and sweep files that use them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

BASE = {"optim": {"lr_initial": 0.1, "batch_size": 4, "optimizer": "AdamW", "piwsl": {}}, "run_dir": "."}


def parabola(config: Mapping[str, Any], report: Any) -> None:
    """Smallest at lr_initial = 0.3; reports at steps 1, 2 and 3."""
    x = config["optim"]["lr_initial"]
    for step in (1, 2, 3):
        report(step, {"error": (x - 0.3) ** 2 + 1 / step, "other": abs(x)})


def note(config: Mapping[str, Any], text: str) -> None:
    """Append a line to the log that tells which trial ran where."""
    path = Path(config["run_dir"]) / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{config['timestamp_id'].split('-')[-1]} {text} {os.getpid()}\n")


def chaos(config: Mapping[str, Any], report: Any) -> None:
    """Slot 2 raises, slot 4 is out of memory, slot 6 diverges, slot 1 kills its worker the first time."""
    slot = int(config["timestamp_id"].split("-")[-1])
    first = not any(line.startswith(f"{slot:04d} begin") for line in read_log(config["run_dir"]))
    note(config, "begin")
    for step in range(1, 6):
        time.sleep(0.1)
        if step == 2:
            if slot == 2:
                raise ValueError("no such thing")
            if slot == 4:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            if slot == 1 and first:
                os.kill(os.getpid(), signal.SIGKILL)
        report(
            step, {"error": float("nan") if slot == 6 and step == 3 else config["optim"]["lr_initial"] / step}
        )
    note(config, "end")


def read_log(run_dir: str | Path) -> list[str]:
    """Lines of `note`."""
    path = Path(run_dir) / "log.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def sweep_content(function: str = "parabola", **changes: Any) -> dict[str, Any]:
    """A sweep file's content."""
    return {
        "study": "toy",
        "base": "base.yml",
        "function": f"helpers_sweep.{function}",
        "space": {"optim.lr_initial": {"type": "float", "low": 0.0, "high": 1.0}},
        "objective": "error",
        "sampler": "random",
        "trials": 6,
        "workers": 2,
        "cpu": True,
        "heartbeat": {"interval": 0.5, "grace": 10},
        **changes,
    }


def write_sweep(folder: Path, content: dict[str, Any], base: dict[str, Any] | None = None) -> Path:
    """`content` as sweep.yml beside its base config; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yml").write_text(yaml.safe_dump(base or BASE), encoding="utf-8")
    path = folder / "sweep.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def slow(config: Mapping[str, Any], report: Any) -> None:
    """Ten reports in half a second; notes its beginning and its end."""
    note(config, "begin")
    for step in range(1, 11):
        time.sleep(0.05)
        report(step, {"error": config["optim"]["lr_initial"]})
    note(config, "end")


def told_to_end(config: Mapping[str, Any], report: Any) -> None:
    """Gets SIGTERM in the middle of its first attempt."""
    first = not read_log(config["run_dir"])
    note(config, "begin")
    for step in (1, 2, 3):
        if first and step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        report(step, {"error": config["optim"]["lr_initial"]})
    note(config, "end")


def fails(config: Mapping[str, Any], report: Any) -> None:
    """Raises whatever its settings."""
    raise ValueError("no such model")
