"""Upstream's S2EF trainer with what every training needs, whatever its loss.

Missing labels, root mean squares, any metric as the best checkpoint's, a checkpoint of the last step, schedules
in epochs and a start from the weights of a checkpoint.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from fairchem.core.common import distutils
from fairchem.core.modules.scheduler import CosineLRLambda
from fairchem.core.trainers import OCPTrainer
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from torch.utils.data import DataLoader
from torch_geometric.data import Batch

from fairchem_piwsl.datasets.splits import evenly
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.training import metrics, preflight
from fairchem_piwsl.training.checkpoint_files import no_training_state, read_checkpoint
from fairchem_piwsl.training.checkpoints import ResumableMixin
from fairchem_piwsl.training.cpu_speed import full_speed
from fairchem_piwsl.training.fine_tuning import start_from
from fairchem_piwsl.training.loss_terms import Outputs, Term, add_up
from fairchem_piwsl.training.missing_labels import FillMissingLabels, LabelledLoss, with_free_atoms
from fairchem_piwsl.training.random_states import random_state, set_random_state


class S2EFTrainer(ResumableMixin, OCPTrainer):
    """`OCPTrainer` whose loss is a sum of named terms (`terms`), each logged raw and weighted."""

    def __init__(self, **config: Any) -> None:
        self._checkpoint_without_state: str | None = None
        super().__init__(**preflight.check(config))
        if self.cpu:
            full_speed()

    # ---------------------------------------------------------------- outputs, loss, metrics

    def _forward(self, batch: Batch) -> Outputs:
        return Outputs(super()._forward(batch))

    def _compute_loss(self, out: Outputs, batch: Batch) -> Tensor:
        """Sum of all terms; what is to be logged of them goes with the outputs."""
        terms, weights = self.weigh(list(self.terms(out, batch)))
        loss, log = add_up(terms)
        out.log = log | dict(zip(weights, torch.tensor([*weights.values()]).to(loss), strict=True))
        for output in self.output_targets.keys() - {target for target, _ in self.loss_functions}:
            # distributed training, which fairchem uses on a single rank too, wants every parameter in the graph,
            # also where training is on energies only
            loss = loss + 0.0 * out[output].sum()
        return loss

    def terms(self, out: Outputs, batch: Batch) -> Iterator[Term]:
        """The terms of Eq. 1: upstream's own function, with one of its losses at a time."""
        batch = with_free_atoms(batch, self._of_free_atoms("train"))
        for target, info in self.loss_functions:
            alone = self._with(loss_functions=[(target, {**info, "coefficient": 1})])
            yield Term(target, super(S2EFTrainer, alone)._compute_loss(out, batch), info["coefficient"])

    def weigh(self, terms: Sequence[Term]) -> tuple[Sequence[Term], dict[str, float | Tensor]]:
        """The terms of a step with their weights, and what is to be logged of these; here as configured."""
        return terms, {}

    def _compute_metrics(self, out: Outputs, batch, evaluator, metrics_so_far=None):
        levels = {name: target["level"] for name, target in self.output_targets.items()}
        labelled = metrics.LabelledEvaluator(evaluator, levels)
        batch = with_free_atoms(batch, self._of_free_atoms("eval"))
        result = super()._compute_metrics(out, batch, labelled, metrics_so_far)
        # the metrics above have just waited for the device: one more transfer costs nothing
        metrics.add_terms(result, out.log, self.step)
        return metrics.finish(result) if self.model.training else result

    def _of_free_atoms(self, use: str) -> list[str]:
        """Outputs of which only free atoms count, to `train` or to `eval`."""
        free = f"{use}_on_free_atoms"
        return [name for name, o in self.output_targets.items() if o["level"] == "atom" and o.get(free)]

    def _aggregate_metrics(self, metrics_of_rank):
        return metrics.finish(super()._aggregate_metrics(metrics.summable(metrics_of_rank)))

    def _denorm_preds(self, target_key, prediction, batch):
        if target_key in self.elementrefs:
            # a total energy of -1e4 eV has no meV left in float32
            prediction = prediction.double()
        return super()._denorm_preds(target_key, prediction, batch)

    # ---------------------------------------------------------------- the best checkpoint

    def update_best(self, primary_metric, val_metrics, disable_eval_tqdm: bool = True) -> None:
        """Save the best checkpoint so far: any error is minimised, RMSE included, and any agreement maximised.

        The choice starts anew at the first validation that counts (`counts_from`).
        """
        if primary_metric not in val_metrics:
            raise UserError(
                f"evaluation_metrics.primary_metric '{primary_metric}' is not among the validation metrics "
                f"({', '.join(val_metrics)}); choose one of these."
            )
        lower = metrics.lower_is_better(primary_metric)
        # upstream starts at -1 where the name of an error does not contain "mae"
        if self._starts_counting() or (lower and self.best_val_metric < 0):
            self.best_val_metric: float = math.inf if lower else -math.inf
        value = float(val_metrics[primary_metric]["metric"])
        if value < self.best_val_metric if lower else value > self.best_val_metric:
            self.best_val_metric = value
            self.save(metrics=val_metrics, checkpoint_file="best_checkpoint.pt", training_state=False)
            if self.test_loader is not None and not self.is_debug:
                self.predict(self.test_loader, results_file="predictions", disable_tqdm=disable_eval_tqdm)

    def counts_from(self, num_steps: int) -> int:
        """First step of a run of `num_steps` whose validation may choose the best checkpoint."""
        return 0

    def _starts_counting(self) -> bool:
        """Whether this is the first validation that counts; steps alone decide, so a resumed run agrees."""
        first = self.counts_from(self.config["optim"]["max_epochs"] * len(self.train_loader))
        previous = max(self.step - 1, 0) // self._eval_every * self._eval_every
        return previous < first <= self.step

    @property
    def _eval_every(self) -> int:
        return self.config["optim"].get("eval_every", len(self.train_loader))

    # ---------------------------------------------------------------- a run

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """Upstream's training loop; it ends with a validation and a checkpoint of the last step."""
        if self._checkpoint_without_state:
            raise no_training_state(self._checkpoint_without_state)
        epochs, steps = self.config["optim"]["max_epochs"], len(self.train_loader)
        if self.step >= epochs * steps:
            raise UserError(
                f"nothing to train: the checkpoint is at step {self.step} and optim.max_epochs {epochs} ends at "
                f"step {epochs * steps}; raise optim.max_epochs to go on, or use optim.finetune_from to start "
                "anew from its weights."
            )
        best = [(Path(self.config["cmd"]["checkpoint_dir"]) / "best_checkpoint.pt").exists()]
        distutils.broadcast_object_list(best, src=0, device=self.device)
        if not best[0]:
            # lets upstream choose anew: the best of the run that goes on is in another folder
            self.primary_metric = None
        logging.info(f"training steps: {epochs * steps} ({epochs} epochs of {steps})")
        super().train(disable_eval_tqdm)
        if self.val_loader is not None and self.step % self._eval_every:
            # a run that is continued draws as if this validation had not been
            state = random_state()
            found = self.validate("val", disable_eval_tqdm)
            self.update_best(self.evaluation_metrics["primary_metric"], found, disable_eval_tqdm)
            set_random_state(state)
            self.save(checkpoint_file="checkpoint.pt", training_state=True)

    def predict(self, *args: Any, **options: Any) -> dict:
        """Upstream's predictions, in float32 unless said otherwise: total energies have no digits in its float16."""
        outputs = {name: {"prediction_dtype": "float32", **o} for name, o in self.config["outputs"].items()}
        precise = self._with(config={**self.config, "outputs": outputs})
        return super(S2EFTrainer, precise).predict(*args, **options)

    def load_task(self) -> None:
        super().load_task()
        # configs in the layout before fairchem 1.0 arrive here without one, which upstream cannot compare
        default = "forces_rmse" if "forces" in self.output_targets else "energy_rmse"
        self.evaluation_metrics.setdefault("primary_metric", default)

    def load_model(self) -> None:
        super().load_model()
        source = self.config["optim"].get("finetune_from")
        if source:
            start_from(self._unwrapped_model, source)

    def get_dataloader(self, dataset, sampler, workers=None) -> DataLoader:
        loader = super().get_dataloader(dataset, sampler, workers)
        loader.collate_fn = FillMissingLabels(loader.collate_fn, self.output_targets)
        return loader

    def load_references_and_normalizers(self) -> None:
        super().load_references_and_normalizers()
        fitted = {"element_references": self.elementrefs, "normalizer": self.normalizers}
        for kind, modules in fitted.items():
            for name, values in modules.items():
                numbers = [*values.buffers(), 1 / getattr(values, "rmsd", torch.ones(1))]
                # labels would become NaN, which stands for missing ones
                if not all(number.isfinite().all() for number in numbers):
                    raise UserError(
                        f"dataset.train.transforms.{kind} of '{name}' is NaN or has no width, as from a fit to labels "
                        "that are missing or all equal; give numbers, or the files of `piwsl prepare`."
                    )

        self._check_elements()

    def _check_elements(self) -> None:
        """Refuse references that lack an element of the training set, whose energies would be off by all its electrons."""
        if not self.elementrefs or self.train_dataset is None:
            return
        found = (self.train_dataset[i].atomic_numbers for i in evenly(len(self.train_dataset)))
        elements = {number for numbers in found for number in numbers.int().tolist()}
        for name, values in self.elementrefs.items():
            known = set(values.element_references.flatten().nonzero().flatten().tolist())
            if known and (unknown := elements - known):
                raise UserError(
                    f"dataset.train.transforms.element_references of '{name}' has no value for "
                    f"{', '.join(chemical_symbols[number] for number in sorted(unknown))}, which the training set has; "
                    "give the file that `piwsl prepare` made with this training set, or fit to all of it."
                )

    def load_loss(self) -> None:
        super().load_loss()
        for _, info in self.loss_functions:
            info["fn"] = LabelledLoss(info["fn"])

    def load_extras(self) -> None:
        optim = self.config["optim"]
        # the function of the schedule is for upstream's scheduler alone: checkpoints hold plain settings
        self.config["optim"] = with_schedule(optim, len(self.train_loader) if self.train_loader else 1)
        if optim.get("scheduler") == "ReduceLROnPlateau":
            lower = metrics.lower_is_better(self.evaluation_metrics["primary_metric"])
            self.config["optim"] = {"mode": "min" if lower else "max", **optim}
        super().load_extras()
        self.config["optim"] = optim
        if self.ema is not None and self.config["optim"].get("ema_warmup"):
            # counting updates makes upstream's average start short, so that it forgets the initial weights
            self.ema.num_updates = 0

    def load_checkpoint(self, checkpoint_path, checkpoint=None, inference_only: bool = False) -> None:
        checkpoint = checkpoint or read_checkpoint(checkpoint_path, self.device)
        self._checkpoint_without_state = None if "optimizer" in checkpoint else str(checkpoint_path)
        super().load_checkpoint(checkpoint_path, checkpoint, inference_only)
        if self.train_loader and not inference_only:
            optim = self.config["optim"]
            given = with_schedule(optim, len(self.train_loader))
            if "T_max" in given and "T_max" not in optim:
                end_at(self.scheduler.scheduler, given["T_max"])
            elif "lr_lambda" in given:
                follow(self.scheduler.scheduler, given["lr_lambda"])

    def _with(self, **attributes: Any) -> Any:
        """This trainer with other attributes, for one call of upstream's; the trainer itself does not change."""
        other = copy.copy(self)
        other.__dict__.update(attributes)
        return other


def with_schedule(optim: Mapping[str, Any], steps_per_epoch: int) -> dict[str, Any]:
    """`optim` with what its schedule leaves to the length of the run.

    `CosineAnnealingLR` without `T_max` ends with the last step. `LambdaLR` gets the function that `scheduler_params`
    describes, which upstream's own trainer reads for Equiformer v2 only: a cosine from 1 to `lr_min_factor` at the end
    of `max_epochs`:

    ```yaml
    optim:
      scheduler: LambdaLR
      scheduler_params:
        lambda_type: cosine
        warmup_epochs: 0.01
        warmup_factor: 0.2
        lr_min_factor: 0.01
    ```

    Args:
        optim: the checked block of a config; it is not changed.
        steps_per_epoch: batches of the training set on one rank.
    """
    if optim.get("scheduler") == "CosineAnnealingLR":
        return {"T_max": optim["max_epochs"] * steps_per_epoch, **optim}
    if optim.get("scheduler") != "LambdaLR" or "lr_lambda" in optim:
        return dict(optim)
    params = optim["scheduler_params"]
    function = CosineLRLambda(
        # of epochs with few steps, a hundredth is none; upstream would divide by it
        warmup_epochs=max(1, int(params["warmup_epochs"] * steps_per_epoch)),
        warmup_factor=params["warmup_factor"],
        epochs=optim["max_epochs"] * steps_per_epoch,
        lr_min_factor=params["lr_min_factor"],
    )
    return {**optim, "lr_lambda": function}


def end_at(cosine: CosineAnnealingLR, steps: int) -> None:
    """Let a schedule that was loaded end at another step: the run got longer, or has other ranks."""
    if steps != cosine.T_max:
        cosine.T_max = steps
        left = (1 + math.cos(math.pi * cosine.last_epoch / steps)) / 2
        for group, start in zip(cosine.optimizer.param_groups, cosine.base_lrs, strict=True):
            group["lr"] = cosine.eta_min + (start - cosine.eta_min) * left


def follow(schedule: LambdaLR, function: Callable[[int], float]) -> None:
    """Let a schedule that was loaded go on with another function of the step, for the same reasons."""
    schedule.lr_lambdas = [function] * len(schedule.base_lrs)
    for group, start in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
        group["lr"] = start * function(schedule.last_epoch)
