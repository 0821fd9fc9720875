"""`PIWSLForcesTrainer`: Eq. 5 on top of upstream's trainer."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from fairchem.core.common import distutils, gp_utils
from fairchem.core.common.registry import registry
from fairchem.core.trainers import OCPTrainer
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Batch

from fairchem_piwsl import losses
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.losses import Configuration
from fairchem_piwsl.perturbations import adversarial_direction, draw, step_generator
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.training import metrics, preflight
from fairchem_piwsl.training.checkpoints import ResumableMixin, read_checkpoint
from fairchem_piwsl.training.cpu_memory import keep_freed_memory
from fairchem_piwsl.training.fine_tuning import start_from
from fairchem_piwsl.training.missing_labels import (
    FillMissingLabels,
    LabelledLoss,
    labelled_structures,
    mean_over_ranks,
)
from fairchem_piwsl.training.schedules import with_schedule
from fairchem_piwsl.training.shared_randomness import shared_randomness
from fairchem_piwsl.training.stacking import SharedGraph, stack

VALIDATION_STREAM = 1
T = TypeVar("T")


class Outputs(dict):
    """Upstream's outputs at the training structures A, and beside them what the weak terms compare."""

    displaced: Displaced | None = None


@dataclass(frozen=True)
class Displaced:
    """Predictions in kcal/mol, and displacements in Angstrom; C or B is missing where no term needs it."""

    a: Configuration
    dr: Tensor
    maybe_c: Configuration | None = None
    maybe_b: Configuration | None = None
    maybe_dr_b: Tensor | None = None

    @property
    def c(self) -> Configuration:
        """Prediction at C = A + dr."""
        return _evaluated(self.maybe_c)

    @property
    def b(self) -> Configuration:
        """Prediction at B = A + dr'."""
        return _evaluated(self.maybe_b)

    @property
    def dr_b(self) -> Tensor:
        """Displacement from A to B, dr'."""
        return _evaluated(self.maybe_dr_b)


@registry.register_trainer("piwsl_forces")
class PIWSLForcesTrainer(ResumableMixin, OCPTrainer):
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

    def __init__(self, **config: Any) -> None:
        config = preflight.check(config)
        self.piwsl = PIWSLSettings.from_config(config["optimizer"].get("piwsl"))
        self._loss_terms: dict[str, Tensor] = {}
        self._validation_batch: Iterator[int] | None = None
        self._checkpoint_without_state: str | None = None
        super().__init__(**config)
        if self.cpu:
            keep_freed_memory()

    # ---------------------------------------------------------------- training, Eq. 5

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        """Upstream's outputs at A; where weak terms are evaluated, C and B go through the same call."""
        settings = self.piwsl
        if self.model.training and settings.ramp(self.step):
            if settings.noisy_nodes:
                return self._forward_noisy(batch)
            if settings.weak:
                return self._forward_displaced(batch, settings.needs_c, settings.needs_b)
        if self._validation_batch is not None:
            return self._forward_displaced(batch, needs_c=True, needs_b=False)
        return super()._forward(batch)

    def _compute_loss(self, out: dict[str, Tensor], batch: Batch) -> Tensor:
        """Supervised loss (Eq. 1), in training plus the weighted weak terms (Eq. 5)."""
        loss = super()._compute_loss(out, batch)
        self._loss_terms = self._supervised_terms()
        for output in self._outputs_without_loss():
            # distributed training, which fairchem uses on a single rank too, wants every parameter in the graph
            loss = loss + 0.0 * out[output].sum()
        displaced = getattr(out, "displaced", None)
        if self.model.training and displaced is not None:
            ramp = self.piwsl.ramp(self.step)
            for name, weight, value in self._weak_terms(displaced, out, batch):
                # kcal/mol to the unit of the supervised energy term
                weighted = ramp * weight * value / self._kcal_per_output()
                loss = loss + weighted
                self._loss_terms[f"loss_{name}"] = value.detach()
                self._loss_terms[f"weighted_{name}"] = weighted.detach()
        return loss

    def _outputs_without_loss(self) -> set[str]:
        """Outputs that no supervised loss sees, e.g. forces where training is on energies only."""
        return set(self.output_targets) - {target for target, _ in self.loss_functions}

    def _weak_terms(
        self, at: Displaced, out: dict[str, Tensor], batch: Batch
    ) -> Iterator[tuple[str, float, Tensor]]:
        """Name, weight and value of each weak term that is on, means over the structures of all ranks."""
        s, index = self.piwsl, batch.batch
        if s.c_pitc:
            value = losses.pitc(at.a, at.c, at.dr, index, s.k_2nd, s.point_loss)
            yield "pitc", s.c_pitc, mean_over_ranks(value)
        if s.c_pisc:
            value = losses.pisc(
                at.a, at.b, at.maybe_c, at.dr, at.dr_b, index, s.pisc_case, s.k_2nd, s.point_loss
            )
            yield "pisc", s.c_pisc, mean_over_ranks(value)
        if s.c_wl:
            reference, labelled = self._reference(at.a, batch)
            value = losses.weak_label(reference, at.c, at.dr, index, s.point_loss)
            yield "wl", s.c_wl, mean_over_ranks(value, labelled)

    # ---------------------------------------------------------------- configurations

    def _forward_noisy(self, batch: Batch) -> dict[str, Tensor]:
        """Noisy Nodes (B.2): predictions at C, to be compared with the labels of A."""
        batch = batch.to(self.device)
        with self._shared_graph.of(batch) as graph, shared_randomness(self.model, batch):
            dr = self._draw(batch, graph, self._generator())
            return self._predict(batch, [batch.pos + dr])[0]

    def _forward_displaced(self, batch: Batch, needs_c: bool, needs_b: bool) -> Outputs:
        """Outputs at A with predictions at C and B, in one model call, with A's neighbour list and the same dropout.

        Only an adversarial direction, which depends on the errors at A, takes a call of its own for A.
        """
        batch, generator = batch.to(self.device), self._generator()
        parts: list[dict[str, Tensor]] = []
        with self._shared_graph.of(batch) as graph, shared_randomness(self.model, batch):
            direction = None
            if self.piwsl.perturbation == "adversarial":
                parts = self._predict(batch, [batch.pos])
                direction = self._adversarial_direction(parts[0], batch, generator)
            dr = self._draw(batch, graph, generator, direction)
            dr_b = self._draw(batch, graph, generator, direction) if needs_b else None
            positions = [batch.pos + d for d, needed in ((dr, needs_c), (dr_b, needs_b)) if needed]
            parts = parts + self._predict(batch, positions if parts else [batch.pos, *positions])
        predictions = iter([self._physical(part) for part in parts])
        out = Outputs(parts[0])
        out.displaced = Displaced(
            a=next(predictions),
            dr=dr,
            maybe_c=next(predictions) if needs_c else None,
            maybe_b=next(predictions) if needs_b else None,
            maybe_dr_b=dr_b,
        )
        return out

    def _predict(self, batch: Batch, positions: list[Tensor]) -> list[dict[str, Tensor]]:
        """Upstream's outputs at each of some positions [N, 3], from one call of the model."""
        stacked = super()._forward(stack(batch, positions))
        chunks = {name: value.chunk(len(positions)) for name, value in stacked.items()}
        return [{name: parts[i] for name, parts in chunks.items()} for i in range(len(positions))]

    def _generator(self) -> torch.Generator:
        """Source of the draws: (seed, rank, step) in training, (seed, rank, batch) in validation."""
        seed = self.config["cmd"]["seed"] or 0
        rank = gp_utils.get_dp_rank() if gp_utils.initialized() else distutils.get_rank()
        if self._validation_batch is not None:
            return step_generator(seed, rank, next(self._validation_batch), self.device, VALIDATION_STREAM)
        return step_generator(seed, rank, self.step, self.device)

    def _draw(
        self,
        batch: Batch,
        graph: SharedGraph,
        generator: torch.Generator,
        direction: Tensor | None = None,
    ) -> Tensor:
        """Displacements [N, 3] in Angstrom."""
        free = batch.fixed == 0
        shortest = graph.shortest_distances()
        return draw(self.piwsl, batch.pos, batch.batch, batch.natoms, free, shortest, generator, direction)

    # ---------------------------------------------------------------- units

    def _kcal_per_output(self) -> float | Tensor:
        """One unit of the model's energy output in kcal/mol."""
        scale = self.piwsl.kcal_per_label_unit
        return scale * self.normalizers["energy"].rmsd if "energy" in self.normalizers else scale

    def _physical(self, out: dict[str, Tensor]) -> Configuration:
        """Outputs in kcal/mol and kcal/mol/Angstrom.

        Energies count from the normaliser's mean and the element references. Both cancel in every identity,
        and adding them would cost float32 its digits.
        """
        energy, forces = _at_least_float(out["energy"]), _at_least_float(out["forces"])
        if "forces" in self.normalizers:
            forces = self.normalizers["forces"].denorm(forces)
        return Configuration(
            energy.reshape(-1) * self._kcal_per_output(), forces * self.piwsl.kcal_per_label_unit
        )

    def _reference(self, a: Configuration, batch: Batch) -> tuple[Configuration, Tensor]:
        """Labels at A as a configuration, and which structures have all that the weak label needs [B]."""
        energy = batch.energy.view(-1, 1)
        labelled = ~energy.view(-1).isnan()
        if "energy" in self.elementrefs:
            energy = self.elementrefs["energy"].dereference(energy, batch)
        if "energy" in self.normalizers:
            energy = self.normalizers["energy"].norm(energy)
        energy = torch.nan_to_num(energy.view(-1) * self._kcal_per_output()).to(a.energy)
        if self.piwsl.wl_forces == "predicted":
            return Configuration(energy, a.forces), labelled
        labelled = labelled & labelled_structures(batch.forces, batch.batch, batch.num_graphs)
        return Configuration(energy, self._reference_forces(batch).to(a.energy)), labelled

    def _reference_forces(self, batch: Batch) -> Tensor:
        """Force labels [N, 3] in kcal/mol/Angstrom, 0 where there are none."""
        return torch.nan_to_num(batch.forces * self.piwsl.kcal_per_label_unit)

    def _adversarial_direction(
        self, out: dict[str, Tensor], batch: Batch, generator: torch.Generator
    ) -> Tensor:
        """Unit vectors [N, 3] along the gradient of the energy error at A (Eqs. 7, A1)."""
        a = self._physical(out)
        reference, labelled = self._reference(a, batch)
        energy_error = torch.where(labelled, a.energy - reference.energy, torch.nan)
        force_error = a.known_forces() - self._reference_forces(batch).to(a.energy)
        return adversarial_direction(energy_error, force_error, batch.batch, generator)

    # ---------------------------------------------------------------- metrics and log

    def _denorm_preds(self, target_key, prediction, batch):
        if target_key in self.elementrefs:
            # a total energy of -1e4 eV has no meV left in float32
            prediction = prediction.double()
        return super()._denorm_preds(target_key, prediction, batch)

    def _supervised_terms(self) -> dict[str, Tensor]:
        terms = {}
        for target, info in self.loss_functions:
            terms[f"loss_{target}"] = info["fn"].latest
            terms[f"weighted_{target}"] = info["coefficient"] * info["fn"].latest
        return terms

    def _compute_metrics(self, out, batch, evaluator, metrics_so_far=None):
        levels = {name: target["level"] for name, target in self.output_targets.items()}
        labelled = metrics.LabelledEvaluator(evaluator, levels)
        result = super()._compute_metrics(out, batch, labelled, metrics_so_far)
        # the metrics above have just waited for the device: one more transfer costs nothing
        values = torch.stack(list(self._loss_terms.values())).tolist()
        for name, value in zip(self._loss_terms, values, strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} at step {self.step}: training diverged; lower optim.lr_initial or "
                    "set optim.clip_grad_norm."
                )
            metrics.add(result, name, value, 1)
        displaced = getattr(out, "displaced", None)
        if displaced is not None and not self.model.training:
            residual = losses.leg_residual(
                displaced.a, displaced.c, displaced.dr, batch.batch, self.piwsl.k_2nd
            )
            metrics.add_squares(result, "pitc_rmse", residual / self.piwsl.kcal_per_label_unit)
        return metrics.finish(result) if self.model.training else result

    def _aggregate_metrics(self, metrics_of_rank):
        return metrics.finish(super()._aggregate_metrics(metrics_of_rank))

    @torch.no_grad()
    def validate(self, split: str = "val", disable_tqdm: bool = False):
        """Upstream's validation, with the PITC residual of the set as `pitc_rmse` (label units)."""
        self._validation_batch = itertools.count() if self.piwsl.validates_consistency else None
        try:
            return super().validate(split, disable_tqdm)
        finally:
            self._validation_batch = None

    def update_best(self, primary_metric, val_metrics, disable_eval_tqdm: bool = True) -> None:
        """Save the best checkpoint; any error is minimised, RMSE included."""
        if primary_metric not in val_metrics:
            raise UserError(
                f"evaluation_metrics.primary_metric '{primary_metric}' is not among the validation metrics "
                f"({', '.join(val_metrics)}); choose one of these."
            )
        if "mae" not in primary_metric and metrics.lower_is_better(primary_metric):
            # upstream minimises names with "mae" in them only, and starts all others at -1
            self.best_val_metric: float = math.inf if self.best_val_metric < 0 else self.best_val_metric
            val_metrics = {**val_metrics, "mae": val_metrics[primary_metric]}
            primary_metric = "mae"
        super().update_best(primary_metric, val_metrics, disable_eval_tqdm)

    # ---------------------------------------------------------------- set-up

    def load_task(self) -> None:
        super().load_task()
        # configs in the layout before fairchem 1.0 arrive here without one, which upstream cannot compare
        default = "forces_rmse" if "forces" in self.output_targets else "energy_rmse"
        self.evaluation_metrics.setdefault("primary_metric", default)

    def load_model(self) -> None:
        super().load_model()
        self._shared_graph = SharedGraph(self._unwrapped_model, self.piwsl.share_graph)
        source = self.config["optim"].get("finetune_from")
        if source:
            start_from(self._unwrapped_model, source)

    def get_dataloader(self, dataset, sampler, workers=None) -> DataLoader:
        loader = super().get_dataloader(dataset, sampler, workers)
        loader.collate_fn = FillMissingLabels(loader.collate_fn, self.output_targets)
        return loader

    def load_loss(self) -> None:
        super().load_loss()
        for _, info in self.loss_functions:
            info["fn"] = LabelledLoss(info["fn"])

    def load_extras(self) -> None:
        optim = self.config["optim"]
        # the function of the schedule is for upstream's scheduler alone: checkpoints hold plain settings
        self.config["optim"] = with_schedule(optim, len(self.train_loader) if self.train_loader else 1)
        super().load_extras()
        self.config["optim"] = optim
        if self.ema is not None and self.config["optim"].get("ema_warmup"):
            # counting updates makes upstream's average start short, so that it forgets the initial weights
            self.ema.num_updates = 0

    def load_checkpoint(self, checkpoint_path, checkpoint=None, inference_only: bool = False) -> None:
        checkpoint = checkpoint or read_checkpoint(checkpoint_path, self.device)
        self._checkpoint_without_state = None if "optimizer" in checkpoint else str(checkpoint_path)
        super().load_checkpoint(checkpoint_path, checkpoint, inference_only)

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """Upstream's training loop; a run that could not train anything says so."""
        if self._checkpoint_without_state:
            raise UserError(
                f"{self._checkpoint_without_state} holds weights without optimizer and EMA, so training cannot "
                "be resumed from it; resume from checkpoint.pt, or start anew from these weights with "
                "optim.finetune_from."
            )
        epochs, steps = self.config["optim"]["max_epochs"], len(self.train_loader)
        if self.step >= epochs * steps:
            raise UserError(
                f"nothing to train: the checkpoint is at step {self.step} and optim.max_epochs {epochs} ends at "
                f"step {epochs * steps}; raise optim.max_epochs to go on, or use optim.finetune_from to start "
                "anew from its weights."
            )
        logging.info(f"training steps: {epochs * steps} ({epochs} epochs of {steps})")
        super().train(disable_eval_tqdm)


def _evaluated(value: T | None) -> T:
    if value is None:
        raise RuntimeError("this configuration was not evaluated.")
    return value


def _at_least_float(values: Tensor) -> Tensor:
    """Half precision (AMP) as float32: the identities are differences of nearly equal numbers."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
