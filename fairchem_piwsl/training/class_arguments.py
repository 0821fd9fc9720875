"""What may be given to the classes that a config names: models, optimizers, schedulers and the like."""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fairchem.core.common.registry import registry
from torch.optim import lr_scheduler

from fairchem_piwsl.kinds import (
    ANYTHING,
    FLAG,
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
from fairchem_piwsl.upstream.names import NAMES


def _subclasses(module: Any, base: type, unusable: Iterable[str]) -> dict[str, type]:
    return {
        name: found
        for name, found in vars(module).items()
        if inspect.isclass(found) and issubclass(found, base) and found is not base
        and not name.startswith("_") and name not in unusable
    }  # fmt: skip


#: LBFGS needs a closure, SparseAdam sparse gradients
OPTIMIZERS = _subclasses(torch.optim, torch.optim.Optimizer, ("LBFGS", "SparseAdam"))
#: what is left out is made of other schedulers or of functions
_NO_SCHEDULERS = ("LRScheduler", "SequentialLR", "ChainedScheduler", "MultiplicativeLR")
SCHEDULERS = _subclasses(lr_scheduler, lr_scheduler.LRScheduler, _NO_SCHEDULERS)

#: sizes of a model, and other arguments whose name says more than their type
SIZES = re.compile(
    r"(.*_)?(cutoff|radius|channels|layers|rbf|gaussians|filters|interactions|heads|neighbors|elements|blocks|"
    r"functions|radial|spherical|samples|basis|bessel|size)|emb_size_.*|max_num_.*"
)
ARGUMENTS: dict[str, AnyKind] = {
    **named(whole(1), "T_max T_0 T_mult step_size total_iters"),
    **named(whole(0), "patience cooldown"),
    **named(number(low=0), "eta_min weight_decay eps momentum"),
    "total_steps": optional(whole(1)),
    "gamma": number(above=0),
    "factor": number(above=0, below=1),
    "min_lr": Either((Items(number(low=0)), number(low=0))),
    "milestones": Items(whole(1)),
    "mode": one_of(("min", "max", "triangular", "triangular2", "exp_range")),
    "betas": Items(number(low=0, below=1)),
}
FROM_ANNOTATION = {"bool": FLAG, "int": whole(), "float": number()}


def of_signature(function: Callable[..., Any], leave_out: Iterable[str] = (), **more: AnyKind) -> Block:
    """The keyword arguments of a class or function as a block."""
    parameters = inspect.signature(function).parameters
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    own = [p for p in parameters.values() if p.name not in (*leave_out, "self") and p.kind not in variable]
    return Block(
        {**{parameter.name: _kind(parameter) for parameter in own}, **more},
        required=[parameter.name for parameter in own if parameter.default is parameter.empty],
        others=ANYTHING if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else None,
    )


def _kind(parameter: inspect.Parameter) -> AnyKind:
    if parameter.name in ARGUMENTS:
        return ARGUMENTS[parameter.name]
    default, note = parameter.default, parameter.annotation
    name = note if isinstance(note, str) else getattr(note, "__name__", "")
    types = {part.strip() for part in name.split("|")} - {"None"}
    if len(types) == 1 and types <= FROM_ANNOTATION.keys():
        kind: AnyKind = FROM_ANNOTATION[types.pop()]
    else:
        kind = FROM_ANNOTATION.get(type(default).__name__, ANYTHING)
    sizes: dict[AnyKind, Kind] = {FROM_ANNOTATION["int"]: whole(1), FROM_ANNOTATION["float"]: number(above=0)}
    has_size = kind in sizes and SIZES.fullmatch(parameter.name)
    if has_size and (default in (parameter.empty, None) or default > 0):
        kind = sizes[kind]
    return optional(kind) if default is None else kind


def registered(what: str, mapping: str, hidden: str = "$^") -> Kind:
    """Names that fairchem's registry knows, or the dotted path of a class."""

    def by_path(value: Any) -> bool:
        try:
            return "." in str(value) and registry.get_class(value, mapping) is not None
        except Exception:  # whatever the import of a module raises
            return False

    # the plugin's own may not be imported yet
    every = [*registry.mapping[mapping], *NAMES.get(mapping, ())]
    known = [name for name in dict.fromkeys(every) if not re.search(hidden, name)]
    return one_of(known, f"the name of a {what}", also=lambda value: value in every or by_path(value))
