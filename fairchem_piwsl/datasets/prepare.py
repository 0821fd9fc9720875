"""`piwsl prepare`: any file that ASE reads to train, val and test sets for fairchem."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from rich.console import Console
from rich.progress import Progress

from fairchem_piwsl.datasets import checks, element_references, summary
from fairchem_piwsl.datasets.ase_labels import LabelOptions
from fairchem_piwsl.datasets.formats import Format, format_of, rounding_notes
from fairchem_piwsl.datasets.lmdb_writer import call_all_periodic
from fairchem_piwsl.datasets.outputs import SUMMARY, check_free, finished, whole_folder
from fairchem_piwsl.datasets.readers import Source, in_file_order, open_sources
from fairchem_piwsl.datasets.records import Records
from fairchem_piwsl.datasets.splits import SPLITS, Sizes, check_numbers
from fairchem_piwsl.datasets.splits import split as draw
from fairchem_piwsl.datasets.unit_checks import check_units
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import write_json
from fairchem_piwsl.units import energy_unit, force_unit, length_unit

#: sizes of drawn splits where none is given; None: all the rest
DRAWN: dict[str, int | None] = {"train": None, "val": 100, "test": 1000}

#: bytes of the largest file that is known by its contents
HASHED = 100_000_000


@dataclass(frozen=True)
class WriteOptions:
    """How strictly a data set is checked, and how it is written."""

    format: str = "lmdb"  # for fairchem 1.10, or `aselmdb` for fairchem 2
    labels: LabelOptions = field(default_factory=LabelOptions)  # of the files, for messages
    unit_remedy: str = "Give the right --units, --force-units or --length-units"  # of labels
    references: Mapping[int, float] = field(default_factory=dict)  # energies of free atoms, eV; empty: fitted
    need_energy: bool = True
    need_forces: bool = True
    allow_duplicates: bool = False  # structures that are in two splits are kept
    trust_units: bool = False  # so are labels that seem to have another unit
    overwrite: bool = False  # a data set that was written here before is replaced
    reuse: bool = False  # a finished data set of the same arguments and files is kept
    quiet: bool = False


#: for each split, sources and indices into their concatenation
Parts = dict[str, tuple[Sequence[Source], np.ndarray]]


@dataclass(frozen=True)
class Plan:
    """Chosen structures, and what to tell the user."""

    parts: Parts
    notes: list[str] = field(default_factory=list)


def prepare(
    files: Sequence[str | Path] = (),
    out: str | Path = "data",
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
    seed: int = 0,
    split: str = "shuffle",
    train_files: Sequence[str | Path] = (),
    val_files: Sequence[str | Path] = (),
    test_files: Sequence[str | Path] = (),
    units: str = "eV",
    length_units: str = "Angstrom",
    force_units: str | None = None,
    energy_key: str | None = None,
    forces_key: str | None = None,
    no_forces: bool = False,
    reference_files: Sequence[str | Path] = (),
    allow_missing: bool = False,
    **writing: Any,
) -> dict[str, Any]:
    """Convert files to `out/{train,val,test}/data.lmdb` or `.aselmdb` in eV, eV/Angstrom; returns the summary.

    Args:
        files: names or globs of files to draw the splits from, each may end in ASE's `@slice`.
        out: new folder.
        train, val, test: structures in each split. Left out, drawn splits get all the rest, 100 and 1000.
            A split with files of its own takes the first so many of them, or all.
        seed: of the draw. The test set does not depend on the other sizes, and larger training sets contain
            the smaller ones.
        split: `shuffle`, or `blocks` for trajectories (the end of each file is test, the part before it val).
        train_files, val_files, test_files: given splits, which are kept.
        units: energy unit of the labels.
        length_units: of positions and cells.
        force_units: of the forces, if not `units` per length unit; such as "Hartree/Bohr".
        energy_key, forces_key: names of the labels in the files, if not `energy` and `forces`.
        no_forces: leave forces out; they become NaN.
        reference_files: free atoms whose energies are the element references, instead of a fit to the data.
        allow_missing: structures may lack labels; they become NaN.
        writing: `format`, `allow_duplicates`, `trust_units`, `overwrite`, `reuse`, `quiet` of `WriteOptions`.
    """
    force_units = force_unit(force_units) if force_units else ""
    labels = LabelOptions(
        energy_unit(units), energy_key, forces_key, no_forces, length_unit(length_units), force_units
    )
    given = {"train": list(train_files), "val": list(val_files), "test": list(test_files)}
    sizes = {"train": train, "val": val, "test": test}
    check_numbers({"seed": seed, **sizes})
    if not files and not train_files:
        raise UserError("No files to train on: name some, or give --train-file.")
    arguments = {
        "files": [str(f) for f in files],
        **{f"{name}_files": [str(f) for f in given[name]] for name in SPLITS},
        **sizes,
        "seed": seed,
        "split": split,
        **asdict(labels),
        "allow_missing": allow_missing,
        "reference_files": [str(f) for f in reference_files],
    }
    references = open_sources(reference_files, labels)
    needed: dict[str, Any] = {
        "need_energy": not allow_missing,
        "need_forces": not (allow_missing or no_forces),
    }
    options = WriteOptions(labels=labels, references=free_atoms(references), **needed, **writing)
    pool = open_sources(files, labels)
    parts_given = {name: open_sources(given[name], labels) for name in SPLITS}
    everything = [*pool, *references, *(s for sources in parts_given.values() for s in sources)]
    plan = partial(_plan, pool, parts_given, sizes, seed, split)
    return write_dataset(plan, everything, arguments, Path(out), options)


def write_dataset(
    make_plan: Callable[[], Plan],
    sources: Sequence[Source],
    arguments: dict[str, Any],
    out: Path,
    options: WriteOptions,
) -> dict[str, Any]:
    """Write a planned data set, unless it is there already (`options.reuse`).

    Args:
        make_plan: called only when there is something to do, since it counts the structures of all files.
        sources: all that the plan may read from.
        arguments: what was asked for, for the summary; with the files it identifies the data set.
        out: output folder.
        options: checks and output.
    """
    written = format_of(options.format)
    of_format = {} if options.format == "lmdb" else {"format": options.format}
    identity = _identity(arguments | of_format, sources)
    done = finished(out)
    if (
        options.reuse
        and not options.overwrite
        and done is not None
        and done.get("identity") == identity
        and all((out / name / written.writer.file).is_file() for name in done["splits"])
    ):
        if not options.quiet:
            print(f"{out} is already done: same arguments, same files. Nothing was written.")
        return done
    check_free(out, options.overwrite)
    plan = make_plan()
    with whole_folder(out) as folder:
        records = _write_splits(plan, folder, written, options)
        checks.check_any_label(records["train"])
        duplicates = checks.check_duplicates(records, options.allow_duplicates, written.keeps_states)
        doubts, notes = check_units(records, options.labels, options.trust_units, options.unit_remedy)
        plan.notes.extend(notes)
        unusual = checks.report(records, written.keeps_states, options.labels.no_forces)
        warnings = [*duplicates, *doubts, *unusual]
        plan.notes.extend(rounding_notes(options.format, _largest_energy(records)))
        mixed = len(np.unique(np.concatenate([r.pbc for r in records.values()]), axis=0)) > 1
        if mixed and not written.mixes_boundaries:
            warnings.append(
                "Periodic and other structures are mixed; all are marked periodic, molecules in a large cell."
            )
            for name in records:
                call_all_periodic(folder / name / "data.lmdb")
        result = _write_rest(records, folder, out, plan, warnings, options.references)
        result |= {"arguments": arguments, "identity": identity, "format": options.format}
        (folder / "dataset.yml").write_text(written.lines(out, result), encoding="utf-8")
        write_json(folder / SUMMARY, result)
    if not options.quiet:
        summary.show(result, written.hint(out, result), written.pasted(out, result))
    return result


def free_atoms(sources: Sequence[Source]) -> dict[int, float]:
    """Atomic number -> energy in eV of the free atoms in files of single atoms."""
    found: dict[int, float] = {}
    for structure in (s for source in sources for s in source.read(range(source.count()))):
        if len(structure) != 1 or not np.isfinite(structure.energy):
            raise UserError(
                f"--reference-file: {structure.source} has {len(structure)} atoms and energy {structure.energy:g}; "
                f"give free atoms, one in each structure, with their energies."
            )
        element = int(structure.atoms.numbers[0])
        if found.setdefault(element, structure.energy) != structure.energy:
            raise UserError(
                f"--reference-file: {structure.source} is a second {structure.formula} with another energy; keep one."
            )
    return found


def _plan(
    pool: list[Source], given: dict[str, list[Source]], sizes: dict[str, int | None], seed: int, mode: str
) -> Plan:
    """Given splits keep their structures in file order, the others are drawn from the pool."""
    parts: Parts = {}
    if pool:
        wanted = {name: DRAWN[name] if sizes[name] is None else sizes[name] for name in SPLITS}
        wanted.update({name: 0 for name in SPLITS if given[name]})
        chosen = draw([source.count() for source in pool], Sizes(**wanted), seed, mode)  # type: ignore[arg-type]
        parts = {name: (pool, chosen[name]) for name in SPLITS}
    for name in SPLITS:
        if given[name]:
            parts[name] = (given[name], _first(given[name], sizes[name], name))
    if not len(parts["train"][1]):
        raise UserError(
            "The files of --train-file hold 0 structures, which leaves nothing to train on; give others."
        )
    return Plan({name: parts[name] for name in SPLITS if name in parts})


def _first(sources: list[Source], size: int | None, name: str) -> np.ndarray:
    total = sum(source.count() for source in sources)
    if size is not None and size > total:
        raise UserError(
            f"The files of --{name}-file hold {total} structures but --{name} asks for {size}: lower it."
        )
    return np.arange(total if size is None else size)


def _largest_energy(records: Mapping[str, Records]) -> float:
    known = [np.abs(r.energy[np.isfinite(r.energy)]) for r in records.values()]
    return float(np.concatenate([[0.0], *known]).max())


def _write_splits(plan: Plan, folder: Path, written: Format, options: WriteOptions) -> dict[str, Records]:
    parts = {name: part for name, part in plan.parts.items() if len(part[1])}
    records = {name: Records(len(chosen)) for name, (_, chosen) in parts.items()}
    total = sum(len(r) for r in records.values())
    hidden = options.quiet or not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task("Converting", total=total)
        for name, (sources, chosen) in parts.items():
            with written.writer(folder / name) as writer:
                for key, structure in in_file_order(sources, chosen):
                    checks.check_structure(structure)
                    checks.check_labels(structure, options.need_energy, options.need_forces)
                    records[name].add(key, structure)
                    checks.check_distance(float(records[name].shortest[key]), structure.source)
                    writer.write(key, structure)
                    bar.advance(task)
    return records


def _write_rest(
    records: dict[str, Records],
    folder: Path,
    out: Path,
    plan: Plan,
    warnings: list[str],
    free_atom_energies: Mapping[int, float],
) -> dict[str, Any]:
    """Element references and normalisers; returns the summary."""
    train = records["train"]
    refs = element_references.fit_references(train.composition, train.energy)
    elements = np.flatnonzero(train.composition.any(axis=0))
    if free_atom_energies:
        refs = element_references.given_references(free_atom_energies, elements)
    described = {name: summary.describe(r, refs) for name, r in records.items()}
    spread = described["train"]["energy_after_references_std_eV"]
    element_references.write_references(folder / "element_references.npz", refs)
    element_references.write_normalizer(folder / "energy_normalizer.npz", spread or np.nan)
    element_references.write_normalizer(folder / "forces_normalizer.npz", train.force_rms)
    return {
        "out": str(out),
        "units": {"energy": "eV", "forces": "eV/Angstrom", "positions": "Angstrom"},
        "splits": described,
        "element_references_eV": {chemical_symbols[z]: float(refs[z]) for z in elements},
        "force_scale_eV_A": described["train"]["force_component_rms_eV_A"],
        "warnings": warnings,
        "notes": plan.notes,
    }


def _identity(arguments: dict[str, Any], sources: Sequence[Source]) -> str:
    """Hash of the arguments and of the files in their order; of those, names and contents count, folders do not."""
    named = {
        key: [Path(str(item)).name for item in value] if isinstance(value, list) else value
        for key, value in arguments.items()
    }
    files = [_file_identity(path) for source in sources for path in source.paths]
    return hashlib.sha256(json.dumps([named, files], sort_keys=True, default=str).encode()).hexdigest()


def _file_identity(path: Path) -> str:
    """The file's contents; of a large one its name, size and time, which are read at once."""
    if path.stat().st_size <= HASHED:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}"
