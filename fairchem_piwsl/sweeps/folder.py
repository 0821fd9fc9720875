"""The folder of a sweep: all that a worker or a later `resume` needs, whatever happens to the original files.

```
sweep.yml    the sweep file            workers/   heartbeats of the workers
base.yml     the base config           jobs/      submitit's logs and pickles
journal.log  the study                 runs/      checkpoints, logs, validations, errors of the trials
launch.json  working directory, jobs   report/    plots and the HTML page
```
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fairchem_piwsl.config import load_config, read_yaml
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import read_json, write_json, write_text
from fairchem_piwsl.sweeps.storage import from_anywhere, journal_path
from fairchem_piwsl.sweeps.sweep_file import Sweep, parse_sweep

SWEEP, BASE, LAUNCH = "sweep.yml", "base.yml", "launch.json"


def make_folder(folder: Path, content: Mapping[str, Any], sweep: Sweep, base: dict[str, Any]) -> None:
    """Keep the sweep file and its base config as they are now; later edits must not mix into the study."""
    storage = from_anywhere(sweep.storage)
    kept = {"study": sweep.study, "base": BASE, "storage": storage, "trials": sweep.trials}
    write_yaml(folder / BASE, base)
    write_yaml(folder / SWEEP, {**content, **kept})
    write_json(folder / LAUNCH, {"workdir": os.getcwd(), "jobs": []})


def load_folder(folder: Path, change_directory: bool = False, **instead: Any) -> Sweep:
    """The sweep of a folder; relative paths in its config count from where the sweep was started.

    Args:
        instead: entries in place of the sweep file's, as for `load_sweep`.
    """
    if not (folder / SWEEP).is_file():
        raise UserError(f"{folder} holds no sweep; give the folder that `piwsl sweep start` named.")
    content = read_yaml(folder / SWEEP, "sweep file")
    sweep = parse_sweep(content, load_config(folder / BASE), where=f"sweep file {folder / SWEEP}", **instead)
    journal = journal_path(sweep.storage, folder)
    if journal is not None and not journal.is_file():
        raise UserError(f"{journal}, the study of {folder}, does not exist; put back a copy of it.")
    if change_directory:
        os.chdir(read_launch(folder)["workdir"])
    return sweep


def read_launch(folder: Path) -> dict[str, Any]:
    """What the launcher noted about itself and its jobs."""
    path = folder / LAUNCH
    launch = read_json(path) if path.is_file() else {}
    if not isinstance(launch, dict) or not {"workdir", "jobs"} <= launch.keys():
        raise UserError(
            f'{path} is broken: write {{"workdir": "<where the sweep was started>", "jobs": []}} into it.'
        )
    return launch


def write_yaml(path: Path, content: Any, head: str = "") -> None:
    """Write a YAML file, whole or not at all; `head` goes above it as comments."""
    lines = "".join(f"# {line}\n" for line in head.splitlines())
    write_text(path, lines + yaml.safe_dump(content, sort_keys=False))
