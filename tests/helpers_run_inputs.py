"""A folder with a config, a finished run and checkpoints of all wrong kinds, for commands that must refuse them."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from conftest import MODELS
from helpers_cluster import make_config, runnable, write_config

CONFIG = "a.yml"


class RunsCode:
    """A pickle that makes a folder when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def write_run_inputs(folder: Path) -> Path:
    """The config, the run `done` of it, and one file for each name in `tests/malformed/runs.py`."""
    from fairchem_piwsl.jobs.runner import Runner

    config = {**make_config(folder, max_epochs=1), "trainer": "fairchem_piwsl.trainer.PIWSLForcesTrainer"}
    write_config(folder, config, CONFIG)
    Runner()(runnable(config, folder / "runs", "done"))
    run = folder / "runs" / "checkpoints" / "done"
    (folder / "best_checkpoint.pt").write_bytes((run / "best_checkpoint.pt").read_bytes())
    good = torch.load(run / "checkpoint.pt", weights_only=True)

    def save(name: str, content: Any, **how: Any) -> None:
        torch.save(content, folder / f"{name}.pt", **how)

    (folder / "folder.pt").mkdir()
    (folder / "cut.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:2000])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("not a checkpoint\n")
    (folder / "pickle.pt").write_bytes(pickle.dumps(RunsCode()))
    save("old_format", {"a": RunsCode()}, _use_new_zipfile_serialization=False)
    save("code", {**good, "epoch": RunsCode()})
    save("module", torch.nn.Linear(1, 1))
    save("list", [1, 2])
    save("weights", good["state_dict"])
    for name in ("config", "state_dict", "normalizers"):
        save(f"no_{name}", {key: value for key, value in good.items() if key != name})
    save("no_model", {**good, "config": {}})
    save("numbers", {**good, "state_dict": {"a": 1.0}})
    save("nan", {**good, "state_dict": {key: value * torch.nan for key, value in good["state_dict"].items()}})
    other = copy.deepcopy(good)
    other["config"]["model"] = MODELS["painn"]
    other["state_dict"] = {"module.layer.weight": torch.zeros(3)}
    save("other_model", other)
    wider = copy.deepcopy(good)
    first = next(iter(wider["state_dict"]))
    wider["state_dict"][first] = torch.zeros(3, 7)
    save("wider", wider)
    return folder
