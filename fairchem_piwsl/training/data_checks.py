"""Data sets before a run: readable, separate for training and validation, labelled, and fit for the model."""

import copy
import inspect
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from fairchem.core.common.registry import registry
from fairchem.core.datasets import LmdbDataset, data_list_collater
from fairchem.core.datasets.ase_datasets import AseAtomsDataset
from fairchem.core.datasets.base_dataset import create_dataset
from torch import nn
from torch_geometric.data import Data

from fairchem_piwsl.datasets.lmdb_checks import check_complete
from fairchem_piwsl.datasets.splits import SPLITS, evenly
from fairchem_piwsl.errors import UserError, in_words
from fairchem_piwsl.training.random_states import random_state, set_random_state

LABELS = ("energy", "forces")


def by_split(dataset: Any) -> dict[str, Any]:
    """The block `dataset` of a config by the names of its splits, whose order is enough where it is a list."""
    return dict(zip(SPLITS, dataset, strict=False)) if isinstance(dataset, list) else dict(dataset or {})


def splits(dataset: Any) -> dict[str, dict[str, Any]]:
    """What upstream reads each split with: the settings of `train`, and its own before them."""
    dataset = by_split(dataset)
    own = {name: dict(dataset.get(name) or {}) for name in SPLITS}
    return {
        name: {**own["train"], **block} if block.get("use_train_settings", True) else block
        for name, block in own.items()
        if "src" in block
    }


def check_datasets(dataset: Any, outputs: Mapping[str, Any], model: nn.Module) -> dict[str, set[str]]:
    """Look at each split; returns which labels it has at all.

    Args:
        dataset: the block of a config.
        outputs: the block of a config; `energy` and `forces` are looked for where they are outputs.
        model: as it will be trained.

    Raises:
        UserError: names the split with its file, the structure, and the remedy.
    """
    found = splits(dataset)
    for name, split in found.items():
        _check_sources(name, split)
        if name != "train" and _same(split, found.get("train", {})):
            raise UserError(
                f"dataset.{name}.src: {split['src']} is the training set; give it structures of its own, as "
                "`piwsl prepare` does."
            )
    wanted = [name for name in LABELS if name in outputs]
    labels, opened = {}, []
    try:
        for name, split in found.items():
            where = f"dataset.{name}.src: {split['src']}"
            if name == "train":
                _check_label_arguments(split, wanted)
            opened.append(_open(where, name, split))  # all at once, as in training
            labels[name] = _look_through(where, opened[-1], outputs, wanted, model)
        if opened:
            _try(model, opened[0][0], outputs)
    finally:
        for data in opened:
            close(data)
    if wanted and "train" in labels and not labels["train"]:
        raise UserError(
            f"dataset.train.src: {found['train']['src']} has none of the labels {', '.join(wanted)}; name them "
            "with dataset.train.key_mapping (e.g. {y: energy, force: forces}) or make the data set again with "
            "`piwsl prepare`."
        )
    if "forces" in wanted and "forces" not in labels.get("train", wanted):
        logging.info("The training set has no force labels: the supervised force loss is zero.")
    return labels


def _check_sources(name: str, split: Mapping[str, Any]) -> None:
    for path in split["src"] if isinstance(split["src"], list) else [split["src"]]:
        by_address = split.get("format") == "ase_db" and any(sign in str(path) for sign in "*?[:")
        if not by_address and not Path(path).exists():
            raise UserError(
                f"dataset.{name}.src: {path} does not exist; make it with `piwsl prepare`, or correct the path "
                "(it counts from the folder of the command)."
            )


def _same(split: Mapping[str, Any], train: Mapping[str, Any]) -> bool:
    """Whether two splits read the same structures."""

    def source(block: Mapping[str, Any]) -> dict[str, Any]:
        paths = block.get("src", [])
        resolved = [Path(p).resolve() for p in (paths if isinstance(paths, list) else [paths])]
        ignored = ("src", "transforms", "key_mapping", "use_train_settings")
        return {**{key: value for key, value in block.items() if key not in ignored}, "src": resolved}

    return source(split) == source(train)


def _check_label_arguments(split: Mapping[str, Any], wanted: list[str]) -> None:
    """ASE formats read labels on request only; without them every loss is zero."""
    kind = registry.get_dataset_class(split.get("format", "lmdb"))
    if not issubclass(kind, AseAtomsDataset):
        return
    given = split.get("a2g_args") or {}
    for name in wanted:
        if f"r_{name}" not in given and name not in (split.get("key_mapping") or {}).values():
            raise UserError(
                f"dataset.train.a2g_args.r_{name} is missing, so that no {name} would be read; add "
                f"`a2g_args: {{{', '.join(f'r_{label}: true' for label in wanted)}}}` to dataset.train (false "
                "trains without these labels)."
            )


def _open(where: str, name: str, split: Mapping[str, Any]) -> Any:
    settings = copy.deepcopy({key: value for key, value in split.items() if key != "transforms"})
    own = f"{name}_split_settings"
    if own in settings:
        settings["splits"] = {name: settings.pop(own)}
    try:
        if issubclass(registry.get_dataset_class(settings.get("format", "lmdb")), LmdbDataset):
            check_complete(settings["src"])
        data = create_dataset(settings, name)
    except Exception as error:  # of any reader: LMDB, ASE and its file formats
        kind = settings.get("format", "lmdb")
        asked = "first_n or sample_n" in str(error)  # more than there is
        remedy = (
            f"lower dataset.{name}.first_n or sample_n" if asked else "make it again with `piwsl prepare`"
        )
        raise UserError(
            f"{where} cannot be read as {'LMDB' if 'lmdb' in kind else kind} ({reason(error)}); {remedy}."
        ) from None
    if len(data) == 0:
        raise UserError(f"{where} holds no structures; make it again with `piwsl prepare`.")
    return data


def _look_through(
    where: str, data: Any, outputs: Mapping[str, Any], wanted: list[str], model: nn.Module
) -> set[str]:
    """Check a sample of structures; returns the labels that any of them has."""
    labels: set[str] = set()
    for place in evenly(len(data)):
        which = f"{where}: structure {data.indices[place]}"
        try:
            structure = data[place]
        except Exception as error:  # of unpickling what is no structure, of ASE's readers and calculators
            raise UserError(
                f"{which} cannot be read ({reason(error)}); make the data set again with `piwsl prepare`."
            ) from None
        for problem in problems(structure, outputs, model):
            raise UserError(f"{which} {problem}; make the data set again with `piwsl prepare`.")
        labels |= {name for name in wanted if _is_label(structure.get(name))}
    return labels


def _is_label(value: Any) -> bool:
    return value is not None and not bool(torch.as_tensor(value).isnan().any())


def close(dataset: Any) -> None:
    """Close the LMDBs of a data set or subset: a process cannot open the same file a second time."""
    while dataset is not None:
        for environment in (getattr(dataset, "env", None), *getattr(dataset, "envs", ())):
            if environment is not None:
                environment.close()
        dataset = getattr(dataset, "dataset", None)  # of a subset


def problems(structure: Any, outputs: Mapping[str, Any], model: nn.Module) -> Iterator[str]:
    """What is wrong with a record of a data set, most basic first; each completes "structure 3 ..."."""
    if not isinstance(structure, Data) or structure.get("pos") is None:
        yield "is no structure, for it has no positions 'pos'"
        return
    shape, count = tuple(structure.pos.shape), len(structure.pos)
    if shape != (count, 3) or not count or not structure.pos.isfinite().all():
        yield f"has positions of shape {shape} that are not finite numbers [N, 3]"
        return
    yield from _missing(structure, outputs, model)
    numbers = structure.get("atomic_numbers")
    if numbers is None or tuple(torch.as_tensor(numbers).shape) != (count,):
        yield f"has no atomic numbers [N] for its {count} atoms"
        return
    elements = attribute(model, "max_num_elements", 118)
    if not bool(((numbers >= 1) & (numbers <= 118) & (numbers == numbers.round())).all()):
        yield f"has atomic numbers that no element has ({float(numbers.min()):g} to {float(numbers.max()):g})"
    elif int(numbers.max()) > elements:
        yield f"has the atomic number {int(numbers.max())}, beyond model.max_num_elements {elements}"
    if int(structure.natoms) != count:
        yield f"has natoms {int(structure.natoms)} and positions of {count} atoms"
    yield from _bad_labels(structure, outputs, count)
    if attribute(model, "otf_graph", True) and not has_neighbours(structure, attribute(model, "cutoff", 6.0)):
        why = _fails_alone(model, structure)
        if why:
            yield f"has no neighbours within model.cutoff, and this model needs some ({why})"


def _missing(structure: Data, outputs: Mapping[str, Any], model: nn.Module) -> Iterator[str]:
    """What upstream reads from every record."""
    needed = {"natoms": "the number of its atoms 'natoms'"}
    if any(block.get("level") == "atom" for block in outputs.values()):
        needed["fixed"] = "'fixed' (0 for free atoms, 1 for fixed ones)"
    if attribute(model, "use_pbc", True):
        needed["cell"] = "'cell'"
    if not attribute(model, "otf_graph", True):
        needed["edge_index"] = "a stored neighbour list (model.otf_graph: true makes them in training)"
    for key, words in needed.items():
        if structure.get(key) is None:
            yield f"lacks {words}"
    cell, fixed, count = structure.get("cell"), structure.get("fixed"), len(structure.pos)
    if "cell" in needed and cell is not None:
        wrong_shape = tuple(torch.as_tensor(cell).shape) != (1, 3, 3)
        if wrong_shape or not cell.isfinite().all() or float(torch.linalg.det(cell[0].double()).abs()) < 1e-6:
            yield "has a 'cell' that is no matrix [1, 3, 3] with a volume"
    if "fixed" in needed and fixed is not None and tuple(torch.as_tensor(fixed).shape) != (count,):
        yield f"has 'fixed' of another shape than one number for each of {count} atoms"


def _bad_labels(structure: Data, outputs: Mapping[str, Any], count: int) -> Iterator[str]:
    shapes = {"energy": 1, "forces": 3 * count}
    for name, size in shapes.items():
        value = structure.get(name)
        if value is None or name not in outputs:
            continue
        label = torch.as_tensor(value)
        if label.numel() != size or (name == "forces" and tuple(label.shape) != (count, 3)):
            yield f"has '{name}' of shape {list(label.shape)} for {count} atoms"
        elif label.isinf().any():
            yield f"has an infinite label '{name}'"


def has_neighbours(structure: Data, cutoff: float) -> bool:
    """Whether any two atoms, images included, are closer than `cutoff` (Angstrom)."""
    positions = structure.pos.double()
    if len(positions) > 1 and bool((torch.pdist(positions) < cutoff).any()):
        return True
    cell = structure.get("cell")
    if cell is None:
        return False
    atoms = Atoms(
        positions=positions.numpy(), numbers=np.ones(len(positions)), cell=cell[0].numpy(), pbc=True
    )
    return len(neighbor_list("i", atoms, cutoff)) > 0


def _try(model: nn.Module, structure: Data, outputs: Mapping[str, Any]) -> None:
    """Evaluate the model once: what it cannot do has to show before a run."""
    why = _fails_alone(model, structure, outputs)
    if why:
        remedy = (
            "set model.use_pbc: true" if "radius_graph" in why else "correct the block 'model', or 'outputs'"
        )
        raise UserError(f"the model cannot be evaluated on the first structure ({why}); {remedy}.")


def _fails_alone(model: nn.Module, structure: Data, outputs: Mapping[str, Any] | None = None) -> str | None:
    """Why the model cannot be evaluated on a batch of this structure, or lacks an output; None where it can."""
    state, training = random_state(), model.training
    try:
        with torch.no_grad():
            batch = data_list_collater([structure.clone()], otf_graph=attribute(model, "otf_graph", True))
            found = model.eval()(batch)
    except Exception as error:  # whatever the model's code makes of it
        return reason(error)
    finally:
        model.train(training)
        set_random_state(state)
    for name, output in (outputs or {}).items():
        if name not in found and "decomposition" not in output:
            return f"it has the outputs {', '.join(found)}, no {name}"
        head = found.get(name)
        if isinstance(head, Mapping) and output.get("property") not in head:
            return f"outputs.{name}.property is none of the outputs {', '.join(head)} of its head"
    return None


def attribute(model: nn.Module, name: str, default: Any) -> Any:
    """A setting of a model, or of the first of its parts that has it."""
    values = (getattr(module, name) for module in model.modules() if hasattr(module, name))
    return next((value for value in values if value is not None and not inspect.ismethod(value)), default)


def reason(error: BaseException) -> str:
    """What an error of somebody else's code says, for the middle of a sentence."""
    return in_words(f"{type(error).__name__}: {error}")
