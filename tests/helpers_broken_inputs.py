"""A trained model and a data set that are right, and what can be wrong with such files."""

from __future__ import annotations

import copy
import pickle
import zipfile
from pathlib import Path
from shutil import copy as copy_file
from typing import Any

import lmdb
import torch
from ase.build import molecule
from ase.io import write
from helpers_analysis import rattled, train, write_lmdb


def write_inputs(folder: Path) -> Path:
    """Fill `folder`: `model.pt`, `data.lmdb`, `ethanol.xyz` and `runs/` are right, the others are not."""
    data = write_lmdb(folder / "data.lmdb", rattled(["CH3CH2OH", "H2O"], 6))
    write(folder / "ethanol.xyz", molecule("CH3CH2OH"))
    write(folder / "water.xyz", molecule("H2O"))
    write(folder / "unlabelled.xyz", [molecule("CH3CH2OH")] * 2)
    write(folder / "atom.xyz", molecule("H2O")[:1])
    nowhere = molecule("CH3CH2OH")
    nowhere.positions[3, 1] = float("nan")
    write(folder / "nowhere.extxyz", nowhere)
    trained = train("schnet", data, folder / "runs" / "schnet", epochs=1) / "best_checkpoint.pt"
    copy_file(trained, folder / "model.pt")
    write_checkpoints(folder, torch.load(trained, map_location="cpu", weights_only=False))
    write_data(folder, data)
    return folder


def write_checkpoints(folder: Path, state: dict[str, Any]) -> None:
    """Checkpoints that cannot be used."""

    def save(name: str, **changes: Any) -> None:
        changed = {**copy.deepcopy(state), **changes}
        torch.save({key: value for key, value in changed.items() if value is not None}, folder / name)

    first = next(iter(state["state_dict"]))
    for name, value in (("nan.pt", float("nan")), ("inf.pt", float("inf"))):
        save(
            name,
            state_dict={**state["state_dict"], first: torch.full_like(state["state_dict"][first], value)},
        )
    diverged = folder / "diverged" / "checkpoints" / "run"
    diverged.mkdir(parents=True)
    copy_file(folder / "nan.pt", diverged / "best_checkpoint.pt")
    huge = {
        key: value * 1e30 if value.is_floating_point() else value
        for key, value in state["state_dict"].items()
    }
    save("huge.pt", state_dict=huge)
    for key in ("config", "state_dict", "normalizers"):
        save(f"no_{key}.pt", **{key: None})
    for key in ("model", "outputs"):
        save(f"no_{key}.pt", config={k: v for k, v in state["config"].items() if k != key})
    save("unknown_model.pt", config={**state["config"], "model": {"name": "transformer9"}})
    save("wider.pt", config={**state["config"], "model": {**state["config"]["model"], "hidden_channels": 24}})
    save("odd_setting.pt", config={**state["config"], "model": {**state["config"]["model"], "depth": 3}})
    save("energy_only.pt", config={**state["config"], "outputs": {"energy": {"level": "system"}}})
    save("forces_only.pt", config={**state["config"], "outputs": {"forces": {"level": "atom"}}})
    torch.save(state["state_dict"], folder / "weights.pt")
    torch.save([1, 2, 3], folder / "list.pt")
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    whole = (folder / "model.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("not a checkpoint\n")
    (folder / "pickle.pt").write_bytes(pickle.dumps({"config": {}}))
    with zipfile.ZipFile(folder / "fairchem2.pt", "w") as archive:
        archive.writestr(
            "ckpt/data.pkl",
            b"\x80\x02cfairchem.core.units.mlip_unit.api.inference\nMLIPInferenceCheckpoint\n.",
        )


def write_data(folder: Path, data: Path) -> None:
    """Data sets that cannot be used."""
    whole = data.read_bytes()
    (folder / "cut.lmdb").write_bytes(whole[: len(whole) // 2 // 4096 * 4096])
    (folder / "short.lmdb").write_bytes(whole[:5000])
    (folder / "zero.lmdb").write_bytes(b"")
    (folder / "cut.aselmdb").write_bytes(whole[:5000])
    (folder / "text.aselmdb").write_text("hello\n" * 3000)
    (folder / "text.lmdb").write_text("hello\n" * 3000)
    (folder / "folder").mkdir()
    (folder / "garbage.extxyz").write_text("3\nno lattice\nC 0 0\n")
    (folder / "empty.xyz").write_text("")
    records: dict[str, Any] = {"none.lmdb": [], "strings.lmdb": ["a", "b"], "numbers.lmdb": [{"pos": 1}]}
    for name, values in records.items():
        with (
            lmdb.open(str(folder / name), subdir=False, map_size=2**20) as environment,
            environment.begin(write=True) as out,
        ):
            for number, value in enumerate(values):
                out.put(str(number).encode(), pickle.dumps(value))
            out.put(b"length", pickle.dumps(len(values)))
