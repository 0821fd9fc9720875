"""Carry out a recipe: configs, trainings, measurements, report. What is finished is not done again."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fairchem_piwsl.config import data_folder, moved
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import file_name, write_text
from recipes.compare import best_checkpoint, train
from recipes.recipe_file import Recipe


@dataclass(frozen=True)
class Training:
    """One training of a recipe."""

    name: str
    config: Path
    #: LMDB of the test set
    test: Path
    seed: int
    run_dir: Path


def use_data(
    configs: Mapping[str, Any], data: Mapping[str, str], stand_in: Callable[[], Path] | None
) -> dict[str, dict[str, Any]]:
    """The configs with their data folders replaced.

    Args:
        configs: training configs by name.
        data: name of a data folder, the last part of its path -> folder to use instead.
        stand_in: makes a folder for those that do not exist; without it they are an error.

    Raises:
        UserError: a data folder is missing, or `data` names one that no config uses.
    """
    placed, used = {}, set()
    for name, config in configs.items():
        old = data_folder(config)
        used.add(old.name)
        new = Path(data.get(old.name, old))
        if not (new / "train").exists():
            if stand_in is None or old.name in data:
                raise UserError(
                    f"{new} is missing: scripts/published_data.py, or the `piwsl prepare` command in the first lines "
                    f"of configs/s2ef/datasets/{old.name}.yml, makes it; or name another folder with "
                    f"--data {old.name}=FOLDER."
                )
            new = stand_in()
        placed[name] = moved(config, old, new)
    for name in data:
        if name not in used:
            raise UserError(f"--data {name}=...: the recipe uses {', '.join(sorted(used))}.")
    return placed


def write_trainings(configs: Mapping[str, Any], seeds: Sequence[int], out: Path) -> list[Training]:
    """Write each config to `out/configs` and list the trainings, all methods of a seed before the next seed.

    Raises:
        UserError: `out` holds trainings with other settings.
    """
    files, texts = {}, {}
    for name, config in configs.items():
        files[name] = out / "configs" / f"{name}.yml"
        texts[name] = yaml.safe_dump(config, sort_keys=False)
        if files[name].exists() and files[name].read_text() != texts[name]:
            raise UserError(
                f"{files[name]} holds other settings than asked for now: choose another --out, or remove {out}."
            )
    for name, path in files.items():
        write_text(path, texts[name])
    return [
        Training(name, files[name], Path(config["dataset"]["test"]["src"]), seed, out / name / f"seed{seed}")
        for seed in seeds
        for name, config in configs.items()
    ]


def carry_out(
    trainings: Sequence[Training],
    measure: Mapping[str, Mapping[str, Any]],
    out: Path,
    *,
    tests: Mapping[str, Path] | None = None,
    side_by_side: int = 2,
    cpu: bool = True,
) -> None:
    """Train, evaluate (on further `tests` too) and measure, `side_by_side` processes at a time, each on one thread."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor(side_by_side) as pool:
        total = progress.add_task("trained and measured", total=len(trainings))

        def one(training: Training) -> None:
            label = f"{training.name}, seed {training.seed}"
            train(training.config, [], training.seed, training.run_dir, progress, label, cpu)
            for command, settings in {"evaluate": {"group_by": "none"}, **measure}.items():
                if command != "profile":
                    _measure(command, [training], settings, training.run_dir / command, cpu)
            for test, data in (tests or {}).items():
                other = replace(training, test=data)
                _measure("evaluate", [other], {"group_by": "none"}, test_folder(training, test, out), cpu)
            progress.advance(total)

        work = [pool.submit(one, training) for training in trainings]
        for item in work:
            item.result()
    if "profile" in measure:
        for seed in sorted({training.seed for training in trainings}):
            members = [training for training in trainings if training.seed == seed]
            _measure("profile", members, measure["profile"], out / "profile" / f"seed{seed}", cpu)


def test_folder(training: Training, test: str, out: Path) -> Path:
    """Folder of the errors on a further test set: away from the run, whose report is about its own test set."""
    return out / "tests" / file_name(test) / training.name / f"seed{training.seed}"


def evaluated(folder: Path) -> list[Path]:
    """Results of `piwsl evaluate` in a folder, the newest last."""
    return sorted(folder.rglob("evaluate*.json"), key=lambda path: path.stat().st_mtime)


def _measure(
    command: str, trainings: Sequence[Training], settings: Mapping[str, Any], folder: Path, cpu: bool
) -> None:
    """Run `piwsl COMMAND` on checkpoints in a process of its own, unless its result is there."""
    checkpoints = [best_checkpoint(training.run_dir) for training in trainings]
    newest = max(path.stat().st_mtime for path in checkpoints)
    if any(path.stat().st_mtime > newest for path in folder.rglob(f"{command}*.json")):
        return
    test = str(trainings[0].test)
    data = {"evaluate": ["--data", test], "consistency": ["--data", test], "profile": ["--structure", test]}
    arguments = [
        *(sys.executable, "-m", "fairchem_piwsl.cli", command, *map(str, checkpoints)),
        *data.get(command, ["--structure", test, "--reference-trajectory", test]),
        *("--out", str(folder), *options(settings)),
        *(["--cpu"] if cpu else []),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{command}.log"
    with log.open("w") as output:
        ended = subprocess.run(
            arguments,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    if ended.returncode:
        last = log.read_text().strip().rpartition("\n")[2]
        raise UserError(f"piwsl {command} failed, see {log}: {last}")


def without_missing_reference(measure: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The measurements, without the reference calculator of a profile where it is not installed."""
    found = {command: dict(settings) for command, settings in measure.items()}
    if found.get("profile", {}).get("reference") == "xtb" and importlib.util.find_spec("tblite") is None:
        print("The profile goes without its GFN2-xTB curve: pip install 'fairchem_piwsl[xtb]' adds it.")
        del found["profile"]["reference"]
    return found


def options(settings: Mapping[str, Any]) -> list[str]:
    """Command-line options of settings: `{"group_by": "none", "bond": [0, 5]}` -> --group-by none --bond 0 5."""
    found: list[str] = []
    for key, value in settings.items():
        values = value if isinstance(value, list) else [value]
        found += [f"--{key.replace('_', '-')}", *map(str, values)]
    return found


def finish(recipe: Recipe, scale: str, trainings: Sequence[Training], out: Path) -> Path:
    """Write the report of all trainings; returns its HTML page."""
    from rich.console import Console

    from fairchem_piwsl.report.report import make_report
    from fairchem_piwsl.report.tables import report_tables

    result = make_report(
        [training.run_dir for training in trainings],
        title=f"{recipe.title} ({scale} scale)",
        paper_dataset=recipe.paper_dataset if scale == "paper" else None,
        out=out / "report",
    )
    console = Console(markup=False, emoji=False)
    for table in report_tables(result):
        console.print(table)
    return out / "report" / "report.html"
