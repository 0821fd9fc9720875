"""How fairchem starts runs: their names, and the class that a job is made of."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fairchem.core import _cli
from fairchem.core.common import distutils
from fairchem.core.trainers.base_trainer import BaseTrainer


def run_name(suffix: str | None = None) -> str:
    """A name for a run that starts now: date and time to the microsecond, and a suffix."""
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S.%f")
    return f"{now}-{suffix}" if suffix else now


@contextmanager
def exact_timestamps() -> Iterator[None]:
    """Within the block, no two runs get the same name from fairchem.

    It sends the time through a float32, which takes steps of 128 s: runs that start within one of them share a
    folder, and the second goes on from the checkpoint of the first.
    """

    def get_timestamp(device: Any, suffix: str | None) -> str:
        names = [run_name(suffix)]
        distutils.broadcast_object_list(names, src=0, device=device)  # one name for all ranks
        return names[0]

    original = BaseTrainer._get_timestamp
    BaseTrainer._get_timestamp = staticmethod(get_timestamp)
    try:
        yield
    finally:
        BaseTrainer._get_timestamp = staticmethod(original)


def send_jobs_with(runner: type) -> None:
    """Let fairchem's own command line and Python API send jobs of the class `runner`.

    Its own is unpickled on a worker without the plugin. This lasts as long as the process: the jobs that it sends
    outlive any block.
    """
    _cli.Runner = runner
