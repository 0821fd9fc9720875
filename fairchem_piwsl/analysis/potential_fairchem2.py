"""Checkpoints of fairchem 2, whoever trained them, as potentials."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase import Atoms

from fairchem_piwsl.analysis.inference_checkpoints import read_inference_checkpoint
from fairchem_piwsl.analysis.potential import Potential, check_weights, fitting, quiet, seeded
from fairchem_piwsl.analysis.run_configs import run_config
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import STATES, with_full_cell
from fairchem_piwsl.training.precision import default_dtype

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Fairchem2Potential(Potential):
    """A model inside upstream's unit for predictions."""

    unit: Any
    #: name of the data set whose heads are meant, and their tasks by property
    task_name: str
    tasks: dict[str, Any]
    _ready: bool = field(default=False, init=False)

    @property
    def model(self) -> Any:
        return self.unit.model

    def outputs(self, structures: Sequence[Atoms]) -> tuple[Tensor, Tensor]:
        import torch

        batch = self._batch(structures)
        if not self._ready:
            self._prepare(batch)
        batch = batch.to(self.unit.device).clone()
        regress = self.model.module.backbone.regress_config
        differentiates = regress.forces and not regress.direct_forces  # forces are -dE/dr already
        by_gradient = self.gradient_forces and not differentiates
        batch.pos.requires_grad_(by_gradient)
        with (
            quiet(logging.ERROR),
            seeded(torch.device(self.unit.device)),
            torch.set_grad_enabled(by_gradient or differentiates),
            default_dtype(self.dtype),
        ):
            outputs = self.model(batch)
        energy = self._value("energy", outputs, batch)
        if by_gradient:
            return energy, self.minus_gradient(energy, batch.pos)
        return energy, self._value("forces", outputs, batch)

    def _prepare(self, batch: Any) -> None:
        """What upstream does before a first prediction; scales and references become float64 after it."""
        with quiet(logging.ERROR), default_dtype(self.dtype):
            self.unit.predict(batch.clone())
        for task in self.tasks.values():
            task.normalizer.double()
        self._ready = True

    def _value(self, kind: str, outputs: Any, batch: Any) -> Tensor:
        task = self.tasks[kind]
        value = task.normalizer.denorm(outputs[task.name][kind].double())
        return value if task.element_references is None else task.element_references.undo_refs(batch, value)

    def _batch(self, structures: Sequence[Atoms]) -> Any:
        from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch

        records = []
        for atoms in structures:
            if len(atoms) == 1 and not (atoms.pbc.any() or self.model.module.supports_single_atoms):
                raise UserError(f"{self.path}: this model cannot evaluate a single atom; leave it out.")
            bare = with_full_cell(atoms)
            bare.info = {name: atoms.info[name] for name in STATES if name in atoms.info}
            bare.calc = None
            try:
                with quiet(logging.ERROR):
                    self.unit.validate_atoms_data(bare, self.task_name)
            except (TypeError, ValueError) as error:
                raise UserError(f"{self.path}: a structure to evaluate is not for it ({error})") from None
            options = dict(task_name=self.task_name, r_data_keys=list(STATES), target_dtype=self.dtype)
            records.append(AtomicData.from_ase(bare, **options))
        return atomicdata_list_to_batch(records)


def load(
    path: Path, name: str, cpu: bool, dtype: Any, gradient_forces: bool, task_name: str | None
) -> Potential:
    """What `load_potential` does where fairchem 2 is installed."""
    import torch
    from fairchem.core.units.mlip_unit import load_predict_unit
    from fairchem.core.units.mlip_unit.api.inference import InferenceSettings

    read_inference_checkpoint(path)
    settings = InferenceSettings(
        base_precision_dtype=dtype,
        activation_checkpointing=False,
        auto_add_default_untrained_tasks=False,
    )
    device = "cuda" if torch.cuda.is_available() and not cpu else "cpu"
    with fitting(path), quiet(logging.ERROR):
        unit = load_predict_unit(path, inference_settings=settings, device=device)
    check_weights(unit.model, path)
    task_name = _chosen(task_name, list(unit.dataset_to_tasks), path)
    tasks = {task.property: task for task in unit.dataset_to_tasks[task_name]}
    _check_tasks(tasks, gradient_forces, path)
    return Fairchem2Potential(name, path, run_config(path), dtype, gradient_forces, unit, task_name, tasks)


def _chosen(task_name: str | None, there: list[str], path: Path) -> str:
    """The data set whose heads are meant: the one that is named, or the only one."""
    if task_name in there:
        return str(task_name)
    if task_name is None and len(there) == 1:
        return there[0]
    what = "is for several data sets" if task_name is None else f"knows no data set {task_name}"
    raise UserError(f"{path}: this model {what}; give --task-name {' or '.join(there)}.")


def _check_tasks(tasks: Mapping[str, Any], gradient_forces: bool, path: Path) -> None:
    if "energy" not in tasks:
        raise UserError(
            f"{path}: this model has no task for the energy (it has {', '.join(tasks)}); give the checkpoint of one "
            "that has."
        )
    if "forces" not in tasks and not gradient_forces:
        raise UserError(
            f"{path}: this model has no task for forces; use the gradient of its energy instead "
            "(--gradient-forces, or gradient_forces=True)."
        )
