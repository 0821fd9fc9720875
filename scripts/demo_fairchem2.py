"""Train a small direct-force eSCN-MD of fairchem 2 without and with PIWSL on 100 labelled structures; compare them.

    python scripts/demo_fairchem2.py

`make demo-fairchem2` installs everything first. Finished runs are not repeated, interrupted ones go on from their
last checkpoint: remove runs/demo_fairchem2 to start over.
"""

import argparse
from pathlib import Path

from recipes.compare import Result
from recipes.compare_fairchem2 import compare, learning_curve
from recipes.compare_report import as_recipe, plot, present

from fairchem_piwsl.files import check_output_folder, errors_as_sentences

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "fairchem2" / "aspirin_direct.yml"
EXAMPLE = ROOT / "examples" / "aspirin"
TITLE = "Aspirin, 100 labelled structures, direct-force eSCN-MD"


def methods(energy_coefficients: list[float]) -> dict[str, list[str]]:
    """Name -> overrides of the config: the baseline with each coefficient of the energy's loss, and PIWSL."""
    baselines = {
        f"baseline, energy x {value:g}": [
            "runner.callbacks.1.auto=false",
            f"tasks.0.loss_fn.coefficient={value}",
        ]
        for value in energy_coefficients
    }
    return baselines | {"piwsl": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--energy-coefficients", type=float, nargs="+", default=[1.0], help="of the baseline")
    parser.add_argument("--out", type=Path, default=Path("runs/demo_fairchem2"))
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    args = parser.parse_args()
    check_output_folder(args.out)

    chosen = methods(args.energy_coefficients)
    results: list[Result] = compare(CONFIG, chosen, args.seeds, EXAMPLE, args.out, args.jobs)
    plot(results, EXAMPLE / "test.extxyz.gz", args.out / "demo.png", TITLE, learning_curve)
    present(results, args.out, as_recipe(results, "demo_fairchem2", TITLE, "aspirin", "escn_md"))


if __name__ == "__main__":
    with errors_as_sentences("demo_fairchem2.py"):
        main()
