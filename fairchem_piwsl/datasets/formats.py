"""The formats that `piwsl prepare` writes, and the config lines that go with each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_piwsl.datasets import fairchem2_config, summary
from fairchem_piwsl.datasets.ase_lmdb import AseLmdbWriter
from fairchem_piwsl.datasets.lmdb_writer import LmdbWriter
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.upstream import installed_version

#: eV; a coarser step of the energies in single precision is worth a word
COARSE = 1e-3


@dataclass(frozen=True)
class Format:
    """A writer, and config lines as functions of the output folder and the summary."""

    writer: type[LmdbWriter]
    #: of `dataset.yml`
    lines: Callable[[Path, Mapping[str, Any]], str]
    #: printed to be pasted
    pasted: Callable[[Path, Mapping[str, Any]], str]
    #: how to use the lines
    hint: Callable[[Path, Mapping[str, Any]], str]
    #: whether one batch may hold periodic and other structures
    mixes_boundaries: bool
    #: whether charge and spin are written
    keeps_states: bool


FORMATS = {
    "lmdb": Format(
        LmdbWriter,
        lambda out, result: summary.as_yaml(summary.dataset_block(out, result)),
        summary.config_lines,
        summary.usage,
        mixes_boundaries=False,
        keeps_states=False,
    ),
    "aselmdb": Format(
        AseLmdbWriter,
        fairchem2_config.config_lines,
        fairchem2_config.config_lines,
        lambda out, result: (
            f"Paste into a config (lines of {out}/dataset.yml), with `dataset: ${{train_dataset}}` and `dataset: "
            "${val_dataset}` in its data loaders and `tasks: ${tasks}` in its unit:"
        ),
        mixes_boundaries=True,
        keeps_states=True,
    ),
}


def format_of(name: str) -> Format:
    """The format of an option --format, if the installed fairchem can have it."""
    if name not in FORMATS:
        raise UserError(f"--format {name}: not known; choose one of {', '.join(FORMATS)}.")
    if name == "lmdb" and installed_version().startswith("2."):
        raise UserError(
            f"--format lmdb is for fairchem-core 1.10.0 and needs it, and {installed_version()} is installed here; "
            "give --format aselmdb, which it reads."
        )
    return FORMATS[name]


def rounding_notes(name: str, largest: float) -> list[str]:
    """A note where fairchem 2, which reads energies in single precision, rounds those up to `largest` (eV) much."""
    step = float(np.spacing(np.float32(largest))) if np.isfinite(largest) else 0.0
    if name != "aselmdb" or step <= COARSE:
        return []
    return [
        f"Energies of {largest:.0f} eV have steps of {step * 1e3:.1g} meV in single precision, in which fairchem 2 reads "
        "them: take energies less those of free atoms, where that matters."
    ]
