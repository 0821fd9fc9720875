"""Make the extrapolation data: aspirin at 300 K for training, at 300, 600, 900 and 1,200 K for testing, by GFN2-xTB.

    pip install "tblite==0.8.*" ase tqdm
    python make_aspirin_hot.py --out aspirin_hot

Every file comes from independent Langevin trajectories of 25 frames, 80 fs apart, after 1 ps at its temperature.
A trajectory in which a bond breaks or forms ends there: its other frames are dropped, and another one takes their
place, so that all structures are aspirin. About an hour of CPU time; a second call continues where the first one
stopped. Energies are in eV, forces in eV/Angstrom.
"""

import argparse
import itertools
import json
from pathlib import Path

from ase.data import covalent_radii
from ase.io import read, write
from make_aspirin import START, labelled_frames, write_whole
from tqdm import tqdm

EQUILIBRATION_STEPS = 2_000  # 1 ps, ten relaxation times of the thermostat
STEPS_BETWEEN_FRAMES = 160  # 80 fs
FRAMES = 25

#: file -> temperature in K, structures, seed of its first trajectory
FILES = {
    "train": (300, 100, 100),
    "val": (300, 100, 200),
    "test_300K": (300, 150, 300),
    "test_600K": (600, 150, 600),
    "test_900K": (900, 150, 900),
    "test_1200K": (1200, 150, 1200),
}
#: distances in sums of covalent radii: below the first two atoms are bonded in the start structure, beyond the
#: second a bond is broken, below the third a new one has formed
BONDED, BROKEN, FORMED = 1.2, 1.5, 1.15


def is_aspirin(atoms, start):
    """Whether `atoms` has the bonds of `start` and no others."""
    radii = covalent_radii[start.numbers]
    sums = radii[:, None] + radii
    bonded = start.get_all_distances() < BONDED * sums
    distances = atoms.get_all_distances()
    formed = ~bonded & (distances < FORMED * sums)
    return bool((distances[bonded] < BROKEN * sums[bonded]).all() and not formed.any())


def run_trajectory(path, temperature, seed):
    """Frames of one trajectory up to the first that is not aspirin any more; kept in `path`."""
    if not path.exists():
        start = read(START)
        source = labelled_frames(temperature, seed, EQUILIBRATION_STEPS, STEPS_BETWEEN_FRAMES)
        frames = itertools.islice(source, FRAMES)
        kept = list(itertools.takewhile(lambda frame: is_aspirin(frame, start), frames))
        write_whole(path, kept)
    return read(path, ":")


def make_file(name, out):
    """The structures of one file, and how many frames were dropped."""
    temperature, count, seed = FILES[name]
    frames, dropped = [], 0
    with tqdm(total=count, desc=name, unit="frame") as bar:
        while len(frames) < count:
            kept = run_trajectory(out / "parts" / f"{name}_{seed}.extxyz", temperature, seed)
            seed += 1
            dropped += FRAMES - len(kept)
            frames += kept
            bar.update(len(kept))
    return frames[:count], dropped


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("aspirin_hot"))
    args = parser.parse_args()
    (args.out / "parts").mkdir(parents=True, exist_ok=True)
    dropped = {}
    for name in FILES:
        frames, dropped[name] = make_file(name, args.out)
        write(args.out / f"{name}.extxyz.gz", frames, format="extxyz")
    (args.out / "dropped.json").write_text(json.dumps(dropped, indent=1) + "\n")
    print("dropped:", dropped)


if __name__ == "__main__":
    main()
