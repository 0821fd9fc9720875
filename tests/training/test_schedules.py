"""Learning-rate schedules in epochs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from conftest import make_config, make_trainer

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training.s2ef import with_schedule

COSINE = {"lambda_type": "cosine", "warmup_epochs": 0.5, "warmup_factor": 0.2, "lr_min_factor": 0.01}


def cosine(steps_per_epoch: int, **changes):
    optim = {"scheduler": "LambdaLR", "max_epochs": 4, "scheduler_params": COSINE | changes}
    return with_schedule(optim, steps_per_epoch)["lr_lambda"]


def test_cosine_warms_up_and_ends_at_its_minimum():
    factor = cosine(10)
    assert factor(0) == pytest.approx(0.2)
    assert factor(5) == pytest.approx(1.0)
    assert factor(20) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi / 2)) / 2)
    assert factor(40) == factor(50) == pytest.approx(0.01)


def test_a_warm_up_shorter_than_a_step_is_one_step():
    factor = cosine(7, warmup_epochs=0.01)
    assert factor(0) == pytest.approx(0.2)
    assert factor(1) == pytest.approx(1.0)


def test_other_schedules_are_left_alone():
    optim = {"scheduler": "ReduceLROnPlateau", "scheduler_params": COSINE}
    assert with_schedule(optim, 10) == optim


def test_a_cosine_without_an_end_ends_with_the_run():
    optim = {"scheduler": "CosineAnnealingLR", "max_epochs": 4}
    assert with_schedule(optim, 10) == {**optim, "T_max": 40}
    assert with_schedule({**optim, "T_max": 7}, 10) == {**optim, "T_max": 7}


def test_trainer_ends_a_cosine_with_the_last_step(tiny_data: Path, tmp_path: Path):
    trainer = make_trainer(make_config(tiny_data, tmp_path, scheduler="CosineAnnealingLR"))
    trainer.train()
    assert trainer.scheduler.get_lr() == pytest.approx(0.0, abs=1e-12)
    assert "T_max" not in trainer.config["optim"]


def rates(trainer) -> list[float]:
    """Learning rates of all steps that a trainer takes."""
    found: list[float] = []
    step = trainer.scheduler.step
    trainer.scheduler.step = lambda *a, **k: (found.append(trainer.scheduler.get_lr()), step(*a, **k))
    trainer.train()
    return found


@pytest.mark.parametrize(
    "schedule",
    [{"scheduler": "CosineAnnealingLR"}, {"scheduler": "LambdaLR", "scheduler_params": COSINE}],
    ids=["cosine", "lambda"],
)
def test_a_schedule_ends_with_the_run_that_is_prolonged(tiny_data: Path, tmp_path: Path, schedule):
    short, longer, whole = (
        make_trainer(make_config(tiny_data, tmp_path, **schedule, max_epochs=epochs)) for epochs in (2, 4, 4)
    )
    short.train()
    longer.load_checkpoint(f"{short.config['cmd']['checkpoint_dir']}/checkpoint.pt")
    # from half of the way on as if it had been the plan
    assert rates(longer) == pytest.approx(rates(whole)[6:])
    assert longer.step == 12


@pytest.mark.parametrize(
    ("params", "key"),
    [
        (None, "scheduler_params"),
        ({}, "lambda_type"),
        ({"lambda_type": "cosine", "warmup_factor": 0.2, "lr_min_factor": 0}, "warmup_epochs"),
    ],
)
def test_an_incomplete_schedule_names_the_key(params, key, tiny_data, tmp_path):
    with pytest.raises(UserError, match=key):
        make_trainer(make_config(tiny_data, tmp_path, scheduler="LambdaLR", scheduler_params=params))


def test_trainer_follows_the_cosine(tiny_data: Path, tmp_path: Path):
    schedule = {"scheduler": "LambdaLR", "scheduler_params": {**COSINE, "warmup_epochs": 1}}
    trainer = make_trainer(make_config(tiny_data, tmp_path, **schedule, eval_every=3))
    expected = [
        # 3 steps warm up, 6 in all
        0.2, 0.2 * 2 / 3 + 1 / 3, 0.2 / 3 + 2 / 3, 1.0,
        *(0.01 + 0.99 / 2 * (1 + math.cos(math.pi * step / 6)) for step in (4, 5)),
    ]  # fmt: skip
    assert rates(trainer) == pytest.approx([1e-3 * factor for factor in expected])
    assert "lr_lambda" not in trainer.config["optim"]


@pytest.mark.parametrize(("primary", "mode"), [("forces_cosine_similarity", "max"), ("forces_rmse", "min")])
def test_a_plateau_of_an_agreement_is_one_of_its_maximum(tiny_data, tmp_path, primary, mode):
    config = make_config(tiny_data, tmp_path, scheduler="ReduceLROnPlateau")
    config["evaluation_metrics"]["primary_metric"] = primary
    assert make_trainer(config).scheduler.scheduler.mode == mode
