"""Prepare the data folders of the recipes self_tuning, map, learning_curve and others from the published files.

    python scripts/published_data.py FOLDER                   all of data/rmd17_aspirin_100, data/tio2_100, ...
    python scripts/published_data.py FOLDER --only aspirin    those with this in their names

FOLDER holds, in any folders below it, rmd17_{aspirin,naphthalene,benzene}_{train,test}_01.npz,
small_mols_{train,test}_eV.extxyz, and the tar archives tio2_*.tar.gz and lmnto_*.tar.gz of XSF files. Element references
are fitted on each training set; the test set is the whole published one, of TiO2 and LMNTO what is left. What is
there is not done again.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairchem_piwsl.datasets.prepare import prepare
from fairchem_piwsl.datasets.published.plans import prepare_published
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import errors_as_sentences

ROOT = Path(__file__).resolve().parents[1]
HOT = ROOT / "examples" / "aspirin_hot"
VALIDATION = 100
RMD17_SIZES = {"aspirin": (50, 100, 200, 400, 900), "naphthalene": (100, 900), "benzene": (100, 900)}
#: (training, validation, test) structures
CRYSTALS = {
    "tio2": ((100, 100, 800), (700, 100, 200)),
    "lmnto": ((100, 100, 624), (700, 50, 74)),
}
#: training size -> slices of the published training file, whose every tenth structure from the tenth on validates
SMALL_MOLECULES = {
    50: ("::20",),
    100: ("::10",),
    200: ("::10", "5::10"),
    400: ("::10", "2::10", "5::10", "7::10"),
    900: tuple(f"{start}::10" for start in range(9)),
}


def find(folder: Path, pattern: str) -> Path:
    """The one file below `folder` that fits `pattern`.

    Raises:
        UserError: there is none, or there are several.
    """
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        many = f"{len(found)} files" if found else "no file"
        raise UserError(f"{folder} holds {many} {pattern}: give the folder of the published files.")
    return found[0]


def rmd17(folder: Path, molecule: str, train: int, out: Path) -> None:
    """Published split 01: the first `train` structures train, the last 100 of the training file validate."""
    files = [find(folder, f"rmd17_{molecule}_{role}_01.npz") for role in ("train", "test")]
    options: dict[str, Any] = {"molecule": molecule, "train": train, "val": VALIDATION, "quiet": True}
    prepare_published("rmd17", files, out, **options)


def crystals(folder: Path, name: str, sizes: tuple[int, int, int], out: Path) -> None:
    """TiO2 or LMNTO, shuffled."""
    train, val, test = sizes
    archive = find(folder, f"{name}_*.tar.gz")
    prepare_published(name, [archive], out, train=train, val=val, test=test, quiet=True)


def small_molecules(folder: Path, train: int, out: Path) -> None:
    """Slices of the whole training file, which may be sorted; smaller training sets lie within larger ones."""
    source = find(folder, "small_mols_train_eV.extxyz")
    prepare(
        files=[],
        train_files=[f"{source}@{part}" for part in SMALL_MOLECULES[train]],
        val_files=[f"{source}@9::10"],
        test_files=[str(find(folder, "small_mols_test_eV.extxyz"))],
        out=str(out),
        reuse=True,
        quiet=True,
    )


def cold_aspirin(out: Path) -> None:
    """The project's own aspirin at 300 K."""
    files = {"train": "train", "val": "val", "test": "test_300K"}
    paths: Any = {f"{split}_files": [str(HOT / f"{name}.extxyz.gz")] for split, name in files.items()}
    prepare(files=[], out=str(out), reuse=True, quiet=True, **paths)


def jobs(folder: Path, out: Path) -> dict[str, Callable[[], None]]:
    """Name of each data folder and what prepares it."""
    found: dict[str, Callable[[], None]] = {"aspirin_300K": lambda: cold_aspirin(out / "aspirin_300K")}
    for molecule, sizes in RMD17_SIZES.items():
        for train in sizes:
            name = f"rmd17_{molecule}_{train}"
            found[name] = lambda m=molecule, t=train, n=name: rmd17(folder, m, t, out / n)
    for train in SMALL_MOLECULES:
        name = f"small_molecules_{train}"
        found[name] = lambda t=train, n=name: small_molecules(folder, t, out / n)
    for crystal, splits in CRYSTALS.items():
        for sizes in splits:
            name = f"{crystal}_{sizes[0]}"
            found[name] = lambda c=crystal, s=sizes, n=name: crystals(folder, c, s, out / n)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the published files")
    parser.add_argument("--out", type=Path, default=Path("data"))
    parser.add_argument("--only", default="", help="a part of the names of data folders")
    args = parser.parse_args()
    chosen = {name: job for name, job in jobs(args.folder, args.out).items() if args.only in name}
    if not chosen:
        raise UserError(f"--only {args.only}: choose among {', '.join(jobs(args.folder, args.out))}.")
    for name, job in chosen.items():
        job()
        print(args.out / name)


if __name__ == "__main__":
    with errors_as_sentences("published_data.py"):
        main()
