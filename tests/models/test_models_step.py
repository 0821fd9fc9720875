"""One PIWSL step of every model: the shared neighbour list against separate lists."""

from __future__ import annotations

import pytest
import torch
from conftest import make_config, make_trainer
from test_models_symmetry import MODELS

from fairchem_piwsl.training.stacking import SharedGraph


@pytest.mark.parametrize(
    "name", [n for n in MODELS if n not in ("schnet, gradient forces", "spinconv, own gradient")]
)
def test_loss_and_gradient_agree(name, tiny_data, tmp_path):
    """No pair of these molecules crosses the cutoff, so that only rounding may differ."""
    config = make_config(tiny_data, tmp_path, piwsl={"c_pitc": 1.2, "c_pisc": 0.8, "eps_max": 0.025})
    config["model"] = MODELS[name] | {"otf_graph": True}
    trainer = make_trainer(config)
    trainer.model.train()
    batch = next(iter(trainer.train_loader))
    results = []
    for share in (True, False):
        trainer._shared_graph = SharedGraph(trainer._unwrapped_model, share)
        trainer.model.zero_grad()
        torch.manual_seed(0)
        loss = trainer._compute_loss(trainer._forward(batch), batch)
        loss.backward()
        grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        results.append((loss.detach(), torch.cat([g.flatten() for g in grads])))
    (loss, grad), (separate_loss, separate_grad) = results
    assert float(loss) == pytest.approx(float(separate_loss), rel=1e-4)
    assert float((grad - separate_grad).norm() / separate_grad.norm()) < 1e-3
