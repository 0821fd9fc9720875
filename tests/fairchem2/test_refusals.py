"""Runs and settings that the weak terms do not fit end in one clear sentence."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import helpers_fairchem2 as helpers
import pytest
import torch

from fairchem_piwsl import cli
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.fairchem2 import PIWSLCallback


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"c_pitcc": 1.0}, "runner.callbacks: PIWSLCallback.c_pitcc is not a setting; did you mean 'c_pitc'"),
        ({"c_pitc": "1e-2"}, "PIWSLCallback.c_pitc must be a finite number"),
        ({"c_pitc": 1.0, "eps_max": -1.0}, "PIWSLCallback.eps_max must be a finite number >= 0"),
        ({"c_wl": 1.0}, "c_wl is there with fairchem 1.10 only"),
        ({"noisy_nodes": True}, "fairchem 1.10 only"),
        ({"c_pitc": 1.0, "validate_consistency": True}, "fairchem 1.10 only"),
        ({"auto": 1}, "PIWSLCallback.auto must be"),
        ({"c_pitc": 1.0, "energy_share": -1.0}, "PIWSLCallback.energy_share must be"),
    ],
)
def test_settings(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PIWSLCallback(**settings)


def refused(unit, message: str, **settings) -> None:
    with pytest.raises(UserError, match=message):
        PIWSLCallback(**({"c_pitc": 1.0} | settings)).on_train_start(None, unit)


def test_bf16_and_fsdp() -> None:
    refused(helpers.unit(helpers.model(), bf16=True), "bf16: False")
    unit = helpers.unit(helpers.model())
    unit.train_strategy = "fsdp"
    refused(unit, "train_strategy: ddp")


@pytest.mark.parametrize("kind", ["energy", "forces"])
def test_a_missing_property(kind: str) -> None:
    refused(helpers.unit(helpers.model(), tasks=[helpers.task(kind)]), "no task has the property")


def test_padding_and_compilation() -> None:
    for flags in (dict(use_compile=True), dict(use_padding=True)):
        model = helpers.model()
        model.backbone.global_cfg = SimpleNamespace(**flags)
        refused(helpers.unit(model), "padded sizes")


def test_a_model_without_heads() -> None:
    unit = helpers.unit(helpers.model())
    unit.model = torch.nn.Linear(1, 1)
    refused(unit, "Linear has none")


def test_gradient_forces(caplog: pytest.LogCaptureFixture) -> None:
    unit = helpers.unit(helpers.model(direct_forces=False))
    refused(unit, "k_2nd: 0.5")
    callback = PIWSLCallback(c_pitc=1.0, k_2nd=0.5)
    callback.on_train_start(None, unit)
    assert "little to gain" in caplog.text
    callback.on_train_end(None, unit)
    refused(unit, "they agree with it at eps_max: 0; set a displacement", eps_max=0)


@pytest.mark.parametrize("command", ["bench", "references", "fairchem", "sweep", "mace"])
def test_what_needs_fairchem_1_says_so(command: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["piwsl", command, "something"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    sentence = capsys.readouterr().err
    assert sentence.startswith(f"piwsl: piwsl {command} needs fairchem-core 1.10.0, and 2.")
    assert sentence.count("\n") == 1


def test_main_py_needs_fairchem_1() -> None:
    with pytest.raises(SystemExit, match=r"^main.py needs fairchem-core 1\.10\.0"):
        runpy.run_path(str(Path(__file__).parents[2] / "main.py"), run_name="__main__")
