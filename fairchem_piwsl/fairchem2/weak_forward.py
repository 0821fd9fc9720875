"""The forward pass of a fairchem-2 model with A, C and B in one call, the weak terms beside the outputs at A."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import Tensor, nn

from fairchem_piwsl import losses
from fairchem_piwsl.fairchem2 import heads
from fairchem_piwsl.fairchem2.stacked_data import model_list, shortest_distances, stack
from fairchem_piwsl.losses import Prediction
from fairchem_piwsl.perturbations import adversarial_direction, draw
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.training.balance import bounded
from fairchem_piwsl.training.copies import cut
from fairchem_piwsl.training.repeated_draws import RepeatedDraws, drops


@dataclass
class WeakForward:
    """What stands around the model's own forward pass during one run."""

    settings: PIWSLSettings
    #: the run's own tasks, without the weak ones
    tasks: list[Task]
    #: share of the weights in this step; at 0 the model is called as it is
    ramp: float = 0.0
    #: source of this step's draws
    generator: torch.Generator = field(default_factory=torch.Generator)
    #: means of the weak terms over this rank's structures, before weights, of the latest such step
    terms: dict[str, Tensor] = field(default_factory=dict)

    def attach(self, model: nn.Module) -> Callable[[], Any]:
        """Stand around `model.forward`; returns what undoes it."""
        plain = model.forward
        # once, since looking through all of a model takes long in every step
        draws = any(map(drops, model.modules()))
        model.forward = lambda batch: self._forward(model, plain, draws, batch) if self.ramp else plain(batch)
        return lambda: model.__dict__.pop("forward", None)

    def _forward(self, model: Any, plain: Callable, draws: bool, batch: AtomicData) -> dict[str, Any]:
        """Outputs at A, and each weak term as the prediction of a task of its own."""
        s = self.settings
        heads.as_after_forward(batch)
        points = "A", *s.points
        with ExitStack() as undo:
            lent = model_list(model.backbone, batch) if s.share_graph else None
            if lent is not None:
                model.backbone.otf_graph = False
                undo.callback(setattr, model.backbone, "otf_graph", True)
            has_list = lent is None and not getattr(model.backbone, "otf_graph", True)
            moved: dict[str, Tensor] = {}
            if s.differentiates:
                positions = [batch.pos.detach().clone().requires_grad_()]
            else:
                shortest = shortest_distances(batch if has_list else lent, batch)
                moved = self._displacements(plain, batch, lent, shortest)
                positions = [batch.pos + moved.get(point, 0.0) for point in points]
            if draws:
                undo.enter_context(RepeatedDraws(len(points)))
            parts = cut(plain(stack(batch, positions, lent)), len(points))
        kcal = s.kcal_per_label_unit
        at = {
            point: heads.prediction(self.tasks, out, batch, kcal)
            for point, out in zip(points, parts, strict=True)
        }
        if s.differentiates:
            (gradient,) = torch.autograd.grad(at["A"].energy.sum(), positions[0], create_graph=True)
            at["A"] = replace(at["A"], gradient=gradient)
        return dict(parts[0]) | self._terms(at, moved, batch)

    def _displacements(
        self, plain: Callable, batch: AtomicData, lent: Mapping[str, Tensor] | None, shortest: Tensor
    ) -> dict[str, Tensor]:
        """dr [N, 3] at C and dr' at B; dr is part of every leg, also where nothing is evaluated at C."""
        s, generator, direction = self.settings, self.generator, None
        # from a call of its own, along the energy error at A (Eqs. 7, A1)
        if s.perturbation == "adversarial":
            kcal, device = s.kcal_per_label_unit, batch.pos.device
            # the stacked call draws the same dropout
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                a = heads.prediction(self.tasks, plain(stack(batch, [batch.pos], lent)), batch, kcal)
            energy, forces = heads.labels(self.tasks, batch)
            errors = a.energy - kcal * energy.to(a.energy), a.forces - kcal * forces.nan_to_num().to(a.forces)
            direction = adversarial_direction(*errors, batch.batch, generator)
        at = (batch.pos, batch.batch, batch.natoms, batch.fixed == 0, shortest)
        return {point: draw(s, *at, generator, direction) for point in dict.fromkeys(["C", *s.points])}

    def _terms(
        self, at: Mapping[str, Prediction], moved: Mapping[str, Tensor], batch: AtomicData
    ) -> dict[str, Any]:
        """Outputs of the weak tasks from the predictions at the points; their targets are put on `batch`."""
        kcal, terms = self.settings.kcal_per_label_unit, {}
        if self.settings.auto:
            labelled = ~heads.force_labels(self.tasks, batch).isnan().any(-1)
            at = {point: losses.taught_by_labels(one, labelled) for point, one in at.items()}
        known = heads.have_both(self.tasks, batch)
        unit = heads.of_own_task(self.tasks, "energy", batch, lambda task: kcal * task.normalizer.rmsd, 1.0)
        for name, _, values in losses.consistency_terms(
            self.settings, at, moved, batch.batch, batch.fixed == 0
        ):
            values = bounded(values, known) if self.settings.bounds else values
            terms[f"piwsl_{name}"] = {"value": values / unit}
            batch[f"piwsl_{name}"] = torch.where(known, 0.0, torch.inf)
            self.terms[name] = (values.detach() * known).sum() / known.sum().clamp_min(1)
        return terms
