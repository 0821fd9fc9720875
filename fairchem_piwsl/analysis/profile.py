"""`piwsl profile`: the energy along a stretched bond, by several models and a reference calculator."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from fairchem_piwsl.analysis import figures
from fairchem_piwsl.analysis.bonds import fragment
from fairchem_piwsl.analysis.error_metrics import energy_units
from fairchem_piwsl.analysis.potential import Predictions, load_potentials
from fairchem_piwsl.analysis.reference_calculators import NAMES, reference_calculator
from fairchem_piwsl.analysis.run_configs import settings_of
from fairchem_piwsl.datasets.read import read_structure
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import write_result
from fairchem_piwsl.structures import molecule_or_crystal

# What tells the seeds of one run apart in their names.
NUMBER = re.compile(r"[/_. -]*((seed|run|s)[-_]?\d+\b|\d+$)")


def bond_profile(
    checkpoints: Sequence[str | Path] | None,
    structure: str | Path,
    bond: tuple[int, int],
    *,
    bond_range: tuple[float, float] = (0.8, 1.8),
    points: int = 100,
    reference: str | None = None,
    index: int = -1,
    units: str = "kcal/mol",
    batch_size: int = 16,
    out: Path | None = None,
    **load_options: Any,
) -> dict[str, Any]:
    """Energy and force along a bond for every model, as a dictionary ready for JSON.

    bond: indices of the atom that stays and of the atom that moves, with the fragment bonded to it. bond_range:
    shortest and longest bond in Angstrom. reference: "xtb" or None. Energies are relative to the value at the
    bond length of the structure as given.
    """
    factor, energy_unit, force_unit = energy_units(units)
    if not 0 < bond_range[0] < bond_range[1] < math.inf or points < 3:
        raise UserError(
            "--range, --points: give a shorter and a longer length in Angstrom, and 3 points or more."
        )
    if not checkpoints and reference is None:
        raise UserError("give at least one checkpoint, or --reference xtb.")
    if reference is not None:  # first of all: reading an LMDB loads torch, and tblite must precede it
        reference_calculator(reference)
    atoms = molecule_or_crystal(read_structure(structure, index))
    atoms.set_constraint()
    moving = fragment(atoms, *bond)
    initial = float(atoms.get_distance(*bond, mic=True))
    lengths = np.linspace(*bond_range, points)
    frames = [*stretched(atoms, bond, moving, lengths), atoms]
    curves, reference_name = {}, None
    if reference is not None:
        reference_name = NAMES[reference]
        curves[reference_name] = _by_calculator(reference, frames)
    potentials = load_potentials(checkpoints or [], **load_options)
    for potential in potentials:
        curves[potential.name] = potential.predict(frames, batch_size)
    direction = atoms.get_distance(*bond, mic=True, vector=True) / initial
    described: dict[str, dict[str, Any]] = {}
    for name, prediction in curves.items():  # the reference first
        energy = (prediction.energy[:-1] - prediction.energy[-1]) * factor
        along = np.array([(force[moving] @ direction).sum() * factor for force in prediction.forces[:-1]])
        curve = described[name] = {"energy": energy, "force": along}
        curve |= _measures(lengths, energy, along, described.get(reference_name or ""))
    result = {
        "command": "profile",
        "structure": str(structure),
        "formula": atoms.get_chemical_formula(mode="hill"),
        "bond": list(bond),
        "elements": [atoms[bond[0]].symbol, atoms[bond[1]].symbol],
        "moving_atoms": moving,
        "initial_length": initial,
        "units": {"length": "Angstrom", "energy": energy_unit, "force": force_unit},
        "lengths": lengths,
        "reference": reference_name,
        "groups": seeds_of_one_run({potential.name: potential.config for potential in potentials}),
        "curves": described,
    }
    if out is not None:
        write_result(out / "profile.json", result, out / "profile.png")
        plot_profile(result, out / "profile.png")
    return result


def stretched(atoms: Atoms, bond: tuple[int, int], moving: np.ndarray, lengths: np.ndarray) -> list[Atoms]:
    """Copies of `atoms` with the bond at each of `lengths` (Angstrom); atoms `moving` shift along it as one."""
    frames = [atoms.copy() for _ in lengths]
    for frame, length in zip(frames, lengths, strict=True):
        frame.set_distance(*bond, length, fix=0, mic=True, indices=moving)
    return frames


def _by_calculator(name: str, frames: Sequence[Atoms]) -> Predictions:
    """Energies and forces by a reference method; NaN where its self-consistent field does not converge."""
    calculator = reference_calculator(name)
    energies, forces = [], []
    for frame in frames:
        atoms = frame.copy()
        atoms.calc = calculator
        try:
            energies.append(atoms.get_potential_energy())
            forces.append(atoms.get_forces())
        except Exception:  # each reference method has its own class for a calculation that fails
            energies.append(np.nan)
            forces.append(np.full((len(atoms), 3), np.nan))
    if np.isnan(energies[-1]):
        raise UserError(f"{name}: cannot calculate the structure as given; are its elements known to {name}?")
    return Predictions(np.array(energies), forces)


def _measures(
    lengths: np.ndarray, energy: np.ndarray, force: np.ndarray, reference: dict[str, Any] | None
) -> dict[str, Any]:
    """Where the minimum is, how many there are, and how far force, slope and reference are apart."""
    interior = energy[1:-1]
    minima = np.flatnonzero((interior < energy[:-2]) & (interior <= energy[2:])) + 1
    slope = -np.gradient(energy, lengths)
    measures: dict[str, Any] = {
        "minimum": float(lengths[np.nanargmin(energy)]),
        "local_minima": lengths[minima],
        "force_against_slope_rmse": _rmse(force[1:-1], slope[1:-1]),
    }
    if reference is not None:
        measures["energy_rmse"] = _rmse(energy, reference["energy"])
        measures["force_rmse"] = _rmse(force, reference["force"])
    return measures


def _rmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.nanmean((a - b) ** 2)))


def seeds_of_one_run(configs: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Names of models by what they share: those that differ in nothing but their seed are one group.

    configs: name -> config of the checkpoint. A group is called by its names without the number of the seed.
    """
    alike: dict[str, list[str]] = {}
    for name, config in configs.items():
        settings = {**settings_of(config), "data": config.get("dataset", {}).get("src")}
        alike.setdefault(repr(sorted(settings.items(), key=str)), []).append(name)
    groups: dict[str, list[str]] = {}
    for members in alike.values():
        seeds = {configs[name].get("cmd", {}).get("seed") for name in members}
        for group in [members] if len(seeds) == len(members) else [[name] for name in members]:
            label = group[0]
            if len(group) > 1:
                shared = {NUMBER.sub("", name).strip("/_. -") for name in group} - {""}
                label = f"{shared.pop() if len(shared) == 1 else label}, {len(group)} seeds"
            groups[label if label not in groups else f"{group[0]}, {label}"] = group
    return groups


def plot_profile(result: dict[str, Any], path: Path) -> Path:
    """Energy (top) and force along the bond (bottom), the mean and range over the seeds of a run.

    Short tangents show the slope that the predicted force gives, dotted lines the slope of the energy curve; with
    more than three models they would hide the curves.
    """
    units, lengths = result["units"], np.asarray(result["lengths"])
    groups, detailed = result["groups"], len(result["groups"]) <= 3
    with figures.figure(7.0, 7.0) as fig:
        top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(1.4, 1))
        for number, (label, names) in enumerate(groups.items()):
            colour = figures.colour(number)
            energies, forces = (
                np.array([result["curves"][n][key] for n in names]) for key in ("energy", "force")
            )
            for axes, values in ((top, energies), (bottom, forces)):
                axes.plot(lengths, values.mean(axis=0), label=label if axes is top else None, color=colour)
                axes.fill_between(
                    lengths, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0
                )
            if detailed:
                energy, force = energies.mean(axis=0), forces.mean(axis=0)
                _draw_slopes(top, lengths, energy, force, colour)
                bottom.plot(lengths, -np.gradient(energy, lengths), color=colour, linestyle=":")
        if result["reference"]:
            curve = result["curves"][result["reference"]]
            style = {"color": figures.REFERENCE, "linewidth": 2.2}
            top.plot(lengths, curve["energy"], label=result["reference"], **style)
            bottom.plot(lengths, curve["force"], **style)
        for axes in (top, bottom):
            axes.axvline(result["initial_length"], color="#888888", linewidth=0.8, linestyle="--")
        bottom.axhline(0, color="#888888", linewidth=0.8)
        first, second = (f"{e}{i}" for e, i in zip(result["elements"], result["bond"], strict=True))
        notes = ["bands: range over seeds"] if any(len(names) > 1 for names in groups.values()) else []
        if detailed and groups:
            notes.append("short lines: slope by the predicted force")
            bottom.plot([], [], color="#555555", linestyle=":", label="slope of the energy curve, -dE/dd")
            bottom.legend()
        title = f"{result['formula']}: bond {first}-{second}" + "\n" * bool(notes) + "; ".join(notes)
        top.set(title=title, ylabel=f"energy ({units['energy']}), 0 as given")
        bottom.set(
            xlabel="bond length (Angstrom); dashed: as given",
            ylabel=f"force along the bond\n({units['force']})",
        )
        top.legend()
        return figures.save(fig, path)


def _draw_slopes(axes: Any, lengths: np.ndarray, energy: np.ndarray, force: np.ndarray, colour: str) -> None:
    """Short tangents with slope -force; on a consistent model they lie on the curve."""
    half = 0.022 * (lengths[-1] - lengths[0])
    for i in np.linspace(0, len(lengths) - 1, 13).round().astype(int):
        x = lengths[i] + np.array([-half, half])
        axes.plot(x, energy[i] - force[i] * np.array([-half, half]), color=colour, linewidth=3.5, alpha=0.45)
