"""The `piwsl` command line.

Every command is a thin wrapper: the work is done by a function of the package that can be called from
Python as well, and that is imported only when its command runs, so that `piwsl --help` is instant.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from fairchem_piwsl.analysis import analysis_commands as analysis
from fairchem_piwsl.datasets import prepare_command as datasets
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import errors_as_sentences
from fairchem_piwsl.sweeps.sweep_commands import sweep_app
from fairchem_piwsl.upstream import installed_version, require_version_1

#: a mistake in the options; typer brings a click of its own, whose names it does not export
_UsageError: Any = typer.BadParameter.__mro__[1]

#: commands that work with fairchem 1.10 and with fairchem 2
WITH_FAIRCHEM_2 = ("prepare", "evaluate", "consistency", "profile", "md", "report")

app = typer.Typer(
    name="piwsl",
    help="Train interatomic potentials when labels are scarce.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _root(
    context: typer.Context,
    trust_checkpoint: Annotated[
        bool, typer.Option("--trust-checkpoint", help="Load checkpoints and .model files that can run code.")
    ] = False,
) -> None:
    """Options of all commands."""
    if installed_version().startswith("2.") and context.invoked_subcommand not in WITH_FAIRCHEM_2:
        require_version_1(f"piwsl {context.invoked_subcommand}")
    if trust_checkpoint:
        from fairchem_piwsl.training.checkpoint_files import trust

        trust()


analysis.register(app)
datasets.register(app)
app.add_typer(sweep_app)
mace_app = typer.Typer(no_args_is_help=True, help="Files of MACE's own programs.")
app.add_typer(mace_app, name="mace")


AnyArguments = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command("fairchem", context_settings={**AnyArguments, "help_option_names": []})
def _fairchem(context: typer.Context) -> None:
    """fairchem's command line with the plugin loaded: what `python main.py` does, from any folder."""
    from fairchem_piwsl.jobs import launch

    launch.main(context.args, program="piwsl fairchem")


@app.command("bench", context_settings=AnyArguments, no_args_is_help=True)
def _bench(
    context: typer.Context,
    config_yml: Annotated[Path, typer.Option(help="fairchem config with optim.piwsl")],
    method: Annotated[
        str | None, typer.Option(help="another method: second_order, weak_label, a file, ...")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="folder of `piwsl prepare`, instead of the config's data")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="steps of each variant that are measured")] = 20,
    cpu: Annotated[bool, typer.Option("--cpu", help="use the CPU although there is a GPU")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="also write the result to this file")
    ] = None,
) -> None:
    """What a PIWSL step costs: against a plain step, an enlarged batch and separate calls.

    Further arguments are fairchem's overrides, e.g. --optim.batch_size=16.
    """
    from rich.console import Console

    from fairchem_piwsl.config import read_config
    from fairchem_piwsl.files import check_output_file, write_result

    if json_file:
        check_output_file(json_file, "--json")
    config = read_config(config_yml, context.args, method, data)
    from fairchem_piwsl.training import bench

    result = bench.bench(config, rounds=rounds, cpu=cpu)
    Console(markup=False, emoji=False).print(bench.render(result))
    if json_file:
        write_result(json_file, result)


@app.command("references", no_args_is_help=True)
def _references(
    config_yml: Annotated[Path, typer.Argument(help="Config of the fine-tuning.")],
    out: Annotated[Path, typer.Argument(help="File to write, e.g. element_references.npz.")],
) -> None:
    """Element references for fine-tuning: what the labels have and the given model lacks."""
    from fairchem_piwsl.config import load_config
    from fairchem_piwsl.datasets.element_references import check_new, write_references

    check_new(out)
    config = load_config(config_yml)
    from fairchem_piwsl.training.fine_tuning import from_config

    write_references(out, from_config(config))


@mace_app.command("references", no_args_is_help=True)
def _mace_references(
    model: Annotated[Path, typer.Argument(help="A .model file of MACE.")],
    out: Annotated[Path, typer.Argument(help="File to write, e.g. element_references.npz.")],
    head: Annotated[str | None, typer.Option(help="model.head of the training; else the last.")] = None,
) -> None:
    """Take over the energies of isolated atoms of a MACE model."""
    from fairchem_piwsl.datasets.element_references import check_new, write_references
    from fairchem_piwsl.models.mace_files import atomic_energies, read_model

    check_new(out)
    write_references(out, atomic_energies(read_model(model), head))


@mace_app.command("export", no_args_is_help=True)
def _mace_export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a MACE run.")],
    out: Annotated[Path, typer.Argument(help="The .model file to write.")],
) -> None:
    """Write the MACE model of a checkpoint as a file for MACE's own programs."""
    from fairchem_piwsl.models.mace_files import export

    export(checkpoint, out)


def main() -> None:
    """Run `piwsl`; a `UserError` or a mistake in the options becomes one line on stderr and exit code 2."""
    with errors_as_sentences("piwsl"):
        try:
            code = app(standalone_mode=False)
        except typer.Abort:
            raise KeyboardInterrupt from None
        except _UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # the help has been asked for by saying nothing
                error.show()
                raise SystemExit(2) from None
            command = error.ctx.command_path if error.ctx else "piwsl"
            message = " ".join(error.format_message().split()).rstrip(".")
            raise UserError(f"{message}; `{command} --help` lists what there is.") from None
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
