"""Weights from the norms of gradients: on toy terms with known gradients, and in the trainer."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from conftest import labelled_molecules, make_config, make_trainer, parameters, to_data, write_lmdb
from helpers_models import DIRECT
from helpers_trainer import first_batch, forward_and_loss, logged, trainer_at_step
from test_trainer_resume import checkpoint, trained
from torch import Tensor

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.losses import leg_residual
from fairchem_piwsl.settings import AUTO, AUTO_DISPLACED, CLIP_GRAD_NORM, PIWSLSettings
from fairchem_piwsl.training.balance import (
    LARGEST_VALUE,
    GeometricMean,
    GradientBalance,
    bounded,
    gradient_products,
    norm_of_sum,
    share_of_energies,
)
from fairchem_piwsl.training.energy_gradient import without_gradient
from fairchem_piwsl.training.loss_terms import Term

# ------------------------------------------------------------------ toy problem: linear terms, known gradients


def linear(theta: Tensor, *gradient: float, value: float = 0.0) -> Tensor:
    """A term whose gradient and value are given."""
    return value + (theta * torch.tensor(gradient)).sum()


def toy(energy: float = 1.0, weak: float = 1.0) -> tuple[list[Term], Tensor]:
    """Gradients (3, 0, 0) x energy, (0, 4, 0) with weight 10, and (0, 1, 2) x weak; one parameter of three numbers.

    Values are 1 x energy, 3 with weight 10, and 4 x weak, so that gradients decide.
    """
    theta = torch.zeros(3, requires_grad=True)
    return [
        Term("energy", linear(theta, 3 * energy, 0, 0, value=energy), 1.0),
        Term("forces", linear(theta, 0, 4, 0, value=3.0), 10.0),
        Term("pitc", linear(theta, 0, weak, 2 * weak, value=4 * weak), 1.0, weak=True),
    ], theta


def balanced(terms: list[Term], theta: Tensor, energy_share: float, weak_share: float) -> dict[str, float]:
    balance = GradientBalance(energy_share, weak_share)
    balance.measure(terms, [theta])
    return {term.name: float(term.weight) for term in balance(terms)}


def test_products_are_those_of_the_gradients():
    terms, theta = toy()
    products = gradient_products([term.value for term in terms], [theta])
    assert products.tolist() == [[9, 0, 0], [0, 16, 4], [0, 4, 5]]
    assert norm_of_sum(products, [1, 0, 0]) == 3
    assert norm_of_sum(products, [1, 2, 0]) == pytest.approx(math.hypot(3, 8))
    assert norm_of_sum(products, [0, 1, 1]) == pytest.approx(math.hypot(5, 2))


def test_weights_make_the_norms_the_set_multiples():
    weights = balanced(*toy(), energy_share=0.5, weak_share=0.3)
    assert weights["forces"] == 10
    assert weights["energy"] * 3 == pytest.approx(0.5 * 40)
    supervised = math.hypot(0.5 * 40, 40)
    assert weights["pitc"] * math.sqrt(5) == pytest.approx(0.3 * supervised)


@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_where_a_gradient_is_next_to_nothing_values_limit_the_weight(unit):
    """An output that hardly depends on the parameters yet: equal norms would ask for a millionfold weight."""
    theta = torch.zeros(2, requires_grad=True)
    terms = [
        Term("energy", linear(theta, 1e-6 * unit, 0, value=5 * unit), 1.0),
        Term("forces", linear(theta, 0, 4, value=3.0), 10.0),
        Term("pitc", linear(theta, 1e-6 * unit, 0, value=7 * unit), 2.0, weak=True),
    ]
    weights = balanced(terms, theta, energy_share=0.5, weak_share=0.3)
    assert weights["energy"] * 5 * unit == pytest.approx(LARGEST_VALUE["energy"] * 0.5 * 30)
    assert weights["pitc"] * 7 * unit == pytest.approx(LARGEST_VALUE["weak"] * 0.3 * (30 + 0.5 * 30))


def test_labels_that_are_met_exactly_leave_the_weights_as_they_are():
    theta = torch.zeros(2, requires_grad=True)
    terms = [
        Term("forces", linear(theta, 0, 4), 10.0),
        Term("pitc", linear(theta, 1, 0, value=1.0), 1.0, weak=True),
    ]
    assert balanced(terms, theta, energy_share=0.0, weak_share=0.3)["pitc"] == 1.0


def test_energy_alone_keeps_its_weight_and_is_the_measure_of_the_weak_terms():
    terms, theta = toy()
    weights = balanced([terms[0], terms[2]], theta, energy_share=0.5, weak_share=0.3)
    assert weights["energy"] == 1
    assert weights["pitc"] * math.sqrt(5) == pytest.approx(0.3 * 3)


def test_weak_terms_share_one_factor():
    theta = torch.zeros(2, requires_grad=True)
    terms = [
        Term("forces", linear(theta, 3, 4, value=1.0), 1.0),
        Term("pitc", linear(theta, 1, 0, value=1.0), 2.0, weak=True),
        Term("pisc", linear(theta, 0, 1, value=1.0), 1.0, weak=True),
    ]
    weights = balanced(terms, theta, energy_share=0.0, weak_share=1.0)
    assert weights["pitc"] == pytest.approx(2 * weights["pisc"])
    assert math.hypot(weights["pitc"], weights["pisc"]) == pytest.approx(5)


@pytest.mark.parametrize("which", ["energy", "weak"])
def test_another_unit_of_a_term_changes_nothing(which):
    """A thousand times the loss, a thousandth of its weight."""
    weights = []
    for terms, theta in (toy(), toy(**{which: 1000.0})):
        balance = GradientBalance(1.0, 0.3)
        for _ in range(3):
            balance.measure(terms, [theta])
        weights.append(balance(terms))
    plain, scaled = weights
    for a, b in zip(plain, scaled, strict=True):
        factor = 1000.0 if a.name == {"energy": "energy", "weak": "pitc"}[which] else 1.0
        assert float(a.weight) == pytest.approx(factor * float(b.weight), rel=1e-6)


def test_loss_scale_of_half_precision_changes_nothing():
    terms, theta = toy()
    a, b = (gradient_products([term.value for term in terms], [theta], scale) for scale in (1.0, 2.0**16))
    assert torch.equal(a, b)


def slopes(residuals: list[float]) -> Tensor:
    """Derivatives of the bounded terms by their residuals, float64."""
    r = torch.tensor(residuals, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(bounded(r.square()).sum(), r)[0]


@pytest.mark.parametrize("factor", [1e-2, 7.0, 1e5])
def test_larger_residuals_have_no_larger_gradient(factor):
    residuals = [0.5, -1.0, 2.0, 3.0]
    assert torch.allclose(slopes([factor * r for r in residuals]), slopes(residuals))


def test_the_scale_is_that_of_cauchys_loss():
    """2.385 standard deviations of normal residuals; at the scale, the gradient is that of |r|."""
    r = torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = 2.385 * float(r.std())
    expected = 2 * scale * r / (scale**2 + r.square())
    assert torch.allclose(slopes(r.tolist()), expected, rtol=0.02)
    assert float(expected.abs().max()) <= 1


def test_structures_without_a_residual_leave_the_scale_alone():
    """Atoms on their own, or held in place by symmetry, have none but rounding; others have no part in the term."""
    alone = slopes([1.0, 2.0, 3.0])
    assert torch.allclose(slopes([0.0, 1.0, 2.0, 3.0, 4e-7])[1:4], alone)
    assert torch.equal(slopes([0.0, 0.0]), torch.zeros(2, dtype=torch.float64))
    squares = torch.tensor([1.0, 4.0, 9.0, 0.01])
    counted = torch.tensor([True, True, True, False])
    assert torch.equal(bounded(squares, counted)[:3], bounded(squares[:3]))


@pytest.mark.parametrize("outlier", [1e6, 1e15])
def test_a_structure_that_explodes_leaves_the_others_alone(outlier):
    alone, (*others, exploded) = slopes([1.0] * 7), slopes([1.0] * 7 + [outlier])
    assert [float(slope) for slope in others] == pytest.approx(alone.tolist(), rel=0.5)
    assert abs(float(exploded)) < 20 / outlier


def test_weights_by_hand_keep_the_mean_of_squares():
    terms, theta = toy()
    balance = GradientBalance(1.0, 0.0)
    balance.measure(terms, [theta])
    assert [term.weight for term in balance(terms) if term.weak] == [1.0]


def test_gradients_that_overflow_are_no_measurement():
    """As a scaled loss does in half precision: neither a weight nor what is logged may change."""
    balance, parameter = GradientBalance(1.0, 0.0), torch.ones(2, requires_grad=True)

    def measure(factor: float) -> None:
        total = (factor * parameter).sum()
        balance.measure([Term("energy", total, 1.0), Term("forces", 3 * total, 1.0)], [parameter])

    measure(2.0)
    before = balance.state()
    measure(math.inf)
    assert balance.state() == before
    assert balance.factors["energy"].value == pytest.approx(3.0)


def test_term_without_gradient_is_left_out():
    """A batch without energy labels, or a residual of zero, says nothing about the weight."""
    terms, theta = toy()
    balance = GradientBalance(1.0, 0.3)
    balance.measure(terms, [theta])
    before = balance.state()
    silent = [Term("energy", torch.zeros(()), 1.0), terms[1], Term("pitc", 0 * theta.sum(), 1.0, weak=True)]
    balance.measure(silent, [theta])
    after = balance.state()
    assert {k: v for k, v in before.items() if k != "norms"} == {
        k: v for k, v in after.items() if k != "norms"
    }


@pytest.mark.parametrize(("size", "followed"), [(0.1, True), (1e-3, False)])
def test_gradients_that_vanish_leave_the_weights_as_they_are(size, followed):
    """An output has gone constant: larger weights would ruin the model when its gradient comes back."""
    terms, theta = toy()
    balance = GradientBalance(1.0, 0.3)
    for _ in range(6):
        balance.measure(terms, [theta])
    before = [term.weight for term in balance(terms)]
    smaller, theta = toy(energy=size, weak=size)
    for _ in range(100):
        balance.measure(smaller, [theta])
    after = [term.weight for term in balance(terms)]
    assert after[1] == before[1]
    expected = [weight / size if followed else weight for weight in (before[0], before[2])]
    assert [after[0], after[2]] == pytest.approx(expected, rel=1e-3)


def test_geometric_mean():
    mean = GeometricMean(window=3)
    for value in (1.0, 100.0):
        mean.add(value)
    assert mean.value == pytest.approx(10)
    for value in (0.0, math.nan, math.inf):
        mean.add(value)
    assert mean.count == 2
    for _ in range(60):
        mean.add(7.0)
    assert mean.value == pytest.approx(7)


def test_state_goes_on_exactly():
    terms, theta = toy()
    one, two = GradientBalance(1.0, 0.3), GradientBalance(1.0, 0.3)
    one.measure(terms, [theta])
    two.load(one.state())
    other, theta = toy(energy=2.0, weak=5.0)
    for balance in (one, two):
        balance.measure(other, [theta])
    assert one.factors["weak"].count == two.factors["weak"].count == 2
    assert one.state() == two.state()
    assert [term.weight for term in one(terms)] == [term.weight for term in two(terms)]


# ------------------------------------------------------------------ share of the energy labels


@pytest.mark.parametrize("unit", [1.0, 23.06])
def test_share_of_energies_is_a_length(unit):
    """Energies +-3, forces of +-10 in each component: 0.3 Angstrom, in whatever unit of energy."""
    energies = unit * torch.tensor([97.0, 103.0, math.nan])
    forces = unit * torch.tensor([[10.0, -10.0, 10.0], [math.nan] * 3, [-10.0, 10.0, 10.0]])
    assert share_of_energies(energies, forces) == pytest.approx(0.3)
    assert share_of_energies(10 * energies, forces) == 2
    assert share_of_energies(energies, torch.full((4, 3), math.nan)) == 1


def test_share_in_the_trainer_is_that_of_the_training_set(tiny_data, tmp_path):
    trainer = make_trainer(make_config(tiny_data, tmp_path, piwsl={"auto": True}))
    structures = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    energies = torch.cat([torch.as_tensor(s.energy).view(1) for s in structures]).double()
    forces = torch.cat([s.forces for s in structures]).double()
    expected = float(energies.std(correction=0) / forces.square().mean().sqrt())
    assert trainer._balance.shares["energy"] == pytest.approx(min(2, expected), rel=1e-3)
    by_hand = make_trainer(make_config(tiny_data, tmp_path, piwsl={"auto": True, "energy_share": 0.4}))
    assert by_hand._balance.shares["energy"] == 0.4


def test_fixed_atoms_have_no_part_in_the_share(tmp_path):
    records = [to_data(atoms, i) for i, atoms in enumerate(labelled_molecules(6))]
    energies = torch.stack([record.energy for record in records]).double()
    force = torch.cat([record.forces[1:] for record in records]).double().square().mean().sqrt()
    for record in records:
        record.fixed[0], record.forces[0] = 1, 1e3
    for split in ("train", "val", "test"):
        write_lmdb(tmp_path / f"{split}.lmdb", records)
    trainer = make_trainer(make_config(tmp_path, tmp_path, piwsl={"auto": True}))
    expected = float(energies.std(correction=0) / force)
    assert trainer._balance.shares["energy"] == pytest.approx(min(2, expected), rel=1e-3)


# ------------------------------------------------------------------ settings


def test_auto_needs_no_other_key():
    settings = PIWSLSettings.from_config({"auto": True})
    assert settings == PIWSLSettings(auto=True, **AUTO)
    assert PIWSLSettings.from_config(asdict(settings)) == settings


@pytest.mark.parametrize(
    ("by_hand", "others"),
    [
        ({"eps_max": 0.02}, AUTO_DISPLACED),
        ({"eps_max": 0.02, "every_n_steps": 7}, AUTO_DISPLACED),
        ({"every_n_steps": 1}, {}),
        ({"weak_share": 0.3, "eps_max": 0}, {}),
    ],
)
def test_what_is_set_by_hand_stays(by_hand, others):
    settings = PIWSLSettings.from_config({"auto": True, **by_hand})
    assert settings == PIWSLSettings(auto=True, **{**AUTO, **others, **by_hand})


@pytest.mark.parametrize("by_hand", [{}, {"every_n_steps": 1}, {"every_n_steps": 5, "weak_share": 0.5}])
def test_what_is_set_by_hand_stays_where_there_is_no_gradient(by_hand):
    expected = PIWSLSettings(auto=True, **{**AUTO, **AUTO_DISPLACED, **by_hand})
    assert without_gradient({"auto": True, **by_hand}, "optim.piwsl") == expected


@pytest.mark.parametrize("block", [{"auto": True, "eps_max": 0}, {"c_pitc": 1.0, "eps_max": 0}])
def test_no_displacement_by_hand_is_not_replaced(block):
    with pytest.raises(
        UserError, match=r"optim\.piwsl: eps_max is 0, but the gradient .*; set a displacement"
    ):
        without_gradient(block, "optim.piwsl")


def test_weights_by_hand_are_not_balanced():
    settings = PIWSLSettings.from_config({"auto": True, "c_pisc": 0.1})
    assert (settings.c_pitc, settings.c_pisc, settings.weak_share) == (0.0, 0.1, 0.0)
    assert settings.eps_max > 0
    assert settings.energy_share == AUTO["energy_share"]
    assert not PIWSLSettings.from_config({"auto": True, "c_pitc": 0.0}).weak


@pytest.mark.parametrize(("by_hand", "share"), [({}, 0), ({"energy_share": 0.5}, 0.5)])
def test_a_share_by_hand_stays_where_the_weak_terms_are_off(by_hand, share):
    off = PIWSLSettings.from_config({"auto": True, **by_hand}).without_weak_terms()
    assert not off.weak
    assert off.energy_share == share
    assert off.balances == bool(share)


@pytest.mark.parametrize("point_loss", ["mse", "mae"])
def test_cauchys_loss_is_for_squares(tiny_data, tmp_path, point_loss):
    piwsl = {"c_pitc": 1.0, "weak_share": 1.0, "eps_max": 0.05, "point_loss": point_loss}
    trainer = trainer_at_step(tiny_data, tmp_path, piwsl)
    batch = first_batch(trainer)
    out = trainer._forward(batch)
    [pitc] = [term for term in trainer.terms(out, batch) if term.name == "pitc"]
    residual = leg_residual(out.at["A"], out.at["C"], out.moved["C"], batch.batch)
    expected = bounded(residual.square()) if point_loss == "mse" else residual.abs()
    assert pitc.value.item() == pytest.approx(expected.mean().item(), rel=1e-6)


def test_share_of_the_weak_terms_grows(tiny_data, tmp_path):
    """Measured at step 1, where the ramp is at its start, the share at step 50 is half the full one."""
    piwsl = {"auto": True, "every_n_steps": 1, "ramp_steps": 100}
    trainer = trainer_at_step(tiny_data, tmp_path, piwsl)
    batch = first_batch(trainer)
    shares = {}
    for step in (1, 50, 100):
        trainer.step = step
        out, _ = forward_and_loss(trainer, batch)
        shares[step] = float(out.log["weighted_pitc"]) / float(out.log["loss_pitc"])
    assert shares[1] == pytest.approx(0.01 * shares[100], rel=1e-4)
    assert shares[50] == pytest.approx(0.5 * shares[100], rel=1e-4)


@pytest.mark.parametrize(("every", "start"), [(1, 0), (3, 0), (3, 100), (5, 0), (7, 20)])
def test_first_measurement_waits_until_the_forces_have_left_zero(every, start):
    settings = PIWSLSettings.from_config({"auto": True, "every_n_steps": every, "start_step": start})
    first, interval = max(start, 1), {1: 60, 3: 60, 5: 60, 7: 63}[every]
    measured = [step for step in range(1, first + 2 * interval + 1) if settings.measures(step)]
    assert measured == [step for step in (first, first + interval, first + 2 * interval) if step > 60]


# ------------------------------------------------------------------ trainer


@pytest.fixture
def measured_soon(monkeypatch):
    """Gradients are measured at every second step."""
    monkeypatch.setattr("fairchem_piwsl.settings.STEPS_BETWEEN_MEASUREMENTS", 2)


def test_norms_in_the_trainer_are_the_set_multiples(tiny_data, tmp_path):
    trainer = trainer_at_step(
        tiny_data, tmp_path, {"auto": True, "weak_share": 0.3, "energy_share": 0.5, "ramp_steps": 0}, step=61
    )
    batch = first_batch(trainer)
    out, _ = forward_and_loss(trainer, batch)
    model = [p for p in trainer.model.parameters() if p.requires_grad]
    terms = {term.name: term for term in trainer._balance(list(trainer.terms(out, batch)))}

    def norm(*names: str) -> float:
        total = sum(terms[name].weighted for name in names)
        parts = torch.autograd.grad(total, model, retain_graph=True, allow_unused=True)
        return math.sqrt(sum(float(g.double().square().sum()) for g in parts if g is not None))

    assert norm("energy") == pytest.approx(0.5 * norm("forces"), rel=1e-4)
    assert norm("pitc") == pytest.approx(0.3 * norm("energy", "forces"), rel=1e-4)


@pytest.mark.parametrize("labels", ["all", "none", "not trained on"])
def test_forces_with_labels_are_not_taught_by_the_energy(tiny_data, tmp_path, labels):
    """The force head sees a gradient of PITC where it has no labels to learn from, and only there."""
    trainer = trainer_at_step(tiny_data, tmp_path, {"auto": True})
    batch = first_batch(trainer)
    if labels == "none":
        batch.forces = torch.full_like(batch.forces, math.nan)
    if labels == "not trained on":
        trainer.loss_functions = [loss for loss in trainer.loss_functions if loss[0] != "forces"]
    out = trainer._forward(batch)
    pitc = next(term for term in trainer.terms(out, batch) if term.name == "pitc").value
    head = list(trainer._unwrapped_model.out_forces.parameters())
    trunk = list(trainer._unwrapped_model.message_layers.parameters())
    of_head, of_trunk = (
        [g for g in torch.autograd.grad(pitc, ps, retain_graph=True, allow_unused=True) if g is not None]
        for ps in (head, trunk)
    )
    assert sum(float(g.abs().sum()) for g in of_trunk) > 0
    assert (sum(float(g.abs().sum()) for g in of_head) > 0) == (labels != "all")


def test_coefficient_of_the_config_does_not_matter_once_measured(tiny_data, tmp_path):
    gradients = []
    for coefficient in (1, 1000):
        trainer = trainer_at_step(tiny_data, tmp_path, {"auto": True}, step=61)
        trainer.loss_functions[0][1]["coefficient"] = coefficient
        _, loss = forward_and_loss(trainer, first_batch(trainer))
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("piwsl", [{"auto": True, "c_pitc": 0.0, "energy_share": 0.0}])
def test_without_weak_terms_and_balance_it_is_the_stock_trainer(tiny_data, tmp_path, piwsl):
    config = make_config(tiny_data, tmp_path, piwsl=piwsl, max_epochs=4)
    ours, stock = make_trainer(config), make_trainer(config, "ocp")
    for trainer in (ours, stock):
        trainer.train(disable_eval_tqdm=True)
    assert all(torch.equal(a, b) for a, b in zip(parameters(ours), parameters(stock), strict=True))


def test_gradient_forces_switch_the_weak_terms_off_and_say_so(tiny_data, tmp_path, caplog):
    config = make_config(tiny_data, tmp_path, "schnet", {"auto": True}, max_epochs=2)
    ours, stock = make_trainer(config), make_trainer(config, "ocp")
    with caplog.at_level("INFO"):
        for trainer in (ours, stock):
            trainer.train(disable_eval_tqdm=True)
    assert "forces are the gradient of its energy" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(parameters(ours), parameters(stock), strict=True))


@pytest.mark.parametrize(("model", "displaced"), [("painn", False), ("spinconv", False), ("escn", True)])
def test_displacements_where_the_energy_cannot_be_differentiated(
    tiny_data, tmp_path, caplog, model, displaced
):
    config = make_config(tiny_data, tmp_path, piwsl={"auto": True, "every_n_steps": 1}, max_epochs=1)
    config["model"] = dict(DIRECT[model], otf_graph=True)
    trainer = make_trainer(config)
    with caplog.at_level("INFO"):
        trainer.train(disable_eval_tqdm=True)
    assert (trainer.piwsl.eps_max == AUTO_DISPLACED["eps_max"]) == displaced
    assert (trainer.piwsl.eps_max == 0) != displaced
    assert ("eps_max 0.03" in caplog.text) == displaced


def test_weights_are_in_the_log_and_at_the_end(tiny_data, tmp_path, caplog, measured_soon):
    config = make_config(tiny_data, tmp_path, piwsl={"auto": True, "every_n_steps": 1}, max_epochs=2)
    trainer = make_trainer(config)
    trainer.config["cmd"]["print_every"] = 1
    with caplog.at_level("INFO"):
        trainer.train(disable_eval_tqdm=True)
    assert "weights at the end, from the norms of gradients: energy x" in caplog.text
    for name in ("weight_energy", "weight_pitc", "gradient_energy", "gradient_forces", "gradient_pitc"):
        values = logged(trainer, "train", name)
        assert len(values) == trainer.step - (2 if name.startswith("gradient") else 0)
        assert min(values) > 0


@pytest.mark.parametrize(
    ("piwsl", "set_by_hand", "limit"),
    [
        ({"auto": True}, {}, CLIP_GRAD_NORM),
        ({"auto": True}, {"clip_grad_norm": 3}, 3),
        ({"auto": True}, {"clip_grad_norm": 0}, 0),
        ({"c_pitc": 1.0}, {}, None),
    ],
)
def test_auto_limits_the_gradient_where_a_config_does_not(tiny_data, tmp_path, piwsl, set_by_hand, limit):
    config = make_config(tiny_data, tmp_path, piwsl=piwsl, max_epochs=1)
    del config["optim"]["clip_grad_norm"]
    config["optim"] |= set_by_hand
    trainer = make_trainer(config)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.clip_grad_norm == limit


@pytest.mark.parametrize("without", ["forces", "energy"])
def test_trains_on_one_label_alone(tiny_data, tmp_path, without, measured_soon):
    config = make_config(tiny_data, tmp_path, piwsl={"auto": True, "every_n_steps": 1}, max_epochs=1)
    config["loss_functions"] = [loss for loss in config["loss_functions"] if without not in loss]
    trainer = make_trainer(config)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step == len(trainer.train_loader)
    assert trainer._balance.factors["weak"].count > 0
    assert trainer._balance.factors["energy"].count == 0


def test_resumed_run_ends_bit_for_bit(tiny_data, tmp_path, monkeypatch):
    """Killed between two measurements: the checkpoint holds the means."""
    monkeypatch.setattr("fairchem_piwsl.settings.STEPS_BETWEEN_MEASUREMENTS", 10)
    piwsl: dict[str, Any] = {"auto": True, "every_n_steps": 1}
    config = make_config(tiny_data, tmp_path, piwsl=piwsl, max_epochs=9, checkpoint_every=11)
    whole = trained(config, name="whole")
    killed = trained(config, kill_at=14, name="killed")
    resumed = trained(config, resume=checkpoint(killed), name="resumed")
    assert whole._balance.state() == resumed._balance.state()
    assert whole._balance.factors["weak"].count == 2  # steps 11 and 21
    for a, b in zip(parameters(whole), parameters(resumed), strict=True):
        assert torch.equal(a, b)
