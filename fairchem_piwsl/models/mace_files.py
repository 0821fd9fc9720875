"""MACE's `.model` files: read them, take their atomic energies, write one from a fairchem checkpoint.

    piwsl mace references MACE-OFF23_small.model element_references.npz
    piwsl mace export checkpoints/RUN/best_checkpoint.pt trained.model

Published files are pickles of the whole model made with e3nn 0.4.4, which e3nn 0.5 and newer cannot read. Reading
converts them and builds the same model anew with the installed e3nn. Written files are pickles of the installed
e3nn: MACE's own calculator reads them in the same environment, not where e3nn 0.4.4 is installed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fairchem_piwsl.config import get_value
from fairchem_piwsl.datasets.element_references import N_ELEMENTS
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import whole_file
from fairchem_piwsl.training.checkpoint_files import (
    copy_averaged_weights,
    load_weights,
    need_trust,
    read_checkpoint,
)
from fairchem_piwsl.training.precision import default_dtype
from fairchem_piwsl.training.preflight import build_model
from fairchem_piwsl.units import ENERGY_UNITS


def import_mace() -> Any:
    """The package `mace.modules`, or what to install."""
    try:
        from mace import modules
    except ImportError as error:
        raise UserError(
            f"MACE needs the package mace-torch ({error}): run `pip install --no-deps -r requirements-mace.txt`."
        ) from error
    return modules


def head_number(model: nn.Module, head: str | None, key: str) -> int:
    """Place of a head of a MACE model, of the last one without a name; `key` names what the user gave."""
    heads = list(getattr(model, "heads", None) or ["Default"])
    if head is not None and head not in heads:
        raise UserError(f"{key} is {head!r}, but the MACE file has {', '.join(heads)}.")
    return heads.index(head) if head is not None else len(heads) - 1


def read_model(path: str | Path) -> nn.Module:
    """The model of a `.model` file, on the CPU and in the file's precision.

    Raises:
        UserError: the file is missing, no MACE model, or not trusted: a pickle of a model can run any code.
    """
    import_mace()
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"model.foundation {path} does not exist: give the path of a MACE .model file.")
    need_trust(path, "is a pickle of a whole model")
    try:
        with _pickles_of_e3nn_044():
            model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise UserError(f"model.foundation {path} cannot be read as a MACE model ({error}).") from error
    if not hasattr(model, "atomic_energies_fn"):
        raise UserError(f"model.foundation {path} holds a {type(model).__name__}, not a MACE model.")
    return _rebuilt(model)


def atomic_energies(model: nn.Module, head: str | None = None) -> np.ndarray:
    """Energies of isolated atoms in eV, `[119]`, indexed by atomic number, of a head of a MACE model, the last by default.

    Raises:
        UserError: the model has no head of that name.
    """
    energies = torch.atleast_2d(model.atomic_energies_fn.atomic_energies)[head_number(model, head, "--head")]
    references = np.zeros(N_ELEMENTS)
    references[model.atomic_numbers.cpu().numpy()] = energies.double().numpy()
    return references


def write_model(model: nn.Module, path: str | Path, references: np.ndarray, scale: float = 1.0) -> None:
    """Write a MACE model as a `.model` file.

    references `[119]` are the atomic energies in eV that the file shall have (for every head); `scale` turns
    the model's unit of energy into eV. The model itself is left as it is.
    """
    model = _rebuilt(model).cpu()
    energies = model.atomic_energies_fn.atomic_energies
    energies.copy_(torch.as_tensor(references[model.atomic_numbers.cpu().numpy()]).expand_as(energies))
    model.scale_shift.scale *= scale
    model.scale_shift.shift *= scale
    with whole_file(path) as file:
        torch.save(model, file)


def export(checkpoint: str | Path, path: str | Path) -> None:
    """Write the MACE model of a fairchem checkpoint, with its averaged weights, as a `.model` file in eV."""
    content = read_checkpoint(checkpoint, key="piwsl mace export")
    model: Any = build_model(content["config"]["model"])
    load_weights(model, content, checkpoint, key="piwsl mace export")
    copy_averaged_weights(model, content)
    if not hasattr(model, "mace"):
        raise UserError(f"{checkpoint} holds a {type(model).__name__}: only MACE can be exported.")
    normalizer = content.get("normalizers", {}).get("energy", {"mean": torch.zeros(1), "rmsd": torch.ones(1)})
    if float(normalizer["mean"]) != 0:
        raise UserError(
            f"{checkpoint} was trained with an energy normalizer of mean {float(normalizer['mean'])}, which MACE has "
            "no place for: train with mean 0."
        )
    references = np.zeros(N_ELEMENTS)
    if "energy" in content.get("elementrefs", {}):
        values = content["elementrefs"]["energy"]["element_references"].double().numpy()
        references[: len(values)] = values[:N_ELEMENTS]
    unit = ENERGY_UNITS[get_value(content["config"], "optim.piwsl.energy_unit", "eV")]
    write_model(model.mace, path, unit * references, unit * float(normalizer["rmsd"]) / model.ev_per_output)


def _rebuilt(model: nn.Module) -> nn.Module:
    """An equal model made by the installed e3nn: pickles carry over the attributes of the e3nn that wrote them."""
    from mace.tools.scripts_utils import extract_config_mace_model

    config = extract_config_mace_model(model)
    if "error" in config:
        raise UserError(f"The MACE file holds a {type(model).__name__}: only ScaleShiftMACE can be used.")
    with default_dtype(next(model.parameters()).dtype):
        rebuilt = type(model)(**config)
    missing = rebuilt.load_state_dict(model.state_dict(), strict=False).missing_keys
    lost = sorted(set(missing) & {name for name, _ in rebuilt.named_parameters()})
    if lost:
        raise UserError(f"The MACE file was written by another version of MACE: it lacks {lost[0]}.")
    make_copyable(rebuilt)
    return rebuilt


def make_copyable(model: nn.Module) -> None:
    """Let a MACE model be copied and pickled: e3nn compiles its spherical harmonics into a function that cannot."""
    from e3nn.o3 import _spherical_harmonics

    if hasattr(model.spherical_harmonics, "sph_func"):
        model.spherical_harmonics.sph_func = _spherical_harmonics._spherical_harmonics


@contextmanager
def _pickles_of_e3nn_044() -> Iterator[None]:
    """Inside the block, pickles of e3nn 0.4.4 can be read beside those of the installed version.

    They have bare TorchScript bytes where newer versions have a pair (kind, bytes).
    """
    from e3nn.util.codegen import CodeGenMixin

    set_state = CodeGenMixin.__setstate__

    def from_old(self: Any, state: dict[str, Any]) -> None:
        if "__codegen__" in state:
            compiled = {
                name: ("torchscript", entry) if isinstance(entry, bytes) else entry
                for name, entry in state["__codegen__"].items()
            }
            state = state | {"__codegen__": compiled}
        set_state(self, state)

    CodeGenMixin.__setstate__ = from_old
    try:
        yield
    finally:
        CodeGenMixin.__setstate__ = set_state
