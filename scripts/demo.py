"""Train the same small model without and with PIWSL on 100 labelled structures, and compare them.

    python scripts/demo.py

Takes a few minutes on two CPU cores; `make demo` installs everything first. Finished runs are not repeated:
remove runs/demo to start over.
"""

import argparse
from pathlib import Path

from example_data import example_data
from recipes.compare import compare
from recipes.compare_report import as_recipe, plot, present

from fairchem_piwsl.files import check_output_folder, errors_as_sentences

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "s2ef" / "example.yml"
#: the config has PIWSL on; without, it is the stock trainer, bit for bit
METHODS = {"baseline": ["--method", "baseline"], "piwsl": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    args = parser.parse_args()
    check_output_folder(args.out)

    test = example_data() / "test" / "data.lmdb"
    results = compare(CONFIG, METHODS, args.seeds, test, args.out)

    title = "Aspirin, 100 labelled structures, PaiNN"
    plot(results, test, args.out / "demo.png", title)
    present(results, args.out, as_recipe(results, "demo", title, "aspirin", "painn"))


if __name__ == "__main__":
    with errors_as_sentences("demo.py"):
        main()
