"""A trained model for the commands that judge it: batched energies and forces, gradients, ASE calculator."""

from __future__ import annotations

import hashlib
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from fairchem_piwsl.analysis.inference_checkpoints import is_inference_checkpoint
from fairchem_piwsl.analysis.model_names import short_names
from fairchem_piwsl.errors import UserError, in_words
from fairchem_piwsl.structures import STATES
from fairchem_piwsl.upstream import installed_version

if TYPE_CHECKING:
    from torch import Tensor

# Some models draw random edge frames even in evaluation; the same draws make predictions repeatable.
SEED = 0


@dataclass(frozen=True)
class Predictions:
    """Energies [S] in eV and, one [n_atoms, 3] array per structure, forces in eV/Angstrom."""

    energy: np.ndarray
    forces: list[np.ndarray]


@dataclass
class Potential(ABC):
    """A trained model: `predict` for many structures, `calculator` for one at a time (ASE).

    Build it with `load_potential`. Numbers are in eV and Angstrom. In float32 a model's own rounding
    remains, but normalisers and element references are applied in float64, so that energy differences keep
    their digits.
    """

    name: str
    path: Path
    #: of the training, in the layout of fairchem 1.10
    config: dict[str, Any]
    dtype: Any
    gradient_forces: bool

    @property
    @abstractmethod
    def model(self) -> Any:
        """The torch module."""

    @abstractmethod
    def outputs(self, structures: Sequence[Atoms]) -> tuple[Tensor, Tensor]:
        """Energies [S] and forces [N, 3] of one batch in float64."""

    def predict(self, structures: Sequence[Atoms], batch_size: int = 16) -> Predictions:
        """Energies and forces of `structures`, in their order."""
        energies, forces = [], []
        for start in range(0, len(structures), batch_size):
            chunk = structures[start : start + batch_size]
            energy, force = self.evaluate(chunk)
            if not (np.isfinite(energy).all() and np.isfinite(force).all()):
                formulas = ", ".join(sorted({str(atoms.symbols) for atoms in chunk}))
                raise UserError(
                    f"{self.path}: the model's answer for a structure of {formulas} is not finite; look at the "
                    "structures, or train the model again."
                )
            energies.append(energy)
            forces += np.split(force, np.cumsum([len(atoms) for atoms in chunk])[:-1])
        return Predictions(np.concatenate(energies) if energies else np.zeros(0), forces)

    def calculator(self) -> PotentialCalculator:
        """A fresh ASE calculator around this model."""
        return PotentialCalculator(self)

    def evaluate(self, structures: Sequence[Atoms]) -> tuple[np.ndarray, np.ndarray]:
        """Energies [S] and forces [N, 3] of one batch, finite or not."""
        if not all(np.isfinite(atoms.positions).all() for atoms in structures):
            raise UserError(f"{self.path}: a structure to evaluate has positions that are not finite.")
        try:
            energy, forces = self.outputs(structures)
        except IndexError as error:
            elements = ", ".join(sorted({symbol for atoms in structures for symbol in atoms.symbols}))
            raise UserError(
                f"{self.path}: the model cannot evaluate a structure ({error}); does it know all elements of "
                f"{elements}?"
            ) from error
        return energy.detach().cpu().numpy().reshape(-1), forces.detach().cpu().numpy().reshape(-1, 3)

    def minus_gradient(self, energy: Tensor, positions: Tensor) -> Tensor:
        """-dE/dr [N, 3] in float64."""
        import torch

        if not energy.requires_grad:
            raise UserError(f"{self.path}: the energy of this model cannot be differentiated.")
        (gradient,) = torch.autograd.grad(energy.sum(), positions)
        return -gradient.double()


class PotentialCalculator(Calculator):
    """ASE calculator: energy (eV) and forces (eV/Angstrom) of a `Potential`."""

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012  ASE's type

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation; ASE does not look at total charge and spin."""
        changes = super().check_state(atoms, tol)
        known = self.atoms.info if self.atoms is not None else {}
        return [*changes, *(name for name in STATES if known.get(name) != atoms.info.get(name))]

    def calculate(
        self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        """Fill `results` for `atoms`."""
        super().calculate(atoms, list(properties), system_changes)
        energy, forces = self.potential.evaluate([atoms])
        self.results = {"energy": float(energy[0]), "free_energy": float(energy[0]), "forces": forces}


def load_potential(
    checkpoint: str | Path,
    *,
    cpu: bool = False,
    dtype: str = "float32",
    ema: bool = True,
    gradient_forces: bool = False,
    name: str | None = None,
    task_name: str | None = None,
) -> Potential:
    """Load a checkpoint of the fairchem that is installed: 1.10 (with or without this plugin), or 2.

    cpu: stay off the GPU. dtype: "float64" evaluates the same weights in double precision, for derivatives.
    ema: where the file is a `checkpoint.pt` with averaged weights, use these, as validation did; fairchem 2 always
    does. gradient_forces: take -dE/dr instead of the forces output, for models trained on energies only. The edge
    frames of eSCN and Equiformer v2, which fairchem 1.10 draws anew and detaches, are then fixed functions of the
    positions. task_name: of a fairchem-2 model for several data sets, the one whose heads are meant.
    """
    import torch

    path = Path(checkpoint)
    is_new = installed_version().startswith("2.")
    if dtype not in ("float32", "float64"):
        raise UserError(f"dtype: {dtype!r} is not known; choose float32 or float64.")
    if not is_new and is_inference_checkpoint(path):
        raise UserError(
            f"{path} is a checkpoint of fairchem-core 2, and {installed_version()} is installed here; use an "
            "environment made by `pip install -r requirements-fairchem2.txt`."
        )
    if task_name is not None and not is_new:
        raise UserError("--task-name is for checkpoints of fairchem-core 2; leave it out.")
    options = (name or short_names([path])[0], cpu, getattr(torch, dtype), gradient_forces)
    if is_new:
        from fairchem_piwsl.analysis import potential_fairchem2

        return potential_fairchem2.load(path, *options, task_name)
    from fairchem_piwsl.analysis import potential_fairchem1

    return potential_fairchem1.load(path, *options, ema)


def load_potentials(checkpoints: Sequence[str | Path], **options: Any) -> list[Potential]:
    """Load several checkpoints under names that tell them apart."""
    return [
        load_potential(path, name=name, **options)
        for path, name in zip(checkpoints, short_names(checkpoints), strict=True)
    ]


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Errors of a model's own code while it is built and given its weights, as one sentence."""
    try:
        yield
    except UserError:
        raise
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: its weights do not fit the model that its config names ({in_words(error)}); give a checkpoint as "
            "training wrote it."
        ) from error


def check_weights(model: Any, path: Path) -> None:
    """Refuse a model that diverged in training."""
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise UserError(
                f"{path}: its weights are not finite ({name}), since training diverged; give an earlier "
                "checkpoint, or leave this run out."
            )


def file_digest(path: str | Path) -> str:
    """A short name for the contents of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Hold back upstream's log of its config and its deprecation notes, which would bury our own output."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def seeded(device: Any) -> Iterator[None]:
    """`SEED` for what a model draws in the block; the generators are put back after it.

    Only the generators in use are touched: torch.manual_seed visits every backend, a tenth of a step of dynamics.
    """
    import torch

    number = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    numbers = [number] if device.type == "cuda" else []
    with torch.random.fork_rng(numbers):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[n] for n in numbers)):
            generator.manual_seed(SEED)
        yield
