"""Which npz file of rMD17, MD22 or MD17-CCSD(T) is for what, and the splits that follow."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fairchem_piwsl.datasets.ase_files import broken
from fairchem_piwsl.datasets.prepare import Parts, Plan
from fairchem_piwsl.datasets.published.npz_files import NpzSource
from fairchem_piwsl.datasets.published.paper_splits import PaperSplit, Request, choose_sizes
from fairchem_piwsl.datasets.splits import SPLITS
from fairchem_piwsl.datasets.splits import split as draw
from fairchem_piwsl.errors import UserError

#: rmd17_aspirin_train_01.npz, ethanol_ccsd_t-test.npz, md22_AT-AT.npz, rmd17_aspirin.npz
_NAME = re.compile(
    r"^(?:rmd17_|md22_|md17_)?(?P<molecule>.+?)(?:_ccsd(?:_t)?)?"
    r"(?:[-_](?P<role>train|test)(?:_(?P<split>\d+))?)?\.npz$"
)
_INDEX = re.compile(r"^index_(?P<role>train|test)_(?P<split>\d+)\.csv$")


@dataclass
class Roles:
    """The files of one molecule by what they hold."""

    train: NpzSource | None = None  # published training set
    test: NpzSource | None = None  # published test set
    rest: list[NpzSource] = field(default_factory=list)  # everything else
    index: dict[str, Path] = field(default_factory=dict)  # rMD17's index files: role -> csv
    split: str = ""  # number of the published split

    @property
    def sources(self) -> list[NpzSource]:
        return [s for s in (self.train, self.test) if s is not None] + self.rest


def npz_sources(paths: Sequence[Path], molecule: str | None, split: str | None) -> Roles:
    """Sort npz files (and rMD17's index files) into roles.

    Args:
        paths: files and folders.
        molecule: which molecule; may be left out if there is one.
        split: number of the published split; if left out, the first for which there are files.
    """
    files = [f for p in paths for f in (sorted(p.rglob("*.*")) if p.is_dir() else [p])]
    by_molecule: dict[str, list[tuple[re.Match[str], Path]]] = {}
    for file in files:
        match = _NAME.match(file.name)
        if match:
            by_molecule.setdefault(match["molecule"], []).append((match, file))
    if not by_molecule:
        raise UserError(f"{paths[0]} has no .npz files: give the unpacked files as published.")
    name = molecule or next(iter(by_molecule))
    if (molecule is None and len(by_molecule) > 1) or name not in by_molecule:
        raise UserError(f"The files hold {', '.join(sorted(by_molecule))}: choose one with --molecule.")
    matches = by_molecule[name]
    numbers = sorted({m["split"] for m, _ in matches if m["role"] and m["split"]})
    indices = {(m["role"], m["split"]): f for f in files if (m := _INDEX.match(f.name))}
    chosen = _number(split, numbers, sorted({number for _, number in indices}))
    roles = Roles(split=chosen or "")
    for match, file in matches:
        same_split = match["split"] == chosen or match["split"] is None
        if match["role"] == "train" and same_split and roles.train is None:
            roles.train = NpzSource(file)
        elif match["role"] == "test" and same_split and roles.test is None:
            roles.test = NpzSource(file)
        else:
            roles.rest.append(NpzSource(file))
    if roles.train is None or roles.test is None:  # no published pair: everything is one pool
        roles = Roles(rest=roles.sources, split=chosen or "")
        if chosen is not None and split is not None:
            roles.index = {r: indices[r, chosen] for r in ("train", "test") if (r, chosen) in indices}
            if len(roles.index) < 2 or len(roles.rest) != 1:
                raise UserError(
                    f"--published-split {chosen} needs index_train_{chosen}.csv and index_test_{chosen}.csv and "
                    f"the one full .npz of {name}: give their folder."
                )
            roles.rest[0].paths += roles.index.values()  # which say what is read from it
    return roles


def _number(split: str | None, of_files: list[str], of_indices: list[str]) -> str | None:
    if split is None:
        return of_files[0] if of_files else None
    number = split.zfill(2)
    if number not in [*of_files, *of_indices]:
        found = ", ".join(sorted({*of_files, *of_indices})) or "none"
        raise UserError(f"--published-split {split} is not among the files (found: {found}); choose another.")
    return number


def molecule_plan(roles: Roles, paper: PaperSplit, request: Request) -> Plan:
    """The published split if the files hold one, else the paper's draw from all of them."""
    if roles.train is not None and roles.test is not None:
        return _published_pair(roles, paper, request)
    if roles.index:
        return _published_index(roles, paper, request)
    total = sum(source.count() for source in roles.rest)
    keep, dropped = _distinct(roles.rest, set())
    sizes = choose_sizes(paper, total - dropped, request)
    if dropped:
        sizes.notes.append(f"{dropped} structures repeat another one and were left out.")
    chosen = draw([len(keep)], sizes, request.seed)
    return Plan({name: (roles.rest, keep[indices]) for name, indices in chosen.items()}, sizes.notes)


def _published_pair(roles: Roles, paper: PaperSplit, request: Request) -> Plan:
    """Train and test from the published files, validation from what is left and from the other files."""
    assert roles.train is not None
    assert roles.test is not None
    n_file, n_test = roles.train.count(), roles.test.count()
    order = np.arange(n_file)
    if request.seed:  # seed 0 keeps the published order
        order = np.random.default_rng(request.seed).permutation(n_file)
    kept = f"split {roles.split}" if roles.split else "splits"
    notes = [f"Published {kept} kept: train from {roles.train.name}, test from {roles.test.name}."]
    taken = {*roles.test.keys(), *roles.train.keys()}
    others, _ = _distinct(roles.rest, taken)
    n_train = _train_size(n_file, paper, request, roles.train.name)
    if request.train is None and n_train == n_file and not len(others):
        n_train = max((n for n in paper.trainings if n < n_file), default=n_file // 2)
        notes.append(
            f"Training on all {n_file} would leave none for validation: the training set has {n_train}."
        )
    rest = np.concatenate([order[n_train:][::-1], n_file + others])
    parts: Parts = {
        "train": ([roles.train], order[:n_train]),
        "val": ([roles.train, *roles.rest], rest),
        "test": ([roles.test], np.arange(n_test)),
    }
    return _published_plan(parts, notes, paper, request, roles.train.name)


def _published_index(roles: Roles, paper: PaperSplit, request: Request) -> Plan:
    """Train and test by rMD17's index files, validation from the other frames."""
    source = roles.rest[0]
    rows = {role: _rows(path) for role, path in roles.index.items()}
    total = source.count()
    if max(map(np.max, rows.values())) >= total or min(map(np.min, rows.values())) < 0:
        raise UserError(
            f"{source.name} holds {total} frames, other ones than the index files name; give the full file."
        )
    rng = np.random.default_rng(request.seed)
    train = rows["train"] if request.seed == 0 else rng.permutation(rows["train"])
    n_train = _train_size(len(train), paper, request, f"Split {roles.split}")
    others = np.setdiff1d(np.arange(total), np.concatenate(list(rows.values())))
    others = np.random.default_rng(request.seed).permutation(others)
    notes = [
        f"Published split {roles.split} kept: train and test by the index files, validation from the rest."
    ]
    chosen = {"train": train[:n_train], "val": others, "test": rows["test"]}
    parts: Parts = {name: ([source], indices) for name, indices in chosen.items()}
    return _published_plan(parts, notes, paper, request, source.name)


def _train_size(total: int, paper: PaperSplit, request: Request, name: str) -> int:
    """As asked for, or as in the paper, out of the `total` that `name` has for training."""
    size = min(paper.trainings[-1], total) if request.train is None else request.train
    if size > total:
        raise UserError(f"{name} holds {total} structures but --train asks for {size}: lower it.")
    return size


def _rows(path: Path) -> np.ndarray:
    with broken(path):
        rows = np.loadtxt(path, dtype=int, delimiter=",", ndmin=1)
        if not len(rows):
            raise ValueError("it is empty")
    return rows


def _published_plan(parts: Parts, notes: list[str], paper: PaperSplit, request: Request, name: str) -> Plan:
    """The split with as many of the structures in `parts` for validation and test as are wanted."""
    train, val, test = (len(parts[split][1]) for split in SPLITS)
    n_val = paper.validation(train) if request.val is None else request.val
    n_test = test if request.test is None else request.test
    if n_test > test:
        raise UserError(f"The published test set holds {test} structures, not {n_test}: lower --test.")
    if val < n_val and request.val is not None:
        raise UserError(f"Only {val} structures are left for validation, not {n_val}: lower --val.")
    if val == 0 and n_val > 0:
        raise UserError(
            f"Training on all {train} structures of {name} leaves none for validation: lower --train, or give "
            f"the files of another published split as well."
        )
    if val < n_val:
        notes.append(f"The validation set has {val} structures, all that is left, not {n_val}.")
    if n_test < paper.test and request.test is None:
        notes.append(f"The test set has the {n_test} published structures; the paper drew {paper.test}.")
    kept = {"train": train, "val": n_val, "test": n_test}
    return Plan({split: (sources, rows[: kept[split]]) for split, (sources, rows) in parts.items()}, notes)


def _distinct(sources: Sequence[NpzSource], taken: set) -> tuple[np.ndarray, int]:
    """Indices into the concatenated sources without repetitions and without those `taken`; number dropped."""
    keep, seen, start = [], set(taken), 0
    for source in sources:
        for i, key in enumerate(source.keys()):
            if key not in seen:
                seen.add(key)
                keep.append(start + i)
        start += source.count()
    return np.array(keep, dtype=int), start - len(keep)
