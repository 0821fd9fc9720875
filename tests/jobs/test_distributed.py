"""Two ranks (gloo) give the gradient and the metrics of one rank with the joint batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import labelled_molecules, to_data, write_lmdb
from fairchem.core.common.utils import radius_graph_pbc
from helpers_distributed import SETTINGS, WITHOUT_ENERGY, WITHOUT_FORCES
from torch_geometric.data import Batch


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Records with neighbour lists and positions in float64; in `val` the second rank has no forces."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in {"train": 8, "val": 6, "test": 2}.items():
        records = []
        for i, atoms in enumerate(labelled_molecules(count, seed=3)):
            energy, forces = i not in WITHOUT_ENERGY, i not in WITHOUT_FORCES
            if split == "val":  # without shuffling, ranks take every other structure
                energy, forces = i != 4, i % 2 == 0
            record = to_data(atoms, i, energy, forces)
            record.edge_index, record.cell_offsets, _ = radius_graph_pbc(
                Batch.from_data_list([record]), 5.0, 100
            )
            record.pos = torch.tensor(atoms.positions)
            records.append(record)
        write_lmdb(folder / f"{split}.lmdb", records)
    return folder


@pytest.fixture(scope="module")
def results(data, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What one rank and both of two ranks found."""
    out = tmp_path_factory.mktemp("out")
    processes = [*start(data, out, 1), *start(data, out, 2)]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in processes:
            process.kill()
    names = {"joint": "rank0of1", "first": "rank0of2", "second": "rank1of2"}
    return {key: torch.load(out / name / "result.pt", weights_only=False) for key, name in names.items()}


def start(data: Path, out: Path, ranks: int) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).parents[1] / "helpers_distributed.py"
    return [
        subprocess.Popen(
            [sys.executable, str(script), str(data), str(out)],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]


def difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Relative difference of two sets of tensors taken as one vector."""
    assert left.keys() == right.keys()
    a, b = (torch.cat([values[name].flatten() for name in left]) for values in (left, right))
    assert b.norm() > 0
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("terms", SETTINGS)
def test_gradient_equals_that_of_the_joint_batch(results, terms):
    """Three and two structures on two ranks, force labels on the first only."""
    assert difference(results["first"][terms], results["joint"][terms]) < 1e-6
    assert difference(results["second"][terms], results["joint"][terms]) < 1e-6


def test_settings_differ(results):
    """The test above can fail: other terms give another gradient."""
    joint = results["joint"]
    assert difference(joint["all terms"], joint["supervised"]) > 1e-3
    assert difference(joint["auto"], joint["supervised"]) > 1e-3
    assert difference(joint["auto"], joint["auto displaced"]) > 1e-3
    assert difference(joint["noisy"], joint["supervised"]) > 1e-4


def test_metrics_equal_those_of_one_rank(results):
    """Including ranks without a single force label, and one where a batch of three has no energy."""
    joint = results["joint"]["metrics"]
    assert {"forces_rmse", "forces_mae", "energy_rmse", "pitc_rmse"} <= joint.keys()
    for rank in ("first", "second"):
        found = results[rank]["metrics"]
        assert found.keys() == joint.keys()
        for name in ("forces_rmse", "forces_mae", "forces_cosine_similarity", "energy_rmse", "energy_mae",
                     "energy_per_atom_rmse", "pitc_rmse"):  # fmt: skip
            if name in joint:
                assert found[name] == pytest.approx(joint[name], rel=1e-9), name


def test_ranks_end_with_the_same_weights(results):
    assert difference(results["first"]["weights"], results["second"]["weights"]) == 0
    assert results["first"]["best"] == results["second"]["best"]
