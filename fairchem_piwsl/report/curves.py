"""Scalars over training, from the files that upstream's logger wrote for TensorBoard."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class Curve:
    """A scalar over training: step [K], seconds since the start [K], value [K]."""

    step: np.ndarray
    seconds: np.ndarray
    value: np.ndarray


def read_curves(folder: Path) -> dict[str, Curve]:
    """All scalars of the TensorBoard files in `folder`.

    A continued run has several files. Time runs on from one to the next without the pause between them, and
    steps that were done twice count with their last values.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: dict[str, dict[int, tuple[float, float]]] = {}
    elapsed = 0.0
    for path in sorted(folder.glob("events.out.tfevents*")) if folder.is_dir() else []:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        series = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        times = [event.wall_time for values in series.values() for event in values]
        if not times:
            continue
        first = min(times)
        for tag, values in series.items():
            for event in values:
                points.setdefault(tag, {})[event.step] = (elapsed + event.wall_time - first, event.value)
        elapsed += max(times) - first
    return {
        tag: Curve(np.array(sorted(values)), *np.array([values[step] for step in sorted(values)]).T)
        for tag, values in points.items()
    }
