"""Training runs on disk: which they are, what method they used, how they learnt."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb

from fairchem_piwsl.analysis.inference_checkpoints import FILE
from fairchem_piwsl.analysis.run_configs import run_config, settings_of
from fairchem_piwsl.datasets import ase_lmdb
from fairchem_piwsl.datasets.lmdb_checks import number_of_structures
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.report.curves import Curve, read_curves
from fairchem_piwsl.training.checkpoint_files import read_checkpoint

SEED = re.compile(r"seed[-_]?\d+")


@dataclass
class Run:
    """One training run.

    `values`: measured quantity -> number; `curves`: TensorBoard tag -> curve; `dynamics`: conditions -> length
    of each start in ps, and whether it failed; `tests`: test set -> what was measured on it; `source`: path of
    the training data, without the number of a seed.
    """

    checkpoint: Path
    config: dict[str, Any]
    dataset: str
    n_train: int | None
    model: str
    method: str
    seed: int | None
    values: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    dynamics: dict[str, list[tuple[float, bool]]] = field(default_factory=dict)
    tests: dict[str, dict[str, float]] = field(default_factory=dict)
    source: Path = Path()

    @property
    def finished(self) -> bool:
        """Whether the last step that was logged ended the last epoch; true where that is not known."""
        epoch, end = self.curves.get("train/epoch"), self.config.get("optim", {}).get("max_epochs")
        return epoch is None or end is None or bool(epoch.value[-1] >= end)


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Every run below `folders`: each folder that holds a `best_checkpoint.pt` or `checkpoint.pt`.

    Of a run of fairchem 2, which keeps several, the last `inference_ckpt.pt`.
    """
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; give folders of training runs.")
        for name in ("checkpoint.pt", "best_checkpoint.pt"):  # the best one replaces the last one
            for path in sorted(folder.rglob(name)):
                found[path.parent.resolve()] = path
        for path in sorted(folder.rglob(FILE), key=_progress):
            found[_run_folder(path).resolve()] = path
    if not found:
        listed = ", ".join(map(str, folders))
        raise UserError(f"{listed}: no checkpoint below; give the --run-dir of finished trainings.")
    runs = [_read_run(path) for path in found.values()]
    _tell_data_apart(runs)
    _tell_apart(runs)
    return runs


def _run_folder(checkpoint: Path) -> Path:
    """What the checkpoints of one fairchem-2 run have in common."""
    folder = checkpoint.parent
    return folder.parent if folder.parent.name == "checkpoints" else folder


def _progress(checkpoint: Path) -> tuple[bool, int]:
    """Later checkpoints of a fairchem-2 run, in folders `step_<number>` and `final`, are larger."""
    number = checkpoint.parent.name.rpartition("_")[2]
    return checkpoint.parent.name == "final", int(number) if number.isdigit() else 0


def _read_config(checkpoint: Path) -> dict[str, Any]:
    return run_config(checkpoint) if checkpoint.name == FILE else read_checkpoint(checkpoint)["config"]


def _read_run(checkpoint: Path) -> Run:
    config = _read_config(checkpoint)
    source = str(config.get("dataset", {}).get("src", "unknown"))
    near = _near(source, checkpoint)
    run = Run(
        checkpoint=checkpoint,
        config=config,
        dataset=dataset_label(source),
        n_train=_length(near),
        model=model_label(config["model"]),
        method=method_label(config),
        seed=config.get("cmd", {}).get("seed"),
        source=Path(SEED.sub("seed", str(Path(near).resolve()))),
    )
    run.curves = read_curves(_logs_folder(checkpoint, config))
    if run.curves:
        run.values["wall_time"] = max(curve.seconds[-1] for curve in run.curves.values()) / 60
        run.values["steps"] = float(max(curve.step[-1] for curve in run.curves.values()))
    return run


def model_label(settings: dict[str, Any]) -> str:
    """The model's name; `_gradient` where a model that can do both takes forces from its energy."""
    if "model" in settings:  # the wrapper GradientForces
        return f"{model_label(settings['model'])}_gradient"
    name = model_name(settings)
    return f"{name}_gradient" if settings.get("direct_forces") is False else name


def model_name(settings: Mapping[str, Any]) -> str:
    """`painn`, `mace`, ...: a model's name without the path to its class."""
    return str(settings.get("name", "unknown")).rsplit(".", 1)[-1].lower()


def method_label(config: dict[str, Any]) -> str:
    """What a run was trained with, from `optim.piwsl` and the loss functions, in words."""
    piwsl = config.get("optim", {}).get("piwsl") or {}
    terms = []
    if piwsl.get("noisy_nodes"):
        terms.append("Noisy Nodes")
    if piwsl.get("auto"):
        terms.append("auto")
    for key, name in (("c_pitc", "PITC"), ("c_pisc", "PISC"), ("c_wl", "WL")):
        if piwsl.get(key):
            terms.append(f"{name} {piwsl[key]:g}")
    label = ", ".join(terms) or "baseline"
    if terms:
        label += (
            f", eps {piwsl.get('eps_max', 0.01):g}" if "eps_max" in piwsl or not piwsl.get("auto") else ""
        )
        if piwsl.get("k_2nd"):
            label += f", k {piwsl['k_2nd']:g}"
    trained_on = {target for loss in config.get("loss_functions", []) for target in loss}
    return label if "forces" in trained_on or not trained_on else f"energies only, {label}"


def family_of(run: Run) -> tuple[str, int | None, str, bool]:
    """Runs are compared with a baseline of the same data, model and kind of labels."""
    return run.dataset, run.n_train, run.model, run.method.startswith("energies only")


def is_baseline(method: str) -> bool:
    """Whether no weak term was on."""
    return method.removeprefix("energies only, ").startswith("baseline")


def _tell_data_apart(runs: list[Run]) -> None:
    """Call data sets that share a label by what their paths do not share."""
    alike: dict[str, set[Path]] = {}
    for run in runs:
        alike.setdefault(run.dataset, set()).add(run.source)
    for run in runs:
        sources = alike[run.dataset]
        if len(sources) > 1:
            run.dataset = str(run.source.relative_to(os.path.commonpath([path.parent for path in sources])))


def _tell_apart(runs: list[Run]) -> None:
    """Add to a method's label the settings in which runs under one label differ."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((*family_of(run), run.method), []).append(run)
    for members in groups.values():
        settings = [settings_of(run.config) for run in members]
        shown: list[str] = []
        for key in sorted({key for item in settings for key in item}):
            # Three that differ say enough, unless a further one separates runs that look the same so far.
            before = [] if len(shown) < 3 else shown
            if _number_told_apart(settings, [*before, key]) > _number_told_apart(settings, before):
                shown.append(key)
        for run, item in zip(members, settings, strict=True):
            if shown:
                values = ", ".join(f"{key.rsplit('.', 1)[-1]} {item.get(key)}" for key in shown)
                run.method = f"{run.method} ({values})"


def _number_told_apart(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    return len({repr([item.get(key) for key in keys]) for item in settings})


def dataset_label(source: str) -> str:
    """The last part of a path that is no general word."""
    parts = [part for part in Path(source).with_suffix("").parts if part not in ("train", "data", "/")]
    return parts[-1] if parts else source


def _near(source: str, checkpoint: Path) -> str:
    """`source`, which may count from where training was started: from here, or from a folder above the run."""
    folders = [Path(), *checkpoint.resolve().parents]
    return next((str(folder / source) for folder in folders if (folder / source).exists()), source)


def _length(source: str) -> int | None:
    """Number of structures of the training set, where it is an LMDB that is still there."""
    try:
        if source.endswith(".aselmdb"):
            with ase_lmdb.opened(Path(source)) as rows:
                return len(rows)
        return number_of_structures(source)
    except (lmdb.Error, OSError):
        return None


def _logs_folder(checkpoint: Path, config: dict[str, Any]) -> Path:
    """`<run dir>/logs/tensorboard/<name>` beside `<run dir>/checkpoints/<name>`, wherever these are now."""
    beside = checkpoint.parent.parent.parent / "logs" / "tensorboard" / checkpoint.parent.name
    return beside if beside.is_dir() else Path(config.get("cmd", {}).get("logs_dir", beside))
