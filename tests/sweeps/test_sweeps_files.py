"""Sweep files, search spaces and base configs: what they mean, and one sentence for every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from helpers_cluster import make_config
from helpers_sweep import BASE, sweep_content, write_sweep
from optuna.trial import FixedTrial

from fairchem_piwsl.config import entries, get_value, load_config, with_values
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.sweeps.samplers import check_sampler, make_pruner, make_sampler
from fairchem_piwsl.sweeps.space import parse_space, suggest
from fairchem_piwsl.sweeps.study import base_values
from fairchem_piwsl.sweeps.sweep_checks import check_trials
from fairchem_piwsl.sweeps.sweep_file import Objective, Sweep, load_sweep, parse_sweep
from fairchem_piwsl.sweeps.trial_training import trial_config

FLOAT = {"type": "float", "low": 0.0, "high": 1.0}


def parse(**changes: Any) -> Sweep:
    return parse_sweep(sweep_content(**changes), BASE)


def test_includes_are_merged_like_upstream_does(tmp_path: Path) -> None:
    from fairchem.core.common import utils

    (tmp_path / "low.yml").write_text("optim: {lr_initial: 1, batch_size: 2}\nmodel: {name: a}\n")
    (tmp_path / "top.yml").write_text("includes: [low.yml]\noptim: {lr_initial: 3}\n")
    merged = load_config(tmp_path / "top.yml")
    assert merged == {"optim": {"lr_initial": 3, "batch_size": 2}, "model": {"name": "a"}}
    assert merged == utils.load_config(tmp_path / "top.yml")[0]


def test_dotted_keys_reach_blocks_and_lists() -> None:
    config = {"a": {"b": 1}, "c": [{"d": {"e": 2}}]}
    assert set(dict(entries(config))) == {"a", "a.b", "c", "c.0", "c.0.d", "c.0.d.e"}
    changed = with_values(config, {"c.0.d.e": 5, "a.x.y": 6})
    assert changed == {"a": {"b": 1, "x": {"y": 6}}, "c": [{"d": {"e": 5}}]}
    assert config["c"][0]["d"]["e"] == 2
    assert get_value(config, "c.0.d.e") == 2
    assert get_value(config, "c.1", "none") == "none"


def test_space_kinds_and_conditions() -> None:
    space = parse_space(
        {
            "lr": {"type": "float", "low": "1e-4", "high": 0.1, "log": True},
            "n": {"type": "int", "low": 1, "high": 9, "step": 2},
            "kind": {"type": "categorical", "choices": ["a", "b"]},
            "only_b": {**FLOAT, "when": {"kind": "b"}},
            "below_b": {**FLOAT, "when": {"only_b": [0.5]}},
        }
    )
    inactive = suggest(FixedTrial({"lr": 1e-3, "n": 3, "kind": "a"}), space)
    assert inactive == {"lr": 1e-3, "n": 3, "kind": "a"}
    values = {"lr": 1e-3, "n": 3, "kind": "b", "only_b": 0.5, "below_b": 0.1}
    assert suggest(FixedTrial(values), space) == values


def test_base_values_as_far_as_the_space_holds_them() -> None:
    space = {
        "optim.lr_initial": FLOAT,
        "optim.batch_size": {"type": "int", "low": 1, "high": 9, "step": 2},  # holds odd numbers, base has 4
        "optim.optimizer": {"type": "categorical", "choices": ["AdamW", "SGD"]},
        "optim.piwsl.eps_max": {"type": "float", "low": 0.001, "high": 1.0, "log": True},  # a default
    }
    values = base_values(parse(space=space))
    assert values == {"optim.lr_initial": 0.1, "optim.optimizer": "AdamW", "optim.piwsl.eps_max": 0.01}
    whole = {"optim.piwsl.c_pisc": {"type": "categorical", "choices": [0, 1, 10]}}  # the default is 0.0
    assert base_values(parse(space=whole)) == {"optim.piwsl.c_pisc": 0.0}
    truth = {"optim.piwsl.c_pisc": {"type": "categorical", "choices": [False, True]}}
    assert base_values(parse(space=truth)) == {}


def test_a_condition_that_never_holds_is_refused() -> None:
    kind = {"type": "categorical", "choices": ["a", "b"]}
    with pytest.raises(UserError, match=r"space\.x: when asks for 'c', which 'kind' never is"):
        parse(space={"kind": kind, "x": {**FLOAT, "when": {"kind": ["a", "c"]}}})
    with pytest.raises(UserError, match="space: 1 is no dotted key"):
        parse(space={1: FLOAT})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"low": 0, "high": 1}, "type must be one of"),
        ({**FLOAT, "low": 2}, r"low \(2.0\) must be below high"),
        ({**FLOAT, "log": True}, "log needs a low above 0"),
        ({**FLOAT, "stop": 3}, "'stop' is not a key; did you mean 'step'"),
        ({**FLOAT, "high": "much"}, "high must be a number"),
        ({"type": "int", "low": 1, "high": 2.5}, "whole number"),
        ({"type": "categorical", "choices": []}, "must be a list"),
        ({"type": "categorical", "choices": [1, 1]}, "twice"),
        ({"type": "categorical", "choices": [0, False]}, "twice"),  # Optuna draws both as 0
        ({**FLOAT, "when": {"optim.optimizer": "AdamW"}}, "must stand above it"),
    ],
)
def test_mistakes_in_the_space(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_space({"optim.lr_initial": entry})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trails": 3}, "did you mean 'trials'"),
        ({"set": {"optim.lr_inital": 1}}, "did you mean 'optim.lr_initial'"),
        ({"objective": {"metric": "error", "sum": {"error": 1}}}, "exactly one"),
        ({"objective": {"pareto": ["a", "b"]}, "pruner": "median"}, "cannot be pruned"),
        ({"trials": 0}, "trials must be above 0"),
        ({"heartbeat": {"interval": 5, "grace": 6}}, "at least three times"),
        ({"budget": {"days": 2}}, "'days' is not a key"),
        ({"cpu": "no"}, "cpu must be true or false"),
        ({"seed": 2**32}, "seed must be 4294967295 or less"),
    ],
)
def test_mistakes_in_the_sweep_file(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(**changes)


def test_unknown_key_in_the_space_of_a_training(tmp_path: Path) -> None:
    base = make_config(tmp_path)
    content = sweep_content(objective="forces_mae")
    content.pop("function")
    assert parse_sweep(
        {**content, "space": {"optim.piwsl.c_pitc": FLOAT}}, base
    ).space  # a default, not in base
    with pytest.raises(UserError, match=r"optim.lr_intial.*did you mean 'optim.lr_initial'"):
        parse_sweep({**content, "space": {"optim.lr_intial": FLOAT}}, base)


def test_metrics_are_those_of_the_validation(tmp_path: Path) -> None:
    base = make_config(tmp_path)
    base["trainer"] = "piwsl_forces"
    base["evaluation_metrics"]["metrics"] = {
        "energy": ["mae", "energy_within_threshold"],
        "forces": ["mae", "cosine_similarity", "forcesx_mae"],
        "misc": ["energy_forces_within_threshold"],
    }
    content = sweep_content(space={"optim.lr_initial": {**FLOAT, "low": 0.1}})
    content.pop("function")
    both = "energy_forces_within_threshold"
    for metric in ("energy_within_threshold", "forcesx_mae", both, "forces_rmse", "loss"):
        check_trials(parse_sweep({**content, "objective": metric}, base))
    for metric, meant in (("force_mae", "forces_mae"), (f"misc_{both}", both)):
        with pytest.raises(UserError, match=f"reports no '{metric}'; did you mean '{meant}'"):
            check_trials(parse_sweep({**content, "objective": metric}, base))


@pytest.mark.parametrize("key", ["set", "space"])
def test_keys_that_the_sweep_sets_itself(key: str) -> None:
    entry: Any = {"set": 1, "space": {"type": "categorical", "choices": [False, True]}}[key]
    base = {**BASE, "amp": False}
    with pytest.raises(UserError, match="'amp' comes from the sweep file's own keys"):
        check_trials(parse_sweep(sweep_content(**{key: {"amp": entry}}), base))


def test_seeds_may_be_searched(tmp_path: Path) -> None:
    sweep = parse(space={"seed": {"type": "categorical", "choices": [3, 4]}}, seed=4)
    assert base_values(sweep) == {"seed": 4}
    for values, seed in (({"seed": 3}, 3), ({}, 4)):
        assert trial_config(sweep, values, tmp_path, "toy-0000")["seed"] == seed


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yml does not exist"):
        load_sweep(tmp_path / "nothing.yml")
    path = write_sweep(tmp_path, sweep_content(base="gone.yml"))
    with pytest.raises(UserError, match=r"gone\.yml does not exist"):
        load_sweep(path)


def test_objective_of_a_history() -> None:
    history = [{"e": 3.0, "f": 1.0}, {"e": 1.0, "f": 1.5}, {"e": 2.0, "f": 1.0}]
    assert Objective(metric="e").final(history) == [1.0]
    assert Objective(metric="e", take="last").final(history) == [2.0]
    assert Objective(metric="e", direction="maximize").final(history) == [3.0]
    assert Objective(sum={"e": 1.0, "f": 10.0}).final(history) == [12.0]
    assert Objective(sum={"f": 10.0}).names == ["10 f"]
    assert Objective(pareto=["e", "f"]).final(history) == [1.0, 1.5]


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "gp", "nsga2"])
def test_every_sampler_proposes(name: str) -> None:
    sweep = parse(sampler=name)
    study = optuna.create_study(sampler=make_sampler(sweep))
    for value in (1.0, 2.0):
        study.tell(study.ask({p.key: p.distribution for p in sweep.space}), value)
    assert len(study.trials) == 2


def test_sampler_and_pruner_options() -> None:
    assert make_pruner(parse(pruner={"name": "median", "n_startup_trials": 3}))._n_startup_trials == 3
    with pytest.raises(UserError, match="has no option 'warmup'"):
        make_pruner(parse(pruner={"name": "median", "warmup": 3}))
    with pytest.raises(UserError, match="sampler 'best' is not known"):
        make_sampler(parse(sampler="best"))
    with pytest.raises(UserError, match="'grid' needs categorical"):
        check_sampler(parse(sampler="grid"))
    with pytest.raises(UserError, match="trials is 3, but the grid has 2 points"):
        check_sampler(
            parse(sampler="grid", space={"x": {"type": "categorical", "choices": [0, 1]}}, trials=3)
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": {"name": "tpe", "n_startup_trials": "6"}},
        {"sampler": "cmaes", "objective": {"pareto": ["error", "other"]}},
    ],
)
def test_samplers_that_cannot_draw(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"sampler '\w+' cannot draw \(.*\); correct its options"):
        check_sampler(parse(**changes))
    make_sampler(parse(**changes))  # Optuna itself does not notice before it draws


def shipped() -> list[Path]:
    return sorted((Path(__file__).parents[2] / "configs" / "sweeps").glob("*.yml"))


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.name)
def test_shipped_sweeps_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parents[2])
    sweep = load_sweep(path)
    make_sampler(sweep)
    make_pruner(sweep)
    assert "PIWSLForcesTrainer" in sweep.base["trainer"]
    assert yaml.safe_load(path.read_text())["study"] == sweep.study
