"""Hooks around a fairchem-2 model: A, C and B in one call, the weak terms beside the outputs at A."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import Tensor, nn

from fairchem_piwsl import losses
from fairchem_piwsl.fairchem2 import heads
from fairchem_piwsl.fairchem2.neighbour_lists import model_list, shortest_distances
from fairchem_piwsl.fairchem2.stacked_data import stack, unstack
from fairchem_piwsl.perturbations import adversarial_direction, draw, step_generator
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.training.repeated_draws import RepeatedDraws


class Step(NamedTuple):
    """A training step: draws depend on its seed, data-parallel rank and number; `ramp` is a factor on the weights."""

    seed: int
    rank: int
    number: int
    ramp: float


class Visit(NamedTuple):
    """One stacked call: the structures A, displacements [N, 3] at C and B, and the points that are evaluated."""

    batch: AtomicData
    moved: Mapping[str, Tensor]
    points: Sequence[str]


@dataclass
class WeakForward:
    """The hooks of one run."""

    settings: PIWSLSettings
    #: the run's own tasks, without the weak ones
    tasks: Sequence[Task]
    #: set while a training step with weak terms runs; without it the model is called as it is
    step: Step | None = None
    #: means of the weak terms over this rank's structures, before weights, of the latest such step
    terms: dict[str, Tensor] = field(default_factory=dict)
    _visit: Visit | None = None
    #: undoes, after the call, what was changed for it
    _undo: ExitStack = field(default_factory=ExitStack)

    def attach(self, model: nn.Module) -> list[Any]:
        """Put the hooks around `model`; returns their handles."""
        return [
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after, always_call=True),
        ]

    def _before(self, model: nn.Module, args: tuple[AtomicData]) -> tuple[AtomicData] | None:
        """Draw the displacements and hand the model A, C and B as one batch."""
        if self.step is None:
            return None
        batch, s, step = args[0], self.settings, self.step
        # what a model puts on its argument, and the loss reads there
        batch.atomic_numbers_full, batch.batch_full = batch.atomic_numbers, batch.batch
        lent = model_list(model.backbone, batch) if s.share_graph else None
        if lent is not None:
            model.backbone.otf_graph = False
            self._undo.callback(setattr, model.backbone, "otf_graph", True)
        has_list = lent is None and not getattr(model.backbone, "otf_graph", True)
        shortest = shortest_distances(batch if has_list else lent, batch)
        generator = step_generator(step.seed, step.rank, step.number, batch.pos.device)
        adversarial = s.perturbation == "adversarial"
        direction = self._direction(model, batch, lent, generator) if adversarial else None
        free, at = batch.fixed == 0, (batch.pos, batch.batch, batch.natoms)
        # dr is part of every leg, also where nothing is evaluated at C (case 2 of PISC)
        drawn = ["C"] + ["B"] * s.needs_b
        moved = {point: draw(s, *at, free, shortest, generator, direction) for point in drawn}
        points = ["A"] + ["C"] * s.needs_c + ["B"] * s.needs_b
        positions = [batch.pos + moved.get(point, 0.0) for point in points]
        self._visit = Visit(batch, moved, points)
        if draws_random_numbers(model):
            self._undo.enter_context(RepeatedDraws(len(points)))
        return (stack(batch, positions, lent),)

    def _after(self, model: nn.Module, args: Any, outputs: Any) -> Any:
        """Outputs at A, and each weak term as the prediction of a task of its own."""
        visit, self._visit = self._visit, None
        self._undo.close()
        if visit is None or self.step is None or outputs is None:  # None: the call raised
            return outputs
        batch, kcal = visit.batch, self.settings.kcal_per_label_unit
        parts = unstack(outputs, len(visit.points))
        predictions = [heads.prediction(self.tasks, part, batch, kcal) for part in parts]
        at = dict(zip(visit.points, predictions, strict=True))
        known, unit = heads.have_both(self.tasks, batch), heads.kcal_per_output(self.tasks, batch, kcal)
        out = dict(parts[0])
        for name, weight, values in losses.consistency_terms(self.settings, at, visit.moved, batch.batch):
            out[f"piwsl_{name}"] = {"value": self.step.ramp * weight * values / unit}
            batch[f"piwsl_{name}"] = torch.where(known, 0.0, torch.inf)
            self.terms[name] = (values.detach() * known).sum() / known.sum().clamp_min(1)
        return out

    def _direction(
        self, model: nn.Module, batch: AtomicData, lent: Any, generator: torch.Generator
    ) -> Tensor:
        """Unit vectors [N, 3] along the gradient of the energy error at A (Eqs. 7, A1), from a call of its own."""
        kcal, device = self.settings.kcal_per_label_unit, batch.pos.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the stacked call's dropout
            a = heads.prediction(self.tasks, model.forward(stack(batch, [batch.pos], lent)), batch, kcal)
        return adversarial_direction(*heads.errors(self.tasks, a, batch, kcal), batch.batch, generator)


def draws_random_numbers(model: nn.Module) -> bool:
    """Whether a forward pass of `model` in its present mode depends on random numbers."""
    return model.training and any(
        (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0)
        or getattr(module, "drop_prob", None)
        or getattr(module, "composition_dropout", None)
        for module in model.modules()
    )
