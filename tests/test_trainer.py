"""The trainer: golden equality, one call, Eq. 5 against an independent computation."""

from __future__ import annotations

import pytest
import torch
from conftest import make_config, make_trainer, parameters

CASE_D = {"c_pitc": 1.2, "c_pisc": 0.01, "eps_max": 0.025}


@pytest.mark.parametrize("model", ["painn", "schnet"])
@pytest.mark.parametrize("piwsl", [None, {}, {"c_pitc": 0.0, "c_pisc": 0.0}, {**CASE_D, "start_step": 1000}])
def test_zero_weights_equal_the_stock_trainer_bit_for_bit(tiny_data, tmp_path, model, piwsl):
    config = make_config(tiny_data, tmp_path, model, piwsl, max_epochs=7)  # 21 steps
    ours, stock = make_trainer(config), make_trainer(config, "ocp")
    calls = {"ours": 0, "stock": 0}
    for name, trainer in (("ours", ours), ("stock", stock)):
        trainer.model.register_forward_pre_hook(
            lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
        )
        trainer.train(disable_eval_tqdm=True)
    assert ours.step == stock.step == 21
    assert calls["ours"] == calls["stock"]
    for mine, theirs in zip(parameters(ours), parameters(stock), strict=True):
        assert torch.equal(mine, theirs)


def test_weak_terms_change_the_result(tiny_data, tmp_path):
    trained = []
    for piwsl in ({}, CASE_D):
        trainer = make_trainer(make_config(tiny_data, tmp_path, piwsl=piwsl))
        trainer.train(disable_eval_tqdm=True)
        trained.append(parameters(trainer))
    assert any(not torch.equal(a, b) for a, b in zip(*trained, strict=True))
