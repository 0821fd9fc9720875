"""Config lines for fairchem 2: data sets, and tasks with element references and scales."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ase.data import atomic_numbers

from fairchem_piwsl.datasets.ase_lmdb import AseLmdbWriter
from fairchem_piwsl.structures import STATES

_CORE = "fairchem.core."
_LOSS = _CORE + "modules.loss."
#: level, size and loss of each task; a weight of 30 for forces in eV/Angstrom beside 1 for energies in eV
_TASKS: dict[str, tuple[str, int, str, float]] = {
    "energy": ("system", 1, "MAELoss", 1.0),
    "forces": ("atom", 3, "L2NormLoss", 30.0),
}


def config_block(out: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """The keys `train_dataset`, `val_dataset` and `tasks` for a config of fairchem 2, from a summary."""
    name = dataset_name(out)
    splits = [split for split in ("train", "val") if split in result["splits"]]
    return {f"{split}_dataset": _dataset(name, split, out) for split in splits} | {
        "tasks": [_task(kind, name, result) for kind in _TASKS]
    }


def dataset_name(out: Path) -> str:
    """What tasks call the data set in the folder `out`: its name, without characters that configs take apart."""
    return re.sub(r"\W+", "_", out.resolve().name).strip("_") or "data"


def config_lines(out: Path, result: Mapping[str, Any]) -> str:
    """The block as YAML, its inner lists and dictionaries on one line each."""
    return yaml.safe_dump(config_block(out, result), sort_keys=False, default_flow_style=None, width=110)


def _dataset(name: str, split: str, out: Path) -> dict[str, Any]:
    return {
        "_target_": _CORE + "datasets.mt_concat_dataset.create_concat_dataset",
        "dataset_configs": {
            name: {
                "format": "ase_db",
                "splits": {split: {"src": str(out / split / AseLmdbWriter.file)}},
                "a2g_args": {"r_energy": True, "r_forces": True, "r_data_keys": list(STATES)},
                "transforms": {"common_transform": {"dataset_name": name}},
            }
        },
        "combined_dataset_config": {"sampling": {"type": "explicit", "ratios": {f"{name}.{split}": 1.0}}},
    }


def _task(kind: str, name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    level, size, loss, weight = _TASKS[kind]
    train = result["splits"]["train"]
    # one scale for both, which gradient forces need: the forces', without them the energies'
    rmsd = train["force_component_rms_eV_A"] or train["energy_after_references_std_eV"] or 1.0
    task = {
        "_target_": _CORE + "units.mlip_unit.mlip_unit.Task",
        "name": kind,
        "level": level,
        "property": kind,
        "datasets": [name],
        "out_spec": {"dim": [size], "dtype": "float32"},
        "metrics": ["mae"],
        "normalizer": {
            "_target_": _CORE + "modules.normalization.normalizer.Normalizer",
            "mean": 0.0,
            "rmsd": round(rmsd, 6),
        },
        "loss_fn": {
            "_target_": _LOSS + "DDPMTLoss",
            "loss_fn": {"_target_": _LOSS + loss},
            "coefficient": weight,
        },
    }
    if kind == "energy":
        task["element_references"] = {
            "_target_": _CORE + "modules.normalization.element_references.ElementReferences",
            "element_references": {
                "_target_": "torch.DoubleTensor",
                "_args_": [_references(result)],
            },
        }
    return task


def _references(result: Mapping[str, Any]) -> list[float]:
    """Energies in eV by atomic number, from 0 to the heaviest element of any split: upstream looks up all of them."""
    energies = {
        atomic_numbers[symbol]: round(energy, 6) for symbol, energy in result["element_references_eV"].items()
    }
    elements = {symbol for split in result["splits"].values() for symbol in split["elements"]}
    heaviest = max(atomic_numbers[symbol] for symbol in elements)
    return [energies.get(number, 0.0) for number in range(heaviest + 1)]
