"""The command line of `piwsl prepare`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fairchem_piwsl.errors import UserError


def register(app: typer.Typer) -> None:
    """Add `prepare` to the `piwsl` command line."""
    app.command("prepare")(prepare_command)


def prepare_command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE...",
            help="Files that ASE reads or globs, file@::10 takes a slice; or a data set's name and its files.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="New folder for the data set.", show_default=False)] = ...,  # type: ignore[assignment]
    format: Annotated[
        str, typer.Option("--format", help="lmdb for fairchem 1.10, aselmdb for fairchem 2.")
    ] = "lmdb",
    train: Annotated[int | None, typer.Option(help="Training structures (default: all the rest).")] = None,
    val: Annotated[int | None, typer.Option(help="Validation structures (default: 100).")] = None,
    test: Annotated[int | None, typer.Option(help="Test structures (default: 1000).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    split: Annotated[
        str,
        typer.Option(help="shuffle, or blocks: of each trajectory the end is test, before it val."),
    ] = "shuffle",
    train_file: Annotated[list[str] | None, typer.Option(help="Given training split (repeatable).")] = None,
    val_file: Annotated[list[str] | None, typer.Option(help="Given validation split (repeatable).")] = None,
    test_file: Annotated[list[str] | None, typer.Option(help="Given test split (repeatable).")] = None,
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
    reference_file: Annotated[
        list[str] | None,
        typer.Option(
            help="Free atoms whose energies are the element references (repeatable; default: a fit)."
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
    from fairchem_piwsl.datasets.prepare import prepare
    from fairchem_piwsl.datasets.published.plans import NAMES, prepare_published

    own = {
        "--train-file": train_file,
        "--val-file": val_file,
        "--test-file": test_file,
        "--energy-key": energy_key,
        "--forces-key": forces_key,
        "--no-forces": no_forces,
        "--allow-missing": allow_missing,
        "--reference-file": reference_file,
        "--units": units != "eV",
        "--length-units": length_units != "Angstrom",
        "--force-units": force_units,
        "--split": split != "shuffle",
    }
    published = {"--molecule": molecule, "--level": level, "--published-split": published_split}
    common: dict[str, Any] = {
        **{"out": out, "train": train, "val": val, "test": test, "seed": seed},
        **{"format": format, "trust_units": trust_units, "overwrite": overwrite},
    }
    if files and files[0] in NAMES:
        _refuse(own, f"{files[0]} is read as published")
        prepare_published(
            files[0], files[1:], molecule=molecule, level=level, published_split=published_split, **common
        )
        return
    _refuse(published, f"the first argument names no data set ({', '.join(NAMES)})")
    prepare(
        files or [],
        split=split,
        train_files=train_file or [],
        val_files=val_file or [],
        test_files=test_file or [],
        units=units,
        length_units=length_units,
        force_units=force_units,
        energy_key=energy_key,
        forces_key=forces_key,
        no_forces=no_forces,
        reference_files=reference_file or [],
        allow_missing=allow_missing,
        allow_duplicates=allow_duplicates,
        **common,
    )


def _refuse(options: Mapping[str, object], reason: str) -> None:
    """Complain about an option that was given but has no meaning here."""
    given = [name for name, value in options.items() if value]
    if given:
        raise UserError(f"{given[0]} cannot be used here, since {reason}; leave it out.")
