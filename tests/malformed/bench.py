"""What `piwsl bench` cannot measure: nothing is written, and no step is made before it says so."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conftest import labelled_molecules, to_data, write_lmdb
from helpers_malformed import Case, Content
from malformed.training import MISSING, changed

BENCH = "piwsl bench --cpu --config-yml c.yml"
NAN, INFINITE = float("nan"), float("inf")

#: values of `optim.piwsl` that no step can be made with -> word of the remedy
SETTINGS: dict[str, tuple[tuple[Any, ...], str]] = {
    "c_pitc": ((-1, NAN, INFINITE, True, "much", None, [1]), "must be"),
    "c_pisc": ((-0.5,), ">= 0"),
    "eps_max": ((-0.1, INFINITE, "0.1 A"), "must be"),
    "k_2nd": ((0.7, -0.1), "in [0, 0.5]"),
    "pisc_case": ((0, 4, 1.5), "one of 1, 2, 3"),
    "point_loss": (("huber", 2), "mse, mae, relu"),
    "perturbation": (("gaussian",), "uniform, sphere, adversarial"),
    "magnitude": (("random",), "drawn, fixed"),
    "fraction": ((0, 1.01), "in (0, 1]"),
    "max_bond_fraction": ((0.5,), "in (0, 0.5)"),
    "start_step": ((-1, 0.5), "must be"),
    "every_n_steps": ((0,), ">= 1"),
    "energy_unit": (("Ry",), "kcal/mol"),
    "share_graph": (("no",), "true or false"),
}

#: what is changed in a good config -> words of the sentence, the remedy
CONFIGS: dict[str, tuple[Mapping[str, Any], tuple[str, ...], str]] = {
    "no-weak-block": ({"optim.piwsl": MISSING}, ("optim.piwsl",), "set c_pitc"),
    "weights-zero": ({"optim.piwsl.c_pitc": 0}, ("optim.piwsl",), "set c_pitc"),
    "noisy-nodes": ({"optim.piwsl": {"noisy_nodes": True}}, ("optim.piwsl",), "set c_pitc"),
    "block-is-text": ({"optim.piwsl": "all"}, ("optim.piwsl",), "block"),
    "misspelt-weight": ({"optim.piwsl.c_ptic": 1}, ("optim.piwsl.c_ptic",), "did you mean 'c_pitc'"),
    "no-forces": ({"outputs.forces": MISSING, "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}],
                   "evaluation_metrics": MISSING}, ("forces",), "add"),
    "no-model": ({"model": MISSING}, ("model",), "add"),
    "no-optim": ({"optim": MISSING}, ("optim",), "add"),
    "no-data": ({"dataset.train.src": MISSING}, ("dataset.train.src",), "add"),
    "no-such-data": ({"dataset.train.src": "gone.lmdb"}, ("dataset.train.src", "gone.lmdb"), "piwsl prepare"),
    "no-such-model": ({"model.name": "pain"}, ("model.name",), "did you mean 'painn'"),
    "no-structures-in-a-batch": ({"optim.batch_size": 0}, ("optim.batch_size",), "must be"),
    "width-zero": (
        {"dataset.train.transforms.normalizer.energy.stdev": 0},
        ("dataset.train.transforms.normalizer.energy.stdev",),
        "must be",
    ),
}  # fmt: skip

#: options -> words of the sentence, the remedy, further files
OPTIONS: dict[str, tuple[tuple[str, ...], str, dict[str, Content]]] = {
    "--rounds 1": (("--rounds",), "--help", {}),
    "--rounds -3": (("--rounds",), "--help", {}),
    "--rounds many": (("--rounds",), "integer", {}),
    "--json .": (("--json",), "path of a file", {}),
    "--json c.yml/b.json": (("--json", "c.yml"), "give another one", {}),
    "--method fastest": (("--method", "fastest"), "second_order", {}),
}


def unlabelled(path: Path) -> None:
    write_lmdb(path, [to_data(atoms, i, False, False) for i, atoms in enumerate(labelled_molecules(3))])


def bench(
    name: str, changes: Mapping[str, Any], words: tuple[str, ...], remedy: str, **files: Content
) -> Case:
    return Case(name, BENCH, words, remedy, {"c.yml": changed(changes), **files}, uses=("tiny_data",))


CASES = [
    *(
        bench(f"{key}={value}", {f"optim.piwsl.{key}": value}, (f"optim.piwsl.{key}",), remedy)
        for key, (bad, remedy) in SETTINGS.items()
        for value in bad
    ),
    *(bench(name, *rest) for name, rest in CONFIGS.items()),
    *(
        Case(option.replace("/", "-"), f"{BENCH} {option}", words, remedy, {"c.yml": changed({}), **files},
             uses=("tiny_data",))
        for option, (words, remedy, files) in OPTIONS.items()
    ),
    bench("truncated-data", {"dataset.train.src": "bad.lmdb"}, ("dataset.train.src", "bad.lmdb"), "piwsl prepare",
          **{"bad.lmdb": b"\x00" * 4096}),
    bench("unlabelled-data", {"dataset.train.src": "bad.lmdb"}, ("bad.lmdb",), "key_mapping",
          **{"bad.lmdb": unlabelled}),
]  # fmt: skip
