"""The commands of `piwsl` that judge trained models: options here, work in the modules next door."""

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from fairchem_piwsl.files import as_json as json_text
from fairchem_piwsl.files import check_output_folder

Checkpoints = Annotated[
    list[Path], typer.Argument(help="Checkpoints (.pt) of the fairchem that is installed.")
]
Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint (.pt) of the fairchem that is installed.")]
Data = Annotated[
    Path,
    typer.Option(
        help="Labelled LMDB, aselmdb, npz, or a file that ASE reads (eV, Angstrom); FILE@:100 takes a part.",
    ),
]
Structure = Annotated[Path, typer.Option("--structure", help="A file that ASE reads, an LMDB or an npz.")]
Index = Annotated[int, typer.Option(help="Number of the structure in its file.")]
Units = Annotated[
    str, typer.Option("--units", help="Energy unit: kcal/mol, kJ/mol, eV, meV, Hartree, Rydberg.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Structures per batch.")]
Out = Annotated[Path, typer.Option(help="Folder for JSON, tables and plots.")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Stay on the CPU; else a GPU is used where there is one.")]
Gradient = Annotated[
    bool, typer.Option("--gradient-forces", help="Take the energy's gradient instead of the forces output.")
]
TaskName = Annotated[str | None, typer.Option(help="fairchem 2, models for several data sets: which one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
#: options that every command of this file has: name -> declaration and default
COMMON = {
    "cpu": (Cpu, False),
    "gradient_forces": (Gradient, False),
    "task_name": (TaskName, None),
    "as_json": (AsJson, False),
}


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `piwsl`."""
    for command in (evaluate, consistency, profile, md, report):
        app.command()(command)


def runs(work: str, tables: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that gives its options to the function `work` by their names, and shows `tables` of the result.

    Both are "module:function" below the package, imported when the command runs. The decorated function
    declares the help, and the options beside those of `COMMON`.
    """
    common = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=declaration)
        for name, (declaration, default) in COMMON.items()
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def call(as_json: bool, **options: Any) -> None:
            check_output_folder(options["out"])
            result = _function(work)(**options)
            show(result, tables, options["out"], as_json)

        own = signature(command)
        call.__signature__ = own.replace(parameters=[*own.parameters.values(), *common])  # type: ignore[attr-defined]
        return call

    return decorate


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    return getattr(import_module(f"fairchem_piwsl.{module}"), function)


@runs("analysis.evaluate:evaluate", "report.tables:evaluation_tables")
def evaluate(
    checkpoints: Checkpoints,
    data: Data,
    units: Units = "kcal/mol",
    group_by: Annotated[str, typer.Option(help="auto, composition, size or none.")] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first structures only.")] = None,
    batch_size: BatchSize = 16,
    out: Out = Path("results/evaluate"),
) -> None:
    """Energy and force errors of trained models, with intervals and parity plots."""


@runs("analysis.consistency_report:check_consistency", "report.tables:consistency_tables")
def consistency(
    checkpoint: Checkpoint,
    data: Data,
    units: Units = "kcal/mol",
    structures: Annotated[int, typer.Option(min=1, help="Size of the random sample.")] = 50,
    jacobians: Annotated[
        int, typer.Option(min=0, help="Structures with a full force Jacobian (costly).")
    ] = 5,
    directions: Annotated[int, typer.Option(min=1, help="Random directions per structure.")] = 8,
    dr_range: Annotated[
        tuple[float, float], typer.Option("--dr", help="Range of displacements, Angstrom.")
    ] = (0.001, 0.05),
    seed: Annotated[int, typer.Option(min=0, help="Seed of sample and directions.")] = 0,
    batch_size: BatchSize = 16,
    out: Out = Path("results/consistency"),
) -> None:
    """Do predicted forces belong to the predicted energy? Taylor residuals, mismatch, curl, net force."""


@runs("analysis.profile:bond_profile", "report.tables:profile_tables")
def profile(
    structure: Structure,
    bond: Annotated[tuple[int, int], typer.Option(help="Atom that stays, atom that moves (from 0).")],
    checkpoints: Annotated[list[Path] | None, typer.Argument(help="Checkpoints (.pt).")] = None,
    bond_range: Annotated[tuple[float, float], typer.Option("--range", help="Lengths, Angstrom.")] = (
        0.8,
        1.8,
    ),
    points: Annotated[int, typer.Option(min=3, help="Number of lengths.")] = 100,
    reference: Annotated[str | None, typer.Option(help="xtb: add GFN2-xTB (extra `xtb`).")] = None,
    index: Index = -1,
    units: Units = "kcal/mol",
    batch_size: BatchSize = 16,
    out: Out = Path("results/profile"),
) -> None:
    """Energy and force along a stretched bond, several models and a reference in one plot."""


@runs("dynamics.dynamics_report:watched_md", "report.tables:md_tables")
def md(
    structure: Structure,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps, those done already included.")],
    checkpoint: Annotated[Path | None, typer.Argument(help="A checkpoint (.pt).")] = None,
    calculator: Annotated[str | None, typer.Option(help="xtb: run GFN2-xTB instead of a checkpoint.")] = None,
    ensemble: Annotated[str, typer.Option(help="nve (velocity Verlet) or nvt (Langevin).")] = "nve",
    temperature: Annotated[float, typer.Option(help="Kelvin.")] = 300.0,
    timestep: Annotated[float, typer.Option(help="Femtoseconds.")] = 0.5,
    friction: Annotated[float, typer.Option(help="Langevin friction, 1/fs.")] = 0.01,
    interval: Annotated[int, typer.Option(min=1, help="Steps between records.")] = 20,
    seeds: Annotated[int, typer.Option(min=1, help="Number of starts.")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first start.")] = 0,
    index: Index = -1,
    reference_trajectory: Annotated[
        Path | None, typer.Option(help="Frames of true dynamics: equilibrium lengths, h(r), RDF.")
    ] = None,
    bond_threshold: Annotated[float, typer.Option(help="Failure of a molecule, Angstrom.")] = 0.5,
    rdf_threshold: Annotated[float, typer.Option(help="Failure of a periodic system, Angstrom.")] = 3.0,
    rdf_window: Annotated[float, typer.Option(help="Window of the RDF, ps.")] = 1.0,
    precision: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    out: Out = Path("results/md"),
) -> None:
    """Molecular dynamics: time to failure, energy drift, distances; the same command again continues."""


@runs("report.report:make_report", "report.tables:report_tables")
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of training runs (--run-dir), or above.")],
    data: Annotated[Path | None, typer.Option(help="Test set to evaluate every run on.")] = None,
    units: Units = "kcal/mol",
    paper_dataset: Annotated[str | None, typer.Option(help="The paper's name of the data set.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Training report",
    out: Out = Path("results/report"),
) -> None:
    """Baseline against PIWSL and rivals over seeds: one HTML page and a markdown table."""


def show(result: dict[str, Any], tables: str, out: Path, as_json: bool) -> None:
    """Print a result as JSON or as its tables."""
    from rich.console import Console

    if as_json:
        typer.echo(json_text(result), nl=False)
        return
    console = Console(markup=False, emoji=False)  # paths may hold brackets, and slices colons
    for table in _function(tables)(result):
        console.print(table)
    console.print(f"JSON and plots: {out}")
