"""fairchem's command line with the plugin loaded (`main.py`)."""

from __future__ import annotations

import sys

import fairchem_piwsl.trainer  # noqa: F401  registers `piwsl_forces`
from fairchem_piwsl.errors import UserError


def main() -> None:
    """Run fairchem's CLI; a `UserError` becomes one line on stderr and exit code 2."""
    from fairchem.core._cli import main as fairchem_main

    try:
        fairchem_main()
    except UserError as error:
        print(f"main.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
