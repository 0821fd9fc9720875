"""Data sets of scripts/fine_tuning.py: many labels of a cheap level of theory, few of a better one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from fairchem_piwsl.datasets.prepare import prepare
from fairchem_piwsl.datasets.published.molecule_files import molecule_plan, npz_sources
from fairchem_piwsl.datasets.published.paper_splits import Request
from fairchem_piwsl.datasets.published.plans import PAPER
from fairchem_piwsl.datasets.readers import in_file_order
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled
from fairchem_piwsl.units import ENERGY_UNITS, energy_unit

XTB = Path(__file__).with_name("xtb_trajectories.py")


def check_files(files: Sequence[Path]) -> None:
    """A missing file, before anything is written."""
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} does not exist: give the .npz files with the better labels.")


def prepare_labels(
    files: Sequence[Path], folder: Path, split: Mapping[str, int], size: int, seed: int, units: str, name: str
) -> Path:
    """LMDBs with `size` energies for training; returns their folder.

    Validation and test set are the same for all sizes and seeds. A seed draws an order of the structures for
    training, of which a size takes the first, so that larger sets contain the smaller ones. Forces are left out
    everywhere but in the test set.

    Args:
        files: npz files in sGDML's layout.
        folder: of all data sets.
        split: structures in `train` (the pool), `val` and `test`.
        size: structures to train on.
        seed: of the draw.
        units: of the energies in files that do not say it (sGDML's are kcal/mol).
        name: of the data set.
    """
    sources = folder / "sources"
    if not (sources / f"train_seed{seed}.extxyz").exists():
        _write_sources(files, sources, split, seed)
    unit = "kcal/mol" if _names_its_unit(files) else energy_unit(units)
    out = folder / f"seed{seed}" / f"{name}_{size}"
    prepare(
        out=out,
        train_files=[sources / f"train_seed{seed}.extxyz"],
        val_files=[sources / "val.extxyz"],
        test_files=[sources / "test.extxyz"],
        train=size,
        units=unit,
        allow_missing=True,
        allow_duplicates=True,  # published sets stay as they are
        reuse=True,
        quiet=True,
    )
    return out


def start_structure(folder: Path) -> Path:
    """A file with the first structure of the test set, to start dynamics from."""
    from ase.io import read

    path = folder / "sources" / "start.xyz"
    write(path, read(folder / "sources" / "test.extxyz", 0), format="xyz")
    return path


def prepare_pretraining(
    given: Sequence[Path], start: Path, folder: Path, settings: Mapping[str, Any]
) -> Path:
    """LMDBs with energies and forces for pre-training; returns their folder.

    Args:
        given: files of the user's that ASE reads (eV); without any, GFN2-xTB labels are made.
        start: structure from which dynamics start.
        folder: of all data sets.
        settings: block `pretraining_data` of the scale.
    """
    files, how = list(given), "shuffle"
    if not files:
        files, how = [folder / "sources" / "gfn2_xtb.extxyz"], "blocks"
        if not files[0].exists():
            _run_xtb(start, files[0], settings["dynamics"])
    out = folder / "pretraining"
    prepare(files=files, out=out, val=settings["val"], test=0, split=how, reuse=True, quiet=True)
    return out


def check_xtb() -> None:
    """The package that makes GFN2-xTB labels, before anything is written."""
    if importlib.util.find_spec("tblite") is None:
        raise UserError(
            "GFN2-xTB data for pre-training need tblite: run `pip install 'fairchem_piwsl[xtb]'`, or give data of "
            "your own with --pretraining-data."
        )


def _run_xtb(start: Path, out: Path, dynamics: Mapping[str, Any]) -> None:
    """In a process of its own: tblite has to be loaded before torch, which is in this one already."""
    options: list[str] = []
    for name, value in dynamics.items():
        options += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, str(XTB), str(start), str(out), *options], env=environment)
    if process.returncode:
        raise UserError(f"making GFN2-xTB data failed ({XTB.name}, see above); nothing was trained yet.")


def _names_its_unit(files: Sequence[Path]) -> bool:
    return any("e_unit" in np.load(file, allow_pickle=False).files for file in files)


def _write_sources(files: Sequence[Path], folder: Path, split: Mapping[str, int], seed: int) -> None:
    """The three splits as extxyz files in the unit of the npz files, kcal/mol where they name another one."""
    roles = npz_sources(list(files), None, None)
    request = Request("md17_ccsd_t", split["train"], split["val"], split["test"])
    try:
        parts = molecule_plan(roles, PAPER["md17_ccsd_t"], request).parts
    except UserError as error:
        raise UserError(
            f"{str(error).split(': lower')[0]}: lower the numbers under `split` of the scale."
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    for name, (sources, indices) in parts.items():
        structures = [
            structure for _, structure in sorted(in_file_order(sources, indices), key=itemgetter(0))
        ]
        if name == "train":
            order = np.random.default_rng(seed).permutation(len(structures))
            structures = [structures[i] for i in order]
        path = folder / (f"train_seed{seed}.extxyz" if name == "train" else f"{name}.extxyz")
        if not path.exists():
            unfinished = path.with_name(path.name + ".part")
            write(unfinished, [_atoms(s, forces=name == "test") for s in structures], format="extxyz")
            unfinished.replace(path)


def _atoms(structure: Labelled, forces: bool) -> Atoms:
    atoms = structure.atoms.copy()
    unit = ENERGY_UNITS["kcal/mol"]
    labels = {"energy": structure.energy / unit, **({"forces": structure.forces / unit} if forces else {})}
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms
