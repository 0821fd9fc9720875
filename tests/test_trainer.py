"""The trainer: golden equality, one call, Eq. 5 against an independent computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import KCAL_PER_MOL, make_config, make_trainer, parameters
from helpers_trainer import (
    CASE_D,
    EV,
    counted_calls,
    first_batch,
    forward_and_loss,
    seg,
    separate_call,
    trainer_at_step,
)
from numpy import ndarray

from fairchem_piwsl.perturbations import draw, step_generator
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.training.stacking import SharedGraph

# ------------------------------------------------------------------ golden equality


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


def test_metrics_of_upstream_are_upstreams(tiny_data, tmp_path):
    """What upstream reports, it reports with the same value, and the two agree on the best checkpoint."""
    config = make_config(tiny_data, tmp_path, max_epochs=3)
    ours, stock = make_trainer(config), make_trainer(config, "ocp")
    for trainer in (ours, stock):
        trainer.train(disable_eval_tqdm=True)
    mine, theirs = (trainer.validate(disable_tqdm=True) for trainer in (ours, stock))
    for name, entry in theirs.items():
        assert mine[name]["metric"] == pytest.approx(entry["metric"], rel=1e-12), name
    assert ours.best_val_metric == stock.best_val_metric


def test_weak_terms_change_the_result(tiny_data, tmp_path):
    trained = []
    for piwsl in ({}, CASE_D):
        trainer = make_trainer(make_config(tiny_data, tmp_path, piwsl=piwsl))
        trainer.train(disable_eval_tqdm=True)
        trained.append(parameters(trainer))
    assert any(not torch.equal(a, b) for a, b in zip(*trained, strict=True))


# ------------------------------------------------------------------ Eq. 5

TERMS = [
    {"c_pitc": 1.2},
    {"c_pitc": 1.2, "k_2nd": 0.5},
    {"c_pitc": 1.2, "k_2nd": 0.25, "point_loss": "mae"},
    *({"c_pisc": 0.8, "pisc_case": case, "k_2nd": k} for case in (1, 2, 3) for k in (0.0, 0.5)),
    {"c_pitc": 1.2, "c_pisc": 0.8},
    {"c_pitc": 1.2, "c_pisc": 0.8, "pisc_case": 2, "point_loss": "relu"},
    {"c_wl": 0.7},
    {"c_wl": 0.7, "wl_forces": "predicted"},
    {"c_pitc": 1.2, "c_pisc": 0.8, "c_wl": 0.7, "k_2nd": 0.5},
    {"c_pitc": 1.2, "c_pisc": 0.8, "c_wl": 0.7, "share_graph": False},
    {"c_pitc": 1.2, "c_pisc": 0.8, "c_wl": 0.7, "fraction": 0.5, "magnitude": "fixed"},
    {"c_pitc": 1.2, "perturbation": "sphere", "magnitude": "fixed"},
]


@pytest.mark.parametrize("model", ["painn", "schnet"])
@pytest.mark.parametrize("piwsl", TERMS, ids=lambda terms: "-".join(f"{k}={v}" for k, v in terms.items()))
def test_total_loss_against_an_independent_computation(tiny_data, tmp_path, model, piwsl):
    """Separate calls with lists of their own, conversions written out, formulas of the paper in numpy."""
    piwsl = {"eps_max": 0.02, **piwsl}
    trainer = trainer_at_step(tiny_data, tmp_path, piwsl, step=3, model=model)
    batch = first_batch(trainer)
    before = batch.clone()
    out, loss = forward_and_loss(trainer, batch)
    dr, dr_b = out.moved["C"], out.moved.get("B")
    expected = independent_eq5(trainer, before, PIWSLSettings(**piwsl), dr, dr_b)
    assert loss.item() == pytest.approx(sum(expected.values()), rel=2e-4)
    for name, value in expected.items():
        # a residual of 1e-4 kcal/mol is the difference of energies of several
        assert out.log[f"weighted_{name}"].item() == pytest.approx(value, rel=2e-2, abs=1e-8)


def independent_eq5(trainer, batch, s: PIWSLSettings, dr, dr_b) -> dict[str, float]:
    at = {"a": batch.pos, "c": batch.pos + dr}
    if dr_b is not None:
        at["b"] = batch.pos + dr_b
    outputs = {name: tuple(separate_call(trainer.model, batch, pos)) for name, pos in at.items()}
    unit = KCAL_PER_MOL * EV  # normaliser (eV) and eV in kcal/mol
    e = {name: energy * unit for name, (energy, _) in outputs.items()}
    f = {name: forces * unit for name, (_, forces) in outputs.items()}
    k, dr = s.k_2nd, dr.double().numpy()
    dr_b = np.zeros_like(dr) if dr_b is None else dr_b.double().numpy()

    def point(residual: ndarray, energy: ndarray, step: ndarray) -> float:
        if s.point_loss == "relu":
            return np.maximum(np.abs(residual) - np.abs(energy) * seg((step**2).sum(1), batch), 0).mean()
        return (residual**2 if s.point_loss == "mse" else np.abs(residual)).mean()

    def taylor(start: str, end: str, step: ndarray) -> ndarray:
        forces = f[start] if k == 0 else (1 - k) * f[start] + k * f[end]
        return e[start] - seg((step * forces).sum(1), batch)

    label_e, label_f = batch.energy.numpy().ravel(), batch.forces.numpy()
    error_f = np.linalg.norm(outputs["a"][1] - label_f / KCAL_PER_MOL, axis=1)
    terms = {
        "energy": np.abs(outputs["a"][0] - label_e / KCAL_PER_MOL).mean(),
        "forces": 100 * error_f.mean(),
    }
    if s.c_pitc:
        terms["pitc"] = s.c_pitc * point(taylor("a", "c", dr) - e["c"], e["c"], dr)
    if s.c_pisc:
        leg = dr - dr_b
        if s.pisc_case == 1:
            value = point(taylor("b", "c", leg) - e["c"], e["c"], leg)
        elif s.pisc_case == 2:
            a_to_c = taylor("a", "c", dr)
            value = point(a_to_c - taylor("b", "c", leg), a_to_c, dr)
        else:
            value = point(taylor("c", "b", -leg) - e["b"], e["b"], leg)
        terms["pisc"] = s.c_pisc * value
    if s.c_wl:
        forces = f["a"] if s.wl_forces == "predicted" else label_f * EV
        terms["wl"] = s.c_wl * point(label_e * EV - seg((dr * forces).sum(1), batch) - e["c"], e["c"], dr)
    return terms


@pytest.mark.parametrize("piwsl", [{}, {"share_graph": False}, {"auto": True, "every_n_steps": 1}], ids=str)
def test_pitc_without_displacements_against_an_independent_computation(tiny_data, tmp_path, piwsl):
    """One call at A; the gradient is that of a separate call, the mean over components written out."""
    trainer = trainer_at_step(tiny_data, tmp_path, {"c_pitc": 0.7, **piwsl, "eps_max": 0}, step=3)
    batch = first_batch(trainer)
    single = batch.clone()
    single.pos = batch.pos.clone().requires_grad_()
    plain = trainer.model(single)
    (gradient,) = torch.autograd.grad(plain["energy"].sum(), single.pos, retain_graph=True)
    with counted_calls(trainer) as sizes:
        out, loss = forward_and_loss(trainer, batch)
    assert sizes == [4]
    squares = (KCAL_PER_MOL * EV * (plain["forces"] + gradient)).detach().double().numpy() ** 2
    expected = seg(squares.mean(1), batch) / batch.natoms.numpy()
    assert out.log["loss_pitc"].item() == pytest.approx(expected.mean(), rel=1e-4)
    assert out.log["weighted_pitc"].item() == pytest.approx(0.7 * expected.mean(), rel=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in trainer.model.parameters() if p.requires_grad)


def test_draws_depend_on_seed_rank_and_step(tiny_data, tmp_path):
    """The trainer's displacements are those of (seed, rank, step), with the bonds of ASE as guard."""
    piwsl = {**CASE_D, "eps_max": 0.6, "fraction": 0.7}
    trainer = trainer_at_step(tiny_data, tmp_path, piwsl, step=7)
    batch = first_batch(trainer)
    out, _ = forward_and_loss(trainer, batch)
    shortest = []
    for i in range(batch.num_graphs):
        distances = torch.pdist(batch.pos[batch.batch == i])
        shortest.append(distances.min())
    source, free = step_generator(0, 0, 7, torch.device("cpu")), torch.ones(len(batch.pos), dtype=torch.bool)
    settings = PIWSLSettings(**piwsl)
    arguments = (settings, batch.pos, batch.batch, batch.natoms, free, torch.stack(shortest), source)
    torch.testing.assert_close(out.moved["C"], draw(*arguments))
    torch.testing.assert_close(out.moved["B"], draw(*arguments))
    longest = torch.stack([out.moved["C"][batch.batch == i].norm(dim=-1).max() for i in range(4)])
    assert (longest <= 0.3 * torch.stack(shortest) + 1e-6).all()
    trainer.step = 8
    again, _ = forward_and_loss(trainer, batch)
    assert not torch.equal(again.moved["C"], out.moved["C"])


# ------------------------------------------------------------------ what is evaluated


@pytest.mark.parametrize(
    ("piwsl", "calls"),
    [
        ({"c_pitc": 0.0}, [4]),
        ({"c_pitc": 1}, [8]),
        ({"c_pitc": 1, "k_2nd": 0.5}, [8]),
        ({"c_pitc": 1, "eps_max": 0}, [4]),
        ({"c_pitc": 1, "c_pisc": 1}, [12]),
        ({"c_pisc": 1}, [12]),
        ({"c_pisc": 1, "pisc_case": 2}, [8]),
        ({"c_pisc": 1, "pisc_case": 2, "k_2nd": 0.5}, [12]),
        ({"c_wl": 1}, [8]),
        ({"noisy_nodes": True}, [4]),
        ({"c_pitc": 1, "share_graph": False}, [8]),
        ({"c_pitc": 1, "perturbation": "adversarial"}, [4, 4]),
        ({"c_pitc": 1, "c_pisc": 1, "perturbation": "adversarial"}, [4, 8]),
        ({"c_pitc": 1, "start_step": 2}, [4]),
        ({"noisy_nodes": True, "start_step": 2}, [4]),
    ],
    ids=str,
)
def test_one_call_with_what_the_terms_need(tiny_data, tmp_path, piwsl, calls):
    trainer = trainer_at_step(tiny_data, tmp_path, piwsl)
    with counted_calls(trainer) as sizes:
        forward_and_loss(trainer, first_batch(trainer))
    assert sizes == calls


def test_a_step_looks_for_shortest_distances_once(tiny_data, tmp_path, monkeypatch):
    found, search = [], SharedGraph.shortest_distances
    monkeypatch.setattr(SharedGraph, "shortest_distances", lambda graph: found.append(1) or search(graph))
    trainer = trainer_at_step(tiny_data, tmp_path, CASE_D)
    forward_and_loss(trainer, first_batch(trainer))
    assert found == [1]


def test_case_2_moves_to_b_without_c(tiny_data, tmp_path):
    trainer = trainer_at_step(tiny_data, tmp_path, {"c_pisc": 1, "pisc_case": 2})
    batch, seen = first_batch(trainer), []
    trainer.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].pos.clone()))
    out, _ = forward_and_loss(trainer, batch)
    assert "C" not in out.at
    a, b = seen[0].chunk(2)
    assert torch.equal(a, batch.pos)
    assert torch.equal(b, batch.pos + out.moved["B"])


@pytest.mark.parametrize(
    "piwsl", [CASE_D, {"c_pitc": 1, "perturbation": "adversarial"}, {"noisy_nodes": True}]
)
def test_incoming_batch_is_not_changed(tiny_data, tmp_path, piwsl):
    trainer = trainer_at_step(tiny_data, tmp_path, piwsl)
    batch = first_batch(trainer)
    before = batch.clone()
    forward_and_loss(trainer, batch)
    assert set(batch.keys()) == set(before.keys())
    for key, value in before.to_dict().items():
        same = torch.equal(batch[key], value) if torch.is_tensor(value) else batch[key] == value
        assert same, key


def test_schedule_decides_step_by_step(tiny_data, tmp_path):
    """start_step and every_n_steps switch the copies off, the ramp scales what is left."""
    piwsl = {"c_pitc": 1, "start_step": 2, "every_n_steps": 2, "ramp_steps": 4, "validate_consistency": False}
    trainer = make_trainer(make_config(tiny_data, tmp_path, piwsl=piwsl, max_epochs=3))
    shares, compute = [], trainer._compute_loss

    def recorded(out, batch):
        loss = compute(out, batch)
        if trainer.model.training:
            terms = out.log
            shares.append((terms["weighted_pitc"] / terms["loss_pitc"]).item() if "loss_pitc" in terms else 0)
        return loss

    trainer._compute_loss = recorded
    trainer.val_loader = trainer.test_loader = None
    with counted_calls(trainer) as sizes:
        trainer.train(disable_eval_tqdm=True)
    assert sizes == [4, 8, 4, 8, 4, 8, 4, 8, 4]
    unit = KCAL_PER_MOL * EV
    assert shares == pytest.approx([0, 0.25 / unit, 0, 0.75 / unit, 0, 1 / unit, 0, 1 / unit, 0], rel=1e-5)


# ------------------------------------------------------------------ gradients


def test_no_leakage_between_structures(tiny_data, tmp_path):
    """The weak terms of structure i have gradient exactly zero in the outputs of all other structures."""
    trainer = trainer_at_step(tiny_data, tmp_path, {"c_pitc": 1, "c_pisc": 1, "c_wl": 1, "k_2nd": 0.5})
    batch = first_batch(trainer)
    outputs: dict[str, torch.Tensor] = {}
    trainer.model.register_forward_hook(lambda _, __, out: outputs.update(out))
    out = trainer._forward(batch)
    owner = torch.cat([batch.batch] * 3)
    monitored = (outputs["energy"], outputs["forces"])
    a, b, c = (out.at[point] for point in "ABC")
    dr, dr_b = out.moved["C"], out.moved["B"]
    from fairchem_piwsl import losses

    for name, values in {
        "pitc": losses.pitc(a, c, dr, batch.batch, 0.5),
        "pisc": losses.pisc(a, b, c, dr, dr_b, batch.batch, 1, 0.5),
        "wl": losses.pitc(trainer._reference(a, batch)[0], c, dr, batch.batch),
    }.items():
        for i in range(batch.num_graphs):
            energy, forces = torch.autograd.grad(values[i], monitored, retain_graph=True, allow_unused=True)
            structures = torch.arange(len(energy)) % batch.num_graphs
            assert energy[structures != i].eq(0).all(), name
            assert energy[structures == i].ne(0).any(), name
            if forces is not None:
                assert forces[owner != i].eq(0).all(), name


@pytest.mark.parametrize("model", ["painn", "schnet"])
def test_every_parameter_gets_a_gradient(tiny_data, tmp_path, model):
    trainer = trainer_at_step(tiny_data, tmp_path, CASE_D, model=model)
    _, loss = forward_and_loss(trainer, first_batch(trainer))
    plain = trainer_at_step(tiny_data, tmp_path, None, model=model)
    _, supervised = forward_and_loss(plain, first_batch(plain))
    for value, one in ((loss, trainer), (supervised, plain)):
        value.backward()
        assert all(p.grad is not None for p in one.model.parameters() if p.requires_grad)
    changed = [
        not torch.equal(a.grad, b.grad)
        for a, b in zip(trainer.model.parameters(), plain.model.parameters(), strict=True)
        if a.requires_grad and b.grad.ne(0).any()
    ]
    assert np.mean(changed) > 0.9


# ------------------------------------------------------------------ the rivals and Eq. 7


def test_noisy_nodes_is_the_supervised_loss_at_displaced_structures(tiny_data, tmp_path):
    trainer = trainer_at_step(tiny_data, tmp_path, {"noisy_nodes": True, "eps_max": 0.05}, step=2)
    batch, seen = first_batch(trainer), []
    trainer.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].pos.detach().clone()))
    _, loss = forward_and_loss(trainer, batch)
    dr = seen[0] - batch.pos
    assert 0 < dr.abs().max() <= 0.05
    energy, forces = separate_call(trainer.model, batch, seen[0])
    expected = np.abs(energy - batch.energy.numpy() / KCAL_PER_MOL).mean()
    expected += 100 * np.linalg.norm(forces - batch.forces.numpy() / KCAL_PER_MOL, axis=1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    trainer.model.eval()
    with torch.no_grad(), counted_calls(trainer):
        trainer._forward(batch)
    assert torch.equal(seen[-1], batch.pos)  # validation takes the structures as they are


@pytest.mark.parametrize("model", ["painn", "schnet"])
def test_adversarial_displacements_follow_the_energy_error(tiny_data, tmp_path, model):
    piwsl = {"c_pitc": 1.0, "perturbation": "adversarial", "eps_max": 0.02, "magnitude": "fixed"}
    trainer = trainer_at_step(tiny_data, tmp_path, piwsl, model=model)
    batch = first_batch(trainer)
    before = batch.clone()
    out, loss = forward_and_loss(trainer, batch)
    energy, forces = separate_call(trainer.model, before, before.pos)
    error_e = energy - before.energy.numpy() / KCAL_PER_MOL
    error_f = forces - before.forces.numpy() / KCAL_PER_MOL
    direction = -np.sign(error_e)[before.batch.numpy(), None] * error_f
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    dr = out.moved["C"].numpy()
    cosine = (dr * direction).sum(1) / 0.02
    np.testing.assert_allclose(np.abs(cosine), 1, rtol=1e-4)
    assert not out.moved["C"].requires_grad
    expected = independent_eq5(trainer, before, PIWSLSettings(**piwsl), out.moved["C"], None)
    assert loss.item() == pytest.approx(sum(expected.values()), rel=2e-4)
    loss.backward()
