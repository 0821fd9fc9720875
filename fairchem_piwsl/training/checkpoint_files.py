"""The one reader and the one writer of checkpoints, for training, analysis, fine-tuning and reports.

A checkpoint is a pickle, and a pickle can run any code when it is loaded. Files are therefore read with torch's
restricted unpickler, which makes tensors, plain Python objects and the few classes named here, and refuses all
else. Files of another kind need an explicit word: the option `--trust-checkpoint` of `piwsl` and `main.py`, or the
environment variable `PIWSL_TRUST_CHECKPOINT=1`, which jobs and ranks inherit.
"""

import codecs
import io
import os
import pathlib
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fairchem_piwsl.errors import UserError, in_words
from fairchem_piwsl.files import whole_file

TRUST = "PIWSL_TRUST_CHECKPOINT"
#: what every checkpoint of fairchem 1.10 has
KEYS = ("config", "state_dict", "normalizers")
#: first bytes of the format that torch has written since 1.6
_ZIP = b"PK\x03\x04"
_REFUSED = re.compile(r"GLOBAL (\S+)|Unsupported (?:operand|class)|unrecognized function|Can only [A-Za-z]+ ")


def trusted() -> bool:
    """Whether the user has said that checkpoints may run code."""
    return os.environ.get(TRUST, "") not in ("", "0")


def trust() -> None:
    """What `--trust-checkpoint` does, for this process and those that it starts."""
    os.environ[TRUST] = "1"


def need_trust(path: str | os.PathLike[str], reason: str) -> None:
    """Refuse a file that can run code, unless the user trusts it."""
    if not trusted():
        raise UserError(
            f"{path} {reason}, so that loading it can run any code: if you trust who made it, set {TRUST}=1, or give "
            "main.py or piwsl the option --trust-checkpoint (before the command's name)."
        )


def save_atomically(state: Any, path: str | os.PathLike[str]) -> str:
    """Write `state` to `path` so that readers see either the old file or the complete new one."""
    # torch's writer turns a full disk into an error about positions in its file; a buffer leaves it an OSError
    content = io.BytesIO()
    torch.save(state, content)
    try:
        with whole_file(path) as file:
            file.write(content.getbuffer())
    except OSError as error:
        raise UserError(
            f"checkpoint {path} cannot be written ({error.strerror}): make room, or give another --run-dir."
        ) from error
    return str(path)


def read_checkpoint(
    path: str | os.PathLike[str], device: Any = "cpu", key: str = "--checkpoint"
) -> dict[str, Any]:
    """Load a checkpoint of fairchem 1.10, with or without this plugin.

    Args:
        path: a `checkpoint.pt` or `best_checkpoint.pt`.
        device: where its tensors go.
        key: option or key of the config that named the file, for the messages.

    Raises:
        UserError: the file is missing, damaged, of another kind, or needs trust.
    """
    content = read_torch_file(path, device, key)
    check_checkpoint(content, path, key)
    return content


def read_torch_file(path: str | os.PathLike[str], device: Any = "cpu", key: str = "--checkpoint") -> Any:
    """Whatever `torch.save` wrote, without running code unless the file is trusted."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"checkpoint {path} does not exist: give the path of a .pt file that training wrote ({key})."
        )
    try:
        # Before torch 2.6 the older formats run code even where only weights are asked for.
        if not trusted():
            _refuse_old_format(path, key)
        _allow_plain_classes()
        return torch.load(path, map_location=device, weights_only=not trusted())
    except UserError:
        raise
    except Exception as error:  # anything may come out of a damaged file
        refused = _REFUSED.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused:
            what = (
                f"the class or function {refused[1].rstrip('.')}" if refused[1] else "unusual Python objects"
            )
            need_trust(path, f"holds {what}")
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UserError(_unreadable(path, key, reason)) from error


def _refuse_old_format(path: Path, key: str) -> None:
    with path.open("rb") as file:
        first = file.read(512)
    if first.startswith(_ZIP):
        return
    if first[:1] == pickle.PROTO or first[257:262] == b"ustar":
        need_trust(path, "is a plain pickle or in a format before torch 1.6")
    raise UserError(_unreadable(path, key, "not written by torch.save"))


def _unreadable(path: Path, key: str, reason: str) -> str:
    return (
        f"checkpoint {path} cannot be read: truncated or no torch checkpoint ({reason}); pass another {key}."
    )


def check_checkpoint(content: Any, path: str | os.PathLike[str], key: str = "--checkpoint") -> None:
    """Refuse what is not a checkpoint of fairchem 1.10, and weights that are NaN."""
    if isinstance(content, nn.Module):
        _refuse(path, key, f"holds a whole model ({type(content).__name__})")
    if not isinstance(content, Mapping):
        _refuse(path, key, f"holds an object of type {type(content).__name__}")
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        _refuse(path, key, "holds weights alone, without the config of their model")
    missing = [name for name in KEYS if name not in content]
    if missing:
        _refuse(path, key, f"has no {' and no '.join(repr(name) for name in missing)}")
    for name in KEYS:
        if not isinstance(content[name], Mapping):
            _refuse(path, key, f"has a '{name}' of type {type(content[name]).__name__}")
    if not isinstance(content["config"].get("model"), str | Mapping):
        _refuse(path, key, "has a config without a model")
    weights = content["state_dict"]
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        _refuse(path, key, "has a 'state_dict' that is not a dict of tensors")
    for name, value in weights.items():
        if value.isnan().any():
            raise UserError(
                f"checkpoint {path} has weights that are NaN ({name}): the training diverged; pass another {key}."
            )


def _refuse(path: str | os.PathLike[str], key: str, why: str) -> None:
    raise UserError(
        f"{path} is not a fairchem checkpoint: it {why}; pass a checkpoint.pt or best_checkpoint.pt that "
        f"training wrote to {key}."
    )


def no_training_state(path: str | os.PathLike[str]) -> UserError:
    """What to say where training cannot go on from a checkpoint that has weights alone."""
    return UserError(
        f"{path} holds weights without optimizer and EMA, so training cannot be resumed from it; resume from "
        "checkpoint.pt, or start anew from these weights with optim.finetune_from."
    )


def model_name(checkpoint: Mapping[str, Any]) -> str:
    """Name of the model that a checkpoint's config has, in the layouts before and after fairchem 1.0."""
    model = checkpoint["config"]["model"]
    return str(model if isinstance(model, str) else model.get("name", "unknown"))


def load_weights(
    model: nn.Module, checkpoint: Mapping[str, Any], path: str | os.PathLike[str], key: str
) -> None:
    """Give `model` the weights of a checkpoint; a `UserError` where they belong to another one."""
    from fairchem.core.common.utils import match_state_dict

    try:
        model.load_state_dict(match_state_dict(model.state_dict(), dict(checkpoint["state_dict"])))
    except (RuntimeError, KeyError, ValueError) as error:  # ValueError: of scale factors that the file lacks
        raise UserError(
            f"{key}: {path} holds a model '{model_name(checkpoint)}' whose weights do not fit the block 'model' of "
            f"this config; give both the same hyperparameters ({in_words(error)})."
        ) from None


def copy_averaged_weights(model: nn.Module, checkpoint: Mapping[str, Any]) -> bool:
    """Copy the averaged weights (EMA) of a `checkpoint.pt`; returns whether the file has any.

    `best_checkpoint.pt` holds them as its weights already.
    """
    averages = (checkpoint.get("ema") or {}).get("shadow_params")
    if not averages:
        return False
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter, average in zip(trainable, averages, strict=True):
            parameter.copy_(average)
    return True


def _allow_plain_classes() -> None:
    """Tell torch's restricted unpickler, which goes by names, the classes of numpy and Python that checkpoints hold.

    Arrays and scalars of numpy are in the random states of older checkpoints and in some configs.
    """
    # numpy 2 moved the module, and a file may come from either version
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    numpy_functions = [_named(function, module) for module in modules for function in _NUMPY_FUNCTIONS]
    dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefdFDUS"}
    paths = (pathlib.PosixPath, pathlib.PurePosixPath)
    plain = (list, dict, set, frozenset, codecs.encode, *paths)
    torch.serialization.add_safe_globals([*plain, np.ndarray, np.dtype, *dtypes, *numpy_functions])


def _named(function: Callable[..., Any], module: str) -> Callable[..., Any]:
    """`function` under the name that a pickle calls it by."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, call.__name__, call.__qualname__ = module, function.__name__, function.__name__
    return call


_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_FUNCTIONS: tuple[Callable[..., Any], ...] = (_RECONSTRUCT, _SCALAR)  # type: ignore[assignment]
