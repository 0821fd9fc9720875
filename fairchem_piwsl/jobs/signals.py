"""Signals of the operating system, handled for the length of a block."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handled(handler: Any, *numbers: int) -> Iterator[dict[int, Any]]:
    """Within the block these signals go to `handler`; yields what handled each before, by its number.

    In another thread than the main one, where Python allows no handlers, all stays as it is and nothing is yielded.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers} if is_main else {}
    try:
        yield before
    finally:
        for number, old in before.items():
            signal.signal(number, old)
