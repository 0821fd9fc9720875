"""The paper's tables and figures, one recipe each (scripts/paper/*.yml).

    python scripts/paper.py                                    list the recipes
    python scripts/paper.py table_A8 --scale smoke             minutes on a CPU, small models
    python scripts/paper.py table_A8 --scale paper             the paper's settings: a GPU, hours to days
    python scripts/paper.py table_A8 --scale paper --only rmd17_aspirin_100/painn --seeds 0    a part of it

Ends with a report in runs/paper/<recipe>_<scale>/report. The same command again goes on where it stopped; parts can
run as jobs of their own, and the command without --only then makes the report of all. Data sets come from
`piwsl prepare`; the small scale takes the example data where one is missing.
"""

import argparse
from pathlib import Path

from example_data import example_data
from recipes.carry_out import (
    carry_out,
    finish,
    relative_lengths,
    use_data,
    without_missing_reference,
    write_trainings,
)
from recipes.recipe_file import read_recipe
from recipes.scale import shrink
from rich.console import Console
from rich.table import Table

from fairchem_piwsl.config import read_yaml
from fairchem_piwsl.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "s2ef"
RECIPES = ROOT / "scripts" / "paper"
SMALL = RECIPES / "small" / "scale.yml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", choices=sorted(path.stem for path in RECIPES.glob("*.yml")))
    parser.add_argument("--scale", choices=("smoke", "paper"), default="smoke")
    parser.add_argument("--only", help="a part of the names of runs, or a pattern such as '*/painn_*'")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--steps", type=int, help="training steps of the small scale")
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=FOLDER", help="another folder for a data set"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, help="trainings side by side; 2 in the small scale, else 1")
    parser.add_argument("--cpu", action="store_true", help="the CPU, although there is a GPU")
    args = parser.parse_args()
    if args.recipe is None:
        show_recipes()
        return
    try:
        run(args)
    except UserError as error:
        parser.exit(2, f"paper.py: {error}\n")


def run(args: argparse.Namespace) -> None:
    recipe = read_recipe(RECIPES / f"{args.recipe}.yml")
    small = args.scale == "smoke"
    if small and recipe.smoke.instead:
        raise UserError(f"{recipe.name} has no small scale: {recipe.smoke.instead}")
    out = args.out or Path("runs/paper") / f"{recipe.name}_{args.scale}"
    data = dict(item.partition("=")[::2] for item in args.data)
    originals = {name: one.config() for name, one in recipe.plan(CONFIGS, small).items()}
    lengths = relative_lengths(originals)
    chosen = {name: originals[name] for name in recipe.plan(CONFIGS, small, args.only)}
    configs = use_data(chosen, data, example_data if small else None)
    if small:
        scale, steps = read_yaml(SMALL, "small scale"), args.steps or recipe.smoke.steps
        configs = {
            name: shrink(config, scale, round(steps * lengths[name])) for name, config in configs.items()
        }
    seeds = args.seeds or (recipe.smoke.seeds if small else recipe.seeds)
    trainings = write_trainings(configs, seeds, out)
    measure = without_missing_reference(recipe.measure)
    carry_out(trainings, measure, out, side_by_side=args.jobs or (2 if small else 1), cpu=args.cpu or small)
    print(f"report: {finish(recipe, args.scale, trainings, out)}")


def show_recipes() -> None:
    """All recipes with the number of their runs."""
    table = Table("recipe", "what", "runs: smoke", "paper")
    for path in sorted(RECIPES.glob("*.yml")):
        recipe = read_recipe(path)
        paper = len(recipe.plan(CONFIGS)) * len(recipe.seeds)
        smoke = len(recipe.plan(CONFIGS, small=True)) * len(recipe.smoke.seeds)
        table.add_row(path.stem, recipe.title, str(smoke), str(paper))
    Console().print(table)


if __name__ == "__main__":
    main()
