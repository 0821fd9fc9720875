"""The commands of `piwsl` that judge trained models: options here, work in the modules next door."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

Checkpoints = Annotated[list[Path], typer.Argument(help="Checkpoints of fairchem 1.10 (.pt).")]
Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint of fairchem 1.10 (.pt).")]
Data = Annotated[Path, typer.Option("--data", help="Labelled LMDB, or a file that ASE reads (eV, Angstrom).")]
Structure = Annotated[Path, typer.Option("--structure", help="A file that ASE reads, or an LMDB.")]
Units = Annotated[str, typer.Option("--units", help="kcal/mol, eV or meV.")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Stay on the CPU; else a GPU is used where there is one.")]
Gradient = Annotated[
    bool, typer.Option("--gradient-forces", help="Take the energy's gradient instead of the forces output.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `piwsl`."""
    for command in (evaluate, consistency, profile, md, report):
        app.command()(command)


def evaluate(
    checkpoints: Checkpoints,
    data: Data,
    units: Units = "kcal/mol",
    group_by: Annotated[str, typer.Option(help="auto, composition, size or none.")] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first structures only.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch.")] = 16,
    out: Annotated[Path, typer.Option(help="Folder for evaluate.json and plots.")] = Path("results/evaluate"),
    cpu: Cpu = False,
    gradient_forces: Gradient = False,
    as_json: AsJson = False,
) -> None:
    """Energy and force errors of trained models, with intervals and parity plots."""
    from rich.text import Text

    from fairchem_piwsl.analysis.evaluate import evaluate as run
    from fairchem_piwsl.report.tables import evaluation_tables

    result = run(
        checkpoints,
        data,
        units=units,
        group_by=group_by,
        limit=limit,
        batch_size=batch_size,
        out=out,
        cpu=cpu,
        gradient_forces=gradient_forces,
    )
    notes = [Text(result["warning"], style="yellow")] if result["warning"] else []
    _show(result, [*evaluation_tables(result), *notes], out, as_json)


def consistency(
    checkpoint: Checkpoint,
    data: Data,
    units: Units = "kcal/mol",
    structures: Annotated[int, typer.Option(min=1, help="Size of the random sample.")] = 50,
    jacobians: Annotated[
        int, typer.Option(min=0, help="Structures with a full force Jacobian (costly).")
    ] = 5,
    directions: Annotated[int, typer.Option(min=1, help="Random directions per structure.")] = 8,
    dr: Annotated[tuple[float, float], typer.Option(help="Range of displacements, Angstrom.")] = (
        0.001,
        0.05,
    ),
    seed: Annotated[int, typer.Option(help="Seed of sample and directions.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch.")] = 16,
    out: Annotated[Path, typer.Option(help="Folder for JSON and plot.")] = Path("results/consistency"),
    cpu: Cpu = False,
    gradient_forces: Gradient = False,
    as_json: AsJson = False,
) -> None:
    """Do predicted forces belong to the predicted energy? Taylor residuals, mismatch, curl, net force."""
    from fairchem_piwsl.analysis.consistency_report import CURVES, check_consistency, verdict
    from fairchem_piwsl.report.tables import consistency_table

    result = check_consistency(
        checkpoint,
        data,
        units=units,
        structures=structures,
        jacobians=jacobians,
        directions=directions,
        dr_range=dr,
        seed=seed,
        batch_size=batch_size,
        out=out,
        cpu=cpu,
        gradient_forces=gradient_forces,
    )
    _show(result, [consistency_table(result, CURVES), verdict(result)], out, as_json)


def profile(
    structure: Structure,
    bond: Annotated[tuple[int, int], typer.Option(help="Atom that stays, atom that moves (from 0).")],
    checkpoints: Annotated[list[Path] | None, typer.Argument(help="Checkpoints of fairchem 1.10.")] = None,
    bond_range: Annotated[tuple[float, float], typer.Option("--range", help="Lengths, Angstrom.")] = (
        0.8,
        1.8,
    ),
    points: Annotated[int, typer.Option(help="Number of lengths.")] = 100,
    reference: Annotated[str | None, typer.Option(help="xtb: add GFN2-xTB (extra `xtb`).")] = None,
    index: Annotated[int, typer.Option(help="Number of the structure in its file.")] = -1,
    units: Units = "kcal/mol",
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch.")] = 16,
    out: Annotated[Path, typer.Option(help="Folder for JSON and plot.")] = Path("results/profile"),
    cpu: Cpu = False,
    gradient_forces: Gradient = False,
    as_json: AsJson = False,
) -> None:
    """Energy and force along a stretched bond, several models and a reference in one plot."""
    from fairchem_piwsl.analysis.profile import bond_profile
    from fairchem_piwsl.report.tables import profile_table

    result = bond_profile(
        checkpoints or [],
        structure,
        bond,
        bond_range=bond_range,
        points=points,
        reference=reference,
        index=index,
        units=units,
        batch_size=batch_size,
        out=out,
        cpu=cpu,
        gradient_forces=gradient_forces,
    )
    _show(result, [profile_table(result)], out, as_json)


def md(
    structure: Structure,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps, those done already included.")],
    checkpoint: Annotated[Path | None, typer.Argument(help="A checkpoint of fairchem 1.10.")] = None,
    calculator: Annotated[str | None, typer.Option(help="xtb: run GFN2-xTB instead of a checkpoint.")] = None,
    ensemble: Annotated[str, typer.Option(help="nve (velocity Verlet) or nvt (Langevin).")] = "nve",
    temperature: Annotated[float, typer.Option(help="Kelvin.")] = 300.0,
    timestep: Annotated[float, typer.Option(help="Femtoseconds.")] = 0.5,
    friction: Annotated[float, typer.Option(help="Langevin friction, 1/fs.")] = 0.01,
    interval: Annotated[int, typer.Option(help="Steps between records.")] = 20,
    seeds: Annotated[int, typer.Option(min=1, help="Number of starts.")] = 1,
    first_seed: Annotated[int, typer.Option(help="Seed of the first start.")] = 0,
    index: Annotated[int, typer.Option(help="Number of the structure in its file.")] = -1,
    reference_trajectory: Annotated[
        Path | None, typer.Option(help="Frames of true dynamics: equilibrium lengths, h(r), RDF.")
    ] = None,
    bond_threshold: Annotated[float, typer.Option(help="Failure of a molecule, Angstrom.")] = 0.5,
    rdf_threshold: Annotated[float, typer.Option(help="Failure of a periodic system, Angstrom.")] = 3.0,
    rdf_window: Annotated[float, typer.Option(help="Window of the RDF, ps.")] = 1.0,
    precision: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    out: Annotated[Path, typer.Option(help="Folder for trajectories and results.")] = Path("results/md"),
    cpu: Cpu = False,
    gradient_forces: Gradient = False,
    as_json: AsJson = False,
) -> None:
    """Molecular dynamics: time to failure, energy drift, distances; the same command again continues."""
    from fairchem_piwsl.dynamics.dynamics_report import run_md
    from fairchem_piwsl.dynamics.progress_line import progress_bar
    from fairchem_piwsl.dynamics.simulation import MDSettings
    from fairchem_piwsl.report.tables import md_table

    load = {} if calculator else {"cpu": cpu, "gradient_forces": gradient_forces, "dtype": precision}
    with progress_bar(steps, timestep) as report:
        result = run_md(
            checkpoint,
            structure,
            MDSettings(ensemble, temperature, timestep, friction, interval),
            steps=steps,
            seeds=seeds,
            first_seed=first_seed,
            calculator=calculator,
            index=index,
            reference_trajectory=reference_trajectory,
            bond_threshold=bond_threshold,
            rdf_threshold=rdf_threshold,
            rdf_window=rdf_window,
            out=out,
            report=report,
            **load,
        )
    _show(result, [md_table(result)], out, as_json)


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of training runs (--run-dir), or above.")],
    data: Annotated[Path | None, typer.Option(help="Test set to evaluate every run on.")] = None,
    units: Units = "kcal/mol",
    paper_dataset: Annotated[str | None, typer.Option(help="The paper's name of the data set.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Training report",
    out: Annotated[Path, typer.Option(help="Folder for HTML, markdown and plots.")] = Path("results/report"),
    cpu: Cpu = False,
    gradient_forces: Gradient = False,
    as_json: AsJson = False,
) -> None:
    """Baseline against PIWSL and rivals over seeds: one HTML page and a markdown table."""
    from fairchem_piwsl.report.report import make_report
    from fairchem_piwsl.report.tables import report_tables

    result = make_report(
        folders,
        data=data,
        units=units,
        paper_dataset=paper_dataset,
        title=title,
        out=out,
        tell=lambda text: typer.echo(text, err=True),
        cpu=cpu,
        gradient_forces=gradient_forces,
    )
    _show(result, report_tables(result), out / "report.html", as_json)


def _show(result: dict[str, Any], tables: Iterable[Any], out: Path, as_json: bool) -> None:
    from rich.console import Console

    from fairchem_piwsl.files import plain

    if as_json:
        typer.echo(json.dumps(plain(result), indent=2))
        return
    console = Console()
    for table in tables:
        console.print(table)
    console.print(f"JSON and plots: {out}")
