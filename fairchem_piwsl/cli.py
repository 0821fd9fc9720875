"""The `piwsl` command line.

Every command is a thin wrapper: the work is done by a function of the package that can be called from
Python as well, and that is imported only when its command runs, so that `piwsl --help` is instant.
"""

from __future__ import annotations

import sys

import typer

from fairchem_piwsl.analysis import commands as analysis
from fairchem_piwsl.datasets import command as datasets
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.sweeps.commands import sweep_app

app = typer.Typer(
    name="piwsl",
    help="Train interatomic potentials when labels are scarce.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _root() -> None:
    """Keep typer in its many-commands form."""


analysis.register(app)
datasets.register(app)
app.add_typer(sweep_app)


def main() -> None:
    """Run `piwsl`; a `UserError` becomes one line on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"piwsl: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
