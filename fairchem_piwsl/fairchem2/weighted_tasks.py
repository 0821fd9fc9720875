"""The tasks of a step with their weights in it: as configured, or from the norms of gradients (`auto`)."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.modules.loss import DDPMTLoss
from fairchem.core.modules.normalization.normalizer import Normalizer
from fairchem.core.units.mlip_unit.mlip_unit import OutputSpec, Task, compute_loss
from torch import Tensor, nn

from fairchem_piwsl.datasets.splits import SAMPLE, evenly
from fairchem_piwsl.fairchem2 import heads
from fairchem_piwsl.files import read_json, write_json
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.training.balance import ENERGY, GradientBalance, share_of_energies
from fairchem_piwsl.training.loss_terms import Term

STATE = "piwsl_balance.json"  # in the folder of a checkpoint


class WeightedTasks:
    """Copies of the run's tasks and one task for each weak term, with their weights as coefficients of their losses."""

    def __init__(self, settings: PIWSLSettings, plain: Sequence[Task], balance: GradientBalance) -> None:
        self.settings, self.balance, self._supervised = settings, balance, len(plain)
        self.step = 0  # of training, counted from 1; 0 outside of a step
        self.log: dict[str, float | Tensor] = {}  # of this step: weights, and norms of gradients
        self._weak = [(n, weak_task(n, plain)) for n in ("pitc", "pisc") if getattr(settings, f"c_{n}")]
        #: with the names of their terms: all tasks for the energy have one
        self._tasks = [*((task.property, task) for task in plain), *self._weak]
        # not by `replace`: Hydra turns tasks into configs
        values = [{f.name: getattr(task, f.name) for f in fields(Task)} for _, task in self._tasks]
        self._copies = [Task(**value | {"loss_fn": copy.copy(value["loss_fn"])}) for value in values]

    def of_step(self, step: int) -> list[Task]:
        """The tasks of a step, which have its weights once `weigh` has seen the outputs."""
        self.step, self.log = step, {}
        return self._copies if self.settings.ramp(step) else self._copies[: self._supervised]

    def weigh(self, model: nn.Module, batch: tuple[AtomicData], outputs: Mapping[str, Any]) -> None:
        """Set the weights of a step before upstream computes its loss: a forward hook of the model."""
        if not self.step:
            return
        s, ramp = self.settings, self.settings.ramp(self.step)
        # a share that grows is up to the balance, which would measure a growing weight away
        weights = {n: getattr(s, f"c_{n}") * (1.0 if s.weak_share else ramp) for n, _ in self._weak if ramp}
        values = dict.fromkeys([ENERGY, *weights], torch.zeros(()))  # weights of other steps need none
        if measures := s.measures(self.step):
            tasks = self._tasks if ramp else self._tasks[: self._supervised]  # before `start_step`
            losses = compute_loss([task for _, task in tasks], outputs, *batch)
            for name, task in tasks:
                values[name] = values.get(name, 0.0) + losses[task.name]
        terms = [Term(n, value, weights.get(n, 1.0), weak=n in weights) for n, value in values.items()]
        if measures:
            self.balance.measure(terms, [p for p in model.parameters() if p.requires_grad])
        terms = self.balance(terms, ramp)
        factors = {term.name: term.weight for term in terms}
        for (name, task), own in zip(self._tasks, self._copies, strict=True):
            own.loss_fn.coefficient = factors.get(name, 1.0) * task.loss_fn.coefficient
        self.log = self.balance.log(terms) if s.balances else {}

    def save_with(self, unit: Any) -> None:
        """Write the balance beside each checkpoint that the unit saves; go on from that of a resumed one."""
        save, resumed = unit.save_state, Path(unit.lazy_state_location or "") / STATE
        if unit.lazy_state_location and resumed.exists():
            self.balance.load(read_json(resumed))

        def save_state(location: str) -> None:
            if distutils.is_master():
                write_json(Path(location) / STATE, self.balance.state())
            save(location)

        unit.save_state = save_state


def balance_of(settings: PIWSLSettings, tasks: Sequence[Task], state: Any) -> GradientBalance:
    """Shares as set; that of the energy labels, where null, from those of up to 1,000 training structures."""
    share = settings.energy_share
    if share is None:
        energies, forces = heads.labels(tasks, batch := training_structures(state))
        share = share_of_energies(energies, forces[batch.fixed == 0])
        logging.info(f"PIWSL: energy_share {share:.2f}, from the spread of the labels")
    return GradientBalance(share, settings.weak_share)


def training_structures(state: Any, most: int = SAMPLE) -> AtomicData:
    """Up to `most` of the training structures, spread evenly, as one batch."""
    loader, data = state.train_state.dataloader, state.train_state.dataloader.dataset
    batch = heads.as_after_forward(loader.collate_fn([data[i] for i in evenly(len(data), most)]))
    return batch.to(distutils.get_device_for_local_rank())


def weak_task(name: str, tasks: Sequence[Task]) -> Task:
    """A task whose loss is its prediction, a mean over the structures of all ranks."""
    datasets = sorted({dataset for task in tasks for dataset in task.datasets})
    out_spec, normalizer = OutputSpec(dim=[1], dtype="float32"), Normalizer(mean=0.0, rmsd=1.0)
    options = dict(out_spec=out_spec, normalizer=normalizer, datasets=datasets)
    loss_fn = DDPMTLoss(lambda values, target, natoms: values)
    return Task(name=f"piwsl_{name}", level="system", property="value", loss_fn=loss_fn, **options)
