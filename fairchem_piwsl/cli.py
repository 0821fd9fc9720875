"""The `piwsl` command line.

Every command is a thin wrapper: the work is done by a function of the package that can be called from
Python as well, and that is imported only when its command runs, so that `piwsl --help` is instant.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fairchem_piwsl.analysis import analysis_commands as analysis
from fairchem_piwsl.datasets import prepare_command as datasets
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.sweeps.sweep_commands import sweep_app

#: a mistake in the options; typer brings a click of its own, whose names it does not export
_UsageError = typer.BadParameter.__mro__[1]

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


@app.command(
    "bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, no_args_is_help=True
)
def _bench(
    context: typer.Context,
    config_yml: Annotated[Path, typer.Option(help="fairchem config with optim.piwsl")],
    rounds: Annotated[int, typer.Option(min=2, help="steps of each variant that are measured")] = 20,
    cpu: Annotated[bool, typer.Option("--cpu", help="use the CPU although there is a GPU")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="also write the result to this file")
    ] = None,
) -> None:
    """What a PIWSL step costs: against a plain step, an enlarged batch and separate calls.

    Further arguments are fairchem's overrides, e.g. --optim.batch_size=16.
    """
    import json

    from rich.console import Console

    from fairchem_piwsl.training import bench

    result = bench.bench(bench.read_config(config_yml, context.args), rounds=rounds, cpu=cpu)
    Console().print(bench.render(result))
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2) + "\n")


def main() -> None:
    """Run `piwsl`; a `UserError` or a mistake in the options becomes one line on stderr and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        print(f"piwsl: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help has been asked for by saying nothing
            error.show()
            raise SystemExit(2) from None
        command = error.ctx.command_path if error.ctx else "piwsl"
        message = " ".join(error.format_message().split()).rstrip(".")
        print(f"piwsl: {message}; `{command} --help` lists what there is.", file=sys.stderr)
        raise SystemExit(2) from None
    except typer.Abort:
        print("piwsl: interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
