"""Results of recipes: the best baseline, changes with intervals, tables in pages, pictures."""

from __future__ import annotations

import re

import helpers_results
import numpy as np
import pytest
from helpers_results import made_up_run, results
from matplotlib.figure import Figure
from recipes.cost import fastest
from recipes.learning_curves import labels_for, size_families
from recipes.results_figures import _changes, _look, draw_all, pareto_front
from recipes.results_file import best_baseline, families, grouped, read_results
from recipes.results_tables import TABLES, fill
from recipes.sensitivity_figure import _chosen, _panel, _position
from scipy import stats

from fairchem_piwsl.analysis import figures
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.report.statistics import paired_change

PNG = b"\x89PNG"


def test_change_is_the_geometric_mean_of_ratios_and_its_interval_that_of_their_logarithms():
    before, values = {0: 6.0, 1: 5.0, 2: 7.0}, {2: 3.5, 0: 3.2, 1: 2.2, 5: 9.0}
    change = paired_change(values, before)
    logarithms = np.log([3.2 / 6, 2.2 / 5, 3.5 / 7])
    low, high = stats.t.interval(0.95, 2, logarithms.mean(), stats.sem(logarithms))
    assert change.mean == pytest.approx((3.2 / 6 * 2.2 / 5 * 3.5 / 7) ** (1 / 3) - 1)
    assert (1 + change.low, 1 + change.high) == pytest.approx((np.exp(low), np.exp(high)))
    assert change.p == pytest.approx(stats.ttest_1samp(logarithms, 0).pvalue)


@pytest.mark.parametrize("shift", [0.1, 0.3, 1.0, 3.0])
def test_interval_excludes_zero_where_p_is_below_five_percent(shift):
    change = paired_change({0: 5.0 - shift, 1: 6.2 - shift, 2: 7.1 - shift}, {0: 5.0, 1: 6.0, 2: 7.5})
    assert (change.low <= 0 <= change.high) == (change.p > 0.05)


def test_no_interval_reaches_below_nothing():
    change = paired_change({0: 0.1, 1: 1.4, 2: 0.2}, {0: 0.8, 1: 1.9, 2: 1.0})
    assert -1 < change.low < change.mean < change.high


def test_one_seed_has_a_change_but_no_interval():
    change = paired_change({0: 3.0}, {0: 6.0})
    assert (change.mean, change.low, change.high, change.p) == (pytest.approx(-0.5), None, None, None)
    assert paired_change({0: 3.0}, {1: 6.0}) is None


def test_best_baseline_has_the_smallest_product_of_errors():
    # energies alone would choose baseline_100, forces alone baseline
    runs = [
        made_up_run("d", "m", "baseline", 0, 10.0, 5.0),
        made_up_run("d", "m", "baseline_30", 0, 6.0, 5.5),
        made_up_run("d", "m", "baseline_100", 0, 5.9, 7.0),
        made_up_run("d", "m", "baseline_longer", 0, 1.0, 1.0, length=1.35),
        made_up_run("d", "m", "auto", 0, 0.1, 0.1),
    ]
    methods = grouped(results(runs))["d", "m"]
    assert best_baseline(methods) == "baseline_30"
    assert best_baseline(methods, longer=True) == "baseline_longer"
    assert best_baseline({"auto": methods["auto"]}) is None


def test_methods_without_force_labels_are_compared_among_themselves():
    methods = grouped(helpers_results.comparison())["rmd17_aspirin_100", "painn"]
    with_labels, without = families(methods)
    assert set(without) == {"energies_only_baseline", "energies_only_auto"}
    assert best_baseline(without) == "energies_only_baseline"
    assert not set(without) & set(with_labels)


def test_comparison_table_holds_what_the_runs_say():
    runs = [made_up_run("d", "m", "baseline", seed, 6.0 + seed, 4.0) for seed in range(3)]
    runs += [made_up_run("d", "m", "auto", seed, 3.0 + 0.5 * seed, 4.2) for seed in range(3)]
    rows = TABLES["comparison"](results(runs), "*").splitlines()[2:]
    assert rows[0] == "| d | m | baseline | 3 | 7.00 ± 1.00 |  | 4.00 ± 0.00 |  |"
    assert rows[1].startswith("| d | m | auto | 3 | 3.50 ± 0.50 | −50.0 % [−50, −50] | 4.20 ± 0.00 | +5.0 % ")
    first = TABLES["short"](results(runs), "*").splitlines()[2]
    assert first == "| baseline | 7.00 ± 1.00 |  | 4.00 ± 0.00 |  |"


def test_change_of_fewer_seeds_says_so_and_stands_beside_errors_of_these_seeds():
    runs = [made_up_run("d", "m", "baseline", seed, 6.0 - seed, 4.0) for seed in range(3)]
    content = results([*runs, made_up_run("d", "m", "auto", 0, 6.3, 4.0)])
    assert "| auto | 1 | 6.30 | +5.0 % (1 of 3 seeds) |" in TABLES["comparison"](content, "*")
    assert "| 6.00 → 6.30 | +5.0 % |" in TABLES["gains"](content, "*")
    page = "<!-- change: r d/m auto energy --><!-- end of change -->"
    assert ">6.00 → 6.30: +5.0 %<" in fill(page, lambda _: content)


def test_gains_table_keeps_runs_without_force_labels_apart():
    rows = TABLES["gains"](helpers_results.comparison(), "rmd17_aspirin_100/painn").splitlines()[2:]
    assert [row.split(" | ")[2] for row in rows] == ["energies, forces", "energies"]
    runs = [made_up_run("d", "m", "baseline", 0, 6.0, 4.0), made_up_run("d", "m", "auto", 0, 3.0, 4.2)]
    [row] = TABLES["gains"](results(runs), "*").splitlines()[2:]
    assert row == "| d | m | energies, forces | 1 | 6.00 → 3.00 | −50.0 % | 4.00 → 4.20 | +5.0 % |"


def test_cost_table_compares_steps_that_were_measured():
    row = TABLES["cost"](helpers_results.comparison(), "rmd17_aspirin_100/painn").splitlines()[2]
    assert row.startswith("| rmd17_aspirin_100 | painn | 34 | 1.32 | 4.0 |")  # baseline_30: 101 s
    unmeasured = made_up_run("d", "m", "baseline", 0, 6.0, 4.0)
    assert TABLES["cost"](results([unmeasured]), "*").splitlines()[2:] == []
    [row] = TABLES["cost"](results([unmeasured | {"step_seconds": 0.05}]), "*").splitlines()[2:]
    assert row == "| d | m | 50 |  |  |  |"


def test_steps_table_has_kernels_where_there_is_a_gpu():
    variant = {"seconds": {"median": 0.04}, "peak_bytes": 1.1e9, "kernel_seconds": 0.01}
    spread = {"median": 1.2, "lower_quartile": 1.1, "upper_quartile": 1.3}
    names = ("piwsl_over_baseline", "three_calls_over_baseline", "piwsl_over_enlarged_batch")
    run = {
        **{"data": "d", "model": "m", "configurations": 3, "structures": 16},
        "variants": {"baseline": variant, "piwsl": variant | {"kernel_seconds": 0.022}},
        "ratios": {name: spread | {"median": 1.2 + i} for i, name in enumerate(names)},
    }
    row = TABLES["steps"](results([run]), "d/*").splitlines()[2]
    ratios = "1.20 [1.10, 1.30] | 2.20 [1.10, 1.30] | 3.20 [1.10, 1.30]"
    assert row == f"| m | 3 × 16 | 40 | {ratios} | 10 → 22 | 1.1 → 1.1 |"
    del run["variants"]["baseline"]["kernel_seconds"], run["variants"]["piwsl"]["kernel_seconds"]
    assert "| 3.20 [1.10, 1.30] |  |" in TABLES["steps"](results([run]), "*")


def test_the_fastest_stretch_counts_and_the_start_does_not():
    step = np.arange(0, 181, 20)
    seconds = 0.1 * step + np.where(step > 100, 5.0, 0.0)  # a pause of 5 s after step 100
    seconds[step < 60] *= 0.01
    assert fastest(step, seconds) == pytest.approx(0.1)


def test_equal_time_table_compares_with_the_longer_baseline_only():
    table = TABLES["equal_time"](helpers_results.comparison(), "rmd17*/painn")
    methods = [line.split(" | ")[2] for line in table.splitlines()[2:]]
    assert methods == ["baseline_longer", "auto"]


def test_hand_chosen_table_names_the_best_setting():
    table = TABLES["hand_chosen"](helpers_results.grid(), "rmd17*")
    best, auto = table.splitlines()[2:]
    # the product of the errors chooses; pitc_0.5_5_0.1 has an energy error of 2.81
    assert best.startswith("| rmd17_aspirin_100 | painn | pitc_0_5_0.025 | 2.83 |")
    assert auto.startswith("|  |  | auto | 2.90 | +2.4 % | 4.10 |")


def test_learning_curves_join_the_sizes_of_a_data_set():
    found = size_families(helpers_results.learning_curve())
    assert set(found) == {"rmd17_aspirin", "small_molecules"}
    assert list(found["rmd17_aspirin"]["auto"]) == [50, 100, 200, 400, 900]
    assert size_families(helpers_results.extrapolation()) == {}


def test_sizes_table_takes_a_pattern_of_data_set_and_model():
    runs = [
        made_up_run(f"d_{n}", model, "auto", 0, energy * n, 1.0, n_train=n)
        for model, energy in (("painn", 1.0), ("escn", 2.0))
        for n in (50, 100)
    ]
    for pattern, cells in {"d_*/painn": "50.00 | 100.00", "*/escn": "100.00 | 200.00"}.items():
        energies = TABLES["sizes"](results(runs), pattern).splitlines()[2]
        assert energies == f"| d | energy RMSE, kcal/mol | auto | {cells} |"
    assert TABLES["sizes"](results(runs), "d/*").count("\n") == 2


def test_labels_for_an_error_follow_the_power_law_between_sizes():
    curve = {50: 8.0, 200: 4.0, 800: 4.0, 900: 1.0}
    assert [labels_for(curve, error) for error in (8.0, 4.0, 1.0)] == pytest.approx([50, 200, 900])
    assert labels_for(curve, 8 / 2**0.5) == pytest.approx(100)  # the error falls as the root of the size
    assert labels_for(curve, 0.9) == np.inf
    assert labels_for(curve, 9.0) == 0


def worth_of(energies):
    """The row of energies of `worth`: two baselines and `auto` with 100 and 400 structures, errors by seed."""
    runs = [
        made_up_run(f"d_{n}", "m", method, seed, error, 1.0, n_train=n)
        for method, by_size in energies.items()
        for n, errors in by_size.items()
        for seed, error in enumerate(errors)
    ]
    return TABLES["worth"](results(runs), "*").splitlines()[2]


def test_worth_is_in_labels_of_the_baseline_that_needs_the_fewest():
    baselines = {"baseline": {100: [8, 8], 400: [4, 4]}, "baseline_30": {100: [9, 9], 400: [3, 6]}}
    # seed 0: 100 * 4 ** (log(9 / 6) / log(9 / 3)) of baseline_30 are fewer than baseline's 177.8; seed 1: baseline's 200
    factors = np.log([4 ** (np.log(9 / 6) / np.log(3)), 4 ** (np.log(8 / 5.5) / np.log(2))])
    low, high = stats.t.interval(0.95, 1, factors.mean(), stats.sem(factors))
    shown = f"{np.exp(factors.mean()):.1f} [{np.exp(low):.1f}, {np.exp(high):.1f}]"
    assert worth_of({**baselines, "auto": {100: [6, 5.5], 400: [1, 1]}}).endswith(f"| {shown} | > 1.0 |")
    assert worth_of({**baselines, "auto": {100: [20], 400: [4]}}).endswith("| < 1.0 | 0.7 |")


def test_worth_takes_only_seeds_with_a_whole_curve():
    baseline = {100: [8, 1], 400: [4]}
    assert worth_of({"baseline": baseline, "auto": {100: [4, 0.1]}}).endswith("| 4.0 |")


def test_grid_table_has_the_last_setting_across():
    runs = [
        made_up_run("d", "m", f"p{c}{e}", 0, 10 * c + e, 1.0, settings={"c_pitc": c, "eps_max": e})
        for c in (1, 2)
        for e in (0.1, 0.2)
    ]
    lines = TABLES["grid"](results(runs), "*").splitlines()
    assert lines[0] == "| data | model | settings | eps_max 0.1: E, F | eps_max 0.2: E, F |"
    assert lines[3] == "| d | m | c_pitc 2 | 20.10, 1.00 | 20.20, 1.00 |"


@pytest.mark.parametrize("name", ["comparison", "learning_curve", "grid", "extrapolation"])
@pytest.mark.parametrize("table", TABLES)
def test_every_table_can_be_made_of_any_results(name, table):
    lines = TABLES[table](getattr(helpers_results, name)(), "*").splitlines()
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert len(columns) == 1


def test_a_page_is_filled_between_its_marks_only():
    content = helpers_results.comparison()
    mark = "<!-- results: made_up comparison tio2_100/* -->\n"
    page = f"before\n\n{mark}old\n<!-- end of results -->\nafter\n"
    filled = fill(page, {"made_up": content}.__getitem__)
    table = TABLES["comparison"](content, "tio2_100/*")
    assert filled == f"before\n\n{mark}{table}<!-- end of results -->\nafter\n"
    assert "aspirin" not in filled
    assert "tio2_100 | painn | auto" in filled
    assert fill(filled, {"made_up": content}.__getitem__) == filled
    for text in ("no marks", "a page about `<!-- results: made_up heat -->` and such"):
        assert fill(text, {}.__getitem__) == text


def test_a_change_within_a_line_is_against_the_best_baseline_of_its_family():
    runs = [made_up_run("d", "m", "baseline", seed, 9.0 + seed, 4.0) for seed in range(3)]
    runs += [made_up_run("d", "m", "baseline_30", seed, 6.0 + seed, 4.0) for seed in range(3)]
    runs += [made_up_run("d", "m", "auto", seed, 3.0 + 0.5 * seed, 4.2) for seed in range(3)]
    mark = "| a <!-- change: r d/m auto energy -->{}<!-- end of change --> b |"
    filled = fill(mark.format("old"), {"r": results(runs)}.__getitem__)
    assert filled == mark.format("7.00 ± 1.00 → 3.50 ± 0.50: −50.0 % [−50, −50]")
    forces = fill(mark.replace("energy", "forces").format(""), {"r": results(runs)}.__getitem__)
    assert "4.00 ± 0.00 → 4.20 ± 0.00: +5.0 %" in forces


@pytest.mark.parametrize(
    ("mark", "sentence"),
    [
        ("r d/m auto energy -->", "lacks its '<!-- end of change -->'"),
        ("r d/m auto energy --> <!-- change: r d/m auto forces --> <!-- end of change -->", "lacks its"),
        ("r d/m auto torque --><!-- end of change -->", "no torque of auto"),
        ("r d/m piwsl energy --><!-- end of change -->", "no energy of piwsl beside a baseline for d/m"),
        ("r other/m auto energy --><!-- end of change -->", "beside a baseline for other/m"),
    ],
)
def test_mistakes_in_a_marked_change_are_sentences(mark, sentence):
    runs = [made_up_run("d", "m", method, 0, 6.0, 4.0) for method in ("baseline", "auto")]
    with pytest.raises(UserError, match=re.escape(sentence)):
        fill(f"<!-- change: {mark}", {"r": results(runs)}.__getitem__)


def test_mistakes_in_a_page_are_sentences(tmp_path):
    with pytest.raises(UserError, match="lacks its"):
        fill("<!-- results: a comparison -->\n", lambda recipe: {})
    twice = "<!-- results: a comparison -->\n<!-- results: a comparison -->\n<!-- end of results -->"
    with pytest.raises(UserError, match="lacks its"):
        fill(twice, lambda recipe: {})
    with pytest.raises(UserError, match="heat is no table; choose one of comparison"):
        fill("<!-- results: a heat -->\n<!-- end of results -->", lambda recipe: {})
    with pytest.raises(UserError, match=r"map\.json does not exist.*paper\.py map --publish"):
        read_results(tmp_path / "map.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="no file of results"):
        read_results(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("comparison", {"heat_map", "cost"}),
        ("learning_curve", {"heat_map", "learning_curves"}),
        ("grid", {"sensitivity"}),
        ("extrapolation", {"heat_map", "temperatures"}),
    ],
)
def test_pictures_are_drawn_where_there_are_numbers(name, pictures, tmp_path):
    drawn = draw_all(getattr(helpers_results, name)(), tmp_path)
    assert {path.stem.removeprefix("made_up_") for path in drawn} == pictures
    assert all(path.read_bytes().startswith(PNG) for path in drawn)


def test_only_chosen_pictures_are_drawn(tmp_path):
    drawn = draw_all(helpers_results.comparison(), tmp_path, {"made_up_cost.png", "another_heat_map.png"})
    assert drawn == list(tmp_path.iterdir()) == [tmp_path / "made_up_cost.png"]


def test_few_finished_runs_are_no_error(tmp_path):
    one = results([made_up_run("d", "m", "baseline", 0, 1.0, 1.0)])
    assert draw_all(one, tmp_path) == []
    assert draw_all(results([]), tmp_path) == []


def test_baseline_of_a_heat_map_is_there_with_no_change():
    rows = dict(_changes(helpers_results.comparison()))
    energy, _ = rows["rmd17 aspirin 100, painn"]["baseline_30"]
    assert (energy.mean, energy.low, energy.high) == (0, 0, 0)
    one = made_up_run("d", "m", "baseline", 0, 1.0, 1.0)
    assert dict(_changes(results([one]))) == {}  # nothing to compare it with


def test_every_baseline_is_dashed():
    names = ["baseline", "auto", "baseline_30", "energies_only_baseline"]
    assert [_look(name, names)["linestyle"] for name in names] == ["--", "-", "--", "--"]
    assert len({_look(name, names)["marker"] for name in names}) == 4


@pytest.mark.parametrize("limits", [(5.6, 13), (2.5, 8), (6, 23), (1.7, 6.3), (1, 1000), (0.04, 30)])
def test_logarithmic_axes_have_at_least_three_numbers(limits):
    axes = Figure().subplots()
    axes.set_xlim(*limits)
    figures.log_scale(axes.xaxis)
    assert 3 <= sum(limits[0] <= tick <= limits[1] for tick in axes.get_xticks()) <= 9


def test_number_of_a_cell_stands_beside_the_star():
    runs = [
        made_up_run("d", "m", "p", 0, 1.0, 1.0, settings={"c_pitc": c, "eps_max": 0.1}) for c in (1.0, 2.0)
    ]
    axes = Figure().subplots()
    _panel(axes, runs, ([1.0, 2.0], [0.1]), "energy_rmse", (1.0, 2.0), star=(0.0, 1.2))
    assert [text.get_position()[1] for text in axes.texts] == [0, 0.7]


def test_pareto_front_is_what_no_other_point_beats():
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in rng.random((50, 2))]
    best = [p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)]
    assert pareto_front(points) == sorted(best)
    assert pareto_front([(1.0, 2.0), (1.0, 1.0), (2.0, 1.0)]) == [(1.0, 1.0)]


def test_point_of_auto_on_the_grid_has_the_weight_of_a_step():
    assert _chosen(helpers_results.grid(), "rmd17_aspirin_100") == pytest.approx((4.0, 0.08))
    assert _chosen(helpers_results.comparison(), "rmd17_aspirin_100") is None
    without_displacement = {"decided": {"weight_pitc": 12.0}}
    assert (
        _chosen(results([made_up_run("d", "painn", "auto", 0, 2.9, 4.1, **without_displacement)]), "d")
        is None
    )


@pytest.mark.parametrize(
    ("value", "place"), [(1, 0), (10, 1), (1000, 2), (100, 1.5), (0.1, -2 / 3), (1e4, 8 / 3)]
)
def test_position_on_an_axis_follows_the_logarithm(value, place):
    assert _position(value, [1, 10, 1000]) == pytest.approx(place)
