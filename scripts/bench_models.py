"""Step times of all models at the paper's size, with and without weak terms: docs/results/step_times.json.

    python scripts/bench_models.py --batches 16 6

Each model with the paper's case for aspirin (configs/s2ef/rmd17_aspirin_100, whose head says how to get the data), in a
process of its own. The file has what is measured after each; `python scripts/publish.py` writes the documentation's table.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from fairchem_piwsl.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "s2ef" / "rmd17_aspirin_100"
MODELS = ("painn", "schnet", "spinconv", "mace", "equiformer_v2", "escn")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 6])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cpu", action="store_true", help="the CPU, although there is a GPU")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "step_times.json")
    args = parser.parse_args()
    title = "Seconds of a training step at the paper's size"
    runs: list[dict[str, Any]] = []
    results = {"recipe": args.out.stem, "title": title, "torch": torch.__version__, "runs": runs}
    for batch in args.batches:
        for model in args.models:
            runs.append(measure(model, batch, args))
            write_json(args.out, results)


def measure(model: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """What `piwsl bench` says of a model."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "bench.json"
        command = [sys.executable, "-W", "ignore", "-m", "fairchem_piwsl", "bench", "--json", str(result)]
        command += ["--config-yml", str(CONFIGS / f"{model}.yml"), "--rounds", str(args.rounds)]
        command += ["--cpu"] if args.cpu else []
        subprocess.run([*command, f"--optim.batch_size={batch}"], cwd=ROOT, check=True)
        return read_json(result) | {"data": CONFIGS.name, "trained_on": CONFIGS.name, "model": model}


if __name__ == "__main__":
    main()
