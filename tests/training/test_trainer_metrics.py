"""Validation, logging and the choice of the best checkpoint."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import KCAL_PER_MOL, make_config, make_trainer
from helpers_trainer import (
    CASE_D,
    counted_calls,
    first_batch,
    forward_and_loss,
    logged,
    seg,
    separate_call,
    trainer_at_step,
)

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.perturbations import draw, step_generator
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.trainer import VALIDATION_STREAM
from fairchem_piwsl.training.checkpoints import Preempted


def validated(trainer) -> dict[str, float]:
    metrics = trainer.validate(disable_tqdm=True)
    return {name: entry["metric"] for name, entry in metrics.items()}


# ------------------------------------------------------------------ validation


@pytest.mark.parametrize("consistency", [True, False])
@pytest.mark.parametrize("model", ["painn", "schnet"])
def test_validation_loss_keeps_its_meaning(tiny_data, tmp_path, model, consistency):
    """Weak terms belong to training: with the same weights the stock trainer validates alike."""
    piwsl = {
        "c_pitc": 100.0,
        "c_pisc": 100.0,
        "c_wl": 100.0,
        "eps_max": 0.1,
        "validate_consistency": consistency,
    }
    ours = make_trainer(make_config(tiny_data, tmp_path, model, piwsl))
    stock = make_trainer(make_config(tiny_data, tmp_path, model), "ocp")
    mine, theirs = validated(ours), validated(stock)
    assert set(theirs) <= set(mine)
    for name, value in theirs.items():
        assert mine[name] == pytest.approx(value, rel=1e-5 if consistency else 1e-12), name
    assert ("pitc_rmse" in mine) is consistency
    assert not [name for name in mine if name.endswith(("_pitc", "_pisc", "_wl"))]


@pytest.mark.parametrize("k", [0.0, 0.5])
def test_consistency_error_of_the_validation_set(tiny_data, tmp_path, k):
    """Root mean square of the PITC residual over the set, in label units."""
    trainer = make_trainer(make_config(tiny_data, tmp_path, piwsl={"c_pitc": 1, "eps_max": 0.05, "k_2nd": k}))
    residuals = []
    for i, batch in enumerate(trainer.val_loader):
        bonds = [torch.pdist(batch.pos[batch.batch == j]).min() for j in range(batch.num_graphs)]
        source = step_generator(0, 0, i, torch.device("cpu"), VALIDATION_STREAM)
        free = torch.ones(len(batch.pos), dtype=torch.bool)
        dr = draw(trainer.piwsl, batch.pos, batch.batch, batch.natoms, free, torch.stack(bonds), source)
        (e_a, f_a), (e_c, f_c) = (separate_call(trainer.model, batch, p) for p in (batch.pos, batch.pos + dr))
        residuals.append(e_a - e_c - seg((dr.double().numpy() * ((1 - k) * f_a + k * f_c)).sum(1), batch))
    expected = np.sqrt(np.mean(np.concatenate(residuals) ** 2)) * KCAL_PER_MOL
    trainer.ema = None
    found = validated(trainer)["pitc_rmse"]
    assert found == pytest.approx(expected, rel=1e-3)
    assert validated(trainer)["pitc_rmse"] == found  # the same displacements at every validation


def test_consistency_of_a_model_that_is_trained_without_weak_terms(tiny_data, tmp_path, monkeypatch):
    piwsl, checked, check = {"validate_consistency": True, "eps_max": 0}, [], PIWSLSettings.__post_init__
    trainer = make_trainer(make_config(tiny_data, tmp_path, piwsl=piwsl))
    monkeypatch.setattr(PIWSLSettings, "__post_init__", lambda s: checked.append(s.eps_max) or check(s))
    assert validated(trainer)["pitc_rmse"] > 0
    assert checked == [0.03]  # with displacements: once, not for each batch
    with counted_calls(trainer) as sizes:
        trainer.val_loader = None
        trainer.train(disable_eval_tqdm=True)
    assert set(sizes) <= {4, 3}  # training and prediction stay plain


def test_consistency_is_not_evaluated_unless_asked_for(tiny_data, tmp_path):
    trainer = make_trainer(make_config(tiny_data, tmp_path))
    with counted_calls(trainer) as sizes:
        assert "pitc_rmse" not in validated(trainer)
    assert sizes == [3, 3]


def test_prediction_is_one_plain_call(tiny_data, tmp_path):
    trainer = make_trainer(make_config(tiny_data, tmp_path, piwsl=CASE_D))
    with counted_calls(trainer) as sizes:
        predictions = trainer.predict(trainer.test_loader, disable_tqdm=True)
    assert sizes == [3, 3]
    assert len(predictions["energy"]) == 6


def test_root_mean_squares_against_numpy(tiny_data, tmp_path):
    trainer = make_trainer(make_config(tiny_data, tmp_path, eval_batch_size=4))  # batches of 4 and 2
    energy, forces, natoms = [], [], []
    for batch in trainer.val_loader:
        e, f = separate_call(trainer.model, batch, batch.pos)
        energy.append(e * KCAL_PER_MOL - batch.energy.numpy())
        forces.append(f * KCAL_PER_MOL - batch.forces.numpy())
        natoms.append(batch.natoms.numpy())
    trainer.ema = None
    found = validated(trainer)
    energy, forces, natoms = (np.concatenate(x) for x in (energy, forces, natoms))
    assert found["energy_rmse"] == pytest.approx(np.sqrt((energy**2).mean()), rel=1e-5)
    assert found["energy_per_atom_rmse"] == pytest.approx(np.sqrt(((energy / natoms) ** 2).mean()), rel=1e-5)
    assert found["forces_rmse"] == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-5)


# ------------------------------------------------------------------ log


def test_each_term_is_logged_raw_and_weighted(tiny_data, tmp_path):
    piwsl = {"c_pitc": 1.2, "c_pisc": 0.8, "c_wl": 0.5, "ramp_steps": 4}
    trainer = make_trainer(make_config(tiny_data, tmp_path, piwsl=piwsl, max_epochs=2))
    totals, compute = [], trainer._compute_loss

    def recorded(out, batch):
        loss = compute(out, batch)
        if trainer.model.training:
            totals.append((loss.item(), {name: value.item() for name, value in out.log.items()}))
        return loss

    trainer._compute_loss = recorded
    trainer.train(disable_eval_tqdm=True)
    assert len(totals) == 6
    for name in ("energy", "forces", "pitc", "pisc", "wl"):
        for kind in ("loss", "weighted"):
            values = logged(trainer, "train", f"{kind}_{name}")
            assert values == pytest.approx([terms[f"{kind}_{name}"] for _, terms in totals], rel=1e-5)
    for step, (total, terms) in enumerate(totals, start=1):
        weighted = sum(value for name, value in terms.items() if name.startswith("weighted"))
        assert total == pytest.approx(weighted, rel=1e-5)
        ramp = min(1, step / 4)
        assert terms["weighted_pitc"] == pytest.approx(1.2 * ramp * terms["loss_pitc"], rel=1e-4)
    assert logged(trainer, "train", "loss") == pytest.approx([total for total, _ in totals], rel=1e-5)
    for name in ("energy_rmse", "energy_per_atom_rmse", "forces_rmse", "pitc_rmse", "loss"):
        assert len(logged(trainer, "val", name)) == 2


def test_terms_that_are_off_are_not_logged(tiny_data, tmp_path):
    trainer = trainer_at_step(tiny_data, tmp_path, {"c_pitc": 1})
    out, _ = forward_and_loss(trainer, first_batch(trainer))
    assert set(out.log) == {f"{a}_{b}" for a in ("loss", "weighted") for b in ("energy", "forces", "pitc")}


# ------------------------------------------------------------------ best checkpoint


def saved_at(trainer, metric: str, values: list[float]) -> list[float]:
    """The values at which a new best checkpoint is saved."""
    saved: list[float] = []
    trainer.save = lambda metrics, **_: saved.append(metrics[metric]["metric"])
    trainer.test_loader = None
    # what upstream starts from
    trainer.best_val_metric = 1e9 if "mae" in metric else -1.0
    for value in values:
        trainer.update_best(metric, {metric: {"metric": value}, "other": {"metric": 0.0}})
    return saved


@pytest.mark.parametrize(
    "metric", ["energy_rmse", "energy_per_atom_rmse", "forces_rmse", "pitc_rmse", "energy_mse", "loss"]
)
def test_errors_are_minimised(tiny_data, tmp_path, metric):
    trainer = make_trainer(make_config(tiny_data, tmp_path))
    assert saved_at(trainer, metric, [3.0, 4.0, 2.0, 2.5, 0.5, math.nan, 0.6]) == [3.0, 2.0, 0.5]


def test_mae_is_minimised_as_upstream_does(tiny_data, tmp_path):
    trainer = make_trainer(make_config(tiny_data, tmp_path))
    assert saved_at(trainer, "forces_mae", [3.0, 4.0, 2.0]) == [3.0, 2.0]


@pytest.mark.parametrize("metric", ["forces_cosine_similarity", "energy_forces_within_threshold"])
def test_agreement_is_maximised(tiny_data, tmp_path, metric):
    trainer = make_trainer(make_config(tiny_data, tmp_path))
    assert saved_at(trainer, metric, [-0.5, -0.7, 0.2, 0.1, 0.9]) == [-0.5, 0.2, 0.9]


@pytest.mark.parametrize("metric", ["forces_rmse", "forces_mae", "forces_cosine_similarity"])
def test_best_checkpoint_holds_the_best_validation(tiny_data, tmp_path, metric):
    config = make_config(tiny_data, tmp_path, max_epochs=4, lr_initial=1e-2, piwsl=CASE_D)
    config["evaluation_metrics"]["primary_metric"] = metric
    trainer = make_trainer(config)
    trainer.test_loader = None
    trainer.train(disable_eval_tqdm=True)
    values = logged(trainer, "val", metric)
    assert len(values) == 4
    best = max(values) if "cosine" in metric else min(values)
    file = torch.load(f"{trainer.config['cmd']['checkpoint_dir']}/best_checkpoint.pt", weights_only=False)
    assert float(file["val_metrics"][metric]["metric"]) == pytest.approx(best, rel=1e-5)
    assert float(trainer.best_val_metric) == pytest.approx(best, rel=1e-5)


SCHEDULED = {"c_pitc": 1.0, "start_step": 3}


@pytest.mark.parametrize(
    ("piwsl", "saved"),
    [
        (SCHEDULED | {"ramp_steps": 3}, [2, 6, 8]),  # full at step 5
        (SCHEDULED | {"ramp_steps": 300}, [2, 4, 8]),  # never full: from their start
        (SCHEDULED | {"c_pitc": 0.0}, [2]),  # off: from the beginning
        (SCHEDULED | {"start_step": 300}, [2]),
    ],
)
@pytest.mark.parametrize("stop", [None, 5, 7])
def test_choice_starts_anew_with_the_weak_terms(tiny_data, tmp_path, piwsl, saved, stop):
    """The lowest error lies before the weak terms; a run that is stopped and resumed chooses alike."""
    config = make_config(tiny_data, tmp_path, piwsl=piwsl, max_epochs=4, eval_every=2, checkpoint_every=1)
    errors, found = {2: 0.1, 4: 0.3, 6: 0.9, 8: 0.2, 10: 0.5, 12: 0.25}, []

    def scripted(trainer):
        save = trainer.save
        trainer.validate = lambda *_, **__: {"forces_mae": {"metric": errors[trainer.step]}}
        trainer.predict = lambda *_, **__: None

        def recorded(metrics=None, checkpoint_file="checkpoint.pt", training_state=True):
            if checkpoint_file == "best_checkpoint.pt":
                found.append(trainer.step)
            return save(metrics, checkpoint_file, training_state)

        trainer.save = recorded
        return trainer

    trainer = scripted(make_trainer(config, timestamp_id="run"))
    if stop:
        backward = trainer._backward
        trainer._backward = lambda loss: (backward(loss), trainer.step == stop and trainer.request_stop())
        with pytest.raises(Preempted):
            trainer.train(disable_eval_tqdm=True)
        file = f"{trainer.config['cmd']['checkpoint_dir']}/checkpoint.pt"
        trainer = scripted(make_trainer(config, timestamp_id="run"))
        trainer.load_checkpoint(file)
        assert trainer.step == stop
    trainer.train(disable_eval_tqdm=True)
    assert found == saved
    assert trainer.best_val_metric == errors[saved[-1]]


def test_default_primary_metric(tiny_data, tmp_path):
    config = make_config(tiny_data, tmp_path)
    del config["evaluation_metrics"]["primary_metric"]
    trainer = make_trainer(config)
    assert trainer.evaluation_metrics["primary_metric"] == "forces_rmse"
    trainer.train(disable_eval_tqdm=True)
    assert 0 < trainer.best_val_metric < math.inf


def test_primary_metric_that_is_not_evaluated(tiny_data, tmp_path):
    config = make_config(tiny_data, tmp_path)
    config["evaluation_metrics"]["primary_metric"] = "forces_magnitude_error"
    with pytest.raises(
        UserError, match=r"primary_metric 'forces_magnitude_error' is not among .*forces_rmse"
    ):
        make_trainer(config)


# ------------------------------------------------------------------ divergence


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_diverged_training_stops_and_says_why(tiny_data, tmp_path, bad):
    trainer = make_trainer(make_config(tiny_data, tmp_path, piwsl=CASE_D))
    steps = []
    with torch.no_grad():
        next(iter(trainer.model.parameters())).fill_(bad)
    trainer.optimizer.register_step_pre_hook(lambda *_: steps.append(1))
    with pytest.raises(
        FloatingPointError, match=r"loss_\w+ is (nan|inf) at step 1: training diverged; lower optim"
    ):
        trainer.train(disable_eval_tqdm=True)
    assert not steps  # no step was made with it
