"""Upstream's own trainer and files with each of its models, on the torch and the scatter functions at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MODELS, labelled_molecules, make_config, make_trainer, parameters
from fairchem.core.common.relaxation.ase_utils import OCPCalculator
from helpers_models import EQUIFORMER_V2, ESCN

UPSTREAM = {
    **MODELS,
    "escn": {**ESCN, "num_layers": 1},
    "equiformer_v2": {**EQUIFORMER_V2, "num_layers": 1},
}


@pytest.mark.parametrize("name", UPSTREAM)
def test_train_save_resume_predict_and_calculate(
    name: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, name, {**UPSTREAM[name], "otf_graph": True, "use_pbc": True})
    # Fitted normalizers and references are written to files and to the checkpoint.
    fit: dict[str, Any] = {
        "element_references": {"fit": {"targets": ["energy"], "batch_size": 4}},
        "normalizer": {"fit": {"targets": {"energy": None, "forces": {"mean": 0.0}}, "batch_size": 4}},
    }
    config = make_config(tiny_data, tmp_path, name, optimizer="AdamW", scheduler="CosineAnnealingLR", T_max=9)
    config["dataset"]["train"]["transforms"] = fit
    trainer = make_trainer(config, "ocp")
    before = parameters(trainer)
    trainer.train(disable_eval_tqdm=True)
    after = parameters(trainer)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(parameter.isfinite().all() for parameter in after)

    folder = Path(trainer.config["cmd"]["checkpoint_dir"])
    config["dataset"]["train"]["transforms"] = {
        "element_references": {"file": str(folder / "element_references.pt")},
        "normalizer": {"file": str(folder / "normalizers.pt")},
    }
    config["optim"]["max_epochs"] = 3
    resumed = make_trainer(config, "ocp")
    resumed.load_checkpoint(str(folder / "checkpoint.pt"))
    assert all(torch.equal(a, b) for a, b in zip(parameters(resumed), after, strict=True))
    assert resumed.step == trainer.step == 6
    resumed.train(disable_eval_tqdm=True)
    assert resumed.step == 9
    predictions = resumed.predict(resumed.test_loader, per_image=False, disable_tqdm=True)
    assert all(torch.isfinite(torch.as_tensor(np.array(predictions["energy"]))).flatten())

    atoms = labelled_molecules(1)[0]
    atoms.calc = OCPCalculator(checkpoint_path=folder / "best_checkpoint.pt", cpu=True, seed=0)
    assert np.isfinite(atoms.get_potential_energy())
    assert atoms.get_forces().shape == (len(atoms), 3)
