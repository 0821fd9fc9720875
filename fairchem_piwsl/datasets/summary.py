"""What was written, as numbers, as a table, and as config lines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase.data import chemical_symbols
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fairchem_piwsl.config import with_method
from fairchem_piwsl.datasets.records import Records
from fairchem_piwsl.units import KCAL_PER_MOL

OUTPUTS = {
    "energy": {"shape": 1, "level": "system", "prediction_dtype": "float32"},
    "forces": {
        "irrep_dim": 1,
        "level": "atom",
        "train_on_free_atoms": True,
        "eval_on_free_atoms": True,
        "prediction_dtype": "float32",
    },
}


def describe(records: Records, references: np.ndarray) -> dict[str, Any]:
    """Statistics of one split; energies in eV, forces in eV/Angstrom, distances in Angstrom."""
    energy = records.energy
    referenced = energy - records.composition @ references
    shortest = records.shortest[np.isfinite(records.shortest)]
    known = np.isfinite(energy)
    labelled = records.force_components == 3 * records.natoms
    return {
        "structures": len(records),
        "atoms": int(records.natoms.sum()),
        "atoms_per_structure": [int(records.natoms.min()), int(records.natoms.max())],
        "elements": [chemical_symbols[z] for z in np.flatnonzero(records.composition.any(axis=0))],
        "with_energy": int(known.sum()),
        "with_forces": int(labelled.sum()),
        "energy_eV": _range(energy[known]),
        "energy_after_references_eV": _range(referenced[known]),
        "energy_after_references_std_eV": _number(referenced[known].std() if known.any() else np.nan),
        "force_component_rms_eV_A": _number(records.force_rms),
        "force_component_max_eV_A": _number(
            np.nanmax(records.force_max) if records.force_components.any() else np.nan
        ),
        "shortest_distance_A": _number(shortest.min() if len(shortest) else np.nan),
        "periodic": int(records.pbc.any(axis=1).sum()),
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _range(values: np.ndarray) -> list[float] | None:
    return [float(values.min()), float(values.max())] if len(values) else None


def dataset_block(out: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """The `dataset:` block for an upstream config; paths as `out` was given.

    The normaliser of 1 kcal/mol lets network and losses work in kcal/mol, while predictions are in eV.
    """
    kcal = {"mean": 0.0, "stdev": KCAL_PER_MOL}
    block: dict[str, Any] = {
        "train": {
            "format": "lmdb",
            "src": str(out / "train" / "data.lmdb"),
            "transforms": {
                "element_references": {"energy": {"file": str(out / "element_references.npz")}},
                "normalizer": {"energy": dict(kcal), "forces": dict(kcal)},
            },
        }
    }
    for name in result["splits"]:
        if name != "train":
            block[name] = {"format": "lmdb", "src": str(out / name / "data.lmdb")}
    return {"dataset": block}


def config_lines(out: Path, result: Mapping[str, Any]) -> str:
    """YAML to paste into an upstream config: data set, outputs, metric, and the trainer with its weak losses."""
    block = {**dataset_block(out, result), "outputs": OUTPUTS}
    if has_energies_alone(result):
        block["evaluation_metrics"] = {"primary_metric": "energy_rmse"}
    return as_yaml(with_method(block, "auto"))


def usage(out: Path, result: Mapping[str, Any]) -> str:
    """How to train on a data set for fairchem 1.10; configs that choose by forces need another metric without them."""
    metric = " --evaluation_metrics.primary_metric=energy_rmse" * has_energies_alone(result)
    return f"Train any config on it with `--data {out}{metric}`, or paste into a config of your own:"


def has_energies_alone(result: Mapping[str, Any]) -> bool:
    """Whether no label of a force can choose a checkpoint."""
    return not result["splits"].get("val", result["splits"]["train"])["with_forces"]


def as_yaml(block: dict[str, Any]) -> str:
    return yaml.safe_dump(block, sort_keys=False)


def table(summary: dict[str, Any]) -> Table:
    """The summary as a table with a column for each split."""
    splits = summary["splits"]
    result = Table(title=f"{summary['out']} (eV, eV/Angstrom, Angstrom; forces by component)")
    result.add_column("")
    for name in splits:
        result.add_column(name, justify="right")
    rows = {
        "structures": lambda d: d["structures"],
        "atoms": lambda d: " to ".join(map(str, sorted(set(d["atoms_per_structure"])))),
        "elements": lambda d: " ".join(d["elements"]),
        "periodic": lambda d: d["periodic"],
        "with energy": lambda d: d["with_energy"],
        "with forces": lambda d: d["with_forces"],
        "energy min": lambda d: d["energy_eV"] and d["energy_eV"][0],
        "energy max": lambda d: d["energy_eV"] and d["energy_eV"][1],
        "energy - references, min": lambda d: (
            d["energy_after_references_eV"] and d["energy_after_references_eV"][0]
        ),
        "energy - references, max": lambda d: (
            d["energy_after_references_eV"] and d["energy_after_references_eV"][1]
        ),
        "energy - references, std": lambda d: d["energy_after_references_std_eV"],
        "force RMS": lambda d: d["force_component_rms_eV_A"],
        "force max": lambda d: d["force_component_max_eV_A"],
        "shortest distance": lambda d: d["shortest_distance_A"],
    }
    for label, value in rows.items():
        result.add_row(label, *(_shown(value(d)) for d in splits.values()))
    return result


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def show(summary: dict[str, Any], hint: str, lines: str) -> None:
    """Print table, warnings, and config lines with a hint on their use."""
    console = Console(markup=False, emoji=False)  # paths may hold brackets and colons
    console.print(table(summary))
    references = ", ".join(
        f"{symbol} {value:.4f}" for symbol, value in summary["element_references_eV"].items()
    )
    origin = "from --reference-file" if summary["arguments"].get("reference_files") else "fitted on train"
    console.print(f"Element references (eV, {origin}): {references}", soft_wrap=True)
    for note in summary.get("notes", []):
        console.print(Text("note:", "cyan"), note, soft_wrap=True)
    for warning in summary["warnings"]:
        console.print(Text("warning:", "yellow"), warning, soft_wrap=True)
    print(f"\n{hint}\n")
    print(lines)
