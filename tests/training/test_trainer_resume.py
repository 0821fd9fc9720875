"""Killed and resumed runs, fine-tuning, and runs that could not train anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MODELS, make_config, make_trainer, parameters
from fairchem.core.common import distutils
from helpers_trainer import CASE_D

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training.random_states import random_state

WEAK = {
    "case D": CASE_D,
    "all terms": {
        "c_pitc": 0.1,
        "c_pisc": 0.1,
        "c_wl": 0.1,
        "k_2nd": 0.5,
        "fraction": 0.5,
        "every_n_steps": 2,
    },
    "adversarial": {"c_pitc": 0.1, "perturbation": "adversarial"},
    "noisy nodes": {"noisy_nodes": True},
}


class KilledError(Exception):
    """Stands in for a kill in the middle of a step."""


def checkpoint(trainer, name: str = "checkpoint.pt") -> Path:
    return Path(trainer.config["cmd"]["checkpoint_dir"]) / name


def trained(config: dict, resume: Path | None = None, kill_at: int | None = None, name: str = "run") -> Any:
    """A trainer that has trained, from a checkpoint if one is given, up to a kill in step `kill_at`."""
    trainer = make_trainer(config, timestamp_id=name)
    if resume:
        trainer.load_checkpoint(str(resume))
    if kill_at is None:
        trainer.train(disable_eval_tqdm=True)
        return trainer
    backward = trainer._backward

    def dies(loss: torch.Tensor) -> None:
        if trainer.step == kill_at:
            raise KilledError
        backward(loss)

    trainer._backward = dies
    with pytest.raises(KilledError):
        trainer.train(disable_eval_tqdm=True)
    return trainer


@pytest.mark.parametrize("model", ["painn", "schnet"])
@pytest.mark.parametrize("weak", WEAK)
def test_killed_and_resumed_run_ends_bit_for_bit(tiny_data, tmp_path, model, weak):
    """Killed in step 6 of 9, in the middle of an epoch; the latest checkpoint is that of step 4."""
    config = make_config(
        tiny_data, tmp_path, model, WEAK[weak], max_epochs=3, checkpoint_every=2, eval_every=3,
        scheduler="CosineAnnealingLR", T_max=9,
    )  # fmt: skip
    whole = trained(config, name="whole")
    killed = trained(config, kill_at=6, name="killed")
    file = checkpoint(killed)
    assert torch.load(file, weights_only=False)["step"] == 4
    resumed = trained(config, resume=file, name="resumed")
    assert whole.step == resumed.step == 9
    for a, b in zip(parameters(whole), parameters(resumed), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole.ema.shadow_params, resumed.ema.shadow_params, strict=True):
        assert torch.equal(a, b)
    assert whole.best_val_metric == resumed.best_val_metric
    assert whole.optimizer.param_groups[0]["lr"] == resumed.optimizer.param_groups[0]["lr"]


# ------------------------------------------------------------------ the end of a run


def test_ranks_that_the_checkpoint_did_not_have_weigh_alike(tiny_data, tmp_path, monkeypatch):
    config = make_config(tiny_data, tmp_path, piwsl={"auto": True})
    first, second = make_trainer(config), make_trainer(config)
    first._balance.factors["energy"].add(3.0)
    second._resume = {"random": [random_state()], "extra": first.extra_state()}
    monkeypatch.setattr(distutils, "get_rank", lambda: 1)
    second._between_steps()
    assert second.extra_state() == first.extra_state()


@pytest.mark.parametrize(
    ("optim", "validations"),
    [
        ({"eval_every": 250}, [9]),
        ({"eval_every": 4}, [4, 8, 9]),
        ({"eval_every": 3}, [3, 6, 9]),
        ({"eval_every": 4, "checkpoint_every": -1}, [4, 8, 9]),
        ({}, [3, 6, 9]),
    ],
    ids=str,
)
def test_last_step_is_validated_and_kept(tiny_data, tmp_path, optim, validations):
    """Upstream writes at multiples of `eval_every` only: a run of 9 steps would leave nothing, or step 8."""
    trainer = make_trainer(make_config(tiny_data, tmp_path, piwsl=CASE_D, max_epochs=3, **optim))
    validate, seen = trainer.validate, []
    trainer.validate = lambda *args, **more: (seen.append(trainer.step), validate(*args, **more))[1]
    trainer.train(disable_eval_tqdm=True)
    assert seen == validations
    file = torch.load(checkpoint(trainer), weights_only=False)
    assert file["step"] == 9
    assert file["best_val_metric"] == trainer.best_val_metric
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(file["state_dict"][name], value)
    for kept, value in zip(file["ema"]["shadow_params"], trainer.ema.shadow_params, strict=True):
        assert torch.equal(kept, value)
    best = torch.load(checkpoint(trainer, "best_checkpoint.pt"), weights_only=False)
    assert best["val_metrics"]["forces_mae"]["metric"] == trainer.best_val_metric


def test_best_checkpoint_may_be_that_of_the_last_step(tiny_data, tmp_path):
    """At this learning rate the error falls all the time, so step 9 is better than step 8."""
    config = make_config(tiny_data, tmp_path, max_epochs=3, eval_every=8, ema_decay=0.1)
    trainer = trained(config)
    best = torch.load(checkpoint(trainer, "best_checkpoint.pt"), weights_only=False)
    for value, average in zip(
        (best["state_dict"][name] for name, p in trainer.model.named_parameters() if p.requires_grad),
        trainer.ema.shadow_params,
        strict=True,
    ):
        assert torch.equal(value, average)


def test_a_run_that_goes_on_elsewhere_has_a_best_checkpoint_of_its_own(tiny_data, tmp_path):
    """It gets no better; the choice goes on where the earlier best is, and starts anew where it is not."""
    config = make_config(tiny_data, tmp_path, max_epochs=1)
    first = trained(config, name="first")
    config["optim"]["max_epochs"] = 2
    for name, kept in {"elsewhere": False, "first": True}.items():
        trainer = make_trainer(config, timestamp_id=name)
        trainer.load_checkpoint(str(checkpoint(first)))
        trainer.best_val_metric = 0.0  # nothing is better
        trainer.train(disable_eval_tqdm=True)
        assert (trainer.best_val_metric == 0) is kept
        assert checkpoint(trainer, "best_checkpoint.pt").exists()


def test_last_validation_draws_nothing(tiny_data, tmp_path):
    """A run that goes on from its last step is that which was never at an end."""
    kept = []
    for validated in (True, False):
        trainer = make_trainer(
            make_config(tiny_data, tmp_path, piwsl=CASE_D, eval_every=250), timestamp_id=str(validated)
        )
        if not validated:
            trainer.val_loader = None
        trainer.train(disable_eval_tqdm=True)
        kept.append(torch.load(checkpoint(trainer), weights_only=False)["piwsl_resume"]["random"][0])
    assert torch.equal(kept[0]["torch"], kept[1]["torch"])
    assert kept[0]["python"] == kept[1]["python"]


def test_run_without_validation_set_keeps_its_last_step(tiny_data, tmp_path):
    trainer = make_trainer(make_config(tiny_data, tmp_path, max_epochs=3, eval_every=250))
    trainer.val_loader = None
    trainer.train(disable_eval_tqdm=True)
    assert torch.load(checkpoint(trainer), weights_only=False)["step"] == 9
    assert not checkpoint(trainer, "best_checkpoint.pt").exists()


@pytest.mark.parametrize("weak", ["case D", "noisy nodes"])
def test_run_that_is_made_longer_equals_one_that_was_long(tiny_data, tmp_path, weak):
    config = make_config(tiny_data, tmp_path, piwsl=WEAK[weak], max_epochs=2, eval_every=4)
    short = trained(config, name="short")
    config["optim"]["max_epochs"] = 4
    longer = trained(config, resume=checkpoint(short), name="longer")
    whole = trained(config, name="whole")
    for a, b in zip(parameters(whole), parameters(longer), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole.ema.shadow_params, longer.ema.shadow_params, strict=True):
        assert torch.equal(a, b)


def test_another_seed_gives_another_run(tiny_data, tmp_path):
    """The seed of the perturbations is the run's: weights that start equal do not stay equal."""
    config = make_config(tiny_data, tmp_path, piwsl=CASE_D, max_epochs=1)
    runs = []
    for seed in (0, 0, 1):
        trainer = make_trainer(config)
        trainer.config["cmd"]["seed"] = seed  # after everything else has been set up with seed 0
        trainer.train(disable_eval_tqdm=True)
        runs.append(parameters(trainer))
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_run_without_a_seed(tiny_data, tmp_path):
    trainer = make_trainer(make_config(tiny_data, tmp_path, piwsl=CASE_D, max_epochs=1))
    trainer.config["cmd"]["seed"] = None
    trainer.train(disable_eval_tqdm=True)


# ------------------------------------------------------------------ fine-tuning


@pytest.fixture(scope="module")
def pretrained(tiny_data, tmp_path_factory) -> Any:
    """A short run with a strong average, so that raw and averaged weights differ."""
    config = make_config(tiny_data, tmp_path_factory.mktemp("pretrained"), max_epochs=3, lr_initial=1e-2)
    return trained(config)


@pytest.mark.parametrize("name", ["checkpoint.pt", "best_checkpoint.pt"])
def test_fine_tuning_starts_from_the_averaged_weights_and_nothing_else(tiny_data, tmp_path, pretrained, name):
    file = torch.load(checkpoint(pretrained, name), weights_only=False)
    config = make_config(tiny_data, tmp_path, piwsl=CASE_D, max_epochs=2, lr_initial=1e-4,
                         finetune_from=str(checkpoint(pretrained, name)))  # fmt: skip
    # another level of theory, another normaliser
    config["dataset"]["train"]["transforms"]["normalizer"]["energy"] = {"mean": 1.0, "stdev": 0.5}
    trainer = make_trainer(config)
    # scale factors, which are not trained, are no part of the average
    names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    weights = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
    if name == "checkpoint.pt":
        expected = file["ema"]["shadow_params"]
        raw = [file["state_dict"][n] for n in names]
        assert any(not torch.equal(a, b) for a, b in zip(weights, raw, strict=True))
    else:
        expected = [file["state_dict"][n] for n in names]
    for a, b in zip(weights, expected, strict=True):
        assert torch.equal(a, b)
    assert trainer.step == 0
    assert trainer.normalizers["energy"].rmsd == 0.5
    assert not trainer.optimizer.state
    assert trainer.ema is not None
    for a, b in zip(weights, trainer.ema.shadow_params, strict=True):
        assert torch.equal(a, b)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step == 6
    assert trainer.ema is not None
    averages = trainer.ema.shadow_params
    assert any(not torch.equal(a, b) for a, b in zip(weights, averages, strict=True))
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-4
    trained_weights = [p for p in trainer.model.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(weights, trained_weights, strict=True))


def test_fine_tuned_run_resumes_as_any_other(tiny_data, tmp_path, pretrained):
    config = make_config(tiny_data, tmp_path, piwsl=CASE_D, max_epochs=2, checkpoint_every=2,
                         finetune_from=str(checkpoint(pretrained)))  # fmt: skip
    whole = trained(config, name="whole")
    killed = trained(config, kill_at=4, name="killed")
    resumed = trained(config, resume=checkpoint(killed), name="resumed")
    for a, b in zip(parameters(whole), parameters(resumed), strict=True):
        assert torch.equal(a, b)


def error(tiny_data: Path, tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        make_trainer(make_config(tiny_data, tmp_path, **changes))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_fine_tuning_from_a_missing_file(tiny_data, tmp_path):
    message = error(tiny_data, tmp_path, finetune_from=str(tmp_path / "none.pt"))
    assert "none.pt does not exist" in message
    assert "finetune_from" in message


def test_fine_tuning_from_a_damaged_file(tiny_data, tmp_path, pretrained):
    file = tmp_path / "half.pt"
    file.write_bytes(checkpoint(pretrained).read_bytes()[:1000])
    message = error(tiny_data, tmp_path, finetune_from=str(file))
    assert "half.pt cannot be read" in message


def test_fine_tuning_from_something_else(tiny_data, tmp_path):
    file = tmp_path / "other.pt"
    torch.save({"weights": torch.zeros(1)}, file)
    assert "other.pt is not a fairchem checkpoint" in error(tiny_data, tmp_path, finetune_from=str(file))


@pytest.mark.parametrize(
    "model", [{**MODELS["painn"], "hidden_channels": 8}, MODELS["schnet"]], ids=["size", "kind"]
)
def test_fine_tuning_from_another_model(tiny_data, tmp_path, pretrained, model):
    config = make_config(tiny_data, tmp_path, finetune_from=str(checkpoint(pretrained)))
    config["model"] = model
    with pytest.raises(
        UserError, match=r"holds a model 'painn' whose weights do not fit.*hyperparameters"
    ) as caught:
        make_trainer(config)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ nothing to train


def test_resume_of_a_finished_run(tiny_data, tmp_path, pretrained):
    trainer = make_trainer(make_config(tiny_data, tmp_path, max_epochs=3))
    trainer.load_checkpoint(str(checkpoint(pretrained)))
    before = parameters(trainer)
    with pytest.raises(UserError, match=r"nothing to train: .*step 9.*max_epochs 3.*finetune_from"):
        trainer.train(disable_eval_tqdm=True)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(trainer), strict=True))


def test_resume_from_weights_only(tiny_data, tmp_path, pretrained):
    """Upstream trains from best_checkpoint.pt with EMA silently off."""
    trainer = make_trainer(make_config(tiny_data, tmp_path, max_epochs=9))
    trainer.load_checkpoint(str(checkpoint(pretrained, "best_checkpoint.pt")))
    with pytest.raises(UserError, match=r"best_checkpoint\.pt .*checkpoint\.pt.*optim\.finetune_from"):
        trainer.train(disable_eval_tqdm=True)
    # validation and prediction from it are what it is for
    trainer.validate(disable_tqdm=True)
    trainer.predict(trainer.test_loader, disable_tqdm=True)


def test_zero_epochs(tiny_data, tmp_path):
    with pytest.raises(UserError, match=r"optim\.max_epochs must be a whole number >= 1, not 0"):
        make_trainer(make_config(tiny_data, tmp_path, max_epochs=0))


def test_checkpoint_is_upstreams(pretrained):
    """`trainer: ocp` and no parameters of the plugin's own: fairchem loads it without the plugin."""
    for name in ("checkpoint.pt", "best_checkpoint.pt"):
        file = torch.load(checkpoint(pretrained, name), weights_only=False)
        assert file["config"]["trainer"] == "ocp"
        assert set(file["state_dict"]) == set(pretrained.model.state_dict())
