"""`python main.py`: fairchem's command line with the plugin, from an empty folder to a calculator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import labelled_molecules, make_config

from fairchem_piwsl.jobs import launch
from fairchem_piwsl.units import KCAL_PER_MOL
from fairchem_piwsl.upstream import torch_scatter

MAIN = Path(__file__).parents[1] / "main.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def write_config(
    data: Path, run_dir: Path, trainer: str = "fairchem_piwsl.trainer.PIWSLForcesTrainer"
) -> Path:
    """A YAML file as a user writes it; Table A3, case D."""
    run_dir.mkdir(exist_ok=True)
    config = make_config(data, run_dir, piwsl={"c_pitc": 1.2, "c_pisc": 0.01, "eps_max": 0.025}, max_epochs=2)
    config["trainer"] = trainer
    del config["run_dir"]
    path = run_dir.parent / "config.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def main_py(config: Path, run_dir: Path, *arguments: str, mode: str = "train") -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        str(MAIN),
        "--mode",
        mode,
        "--config-yml",
        str(config),
        "--run-dir",
        str(run_dir),
    ]
    return subprocess.run(
        [*command, "--cpu", *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory) -> dict[str, Any]:
    """A finished training, started as in the README."""
    folder = tmp_path_factory.mktemp("cli")
    config = write_config(tiny_data, folder / "run")
    done = main_py(config, folder / "run", "--identifier", "first", "--timestamp-id", "first")
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        "config": config,
        "folder": folder / "run",
        "checkpoints": folder / "run" / "checkpoints" / "first",
    }


def in_process(monkeypatch, config: Path, run_dir: Path, *arguments: str, mode: str = "train") -> None:
    """The same command without the seconds that a new process takes to import everything.

    It gets copies of the data sets, since LMDB refuses to open a file twice in one process.
    """
    copies = []
    if config.is_file():
        for split, block in yaml.safe_load(config.read_text())["dataset"].items():
            key = f"--dataset.{split}.src="
            if not any(argument.startswith(key) for argument in arguments):
                folder = Path(tempfile.mkdtemp(dir=config.parent))
                copies.append(key + str(shutil.copy(block["src"], folder)))
    words = [
        "main.py",
        "--mode",
        mode,
        "--config-yml",
        str(config),
        "--run-dir",
        str(run_dir),
        "--cpu",
        *copies,
        *arguments,
    ]
    monkeypatch.setattr(sys, "argv", words)
    launch.main()


# ------------------------------------------------------------------ the usual commands


def test_training_leaves_checkpoints_predictions_and_a_log(run):
    assert {"checkpoint.pt", "best_checkpoint.pt"} <= {path.name for path in run["checkpoints"].iterdir()}
    file = torch.load(run["checkpoints"] / "checkpoint.pt", weights_only=False)
    assert file["step"] == 6
    assert file["config"]["optim"]["piwsl"] == {"c_pitc": 1.2, "c_pisc": 0.01, "eps_max": 0.025}
    assert list((run["folder"] / "logs").rglob("events.out.*"))
    assert list((run["folder"] / "results").rglob("*predictions.npz"))


def test_validate_then_predict(monkeypatch, run, caplog):
    best = str(run["checkpoints"] / "best_checkpoint.pt")
    with caplog.at_level("INFO"):
        in_process(monkeypatch, run["config"], run["folder"], "--checkpoint", best, mode="validate")
    assert "energy_rmse" in caplog.text
    assert "pitc_rmse" in caplog.text
    in_process(
        monkeypatch,
        run["config"],
        run["folder"],
        "--checkpoint",
        best,
        "--timestamp-id",
        "second",
        mode="predict",
    )
    (file,) = (run["folder"] / "results" / "second").glob("*predictions.npz")
    predictions = np.load(file)
    assert len(predictions["energy"]) == len(predictions["ids"]) == 6
    assert (
        predictions["energy"].dtype == predictions["forces"].dtype == np.float32
    )  # upstream's own are float16
    assert np.isfinite(predictions["forces"]).all()


def test_predictions_are_not_written_over(monkeypatch, capsys, run):
    best = str(run["checkpoints"] / "best_checkpoint.pt")
    name = run["checkpoints"].name  # of the training, which has predicted its test set
    arguments = (run["config"], run["folder"], "--checkpoint", best, "--timestamp-id", name)
    line = refused(monkeypatch, capsys, *arguments, mode="predict")
    assert f"results/{name} holds predictions already: give another --timestamp-id" in line


def test_resume_and_dotted_override(monkeypatch, run):
    """--checkpoint continues where the run stopped; --optim.piwsl.c_pitc changes one setting."""
    in_process(
        monkeypatch, run["config"], run["folder"], "--checkpoint", str(run["checkpoints"] / "checkpoint.pt"),
        "--timestamp-id", "third", "--optim.max_epochs=3", "--optim.piwsl.c_pitc=0.5",
    )  # fmt: skip
    file = torch.load(run["folder"] / "checkpoints" / "third" / "checkpoint.pt", weights_only=False)
    assert file["step"] == 9
    assert file["config"]["optim"]["piwsl"]["c_pitc"] == 0.5
    assert file["config"]["optim"]["piwsl"]["c_pisc"] == 0.01


def test_two_ranks(run):
    done = main_py(
        run["config"], run["folder"], "--num-gpus", "2", "--timestamp-id", "ranks", "--optim.max_epochs=1"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    file = torch.load(run["folder"] / "checkpoints" / "ranks" / "checkpoint.pt", weights_only=False)
    assert file["step"] == 2  # 12 structures, 4 on each of 2 ranks
    assert np.isfinite(file["val_metrics"]["energy_rmse"]["metric"] if file["val_metrics"] else 0)


def test_short_name_of_the_trainer(monkeypatch, tiny_data, tmp_path):
    config = write_config(tiny_data, tmp_path / "run", "piwsl_forces")
    in_process(monkeypatch, config, tmp_path / "run", "--optim.max_epochs=1", "--timestamp-id", "short")
    assert (tmp_path / "run" / "checkpoints" / "short" / "checkpoint.pt").is_file()


# ------------------------------------------------------------------ mistakes


def refused(monkeypatch, capsys, config: Path, run_dir: Path, *arguments: str, mode: str = "train") -> str:
    """The one line that a mistake gives; nothing is written."""
    before = sorted(run_dir.rglob("*"))
    with pytest.raises(SystemExit) as end:
        in_process(monkeypatch, config, run_dir, *arguments, mode=mode)
    assert end.value.code == 2
    assert sorted(run_dir.rglob("*")) == before
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("main.py: ")]
    assert len(lines) == 1
    return lines[0]


def edited(data: Path, folder: Path, **changes: Any) -> Path:
    """The config with some blocks replaced."""
    path = write_config(data, folder / "run")
    config = {**yaml.safe_load(path.read_text()), **changes}
    path.write_text(yaml.safe_dump(config))
    return path


def test_unknown_setting_by_process(tiny_data, tmp_path):
    """Exit code 2, one line on stderr, no traceback."""
    config = write_config(tiny_data, tmp_path / "run")
    done = main_py(config, tmp_path / "run", "--optim.piwsl.c_ptic=1.0")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "did you mean 'c_pitc'?" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "run").rglob("*"))


def test_missing_and_truncated_data(monkeypatch, capsys, tiny_data, tmp_path):
    config = write_config(tiny_data, tmp_path / "run")
    line = refused(monkeypatch, capsys, config, tmp_path / "run", "--dataset.train.src=none.lmdb")
    assert "none.lmdb does not exist" in line
    damaged = tmp_path / "damaged.lmdb"
    damaged.write_bytes((tiny_data / "train.lmdb").read_bytes()[:5000])
    line = refused(monkeypatch, capsys, config, tmp_path / "run", f"--dataset.train.src={damaged}")
    assert "damaged.lmdb cannot be read" in line


def test_mistake_before_ranks_are_started(monkeypatch, capsys, tiny_data, tmp_path):
    config = write_config(tiny_data, tmp_path / "run")
    line = refused(monkeypatch, capsys, config, tmp_path / "run", "--num-gpus", "2", "--optim.piwsl.k_2nd=1")
    assert "optim.piwsl.k_2nd must be in [0, 0.5]" in line


def test_outputs_without_forces(monkeypatch, capsys, tiny_data, tmp_path):
    config = edited(
        tiny_data, tmp_path, outputs={"energy": {"level": "system"}},
        loss_functions=[{"energy": {"fn": "mae", "coefficient": 1}}],
    )  # fmt: skip
    assert "'outputs' has no 'forces'" in refused(monkeypatch, capsys, config, tmp_path / "run")


def test_missing_config(monkeypatch, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    line = refused(monkeypatch, capsys, tmp_path / "none.yml", tmp_path / "run")
    assert "none.yml does not exist" in line


@pytest.mark.parametrize("mode", ["train", "validate"])
def test_missing_checkpoint(monkeypatch, capsys, tiny_data, tmp_path, mode):
    config = write_config(tiny_data, tmp_path / "run")
    line = refused(monkeypatch, capsys, config, tmp_path / "run", "--checkpoint", "none.pt", mode=mode)
    assert "none.pt does not exist" in line


@pytest.mark.parametrize("mode", ["validate", "predict"])
def test_mode_that_needs_a_checkpoint(monkeypatch, capsys, tiny_data, tmp_path, mode):
    config = write_config(tiny_data, tmp_path / "run")
    assert "--checkpoint" in refused(monkeypatch, capsys, config, tmp_path / "run", mode=mode)


@pytest.mark.parametrize(("mode", "split"), [("validate", "val"), ("predict", "test")])
def test_mode_that_needs_a_split(monkeypatch, capsys, run, tiny_data, tmp_path, mode, split):
    dataset = yaml.safe_load(write_config(tiny_data, tmp_path / "run").read_text())["dataset"]
    del dataset[split]
    config = edited(tiny_data, tmp_path, dataset=dataset)
    best = str(run["checkpoints"] / "best_checkpoint.pt")
    line = refused(monkeypatch, capsys, config, tmp_path / "run", "--checkpoint", best, mode=mode)
    assert f"--mode {mode} needs dataset.{split}.src" in line
    assert f"--{split}" in line


# ------------------------------------------------------------------ calculator

EVALUATE = """
import sys
if sys.argv[2] == "without":
    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "fairchem_piwsl":
                raise ModuleNotFoundError(name, name=name)
    sys.meta_path.insert(0, Blocker())
    # what fairchem misses without the plugin: torch_sparse, and a scipy before 1.17; this model uses neither
    import importlib.util, types
    import scipy.special
    if not hasattr(scipy.special, "sph_harm"):
        scipy.special.sph_harm = None
    if importlib.util.find_spec("torch_sparse") is None:
        sys.modules["torch_sparse"] = types.ModuleType("torch_sparse")
        sys.modules["torch_sparse"].SparseTensor = object
    if importlib.util.find_spec("torch_scatter") is None:  # the compiled one has no share in what is compared
        spec = importlib.util.spec_from_file_location("torch_scatter", sys.argv[4])
        sys.modules["torch_scatter"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["torch_scatter"])
        sys.modules["torch_scatter.utils"] = sys.modules["torch_scatter"]
import numpy as np
from ase.build import molecule
from fairchem.core.common.relaxation.ase_utils import OCPCalculator
calculator = OCPCalculator(checkpoint_path=sys.argv[1], cpu=True)
assert ("fairchem_piwsl" in sys.modules) is (sys.argv[2] == "with")
atoms = molecule("CH3OH", cell=[20.0] * 3, pbc=True)
atoms.calc = calculator
np.savez(sys.argv[3], energy=atoms.get_potential_energy(), forces=atoms.get_forces())
"""


def predictions_of_calculator(run, how: str, out: Path) -> Any:
    code = ("import fairchem_piwsl\n" if how == "with" else "") + EVALUATE
    command = [sys.executable, "-c", code, str(run["checkpoints"] / "best_checkpoint.pt"), how, str(out)]
    command.append(torch_scatter.__file__)
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, cwd=out.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(out)


def test_calculator_with_the_plugin_and_where_it_cannot_be_imported(run, tmp_path):
    """In eV and eV/Angstrom, as the trainer predicts."""
    found = predictions_of_calculator(run, "with", tmp_path / "with.npz")
    assert found["forces"].shape == (6, 3)
    assert np.isfinite(found["forces"]).all()
    file = torch.load(run["checkpoints"] / "best_checkpoint.pt", weights_only=False)
    assert file["normalizers"]["energy"]["rmsd"] == pytest.approx(KCAL_PER_MOL)
    # energies of a few eV at most, as the labels: not kcal/mol
    labels = np.array([atoms.get_potential_energy() for atoms in labelled_molecules(3)])
    assert abs(found["energy"]) < 50 * np.abs(labels).max()

    bare = predictions_of_calculator(run, "without", tmp_path / "without.npz")
    np.testing.assert_array_equal(bare["forces"], found["forces"])
    assert bare["energy"] == found["energy"]
