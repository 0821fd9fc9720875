"""Molecular dynamics with a stop at failure: one run from one seed, continued exactly where it stopped."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet

from fairchem_piwsl.dynamics.run_folder import Progress, RunFolder
from fairchem_piwsl.dynamics.stability import BondCriterion, RdfCriterion
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import is_isolated


@dataclass(frozen=True)
class MDSettings:
    """ensemble: "nve" (velocity Verlet) or "nvt" (Langevin). Temperature in K, timestep in fs, friction in 1/fs.

    A frame, a log line and the exact state are recorded every `interval` steps.
    """

    ensemble: str = "nve"
    temperature: float = 300.0
    timestep: float = 0.5
    friction: float = 0.01
    interval: int = 20

    def __post_init__(self) -> None:
        if self.ensemble not in ("nve", "nvt"):
            raise UserError(f"--ensemble {self.ensemble}: not known; choose nve or nvt.")
        for name in ("temperature", "timestep", "friction", "interval"):
            check_positive(f"--{name}", getattr(self, name))


def check_positive(option: str, value: float) -> None:
    """Refuse what is not a finite number above 0."""
    if not 0 < value < math.inf:
        raise UserError(f"{option} {value}: give a number above 0.")


def simulate(
    atoms: Atoms,
    calculator: Calculator,
    settings: MDSettings,
    steps: int,
    seed: int,
    folder: Path,
    criterion: BondCriterion | RdfCriterion,
    report: Callable[[int, float, float], None] = lambda step, temperature, speed: None,
) -> Progress:
    """Run, or continue, dynamics of a copy of `atoms` up to `steps` or failure; all records are in `folder`.

    report(step, temperature in K, speed in steps/s) is called at every record. Velocities come from `seed`;
    Langevin's noise follows in the same stream of random numbers, whose state is saved with every record. A
    last step between two records saves the state alone: extended runs have the records of uninterrupted ones.
    """
    atoms = atoms.copy()
    rigid = rigid_motions(atoms)
    modes = atoms.get_number_of_degrees_of_freedom()
    if settings.ensemble == "nve":  # Langevin's noise moves and turns the whole as well
        modes -= len(rigid)
    random = np.random.default_rng(seed)
    files = RunFolder(folder)
    progress = files.restore(atoms, random)
    atoms.calc = calculator
    if progress.failure_step is not None or progress.step >= steps:
        return progress
    if progress.frames == 0:
        thermalise(atoms, settings.temperature, random, rigid)
        files.append(atoms, progress, _row(atoms, 0, settings, _departure(criterion, atoms), modes))
        files.save(atoms, random, progress)
    elif isinstance(criterion, RdfCriterion):
        for frame in files.frames():
            criterion.add(frame)
    dynamics = _integrator(atoms, settings, random)
    started, first = time.perf_counter(), progress.step
    earlier = progress.seconds
    while progress.step < steps and progress.failure_step is None:
        try:
            dynamics.step()
        except Exception as error:  # whatever a calculator raises on atoms that have flown apart
            if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
                raise  # no verdict on the model: the run can be continued
            progress.reason = f"the calculator failed: {error!r}"
        progress.step += 1
        is_record = progress.step % settings.interval == 0
        departure = _departure(criterion, atoms, is_record)
        if departure > criterion.threshold:
            progress.reason = progress.reason or f"{criterion.name}: {departure:.3g} {criterion.unit}"
        if progress.reason:
            progress.failure_step = progress.step
        if is_record or progress.reason or progress.step == steps:
            progress.seconds = earlier + time.perf_counter() - started
            row = _row(atoms, progress.step, settings, departure, modes)
            if is_record or progress.reason:
                files.append(_storable(atoms), progress, row)
            files.save(atoms, random, progress)
            speed = (progress.step - first) / max(time.perf_counter() - started, 1e-9)
            report(progress.step, row["temperature"], speed)
    return progress


def rigid_motions(atoms: Atoms) -> np.ndarray:
    """Drift and, of a molecule, rotation: orthonormal mass-weighted velocities [0 to 6, 3 n_atoms].

    A linear molecule turns about two axes, a crystal about none. Constrained atoms keep all their motions.
    """
    if atoms.constraints:
        return np.zeros((0, 3 * len(atoms)))
    arms = atoms.positions - atoms.get_center_of_mass()
    moves = [np.broadcast_to(axis, arms.shape) for axis in np.eye(3)]
    if is_isolated(atoms):
        moves += [np.cross(axis, arms) for axis in np.eye(3)]
    weighted = np.sqrt(atoms.get_masses())[:, None] * np.array(moves)
    _, sizes, motions = np.linalg.svd(weighted.reshape(len(moves), -1), full_matrices=False)
    return motions[sizes > 1e-6 * sizes[0]]


def thermalise(atoms: Atoms, temperature: float, random: np.random.Generator, rigid: np.ndarray) -> None:
    """Maxwell-Boltzmann velocities without the motions `rigid`; each other mode has its temperature.

    ASE's Stationary and ZeroRotation would give the energy of what they take away to the modes that are left.
    """
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=random)
    root = np.sqrt(atoms.get_masses())[:, None]
    weighted = (atoms.get_momenta() / root).ravel()
    weighted -= weighted @ rigid.T @ rigid
    atoms.set_momenta(root * weighted.reshape(-1, 3))


def _integrator(atoms: Atoms, settings: MDSettings, random: np.random.Generator) -> VelocityVerlet | Langevin:
    timestep = settings.timestep * units.fs
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, timestep=timestep)
    return Langevin(
        atoms,
        timestep=timestep,
        temperature_K=settings.temperature,
        friction=settings.friction / units.fs,
        fixcm=False,  # fixing the centre of mass would spoil the sampled ensemble
        rng=random,
    )


def _departure(criterion: BondCriterion | RdfCriterion, atoms: Atoms, is_record: bool = True) -> float:
    """Bonds are looked at in every step, radial distributions in every record."""
    if isinstance(criterion, BondCriterion):
        return criterion.departure(atoms)
    return criterion.add(atoms) if is_record else float("nan")


def _row(atoms: Atoms, step: int, settings: MDSettings, departure: float, modes: int) -> dict[str, float]:
    """A line of the log; the temperature is that of `modes` degrees of freedom."""
    kinetic = float(atoms.get_kinetic_energy())
    try:
        potential = float(atoms.get_potential_energy())
    except Exception:  # after a failure of the calculator
        potential = float("nan")
    return {
        "step": step,
        "time_ps": step * settings.timestep * 1e-3,
        "potential": potential,
        "kinetic": kinetic,
        "total": potential + kinetic,
        "temperature": 2 * kinetic / (max(modes, 1) * units.kB),  # none is left where all atoms are held
        "departure": departure,
    }


def _storable(atoms: Atoms) -> Atoms:
    """`atoms`, without its calculator where that has no results for the present positions."""
    if atoms.calc is not None and not atoms.calc.calculation_required(atoms, ["energy"]):
        return atoms
    bare = atoms.copy()
    bare.calc = None
    return bare


def criterion_for(
    atoms: Atoms, reference: Sequence[Atoms], settings: MDSettings, bond: float, rdf: float, window_ps: float
) -> BondCriterion | RdfCriterion:
    """Bonds for molecules, radial distribution for periodic structures."""
    if is_isolated(atoms):
        return BondCriterion(atoms, reference, bond)
    window = round(window_ps * 1000 / (settings.timestep * settings.interval))
    return RdfCriterion(reference, window, rdf)
