"""Random layers and edge frames: PITC's residual at dr = 0, before and after sharing the numbers."""

from __future__ import annotations

import pytest
import torch
from helpers_models import DIRECT, EQUIFORMER_V2, ESCN, SPINCONV, batch_of, build, gradient, structures
from torch import nn

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training.shared_randomness import draws_random_numbers, shared_randomness
from fairchem_piwsl.training.stacking import SharedGraph, stack

RANDOM = {
    "escn": ESCN,
    "equiformer_v2": EQUIFORMER_V2,
    "escn, gradient forces": gradient(ESCN),
    "equiformer_v2, gradient forces": gradient(EQUIFORMER_V2),
}


def pitc_residual_at_zero(model, batch, share: bool, k_2nd: float = 0.0) -> float:
    """Largest |E_C - T(E_A, F, dr)| over the scale of the energies, for dr = 0 and for B as well."""
    shared = shared_randomness(model, batch) if share else shared_randomness(nn.Identity(), batch)
    with SharedGraph(model).of(batch), shared, torch.no_grad():
        out = model(stack(batch, [batch.pos] * 3))
    a, c, b = out["energy"].view(3, -1)
    return float(torch.maximum((c - a).abs(), (b - a).abs()).max() / a.abs().max())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", RANDOM)
def test_residual_of_undisplaced_copies(name, training):
    model = build(RANDOM[name]).train(training)
    batch = batch_of(structures())
    before = pitc_residual_at_zero(model, batch, share=False)
    after = pitc_residual_at_zero(model, batch, share=True)
    print(f"{name}, training {training}: {before:.1e} before, {after:.1e} after")
    if training or "gradient" not in name:
        assert before > (1e-4 if training else 1e-6)
    assert after < 1e-6


def test_random_forces_of_spinconv_are_shared():
    """Its energies are deterministic; its forces enter PITC with k_2nd > 0 and PISC."""
    model, batch = build(SPINCONV), batch_of(structures())
    stacked = stack(batch, [batch.pos] * 3)

    def spread():
        a, c, _ = model(stacked)["forces"].chunk(3)
        return float((a - c).abs().max() / a.abs().max())

    assert spread() > 1e-2
    with shared_randomness(model, batch):
        assert spread() < 1e-5


def test_later_calls_see_the_numbers_of_the_first():
    """The adversarial mode evaluates A first, and then C and B."""
    model, batch = build(EQUIFORMER_V2).train(), batch_of(structures())
    with shared_randomness(model, batch), SharedGraph(model).of(batch):
        alone = model(batch)["energy"]
        both = model(stack(batch, [batch.pos] * 2))["energy"].view(2, -1)
    torch.testing.assert_close(both, alone.expand(2, -1), rtol=1e-5, atol=1e-6)


def test_different_steps_see_different_numbers():
    model, batch = build(EQUIFORMER_V2).train(), batch_of(structures())
    energies = []
    for _ in range(2):
        with shared_randomness(model, batch):
            energies.append(model(batch)["energy"])
    assert not torch.equal(*energies)


def test_dropout_keeps_its_rate_and_copies_share_the_mask():
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.3)

        def forward(self, data):
            n = len(data.pos)
            return {
                "dropout": self.dropout(torch.ones(n, 50)),
                "rand": torch.rand(n, 4),
                "randn_like": torch.randn_like(data.pos),
                "bernoulli": torch.bernoulli(torch.full((n, 50), 0.2)),
                "odd": torch.rand(3 * n + 1),
            }

    model, batch = Layers(), batch_of(structures())
    with shared_randomness(model, batch):
        out = model(stack(batch, [batch.pos] * 3))
    for name in ("dropout", "rand", "randn_like", "bernoulli"):
        a, c, b = out[name].chunk(3)
        assert torch.equal(a, c), name
        assert torch.equal(a, b), name
        assert len(a.unique(dim=0)) == len(a), name
    assert float((out["dropout"] > 0).double().mean()) == pytest.approx(0.7, abs=0.06)
    assert float(out["dropout"].max()) == pytest.approx(1 / 0.7)
    assert float(out["bernoulli"].mean()) == pytest.approx(0.2, abs=0.06)
    assert len(out["odd"].unique()) == 9 * batch.num_nodes + 1
    with shared_randomness(model.eval(), batch):
        assert bool((model(batch)["dropout"] == 1).all())


def test_models_without_random_layers_are_not_touched():
    batch = batch_of(structures())
    for name in ("painn", "schnet"):
        model = build(DIRECT[name]).train()
        assert not draws_random_numbers(model)
        with shared_randomness(model, batch):
            assert not model._forward_hooks
            assert not model._forward_pre_hooks


def test_a_model_is_looked_through_once(monkeypatch):
    model, batch = build(ESCN), batch_of(structures())
    for _ in range(2):
        with shared_randomness(model, batch):
            assert model._forward_hooks
        monkeypatch.setattr(model, "modules", None)


def test_everything_is_put_back_after_an_error():
    model, batch = build(ESCN), batch_of(structures())
    model.energy_block.forward = None
    with pytest.raises(TypeError), shared_randomness(model, batch):
        model(stack(batch, [batch.pos] * 2))
    assert not model._forward_hooks
    assert not torch.overrides._get_current_function_mode_stack()


def test_recomputed_layers_are_refused():
    model = build(ESCN, activation_checkpoint=True)
    with (
        pytest.raises(UserError, match="activation_checkpoint"),
        shared_randomness(model, batch_of(structures())),
    ):
        pass
