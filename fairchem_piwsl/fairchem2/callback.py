"""`PIWSLCallback`: PITC and PISC for trainings of fairchem-core 2, around the model's forward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from fairchem.core.common import distutils, gp_utils
from fairchem.core.modules.loss import DDPMTLoss
from fairchem.core.modules.normalization.normalizer import Normalizer
from fairchem.core.units.mlip_unit.mlip_unit import OutputSpec, Task
from torchtnt.framework.callback import Callback
from torchtnt.framework.state import State

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.fairchem2.run_checks import BLOCK, check_settings, check_unit, inner_model
from fairchem_piwsl.fairchem2.weak_forward import WeakForward
from fairchem_piwsl.perturbations import step_generator
from fairchem_piwsl.settings import PIWSLSettings


class PIWSLCallback(Callback):
    """Weak losses in a training of fairchem 2; one block in the config's `runner.callbacks`:

    ```yaml
    runner:
      callbacks:
        - _target_: fairchem_piwsl.fairchem2.PIWSLCallback
          c_pitc: 1.2
          k_2nd: 0.5
          eps_max: 0.025
    ```

    The settings are those of `PIWSLSettings`, except `c_wl`, `noisy_nodes`, `validate_consistency` and `auto` with
    its shares. In a step with weak terms, A, C and B go through the model in one call, and each weak term is a task of
    the unit, so that fairchem's own step adds it to the loss (Eq. 5). Checkpoints and validation stay as they are.

    Raises:
        UserError: an unknown setting or value; at the start of training, a run that the terms do not fit.
    """

    def __init__(self, **settings: Any) -> None:
        try:
            self.settings = PIWSLSettings.from_config(settings)
        except UserError as error:
            raise UserError(str(error).replace("optim.piwsl", BLOCK)) from None
        check_settings(self.settings)
        self._detach: Callable[[], Any] | None = None

    def on_train_start(self, state: State, unit: Any) -> None:
        """Check the run and stand around the model."""
        s = self.settings
        self._plain = list(unit.tasks)
        names = ["pitc"] * bool(s.c_pitc) + ["pisc"] * bool(s.c_pisc)
        self._weak = [weak_task(name, self._plain) for name in names]
        self._forward = WeakForward(s, self._plain)
        if s.weak:
            check_unit(unit, s)
            self._detach = self._forward.attach(inner_model(unit.model))

    def on_train_step_start(self, state: State, unit: Any) -> None:
        """Say which step this is, and the unit which tasks the step has."""
        number = unit.train_progress.num_steps_completed + 1
        if self._weak and (ramp := self.settings.ramp(number)):
            rank = gp_utils.get_dp_rank() if gp_utils.initialized() else distutils.get_rank()
            device = torch.device(distutils.get_device_for_local_rank())
            self._forward.ramp = ramp
            self._forward.generator = step_generator(unit.job_config.seed or 0, rank, number, device)
            unit.tasks = self._plain + self._weak

    def on_train_step_end(self, state: State, unit: Any) -> None:
        """Leave validation alone; log the terms as often as upstream logs the loss."""
        terms = self._forward.terms
        self._forward.ramp, self._forward.terms, unit.tasks = 0.0, {}, self._plain
        report = (unit.train_progress.num_steps_completed - 1) % unit.print_every == 0
        if terms and (report or unit.logger is not None):
            values = {f"train/loss_{name}": float(value) for name, value in terms.items()}
            if unit.logger is not None:
                unit.logger.log(values, commit=False)
            if report:
                logging.info(values)

    def on_train_end(self, state: State, unit: Any) -> None:
        """Leave model and unit as they were."""
        if self._detach:
            self._detach()
        self._detach, unit.tasks = None, self._plain

    def on_exception(self, state: State, unit: Any, exc: BaseException) -> None:
        """As at the end of training."""
        if self._detach:
            self.on_train_end(state, unit)


def weak_task(name: str, tasks: list[Task]) -> Task:
    """A task whose loss is its prediction, a mean over the structures of all ranks."""
    return Task(
        name=f"piwsl_{name}",
        level="system",
        property="value",
        out_spec=OutputSpec(dim=[1], dtype="float32"),
        normalizer=Normalizer(mean=0.0, rmsd=1.0),
        datasets=sorted({dataset for task in tasks for dataset in task.datasets}),
        loss_fn=DDPMTLoss(lambda values, target, natoms: values),
    )
