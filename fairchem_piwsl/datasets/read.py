"""Labelled structures of one data set, whatever its format: LMDB, npz, or what ASE reads."""

from pathlib import Path

import numpy as np
from ase import Atoms

from fairchem_piwsl.datasets.ase_labels import LabelOptions
from fairchem_piwsl.datasets.lmdb_checks import read_lmdb
from fairchem_piwsl.datasets.published.npz_files import NpzSource
from fairchem_piwsl.datasets.readers import AseSource, Source, split_slice
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled


def read_labelled(path: str | Path, limit: int | None = None) -> list[Labelled]:
    """Read an LMDB data set (file, or folder of `*.lmdb` or `*.aselmdb`), an npz of rMD17 or sGDML, or what ASE reads.

    Energies become eV and forces eV/Angstrom: LMDBs hold them, npz files say their unit (else it is kcal/mol),
    in other files that is what is expected. Labels that are missing become NaN. The name may end in ASE's
    `@slice`. `limit` reads the first structures only.
    """
    text, frames = split_slice(str(path))
    file = Path(text)
    if not file.exists():
        raise UserError(
            f"{file}: there is no such data set; give the path of an LMDB file or of an extxyz file."
        )
    if file.is_file() and not file.stat().st_size and file.suffix != ".lmdb":
        raise UserError(f"{file}: this file is empty; make it again, or give another one.")
    databases = sorted(file.glob("*.aselmdb")) if file.is_dir() else []
    if databases:
        found = [AseSource(path, slice(None), LabelOptions()) for path in databases]
        structures = [item for one in found for item in one.read(range(one.count()))][frames][:limit]
    elif file.is_dir() or file.suffix == ".lmdb":
        last = limit if frames == slice(None) else None
        structures = _read_lmdbs(file, last)[frames][:limit]
    else:
        source: Source = (
            NpzSource(file, frames) if file.suffix == ".npz" else AseSource(file, frames, LabelOptions())
        )
        wanted = source.count() if limit is None else min(limit, source.count())
        structures = list(source.read(range(wanted)))
    if not structures:
        raise UserError(f"{path}: this data set is empty; prepare it again, or choose another slice.")
    for item in structures:
        if (
            not np.isfinite(item.atoms.positions).all()
            or np.isinf(item.energy)
            or np.isinf(item.forces).any()
        ):
            raise UserError(
                f"{path}: {item.source} has positions or labels that are not finite; correct it, or give another one."
            )
    return structures


def read_structure(path: str | Path, index: int = -1) -> Atoms:
    """Read one structure (the last one by default) from a data set."""
    structures = read_labelled(path)
    try:
        atoms = structures[index].atoms
    except IndexError:
        raise UserError(
            f"{path}: it holds {len(structures)} structures, there is no number {index}; choose another."
        ) from None
    return atoms


def _read_lmdbs(path: Path, limit: int | None) -> list[Labelled]:
    files = sorted(path.glob("*.lmdb")) if path.is_dir() else [path]
    if not files:
        raise UserError(
            f"{path}: this folder holds no *.lmdb or *.aselmdb file; give the path of a data set."
        )
    structures: list[Labelled] = []
    for file in files:
        structures += read_lmdb(file, None if limit is None else limit - len(structures))
    return structures
