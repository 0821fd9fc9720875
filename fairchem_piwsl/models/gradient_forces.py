"""Forces as the energy gradient for models that predict energies ("GF" in the paper's tables)."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from fairchem.core.common.registry import registry
from torch import Tensor, nn

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.upstream.edge_frames import differentiate_edge_frames


def energy_and_forces(
    energy_of: Callable[[Any], Tensor], data: Any, with_forces: bool = True
) -> dict[str, Tensor]:
    """Outputs `energy` `[B]` of a batch and, if asked for, `forces` `[N, 3]` = -dE/d(pos).

    `energy_of` maps the batch to energies by way of `data.pos`. The batch is left as it came. Where the caller
    has gradients enabled the forces can be differentiated again (training); under `torch.no_grad` they cannot,
    which is cheaper.
    """
    if not with_forces:
        return {"energy": energy_of(data)}
    trainable = torch.is_grad_enabled()
    original = data.pos
    with torch.enable_grad():
        pos = original if original.requires_grad else original.detach().requires_grad_()
        data.pos = pos
        try:
            energy = energy_of(data)
        finally:
            data.pos = original
        (gradient,) = torch.autograd.grad(energy.sum(), pos, create_graph=trainable)
    return {"energy": energy if trainable else energy.detach(), "forces": -gradient}


@registry.register_model("gradient_forces")
class GradientForces(nn.Module):
    """Any fairchem model with forces F = -dE/d(pos), exact to rounding.

    ```yaml
    model:
      name: fairchem_piwsl.models.gradient_forces.GradientForces
      otf_graph: True
      model:            # the block that would otherwise stand under `model`
        name: escn
        num_layers: 4
    ```

    The inner model is built without a force head. Its settings that fairchem reads from the outside
    (`otf_graph`) stand in the outer block.
    """

    def __init__(
        self, model: dict[str, Any], otf_graph: bool | None = None, regress_forces: bool = True
    ) -> None:
        super().__init__()
        config = copy.deepcopy(dict(model))
        if "name" not in config:
            raise UserError(
                "model.model of gradient_forces has no `name`: give the block of an energy model."
            )
        if otf_graph is not None:
            config["otf_graph"] = otf_graph
        settings = config.get("backbone", config)  # hydra keeps them one level down
        settings["regress_forces"] = False
        self.regress_forces = regress_forces
        self.model = registry.get_model_class(config.pop("name"))(**config)
        if any(getattr(module, "activation_checkpoint", False) for module in self.model.modules()):
            raise UserError(
                "model.model.activation_checkpoint of gradient_forces is on, but the forces need the graph of the "
                "forward pass: set it to False."
            )
        differentiate_edge_frames(self.model)

    def forward(self, data: Any) -> dict[str, Tensor]:
        """Energy `[B]` and forces `[N, 3]`."""
        return energy_and_forces(self._energy, data, self.regress_forces)

    def _energy(self, data: Any) -> Tensor:
        energy = self.model(data)["energy"]
        return energy["energy"] if isinstance(energy, dict) else energy  # hydra names the head first

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the inner model excludes from weight decay."""
        names = getattr(self.model, "no_weight_decay", set)
        return {f"model.{name}" for name in names()}
