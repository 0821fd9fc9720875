"""`PIWSLForcesTrainer`: Eq. 5 on top of upstream's trainer."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from fairchem.core.common import distutils, gp_utils
from fairchem.core.common.registry import registry
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_piwsl import losses
from fairchem_piwsl.datasets.splits import evenly
from fairchem_piwsl.losses import Prediction
from fairchem_piwsl.perturbations import adversarial_direction, draw, step_generator
from fairchem_piwsl.settings import AUTO_DISPLACED, CLIP_GRAD_NORM, PIWSLSettings
from fairchem_piwsl.training import metrics
from fairchem_piwsl.training.balance import GradientBalance, bounded, share_of_energies
from fairchem_piwsl.training.consistent_forces import (
    energy_of_model_is_differentiable,
    forces_are_gradients,
)
from fairchem_piwsl.training.copies import cut
from fairchem_piwsl.training.energy_gradient import without_gradient
from fairchem_piwsl.training.loss_terms import Outputs, Term
from fairchem_piwsl.training.missing_labels import labelled_structures, mean_over_ranks
from fairchem_piwsl.training.physical_units import PhysicalUnits
from fairchem_piwsl.training.s2ef import S2EFTrainer
from fairchem_piwsl.training.shared_randomness import shared_randomness
from fairchem_piwsl.training.stacking import SharedGraph, stack

VALIDATION_STREAM = 1


@registry.register_trainer("piwsl_forces")
class PIWSLForcesTrainer(S2EFTrainer):
    """Upstream's S2EF trainer with weak losses, set by the block `optim.piwsl`.

    ```yaml
    trainer: fairchem_piwsl.trainer.PIWSLForcesTrainer
    optim:
      piwsl: {c_pitc: 1.2, c_pisc: 0.01, eps_max: 0.025}
    ```

    See `PIWSLSettings` for every setting. Two more keys of `optim` are the plugin's: `finetune_from` starts
    from the weights of a checkpoint, and `ema_warmup: true` lets the average grow with the number of steps
    (decay min(ema_decay, (1 + n) / (10 + n))), which runs of a few thousand steps need.
    """

    #: numbers of the batches of a validation, on which their displacements depend; None outside of one
    _validation: Iterator[int] | None = None

    def __init__(self, **config: Any) -> None:
        self.piwsl = PIWSLSettings.from_config(config["optimizer"].get("piwsl"))
        super().__init__(**config)

    # ---------------------------------------------------------------- the loss, Eq. 5

    def terms(self, out: Outputs, batch: Batch) -> Iterator[Term]:
        """Supervised terms (Eq. 1), in training also the weak ones that are on (Eq. 5)."""
        yield from super().terms(out, batch)
        if self.model.training and out.at:
            yield from self._weak_terms(out, batch)

    def _weak_terms(self, out: Outputs, batch: Batch) -> Iterator[Term]:
        """The weak terms that are on: means over the structures of all ranks, weights for kcal/mol."""
        s, at, index = self.piwsl, out.at, batch.batch
        # a share that grows is up to the balance, which would measure a growing weight away
        ramp = 1.0 if s.weak_share else s.ramp(self.step)
        squared = any(loss.get("energy", {}).get("fn") == "mse" for loss in self.config["loss_functions"])
        unit = self._units.kcal_per_output ** (2 if squared else 1)  # that of the energy's loss
        if s.auto and any(name == "forces" and info["coefficient"] for name, info in self.loss_functions):
            labelled = ~batch.forces.isnan().any(-1)
            at = {point: losses.taught_by_labels(one, labelled) for point, one in at.items()}
        for name, weight, values in losses.consistency_terms(s, at, out.moved, index, batch.fixed == 0):
            values = bounded(values) if s.bounds else values
            yield Term(name, mean_over_ranks(values), ramp * weight, unit, weak=True)
        if s.c_wl:
            reference, labelled = self._reference(at["A"], batch)
            values = losses.pitc(reference, at["C"], out.moved["C"], index, kind=s.point_loss)
            yield Term("wl", mean_over_ranks(values, labelled), ramp * s.c_wl, unit, weak=True)

    def _reference(self, a: Prediction, batch: Batch) -> tuple[Prediction, Tensor]:
        """Labels at A, 0 where missing, and which structures have all that the weak label needs [B]."""
        energy = self._units.energy_labels(batch).to(a.energy)
        labelled, forces = ~energy.isnan(), a.forces
        if self.piwsl.wl_forces == "reference":
            labelled = labelled & labelled_structures(batch.forces, batch.batch, batch.num_graphs)
            forces = torch.nan_to_num(self._units.force_labels(batch).to(a.energy))
        return Prediction(torch.nan_to_num(energy), forces), labelled

    @property
    def _units(self) -> PhysicalUnits:
        return PhysicalUnits(self.piwsl.kcal_per_label_unit, self.normalizers, self.elementrefs)

    # ---------------------------------------------------------------- weights from gradients

    def weigh(self, terms: Sequence[Term]) -> tuple[Sequence[Term], dict[str, float | Tensor]]:
        """As configured, or with the weights that `GradientBalance` gives the terms in training."""
        if not (self.model.training and self.piwsl.balances):
            return super().weigh(terms)
        if self.piwsl.measures(self.step):
            scale = self.scaler.get_scale() if self.scaler else 1.0
            self._balance.measure(terms, [p for p in self.model.parameters() if p.requires_grad], scale)
        terms = self._balance(terms, self.piwsl.ramp(self.step))
        return terms, self._balance.log(terms)

    @cached_property
    def _balance(self) -> GradientBalance:
        """With the share of the energies as set, or from the labels of up to 1,000 training structures."""
        share, data = self.piwsl.energy_share, self.train_dataset
        if share is None:
            batch = self.train_loader.collate_fn([data[i] for i in evenly(len(data))]).to(self.device)
            forces = self._units.force_labels(batch)[batch.fixed == 0]
            share = share_of_energies(self._units.energy_labels(batch), forces)
            logging.info(f"optim.piwsl.energy_share: {share:.2f}, from the spread of the labels")
        return GradientBalance(share, self.piwsl.weak_share)

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "balance": self._balance.state()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self._balance.load(state.get("balance", {}))

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """Upstream's training loop; says what the balance has decided."""
        self.settle()
        super().train(disable_eval_tqdm)
        if self.piwsl.balances:
            logging.info(f"weights at the end, from the norms of gradients: {self._balance}")

    def settle(self) -> None:
        """Settings that depend on the model, before the first step.

        Raises:
            UserError: PITC needs the gradient of an energy that has none.
        """
        s = self.piwsl
        if not self._units.fit_a_gradient and self._holds(forces_are_gradients):
            logging.warning(
                "dataset.train.transforms.normalizer has other widths for energy than for forces, but this model's "
                "forces are the gradient of its energy: they will be a multiple of it. Give both the same stdev."
            )
        if s.auto and s.weak_share and self._holds(forces_are_gradients):
            logging.info(
                "optim.piwsl.auto: the model's forces are the gradient of its energy, so the weak terms have "
                "nothing to teach it; they are off, and weights are those set by hand."
            )
            self.piwsl = s.without_weak_terms()
        elif s.differentiates and not self._holds(energy_of_model_is_differentiable):
            self.piwsl = without_gradient(self.config["optim"]["piwsl"], "optim.piwsl")
        if self.piwsl.auto and self.piwsl.balances and self.config["optim"].get("clip_grad_norm") is None:
            logging.info(f"optim.clip_grad_norm: {CLIP_GRAD_NORM}, since auto needs one and none is set")
            self.clip_grad_norm = CLIP_GRAD_NORM

    def _holds(self, question: Callable[..., bool]) -> bool:
        """The answer for the model and several structures, since one may be an atom alone, whose gradient is zero."""
        some = [self.train_dataset[i] for i in evenly(len(self.train_dataset), 4)]
        batch = self.train_loader.collate_fn(some).to(self.device)
        return question(self._unwrapped_model, batch, self._shared_graph, self._outputs_of)

    def _outputs_of(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """What upstream's trainer takes from the outputs of a model in the place of its own."""
        return super(PIWSLForcesTrainer, self._with(model=model))._forward(batch)

    # ---------------------------------------------------------------- predictions at A, C, B

    def _forward(self, batch: Batch) -> Outputs:
        """Upstream's outputs at A; where weak terms are evaluated, with what they compare, from the same call."""
        s = self.piwsl
        if self.model.training and s.ramp(self.step):
            if s.noisy_nodes:
                return self._forward_noisy(batch)
            if s.differentiates:
                return self._forward_differentiated(batch)
            if s.weak:
                return self._forward_displaced(batch, s.points)
        if self._validation is not None:
            return self._forward_displaced(batch, ["C"])
        return super()._forward(batch)

    def _forward_noisy(self, batch: Batch) -> Outputs:
        """Noisy Nodes (B.2): predictions at C, to be compared with the labels of A."""
        batch = batch.to(self.device)
        with self._shared_graph.of(batch) as graph, shared_randomness(self.model, batch):
            moved = self._displacements(batch, graph, self._generator(), ["C"])
            return Outputs(self._predict(batch, [batch.pos + moved["C"]])[0])

    def _forward_differentiated(self, batch: Batch) -> Outputs:
        """Outputs at A, and the gradient of the energy there."""
        batch = batch.to(self.device)
        pos = batch.pos.detach().clone().requires_grad_()
        with self._shared_graph.of(batch):
            [outputs] = self._predict(batch, [pos])
        a = self._units.prediction(outputs)
        (gradient,) = torch.autograd.grad(a.energy.sum(), pos, create_graph=True)
        return Outputs(outputs, {"A": replace(a, gradient=gradient)})

    def _forward_displaced(self, batch: Batch, points: Sequence[str]) -> Outputs:
        """Outputs at A with predictions at C and B, in one model call, with A's neighbour list and the same dropout.

        Only an adversarial direction, which depends on the errors at A, takes a call of its own for A.
        """
        batch, generator = batch.to(self.device), self._generator()
        outputs: list[dict[str, Tensor]] = []
        with self._shared_graph.of(batch) as graph, shared_randomness(self.model, batch):
            direction = None
            if self.piwsl.perturbation == "adversarial":
                outputs = self._predict(batch, [batch.pos])
                direction = self._adversarial_direction(outputs[0], batch, generator)
            moved = self._displacements(batch, graph, generator, points, direction)
            positions = [batch.pos + moved[point] for point in points]
            outputs = outputs + self._predict(batch, positions if outputs else [batch.pos, *positions])
        at = dict(zip(("A", *points), map(self._units.prediction, outputs), strict=True))
        return Outputs(outputs[0], at, moved)

    def _predict(self, batch: Batch, positions: list[Tensor]) -> list[dict[str, Tensor]]:
        """Upstream's outputs at each of some positions [N, 3], from one call of the model."""
        return cut(super()._forward(stack(batch, positions)), len(positions))

    def _generator(self) -> torch.Generator:
        """Source of the draws: (seed, rank, step) in training, (seed, rank, batch) in validation."""
        seed = self.config["cmd"]["seed"] or 0
        rank = gp_utils.get_dp_rank() if gp_utils.initialized() else distutils.get_rank()
        if self._validation is not None:
            return step_generator(seed, rank, next(self._validation), self.device, VALIDATION_STREAM)
        return step_generator(seed, rank, self.step, self.device)

    def _displacements(
        self,
        batch: Batch,
        graph: SharedGraph,
        generator: torch.Generator,
        points: Sequence[str],
        direction: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """dr at C, part of every leg even if nothing is evaluated there, and dr' at B: [N, 3] in Angstrom."""
        at = batch.pos, batch.batch, batch.natoms, batch.fixed == 0, graph.shortest_distances()
        return {point: draw(self.piwsl, *at, generator, direction) for point in dict.fromkeys(["C", *points])}

    def _adversarial_direction(
        self, out: Mapping[str, Tensor], batch: Batch, generator: torch.Generator
    ) -> Tensor:
        """Unit vectors [N, 3] along the gradient of the energy error at A (Eqs. 7, A1)."""
        a = self._units.prediction(out)
        energy_error = a.energy - self._units.energy_labels(batch).to(a.energy)
        force_error = a.forces - torch.nan_to_num(self._units.force_labels(batch)).to(a.energy)
        return adversarial_direction(energy_error, force_error, batch.batch, generator)

    # ---------------------------------------------------------------- validation

    @torch.no_grad()
    def validate(self, split: str = "val", disable_tqdm: bool = False):
        """Upstream's validation, with the PITC residual of the set as `pitc_rmse` (label units)."""
        if not self.piwsl.validates_consistency:
            return super().validate(split, disable_tqdm)
        # displacements also where training has none
        s = self.piwsl if self.piwsl.eps_max else replace(self.piwsl, eps_max=AUTO_DISPLACED["eps_max"])
        displaced = self._with(piwsl=s, _validation=itertools.count())
        return super(PIWSLForcesTrainer, displaced).validate(split, disable_tqdm)

    def _compute_metrics(self, out: Outputs, batch, evaluator, metrics_so_far=None):
        result = super()._compute_metrics(out, batch, evaluator, metrics_so_far)
        if out.at and not self.model.training:
            a, c = out.at["A"], out.at["C"]
            residual = losses.leg_residual(a, c, out.moved["C"], batch.batch, self.piwsl.k_2nd)
            metrics.add_squares(result, "pitc_rmse", residual / self.piwsl.kcal_per_label_unit)
        return result

    def counts_from(self, num_steps: int) -> int:
        """The first step with the weak terms on (`PIWSLSettings.counts_from`)."""
        return self.piwsl.counts_from(num_steps)

    def load_model(self) -> None:
        super().load_model()
        self._shared_graph = SharedGraph(self._unwrapped_model, self.piwsl.share_graph)
