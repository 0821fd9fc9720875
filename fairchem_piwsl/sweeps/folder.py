"""The folder of a sweep: all that a worker or a later `resume` needs, whatever happens to the original files.

```
sweep.yml    the sweep file            workers/   signs of life of the workers
base.yml     the base config           jobs/      submitit's logs and pickles
journal.log  the study                 runs/      checkpoints, logs, validations, errors of the trials
launch.json  working directory, jobs   report/    plots and the HTML page
```
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from fairchem_piwsl.config import load_config, read_yaml
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.sweeps.heartbeat import write_json
from fairchem_piwsl.sweeps.spec import Sweep, parse_sweep

SWEEP, BASE, LAUNCH = "sweep.yml", "base.yml", "launch.json"


def make_folder(folder: Path, sweep: Sweep, base: dict[str, Any]) -> None:
    """Keep the sweep file and its base config as they are now; later edits must not mix into the study."""
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / BASE, base)
    storage = sweep.storage
    if storage != "journal" and "://" not in storage:
        storage = str(Path(storage).resolve())
    write_yaml(folder / SWEEP, {**sweep.source, "study": sweep.study, "base": BASE, "storage": storage})
    write_json(folder / LAUNCH, {"workdir": os.getcwd(), "jobs": []})


def load_folder(folder: Path, change_directory: bool = False) -> Sweep:
    """The sweep of a folder; relative paths in its config count from where the sweep was started."""
    if not (folder / SWEEP).is_file():
        raise UserError(f"{folder} holds no sweep; give the folder that `piwsl sweep start` named.")
    sweep = parse_sweep(read_yaml(folder / SWEEP, "sweep file"), load_config(folder / BASE))
    if change_directory:
        os.chdir(read_launch(folder)["workdir"])
    return sweep


def read_launch(folder: Path) -> dict[str, Any]:
    """What the launcher noted about itself and its jobs."""
    return json.loads((folder / LAUNCH).read_text(encoding="utf-8"))


def write_yaml(path: Path, content: Any, head: str = "") -> None:
    """Replace a YAML file in one step; `head` goes above it as comments."""
    lines = "".join(f"# {line}\n" for line in head.splitlines())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(lines + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    os.replace(temporary, path)
