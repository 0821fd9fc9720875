"""`piwsl md`: dynamics from several seeds, time to failure, drift, distances against a reference."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from fairchem_piwsl.analysis import figures
from fairchem_piwsl.analysis.potential import file_digest, load_potential
from fairchem_piwsl.analysis.reference_calculators import NAMES, reference_calculator
from fairchem_piwsl.datasets.read import read_labelled, read_structure
from fairchem_piwsl.dynamics import stability
from fairchem_piwsl.dynamics.run_folder import Progress, RunFolder, check_settings
from fairchem_piwsl.dynamics.simulation import MDSettings, check_positive, criterion_for, simulate
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import as_json, file_name, write_result
from fairchem_piwsl.structures import STATES, molecule_or_crystal

BIN = 0.05  # Angstrom, of the distribution of distances
#: a function of seed, step, temperature in K, steps/s
Report = Callable[[int, int, float, float], None]


def run_md(
    checkpoint: str | Path | None,
    structure: str | Path,
    settings: MDSettings,
    *,
    steps: int,
    seeds: int = 1,
    first_seed: int = 0,
    calculator: str | None = None,
    index: int = -1,
    reference_trajectory: str | Path | None = None,
    bond_threshold: float = stability.BOND_THRESHOLD,
    rdf_threshold: float = stability.RDF_THRESHOLD,
    rdf_window: float = 1.0,
    out: Path = Path("results/md"),
    report: Report = lambda seed, step, temperature, speed: None,
    **load_options: Any,
) -> dict[str, Any]:
    """Dynamics of a checkpoint, or of a reference `calculator` ("xtb", "emt"), from `seeds` starts.

    Runs that are in `out` already continue where they stopped. The result is ready for JSON. rdf_window in ps.
    """
    if (checkpoint is None) == (calculator is None):
        raise UserError("give either a checkpoint or --calculator.")
    if steps < 1 or seeds < 1 or first_seed < 0:
        raise UserError("--steps and --seeds must be 1 or more, --first-seed 0 or more.")
    check_positive("--bond-threshold", bond_threshold)
    check_positive("--rdf-threshold", rdf_threshold)
    check_positive("--rdf-window", rdf_window)
    if calculator is not None:
        reference_calculator(calculator)  # first of all: reading an LMDB loads torch, tblite must precede it
    atoms = molecule_or_crystal(read_structure(structure, index))
    if len(atoms) < 2:
        raise UserError(
            f"{structure}: dynamics is judged by distances; give a structure of two atoms or more."
        )
    reference = _reference_frames(reference_trajectory, atoms)
    name, identity, engine = _engine(checkpoint, calculator, load_options)
    folder = out / file_name(name)
    criteria = [
        criterion_for(atoms, reference, settings, bond_threshold, rdf_threshold, rdf_window)
        for _ in range(seeds)
    ]
    trial = atoms.copy()
    trial.calc = engine()
    trial.get_forces()  # a model that cannot do this structure at all says so here, before anything is written
    check_settings(folder, _fingerprint(atoms, settings, identity, criteria[0]))
    windows = 2 if isinstance(criteria[0], stability.RdfCriterion) and not reference else 1
    runs = []
    for seed, criterion in enumerate(criteria, first_seed):
        place, tell = folder / f"seed_{seed}", partial(report, seed)
        progress = simulate(atoms, engine(), settings, steps, seed, place, criterion, tell)
        runs.append(_describe(seed, progress, place, settings, len(atoms), windows))
    result = {
        "command": "md",
        "model": name,
        "checkpoint": str(checkpoint) if checkpoint is not None else None,
        "source": f"{checkpoint} {identity}" if checkpoint is not None else identity,
        "structure": str(structure),
        "formula": atoms.get_chemical_formula(mode="hill"),
        "settings": asdict(settings),
        "length": max([steps, *(run["steps"] for run in runs)]) * settings.timestep * 1e-3,
        "criterion": {
            "name": criteria[0].name,
            "threshold": criteria[0].threshold,
            "unit": criteria[0].unit,
            "reference": str(reference_trajectory) if reference_trajectory else None,
        },
        "units": {"time": "ps", "drift": "meV/atom/ns", "energy_std": "meV/atom", "temperature": "K"},
        "runs": runs,
        "summary": _summary(runs),
    }
    folders = [folder / f"seed_{run['seed']}" for run in runs]
    result["distances"] = _distances(folders, runs, reference)
    write_result(folder / "md.json", result, folder / "md.png")
    plot_md(result, folders, len(atoms), folder / "md.png")
    return result


def watched_md(checkpoint: Path | None, structure: Path, **options: Any) -> dict[str, Any]:
    """`run_md` for the command line: with a progress bar, and with `MDSettings` and the model's options one by one."""
    settings = MDSettings(**{field.name: options.pop(field.name) for field in fields(MDSettings)})
    load: dict[str, Any] = {"cpu": options.pop("cpu"), "gradient_forces": options.pop("gradient_forces")}
    load["dtype"] = options.pop("precision")
    if options["calculator"]:
        load = {}
    with progress_bar(options["steps"], settings.timestep) as report:
        return run_md(checkpoint, structure, settings, report=report, **options, **load)


@contextmanager
def progress_bar(steps: int, timestep: float) -> Iterator[Report]:
    """Shows how far each seed is, with temperature, ns/day and time left, on stderr."""
    columns = (
        TextColumn("seed {task.fields[seed]}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TextColumn("{task.fields[temperature]:.0f} K, {task.fields[ns_per_day]:.3g} ns/day"),
        TimeRemainingColumn(),
    )
    tasks: dict[int, TaskID] = {}
    with ProgressBar(*columns, console=Console(stderr=True)) as progress:

        def report(seed: int, step: int, temperature: float, speed: float) -> None:
            if seed not in tasks:
                tasks[seed] = progress.add_task("", total=steps, seed=seed, temperature=0.0, ns_per_day=0.0)
            ns_per_day = speed * timestep * 1e-6 * 86400
            progress.update(tasks[seed], completed=step, temperature=temperature, ns_per_day=ns_per_day)

        yield report


def _reference_frames(path: str | Path | None, atoms: Atoms) -> list[Atoms]:
    if path is None:
        return []
    frames = [molecule_or_crystal(item.atoms) for item in read_labelled(path)]
    if any(not np.array_equal(frame.numbers, atoms.numbers) for frame in frames):
        raise UserError(
            f"{path}: --reference-trajectory must hold the atoms of --structure, in the same order."
        )
    if atoms.pbc.any() and not all(frame.pbc.any() for frame in frames):
        raise UserError(
            f"{path}: --reference-trajectory has no cell, but --structure has; give frames with their cell."
        )
    return frames


def _engine(
    checkpoint: str | Path | None, calculator: str | None, load_options: dict[str, Any]
) -> tuple[str, str, Callable[[], Calculator]]:
    """Name, identity by content, so that a moved checkpoint can continue its run, and a maker of calculators."""
    if calculator is not None:
        return NAMES[calculator], calculator, lambda: reference_calculator(calculator)
    assert checkpoint is not None
    potential = load_potential(checkpoint, **load_options)
    digest = file_digest(checkpoint)
    options = ",".join(
        f"{key}={load_options[key]}"
        for key in ("dtype", "gradient_forces", "task_name")
        if load_options.get(key) is not None
    )
    return potential.name, f"sha256={digest} {options}".strip(), potential.calculator


def _fingerprint(
    atoms: Atoms,
    settings: MDSettings,
    identity: str,
    criterion: stability.BondCriterion | stability.RdfCriterion,
) -> dict[str, Any]:
    """What a run and its verdict depend on; a folder continues under the same one only."""
    return {
        **asdict(settings),
        "formula": atoms.get_chemical_formula(mode="hill"),
        "start": _digest(atoms.positions),
        "elements": _digest(atoms.numbers),
        "masses": _digest(atoms.get_masses()),
        "cell": _digest(np.vstack([atoms.cell, atoms.pbc])),
        "constraints": _digest(np.array(as_json([constraint.todict() for constraint in atoms.constraints]))),
        **{key: atoms.info.get(key) for key in STATES},
        "model": identity,
        **{f"failure {key}": value for key, value in criterion.settings().items()},
        "failure reference": _digest(criterion.expected),
    }


def _digest(values: np.ndarray | None) -> str | None:
    if values is None:
        return None
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


def _describe(
    seed: int, progress: Progress, folder: Path, settings: MDSettings, n_atoms: int, windows: int
) -> dict[str, Any]:
    """One run in numbers. With fewer than `windows` departures nothing could fail, which its reason says."""
    table = RunFolder(folder).table()
    good = np.isfinite(table["total"])
    if progress.failure_step is not None:
        good &= table["step"] < progress.failure_step
    is_judged = np.isfinite(table["departure"]).sum() >= windows
    time, total = table["time_ps"][good], table["total"][good]
    simulated = progress.step * settings.timestep * 1e-3
    is_nve = settings.ensemble == "nve"
    return {
        "seed": seed,
        "steps": progress.step,
        "time": simulated,
        "failed": progress.failure_step is not None,
        "reason": progress.reason or ("" if is_judged else "not judged: too short for --rdf-window"),
        "drift": stability.energy_drift(time, total, n_atoms) if is_nve else None,
        "energy_std": float(total.std()) * 1000 / n_atoms if is_nve and len(total) > 1 else None,
        "temperature": float(table["temperature"][good].mean()) if good.any() else None,
        "ns_per_day": simulated * 1e-3 / (progress.seconds / 86400) if progress.seconds else None,
    }


def _summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over seeds. Runs that did not fail count with their full length, so the mean is a lower bound."""
    times = np.array([run["time"] for run in runs])
    return {
        "runs": len(runs),
        "failed": sum(run["failed"] for run in runs),
        "time_to_failure_mean": times.mean(),
        "time_to_failure_std": times.std(ddof=1) if len(times) > 1 else None,
        "time_to_failure_min": times.min(),
        "is_lower_bound": not all(run["failed"] for run in runs),
    }


def _distances(
    folders: Sequence[Path], runs: Sequence[dict[str, Any]], reference: Sequence[Atoms]
) -> dict[str, Any]:
    """h(r) of all runs together, up to failure, and its distance to the reference's."""
    frames = []
    for folder, run in zip(folders, runs, strict=True):
        stored = RunFolder(folder).frames()
        frames += stored[:-1] if run["failed"] and len(stored) > 1 else stored
    longest = max(stability.pair_distances(frame).max() for frame in [*frames, *reference])
    edges = np.arange(0.0, min(longest, 50.0) + 2 * BIN, BIN)
    found = stability.distance_distribution(frames, edges)
    result: dict[str, Any] = {"r": 0.5 * (edges[1:] + edges[:-1]), "h": found, "reference": None, "mae": None}
    if reference:
        expected = stability.distance_distribution(reference, edges)
        result["reference"] = expected
        result["mae"] = float(np.abs(found - expected).sum() * BIN)
    return result


def plot_md(result: dict[str, Any], folders: Sequence[Path], n_atoms: int, path: Path) -> Path:
    """Energy, temperature and departure against time, one line per seed, and the distances."""
    criterion, distances = result["criterion"], result["distances"]
    with figures.figure(11.0, 7.2) as fig:
        ((energy, heat), (bond, h)) = fig.subplots(2, 2)
        for number, (folder, run) in enumerate(zip(folders, result["runs"], strict=True)):
            table = RunFolder(folder).table()
            style = {"color": figures.colour(number), "linewidth": 1.1}
            change = (table["total"] - table["total"][0]) * 1000 / n_atoms
            energy.plot(table["time_ps"], change, label=f"seed {run['seed']}", **style)
            heat.plot(table["time_ps"], table["temperature"], **style)
            known = np.isfinite(table["departure"])
            bond.plot(table["time_ps"][known], table["departure"][known], **style)
            if run["failed"]:
                for axes in (energy, heat, bond):
                    axes.axvline(run["time"], linestyle=":", **style)
        energy.set(ylabel="total energy less start (meV/atom)")
        heat.set(ylabel="temperature (K)")
        for axes, level in ((heat, result["settings"]["temperature"]), (bond, criterion["threshold"])):
            axes.axhline(level, color=figures.REFERENCE, linewidth=0.8, linestyle="--")
        departure = f"{criterion['name']},\ndeparture ({criterion['unit']})"
        bond.set(ylabel=departure, ylim=(0, 1.6 * criterion["threshold"]))
        for axes in (energy, heat, bond):
            axes.set_xlabel("time (ps); dotted: failure")
            axes.locator_params(axis="x", nbins=6)
            _limit(axes)
        if len(folders) <= 10:  # more would cover the panel
            energy.legend(ncols=2)
        h.plot(distances["r"], distances["h"], color=figures.colour(0), label=result["model"])
        if distances["reference"] is not None:
            label = f"reference; integral of |difference| {distances['mae']:.3g}"
            h.plot(distances["r"], distances["reference"], color=figures.REFERENCE, linewidth=1, label=label)
        h.set(xlabel="interatomic distance r (Angstrom)", ylabel="h(r) (1/Angstrom)")
        h.legend()
        summary = result["summary"]
        fig.suptitle(
            f"{result['model']}, {result['formula']}, {result['settings']['ensemble'].upper()}: "
            f"{summary['failed']} of {summary['runs']} runs failed, {stability.mean_time(summary)}"
        )
        return figures.save(fig, path)


def _limit(axes: Any) -> None:
    """Keep the last, exploding values of a failed run from flattening all others."""
    if axes.get_ylim()[0] == 0:
        return
    values = np.concatenate(
        [line.get_ydata() for line in axes.get_lines() if len(line.get_ydata()) > 2] or [[]]
    )
    values = values[np.isfinite(values)]
    if len(values):
        low, high = np.percentile(values, [0.5, 99.5])
        margin = 0.15 * (high - low) + 1e-9
        axes.set_ylim(low - margin, high + margin)
