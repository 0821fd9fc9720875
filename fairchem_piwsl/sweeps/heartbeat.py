"""Heartbeats of the workers, as small files, since a journal study has none of its own.

Each worker rewrites its file every few seconds. Another worker takes it for dead when the content has not
changed for a while *by the observer's own clock*, so clocks of different machines need not agree.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairchem_piwsl.files import write_json

WORKERS = "workers"
STOP = "stop"
#: seconds for which an NFS client may show an old file
NFS_CACHE = 60


class Heartbeat:
    """Writes a worker's file every `interval` seconds from a thread, and calls `each_beat` there."""

    def __init__(
        self, folder: Path, name: str, interval: float, each_beat: Callable[[], None] = lambda: None
    ) -> None:
        self.path = folder / WORKERS / f"{name}.json"
        self.interval = interval
        self._each_beat = each_beat
        self._content: dict[str, Any] = {"beat": 0, "pid": os.getpid(), "state": "running"}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Heartbeat:
        self.update()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self.update(state="ended", trial=None)

    def update(self, **content: Any) -> None:
        """Write the file now, with `content` added to what it says."""
        with self._lock:
            self._content.update(content)
            self._content["beat"] += 1
            self._content["time"] = time.time()
            write_json(self.path, self._content)

    def _run(self) -> None:
        while not self._end.wait(self.interval):
            try:
                self.update()
                self._each_beat()
            except OSError:  # a file server that is away for a moment must not end the heartbeat
                continue


def read_workers(folder: Path) -> dict[str, dict[str, Any]]:
    """The last content of every worker's file, by worker name."""
    files = sorted((folder / WORKERS).glob("*.json"))
    return {path.stem: content for path in files if (content := _read(path))}


def running_workers(folder: Path, within: float) -> list[dict[str, Any]]:
    """Content of the files of workers that have not ended and whose last heartbeat is so many seconds old."""
    workers = read_workers(folder).values()
    return [w for w in workers if w["state"] == "running" and time.time() - w["time"] < within]


def _read(path: Path) -> dict[str, Any]:
    """A heartbeat; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and {"beat", "time", "state"} <= content.keys() else {}


class Observer:
    """Tells which workers' heartbeats have stopped, after looking at them for `grace` seconds."""

    def __init__(self, folder: Path, grace: float) -> None:
        self.folder = folder
        self.grace = grace
        #: worker -> its last beat, when it was first seen, whether it has been seen to change
        self._seen: dict[str, tuple[Any, float, bool]] = {}

    def silent_for(self, worker: str) -> float:
        """Seconds since the worker's file was last seen to change; infinite once the worker has ended."""
        path = self.folder / WORKERS / f"{worker}.json"
        content = _read(path)
        if content.get("state") == "ended" or (content and self._age(path) > self.grace + NFS_CACHE):
            return float("inf")
        now, beat = time.monotonic(), content.get("beat")
        if worker not in self._seen:
            self._seen[worker] = (beat, now, False)
        elif self._seen[worker][0] != beat:
            self._seen[worker] = (beat, now, True)
        return now - self._seen[worker][1]

    def is_alive(self, worker: str, within: float) -> bool:
        """Whether the worker's heart has been seen to beat, and within that many seconds."""
        silence = self.silent_for(worker)
        return silence <= within and self._seen[worker][2]

    def is_dead(self, worker: str) -> bool:
        """Whether the worker has ended or been silent for longer than `grace`."""
        return self.silent_for(worker) > self.grace

    def _age(self, path: Path) -> float:
        """Seconds since the last beat; both times are stamped by the file server."""
        probe = self.folder / WORKERS / f".probe.{os.getpid()}"
        probe.write_text("", encoding="utf-8")
        try:
            return probe.stat().st_mtime - path.stat().st_mtime
        except FileNotFoundError:
            return 0.0
