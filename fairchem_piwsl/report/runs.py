"""Training runs on disk: which they are, what method they used, how they learnt, what was measured on them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_piwsl.analysis.error_metrics import UNITS
from fairchem_piwsl.analysis.inference_checkpoints import FILE
from fairchem_piwsl.config import entries
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import read_json
from fairchem_piwsl.report.curves import Curve, read_curves
from fairchem_piwsl.report.run_configs import run_config

# Parts of a config in which two runs of one method may differ: paths, names, seed.
PERSONAL = ("cmd", "logger", "slurm", "gpus", "local_rank", "dataset", "val_dataset", "test_dataset")


@dataclass
class Run:
    """One training run.

    `values`: measured quantity -> number; `curves`: TensorBoard tag -> curve; `dynamics`: conditions -> length
    of each start in ps, and whether it failed.
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
    from fairchem_piwsl.training.checkpoint_files import read_checkpoint

    return run_config(checkpoint) if checkpoint.name == FILE else read_checkpoint(checkpoint)["config"]


def _read_run(checkpoint: Path) -> Run:
    config = _read_config(checkpoint)
    source = str(config.get("dataset", {}).get("src", "unknown"))
    run = Run(
        checkpoint=checkpoint,
        config=config,
        dataset=_dataset_label(source),
        n_train=_length(_near(source, checkpoint)),
        model=model_label(config["model"]),
        method=method_label(config),
        seed=config.get("cmd", {}).get("seed"),
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


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys and values of a config, without paths, names and the seed, which runs of one method differ in."""
    shared = {key: value for key, value in config.items() if key not in PERSONAL}
    return {key: value for key, value in entries(shared, in_lists=False) if not isinstance(value, Mapping)}


def _dataset_label(source: str) -> str:
    """The last part of a path that is no general word."""
    parts = [part for part in Path(source).with_suffix("").parts if part not in ("train", "data", "/")]
    return parts[-1] if parts else source


def _near(source: str, checkpoint: Path) -> str:
    """`source`, which may count from where training was started: from here, or from a folder above the run."""
    folders = [Path(), *checkpoint.resolve().parents]
    return next((str(folder / source) for folder in folders if (folder / source).exists()), source)


def _length(source: str) -> int | None:
    """Number of structures of the training set, where it is an LMDB that is still there."""
    import lmdb

    from fairchem_piwsl.datasets import ase_lmdb
    from fairchem_piwsl.datasets.lmdb_checks import number_of_structures

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


def add_measurements(
    runs: Sequence[Run], folders: Sequence[str | Path], units: str, asked_for: Sequence[Path] = ()
) -> None:
    """Put what `piwsl evaluate`, `consistency`, `md` and comparisons left in JSON files below `folders` to runs.

    Newer files replace what older ones say, and those that were `asked_for` what all others say.
    """
    paths = {path for folder in folders for path in Path(folder).rglob("*.json")}
    for path in [*sorted(paths, key=lambda path: path.stat().st_mtime), *asked_for]:
        content = read_json(path)
        if not isinstance(content, dict):
            continue
        try:
            _add(runs, content, units)
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"{path}: not what piwsl {content.get('command', '')} writes ({error!r}); delete it or move it away."
            ) from None


def _add(runs: Sequence[Run], content: dict[str, Any], units: str) -> None:
    for entry in content.get("models", [content]) if content.get("command") else [content]:
        run = _owner(runs, entry.get("checkpoint"))
        if run is not None:
            run.values |= _measured(content, entry, units)
            if content.get("command") == "md":
                starts = [(start["time"], start["failed"]) for start in content["runs"]]
                run.dynamics[_conditions(content)] = starts


def _owner(runs: Sequence[Run], checkpoint: Any) -> Run | None:
    if not isinstance(checkpoint, str):
        return None
    path = Path(checkpoint)
    for run in runs:
        if path.exists() and path.resolve().parent == run.checkpoint.parent.resolve():
            return run
    # Moved folders keep the end of their path; upstream's time stamps may be the same for two of them.
    alike = [_common_end(run.checkpoint.parent.resolve().parts, path.parent.parts) for run in runs]
    longest = max(alike, default=0)
    return runs[alike.index(longest)] if longest >= 3 and alike.count(longest) == 1 else None


def _common_end(a: Sequence[str], b: Sequence[str]) -> int:
    """How many last parts two paths share."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _measured(content: dict[str, Any], entry: dict[str, Any], units: str) -> dict[str, float]:
    """Numbers of one JSON file under the names that the report uses, energies in `units`."""
    factor = UNITS[units][0]
    values: dict[str, float | None] = {}
    command = content.get("command")
    if command == "evaluate":
        for metric, estimate in entry["metrics"].items():
            values[metric] = convert(estimate["value"], content["units"][metric], factor)
    elif command == "consistency":
        unit = content["units"]["energy"]
        values["force_curl"] = convert(content["curl"]["per_atom_mean"], unit, factor)
        values["jacobian_asymmetry"] = content["curl"]["asymmetry"]
        values["force_mismatch"] = convert(content["force_mismatch"]["rmse"], unit, factor)
        values["pitc_slope"] = content["slopes"]["pitc_k0"]
    elif command == "md":
        drifts = [run["drift"] for run in content["runs"]]
        at = f"@{_conditions(content)}"  # dynamics under other conditions is another quantity
        values["time_to_failure" + at] = content["summary"]["time_to_failure_mean"]
        values["failed_runs" + at] = content["summary"]["failed"] / content["summary"]["runs"]
        values["distances_mae" + at] = content["distances"]["mae"]
        if None not in drifts:
            values["energy_drift" + at] = float(np.mean(np.abs(drifts)))
    elif {"energy_rmse", "forces_rmse"} <= content.keys():  # a comparison's result, in kcal/mol
        for metric in ("energy_rmse", "forces_rmse"):
            values[metric] = convert(content[metric], "kcal/mol", factor)
    return {key: float(value) for key, value in values.items() if value is not None}


def _conditions(content: dict[str, Any]) -> str:
    """Under what dynamics ran, in words."""
    settings = content["settings"]
    return f"{settings['ensemble'].upper()}, {settings['temperature']:g} K, {content['length']:g} ps"


def convert(value: float | None, unit: str, factor: float) -> float | None:
    """`value` in `unit` (or `unit` per something) in the unit that is `factor` per eV; others stay."""
    energy = unit.split("/Angstrom")[0].split("/atom")[0]
    return value if value is None or energy not in UNITS else value / UNITS[energy][0] * factor
