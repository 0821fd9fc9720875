"""Reading of configs: what upstream reads is read alike, numbers, includes, overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
from fairchem.core.common import utils

from fairchem_piwsl.config import (
    METHODS,
    load_config,
    moved,
    parse_value,
    read_config,
    read_yaml,
    with_data,
    with_method,
    with_overrides,
)
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.jobs.command_line import grid, read_arguments
from fairchem_piwsl.jobs.submission import build_configs
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.sweeps.sweep_file import load_bases

CONFIG = {
    "optim": {"lr_initial": 0.1, "batch_size": 4},
    "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}, {"forces": {"fn": "l2mae"}}],
    "dataset": {"test": {"src": "x"}},
}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config in parts: some beside it, one in the working directory."""
    (tmp_path / "work").mkdir()
    (tmp_path / "parts").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "parts" / "model.yml").write_text("includes: [deep.yml]\nmodel: {name: painn}\n")
    (tmp_path / "parts" / "deep.yml").write_text(
        "model: {name: schnet, cutoff: 5.0}\noptim: {batch_size: 4}\n"
    )
    (tmp_path / "work" / "here.yml").write_text("dataset: {train: {src: a}}\n")
    path = tmp_path / "a.yml"
    path.write_text("includes: [parts/model.yml, here.yml]\noptim: {lr_initial: 0.1}\n")
    return path


def test_includes_are_upstream_s(parts):
    config = load_config(parts)
    assert config == utils.load_config(str(parts))[0]
    assert config["model"] == {"name": "painn", "cutoff": 5.0}
    assert load_bases(parts.parent / "sweep.yml", {"base": "a.yml"}) == config


def test_a_sweep_s_parts_are_put_together_like_includes(parts):
    sweep = parts.parent / "sweep.yml"
    both = {"base": ["parts/model.yml", "here.yml"]}
    assert load_bases(sweep, both).keys() == {"model", "optim", "dataset"}
    with pytest.raises(
        UserError, match=r"parts/model\.yml and parts/deep\.yml both set 'model\.(name|cutoff)'|batch_size"
    ):
        load_bases(sweep, {"base": ["parts/model.yml", "parts/deep.yml"]})


def test_numbers_of_yaml_and_of_python(tmp_path):
    path = tmp_path / "a.yml"
    path.write_text("a: 1e-3\nb: 1.0e-3\nc: 2E5\nd: .5e1\ne: e3\nf: 1e\ng: '1e-3'\nh: 12\ni: 1_0e2\n")
    assert read_yaml(path, "config") == {
        **{"a": 1e-3, "b": 1e-3, "c": 2e5, "d": 5.0, "e": "e3", "f": "1e", "g": "1e-3", "h": 12, "i": 1000.0}
    }
    path.write_text("\ufeffbase: &b {x: 1}\nmore: {<<: *b, x: 2}\n", encoding="utf-8")
    assert read_yaml(path, "config") == {"base": {"x": 1}, "more": {"x": 2}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("1e-3", 1e-3),
        ("-0.5", -0.5),
        ("True", True),
        ("false", False),
        ("None", None),
        ("null", None),
        ("'None'", "None"),
        ("painn", "painn"),
        ("a b", "a b"),
        ("key=value", "key=value"),
        ("data/a=b/x.lmdb", "data/a=b/x.lmdb"),
        ("*.lmdb", "*.lmdb"),
        ("12:30", "12:30"),
        ("[1, 2]", [1, 2]),
        ("(1, 2)", [1, 2]),
        ("[mae, mse]", ["mae", "mse"]),
        ("{'energy': {'fn': 'mae'}}", {"energy": {"fn": "mae"}}),
        ("{energy: {fn: mae}}", {"energy": {"fn": "mae"}}),
        ("{1, 2}", "{1, 2}"),
    ],
)
def test_values_of_overrides(text, value):
    found = parse_value(text, "x")
    assert found == value
    assert type(found) is type(value)


def test_overrides_reach_lists_and_new_blocks():
    changed = with_overrides(
        CONFIG,
        [
            "--loss_functions.0.energy.coefficient=10",
            "--optim.piwsl.c_pitc=1",
            "--dataset.test=None",
            "--a.b=c=d",
        ],
    )
    assert changed["loss_functions"] == [
        {"energy": {"fn": "mae", "coefficient": 10}},
        {"forces": {"fn": "l2mae"}},
    ]
    assert changed["optim"] == {"lr_initial": 0.1, "batch_size": 4, "piwsl": {"c_pitc": 1}}
    assert changed["dataset"] == {"test": None}
    assert changed["a"] == {"b": "c=d"}
    assert CONFIG["loss_functions"][0] == {"energy": {"fn": "mae", "coefficient": 1}}


def test_an_override_changes_one_of_the_places_where_an_alias_stands(tmp_path):
    path = tmp_path / "a.yml"
    path.write_text("normalizer: {energy: &kcal {mean: 0.0, stdev: 0.04}, forces: *kcal}\n")
    config = load_config(path)
    changed = with_overrides(config, ["--normalizer.energy.stdev=25.1"])
    unchanged = {"mean": 0.0, "stdev": 0.04}
    assert changed["normalizer"] == {"energy": {"mean": 0.0, "stdev": 25.1}, "forces": unchanged}
    assert config["normalizer"] == {"energy": unchanged, "forces": unchanged}


def test_a_block_is_merged_as_upstream_does():
    argument = "--optim={'batch_size': 8, 'piwsl': {'c_pitc': 1}}"
    upstream = utils.merge_dicts(CONFIG, utils.create_dict_from_args([argument]))[0]
    assert with_overrides(CONFIG, [argument]) == upstream
    assert upstream["optim"]["lr_initial"] == 0.1


def test_command_line_keeps_flags_and_overrides_apart(parts):
    command = ["--mode", "train", "--config-yml", "../a.yml", "--identifier=a b", "--seed", "3"]
    args, overrides = read_arguments([*command, "--optim.note=two words", "--logger=a=b c", "--cpu"])
    assert overrides == ["--optim.note=two words", "--logger=a=b c"]
    assert (args.config_yml, args.identifier, args.seed, args.cpu) == ([Path("../a.yml")], "a b", 3, True)
    (config,) = build_configs(args, overrides)
    assert (config["optim"]["note"], config["logger"], config["seed"]) == ("two words", "a=b c", 3)


def test_main_and_bench_read_the_same_config(parts):
    command = ["--mode", "train", "--config-yml", "../a.yml", "--optim.lr_initial=1e-2"]
    args, overrides = read_arguments(command)
    (trained,) = build_configs(args, overrides)
    benched = read_config(Path("../a.yml"), overrides)
    assert {key: trained[key] for key in benched} == benched
    namespace = read_arguments(command[:-1])[0]
    namespace.config_yml = "../a.yml"
    assert utils.build_config(namespace, [command[-1]]) == trained


def test_grid_of_configs(tmp_path):
    path = tmp_path / "grid.yml"
    path.write_text("optim: {lr_initial: [0.1, 0.2]}\nloss_functions.0.energy.coefficient: [1, 2]\n")
    configs = grid({**CONFIG, "identifier": "x"}, path)
    found = [
        (c["identifier"], c["optim"]["lr_initial"], c["loss_functions"][0]["energy"]["coefficient"])
        for c in configs
    ]
    assert found == [("x_run0", 0.1, 1), ("x_run1", 0.1, 2), ("x_run2", 0.2, 1), ("x_run3", 0.2, 2)]


# ------------------------------------------------------------------------------------------ methods


OWN = {
    "trainer": "ocp",
    "optim": {
        "lr_initial": 0.1,
        "piwsl": {"c_pitc": 5.0, "k_2nd": 0.5, "start_step": 500, "energy_unit": "kcal/mol"},
    },
}


def test_methods_lie_in_the_package():
    root = Path(__file__).parents[1]
    shipped = {path.name: path.read_text() for path in METHODS.glob("*.yml")}
    assert shipped == {
        path.name: path.read_text() for path in (root / "configs" / "s2ef" / "methods").glob("*.yml")
    }
    assert set(shipped) == {
        "auto.yml", "baseline.yml", "noisy_nodes.yml", "second_order.yml", "weak_label.yml",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["auto", "baseline", "noisy_nodes", "second_order", "weak_label"])
def test_a_method_takes_the_place_of_the_config_s(method):
    changed = with_method(OWN, method)
    block = dict(changed["optim"]["piwsl"])
    assert block.pop("energy_unit") == "kcal/mol"  # of the labels, whatever the method
    assert block == load_config(METHODS / f"{method}.yml")["optim"]["piwsl"]
    PIWSLSettings.from_config(changed["optim"]["piwsl"])
    assert changed["optim"]["lr_initial"] == 0.1
    assert changed["trainer"] == "fairchem_piwsl.trainer.PIWSLForcesTrainer"
    assert OWN["optim"]["piwsl"]["c_pitc"] == 5.0


def test_a_method_of_one_s_own_and_a_trainer_of_one_s_own(tmp_path):
    (tmp_path / "mine.yml").write_text("optim: {lr_initial: 0.2, piwsl: {c_pitc: 1.0}}\n")
    changed = with_method({**OWN, "trainer": "my_trainer"}, str(tmp_path / "mine.yml"))
    assert changed["optim"] == {"lr_initial": 0.2, "piwsl": {"energy_unit": "kcal/mol", "c_pitc": 1.0}}
    assert changed["trainer"] == "my_trainer"
    assert with_method({"model": {}}, "baseline")["optim"]["piwsl"] == {"c_pitc": 0.0, "c_pisc": 0.0}
    assert with_method(OWN, "piwsl") == OWN
    with pytest.raises(UserError, match=r"--method piwsl: the config has no weak terms"):
        with_method({"optim": {}}, "piwsl")
    with pytest.raises(UserError, match=r"--method weak_labl is not one of .*; did you mean weak_label\?"):
        with_method(OWN, "weak_labl")


def test_data_of_one_s_own_take_the_place_of_the_config_s(parts, tmp_path):
    (tmp_path / "dataset.yml").write_text("dataset: {train: {src: then/train/data.lmdb}}")
    own = {
        "dataset": {"train": {"src": "a.lmdb", "first_n": 5}, "test": {"src": "b.lmdb"}},
        "optim": {"max_epochs": 1},
    }
    mine = str(tmp_path / "train" / "data.lmdb")  # not where it was when it was written
    for given in (tmp_path, tmp_path / "dataset.yml"):
        assert with_data(own, given) == {"dataset": {"train": {"src": mine}}, "optim": {"max_epochs": 1}}
    in_kcal = {"optim": {"piwsl": {"energy_unit": "kcal/mol"}}}
    assert with_data(in_kcal, tmp_path)["optim"]["piwsl"] == {"energy_unit": "eV"}
    flags = ["--mode", "train", "--config-yml", str(parts), "--data", str(tmp_path)]
    args, overrides = read_arguments([*flags, "--dataset.train.first_n=7"])
    assert build_configs(args, overrides)[0]["dataset"] == {"train": {"src": mine, "first_n": 7}}


def test_only_files_below_the_folder_move():
    block = {"src": "data/x/train", "b": {"file": "data/xy/train"}, "c": "data/x/train", "d": [1]}
    assert moved(block, Path("data/x"), Path("/new")) == {**block, "src": "/new/train"}


@pytest.mark.parametrize("content", [None, "train_dataset: {}"])  # nothing, or what is for fairchem 2
def test_a_folder_without_data_is_named(content, tmp_path):
    if content:
        (tmp_path / "dataset.yml").write_text(content)
    with pytest.raises(UserError, match=rf"--data {tmp_path} has no dataset.yml of `piwsl prepare`: give"):
        with_data({}, tmp_path)


def test_methods_of_the_command_line(parts):
    flags = ["--mode", "train", "--config-yml", "../a.yml"]
    args, overrides = read_arguments([*flags, "--method", "second_order", "--optim.piwsl.c_pitc=7"])
    (config,) = build_configs(args, overrides)
    assert (config["optim"]["piwsl"]["c_pitc"], config["optim"]["piwsl"]["k_2nd"]) == (7, 0.5)
    assert config["identifier"] == ""
    benched = read_config(Path("../a.yml"), overrides, "second_order")
    assert {key: config[key] for key in benched} == benched
    args, _ = read_arguments([*flags, "--method", "baseline", "noisy_nodes", "--seeds", "0", "1"])
    configs = build_configs(args, [])
    assert [(c["identifier"], c["optim"]["piwsl"].get("noisy_nodes", False)) for c in configs] == [
        ("baseline-seed0", False),
        ("baseline-seed1", False),
        ("noisy_nodes-seed0", True),
        ("noisy_nodes-seed1", True),
    ]
