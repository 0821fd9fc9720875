"""What a PIWSL step costs: against a plain step, an enlarged batch, and separate calls.

All variants take turns in one process, so that a ratio compares steps made within the same second.
"""

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.utils import setup_imports
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.trainer import PIWSLForcesTrainer
from fairchem_piwsl.training.preflight import check_config
from fairchem_piwsl.training.stacking import stack


class SeparateCallsTrainer(PIWSLForcesTrainer):
    """The straightforward way: one call and one neighbour list for each configuration."""

    def _predict(self, batch: Batch, positions: list[Tensor]) -> list[dict[str, Tensor]]:
        return [out for pos in positions for out in super(SeparateCallsTrainer, self)._predict(batch, [pos])]


@dataclass(frozen=True)
class Variant:
    """One way of making a step."""

    trainer: PIWSLForcesTrainer
    batch: Batch

    def step(self) -> None:
        """Forward pass, loss, backward pass and optimizer step, as upstream's loop makes them."""
        self.trainer.step += 1
        self.trainer.model.train()
        out = self.trainer._forward(self.batch)
        self.trainer._backward(self.trainer._compute_loss(out, self.batch))


def bench(config: Mapping[str, Any], rounds: int = 20, warmup: int = 3, cpu: bool = False) -> dict[str, Any]:
    """Measure a training step of `config` in all variants, with the weak terms on whatever their schedule is.

    Args:
        config: a fairchem config with `optim.piwsl` weights above zero.
        rounds: steps of each variant that count.
        warmup: steps of each variant before.
        cpu: use the CPU although there is a GPU.

    Returns:
        `variants` (name -> seconds, peak_bytes, on a GPU kernel_seconds), `ratios` (name -> median, lower and upper
        quartile over rounds), the medians of the three main ratios at the top level, and what was measured on.
    """
    check_config(config)
    if not PIWSLSettings.from_config(config["optim"].get("piwsl")).weak:
        raise UserError("optim.piwsl has no weight above zero, so there is nothing to compare; set c_pitc.")
    with tempfile.TemporaryDirectory() as folder:
        variants = _variants(config, Path(folder), cpu)
        measured = _measure(variants, rounds, warmup)

    def ratio(name: str, to: str) -> dict[str, float]:
        pairs = zip(measured[name][0], measured[to][0], strict=True)
        return _spread([a / b for a, b in pairs])

    ratios = {
        "piwsl_over_baseline": ratio("piwsl", "baseline"),
        "piwsl_over_enlarged_batch": ratio("piwsl", "enlarged batch"),
        "three_calls_over_baseline": ratio("separate calls", "baseline"),
    }
    plain, enlarged = (variants[name].batch for name in ("baseline", "enlarged batch"))
    return {
        "device": _device_name(variants["piwsl"].trainer.device),
        "model": config["model"]["name"],
        "structures": plain.num_graphs,
        "atoms": plain.num_nodes,
        "configurations": enlarged.num_graphs // plain.num_graphs,
        "rounds": rounds,
        "variants": {
            name: {
                "seconds": _spread(seconds),
                "over_baseline": ratio(name, "baseline"),
                **once,
            }
            for name, (seconds, once) in measured.items()
        },
        "ratios": ratios,
        **{name: ratio["median"] for name, ratio in ratios.items()},
    }


def _variants(config: Mapping[str, Any], folder: Path, cpu: bool) -> dict[str, Variant]:
    """All variants on the same structures; each has a model of its own with the same initial weights."""
    setup_imports()
    config = copy.deepcopy(dict(config))
    # without their schedule, which would leave the measured steps without weak terms, and the balance, which needs data
    off = ("start_step", "ramp_steps", "weak_share", "energy_share")
    config["optim"]["piwsl"] |= {**dict.fromkeys(off, 0), "every_n_steps": 1}
    config["optim"]["scheduler"] = "Null"  # no part of a step, and one kind asks for validation data
    piwsl = _trainer(PIWSLForcesTrainer, config, folder, cpu)
    piwsl.settle()
    batch = next(iter(piwsl.train_loader)).to(piwsl.device)
    # the other trainers need no data set, and LMDB opens a file only once in a process
    without_data = copy.deepcopy(dict(config))
    without_data["dataset"] = {"train": {k: v for k, v in config["dataset"]["train"].items() if k != "src"}}
    plain = copy.deepcopy(without_data)
    plain["optim"].pop("piwsl")
    separate = copy.deepcopy(without_data)
    separate["optim"]["piwsl"] |= {"eps_max": piwsl.piwsl.eps_max, "share_graph": False}
    configurations = 1 + len(piwsl.piwsl.points)
    enlarged = stack(batch, [batch.pos] * configurations)
    return {
        "baseline": Variant(_trainer(PIWSLForcesTrainer, plain, folder, cpu), batch),
        "piwsl": Variant(piwsl, batch),
        "separate calls": Variant(_trainer(SeparateCallsTrainer, separate, folder, cpu), batch),
        "enlarged batch": Variant(_trainer(PIWSLForcesTrainer, plain, folder, cpu), enlarged),
    }


def _trainer(
    kind: type[PIWSLForcesTrainer], config: Mapping[str, Any], folder: Path, cpu: bool
) -> PIWSLForcesTrainer:
    return kind(
        task=config.get("task", {}),
        model=config["model"],
        outputs=config["outputs"],
        dataset=copy.deepcopy(config["dataset"]),
        optimizer=copy.deepcopy(config["optim"]),
        loss_functions=config["loss_functions"],
        evaluation_metrics=config.get("evaluation_metrics", {}),
        identifier="bench",
        local_rank=0,
        run_dir=str(folder),
        is_debug=True,
        seed=0,
        cpu=cpu,
        name="ocp",
    )


def _measure(
    variants: Mapping[str, Variant], rounds: int, warmup: int
) -> dict[str, tuple[list[float], dict[str, float]]]:
    """Seconds of every step of each variant, and what one further step says of its memory and its kernels."""
    device = variants["piwsl"].trainer.device
    for variant in variants.values():
        for _ in range(warmup):
            variant.step()
    once = {
        name: {"peak_bytes": _peak_bytes(variant.step, device), **_kernel_seconds(variant.step, device)}
        for name, variant in variants.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in track(range(rounds), description="measuring"):
        for name, variant in variants.items():
            _wait(device)
            start = time.perf_counter()
            variant.step()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: (seconds[name], once[name]) for name in variants}


def _peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Largest memory of tensors that a step allocates, above what is held before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _kernel_seconds(step: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Sum over the GPU's kernels in a step; for the rest of the step the GPU waits for the CPU to start them."""
    if device.type != "cuda":
        return {}
    with torch.profiler.profile() as profile:
        step()
        _wait(device)
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    # a range that the optimizer names on the GPU's time line, besides the kernels in it
    kernels = [e.device_time for e in events if not e.name.startswith("Optimizer.step")]
    return {"kernel_seconds": sum(kernels) / 1e6}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _spread(values: list[float]) -> dict[str, float]:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"


def render(result: Mapping[str, Any]) -> Table:
    """The measurement as a table."""
    table = Table(
        title=f"{result['model']}: {result['structures']} structures, {result['atoms']} atoms, "
        f"{result['configurations']} configurations; {result['device']}",
        caption=f"medians over {result['rounds']} rounds, [quartiles]",
    )
    for heading in ("step", "ms", "GPU busy, ms", "over baseline", "peak memory, MB"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for name, variant in result["variants"].items():
        ms = f"{1e3 * variant['seconds']['median']:.1f}"
        kernels = f"{1e3 * variant['kernel_seconds']:.1f}" if "kernel_seconds" in variant else ""
        memory = f"{variant['peak_bytes'] / 1e6:.0f}"
        table.add_row(name, ms, kernels, _with_quartiles(variant["over_baseline"], 2), memory)
    table.add_section()
    main = result["ratios"]["piwsl_over_enlarged_batch"]
    table.add_row("piwsl over enlarged batch", "", "", _with_quartiles(main, 3), "")
    return table


def _with_quartiles(spread: Mapping[str, float], digits: int) -> str:
    median, lower, upper = (
        f"{spread[key]:.{digits}f}" for key in ("median", "lower_quartile", "upper_quartile")
    )
    return f"{median} [{lower}, {upper}]"
