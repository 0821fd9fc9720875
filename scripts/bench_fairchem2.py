"""What a PIWSL step of fairchem 2 costs: against a plain step, and against one on the enlarged batch.

    python scripts/bench_fairchem2.py configs/fairchem2/aspirin_direct.yml data=data/aspirin_fairchem2

All variants take turns in one process, so that a ratio compares steps made within the same second. The weak terms
are in every step, whatever the config's schedule is. Without a GPU, seconds are the processor's for this process, to
which other work on the machine does not add.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fairchem.core._cli import get_hydra_config_from_yaml
from fairchem.core.common import distutils
from fairchem.core.datasets.atomic_data import AtomicData
from hydra.utils import instantiate
from rich.progress import track

from fairchem_piwsl.fairchem2 import PIWSLCallback
from fairchem_piwsl.fairchem2.stacked_data import stack
from fairchem_piwsl.files import write_json


@dataclass
class Variant:
    """One way of making a step, with a model of its own."""

    unit: Any
    batch: AtomicData
    loader: Any
    callbacks: Sequence[PIWSLCallback] = ()
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = SimpleNamespace(train_state=SimpleNamespace(dataloader=self.loader))
        self.unit.load_scheduler(100)
        self.unit.previous_wall_time = time.time()
        self.unit.print_every = 10**9
        for callback in self.callbacks:
            callback.on_train_start(self.state, self.unit)

    def step(self) -> None:
        """One step of upstream's unit, timed."""
        batch = self.batch.clone()
        start = now()
        for callback in self.callbacks:
            callback.on_train_step_start(self.state, self.unit)
        self.unit.train_step(self.state, batch)
        self.unit.train_progress.increment_step()
        for callback in self.callbacks:
            callback.on_train_step_end(self.state, self.unit)
        self.seconds.append(now() - start)


def now() -> float:
    """Seconds on the clock once the GPU has done its work; without a GPU, of the processor's time."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def bench(config: Any, rounds: int, warmup: int) -> dict[str, Any]:
    """Seconds of a step and their ratios, each as median and quartiles over the rounds."""
    os.environ[distutils.CURRENT_DEVICE_TYPE_STR] = str(config.job.device_type).lower().split(".")[-1]
    store = f"file://{tempfile.mkdtemp()}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    [block] = [dict(one) for one in config.runner.callbacks if one["_target_"].endswith("PIWSLCallback")]
    del block["_target_"]
    callback = PIWSLCallback(**block | {"start_step": 0, "ramp_steps": 0, "every_n_steps": 1})
    loader = instantiate(config.runner.train_dataloader)
    batch = next(iter(loader))
    copies = 1 + len(callback.settings.points)
    batches = {"plain": batch, "enlarged batch": stack(batch, [batch.pos] * copies, None), "piwsl": batch}
    variants = {}
    for name, one in batches.items():
        torch.manual_seed(0)
        unit = instantiate(config.runner.train_eval_unit)
        variants[name] = Variant(unit, one, loader, [callback] if name == "piwsl" else [])
    for _ in track(range(warmup + rounds), description="measuring"):
        for variant in variants.values():
            variant.step()
    seconds = {name: variant.seconds[warmup:] for name, variant in variants.items()}

    def ratio(other: str) -> dict[str, float]:
        return spread([a / b for a, b in zip(seconds["piwsl"], seconds[other], strict=True)])

    return {
        "structures": batch.num_graphs,
        "atoms": len(batch.pos),
        "configurations": copies,
        "rounds": rounds,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "piwsl_over_plain": ratio("plain"),
        "piwsl_over_enlarged_batch": ratio("enlarged batch"),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "lower": low, "upper": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a config of fairchem 2 with PIWSLCallback")
    parser.add_argument("overrides", nargs="*", help="key=value, as for fairchem -c")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    args = parser.parse_args()
    result = bench(get_hydra_config_from_yaml(args.config, args.overrides), args.rounds, args.warmup)
    for name in ("piwsl_over_plain", "piwsl_over_enlarged_batch"):
        numbers = result[name]
        print(f"{name}: {numbers['median']:.2f} ({numbers['lower']:.2f} to {numbers['upper']:.2f})")
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
