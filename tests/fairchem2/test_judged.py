"""The commands that judge a model, on checkpoints of fairchem 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ase.io
import helpers_fairchem2 as helpers
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import load_predict_unit
from fairchem.core.units.mlip_unit.api.inference import InferenceSettings, MLIPInferenceCheckpoint
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fairchem_piwsl import cli
from fairchem_piwsl.analysis.potential import load_potential, load_potentials
from fairchem_piwsl.datasets.read import read_labelled
from fairchem_piwsl.errors import UserError

#: eV for the elements 0 to 8
REFERENCES = [0.0, -13.6, 0.0, 0.0, 0.0, 0.0, -1025.6, 0.0, -2035.7]
SCALE = 1.7


def task(kind: str, datasets: list[str], references: list[float]) -> dict:
    """A task as a config has it."""
    norm, size = "fairchem.core.modules.normalization.", 1 if kind == "energy" else 3
    entry = {
        "_target_": "fairchem.core.units.mlip_unit.mlip_unit.Task",
        "name": kind,
        "level": "system" if kind == "energy" else "atom",
        "property": kind,
        "datasets": datasets,
        "out_spec": {"dim": [size], "dtype": "float32"},
        "normalizer": {"_target_": norm + "normalizer.Normalizer", "mean": 0.0, "rmsd": SCALE},
    }
    if kind == "energy":
        tensor = {"_target_": "torch.DoubleTensor", "_args_": [references]}
        elements = norm + "element_references.ElementReferences"
        entry["element_references"] = {"_target_": elements, "element_references": tensor}
    return entry


def model_config(direct: bool) -> dict:
    """A tiny eSCN-MD with heads of its own for forces, or with forces as gradients."""
    backbone = {
        "model": helpers.MODULE + "eSCNMDBackbone",
        "max_num_elements": 40,
        "sphere_channels": 8,
        "hidden_channels": 8,
        "edge_channels": 8,
        "lmax": 2,
        "mmax": 2,
        "num_layers": 1,
        "num_distance_basis": 8,
        "cutoff": 4.0,
        "max_neighbors": 200,
        "direct_forces": direct,
        "regress_forces": True,
        "otf_graph": True,
        "always_use_pbc": False,
        "use_dataset_embedding": False,
    }
    heads = helpers.DIRECT if direct else {"efs": {"module": helpers.MODULE + "MLP_EFS_Head"}}
    return {
        "_target_": "fairchem.core.models.base.HydraModel",
        "backbone": backbone,
        "heads": {name: dict(head) for name, head in heads.items()},
        "pass_through_head_outputs": not direct,
    }


def checkpoint(
    path: Path,
    direct: bool = True,
    kinds: tuple[str, ...] = ("energy", "forces"),
    datasets: tuple[str, ...] = ("mol",),
    references: list[float] = REFERENCES,
    seed: int = 0,
    **model: str,
) -> Path:
    """An `inference_ckpt.pt` as upstream's training writes it, of a tiny model with random weights."""
    torch.manual_seed(seed)
    config = model_config(direct)
    hydra = instantiate(config)
    average = torch.optim.swa_utils.AveragedModel(hydra)
    config |= model
    tasks = OmegaConf.create([task(kind, list(datasets), references) for kind in kinds])
    states = hydra.state_dict(), average.state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(MLIPInferenceCheckpoint(OmegaConf.create(config), *states, tasks), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged")


@pytest.fixture(scope="module")
def direct(folder: Path) -> Path:
    return checkpoint(folder / "direct/inference_ckpt.pt")


@pytest.fixture(scope="module")
def conservative(folder: Path) -> Path:
    return checkpoint(folder / "conservative/inference_ckpt.pt", direct=False)


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    """Labelled molecules; the first has no forces."""
    frames = helpers.structures(6)
    for number, atoms in enumerate(frames):
        zero = sum(REFERENCES[z] for z in atoms.numbers)
        labels = {"energy": atoms.get_potential_energy() + zero, "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels if number else {"energy": labels["energy"]})
    ase.io.write(folder / "data.extxyz", frames)
    return folder / "data.extxyz"


def piwsl(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["piwsl", *map(str, arguments)])
    cli.main()


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_batches_of_any_size_agree_with_upstreams_calculator(kind: str, request) -> None:
    path = request.getfixturevalue(kind)
    frames = [*helpers.structures(3), *helpers.structures(2, periodic=True, seed=1)]
    for atoms in frames[3:]:
        atoms.numbers[:] = 8
    potential = load_potential(path, cpu=True)
    together, alone = potential.predict(frames, 16), potential.predict(frames, 1)
    upstream = FAIRChemCalculator(load_predict_unit(path, InferenceSettings(), device="cpu"), task_name="mol")
    for number, atoms in enumerate(frames):
        atoms.calc = upstream
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        assert together.energy[number] == pytest.approx(energy, abs=1e-5)
        np.testing.assert_allclose(together.forces[number], forces, atol=1e-5)
        np.testing.assert_allclose(alone.forces[number], forces, atol=1e-5)
        atoms.calc = potential.calculator()
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-5)
    np.testing.assert_allclose(together.energy, alone.energy, rtol=0, atol=1e-5)


def test_references_are_added_in_float64(direct: Path, folder: Path) -> None:
    """In float32 the energies of 1e6 eV would have steps of 0.06 eV."""
    large = [1e5 * reference for reference in REFERENCES]
    other = checkpoint(folder / "large/inference_ckpt.pt", references=large)
    frames = helpers.structures(4)
    first, second = (load_potential(path, cpu=True).predict(frames) for path in (direct, other))
    zero = [sum(large[z] - REFERENCES[z] for z in atoms.numbers) for atoms in frames]
    np.testing.assert_allclose(second.energy - first.energy, zero, rtol=1e-15)


def derivative(potential, atoms: Atoms, atom: int, axis: int, step: float = 1e-3) -> float:
    """dE/dr of one coordinate by central differences, to fourth order."""
    energies = []
    for shift in (-2, -1, 1, 2):
        moved = atoms.copy()
        moved.positions[atom, axis] += shift * step
        energies.append(potential.predict([moved]).energy[0])
    far, near = energies[3] - energies[0], energies[2] - energies[1]
    return (8 * near - far) / (12 * step)


@pytest.mark.parametrize(
    ("kind", "gradient"), [("direct", True), ("conservative", True), ("conservative", False)]
)
def test_gradient_forces_are_the_derivative_of_the_energy(kind: str, gradient: bool, request) -> None:
    path = request.getfixturevalue(kind)
    potential = load_potential(path, cpu=True, dtype="float64", gradient_forces=gradient)
    [atoms] = helpers.structures(1)
    forces = potential.predict([atoms]).forces[0]
    assert np.abs(forces).max() > 1e-3
    for atom, axis in ((0, 0), (2, 1), (4, 2)):
        assert forces[atom, axis] == pytest.approx(
            -derivative(potential, atoms, atom, axis), rel=1e-6, abs=1e-9
        )
    if kind == "direct":
        own = load_potential(path, cpu=True, dtype="float64").predict([atoms]).forces[0]
        assert np.abs(own - forces).max() > 1e-3


def test_a_model_without_a_task_for_forces(folder: Path) -> None:
    path = checkpoint(folder / "energy/inference_ckpt.pt", kinds=("energy",))
    with pytest.raises(UserError, match=r"no task for forces.*--gradient-forces"):
        load_potential(path, cpu=True)
    atoms = helpers.structures(1)
    forces = load_potential(path, cpu=True, gradient_forces=True).predict(atoms).forces[0]
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-4)


def test_several_data_sets_need_a_name(folder: Path) -> None:
    path = checkpoint(folder / "two/inference_ckpt.pt", datasets=("mol", "omol"))
    with pytest.raises(UserError, match=r"several data sets; give --task-name mol or omol"):
        load_potential(path, cpu=True)
    with pytest.raises(UserError, match=r"knows no data set oc20; give --task-name mol or omol"):
        load_potential(path, cpu=True, task_name="oc20")
    assert load_potential(path, cpu=True, task_name="omol").task_name == "omol"


def test_charge_and_spin_reach_the_model(direct: Path, tmp_path: Path) -> None:
    [atoms] = helpers.structures(1)
    atoms.info |= {"charge": 1, "spin": 2}
    ase.io.write(tmp_path / "ion.extxyz", atoms)
    [ion] = [item.atoms for item in read_labelled(tmp_path / "ion.extxyz")]
    potential = load_potential(direct, cpu=True)
    neutral = ion.copy()
    neutral.info = {}
    energies = potential.predict([ion, neutral]).energy
    assert abs(energies[0] - energies[1]) > 1e-6
    ion.info["charge"] = 1000
    with pytest.raises(UserError, match="is not for it"):
        potential.predict([ion])


def test_evaluate_knows_missing_labels_in_both_formats(direct, data, tmp_path, monkeypatch) -> None:
    prepare = (
        "prepare",
        "--format",
        "aselmdb",
        "--out",
        tmp_path / "set",
        "--allow-missing",
        "--train-file",
        data,
    )
    piwsl(monkeypatch, *prepare)
    results = []
    for number, file in enumerate((data, tmp_path / "set/train/data.aselmdb")):
        piwsl(
            monkeypatch,
            "evaluate",
            direct,
            "--data",
            file,
            "--units",
            "eV",
            "--cpu",
            "--out",
            tmp_path / f"{number}",
        )
        results.append(json.loads((tmp_path / f"{number}/evaluate.json").read_text())["models"][0]["metrics"])
    assert results[0] == results[1]
    structures = read_labelled(data)
    predicted = load_potential(direct, cpu=True).predict([item.atoms for item in structures])
    energy = np.abs(predicted.energy - [item.energy for item in structures])
    forces = [np.abs(f - item.forces) for f, item in zip(predicted.forces[1:], structures[1:], strict=True)]
    assert results[0]["energy_mae"]["value"] == pytest.approx(energy.mean(), rel=1e-6)
    assert results[0]["forces_mae"]["value"] == pytest.approx(np.concatenate(forces).mean(), rel=1e-6)


def test_consistency_tells_gradient_forces_from_direct_ones(
    direct, conservative, data, tmp_path, monkeypatch
) -> None:
    found = {}
    for path in (direct, conservative):
        out = tmp_path / path.parent.name
        sample = ("--structures", 2, "--jacobians", 0, "--directions", 2)
        piwsl(monkeypatch, "consistency", path, "--data", data, *sample, "--cpu", "--out", out)
        [result] = [json.loads(file.read_text()) for file in out.glob("*.json")]
        assert result["precision"] == "float64"
        found[path.parent.name] = result
    assert found["conservative"]["conservative"]
    assert found["conservative"]["force_mismatch"]["relative"] < 1e-6
    assert found["conservative"]["slopes"]["pitc_k0.5"] == pytest.approx(3, abs=0.3)
    assert not found["direct"]["conservative"]
    assert found["direct"]["force_mismatch"]["relative"] > 0.1


def test_profile_and_dynamics(direct, conservative, data, tmp_path, monkeypatch) -> None:
    structure = ("--structure", data, "--index", 0, "--cpu")
    bond = ("--bond", 0, 1, "--points", 5, "--out", tmp_path)
    piwsl(monkeypatch, "profile", direct, conservative, *structure, *bond)
    curves = json.loads((tmp_path / "profile.json").read_text())["curves"]
    assert set(curves) == {"direct", "conservative"}
    steps = ("--steps", 4, "--interval", 2, "--out", tmp_path)
    piwsl(monkeypatch, "md", conservative, *structure, *steps)
    [result] = [json.loads(path.read_text()) for path in tmp_path.glob("*/md.json")]
    assert result["runs"][0]["steps"] == 4


def run_config(seed: int, c_pitc: float) -> str:
    """What a training leaves beside its checkpoints."""
    callback = {"_target_": "fairchem_piwsl.fairchem2.PIWSLCallback", "c_pitc": c_pitc, "k_2nd": 0.5}
    dataset = {"dataset_configs": {"mol": {"splits": {"train": {"src": "data/mine/train/data.aselmdb"}}}}}
    job = {"seed": seed, "run_dir": f"runs/{seed}"}
    model = {"backbone": {"model": helpers.MODULE + "eSCNMDBackbone", "direct_forces": True}}
    unit = {
        "model": model,
        "tasks": [task("energy", ["mol"], []), task("forces", ["mol"], [])],
        "job_config": job,
    }
    loader = {"dataset": dataset, "batch_sampler_fn": {"seed": seed}}
    runner = {"train_eval_unit": unit, "train_dataloader": loader, "callbacks": [callback] if c_pitc else []}
    return OmegaConf.to_yaml(OmegaConf.create({"job": job, "runner": runner}))


def test_report_is_one_table_over_seeds(data, tmp_path, monkeypatch) -> None:
    for c_pitc in (0.0, 1.2):
        for seed in (0, 1):
            run = tmp_path / f"runs/{c_pitc}/{seed}/202611-2700-0318-1e0a/checkpoints"
            for step in ("step_9", "step_10"):
                path = checkpoint(run / step / "inference_ckpt.pt", seed=seed + 2 * bool(c_pitc))
                path.with_name("resume.yaml").write_text(run_config(seed, c_pitc))
    command = (
        "report",
        tmp_path / "runs",
        "--data",
        data,
        "--units",
        "eV",
        "--cpu",
        "--out",
        tmp_path / "report",
    )
    piwsl(monkeypatch, *command)
    [section] = json.loads((tmp_path / "report/report.json").read_text())["sections"]
    assert section["title"] == "mine, training set not found, escnmdbackbone"
    assert {run["checkpoint"].split("/")[-2] for run in section["runs"]} == {"step_10"}
    entries = {(e["method"], e["quantity"]): e for e in section["entries"]}
    assert {method for method, _ in entries} == {"baseline", "PITC 1.2, eps 0.01, k 0.5"}
    before, after = (entries[name, "forces_rmse"] for name in ("baseline", "PITC 1.2, eps 0.01, k 0.5"))
    assert len(before["values"]) == len(after["values"]) == after["pairs"] == 2
    assert after["change"] == pytest.approx(np.mean(after["values"]) / np.mean(before["values"]) - 1)
    assert abs(after["change"]) > 1e-3


def test_names_are_those_of_the_runs(tmp_path: Path) -> None:
    paths = [
        checkpoint(tmp_path / name / "202611-2700-0318-1e0a/checkpoints/final/inference_ckpt.pt")
        for name in ("plain", "piwsl")
    ]
    assert [potential.name for potential in load_potentials(paths, cpu=True)] == ["plain", "piwsl"]


@pytest.fixture
def wrong(tmp_path: Path, direct: Path) -> dict[str, Path]:
    """Files that are no checkpoints of fairchem 2, or no good ones."""
    paths = {
        name: tmp_path / f"{name}.pt"
        for name in ("old", "list", "text", "cut", "elsewhere", "nested", "nan", "odd")
    }
    torch.save({"config": {"model": {"name": "painn"}}, "state_dict": {}, "normalizers": {}}, paths["old"])
    torch.save([1, 2], paths["list"])
    paths["text"].write_text("no checkpoint")
    paths["cut"].write_bytes(direct.read_bytes()[:5000])
    checkpoint(paths["elsewhere"], _target_="os.getcwd")
    checkpoint(paths["nested"], _target_="fairchem.core.units.mlip_unit.predict.os.getcwd")
    content = torch.load(direct, weights_only=False)
    content.ema_state_dict["module.backbone.sphere_embedding.weight"][:] = torch.nan
    torch.save(content, paths["nan"])
    content = torch.load(direct, weights_only=False)
    content.model_config.backbone.sphere_channels = 16
    torch.save(content, paths["odd"])
    return paths


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "does not exist"),
        ("old", "is a checkpoint of fairchem-core 1.10, and fairchem-core 2 is installed here"),
        ("list", "it holds a list"),
        ("text", "cannot be read"),
        ("cut", "cannot be read"),
        ("elsewhere", "asks for os.getcwd, which is no class of fairchem"),
        ("nested", "asks for fairchem.core.units.mlip_unit.predict.os.getcwd"),
        ("nan", "weights are not finite"),
        ("odd", "do not fit"),
    ],
)
def test_wrong_checkpoints_are_one_sentence(
    name, message, wrong, data, tmp_path, monkeypatch, capsys
) -> None:
    path = wrong.get(name, tmp_path / "absent.pt")
    with pytest.raises(SystemExit, match="2"):
        piwsl(monkeypatch, "evaluate", path, "--data", data, "--cpu", "--out", tmp_path / "out")
    sentence = capsys.readouterr().err
    assert message in sentence
    assert path.name in sentence
    assert sentence.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_structures_that_the_model_cannot_evaluate(direct: Path) -> None:
    potential = load_potential(direct, cpu=True)
    with pytest.raises(UserError, match="single atom"):
        potential.predict([Atoms("H")])
    with pytest.raises(UserError, match="does it know all elements of Au, H"):
        potential.predict([Atoms("AuH", [[0, 0, 0], [0, 0, 1.5]])])


def test_records_of_fairchem_1_are_named(direct: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    import lmdb

    record = b"\x80\x04ctorch_geometric.data.data\nData\n)\x81."
    with lmdb.open(str(tmp_path / "a.lmdb"), subdir=False) as env, env.begin(write=True) as transaction:
        transaction.put(b"0", record)
    with pytest.raises(SystemExit, match="2"):
        piwsl(
            monkeypatch, "evaluate", direct, "--data", tmp_path / "a.lmdb", "--cpu", "--out", tmp_path / "out"
        )
    assert "only where torch_geometric is installed" in capsys.readouterr().err
    assert "torch_geometric" not in sys.modules
