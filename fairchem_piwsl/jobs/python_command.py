"""How jobs start Python."""

from __future__ import annotations

import shlex
import sys


def python_ignoring_usr2() -> str:
    """A shell command for this Python that ignores USR2 until submitit listens to it.

    By default the signal would end a process that is still importing, and a job that ends by itself is not
    queued again.
    """
    return f'sh -c \'trap "" USR2; exec "$@"\' sh {shlex.quote(sys.executable)}'
