"""`piwsl prepare ani1x|rmd17|md22|md17_ccsd_t|tio2|lmnto PATH...`: the paper's data sets with the paper's splits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairchem_piwsl.datasets.ase_labels import LabelOptions
from fairchem_piwsl.datasets.prepare import Plan, WriteOptions, write_dataset
from fairchem_piwsl.datasets.published.ani1x import Ani1xSource
from fairchem_piwsl.datasets.published.molecule_files import molecule_plan, npz_sources
from fairchem_piwsl.datasets.published.paper_splits import PaperSplit, Request, choose_sizes
from fairchem_piwsl.datasets.published.xsf_archives import XsfSource, natural_order
from fairchem_piwsl.datasets.readers import Source, matching
from fairchem_piwsl.datasets.splits import check_numbers, split
from fairchem_piwsl.errors import UserError

#: B.1 and Table A2; for MD22 and MD17-CCSD(T) B.1 names no sizes and these are the project's
PAPER = {
    "ani1x": PaperSplit(trainings=(50, 100, 1_000, 10_000), test=10_000),
    "rmd17": PaperSplit(trainings=(100, 1_000), test=10_000, val=9_000),
    "md22": PaperSplit(trainings=(100, 1_000), test=1_000),
    "md17_ccsd_t": PaperSplit(trainings=(100, 1_000), test=500),
    "tio2": PaperSplit(trainings=(100, 1_000), test=1_000),
    "lmnto": PaperSplit(trainings=(100, 1_000), test=1_000),
}
NAMES = tuple(PAPER)
#: how a file says its units, where options do not
_UNITS = "Name the units of an npz file in it as e_unit and r_unit"
_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar")


def prepare_published(
    name: str,
    paths: Sequence[str | Path],
    out: str | Path,
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
    seed: int = 0,
    molecule: str | None = None,
    level: str | None = None,
    published_split: str | None = None,
    **writing: Any,
) -> dict[str, Any]:
    """Convert a published data set to `out/{train,val,test}/data.lmdb` or `.aselmdb`; returns the summary.

    Where the files hold fewer structures than the paper's split asks for, the summary's `notes` say what was
    done. A second call with the same arguments and files does nothing.

    Args:
        name: one of `NAMES`.
        paths: files, folders or globs as published.
        train, val, test: structures; left out, the paper's sizes (the largest training set that fits).
        seed: of the shuffle. The test set is the same for every training size.
        molecule: which molecule, if the files hold several.
        level: ANI-1x's level of theory, `wb97x_dz` if left out.
        published_split: rMD17's split, `01` to `05`, if the files come with them.
        out, writing: as for `prepare`.
    """
    if name not in PAPER:
        raise UserError(f"There is no data set {name}: give one of {', '.join(NAMES)}.")
    for option, value, sets in (
        ("--molecule", molecule, ("rmd17", "md22", "md17_ccsd_t")),
        ("--level", level, ("ani1x",)),
        ("--published-split", published_split, ("rmd17",)),
    ):
        if value is not None and name not in sets:
            raise UserError(f"{option} has no meaning for {name}, only for {', '.join(sets)}; leave it out.")
    check_numbers({"seed": seed, "train": train, "val": val, "test": test})
    request = Request(name, train, val, test, seed, molecule, level or "wb97x_dz", published_split)
    sources, make_plan = _open(request, _expand(paths))
    arguments = {**vars(request), "paths": [str(p) for p in paths]}
    need_forces = not (isinstance(sources[0], Ani1xSource) and not sources[0].has_forces)
    # published as they are: duplicates are reported, not refused
    units: dict[str, Any] = {"labels": getattr(sources[0], "labels", LabelOptions()), "unit_remedy": _UNITS}
    options = WriteOptions(need_forces=need_forces, allow_duplicates=True, reuse=True, **units, **writing)
    return write_dataset(make_plan, sources, arguments, Path(out), options)


def _open(request: Request, paths: list[Path]) -> tuple[Sequence[Source], Callable[[], Plan]]:
    """Sources of a data set, and a function that plans its splits."""
    paper = PAPER[request.name]
    if request.name in ("tio2", "lmnto"):
        archives = [XsfSource(path) for path in sorted(_inside(paths, ".xsf", _TAR), key=natural_order)]
        return archives, lambda: _pool_plan(paper, archives, request)
    if request.name == "ani1x":
        files = [Ani1xSource(path, request.level) for path in _inside(paths, "", (".h5", ".hdf5"))]

        def ani1x_plan() -> Plan:
            plan = _pool_plan(paper, files, request)
            unlabelled = sum(file.unlabelled for file in files)
            if unlabelled:
                plan.notes.append(
                    f"{unlabelled} structures have no {request.level} labels and were left out."
                )
            if not all(file.has_forces for file in files):
                plan.notes.append(f"{request.level} has energies alone: forces are NaN.")
            return plan

        return files, ani1x_plan
    roles = npz_sources(paths, request.molecule, request.published_split)
    return roles.sources, lambda: molecule_plan(roles, paper, request)


def _pool_plan(paper: PaperSplit, sources: Sequence[Source], request: Request) -> Plan:
    total = sum(source.count() for source in sources)
    sizes = choose_sizes(paper, total, request)
    chosen = split([total], sizes, request.seed)
    return Plan({name: (sources, indices) for name, indices in chosen.items()}, sizes.notes)


def _expand(paths: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        matches = matching(str(path))
        if not matches or not all(match.exists() for match in matches):
            raise UserError(f"{path} does not exist; give the files or folder of the data set.")
        found += matches
    if not found:
        raise UserError("No files given: name the data set's files or folder.")
    return found


def _inside(paths: list[Path], wanted: str, archives: tuple[str, ...]) -> list[Path]:
    """Folders stand for the archives in them, unless they hold the `wanted` files themselves."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir() or (wanted and any(path.rglob(f"*{wanted}"))):
            found.append(path)
            continue
        inner = sorted(p for p in path.iterdir() if p.name.endswith(archives))
        if not inner:
            names = " or ".join(name for name in (wanted, *archives[:1]) if name)
            raise UserError(f"{path} holds no {names} files; give the archive or folder as published.")
        found += inner
    return found
