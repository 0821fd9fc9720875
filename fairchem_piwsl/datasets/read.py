"""Labelled structures of one data set, whatever its format: LMDB, npz, or what ASE reads."""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
from ase import Atoms

from fairchem_piwsl.datasets.ase_labels import LabelOptions
from fairchem_piwsl.datasets.lmdb_checks import LmdbSource
from fairchem_piwsl.datasets.published.npz_files import NpzSource
from fairchem_piwsl.datasets.readers import AseSource, Source, in_file_order, split_slice
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import Labelled


def read_labelled(path: str | Path, limit: int | None = None, index: int | None = None) -> list[Labelled]:
    """Read an LMDB data set (file, or folder of `*.lmdb` or `*.aselmdb`), an npz of rMD17 or sGDML, or what ASE reads.

    Energies become eV and forces eV/Angstrom: LMDBs hold them, npz files say their unit (else it is kcal/mol),
    in other files that is what is expected. Labels that are missing become NaN. The name may end in ASE's
    `@slice`. `limit` reads the first structures only, `index` a single one.
    """
    text, frames = split_slice(str(path))
    file = Path(text)
    if not file.exists():
        raise UserError(
            f"{file}: there is no such data set; give the path of an LMDB file or of an extxyz file."
        )
    if file.is_file() and not file.stat().st_size and file.suffix != ".lmdb":
        raise UserError(f"{file}: this file is empty; make it again, or give another one.")
    sources = _sources(file)
    chosen = np.arange(sum(source.count() for source in sources))[frames][:limit]
    if not len(chosen):
        raise UserError(f"{path}: this data set is empty; prepare it again, or choose another slice.")
    if index is not None:
        if not -len(chosen) <= index < len(chosen):
            raise UserError(
                f"{path}: it holds {len(chosen)} structures, there is no number {index}; choose another."
            )
        chosen = chosen[[index]]
    structures = [found for _, found in sorted(in_file_order(sources, chosen), key=itemgetter(0))]
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
    return read_labelled(path, index=index)[0].atoms


def _sources(path: Path) -> list[Source]:
    files = (sorted(path.glob("*.aselmdb")) or sorted(path.glob("*.lmdb"))) if path.is_dir() else [path]
    if not files:
        raise UserError(
            f"{path}: this folder holds no *.lmdb or *.aselmdb file; give the path of a data set."
        )
    kinds: dict[str, Callable[[Path], Source]] = {".lmdb": LmdbSource, ".npz": NpzSource}
    other = partial(AseSource, frames=slice(None), options=LabelOptions())
    return [kinds.get(file.suffix, other)(file) for file in files]
