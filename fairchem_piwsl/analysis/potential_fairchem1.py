"""Checkpoints of fairchem 1.10, whoever trained them, as potentials."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports, update_config
from torch import Tensor

from fairchem_piwsl.analysis.potential import Potential, check_weights, fitting, quiet, seeded
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.structures import to_batch
from fairchem_piwsl.training.checkpoint_files import copy_averaged_weights, read_checkpoint
from fairchem_piwsl.training.cpu_speed import full_speed
from fairchem_piwsl.training.precision import default_dtype
from fairchem_piwsl.upstream.edge_frames import differentiate_edge_frames


@dataclass
class Fairchem1Potential(Potential):
    """A model inside upstream's trainer, in inference mode."""

    #: with a config of its own, for inference
    trainer: Any

    def __post_init__(self) -> None:
        self.trainer.model.eval().to(self.dtype)
        for module in (*self.trainer.normalizers.values(), *self.trainer.elementrefs.values()):
            module.to(device=self.trainer.device).double()

    @property
    def model(self) -> Any:
        return self.trainer.model

    def outputs(self, structures: Sequence[Atoms]) -> tuple[Tensor, Tensor]:
        batch = to_batch(structures, self.dtype).to(self.trainer.device)
        if not self.gradient_forces:
            outputs = self._forward(batch)
            return outputs["energy"], outputs["forces"]
        batch.pos.requires_grad_(True)
        energy = self._forward(batch, grad=True)["energy"]
        return energy.detach(), self.minus_gradient(energy, batch.pos)

    def _forward(self, batch: Any, grad: bool = False) -> dict[str, Tensor]:
        """Denormalised outputs in float64."""
        with seeded(self.trainer.device), torch.set_grad_enabled(grad), default_dtype(self.dtype):
            try:
                outputs = self.trainer._forward(batch)
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
                key: self.trainer._denorm_preds(key, value.double(), batch) for key, value in outputs.items()
            }


def load(path: Path, name: str, cpu: bool, dtype: Any, gradient_forces: bool, ema: bool) -> Potential:
    """What `load_potential` does where fairchem 1.10 is installed."""
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
    with fitting(path), quiet():
        trainer = _build_trainer(path, config, cpu)
        trainer.load_checkpoint(str(path), checkpoint=state, inference_only=True)
    if ema:
        copy_averaged_weights(trainer.model, state)
    check_weights(trainer.model, path)
    if trainer.cpu:
        full_speed()
    if gradient_forces:
        differentiate_edge_frames(trainer.model)
    return Fairchem1Potential(name, path, state["config"], dtype, gradient_forces, trainer)


def _current_layout(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's config in the layout of fairchem 1.10, with neighbours found on the fly."""
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
