"""fairchem's command line with the plugin loaded (`main.py`)."""

from __future__ import annotations

import sys

from fairchem.core import _cli

import fairchem_piwsl.trainer  # noqa: F401  registers `piwsl_forces`
from fairchem_piwsl.errors import UserError


class Runner(_cli.Runner):
    """fairchem's job under a name of the plugin's: a worker of `--submit` unpickles it and so loads the plugin."""


_cli.Runner = Runner


def main() -> None:
    """Run fairchem's CLI; a `UserError` becomes one line on stderr and exit code 2."""
    try:
        _cli.main()
    except UserError as error:
        print(f"main.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
