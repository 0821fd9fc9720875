"""Training with weak terms, checkpoint, `OCPCalculator`: one round trip for every model of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_config, make_trainer
from fairchem.core.common.relaxation.ase_utils import OCPCalculator
from helpers_models import EQUIFORMER_V2, ESCN, PAINN, SCHNET, SPINCONV, batch_of, gradient, structures

MODELS = {
    "spinconv": SPINCONV,
    "spinconv, own gradient": SPINCONV | {"force_estimator": "grad"},
    "schnet, gradient forces": gradient(SCHNET),
    "painn, gradient forces": gradient(PAINN),
    "escn, gradient forces": gradient(ESCN),
    "equiformer_v2, gradient forces": gradient(EQUIFORMER_V2),
}


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name, tiny_data, tmp_path):
    config = make_config(
        tiny_data, tmp_path, piwsl={"c_pitc": 1.2, "c_pisc": 0.01, "eps_max": 0.025}, max_epochs=1
    )
    config["model"] = MODELS[name] | {"otf_graph": True}
    trainer = make_trainer(config)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step == 3
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    checkpoint = Path(trainer.config["cmd"]["checkpoint_dir"]) / "best_checkpoint.pt"
    calculator = OCPCalculator(checkpoint_path=str(checkpoint), cpu=True, seed=0)
    atoms = structures()[0]
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    model = calculator.trainer.model.eval()
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    if "gradient" in name:
        out = model(calculator_batch(atoms))
        scale = float(calculator.trainer.normalizers["energy"].rmsd)
        assert energy == pytest.approx(scale * out["energy"].item(), rel=1e-4)
        np.testing.assert_allclose(
            forces, scale * out["forces"].detach().numpy(), atol=1e-4 * np.abs(forces).max()
        )
    assert np.isfinite(forces).all()


def calculator_batch(atoms):
    """A batch as the calculator makes it, without a stored neighbour list."""
    batch = batch_of([atoms])
    for key in ("edge_index", "cell_offsets", "neighbors", "edge_distance_vec", "nedges"):
        del batch[key]
    return batch
