"""`PIWSLCallback`: PITC and PISC for trainings of fairchem-core 2, around the model's forward pass."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from fairchem.core.common import distutils, gp_utils
from torchtnt.framework.callback import Callback
from torchtnt.framework.state import State

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.fairchem2.run_checks import BLOCK, applicable, check_settings, has_gradient, inner_model
from fairchem_piwsl.fairchem2.weak_forward import WeakForward
from fairchem_piwsl.fairchem2.weighted_tasks import WeightedTasks, balance_of, training_structures
from fairchem_piwsl.perturbations import step_generator
from fairchem_piwsl.settings import CLIP_GRAD_NORM, PIWSLSettings
from fairchem_piwsl.training.energy_gradient import without_gradient


class PIWSLCallback(Callback):
    """Weak losses in a training of fairchem 2; one entry of the config's `runner.callbacks` (docs/fairchem2.md).

    The settings are those of `PIWSLSettings`, except `c_wl`, `noisy_nodes` and `validate_consistency`. In a step with
    weak terms, A, C and B go through the model in one call, and each weak term is a task of the unit, so that
    fairchem's own step adds it to the loss (Eq. 5). Checkpoints and validation stay as they are.

    Raises:
        UserError: an unknown setting or value; at the start of training, a run that the terms do not fit.
    """

    def __init__(self, **settings: Any) -> None:
        try:
            self.settings = PIWSLSettings.from_config(settings)
        except UserError as error:
            raise UserError(str(error).replace("optim.piwsl", BLOCK)) from None
        check_settings(self.settings)
        self._block = settings
        self._undo = ExitStack()
        self._latest: dict[str, float | torch.Tensor] = {}

    def on_train_start(self, state: State, unit: Any) -> None:
        """Check the run and stand around the model."""
        s = applicable(self.settings, unit)
        # ranks of a graph have parts of the gradient
        one_part = gp_utils.initialized()
        if s.differentiates and (one_part or not has_gradient(unit, training_structures(state, 4))):
            s = without_gradient(self._block, BLOCK)
        self.settings = s
        self._plain = unit.tasks
        if (logger := unit.logger) is not None:
            # before the unit logs its loss, with which Weights & Biases closes the step
            hook = unit.optimizer.register_step_post_hook
            log = hook(lambda *_: logger.log(_values(self._log_of_step()), commit=False))
            self._undo.callback(log.remove)
        self._tasks = WeightedTasks(s, self._plain, balance_of(s, self._plain, state))
        self._forward = WeakForward(s, self._plain)
        self._undo.callback(setattr, unit, "tasks", self._plain)
        if s.weak or s.balances:
            model = inner_model(unit.model)
            self._undo.callback(self._forward.attach(model))
            self._undo.callback(model.register_forward_hook(self._tasks.weigh).remove)
        if s.balances:
            self._tasks.save_with(unit)
        if s.auto and s.balances and unit.clip_grad_norm is None:
            logging.info(
                f"PIWSL: clip_grad_norm {CLIP_GRAD_NORM}, since auto needs one and the unit has none"
            )
            self._undo.callback(setattr, unit, "clip_grad_norm", None)
            unit.clip_grad_norm = CLIP_GRAD_NORM

    def on_train_step_start(self, state: State, unit: Any) -> None:
        """Say which step this is, and the unit which tasks the step has."""
        number = unit.train_progress.num_steps_completed + 1
        if self.settings.weak and (ramp := self.settings.ramp(number)):
            rank = gp_utils.get_dp_rank() if gp_utils.initialized() else distutils.get_rank()
            device = torch.device(distutils.get_device_for_local_rank())
            self._forward.ramp = ramp
            self._forward.generator = step_generator(unit.job_config.seed or 0, rank, number, device)
        unit.tasks = self._tasks.of_step(number)

    def on_train_step_end(self, state: State, unit: Any) -> None:
        """Leave validation alone; log the terms as often as upstream logs the loss."""
        log = self._log_of_step()
        self._latest |= log  # reported steps may be none with weak terms
        self._forward.ramp, self._forward.terms, self._tasks.step, unit.tasks = 0.0, {}, 0, self._plain
        report = (unit.train_progress.num_steps_completed - 1) % unit.print_every == 0
        if self._latest and report:
            logging.info(_values(self._latest))

    def _log_of_step(self) -> dict[str, float | torch.Tensor]:
        return {f"loss_{name}": value for name, value in self._forward.terms.items()} | self._tasks.log

    def on_train_end(self, state: State, unit: Any) -> None:
        """Leave the model and the unit's training as they were; say what the balance has decided."""
        self.on_exception(state, unit)
        if self.settings.balances:
            logging.info(f"PIWSL: weights at the end, from the norms of gradients: {self._tasks.balance}")

    def on_exception(self, state: State, unit: Any, exc: BaseException | None = None) -> None:
        """Leave the model and the unit's training as they were; a checkpoint that is still to come has the balance."""
        self._undo.close()


def _values(log: Mapping[str, float | torch.Tensor]) -> dict[str, float]:
    return {f"train/{name}": float(value) for name, value in log.items()}
