"""GFN2-xTB energies and forces of one molecule, sampled by Langevin dynamics at several temperatures.

    python scripts/xtb_trajectories.py start.xyz labelled.extxyz --temperatures 300 500 700 --frames 300

`start.xyz` is any structure of the molecule that ASE reads. Energies are in eV, forces in eV/Angstrom. Needs
`pip install 'fairchem_piwsl[xtb]'`. Trajectories that are done are kept: a second call goes on with the next.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads slow such small molecules down

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from rich.progress import track

from fairchem_piwsl.analysis.reference_calculators import reference_calculator
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import errors_as_sentences, whole_file

TIMESTEP_FS = 0.5
FRICTION_PER_FS = 0.01


def trajectory(
    start: Atoms, temperature_K: float, frames: int, stride: int, equilibration: int, seed: int
) -> list[Atoms]:
    """Labelled frames of one trajectory.

    Args:
        start: first structure.
        temperature_K: of the thermostat.
        frames: structures to return.
        stride: steps of 0.5 fs between two of them.
        equilibration: steps before the first.
        seed: of velocities and thermostat.
    """
    rng = np.random.default_rng(seed)
    atoms = start.copy()
    atoms.calc = reference_calculator("xtb")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # ASE 3.29 has another name for it
        MaxwellBoltzmannDistribution(atoms, temperature_K=temperature_K, rng=rng)
    Stationary(atoms)
    # fixcm=True (ASE's default) rescales the random forces and overheats the hydrogen atoms
    dynamics = Langevin(
        atoms,
        timestep=TIMESTEP_FS * units.fs,
        temperature_K=temperature_K,
        friction=FRICTION_PER_FS / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(equilibration)
    labelled = []
    for _ in track(range(frames), f"{temperature_K:g} K", disable=not sys.stderr.isatty()):
        dynamics.run(stride)
        frame = Atoms(atoms.numbers, atoms.positions - atoms.get_center_of_mass())
        frame.calc = SinglePointCalculator(
            frame, energy=atoms.get_potential_energy(), forces=atoms.get_forces()
        )
        labelled.append(frame)
    return labelled


def write_whole(path: Path, frames: list[Atoms]) -> None:
    """Write extxyz, whole or not at all."""
    with whole_file(path, "w") as file:
        write(file, frames, format="extxyz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("start", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[300.0, 500.0, 700.0], help="K")
    parser.add_argument("--frames", type=int, default=300, help="structures at each temperature")
    parser.add_argument("--stride", type=int, default=40, help="steps of 0.5 fs between structures")
    parser.add_argument("--equilibration", type=int, default=2000, help="steps before the first structure")
    args = parser.parse_args()

    if not args.start.exists():
        raise UserError(f"{args.start} does not exist: give a structure of the molecule that ASE reads.")
    reference_calculator("xtb")  # a missing package shows before anything is written
    start = read(args.start, 0)
    assert isinstance(start, Atoms)
    frames: list[Atoms] = []
    for seed, temperature in enumerate(args.temperatures):
        part = args.out.with_name(f"{args.out.stem}_{temperature:g}K.extxyz")
        if not part.exists():
            write_whole(
                part, trajectory(start, temperature, args.frames, args.stride, args.equilibration, seed)
            )
        frames += read(part, ":")
    write_whole(args.out, frames)


if __name__ == "__main__":
    with errors_as_sentences("xtb_trajectories.py"):
        main()
