"""Configs and data sets that no training can start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
import yaml
from ase.db import connect
from ase.io import write
from conftest import labelled_molecules, make_config, to_data, write_lmdb
from helpers_malformed import Case

from fairchem_piwsl.config import with_values

BASE = make_config(Path("{tiny_data}"), Path("runs"), piwsl={"c_pitc": 0.1})
#: what is replaced by this is left out
MISSING = object()
NORMALIZER = "dataset.train.transforms.normalizer"
OLD = {"loss_functions": MISSING, "evaluation_metrics": MISSING, "outputs": MISSING}


def changed(changes: Mapping[str, Any]) -> str:
    """A good config with the entries at dotted keys replaced, as YAML in which `{tiny_data}` may be filled in."""
    config = with_values(BASE, {key: value for key, value in changes.items() if value is not MISSING})
    for key in (key for key, value in changes.items() if value is MISSING):
        *path, last = key.split(".")
        block = config
        for name in path:
            block = block[int(name) if isinstance(block, list) else name]
        del block[last]
    text = yaml.safe_dump(config, sort_keys=False)
    return text.replace("{", "{{").replace("}", "}}").replace("{{tiny_data}}", "{tiny_data}")


def case(name: str, changes: Mapping[str, Any], key: str, remedy: str, **files: Any) -> Case:
    """A run of the changed config; the error names `key`."""
    return Case(
        name,
        "main.py --mode train --config-yml c.yml --cpu",
        (key,),
        remedy,
        files={"c.yml": changed(changes), **files.pop("files", {})},
        uses=("tiny_data",),
    )


def values(key: str, remedy: str, *bad: Any) -> list[Case]:
    """One case for each value that cannot stand at a key."""
    return [case(f"{key}={str(value)[:24]}", {key: value}, key, remedy) for value in bad]


def misspelt(key: str, meant: str, value: Any = 1) -> Case:
    """A key that nothing reads."""
    return case(f"misspelt-{key}", {key: value}, f"{key} is not a setting", f"did you mean '{meant}'")


def record(change: Callable[[Any], Any] = lambda data: None, index: int = 3) -> Callable[[Path], object]:
    """Writes a data set in which one record is changed, or replaced by what `change` returns."""

    def make(path: Path) -> None:
        records: list[Any] = [to_data(atoms, i) for i, atoms in enumerate(labelled_molecules(6))]
        records[index] = change(records[index]) or records[index]
        write_lmdb(path, records)

    return make


def bad_record(
    name: str, change: Callable[[Any], Any], words: str, split: str = "train", remedy: str = "piwsl prepare"
) -> Case:
    source = {f"dataset.{split}.src": "bad.lmdb"}
    found = case(
        f"record-{name}-in-{split}",
        source,
        f"structure 3 {words}",
        remedy,
        files={"bad.lmdb": record(change)},
    )
    return Case(**{**vars(found), "names": (f"dataset.{split}.src: bad.lmdb", *found.names)})


def without(*names: str) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for name in names:
            del data[name]

    return change


def with_entry(**entries: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for name, value in entries.items():
            data[name] = value

    return change


def nan_position(data: Any) -> None:
    data.pos[0] = torch.nan


def scaled_positions(data: Any) -> None:
    data.pos = data.pos * 0 + torch.arange(len(data.pos))[:, None] * 9.0
    data.cell = data.cell * 10


def ase_database(path: Path) -> None:
    with connect(str(path)) as database:
        for atoms in labelled_molecules(4):
            database.write(atoms)


def extxyz_folder(path: Path) -> None:
    path.mkdir()
    write(path / "a.extxyz", labelled_molecules(4))


def no_length(path: Path) -> None:
    environment = lmdb.open(str(path), map_size=2**20, subdir=False)
    with environment.begin(write=True) as transaction:
        transaction.put(b"0", b"no pickle")
    environment.close()


MISSPELT = [
    misspelt("optm", "optim", {"lr_initial": 1}),
    misspelt("modle", "model", {"name": "painn"}),
    misspelt("outptus", "outputs", {}),
    misspelt("loss_function", "loss_functions", []),
    misspelt("evaluation_metric", "evaluation_metrics", {}),
    misspelt("optim.finetune_form", "finetune_from", "a.pt"),
    misspelt("optim.batchsize", "batch_size"),
    case("misspelt-optim.lr", {"optim.lr": 0.1}, "optim.lr is not a setting", "lr_initial"),
    misspelt("optim.clip_grad_nrom", "clip_grad_norm"),
    misspelt("optim.optimizer_params.weight_deacy", "weight_decay"),
    misspelt("optim.piwsl.c_ptic", "c_pitc"),
    misspelt("dataset.train.sources", "src", "a.lmdb"),
    misspelt("dataset.trian", "train", {"src": "a"}),
    misspelt("dataset.train.transform", "transforms", {}),
    misspelt("dataset.train.transforms.normaliser", "normalizer", {}),
    misspelt(f"{NORMALIZER}.enrgy", "energy", {"mean": 0.0, "stdev": 1.0}),
    misspelt(f"{NORMALIZER}.energy.std", "stdev", 1.0),
    misspelt("dataset.train.a2g_args", "r_energy", {"r_enrgy": True}),
    misspelt("outputs.energy.levle", "level", "system"),
    misspelt("evaluation_metrics.primary", "primary_metric", "forces_mae"),
    misspelt("evaluation_metrics.metrics.force", "forces", ["mae"]),
    misspelt("loss_functions.0.energy.coeficient", "coefficient"),
    misspelt("loss_functions.0.enrgy", "energy", {"fn": "mae", "coefficient": 1}),
    misspelt("model.hidden_chanels", "hidden_channels", 16),
    misspelt("model.cutof", "cutoff", 5.0),
    misspelt("task.prediction_type", "prediction_dtype", "float32"),
    misspelt("slurm.max_timeout", "max_timeouts", 3),
    case("misspelt-logger-key", {"logger": {"name": "wandb", "projekt": "x"}}, "logger.projekt", "project"),
    case("foreign-block", {"weather": {"rain": True}}, "weather is not a setting", "known settings"),
    case(
        "misspelt-in-inner-model",
        {"model": {"name": "gradient_forces", "otf_graph": True, "model": {"name": "painn", "num_layer": 2}}},
        "model.model.num_layer",
        "did you mean 'num_layers'",
    ),
    case(
        "misspelt-in-a-head",
        {
            "model": {
                "name": "hydra",
                "backbone": {"model": "painn_backbone", "cutof": 5.0},
                "heads": {"energy": {"module": "painn_energy_head"}},
            }
        },
        "model.backbone.cutof",
        "did you mean 'cutoff'",
    ),
]
MISSPELT = [
    Case(**{**vars(c), "names": ("dataset.train.a2g_args.r_enrgy",)}) if c.name.endswith("a2g_args") else c
    for c in MISSPELT
]

NUMBERS = [
    *values("optim.batch_size", ">= 1", 0, -4, 2.5, "four", None, [8], True),
    *values("optim.eval_batch_size", ">= 1", 0),
    *values("optim.eval_every", ">= 1", 0, -5, None, "often"),
    *values("optim.max_epochs", ">= 1", 0, -1, 1.5, "ten"),
    *values("optim.num_workers", ">= 0", -1, 0.5),
    *values("optim.checkpoint_every", "-1 for the end", 0, -2),
    *values("optim.lr_initial", ">= 0", -0.1, float("nan"), float("inf"), "fast"),
    *values("optim.lr_initial", "without", "1.0e-3"),
    *values("optim.clip_grad_norm", ">= 0", -10, float("nan"), "ten"),
    *values("optim.ema_decay", "[0, 1)", 1.0, -0.1, float("nan")),
    *values("optim.weight_decay", ">= 0", -0.01),
    *values("optim.piwsl.c_pitc", ">= 0", -1.0, float("nan")),
    *values("optim.piwsl.eps_max", ">= 0", -0.1, float("inf")),
    *values("loss_functions.0.energy.coefficient", ">= 0", -1, float("nan"), "one"),
    *values("model.cutoff", "> 0", 0, -5.0, float("nan"), "far"),
    *values("model.num_rbf", ">= 1", 0, -3, 1.5),
    *values("model.hidden_channels", ">= 1", 0, "16"),
    *values("model.max_neighbors", ">= 1", 0),
    *values("model.regress_forces", "true or false", "yes", 1),
    *values(f"{NORMALIZER}.energy.stdev", "> 0", 0.0, -1.0, float("nan")),
    *values("dataset.train.first_n", ">= 1", 0, -3),
    *values("print_every", ">= 1", 0)[:0],
    case("T_max=0", {"optim.scheduler": "CosineAnnealingLR", "optim.T_max": 0}, "optim.T_max", ">= 1"),
    case("T_max=1.5", {"optim.scheduler": "CosineAnnealingLR", "optim.T_max": 1.5}, "optim.T_max", ">= 1"),
    case("factor=2", {"optim.scheduler": "ReduceLROnPlateau", "optim.factor": 2.0}, "optim.factor", "(0, 1)"),
    case("gamma=-1", {"optim.scheduler": "ExponentialLR", "optim.gamma": -1.0}, "optim.gamma", "> 0"),
]

NAMES = [
    *values("optim.optimizer", "did you mean 'AdamW'", "AdamWW"),
    *values("optim.optimizer", "one of", 3, "LBFGS"),
    *values("optim.scheduler", "did you mean 'CosineAnnealingLR'", "CosineAnealingLR"),
    *values("optim.scheduler", "in quotes", None),
    *values("evaluation_metrics.metrics.energy", "did you mean 'mae'", ["maee"]),
    *values("evaluation_metrics.primary_metric", "choose one", "forces_maee"),
    *values("loss_functions.0.energy.fn", "did you mean 'mae'", "mea"),
    *values("loss_functions.0.energy.fn", "use mae", "l2mae"),
    *values("loss_functions.1.forces.fn", "use l2mae", "per_atom_mae"),
    *values("loss_functions.0.energy.reduction", "one of mean, sum", "median"),
    *values("logger", "did you mean 'tensorboard'", "tensorbord"),
    *values("logger", "known: ", 3),
    *values("trainer", "did you mean 'piwsl_forces'", "piwsl_force"),
    *values("trainer", "known: ", "no.such.Class", 5),
    *values("model.name", "did you mean 'painn'", "pain"),
    *values("model.name", "known: ", "zzzzz", None),
    *values("dataset.train.format", "did you mean 'lmdb'", "lmbd"),
    *values("outputs.energy.level", "one of system, atom", "molecule"),
    *values("outputs.energy.prediction_dtype", "one of float16", "double"),
]

MISSING_KEYS = [
    case(f"missing-{key}", {key: MISSING}, f"{key} is missing", remedy)
    for key, remedy in {
        "model": "add it",
        "dataset": "add it",
        "optim": "add it",
        "outputs": "outputs: ",
        "loss_functions": "add a list",
        "model.name": "add it",
        "optim.max_epochs": "add it",
        "optim.lr_initial": "add it",
        "optim.num_workers": "add it",
        "optim.scheduler": "'Null'",
        "loss_functions.0.energy.fn": "add it",
        "loss_functions.0.energy.coefficient": "add it",
        "outputs.energy.level": "add it",
        "outputs.forces.train_on_free_atoms": "true",
        "dataset.train.src": "piwsl prepare",
    }.items()
] + [
    case(
        "missing-T_max",
        {"trainer": "ocp", "optim.scheduler": "CosineAnnealingLR", "optim.piwsl": MISSING},
        "optim.T_max is missing",
        "add it",
    ),
    case("missing-lambda", {"optim.scheduler": "LambdaLR"}, "optim.scheduler_params is missing", "add it"),
    case(
        "missing-in-lambda",
        {"optim.scheduler": "LambdaLR", "optim.scheduler_params": {"lambda_type": "cosine"}},
        "optim.scheduler_params.warmup_epochs is missing",
        "add it",
    ),
    case("missing-stdev", {f"{NORMALIZER}.energy": {"mean": 0.0}}, "normalizer.energy", "stdev"),
    case(
        "plateau-without-validation",
        {"optim.scheduler": "ReduceLROnPlateau", "dataset.val": MISSING},
        "ReduceLROnPlateau",
        "add dataset.val",
    ),
    case(
        "milestones-in-epochs",
        {
            "optim.scheduler": MISSING, "optim.lr_milestones": [5, 8], "optim.lr_gamma": 0.1,
            "optim.warmup_steps": 10, "optim.warmup_factor": 0.2,
        },
        "optim.lr_milestones",
        "in steps",
    ),
    case("old-layout-without-format", {**OLD, "task": {"dataset": "lmbd"}}, "loss_functions", "task.dataset"),
    case("old-layout-misspelt", {**OLD, "task": {"dataset": "lmdb"}, "optim.force_coeficient": 10}, "optim.force_coeficient", "force_coefficient"),
]  # fmt: skip

BLOCKS = [
    *values("model", "block of settings", "painn", ["painn"], None),
    *values("optim", "block of settings", 3, []),
    *values("optim.piwsl", "block of settings", [1], "on"),
    *values("dataset", "block of settings", "data/train", 3),
    *values("outputs", "block of settings", ["energy"]),
    *values("outputs.energy", "block of settings", "system"),
    *values("loss_functions", "must be a", "mae", 3),
    *values("loss_functions.0", "block of settings", "energy"),
    *values("evaluation_metrics", "block of settings", ["mae"]),
    *values("evaluation_metrics.metrics.energy", "a list", "mae"),
    *values("dataset.train.transforms", "block of settings", None, []),
    case("balance-without-forces", {"outputs.forces": MISSING, "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}], "optim.piwsl": {"energy_share": 0.2}}, "'outputs' has no 'forces'", "add outputs.forces"),
    case("weak-terms-without-forces", {"outputs.forces": MISSING, "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}]}, "'outputs' has no 'forces'", "add outputs.forces"),
    case("loss-without-output", {"optim.piwsl": MISSING, "outputs.forces": MISSING}, "forces", "add outputs.forces"),
    case("forces-not-predicted", {"model.regress_forces": False}, "outputs.forces", "model.regress_forces: true"),
    case("no-pbc-without-pyg-lib", {"model.use_pbc": False}, "radius_graph", "model.use_pbc: true"),
    case("output-no-model-has", {"outputs.stress": {"level": "system"}}, "no stress", "correct the block"),
    case("forces-of-a-system", {"outputs.forces.level": "system"}, "outputs.forces.level", "set 'atom'"),
    case("metric-of-positions", {"evaluation_metrics.metrics.misc": ["average_distance_within_threshold"]}, "evaluation_metrics.metrics.misc", "within_threshold"),
    case("metric-of-one-output", {"evaluation_metrics.metrics.misc": ["per_atom_mae"]}, "evaluation_metrics.metrics.misc", "within_threshold"),
    case("model-refuses-itself", {"model": {"name": "escn", "otf_graph": True, "use_pbc": True, "regress_forces": True, "lmax_list": [2], "mmax_list": [1], "distance_function": "gausian"}}, "model 'escn' cannot be built", "correct the block"),
]  # fmt: skip

FILES = [
    case("no-checkpoint", {"optim.finetune_from": "no.pt"}, "no.pt does not exist", "optim.finetune_from"),
    *[
        case(f"no-file-of-{kind}", {f"dataset.train.transforms.{kind}.energy": {"file": "no.npz"}}, f"{kind}.energy.file: no.npz", "piwsl prepare")
        for kind in ("normalizer", "element_references")
    ],
    case("empty-references", {"dataset.train.transforms.element_references.energy": {"file": "e.npz"}}, "e.npz cannot be read", "piwsl prepare", files={"e.npz": b""}),
    case("foreign-references", {"dataset.train.transforms.element_references.energy": {"file": "e.npz"}}, "e.npz has no finite", "piwsl prepare", files={"e.npz": lambda path: np.savez(path, a=np.zeros(3))}),
    case("text-as-references", {"dataset.train.transforms.element_references.energy": {"file": "e.txt"}}, "e.txt is neither", "piwsl prepare", files={"e.txt": "1 -13.6"}),
    case("train-as-val", {"dataset.val.src": "{tiny_data}/train.lmdb"}, "dataset.val.src", "of its own"),
    case("train-as-test", {"dataset.test.src": "{tiny_data}/./train.lmdb"}, "dataset.test.src", "of its own"),
    case("no-data", {"dataset.train.src": "no.lmdb"}, "dataset.train.src: no.lmdb", "piwsl prepare"),
    case("too-many-asked", {"dataset.train.first_n": 500}, "dataset.train.src", "lower dataset.train.first_n"),
    case("folder-as-data", {"dataset.train.src": "."}, "dataset.train.src: .", "piwsl prepare"),
    case("text-as-data", {"dataset.train.src": "a.lmdb"}, "dataset.train.src: a.lmdb", "piwsl prepare", files={"a.lmdb": "text\n" * 5000}),
    case("empty-data", {"dataset.train.src": "a.lmdb"}, "a.lmdb holds no structures", "piwsl prepare", files={"a.lmdb": lambda path: write_lmdb(path, [])}),
    case("no-pickles", {"dataset.train.src": "a.lmdb"}, "structure 0 cannot be read", "piwsl prepare", files={"a.lmdb": no_length}),
    case("no-labels", {"dataset.train.src": "a.lmdb", "dataset.train.key_mapping": {"y": "energy"}}, "none of the labels", "key_mapping", files={"a.lmdb": lambda path: write_lmdb(path, [to_data(a, i, False, False) for i, a in enumerate(labelled_molecules(3))])}),
    *[
        case(f"labels-not-asked-{kind}", {"dataset.train": {"format": kind, "src": "a.db", **more}, "dataset.val.format": "lmdb"}, "dataset.train.a2g_args.r_energy", "r_forces: true", files={"a.db": maker})
        for kind, maker, more in (("ase_db", ase_database, {}), ("ase_read", extxyz_folder, {}), ("ase_read_multi", extxyz_folder, {"pattern": "*.extxyz"}))
    ],
    case("forces-not-asked", {"dataset.train": {"format": "ase_db", "src": "a.db", "a2g_args": {"r_energy": True}}, "dataset.val.format": "lmdb"}, "dataset.train.a2g_args.r_forces", "r_forces: true", files={"a.db": ase_database}),
    case("no-ase-files", {"dataset.train": {"format": "ase_read_multi", "src": "a", "pattern": "*.cif", "a2g_args": {"r_energy": True, "r_forces": True}}, "dataset.val.format": "lmdb"}, "dataset.train.src: a cannot be read", "piwsl prepare", files={"a": extxyz_folder}),
]  # fmt: skip

RECORDS = [
    bad_record("dict", lambda data: {"pos": 1}, "cannot be read"),
    bad_record("text", lambda data: "structure", "cannot be read"),
    bad_record("no-positions", without("pos"), "is no structure"),
    bad_record("flat-positions", with_entry(pos=torch.zeros(9)), "has positions of shape"),
    bad_record("nan-positions", nan_position, "has positions"),
    bad_record("no-cell", without("cell"), "lacks 'cell'"),
    bad_record("flat-cell", with_entry(cell=torch.eye(3)), "has a 'cell'"),
    bad_record("zero-cell", with_entry(cell=torch.zeros(1, 3, 3)), "has a 'cell'"),
    bad_record("no-fixed", without("fixed"), "lacks 'fixed'"),
    bad_record("short-fixed", with_entry(fixed=torch.zeros(1)), "has 'fixed'"),
    bad_record("no-natoms", without("natoms"), "lacks the number"),
    bad_record("wrong-natoms", with_entry(natoms=2), "has natoms 2"),
    bad_record("no-numbers", without("atomic_numbers"), "has no atomic numbers"),
    bad_record("number-zero", with_entry(atomic_numbers=torch.zeros(6)), "has atomic numbers"),
    bad_record("number-120", with_entry(atomic_numbers=torch.full((6,), 120)), "has atomic numbers"),
    bad_record("short-forces", with_entry(forces=torch.zeros(2, 3)), "has 'forces' of shape"),
    bad_record("flat-forces", with_entry(forces=torch.zeros(18)), "has 'forces' of shape"),
    bad_record("two-energies", with_entry(energy=torch.zeros(2)), "has 'energy' of shape"),
    bad_record("infinite-energy", with_entry(energy=torch.tensor(float("inf"))), "has an infinite label"),
    bad_record("no-neighbours", scaled_positions, "has no neighbours"),
    bad_record("no-cell", without("cell"), "lacks 'cell'", split="val"),
    bad_record("short-forces", with_entry(forces=torch.zeros(2, 3)), "has 'forces' of shape", split="test"),
]

#: the same check before jobs are sent, before ranks start, and for several configs and seeds
COMMANDS = [
    Case(
        f"{name}-{key}",
        f"main.py --mode train --config-yml c.yml --cpu {options}",
        (key,),
        remedy,
        files={"c.yml": changed({key: value}), "good.yml": changed({})},
        uses=("tiny_data",),
    )
    for name, options in {
        "submit": "--submit",
        "ranks": "--num-gpus 2",
        "seeds": "--seeds 1 2",
        "several": "--config-yml good.yml c.yml",
    }.items()
    for key, value, remedy in (
        ("optim.finetune_form", "a.pt", "did you mean 'finetune_from'"),
        ("dataset.train.src", "no.lmdb", "piwsl prepare"),
    )
]

SWEEP = {
    "study": "toy",
    "base": "c.yml",
    "space": {"optim.lr_initial": {"type": "float", "low": 0.001, "high": 0.1}},
    "objective": "forces_mae",
    "trials": 2,
}
SWEEPS = [
    Case(
        f"sweep-{name}",
        "piwsl sweep start sweep.yml --folder out",
        names,
        remedy,
        files={
            "c.yml": changed(changes),
            "sweep.yml": yaml.safe_dump({**SWEEP, **entries}).replace("{", "{{").replace("}", "}}"),
        },
        uses=("tiny_data",),
    )
    for name, changes, entries, names, remedy in (
        ("misspelt", {"optim.finetune_form": "a.pt"}, {}, ("optim.finetune_form",), "finetune_from"),
        ("no-data", {"dataset.train.src": "no.lmdb"}, {}, ("no.lmdb",), "piwsl prepare"),
        (
            "bound",
            {},
            {"space": {"optim.batch_size": {"type": "int", "low": 0, "high": 8}}},
            ("space, at", "optim.batch_size"),
            ">= 1",
        ),
    )
]

CASES = [*MISSPELT, *NUMBERS, *NAMES, *MISSING_KEYS, *BLOCKS, *FILES, *RECORDS, *COMMANDS, *SWEEPS]
