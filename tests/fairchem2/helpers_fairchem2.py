"""Tiny models, tasks, batches and trainings of fairchem-core 2."""

from __future__ import annotations

import copy
import functools
import os
import tempfile
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from fairchem.core.common import distutils
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from fairchem.core.models.base import HydraModel
from fairchem.core.modules.loss import DDPMTLoss, L2NormLoss, MAELoss
from fairchem.core.modules.normalization.normalizer import Normalizer
from fairchem.core.units.mlip_unit.mlip_unit import (
    MLIPTrainEvalUnit,
    OutputSpec,
    Task,
    _get_consine_lr_scheduler,
)
from omegaconf import OmegaConf
from torchtnt.framework.train import train

MODULE = "fairchem.core.models.uma.escn_md."
DIRECT = {
    "energy": {"module": MODULE + "MLP_Energy_Head"},
    "forces": {"module": MODULE + "Linear_Force_Head"},
}


def model(heads: dict | None = None, seed: int = 0, **backbone: Any) -> HydraModel:
    """A direct-force eSCN-MD, or with `direct_forces=False` one whose forces are gradients."""
    torch.manual_seed(seed)
    direct = backbone.get("direct_forces", True)
    settings: dict[str, Any] = dict(
        model=MODULE + "eSCNMDBackbone",
        max_num_elements=40,
        sphere_channels=8,
        lmax=1,
        mmax=1,
        otf_graph=True,
        max_neighbors=200,
        cutoff=4.0,
        edge_channels=8,
        num_distance_basis=8,
        num_layers=1,
        hidden_channels=8,
        use_dataset_embedding=False,
        always_use_pbc=False,
    )
    settings.update(backbone)
    if heads is None:
        heads = DIRECT if direct else {"efs": {"module": MODULE + "MLP_EFS_Head"}}
    return HydraModel(
        backbone=settings,
        heads={name: dict(head) for name, head in heads.items()},
        pass_through_head_outputs=not direct,
    )


def task(kind: str, datasets: tuple[str, ...] = ("mol",), name: str | None = None, rmsd: float = 1.0) -> Task:
    """A task of fairchem with the usual loss for energies or forces."""
    energy = kind == "energy"
    return Task(
        name=name or kind,
        level="system" if energy else "atom",
        property=kind,
        out_spec=OutputSpec(dim=[1] if energy else [3], dtype="float32"),
        normalizer=Normalizer(mean=0.0, rmsd=rmsd),
        datasets=list(datasets),
        loss_fn=DDPMTLoss(MAELoss() if energy else L2NormLoss(), coefficient=1.0),
    )


def structures(count: int = 4, periodic: bool = False, seed: int = 0) -> list[Atoms]:
    """Distorted molecules, or cells of copper with one to three atoms; EMT labels (eV, eV/Angstrom)."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(count):
        atoms = bulk("Cu") * (1 + i % 3, 1, 1) if periodic else molecule(("CH3OH", "H2O", "CH4")[i % 3])
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.calc = EMT()
        result.append(atoms)
    return result


def data(atoms: Atoms, dataset: str = "mol", dtype: torch.dtype = torch.float32) -> AtomicData:
    """A structure as fairchem's data sets give it."""
    result = AtomicData.from_ase(atoms, task_name=dataset, target_dtype=dtype)
    result.energy = torch.tensor([atoms.get_potential_energy()], dtype=dtype)
    result.forces = torch.tensor(atoms.get_forces(), dtype=dtype)
    result.dataset_name = f"{dataset}.train"
    return result


def batch(dtype: torch.dtype = torch.float32, dataset: str = "mol", **which: Any) -> AtomicData:
    """Structures in one batch."""
    return atomicdata_list_to_batch([data(atoms, dataset, dtype) for atoms in structures(**which)])


class Batches:
    """A loader that gives the same batches in every epoch."""

    def __init__(self, batches: list[AtomicData]) -> None:
        self.batches = batches
        self.dataset = [one for batch in batches for one in batch.batch_to_atomicdata_list()]
        self.collate_fn = atomicdata_list_to_batch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return (one.clone() for one in self.batches)


def start_process_group(rank: int = 0, size: int = 1, file: str | None = None) -> None:
    """What fairchem's launcher does before a training on the CPU."""
    os.environ[distutils.CURRENT_DEVICE_TYPE_STR] = "cpu"
    if not torch.distributed.is_initialized():
        file = file or os.path.join(tempfile.mkdtemp(), "store")
        torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)


def unit(hydra: HydraModel, tasks: list[Task] | None = None, **changes: Any) -> MLIPTrainEvalUnit:
    """Upstream's unit of training."""
    start_process_group()
    job = OmegaConf.create({"seed": 0, "debug": True, "logger": None})
    arguments: dict[str, Any] = dict(
        job_config=job,
        model=hydra,
        optimizer_fn=functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-3),
        cosine_lr_scheduler_fn=functools.partial(
            _get_consine_lr_scheduler, warmup_factor=0.2, warmup_epochs=0.01, lr_min_factor=0.01, steps=40
        ),
        tasks=tasks or [task("energy"), task("forces")],
        print_every=1,
        clip_grad_norm=100.0,
        ema_decay=0.9,
    )
    return MLIPTrainEvalUnit(**(arguments | changes))


def fit(training: MLIPTrainEvalUnit, batches: list[AtomicData], callbacks: list, epochs: int = 1) -> None:
    """Train for some epochs in all, with torchtnt's loop as upstream's runner does."""
    train(training, Batches(batches), max_epochs=epochs, callbacks=callbacks)


def parameters(training: MLIPTrainEvalUnit) -> list[torch.Tensor]:
    """Copies of a unit's parameters."""
    return [parameter.detach().clone() for parameter in training.model.parameters()]


def state(training: MLIPTrainEvalUnit) -> dict[str, Any]:
    """What a checkpoint holds."""
    return copy.deepcopy(training.state_dict())
