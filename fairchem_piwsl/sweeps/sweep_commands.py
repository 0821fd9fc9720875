"""`piwsl sweep start | status | resume | best | report`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fairchem_piwsl.sweeps.launcher import Show

sweep_app = typer.Typer(
    name="sweep",
    help="Search settings with Optuna, on this machine or on SLURM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Argument(help="Folder of the sweep, as named by `start`.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Number of workers instead of the sweep file's.")]
Trials = Annotated[int | None, typer.Option(min=1, help="Number of trials instead of the sweep file's.")]
Detach = Annotated[bool, typer.Option("--detach", help="Send the jobs and return.")]


@sweep_app.command()
def start(
    sweep: Annotated[Path, typer.Argument(help="Sweep file, for instance configs/sweeps/example.yml.")],
    folder: Annotated[Path | None, typer.Option(help="Where to keep the sweep; sweeps/<study>.")] = None,
    executor: Annotated[
        str, typer.Option(help="local, slurm or debug (one worker, in this process).")
    ] = "local",
    workers: Workers = None,
    trials: Trials = None,
    detach: Detach = False,
) -> None:
    """Begin a sweep and watch it."""
    from fairchem_piwsl.sweeps.launcher import start as start_sweep

    with _live(detach) as show:
        where = start_sweep(sweep, folder, executor, workers, trials, detach, show)
    _print_summary(where, detach)


@sweep_app.command()
def resume(
    folder: Folder,
    executor: Annotated[str | None, typer.Option(help="local, slurm or debug; as before by default.")] = None,
    workers: Workers = None,
    trials: Trials = None,
    detach: Detach = False,
) -> None:
    """Go on with a sweep that was stopped or lost its launcher, or give it more trials."""
    from fairchem_piwsl.sweeps.launcher import resume as resume_sweep

    folder = folder.absolute()  # a trial in this process moves to the folder of its start
    with _live(detach) as show:
        resume_sweep(folder, executor, workers, trials, detach, show)
    _print_summary(folder, detach)


@sweep_app.command()
def status(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Show progress, the best trial so far, failures and running workers."""
    from rich.console import Console

    from fairchem_piwsl.sweeps.results import open_sweep, summary

    state = summary(*open_sweep(folder), folder)
    if as_json:
        print(json.dumps(state, indent=2))
    else:
        Console(markup=False, emoji=False).print(render(state))


@sweep_app.command()
def best(
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Config to write.")] = Path("best.yml"),
    trial: Annotated[int | None, typer.Option(help="Another trial than the best.")] = None,
    without_set: Annotated[
        bool,
        typer.Option("--without-set", help="Without the changes under `set`, such as a shorter training."),
    ] = False,
) -> None:
    """Write the config of the best trial, ready for main.py."""
    from fairchem_piwsl.sweeps.results import best_config

    found = best_config(folder, output, trial, without_set)
    values = ", ".join(f"{value:.6g}" for value in found["values"])
    print(f"trial {found['trial']} ({values}) -> {output}")


@sweep_app.command()
def report(folder: Folder) -> None:
    """Write plots and an HTML page into <folder>/report."""
    from fairchem_piwsl.sweeps.sweep_report import write_report

    print(write_report(folder))


def render(state: dict[str, Any]) -> RenderableType:
    """A summary as a table for the terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{state['study']}: {state['objective']}", title_justify="left", show_header=False)
    names = ("complete", "pruned", "fail", "running", "waiting")
    table.add_row("trials", f"{state['trials']} (" + ", ".join(f"{state[n]} {n}" for n in names) + ")")
    for found in state["best"][:5]:
        table.add_row("best", f"{', '.join(f'{v:.5g}' for v in found['values'])} (trial {found['trial']})")
        for key, value in found["params"].items():
            table.add_row("", f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}")
    if state["base"]:
        table.add_row("base config", f"{', '.join(f'{v:.5g}' for v in state['base']['values'])}")
    for slot, reason in list(state["failures"].items())[-5:]:
        table.add_row("failed", Text(f"trial {slot}: {reason}", overflow="ellipsis", no_wrap=True))
    jobs = Table("job", "host", "trial", "silent / s", title="workers", title_justify="left")
    for worker in state["workers"]:
        cells = (worker["job"], worker["host"], worker["slot"], worker["silent"])
        jobs.add_row(*("" if cell is None else str(cell) for cell in cells))
    return Group(table, jobs) if state["workers"] else table


@contextmanager
def _live(detach: bool) -> Iterator[Show | None]:
    """What shows the state of a sweep while it runs; nothing where the output is not a terminal."""
    from rich.console import Console
    from rich.live import Live

    from fairchem_piwsl.sweeps.folder import load_folder
    from fairchem_piwsl.sweeps.results import summary

    console = Console(markup=False, emoji=False)  # names and values may hold brackets
    if detach or not console.is_terminal:
        yield None
        return
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        yield lambda study, folder: live.update(render(summary(load_folder(folder), study, folder)))


def _print_summary(folder: Path, detach: bool) -> None:
    from rich.console import Console

    from fairchem_piwsl.sweeps.results import open_sweep, summary

    Console(markup=False, emoji=False).print(render(summary(*open_sweep(folder), folder)))
    if detach:
        print(f"look after it with: piwsl sweep status {folder}")
