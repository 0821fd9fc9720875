"""What fairchem 1.10.0 and this plugin read from a config: every key with the kind of its value.

`layout(config)` is the description of one config, since what may stand under `model`, `optim.optimizer_params`
and the like depends on the class that is named there.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.datasets.ase_datasets import apply_one_tags
from fairchem.core.modules import evaluator
from fairchem.core.modules.normalization import element_references, normalizer
from fairchem.core.preprocessing import AtomsToGraphs

from fairchem_piwsl.kinds import (
    ANYTHING,
    FLAG,
    MAX_SEED,
    NOTHING,
    TEXT,
    AnyKind,
    Block,
    Either,
    Items,
    Kind,
    named,
    number,
    one_of,
    optional,
    whole,
)
from fairchem_piwsl.settings import SETTINGS
from fairchem_piwsl.training.class_arguments import OPTIMIZERS, SCHEDULERS, of_signature, registered

FREE = Block({}, others=ANYTHING)
LEVELS = ("system", "atom")


METRICS = [
    name for name, found in vars(evaluator).items()
    if inspect.isfunction(found) and list(inspect.signature(found).parameters)[:2] == ["prediction", "target"]
]  # fmt: skip


def layout(config: Mapping[str, Any]) -> Block:
    """What may stand in `config`, given the classes that it names."""
    targets = _targets(config.get("outputs"))
    optim = config.get("optim")
    both = one_of(
        [name for name in METRICS if name.startswith("energy") and name.endswith("_within_threshold")]
    )  # of energy and forces at once
    metrics = Block({**dict.fromkeys(targets, Items(one_of(METRICS))), "misc": Items(both)})
    split = _split(targets)
    splits = Block(named(optional(split), "train val test relax"))
    return Block(
        {
            "trainer": registered("trainer", "trainer_name_mapping"),
            "logger": _logger(),
            "task": optional(TASK),
            "dataset": Either((Items(split), splits)),
            "outputs": optional(Block({}, others=OUTPUT)),
            "loss_functions": Either((Items(_losses(targets)), Block({}))),
            "evaluation_metrics": Block({"metrics": optional(metrics), "primary_metric": TEXT}),
            "model": _model(config.get("model")),
            "optim": _optim(optim if isinstance(optim, Mapping) else {}),
            "slurm": optional(SLURM),
            **COMMAND_LINE,
            **BEFORE_1_0,
        },
        required=("dataset", "model", "optim"),
    )


#: put there by main.py, by a sweep, or by upstream
COMMAND_LINE: dict[str, AnyKind] = {
    **named(TEXT, "mode run_dir distributed_backend init_method"),
    **named(FLAG, "amp cpu hide_eval_progressbar is_debug submit summit use_cuda_visibile_devices"),
    **named(optional(TEXT), "checkpoint timestamp_id"),
    **named(whole(1), "print_every world_size"),
    "identifier": Kind("text", lambda value: isinstance(value, str)),
    "seed": optional(whole(0, MAX_SEED)),
    "gp_gpus": optional(whole(1)),
    "local_rank": whole(0),
}
BEFORE_1_0 = named(ANYTHING, "loss_fns eval_metrics is_hpo is_vis")

#: of the task as well as of each output
OF_OUTPUTS: dict[str, AnyKind] = {
    **named(FLAG, "train_on_free_atoms eval_on_free_atoms"),
    "prediction_dtype": one_of(("float16", "float32")),
}
OUTPUT_SETTINGS: dict[str, AnyKind] = {
    "level": one_of(LEVELS),
    "shape": whole(1),  # in all configs of upstream, which ignores it
    "property": TEXT,
    "irrep_dim": whole(0),
    **OF_OUTPUTS,
}
OUTPUT = Block(
    {**OUTPUT_SETTINGS, "decomposition": Block({}, others=Block({**OUTPUT_SETTINGS, "parent": TEXT}))},
    required=("level",),
)

TASK = Block(
    {
        **OF_OUTPUTS,
        **named(TEXT, "dataset primary_metric"),
        **named(FLAG, "strict_load set_deterministic_scatter save_full_traj write_pos"),
        **named(FLAG, "eval_relaxations relax_cell relax_volume"),
        **named(number(low=0), "relaxation_fmax num_relaxation_batches"),
        "relax_opt": FREE,
        "relaxation_steps": whole(1),
        # the last five are descriptions in configs before 1.0, which nothing reads
        **named(ANYTHING, "relax_dataset description type metric labels grad_input"),
    }
)

_AT_LEAST_1 = Kind("a whole number of at least 1", whole(1).holds)
_ONE_LINE = Kind(
    "one line of text or a number",
    lambda value: not isinstance(value, list | Mapping) and str(value).isprintable(),
)
#: the plugin's own options; all others are sbatch's
SLURM = Block(
    {
        **named(_AT_LEAST_1, "signal_delay_s array_parallelism"),
        "max_timeouts": whole(0),
        "setup": Items(Kind("a shell command", lambda value: isinstance(value, str))),
    },
    others=_ONE_LINE,
)


def _logger() -> AnyKind:
    known = registered("logger", "logger_name_mapping")
    name = one_of(known.known, known.wanted, also=lambda v: v == "wandb_singleton" or known.holds(v))  # type: ignore[attr-defined]
    text = named(optional(TEXT), "project entity group")
    settings = {"name": name, **text, "watch": Either((FLAG, whole(1))), "log_weight_table": whole()}
    return Either((name, Block(settings, required=("name",))))


def _targets(outputs: Any) -> list[str]:
    """Names of outputs, their parts, and what is usual."""
    blocks = outputs if isinstance(outputs, Mapping) else {}
    parts = [b.get("decomposition") for b in blocks.values() if isinstance(b, Mapping)]
    names = [*blocks, *(name for part in parts if isinstance(part, Mapping) for name in part)]
    return list(dict.fromkeys([*names, "energy", "forces", "stress"]))


def _losses(targets: list[str]) -> Block:
    loss = Block(
        {
            "fn": registered("loss", "loss_name_mapping"),
            "coefficient": number(low=0),
            "reduction": one_of(("mean", "sum")),
        },
        required=("fn", "coefficient"),
    )
    return Block(dict.fromkeys(targets, loss))


# ---------------------------------------------------------------- model


def _model(model: Any, key: str = "name") -> Block:
    """The arguments of the class that `model.name` names, and of the models inside of it."""
    names = registered("model", "model_name_mapping", hidden="backbone|_head")
    name = model.get(key) if isinstance(model, Mapping) else None
    if not names.holds(name):
        return Block({key: names}, required=(key,), others=ANYTHING)
    more: dict[str, AnyKind] = {key: names}
    if name == "hydra":
        heads = model.get("heads")
        parts = heads if isinstance(heads, Mapping) else {}
        more["backbone"] = optional(_model(model.get("backbone"), "model"))
        more["heads"] = optional(Block({head: _model(part, "module") for head, part in parts.items()}))
        more["finetune_config"] = optional(
            Block({"starting_checkpoint": TEXT, "override": FREE}, required=("starting_checkpoint",))
        )
    elif isinstance(model.get("model"), Mapping):
        more["model"] = _model(model["model"])
    leave_out = ("backbone",) if key == "module" else ()
    return of_signature(registry.get_model_class(name), leave_out, **more)


# ---------------------------------------------------------------- optim


def _or_minus_1(meaning: str) -> Kind:
    return Kind(f"a whole number >= 1, or -1 for {meaning}", lambda v: v == -1 or whole(1).holds(v))


def _optim(optim: Mapping[str, Any]) -> Block:
    optimizer = OPTIMIZERS.get(str(optim.get("optimizer", "AdamW")))
    scheduler = SCHEDULERS.get(str(optim.get("scheduler")))
    # settings of schedulers that an override has replaced may stay behind
    arguments = [of_signature(kind, ("optimizer", "lr_lambda", "verbose")) for kind in SCHEDULERS.values()]
    own = of_signature(scheduler, ("optimizer", "lr_lambda", "verbose")) if scheduler else Block({})
    required = [
        name for name in own.required if name != "T_max"
    ]  # the plugin's trainer knows the length of the run
    cosine = ["scheduler_params"] if optim.get("scheduler") == "LambdaLR" and "lr_lambda" not in optim else []
    return Block(
        {
            **named(whole(1), "batch_size eval_batch_size max_epochs eval_every"),
            **named(number(low=0), "lr_initial weight_decay warmup_epochs warmup_factor"),
            "num_workers": whole(0),
            "checkpoint_every": _or_minus_1("the end of each epoch"),
            "warmup_steps": _or_minus_1("no warm-up"),
            "optimizer": one_of(OPTIMIZERS),
            "optimizer_params": of_signature(optimizer, ("params", "lr")) if optimizer else ANYTHING,
            "scheduler": one_of(
                [*SCHEDULERS, "Null"], "the name of a scheduler, in quotes where it is 'Null'"
            ),
            "scheduler_params": SCHEDULER_PARAMS if cosine else FREE,
            "lr_gamma": number(above=0),
            "lr_milestones": Items(whole(1)),
            "clip_grad_norm": optional(number(low=0)),
            "ema_decay": optional(number(low=0, below=1)),
            "load_balancing": Either((FLAG, NOTHING, one_of(("atoms",)))),
            "load_balancing_on_error": one_of(("warn_and_balance", "warn_and_no_balance", "raise")),
            "load_datasets_and_model_then_exit": FLAG,
            # of this plugin
            "piwsl": optional(SETTINGS),
            "finetune_from": optional(TEXT),
            "ema_warmup": FLAG,
            # before 1.0
            **named(number(low=0), "energy_coefficient force_coefficient"),
            **named(TEXT, "loss_energy loss_force loss_forces"),
            # of upstream's trainers for Equiformer v2
            "use_denoising_pos": FLAG,
            "denoising_pos_params": FREE,
            **{name: kind for block in (*arguments, own) for name, kind in block.settings.items()},
            "verbose": ANYTHING,
            "lr_lambda": Kind("a function", callable),
        },
        required=("num_workers", "max_epochs", "lr_initial", *required, *cosine),
    )


SCHEDULER_PARAMS = Block(
    {
        "lambda_type": one_of(("cosine",)),
        **named(number(low=0), "warmup_epochs warmup_factor lr"),
        "lr_min_factor": number(low=0, high=1),
        "epochs": whole(1),
    },
    required=("lambda_type", "warmup_epochs", "warmup_factor", "lr_min_factor"),
)


# ---------------------------------------------------------------- dataset


def _split(targets: list[str]) -> Block:
    file = {"file": TEXT}
    width = number(above=0)
    normal = Block({"mean": number(), "stdev": width, "rmsd": width, "tensor": ANYTHING, **file})
    fit = {"targets": ANYTHING, "fitted": FLAG, "override_values": ANYTHING}
    normal_fit = of_signature(normalizer.fit_normalizers, ("dataset", "element_references"), **fit)
    reference_fit = of_signature(element_references.fit_linear_references, ("dataset",), **fit)
    condition = named(ANYTHING, "metadata_key op rhv")
    transforms = {
        "normalizer": Block({**dict.fromkeys(targets, normal), **file, "fit": normal_fit}),
        "element_references": Block(
            {**dict.fromkeys(targets, Block(file, required=file)), **file, "fit": reference_fit}
        ),
        "decompose_tensor": Block(
            {"tensor": TEXT, "rank": whole(0), "decomposition": FREE},
            required=("tensor", "rank", "decomposition"),
        ),
    }
    settings: dict[str, AnyKind] = {
        "format": registered("data format", "dataset_name_mapping"),
        "src": Either((Items(TEXT), TEXT)),
        "use_train_settings": FLAG,
        "key_mapping": optional(Block({}, others=TEXT)),
        "transforms": Block(transforms),
        "lin_ref": Either((FLAG, NOTHING, TEXT)),
        "metadata_path": optional(TEXT),
        **named(optional(whole(1)), "max_atoms first_n sample_n"),
        "no_shuffle": optional(FLAG),
        "subset_to": Items(Block(condition, required=condition)),
        **named(whole(0), "seed shard"),
        "total_shards": whole(1),
        # ase_db, ase_read, ase_read_multi
        "a2g_args": optional(of_signature(AtomsToGraphs)),
        "atoms_transform_args": of_signature(apply_one_tags, ("atoms",)),
        **named(optional(FREE), "ase_read_args connect_args select_args"),
        "pattern": TEXT,
        "index_file": optional(TEXT),
        **named(FLAG, "keep_in_memory include_relaxed_energy use_tqdm"),
        # oc22_lmdb
        "train_on_oc20_total_energies": FLAG,
        **named(TEXT, "oc20_ref data2train"),
        # before 1.0
        "normalize_labels": FLAG,
        **named(number(), "target_mean grad_target_mean"),
        **named(width, "target_std grad_target_std"),
    }
    of_split = Block(settings)
    names = named(of_split, "train_split_settings val_split_settings test_split_settings")
    return Block({**settings, **names, "splits": Block({}, others=of_split)})
