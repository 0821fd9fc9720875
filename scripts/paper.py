"""The paper's tables and figures, one recipe each (scripts/paper/*.yml).

    python scripts/paper.py                                    list the recipes
    python scripts/paper.py table_A8 --scale smoke             minutes on a CPU, small models
    python scripts/paper.py table_A8 --scale paper             the paper's settings: a GPU, hours to days
    python scripts/paper.py table_A8 --scale paper --only rmd17_aspirin_100/painn --seeds 0    a part of it

Ends with a report in runs/paper/<recipe>_<scale>/report, and every number in results.json beside it. The same command
again goes on where it stopped; parts can run as jobs of their own, and the command without --only then makes the
report of all. Data sets come from `piwsl prepare` or scripts/published_data.py; the small scale of the paper's tables
takes the example data where one is missing. Two steps that train nothing, also while trainings are unfinished:

    python scripts/paper.py map --cost                         what predictions and training steps cost, one after another
    python scripts/paper.py map --publish                      finished runs to docs/results/map.json, beside those there
"""

import argparse
from pathlib import Path
from typing import Any

from example_data import example_data
from publish import shown_pictures
from recipes.carry_out import (
    carry_out,
    finish,
    use_data,
    without_missing_reference,
    write_trainings,
)
from recipes.collect import collect, cost_file, step_file, with_published
from recipes.compare import best_checkpoint
from recipes.cost import prediction_cost, step_cost
from recipes.recipe_file import PlannedRun, Recipe, read_recipe
from recipes.results_figures import draw_all
from recipes.results_file import read_results
from recipes.scale import shrink
from rich.console import Console
from rich.table import Table

from fairchem_piwsl.config import merge, read_yaml
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import errors_as_sentences, write_json

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "s2ef"
RECIPES = ROOT / "scripts" / "paper"
SMALL = RECIPES / "small" / "scale.yml"
PUBLISHED = ROOT / "docs" / "results"


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
    step = parser.add_mutually_exclusive_group()
    step.add_argument(
        "--cost", action="store_true", help="time predictions and training steps of what is trained, and stop"
    )
    step.add_argument(
        "--publish", action="store_true", help="add finished runs to docs/results/<recipe>.json, and stop"
    )
    args = parser.parse_args()
    if args.recipe is None:
        show_recipes()
        return
    with errors_as_sentences("paper.py"):
        run(args)


def run(args: argparse.Namespace) -> None:
    recipe = read_recipe(RECIPES / f"{args.recipe}.yml")
    small = args.scale == "smoke"
    if small and recipe.smoke.instead:
        raise UserError(f"{recipe.name} has no small scale: {recipe.smoke.instead}")
    out = args.out or Path("runs/paper") / f"{recipe.name}_{args.scale}"
    planned = recipe.plan(CONFIGS, small)
    chosen = recipe.plan(CONFIGS, small, args.only)
    if args.cost:
        measure_cost(chosen, out, cpu=args.cpu or small)
    if args.cost or args.publish:
        write_results(recipe, args.scale, planned, out, publish=args.publish)
        return
    tests = further_tests(recipe)
    configs = make_configs(recipe, chosen, args)
    seeds = args.seeds or (recipe.smoke.seeds if small else recipe.seeds)
    trainings = write_trainings(configs, seeds, out)
    carry_out(
        trainings,
        without_missing_reference(recipe.measure),
        out,
        tests=tests,
        side_by_side=args.jobs or (2 if small else 1),
        cpu=args.cpu or small,
    )
    write_results(recipe, args.scale, planned, out)
    print(f"report: {finish(recipe, args.scale, trainings, out)}")


def further_tests(recipe: Recipe) -> dict[str, Path]:
    """Files of a recipe's further test sets; a missing one is found before anything is trained."""
    files = {name: ROOT / path for name, path in recipe.tests.items()}
    for name, path in files.items():
        if not path.is_file():
            raise UserError(
                f"{path} does not exist, the test set {name!r} of {recipe.name}: make it as examples/README.md says."
            )
    return files


def make_configs(
    recipe: Recipe, chosen: dict[str, PlannedRun], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Training configs of the chosen runs, small ones for the small scale."""
    small = args.scale == "smoke"
    data = dict(item.partition("=")[::2] for item in args.data)
    stand_in = example_data if small and recipe.smoke.steps else None
    configs = use_data({name: one.config() for name, one in chosen.items()}, data, stand_in)
    if not small:
        return configs
    scale = read_yaml(SMALL, "small scale")
    for name, config in configs.items():
        own, settings = chosen[name].data, scale
        if recipe.smoke.steps is None:
            settings = merge(scale, {"optim": {"batch_size": own.batch_size}})
        steps = args.steps or recipe.smoke.steps or own.steps
        configs[name] = shrink(config, settings, round(steps * chosen[name].length))
    return configs


def measure_cost(chosen: dict[str, PlannedRun], out: Path, cpu: bool) -> None:
    """The cost of a prediction for each data set and model that has a trained run, and of each one's training step."""
    for name, one in chosen.items():
        finished = sorted(path.parent for path in (out / name).glob("seed*/trained.json"))
        if finished:
            config_file = out / "configs" / f"{name}.yml"
            test = Path(read_yaml(config_file, "config")["dataset"]["test"]["src"])
            cost = prediction_cost(best_checkpoint(finished[0]), test, cost_file(one, out), cpu)
            step = step_cost(config_file, step_file(one, out), cpu)
            print(
                f"{name}: a prediction {1000 * cost['seconds']:.1f} ms, {cost['ns_per_day']:.3g} ns/day; "
                f"a training step {1000 * step:.1f} ms"
            )


def write_results(
    recipe: Recipe, scale: str, planned: dict[str, PlannedRun], out: Path, publish: bool = False
) -> None:
    """Every number of the finished runs as JSON and as pictures: in `out`, or added to what the documentation shows."""
    results = collect(recipe, scale, planned, out)
    if publish and not results["runs"]:
        raise UserError(
            f"{out} holds no finished run of {recipe.name}: run the recipe first, or give its --out."
        )
    path, pictures, only = out / "results.json", out / "report", None
    if publish:
        path, pictures = PUBLISHED / f"{recipe.name}.json", ROOT / "docs" / "images"
        only = shown_pictures()
        published = read_results(path) if path.exists() else {**results, "runs": []}
        results = with_published(results, published, planned)
    write_json(path, results)
    print(f"{len(results['runs'])} runs: {path}", *draw_all(results, pictures, only), sep="\n")


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
