"""The command line of `piwsl prepare`."""

import inspect
from collections.abc import Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from fairchem_piwsl.errors import UserError


def register(app: typer.Typer) -> None:
    """Add `prepare` to the `piwsl` command line."""
    app.command("prepare")(prepare_command)


def declared_options(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE...",
            help="Files that ASE reads or globs, file@::10 takes a slice; or a data set's name and its files.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="New folder for the data set.", show_default=False)] = ...,  # type: ignore[assignment]
    format: Annotated[str, typer.Option(help="lmdb for fairchem 1.10, aselmdb for fairchem 2.")] = "lmdb",
    train: Annotated[int | None, typer.Option(help="Training structures (default: all the rest).")] = None,
    val: Annotated[int | None, typer.Option(help="Validation structures (default: 100).")] = None,
    test: Annotated[int | None, typer.Option(help="Test structures (default: 1000).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    split: Annotated[
        str,
        typer.Option(help="shuffle, or blocks: of each trajectory the end is test, before it val."),
    ] = "shuffle",
    train_files: Annotated[
        list[str] | None, typer.Option("--train-file", help="Given training split (repeatable).")
    ] = None,
    val_files: Annotated[
        list[str] | None, typer.Option("--val-file", help="Given validation split (repeatable).")
    ] = None,
    test_files: Annotated[
        list[str] | None, typer.Option("--test-file", help="Given test split (repeatable).")
    ] = None,
    units: Annotated[
        str, typer.Option(help="Energy unit: eV, meV, kcal/mol, kJ/mol, Hartree, Rydberg.")
    ] = "eV",
    length_units: Annotated[
        str, typer.Option(help="Unit of positions and cells: Angstrom, Bohr, nm.")
    ] = "Angstrom",
    force_units: Annotated[
        str | None, typer.Option(help="Such as Hartree/Bohr (default: energy unit per length unit).")
    ] = None,
    energy_key: Annotated[str | None, typer.Option(help="Name of the energy in the files.")] = None,
    forces_key: Annotated[str | None, typer.Option(help="Name of the forces in the files.")] = None,
    no_forces: Annotated[bool, typer.Option("--no-forces", help="Leave forces out.")] = False,
    reference_files: Annotated[
        list[str] | None,
        typer.Option(
            "--reference-file",
            help="Free atoms whose energies are the element references (repeatable; default: a fit).",
        ),
    ] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Labels may be missing.")] = False,
    allow_duplicates: Annotated[
        bool, typer.Option("--allow-duplicates", help="Keep structures that two splits share.")
    ] = False,
    trust_units: Annotated[
        bool, typer.Option("--trust-units", help="Keep labels that look like another unit.")
    ] = False,
    molecule: Annotated[str | None, typer.Option(help="rmd17, md22, md17_ccsd_t: which molecule.")] = None,
    level: Annotated[str | None, typer.Option(help="ani1x: level of theory (default: wb97x_dz).")] = None,
    published_split: Annotated[str | None, typer.Option(help="rmd17: the authors' split, 01 to 05.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the data set in --out, if this command wrote it.")
    ] = False,
) -> None:
    """Turn labelled structures into train, val and test sets for fairchem, in eV and eV/Angstrom.

    Two forms: `piwsl prepare FILE... --out DIR` for files of your own, and
    `piwsl prepare ani1x|rmd17|md22|md17_ccsd_t|tio2|lmnto PATH... --out DIR` for the paper's data sets with the
    paper's splits.
    """


#: options for files of one's own, and for published data sets
OWN = (
    *("train_files", "val_files", "test_files", "energy_key", "forces_key", "no_forces", "allow_missing"),
    *("reference_files", "units", "length_units", "force_units", "split"),
)
PUBLISHED = ("molecule", "level", "published_split")


@wraps(declared_options)
def prepare_command(files: list[str] | None, **options: Any) -> None:
    """Give the options to the function behind the form that was used, by their names."""
    from fairchem_piwsl.datasets.prepare import prepare
    from fairchem_piwsl.datasets.published.plans import NAMES, prepare_published

    given = {name: value for name, value in options.items() if value is not None}
    if files and files[0] in NAMES:
        given = _without(OWN, given, f"{files[0]} is read as published")
        given.pop("allow_duplicates")  # published sets are taken as they are
        prepare_published(files[0], files[1:], **given)
    else:
        named = f"the first argument names no data set ({', '.join(NAMES)})"
        prepare(files or [], **_without(PUBLISHED, given, named))


def _without(names: Collection[str], options: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """The other options; complains where one of `names` was given, which has no meaning here."""
    usual = inspect.signature(declared_options).parameters
    for name in names:
        if options.get(name) and options[name] != usual[name].default:
            option = name.replace("_files", "_file").replace("_", "-")
            raise UserError(f"--{option} cannot be used here, since {reason}; leave it out.")
    return {name: value for name, value in options.items() if name not in names}
