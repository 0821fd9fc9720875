"""The benchmark: that its variants are what they claim, and its command writes what it promises."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import make_config
from typer.testing import CliRunner

from fairchem_piwsl.cli import app
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training.bench import _kernel_seconds, _spread, _variants, bench

BOTH = {"c_pitc": 1.2, "c_pisc": 0.01, "eps_max": 0.02}


def _config(tiny_data: Path, tmp_path: Path, piwsl: dict) -> dict:
    config = make_config(tiny_data, tmp_path, "painn", piwsl)
    # a file of its own, since LMDB opens a file only once in a process
    source = Path(config["dataset"]["train"]["src"])
    copy = tmp_path / source.name
    copy.write_bytes(source.read_bytes())
    config["dataset"] = {"train": {**config["dataset"]["train"], "src": str(copy)}}
    return config


@pytest.mark.parametrize(("piwsl", "configurations"), [(BOTH, 3), ({"c_pitc": 1.0}, 2), ({"auto": True}, 1)])
def test_variants_make_the_steps_they_are_named_after(tiny_data, tmp_path, piwsl, configurations):
    variants = _variants(_config(tiny_data, tmp_path, piwsl), tmp_path, cpu=True)
    sizes: dict[str, list[int]] = {name: [] for name in variants}
    for name, variant in variants.items():
        variant.trainer.model.register_forward_pre_hook(
            lambda _, args, name=name: sizes[name].append(args[0].num_graphs)
        )
        variant.step()
    assert sizes["baseline"] == [4]
    assert sizes["piwsl"] == [4 * configurations] == sizes["enlarged batch"]
    assert sizes["separate calls"] == [4] * configurations
    # one call or several, the same step
    pairs = zip(
        variants["piwsl"].trainer.model.parameters(),
        variants["separate calls"].trainer.model.parameters(),
        strict=True,
    )
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_a_learning_rate_that_follows_the_validation_error(tiny_data, tmp_path):
    """The variants have no validation data, which this scheduler asks for."""
    config = _config(tiny_data, tmp_path, BOTH)
    validation = tmp_path / "val.lmdb"
    validation.write_bytes(Path(config["dataset"]["train"]["src"]).read_bytes())
    config["dataset"]["val"] = {"src": str(validation)}
    config["optim"] |= {"scheduler": "ReduceLROnPlateau", "mode": "min", "factor": 0.8, "patience": 3}
    assert bench(config, rounds=2, warmup=1, cpu=True)["configurations"] == 3


def test_schedule_does_not_hide_the_weak_terms(tiny_data, tmp_path):
    """A few steps of a run that starts them later would be plain ones, and the ratio 1."""
    late = {**BOTH, "start_step": 500, "ramp_steps": 100, "every_n_steps": 4}
    config = _config(tiny_data, tmp_path, late)
    before = copy.deepcopy(config)
    variant = _variants(config, tmp_path, cpu=True)["piwsl"]
    sizes: list[int] = []
    variant.trainer.model.register_forward_pre_hook(lambda _, args: sizes.append(args[0].num_graphs))
    for _ in range(3):
        variant.step()
    assert sizes == [12] * 3
    assert config == before


def test_ratios_are_of_steps_in_the_same_round(tiny_data, tmp_path):
    result = bench(_config(tiny_data, tmp_path, BOTH), rounds=3, warmup=1, cpu=True)
    assert result["configurations"] == 3
    assert result["structures"] == 4
    for name in ("piwsl_over_baseline", "piwsl_over_enlarged_batch", "three_calls_over_baseline"):
        ratio = result["ratios"][name]
        assert result[name] == ratio["median"]
        assert 0 < ratio["lower_quartile"] <= ratio["median"] <= ratio["upper_quartile"]
    peaks = {name: variant["peak_bytes"] for name, variant in result["variants"].items()}
    assert peaks["enlarged batch"] > 2 * peaks["baseline"] > 0


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, 2.0, 9.0]])
def test_quartiles_lie_among_the_rounds(values):
    found = _spread(values)
    assert min(values) < found["lower_quartile"] < found["median"] < found["upper_quartile"] < max(values)


def test_kernels_are_the_gpus_without_the_range_around_the_optimizers(monkeypatch):
    class Profile(contextlib.ExitStack):
        def events(self):
            gpu, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
            rows = [("gemm", gpu, 2000.0), ("adam", gpu, 500.0), ("Optimizer.step#AdamW.step", gpu, 600.0)]
            rows.append(("aten::mm", cpu, 2000.0))
            return [SimpleNamespace(name=n, device_type=d, device_time=t) for n, d, t in rows]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    steps: list[int] = []
    kernels = _kernel_seconds(lambda: steps.append(1), torch.device("cuda"))
    assert kernels == {"kernel_seconds": pytest.approx(0.0025)}
    assert steps == [1]
    assert _kernel_seconds(lambda: steps.append(2), torch.device("cpu")) == {}


def test_command_writes_json(tiny_data, tmp_path):
    path = tmp_path / "bench.yml"
    path.write_text(yaml.safe_dump(_config(tiny_data, tmp_path, BOTH)))
    arguments = [
        "bench",
        "--config-yml",
        str(path),
        "--cpu",
        "--rounds",
        "2",
        "--json",
        str(tmp_path / "b.json"),
    ]
    result = CliRunner().invoke(app, [*arguments, "--optim.batch_size=2"])
    assert result.exit_code == 0, result.output
    assert "enlarged batch" in result.output
    assert "[quartiles]" in result.output
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["structures"] == 2  # the override reached the config
    assert written["piwsl_over_baseline"] > 0


def test_nothing_to_compare_is_a_user_error(tiny_data, tmp_path):
    with pytest.raises(UserError, match="c_pitc"):
        bench(_config(tiny_data, tmp_path, {}), cpu=True)
