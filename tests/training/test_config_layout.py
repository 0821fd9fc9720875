"""The description of a config knows all that upstream and this plugin read."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import MODELS, make_config

from fairchem_piwsl.config import load_config
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.kinds import FLAG, Block, Either, Items, number, one_of, optional, whole
from fairchem_piwsl.training.preflight import check_keys

CONFIGS = Path(__file__).parents[2] / "configs" / "s2ef"
WHOLE = [path for path in sorted(CONFIGS.rglob("*.yml")) if {"model", "dataset"} <= load_config(path).keys()]


def test_there_are_configs_to_check():
    assert len(WHOLE) > 10


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_configs_of_the_project_pass(path):
    assert check_keys(load_config(path))


#: keys that upstream's own configs have, in the layouts of several years
UPSTREAM = {
    "old-forces": {
        "trainer": "forces",
        "logger": "tensorboard",
        "task": {
            "dataset": "trajectory_lmdb", "description": "energies and forces", "type": "regression", "metric": "mae",
            "labels": ["potential energy"], "grad_input": "atomic forces", "train_on_free_atoms": True,
            "eval_on_free_atoms": True, "relax_dataset": {"src": "r"}, "write_pos": True, "relaxation_steps": 200,
            "relax_opt": {"maxstep": 0.04, "traj_dir": "t"},
        },
        "dataset": [
            {"src": "a", "normalize_labels": True, "target_mean": -0.7, "target_std": 2.9, "grad_target_mean": 0.0,
             "grad_target_std": 2.9},
            {"src": "b"},
        ],
        "model": {"name": "schnet", "hidden_channels": 1024, "num_filters": 256, "num_interactions": 5,
                  "num_gaussians": 200, "cutoff": 6.0, "use_pbc": True},
        "optim": {
            "batch_size": 24, "eval_batch_size": 16, "num_workers": 64, "lr_initial": 1e-4, "lr_gamma": 0.1,
            "lr_milestones": [52083, 83333], "warmup_steps": 31250, "warmup_factor": 0.2, "max_epochs": 30,
            "force_coefficient": 100, "energy_coefficient": 1, "loss_energy": "mae", "loss_force": "l2mae",
            "load_balancing": "atoms", "weight_decay": 0, "ema_decay": 0.999, "clip_grad_norm": 10,
        },
    },
    "hydra": {
        "trainer": "ocp",
        "hide_eval_progressbar": False,
        "dataset": {
            "train": {
                "format": "ase_db", "src": ["a", "b"], "a2g_args": {"r_energy": True, "r_forces": True, "r_stress": True},
                "first_n": 100,
                "transforms": {
                    "decompose_tensor": {"tensor": "stress", "rank": 2, "decomposition": {"stress_isotropic": {"irrep_dim": 0}}},
                    "normalizer": {"fit": {"targets": {"forces": {"mean": 0.0}}, "batch_size": 64, "num_batches": 100}},
                    "element_references": {"fit": {"targets": ["energy"], "batch_size": 64, "num_batches": 100}},
                },
            },
            "val": {"format": "ase_db", "src": ["c"], "a2g_args": {"r_energy": True}, "use_train_settings": False},
        },
        "outputs": {
            "energy": {"level": "system", "property": "energy"},
            "forces": {"level": "atom", "property": "forces", "train_on_free_atoms": True, "eval_on_free_atoms": True},
            "stress": {"level": "system", "property": "stress", "decomposition": {"stress_isotropic": {"irrep_dim": 0}}},
        },
        "loss_functions": [
            {"energy": {"fn": "per_atom_mae", "coefficient": 2.5}},
            {"forces": {"fn": "l2mae", "coefficient": 10}},
            {"stress_isotropic": {"fn": "mae", "coefficient": 1, "reduction": "mean"}},
        ],
        "evaluation_metrics": {
            "primary_metric": "energy_mae",
            "metrics": {"energy": ["mae", "per_atom_mae"], "forces": ["forcesx_mae"], "stress_isotropic": ["mae"],
                        "misc": ["energy_forces_within_threshold"]},
        },
        "model": {
            "name": "hydra", "pass_through_head_outputs": True, "otf_graph": True,
            "backbone": {"model": "equiformer_v2_backbone", "num_layers": 8, "max_radius": 12.0, "lmax_list": [4]},
            "heads": {
                "energy": {"module": "equiformer_v2_energy_head"},
                "stress": {"module": "rank2_symmetric_head", "output_name": "stress", "decompose": True},
            },
        },
        "optim": {
            "batch_size": 8, "num_workers": 8, "lr_initial": 2e-4, "optimizer": "AdamW", "max_epochs": 16,
            "optimizer_params": {"weight_decay": 0.001, "betas": [0.9, 0.95]}, "scheduler": "LambdaLR",
            "scheduler_params": {"lambda_type": "cosine", "warmup_factor": 0.2, "warmup_epochs": 0.01, "lr_min_factor": 0.01},
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", UPSTREAM)
def test_keys_of_upstreams_configs_pass(name):
    assert check_keys(UPSTREAM[name])


def test_upstreams_schedule_without_a_warm_up():
    """As in its configs/oc22/s2ef/painn/painn.yml."""
    config = make_config(
        Path("data"), Path("runs"), warmup_steps=-1, lr_gamma=0.8, lr_milestones=[64000, 96000]
    )
    del config["optim"]["scheduler"]
    assert check_keys(config)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scheduler", ["Null", "ExponentialLR", "CosineAnnealingLR"])
def test_settings_of_another_schedule_may_stay(name, scheduler):
    """An override of the schedule leaves the settings of the config's own behind."""
    config = make_config(
        Path("data"), Path("runs"), name, scheduler=scheduler, T_max=10, gamma=0.5, patience=3
    )
    assert check_keys(config)


def test_other_trainers_are_left_to_themselves():
    assert not check_keys({"trainer": "equiformerv2_forces", "whatever": 1})


# ------------------------------------------------------------------ kinds


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (number(low=0, below=1), [0, 0.5], [1, -0.1, float("nan"), True, "0.5", None]),
        (number(above=0), [1e-9, 7], [0, float("inf")]),
        (whole(1), [1, 10**9], [0, 1.0, True, "1"]),
        (one_of((1, 2)), [1, 2], [3, True, [1]]),
        (one_of(("a",), also=lambda value: value == "b"), ["a", "b"], ["c", ["a"]]),
        (optional(FLAG), [None, True], [0]),
        (optional(Block({"a": FLAG})), [None, {"a": True}], [{"a": 1}, {"b": True}, []]),
        (Either((whole(1), Items(whole(1)))), [1, [1, 2]], [0, [0], {}]),
        (Block({"a": FLAG}, required=["a"]), [{"a": True}], [{}, {"a": True, 3: 1}]),
        (Block({"array": FLAG}, others=whole()), [{"array": True}, {"gres": 1}], [{"arrays": 1}, {"gres": "x"}]),
    ],
)  # fmt: skip
def test_kinds(kind, good, bad):
    for value in good:
        kind.check(value, "key")
    for value in bad:
        with pytest.raises(UserError, match=r"^key"):
            kind.check(value, "key")
