"""One rank of a distributed run on the CPU; started by jobs/test_distributed.py.

python helpers_distributed.py DATA OUT with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment
"""

from __future__ import annotations

import math
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import fairchem_piwsl  # noqa: F401  before fairchem
import fairchem_piwsl.trainer as trainer_module

#: structures of the joint batch that each of two ranks takes; without one label or the other
SHARES = ([0, 1, 2], [3, 4])
WITHOUT_FORCES, WITHOUT_ENERGY = (3, 4), (1,)
SETTINGS: dict[str, dict[str, Any]] = {
    "supervised": {},
    "all terms": {"c_pitc": 1.2, "c_pisc": 0.8, "c_wl": 0.5, "eps_max": 0.02, "k_2nd": 0.5},
    "predicted": {"c_wl": 0.5, "wl_forces": "predicted", "point_loss": "mae", "eps_max": 0.02},
    "auto": {"auto": True},
    "auto displaced": {"auto": True, "eps_max": 0.02},
    "noisy": {"noisy_nodes": True, "eps_max": 0.02},
}


def same_draw_on_every_rank() -> None:
    """Displacements that depend on positions alone, so that a structure moves alike wherever it is."""
    latest: list[Any] = [None]

    def draw(settings: Any, pos: Tensor, *rest: Any) -> Tensor:
        generator = rest[4]
        second = generator is latest[0]  # dr' comes from the generator of dr
        latest[0] = generator
        return settings.eps_max * torch.sin(1000 * pos + second)

    trainer_module.draw = draw


def gradient(data: Path, folder: Path, piwsl: dict[str, Any], chosen: list[int]) -> dict[str, Tensor]:
    """Gradient of the total loss over `chosen` structures, averaged over ranks as the optimizer sees it."""
    trainer = make(data, folder, piwsl)
    trainer.step = 61  # the first one at which `auto` measures gradients
    trainer.model.train()
    batch = trainer.train_loader.collate_fn([trainer.train_dataset[i] for i in chosen])
    loss = trainer._compute_loss(trainer._forward(batch), batch)
    loss.backward()
    return {name: p.grad for name, p in trainer._unwrapped_model.named_parameters() if p.requires_grad}


def make(data: Path, folder: Path, piwsl: dict[str, Any]) -> Any:
    """A trainer in float64 with neighbour lists from the data set."""
    from conftest import make_config, make_trainer

    # a batch without labels does not always come first
    config = make_config(data, folder, piwsl=piwsl, max_epochs=1, eval_batch_size=1)
    config["model"]["otf_graph"] = False
    config["evaluation_metrics"]["primary_metric"] = "energy_rmse"
    return make_trainer(config)


def main(data: Path, out: Path) -> None:
    """Write gradients, validation metrics and the weights after an epoch."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # short, so that ranks that wait for each other fail instead of hanging
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    from fairchem.core.common.utils import setup_imports

    setup_imports()
    same_draw_on_every_rank()
    folder = out / f"rank{rank}of{world_size}"
    folder.mkdir(parents=True)
    chosen = SHARES[rank] if world_size == 2 else SHARES[0] + SHARES[1]
    result: dict[str, Any] = {name: gradient(data, folder, s, chosen) for name, s in SETTINGS.items()}
    trainer = make(data, folder, SETTINGS["all terms"])
    metrics = trainer.validate(disable_tqdm=True)
    result["metrics"] = {name: float(entry["metric"]) for name, entry in metrics.items()}
    trainer.train(disable_eval_tqdm=True)
    result["best"] = float(trainer.best_val_metric)
    assert math.isfinite(result["best"])
    result["weights"] = {name: p.detach() for name, p in trainer._unwrapped_model.named_parameters()}
    torch.save(result, folder / "result.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
