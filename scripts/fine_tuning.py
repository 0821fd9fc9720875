"""Fine-tune on few energies of a better level of theory, without and with PIWSL: the table in docs/fine_tuning.md.

    python scripts/fine_tuning.py ethanol_ccsd_t-train.npz ethanol_ccsd_t-test.npz --out runs/fine_tuning

Takes CCSD(T) (or other) labels of one molecule as npz files in sGDML's layout (z, R, E, F; kcal/mol). It makes
GFN2-xTB data of the same molecule, pre-trains a model on their energies and forces, re-fits the element
references, and goes on training on the better energies alone; their forces are in the test set only. A second
call goes on where the first one stopped. scripts/fine_tuning/smoke.yml and paper.yml hold all settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fine_tuning_data import check_files, check_xtb, prepare_labels, prepare_pretraining, start_structure
from fine_tuning_results import Row, plot, table, write_table
from recipes.compare import best_checkpoint, compare, rmse_of, train
from recipes.scale import schedule
from rich.console import Console
from rich.progress import Progress

from fairchem_piwsl.config import load_config, read_yaml
from fairchem_piwsl.datasets.element_references import write_references
from fairchem_piwsl.datasets.lmdb_checks import number_of_structures
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import errors_as_sentences
from fairchem_piwsl.models.mace_files import export, import_mace
from fairchem_piwsl.report.report import make_report
from fairchem_piwsl.sweeps.folder import write_yaml
from fairchem_piwsl.training.checkpoint_files import read_checkpoint, save_atomically, trust
from fairchem_piwsl.training.fine_tuning import from_config
from fairchem_piwsl.units import KCAL_PER_MOL

HERE = Path(__file__).resolve().parent
BASE = HERE.parent / "configs" / "s2ef" / "base.yml"
ENERGY = {"energy": {"fn": "mae", "coefficient": 1}}
FORCES = {"forces": {"fn": "l2mae", "coefficient": 100}}
PRETRAINED = "pre-trained only"


@dataclass(frozen=True)
class Experiment:
    """What is asked for: the scale's settings, the user's files and where everything goes."""

    scale: dict[str, Any]
    files: list[Path]
    pretraining_data: list[Path]
    units: str
    out: Path
    side_by_side: int
    cpu: bool

    @property
    def data(self) -> Path:
        """Folder of all data sets."""
        return self.out / "data"

    def labels(self, size: int, seed: int) -> Path:
        """LMDBs with `size` labels for training."""
        split, name = self.scale["split"], self.scale["name"]
        return prepare_labels(self.files, self.data, split, size, seed, self.units, name)


def main() -> None:
    args = arguments()
    experiment = Experiment(
        scale=read_scale(args.scale),
        files=args.files,
        pretraining_data=args.pretraining_data,
        units=args.units,
        out=args.out,
        side_by_side=args.side_by_side,
        cpu=not args.gpu,
    )
    scale = experiment.scale
    sizes, seeds = args.sizes or scale["sizes"], args.seeds or scale["seeds"]
    check(experiment, args.models, sizes)
    for size in sizes:
        experiment.labels(size, seeds[0])  # mistakes in the data show first
    rows: list[Row] = []
    for model in args.models:
        pretrained = pretrain(experiment, model)
        rows.append(zero_shot(experiment, model, pretrained, max(sizes), seeds[0]))
        for size in sizes:
            for seed in seeds:
                rows += fine_tune(experiment, model, pretrained, size, seed)
        if scale["models"][model].get("model_file"):
            from_model_file(experiment, model, pretrained, sizes[0], seeds[0])
    finish(experiment, rows)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="npz files with the better labels")
    parser.add_argument("--scale", default="smoke", help="smoke, paper, or a YAML file of your own")
    parser.add_argument("--models", nargs="+", default=["painn"], help="names under `models` of the scale")
    parser.add_argument("--sizes", type=int, nargs="+", help="training structures (default: the scale's)")
    parser.add_argument("--seeds", type=int, nargs="+", help="of draw and training (default: the scale's)")
    parser.add_argument(
        "--pretraining-data", type=Path, nargs="+", default=[], help="instead of GFN2-xTB, eV"
    )
    parser.add_argument("--units", default="kcal/mol", help="of npz files that do not name their unit")
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tuning"))
    parser.add_argument("--side-by-side", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--gpu", action="store_true", help="train on the GPU")
    return parser.parse_args()


def read_scale(name: str) -> dict[str, Any]:
    """Settings of a scale by its name, or of the user's own file."""
    path = Path(name) if name.endswith((".yml", ".yaml")) else HERE / "fine_tuning" / f"{name}.yml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (HERE / "fine_tuning").glob("*.yml")))
        raise UserError(f"--scale {name}: not known; choose one of {known}, or give a YAML file.")
    return read_yaml(path, "--scale")


def check(experiment: Experiment, models: Sequence[str], sizes: Sequence[int]) -> None:
    """What can be seen before anything is written."""
    known, pool = experiment.scale["models"], experiment.scale["split"]["train"]
    for model in models:
        if model not in known:
            raise UserError(f"--models {model}: not known; choose among {', '.join(known)}.")
    if max(sizes) > pool or min(sizes) < 1:
        raise UserError(f"--sizes {' '.join(map(str, sizes))}: the scale has 1 to {pool} for training.")
    check_files(experiment.files)
    check_files(experiment.pretraining_data)
    if not experiment.pretraining_data:
        check_xtb()
    if any("mace" in str(known[model]["model"]["name"]) for model in models):
        import_mace()


def training_config(
    settings: Mapping[str, Any], step: str, data: Path, size: int, references: Path | None
) -> dict[str, Any]:
    """fairchem config of one training.

    Args:
        settings: block of the model in the scale.
        step: `pretraining` or `fine_tuning`.
        data: folder of the data set.
        size: structures to train on.
        references: element references; left out, those of the data set.
    """
    config = load_config(BASE)
    config["dataset"] = load_config(data / "dataset.yml")["dataset"]
    if references is not None:
        config["dataset"]["train"]["transforms"]["element_references"]["energy"]["file"] = str(references)
    config["model"] = settings["model"]
    optim = {**config["optim"], **settings["optim"], **settings[step]}
    steps, validations = optim.pop("steps"), optim.pop("validations")
    optim |= schedule(steps, size, optim["batch_size"], validations)
    config["optim"] = optim
    config["loss_functions"] = [ENERGY, FORCES] if step == "pretraining" else [ENERGY]
    config["evaluation_metrics"]["primary_metric"] = "loss" if step == "pretraining" else "energy_rmse"
    return config


def written(config: Mapping[str, Any], path: Path) -> Path:
    """The config in a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_yaml(path, dict(config))
    return path


def pretrain(experiment: Experiment, model: str) -> Path:
    """Train on the cheap level's energies and forces; returns the checkpoint."""
    run_dir, settings = experiment.out / "pretraining" / model, experiment.scale["models"][model]
    data = prepare_pretraining(
        experiment.pretraining_data,
        start_structure(experiment.data),
        experiment.data,
        experiment.scale["pretraining_data"],
    )
    size = number_of_structures(data / "train" / "data.lmdb")
    config = training_config(settings, "pretraining", data, size, None)
    path = written(config, experiment.out / "configs" / f"pretraining_{model}.yml")
    with Progress() as progress:
        train(
            path,
            [],
            experiment.scale["pretraining_seed"],
            run_dir,
            progress,
            f"pre-training {model}",
            experiment.cpu,
        )
    return best_checkpoint(run_dir)


def references_file(experiment: Experiment, name: str, size: int, seed: int) -> Path:
    """Element references of one training set."""
    return experiment.out / "references" / f"{name}_{size}_seed{seed}.npz"


def fine_tuning_config(
    experiment: Experiment, model: str, start: Mapping[str, Any], size: int, seed: int, name: str
) -> Path:
    """Config file of a fine-tuning, with element references re-fitted to the new level.

    start: what to change in the block `model` and `optim` so that training starts from given weights.
    """
    references = references_file(experiment, name, size, seed)
    settings = experiment.scale["models"][model]
    config = training_config(settings, "fine_tuning", experiment.labels(size, seed), size, references)
    config["model"] = start.get("model", config["model"])
    config["optim"] |= start.get("optim", {})
    if not references.exists():
        write_references(references, from_config(config))
    return written(config, experiment.out / "configs" / f"{name}_{size}_seed{seed}.yml")


def fine_tune(experiment: Experiment, model: str, pretrained: Path, size: int, seed: int) -> list[Row]:
    """Train on the better energies alone with every method; errors on the test set."""
    start = {"optim": {"finetune_from": str(pretrained)}}
    config = fine_tuning_config(experiment, model, start, size, seed, model)
    test = experiment.labels(size, seed) / "test" / "data.lmdb"
    folder = experiment.out / "runs" / f"{model}_{size}"
    how = {"side_by_side": experiment.side_by_side, "cpu": experiment.cpu}
    results = compare(config, methods(experiment, model), [seed], test, folder, **how)
    return [Row(model, r.method, size, seed, r.energy_rmse, r.forces_rmse, r.train_seconds) for r in results]


def methods(experiment: Experiment, model: str) -> dict[str, list[str]]:
    """Name -> arguments of fairchem's command line; a model may have PIWSL settings of its own."""
    blocks = experiment.scale["models"][model].get("methods", experiment.scale["methods"])
    return {
        name: [f"--optim.piwsl.{key}={value}" for key, value in (block or {}).items()]
        for name, block in blocks.items()
    }


def zero_shot(experiment: Experiment, model: str, pretrained: Path, size: int, seed: int) -> Row:
    """Errors of the pre-trained model as it is, but for element references of the new level."""
    fine_tuning_config(experiment, model, {"optim": {"finetune_from": str(pretrained)}}, size, seed, model)
    references = references_file(experiment, model, size, seed)
    state = read_checkpoint(pretrained)
    values = torch.from_numpy(np.load(references)["element_references"])
    old = state["elementrefs"]["energy"]["element_references"]
    state["elementrefs"]["energy"]["element_references"] = values[: len(old)].to(old)
    path = experiment.out / "pretraining" / f"{model}_new_references.pt"
    save_atomically(state, path)
    energy, forces = rmse_of(path, experiment.labels(size, seed) / "test" / "data.lmdb")
    return Row(model, PRETRAINED, None, 0, energy, forces, float("nan"))


def from_model_file(experiment: Experiment, model: str, pretrained: Path, size: int, seed: int) -> None:
    """Fine-tune once more, from a MACE `.model` file with the same weights, and say how close the errors are."""
    file = experiment.out / "pretraining" / f"{model}.model"
    if not file.exists():
        export(pretrained, file)
    trust()  # the file is this recipe's own
    block = experiment.scale["models"][model]["model"]
    kept = {key: block[key] for key in ("name", "otf_graph", "use_pbc") if key in block}
    start = {"model": {**kept, "foundation": str(file), "ev_per_output": KCAL_PER_MOL}}
    config = fine_tuning_config(experiment, model, start, size, seed, f"{model}_model_file")
    test = experiment.labels(size, seed) / "test" / "data.lmdb"
    baseline = dict(list(methods(experiment, model).items())[:1])
    folder = experiment.out / "model_file" / f"{model}_{size}"
    [result] = compare(config, baseline, [seed], test, folder, cpu=experiment.cpu)
    [twin] = [row for row in fine_tune(experiment, model, pretrained, size, seed) if row.method in baseline]
    print(
        f"{model}, {size} labels, {twin.method}: from the .model file E {result.energy_rmse:.4f}, "
        f"F {result.forces_rmse:.4f}; from the checkpoint E {twin.energy_rmse:.4f}, F {twin.forces_rmse:.4f} "
        "(RMSE, kcal/mol and kcal/mol/Angstrom)"
    )


def finish(experiment: Experiment, rows: Sequence[Row]) -> None:
    """Table, figure and `piwsl report`."""
    out = experiment.out
    write_table(rows, out / "table.md")
    console = Console(markup=False, emoji=False)
    console.print(table(rows, f"{experiment.scale['title']}, test set"))
    picture = plot(rows, out / "fine_tuning.png", experiment.scale["title"])
    make_report([out / "runs"], title=experiment.scale["title"], out=out / "report", cpu=True)
    console.print(
        f"table:   {out / 'table.md'}\npicture: {picture}\nreport:  {out / 'report' / 'report.html'}"
    )


if __name__ == "__main__":
    with errors_as_sentences("fine_tuning.py"):
        main()
