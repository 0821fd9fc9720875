"""The progress line of `piwsl md`: share done, temperature, ns/day, time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(steps: int, timestep: float) -> Iterator[Callable[[int, int, float, float], None]]:
    """A function (seed, step, temperature in K, steps/s) that shows how far each seed is, on stderr."""
    columns = (
        TextColumn("seed {task.fields[seed]}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TextColumn("{task.fields[temperature]:.0f} K, {task.fields[ns_per_day]:.3g} ns/day"),
        TimeRemainingColumn(),
    )
    tasks: dict[int, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def report(seed: int, step: int, temperature: float, speed: float) -> None:
            if seed not in tasks:
                tasks[seed] = progress.add_task("", total=steps, seed=seed, temperature=0.0, ns_per_day=0.0)
            ns_per_day = speed * timestep * 1e-6 * 86400
            progress.update(tasks[seed], completed=step, temperature=temperature, ns_per_day=ns_per_day)

        yield report
