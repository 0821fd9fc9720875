"""One loader for every fairchem 1.10 checkpoint: batched energies and forces, gradients, ASE calculator."""

from __future__ import annotations

import copy
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from fairchem_piwsl.analysis.model_names import short_name, short_names
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import to_batch

if TYPE_CHECKING:
    from torch import Tensor

# Some models draw random edge frames even in evaluation; the same draws make predictions repeatable.
SEED = 0


@dataclass(frozen=True)
class Predictions:
    """Energies [S] in eV and, one [n_atoms, 3] array per structure, forces in eV/Angstrom."""

    energy: np.ndarray
    forces: list[np.ndarray]


class Potential:
    """A trained model: `predict` for many structures, `calculator` for one at a time (ASE).

    Build it with `load_potential`. Numbers are in eV and Angstrom. In float32 a model's own rounding
    remains, but normalisers and element references are applied in float64, so that energy differences keep
    their digits.
    """

    def __init__(
        self, trainer: Any, config: dict[str, Any], name: str, path: Path, dtype: Any, gradient_forces: bool
    ) -> None:
        self.name = name
        self.path = path
        #: of the training; the trainer here has one of its own, for inference
        self.config = config
        self.dtype = dtype
        self.gradient_forces = gradient_forces
        self._trainer = trainer
        self._trainer.model.eval().to(dtype)
        for module in (*trainer.normalizers.values(), *trainer.elementrefs.values()):
            module.to(device=trainer.device).double()

    @property
    def model(self) -> Any:
        """The torch module."""
        return self._trainer.model

    def predict(self, structures: Sequence[Atoms], batch_size: int = 16) -> Predictions:
        """Energies and forces of `structures`, in their order."""
        energies, forces = [], []
        for start in range(0, len(structures), batch_size):
            chunk = structures[start : start + batch_size]
            energy, force = self._evaluate(chunk)
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

    def _evaluate(self, structures: Sequence[Atoms]) -> tuple[np.ndarray, np.ndarray]:
        if not all(np.isfinite(atoms.positions).all() for atoms in structures):
            raise UserError(f"{self.path}: a structure to evaluate has positions that are not finite.")
        batch = to_batch(structures, self.dtype).to(self._trainer.device)
        try:
            if self.gradient_forces:
                energy, forces = self._energy_and_gradient(batch)
            else:
                outputs = self._forward(batch)
                energy, forces = outputs["energy"], outputs["forces"]
        except IndexError as error:
            elements = ", ".join(sorted({symbol for atoms in structures for symbol in atoms.symbols}))
            raise UserError(
                f"{self.path}: the model cannot evaluate a structure ({error}); does it know all elements of "
                f"{elements}?"
            ) from error
        return energy.detach().cpu().numpy().reshape(-1), forces.detach().cpu().numpy().reshape(-1, 3)

    def _energy_and_gradient(self, batch: Any) -> tuple[Tensor, Tensor]:
        import torch

        batch.pos.requires_grad_(True)
        with torch.enable_grad():
            energy = self._forward(batch, grad=True)["energy"]
            if not energy.requires_grad:
                raise UserError(f"{self.path}: the energy of this model cannot be differentiated.")
            (gradient,) = torch.autograd.grad(energy.sum(), batch.pos)
        return energy.detach(), -gradient.double()

    def _forward(self, batch: Any, grad: bool = False) -> dict[str, Tensor]:
        """Denormalised outputs in float64."""
        import torch

        with _seeded(self._trainer.device), torch.set_grad_enabled(grad), _default_dtype(self.dtype):
            try:
                outputs = self._trainer._forward(batch)
            except AttributeError as error:
                # PaiNN and GemNet refuse a structure without edges by the `id` that its data set gave it.
                if str(error).endswith("attribute 'id'"):
                    raise UserError(
                        f"{self.path}: this model cannot evaluate a structure of which no two atoms are within "
                        "its cutoff, such as a single atom; leave it out."
                    ) from error
                raise UserError(
                    f"{self.path}: the model does not give what the checkpoint's `outputs` name ({error})."
                ) from error
            return {
                key: self._trainer._denorm_preds(key, value.double(), batch) for key, value in outputs.items()
            }


class PotentialCalculator(Calculator):
    """ASE calculator: energy (eV) and forces (eV/Angstrom) of a `Potential`."""

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012  ASE's type

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def calculate(
        self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        """Fill `results` for `atoms`."""
        super().calculate(atoms, list(properties), system_changes)
        energy, forces = self.potential._evaluate([atoms])
        self.results = {"energy": float(energy[0]), "free_energy": float(energy[0]), "forces": forces}


def load_potential(
    checkpoint: str | Path,
    *,
    cpu: bool = False,
    dtype: str = "float32",
    ema: bool = True,
    gradient_forces: bool = False,
    name: str | None = None,
) -> Potential:
    """Load a checkpoint that fairchem 1.10 (with or without this plugin) wrote.

    cpu: stay off the GPU. dtype: "float64" evaluates the same weights in double precision, for derivatives.
    ema: where the file is a `checkpoint.pt` with averaged weights, use these, as validation did.
    gradient_forces: take -dE/dr instead of the forces output, for models trained on energies only. The edge
    frames of eSCN and Equiformer v2, which upstream draws anew and detaches, are then fixed functions of the
    positions.
    """
    import torch

    from fairchem_piwsl.training.checkpoint_files import copy_averaged_weights, read_checkpoint

    path = Path(checkpoint)
    state = read_checkpoint(path, key="checkpoint")
    config = _current_layout(path, state["config"])
    outputs = config["outputs"]
    if "energy" not in outputs:
        raise UserError(
            f"{path}: this model has no energy output (it has {', '.join(outputs)}); give the checkpoint of one "
            "that has."
        )
    if gradient_forces:
        config["outputs"] = {"energy": outputs["energy"]}
    elif "forces" not in outputs:
        raise UserError(
            f"{path}: this model has no forces output; use the gradient of its energy instead "
            "(--gradient-forces, or gradient_forces=True)."
        )
    if dtype not in ("float32", "float64"):
        raise UserError(f"dtype: {dtype!r} is not known; choose float32 or float64.")
    try:
        with _quiet():
            trainer = _build_trainer(path, config, cpu)
            trainer.load_checkpoint(str(path), checkpoint=state, inference_only=True)
    except UserError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path}: its weights do not fit the model that its config names ({reason}); give a checkpoint as "
            "training wrote it."
        ) from error
    if ema:
        copy_averaged_weights(trainer.model, state)
    for parameter_name, weights in trainer.model.named_parameters():
        if not weights.isfinite().all():
            raise UserError(
                f"{path}: its weights are not finite ({parameter_name}), since training diverged; give an earlier "
                "checkpoint, or leave this run out."
            )
    if gradient_forces:
        from fairchem_piwsl.upstream.edge_frames import differentiate_edge_frames

        differentiate_edge_frames(trainer.model)
    return Potential(
        trainer, state["config"], name or short_name(path), path, getattr(torch, dtype), gradient_forces
    )


def load_potentials(checkpoints: Sequence[str | Path], **options: Any) -> list[Potential]:
    """Load several checkpoints under names that tell them apart."""
    return [
        load_potential(path, name=name, **options)
        for path, name in zip(checkpoints, short_names(checkpoints), strict=True)
    ]


def file_digest(path: str | Path) -> str:
    """A short name for the contents of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _current_layout(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's config in the layout of fairchem 1.10, with neighbours found on the fly."""
    from fairchem.core.common.utils import update_config

    current = copy.deepcopy(dict(config))
    try:
        if "model_attributes" in current:  # the layout of ocpmodels before 2.0
            current["model"] = {**current.pop("model_attributes"), "name": current["model"]}
        current["model"]["otf_graph"] = True
        current = update_config(current)
        dict(current["outputs"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: its config has no outputs, or none that can be read ({error!r}); give a checkpoint as "
            "training wrote it."
        ) from error
    return current


def _build_trainer(path: Path, config: dict[str, Any], cpu: bool) -> Any:
    """Upstream's trainer in inference mode, as its calculator builds it."""
    from fairchem.core.common.registry import registry
    from fairchem.core.common.utils import setup_imports

    setup_imports()
    name = config["model"].get("name")
    try:
        registry.get_model_class(name)
    except RuntimeError as error:
        raise UserError(
            f"{path}: its model {name!r} is not installed; install the package that has it."
        ) from error
    return registry.get_trainer_class(config.get("trainer") or "ocp")(
        task=config.get("task", {}),
        model=config["model"],
        dataset=[{}],
        outputs=config["outputs"],
        loss_functions=config.get("loss_functions", []),
        evaluation_metrics=config.get("evaluation_metrics", {}),
        optimizer=config.get("optim", {}),
        identifier="",
        local_rank=0,
        is_debug=True,
        cpu=cpu,
        amp=False,
        inference_only=True,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back upstream's log of its config and its deprecation notes, which would bury our own output."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def _seeded(device: Any) -> Iterator[None]:
    """`SEED` for what a model draws in the block; the generators are put back after it.

    Only the generators in use are touched: torch.manual_seed visits every backend, a tenth of a step of dynamics.
    """
    import torch

    generators = [torch.default_generator]
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[number])
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(SEED)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    """Constants that a model creates on the way get the dtype of its weights."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
