"""Sweep files and folders of sweeps that no command of `piwsl sweep` can work with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from conftest import make_config
from helpers_malformed import Case
from helpers_sweep import BASE, sweep_content

FLOAT = {"type": "float", "low": 0.0, "high": 1.0}
SWEEP = Path(__file__).parents[1] / "sweeps" / "old_sweep"


def start(
    name: str, changes: dict[str, Any], names: tuple[str, ...], remedy: str, options: str = "", **files: Any
) -> Case:
    """A sweep file with `changes`; None takes a key out."""
    content = {key: value for key, value in {**sweep_content(), **changes}.items() if value is not None}
    given = {"base.yml": yaml.safe_dump(BASE), "sweep.yml": yaml.safe_dump(content, sort_keys=False), **files}
    return Case(name, f"piwsl sweep start sweep.yml --folder out {options}", names, remedy, given)


def space(name: str, entry: Any, names: tuple[str, ...], remedy: str) -> Case:
    """One entry of the search space."""
    return start(
        f"space-{name}", {"space": {"optim.lr_initial": entry}}, ("optim.lr_initial", *names), remedy
    )


def training(name: str, names: tuple[str, ...], remedy: str, **changes: Any) -> Case:
    """A sweep of trainings that could be carried out without `changes`."""
    content = {"study": "toy", "base": "base.yml", "trials": 2, "objective": "forces_mae", **changes}
    config = make_config(Path("{tiny_data}"), Path("runs"), piwsl={"c_pitc": 1.0})
    texts = {"base.yml": yaml.safe_dump(config), "sweep.yml": yaml.safe_dump(content, sort_keys=False)}
    return Case(name, "piwsl sweep start sweep.yml", names, remedy, texts, ("tiny_data",))


def trial(name: str, key: str, entry: dict[str, Any], names: tuple[str, ...], remedy: str) -> Case:
    """A sweep of trainings in which one value of the space cannot be trained with."""
    return training(f"trial-{name}", names, remedy, space={key: entry})


def broken(file: str, content: str | None) -> Callable[[Path], None]:
    """Makes a sweep's folder in which one file is another, or missing."""

    def make(folder: Path) -> None:
        shutil.copytree(SWEEP, folder)
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_text(content, encoding="utf-8")

    return make


def with_key(key: str, value: Any) -> str:
    """The sweep's file with one entry replaced."""
    content = {**yaml.safe_load((SWEEP / "sweep.yml").read_text()), key: value}
    return yaml.safe_dump(content, sort_keys=False)


def on(
    name: str, command: str, names: tuple[str, ...], remedy: str, file: str = "x", content: str | None = ""
) -> Case:
    """A command on a sweep, `{sweep}`, of which `file` has been replaced."""
    text = command.format(sweep="sweep")
    return Case(name, f"piwsl sweep {text}", names, remedy, {"sweep": broken(file, content)})


CASES = [
    # the sweep file itself
    Case("no-file", "piwsl sweep start no.yml", ("no.yml", "does not exist"), "check the path"),
    Case("file-is-no-yaml", "piwsl sweep start a.yml", ("a.yml",), "YAML", {"a.yml": "study: [1, 2"}),
    Case("file-is-a-list", "piwsl sweep start a.yml", ("a.yml",), "block of keys", {"a.yml": "[1, 2]"}),
    Case("file-is-empty", "piwsl sweep start a.yml", ("a.yml",), "", {"a.yml": ""}),
    start("no-base", {"base": None}, ("sweep.yml", "'base'"), "name a training config"),
    start("base-missing", {"base": "gone.yml"}, ("gone.yml", "does not exist"), ""),
    start("base-in-parts", {"base": ["base.yml", 3]}, ("'base'",), "list of parts"),
    start("unknown-key", {"trails": 3}, ("sweep.yml", "'trails'"), "did you mean 'trials'"),
    start("unknown-key-far", {"xyz": 3}, ("'xyz'",), "known settings: study"),
    start("set-is-text", {"set": "fast"}, ("set", "'fast'"), "block of keys"),
    start("set-unknown", {"set": {"optim.lr_inital": 1}}, ("optim.lr_inital",), "did you mean"),
    start("no-trials", {"trials": None}, ("sweep.yml", "trials is missing"), "add it"),
    start("trials-0", {"trials": 0}, ("trials", "0"), "above 0"),
    start("trials-negative", {"trials": -1}, ("trials", "-1"), "above 0"),
    start("trials-half", {"trials": 2.5}, ("trials", "2.5"), "whole number"),
    start("trials-text", {"trials": "many"}, ("trials", "'many'"), "whole number"),
    start("trials-true", {"trials": True}, ("trials",), "must be a number"),
    start("trials-infinite", {"trials": float("inf")}, ("trials", "inf"), "must be"),
    start("workers-0", {"workers": 0}, ("workers",), "above 0"),
    start("retries-negative", {"retries": -1}, ("retries", "-1"), "0 or more"),
    start("seed-negative", {"seed": -5}, ("seed", "-5"), "0 or more"),
    start("cpu-text", {"cpu": "no"}, ("cpu", "'no'"), "true or false"),
    start("base-first-number", {"base_first": 1}, ("base_first",), "true or false"),
    start("budget-days", {"budget": {"days": 2}}, ("budget", "'days'"), "known settings: hours, steps"),
    start("budget-negative", {"budget": {"hours": -2}}, ("budget.hours", "-2"), "above 0"),
    start("budget-number", {"budget": 5}, ("budget",), "block of keys"),
    start("grace-short", {"heartbeat": {"interval": 5, "grace": 6}}, ("heartbeat.grace",), "three times"),
    start("interval-0", {"heartbeat": {"interval": 0}}, ("heartbeat.interval",), "above 0"),
    start("interval-nan", {"heartbeat": {"interval": float("nan")}}, ("heartbeat.interval",), "a number"),
    # objective, sampler, pruner
    start("no-objective", {"objective": None}, ("objective is missing",), "add it"),
    start("objective-number", {"objective": 3}, ("objective",), "block of keys"),
    start("objective-two", {"objective": {"metric": "a", "sum": {"a": 1}}}, ("objective",), "exactly one"),
    start("objective-empty-sum", {"objective": {"sum": {}}}, ("objective.sum",), "1 or more entries"),
    start("objective-weight", {"objective": {"sum": {"error": -1}}}, ("objective.sum.error",), "above 0"),
    start("objective-pareto-of-one", {"objective": {"pareto": ["error"]}}, ("objective.pareto",), "2 or more"),
    start("direction", {"objective": {"metric": "error", "direction": "up"}}, ("direction", "up"), "maximize"),
    start("take", {"objective": {"metric": "error", "take": "first"}}, ("take", "first"), "'best' or 'last'"),
    start("sampler-unknown", {"sampler": "best"}, ("sampler 'best'",), "choose one of tpe"),
    start("sampler-option", {"sampler": {"name": "tpe", "warmup": 1}}, ("'warmup'",), "TPESampler"),
    start("sampler-nameless", {"sampler": {"seed": 1}}, ("sampler",), "'name'"),
    start("sampler-value", {"sampler": {"name": "qmc", "qmc_type": "x"}}, ("sampler 'qmc'",), "option"),
    start("grid-of-floats", {"sampler": "grid"}, ("'grid'",), "change optim.lr_initial"),
    start("pruner-unknown", {"pruner": "medium"}, ("pruner 'medium'",), "choose one of none"),
    start("pruner-pareto", {"objective": {"pareto": ["error", "other"]}, "pruner": "median"}, ("pruner",), "none"),
    # the search space
    start("no-space", {"space": None}, ("space is missing",), "add it"),
    start("space-empty", {"space": {}}, ("space",), "name at least one"),
    start("space-list", {"space": ["optim.lr_initial"]}, ("space",), "name at least one"),
    space("number", 3, (), "block such as"),
    space("no-type", {"low": 0, "high": 1}, ("type",), "float, int, categorical"),
    space("unknown-type", {**FLOAT, "type": "real"}, ("'real'",), "float, int, categorical"),
    space("reversed", {**FLOAT, "low": 2}, ("low (2.0)",), "below high"),
    space("log-of-0", {**FLOAT, "log": True}, ("log",), "above 0"),
    space("log-with-step", {**FLOAT, "low": 0.1, "log": True, "step": 0.1}, ("log and step",), "remove one"),
    space("step-0", {**FLOAT, "step": 0}, ("step",), "above 0"),
    space("high-text", {**FLOAT, "high": "much"}, ("high", "'much'"), "a number"),
    space("high-nan", {**FLOAT, "high": float("nan")}, ("high", "nan"), "a number"),
    space("no-high", {"type": "float", "low": 0}, ("high",), "add it"),
    space("int-half", {"type": "int", "low": 1, "high": 2.5}, ("high", "2.5"), "whole number"),
    space("misspelt", {**FLOAT, "stop": 3}, ("'stop'",), "did you mean 'step'"),
    space("no-choices", {"type": "categorical", "choices": []}, ("choices",), "list of values"),
    space("choice-twice", {"type": "categorical", "choices": [1, 1]}, ("choices", "twice"), "remove one"),
    space("choice-list", {"type": "categorical", "choices": [[1]]}, ("choices",), "numbers, texts"),
    space("when-unknown", {**FLOAT, "when": {"optim.optimizer": "AdamW"}}, ("optim.optimizer",), "stand above"),
    space("when-text", {**FLOAT, "when": "AdamW"}, ("when",), "block of keys"),
    # what would become more than a value in a batch script, or leave its folder
    start("study-outside", {"study": "a/../../b"}, ("study 'a/../../b'",), "choose another name"),
    start("study-lines", {"study": "a\ntouch x"}, ("study 'a\\ntouch x'",), "choose another name"),
    start("study-empty", {"study": ""}, ("study ''",), "choose another name"),
    start("study-option", {"study": "--help"}, ("study '--help'",), "choose another name"),
    start("study-pattern", {"study": "%j"}, ("study '%j'",), "choose another name"),
    start("study-list", {"study": ["a"]}, ("study",), "choose another name"),
    start("partition-lines", {"job": {"slurm_partition": "gpu\ntouch x"}}, ("job.slurm_partition",), "one line"),
    start(
        "parameter-lines",
        {"job": {"slurm_additional_parameters": {"reservation": "a\ntouch x"}}},
        ("job.slurm_additional_parameters",),
        "one line",
    ),
    start("name-lines", {"job": {"name": "a\rb"}}, ("job.name",), "one line"),
    start("timeout-negative", {"job": {"timeout_min": -3}}, ("job.timeout_min", "-3"), "above 0"),
    start("memory-nan", {"job": {"mem_gb": float("nan")}}, ("job.mem_gb",), "a number"),
    start("delay-negative", {"job": {"slurm_signal_delay_s": -1}}, ("slurm_signal_delay_s", "-1"), "0 or more"),
    start("job-misspelt", {"job": {"timeout_mn": 3}}, ("job", "'timeout_mn'"), "did you mean 'timeout_min'"),
    start("job-text", {"job": "gpu"}, ("job", "'gpu'"), "block of keys"),
    Case(
        "folder-pattern", "piwsl sweep start sweep.yml --folder o%j", ("--folder", "%"), "choose another",
        {"base.yml": yaml.safe_dump(BASE), "sweep.yml": yaml.safe_dump(sweep_content())},
    ),
    # trials that could not run
    start("function-module", {"function": "no_such_module.f"}, ("function", "no_such_module"), "dotted path"),
    start("function-name", {"function": "helpers_sweep.parabel"}, ("function", "parabel"), "dotted path"),
    start("function-no-dot", {"function": "parabola"}, ("function", "'parabola'"), "dotted path"),
    start("function-no-function", {"function": "helpers_sweep.BASE"}, ("function", "BASE"), "dotted path"),
    start("function-arguments", {"function": "helpers_sweep.read_log"}, ("function", "read_log"), "report"),
    start("training-key", {"function": None, "space": {"optim.lr_intial": FLOAT}}, ("optim.lr_intial",), "did you mean"),
    training("training-metric", ("'force_mae'",), "did you mean 'forces_mae'", objective="force_mae",
             space={"optim.lr_initial": {**FLOAT, "low": 0.1}}),
    training("training-set", ("optim.batch_size",), ">= 1", set={"optim.batch_size": 0},
             space={"optim.lr_initial": {**FLOAT, "low": 0.1}}),
    training("training-data", ("gone.lmdb",), "", set={"dataset.train.src": "gone.lmdb"},
             space={"optim.lr_initial": {**FLOAT, "low": 0.1}}),
    trial("negative", "optim.lr_initial", {**FLOAT, "low": -1}, ("optim.lr_initial = -1.0",), ">= 0"),
    trial("weight", "optim.piwsl.c_pitc", {**FLOAT, "low": -1}, ("optim.piwsl.c_pitc = -1.0",), "c_pitc must be"),
    trial("model", "model.hidden_channels", {"type": "int", "low": 0, "high": 8}, ("model.hidden_channels = 0",), ">= 1"),
    trial("choice", "optim.optimizer", {"type": "categorical", "choices": ["AdamW", "Adamm"]},
          ("optim.optimizer = Adamm",), "did you mean"),
    # storage, folder, executor
    start("storage-folder", {"storage": "gone/study.log"}, ("storage", "gone"), "make it first"),
    start("storage-kind", {"storage": "study.db"}, ("study.db",), "database URL"),
    start("storage-sqlite", {"storage": "sqlite:////nowhere/x.db"}, ("sqlite:////nowhere/x.db",), "check the URL"),
    start("storage-driver", {"storage": "oracle+none://me:word@host/db"}, ("oracle+none://me:***@host/db",), ""),
    start("executor", {}, ("--executor sge",), "choose one of local", "--executor sge"),
    start("option-workers", {}, ("--workers",), "--help", "--workers 0"),
    start("option-trials", {}, ("--trials",), "--help", "--trials -1"),
    start("folder-is-a-file", {}, ("--folder", "out", "no folder"), "another", out="text"),
    start("folder-not-empty", {}, ("--folder", "out", "not empty"), "choose another", **{"out/notes.txt": "mine"}),
    # commands on a sweep
    *(
        Case(f"{name}-nothing-{where}", f"piwsl sweep {name} {where}", (where, "holds no sweep"), "sweep start", {"a/b": "c"})
        for name in ("status", "resume", "best", "report")
        for where in ("gone", "a")
    ),
    on("resume-trials", "resume {sweep} --trials -1", ("--trials",), "--help"),
    on("resume-fewer", "resume {sweep} --trials 2", ("--trials 2", "6 already"), "larger number"),
    on("resume-workers", "resume {sweep} --workers 0", ("--workers",), "--help"),
    on("resume-executor", "resume {sweep} --executor sge", ("--executor sge",), "choose one of"),
    on("resume-other-space", "resume {sweep}", ("optim.lr_initial",), "change 'study'",
       "sweep.yml", with_key("space", {"optim.lr_initial": FLOAT})),
    on("resume-function", "resume {sweep}", ("helpers_sweep.gone",), "dotted path",
       "sweep.yml", with_key("function", "helpers_sweep.gone")),
    on("status-file-broken", "status {sweep}", ("sweep.yml", "trials", "-1"), "above 0",
       "sweep.yml", with_key("trials", -1)),
    on("status-file-no-yaml", "status {sweep}", ("sweep.yml",), "YAML", "sweep.yml", "study: ["),
    on("status-no-base", "status {sweep}", ("base.yml", "does not exist"), "check", "base.yml", None),
    on("status-no-journal", "status {sweep}", ("journal.log", "does not exist"), "copy", "journal.log", None),
    on("status-empty-journal", "status {sweep}", ("before the redesign",), "sweep start", "journal.log", ""),
    on("status-torn-journal", "status {sweep}", ("journal.log",), "copy", "journal.log", "{\n{}\n"),
    on("status-other-journal", "status {sweep}", ("journal.log",), "copy", "journal.log", "[]\n{}\n"),
    on("status-binary-journal", "status {sweep}", ("journal.log",), "copy", "journal.log", "\x00\x01\n\x02\n"),
    on("resume-no-launch", "resume {sweep}", ("launch.json",), "workdir", "launch.json", None),
    on("resume-launch-broken", "resume {sweep}", ("launch.json",), "", "launch.json", "{"),
    on("resume-launch-list", "resume {sweep}", ("launch.json",), "workdir", "launch.json", json.dumps([1])),
    on("best-trial", "best {sweep} --trial 99", ("--trial 99",), "sweep status"),
    on("best-trial-waiting", "best {sweep} --trial 5", ("--trial 5",), "sweep status"),
    on("best-exists", "best {sweep} -o sweep/sweep.yml", ("sweep.yml exists",), "--output"),
    on("best-in-a-file", "best {sweep} -o sweep/sweep.yml/best.yml", ("--output", "no folder"), "another"),
    on("report-on-a-file", "report {sweep}", ("report", "no folder"), "another", "report", "text"),
]  # fmt: skip
