"""Make the example data: aspirin from molecular dynamics, labelled by GFN2-xTB.

    pip install "tblite==0.8.*" ase tqdm
    python make_aspirin.py --out aspirin

Seven independent Langevin trajectories at 500 K (one for training, one for
validation, five for testing) are sampled every 250 fs, so no test structure comes from a
trajectory that the model has seen. About an hour of CPU time; a second call continues where the first
one stopped. Energies are in eV, forces in eV/Angstrom.
"""

import argparse
import itertools
import os
from multiprocessing import Pool
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread per trajectory

import numpy as np
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from tblite.ase import TBLite
from tqdm import tqdm

TEMPERATURE_K = 500
TIMESTEP_FS = 0.5
FRICTION_PER_FS = 0.01
EQUILIBRATION_STEPS = 4_000  # 2 ps
STEPS_BETWEEN_FRAMES = 500  # 250 fs
FRAMES = 100

#: trajectory name -> random seed
TRAJECTORIES = {"train": 1, "val": 2, "test1": 11, "test2": 12, "test3": 13, "test4": 14, "test5": 15}
SPLITS = {"train": ["train"], "val": ["val"], "test": ["test1", "test2", "test3", "test4", "test5"]}
START = Path(__file__).with_name("aspirin.xyz")


def labelled_frames(temperature, seed, equilibration, stride):
    """Labelled frames of a Langevin trajectory at `temperature` K, without end.

    The first comes after `equilibration` and `stride` steps of 0.5 fs, the others `stride` steps apart.
    """
    rng = np.random.default_rng(seed)
    atoms = read(START)
    atoms.calc = TBLite(method="GFN2-xTB", accuracy=0.1, verbosity=0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    Stationary(atoms)
    # fixcm=True (ASE's default) rescales the random forces and overheats the hydrogen atoms
    dynamics = Langevin(
        atoms,
        timestep=TIMESTEP_FS * units.fs,
        temperature_K=temperature,
        friction=FRICTION_PER_FS / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(equilibration)
    while True:
        dynamics.run(stride)
        frame = atoms.copy()
        frame.set_velocities(np.zeros_like(frame.positions))
        frame.arrays.pop("momenta", None)
        frame.info.clear()
        frame.positions -= frame.get_center_of_mass()
        frame.calc = SinglePointCalculator(
            frame, energy=atoms.get_potential_energy(), forces=atoms.get_forces()
        )
        yield frame


def write_whole(path, frames):
    """Write extxyz, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    write(temporary, frames, format="extxyz")
    temporary.rename(path)


def run_trajectory(name, out, position):
    """Write `FRAMES` labelled frames of one trajectory to `out/parts/<name>.extxyz`."""
    path = out / "parts" / f"{name}.extxyz"
    if path.exists():
        return path
    source = labelled_frames(TEMPERATURE_K, TRAJECTORIES[name], EQUILIBRATION_STEPS, STEPS_BETWEEN_FRAMES)
    counted = tqdm(itertools.islice(source, FRAMES), desc=name, position=position, unit="frame", total=FRAMES)
    write_whole(path, list(counted))
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("aspirin"))
    parser.add_argument("--workers", type=int, default=2, help="trajectories run side by side")
    args = parser.parse_args()
    (args.out / "parts").mkdir(parents=True, exist_ok=True)

    with Pool(args.workers) as pool:
        pool.starmap(run_trajectory, [(name, args.out, i) for i, name in enumerate(TRAJECTORIES)])
    for split, names in SPLITS.items():
        frames = [f for name in names for f in read(args.out / "parts" / f"{name}.extxyz", ":")]
        write(args.out / f"{split}.extxyz.gz", frames, format="extxyz")
        print(f"{split}: {len(frames)} structures")


if __name__ == "__main__":
    main()
