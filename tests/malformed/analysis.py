"""evaluate, consistency, profile, md and report with files and options that cannot work."""

from helpers_malformed import Case

F = "{analysis_inputs}"
EVALUATE = f"piwsl evaluate {F}/model.pt --data {F}/data.lmdb"
CONSISTENCY = f"piwsl consistency {F}/model.pt --data {F}/data.lmdb"
PROFILE = f"piwsl profile {F}/model.pt --structure {F}/ethanol.xyz --bond 0 1"
MD = f"piwsl md {F}/model.pt --structure {F}/ethanol.xyz --steps 5"
REPORT = f"piwsl report {F}/runs"


def case(name: str, command: str, names: tuple[str, ...] | str, remedy: str, **files: str | bytes) -> Case:
    """A case with the shared inputs; `files` lie in the folder of the command."""
    named = (names,) if isinstance(names, str) else names
    content = {key.replace("__", "/").replace("_json", ".json"): value for key, value in files.items()}
    return Case(name, f"{command} --cpu", named, remedy, files=content, uses=("analysis_inputs",))


#: checkpoint -> word of its sentence and word of the remedy
CHECKPOINTS = {
    "absent": ("does not exist", "path"),
    "nan": ("NaN", "another"),
    "inf": ("not finite", "earlier"),
    "no_config": ("config", "checkpoint.pt"),
    "no_state_dict": ("state_dict", "checkpoint.pt"),
    "no_normalizers": ("normalizers", "checkpoint.pt"),
    "no_model": ("model", "checkpoint.pt"),
    "no_outputs": ("outputs", "checkpoint"),
    "unknown_model": ("transformer9", "install"),
    "wider": ("do not fit", "checkpoint"),
    "odd_setting": ("depth", "checkpoint"),
    "energy_only": ("forces", "--gradient-forces"),
    "forces_only": ("energy", "checkpoint"),
    "weights": ("weights alone", "checkpoint.pt"),
    "list": ("list", "checkpoint.pt"),
    "module": ("Linear", "trust"),
    "cut": ("cut.pt", "another"),
    "empty": ("empty.pt", "another"),
    "text": ("text.pt", "another"),
    "pickle": ("pickle.pt", "trust"),
    "fairchem2": ("fairchem-core 2", "requirements-fairchem2.txt"),
}
COMMANDS = {
    "evaluate": f"piwsl evaluate {F}/{{}}.pt --data {F}/data.lmdb",
    "consistency": f"piwsl consistency {F}/{{}}.pt --data {F}/data.lmdb",
    "profile": f"piwsl profile {F}/{{}}.pt --structure {F}/ethanol.xyz --bond 0 1",
    "md": f"piwsl md {F}/{{}}.pt --structure {F}/ethanol.xyz --steps 5",
}
#: data set -> word of its sentence and word of the remedy
DATA = {
    "absent.lmdb": ("no such", "path"),
    "cut.lmdb": ("cut off", "prepare"),
    "short.lmdb": ("cut off", "prepare"),
    "zero.lmdb": ("cut off", "prepare"),
    "text.lmdb": ("text.lmdb", "prepare"),
    "none.lmdb": ("empty", "prepare"),
    "strings.lmdb": ("is no PyG record", "prepare"),
    "numbers.lmdb": ("structure 0", "prepare"),
    "folder": ("no *.lmdb", "path"),
    "garbage.extxyz": ("frame 0", "repair"),
    "cut.aselmdb": ("cut off", "repair"),
    "text.aselmdb": ("text.aselmdb", "repair"),
    "empty.xyz": ("empty.xyz", "e"),
}

CASES = [
    *(
        case(f"{command}-checkpoint-{name}", text.format(name, analysis_inputs=F), (f"{name}.pt", word), remedy)
        for command, text in COMMANDS.items()
        for name, (word, remedy) in CHECKPOINTS.items()
    ),
    *(
        case(f"{command}-data-{name}", f"piwsl {command} {F}/model.pt --data {F}/{name}", (name, word), remedy)
        for command in ("evaluate", "consistency")
        for name, (word, remedy) in DATA.items()
    ),
    *(
        case(f"md-structure-{name}", f"piwsl md {F}/model.pt --steps 2 --structure {F}/{name}", (name, word), remedy)
        for name, (word, remedy) in DATA.items()
    ),
    *(  # an output folder that is a file, or below one
        case(f"{name}-out-{where}", f"{command} --out {path}", (f"--out {path}", "no folder"), "another", taken="x")
        for name, command in {"evaluate": EVALUATE, "consistency": CONSISTENCY, "profile": PROFILE, "md": MD,
                              "report": REPORT}.items()
        for where, path in {"file": "taken", "below-a-file": "taken/results"}.items()
    ),
    *(
        case(f"{name}-task-name", f"{command} --task-name mol", ("--task-name",), "leave it out")
        for name, command in {"evaluate": EVALUATE, "consistency": CONSISTENCY, "profile": PROFILE, "md": MD}.items()
    ),
    *(
        case(f"{name}-units", f"{command} --units cal", ("--units cal",), "give one of")
        for name, command in {"evaluate": EVALUATE, "consistency": CONSISTENCY, "profile": PROFILE,
                              "report": REPORT}.items()
    ),
    *(
        case(f"md{option}-{value}", f"{MD} {option} {value}", (option,), "above 0")
        for option in ("--temperature", "--timestep", "--friction", "--bond-threshold", "--rdf-threshold",
                       "--rdf-window")
        for value in ("0", "-1", "nan", "inf")
    ),
    *(
        case(f"md{option}-{value}", f"{MD} {option} {value}", (option,), "--help")
        for option, value in (("--interval", 0), ("--seeds", 0), ("--first-seed", -1), ("--steps", -5),
                              ("--interval", "often"))
    ),
    case("md-ensemble", f"{MD} --ensemble npt", "--ensemble npt", "choose"),
    case("md-precision", f"{MD} --precision half", "half", "choose"),
    case("md-calculator", f"piwsl md --calculator dft --structure {F}/ethanol.xyz --steps 5", "dft", "choose"),
    case("md-checkpoint-and-calculator", f"{MD} --calculator emt", "--calculator", "either"),
    case("md-neither", f"piwsl md --structure {F}/ethanol.xyz --steps 5", "--calculator", "either"),
    case("md-index", f"{MD} --index 7", ("ethanol.xyz", "no number 7"), "1 structures"),
    case("md-reference-of-another", f"{MD} --reference-trajectory {F}/water.xyz", "--reference-trajectory", "same"),
    case("md-one-atom", f"piwsl md --calculator emt --steps 2 --structure {F}/atom.xyz", "atom.xyz", "two atoms"),
    case("md-nowhere", f"piwsl md --calculator emt --steps 2 --structure {F}/nowhere.extxyz",
         ("nowhere.extxyz", "not finite"), "another"),
    case("profile-nowhere", f"piwsl profile --reference emt --bond 0 1 --structure {F}/nowhere.extxyz",
         ("nowhere.extxyz", "not finite"), "another"),
    case("md-reference-absent", f"{MD} --reference-trajectory no.traj", "no.traj", "path"),
    case("evaluate-nowhere", f"piwsl evaluate {F}/model.pt --data {F}/nowhere.extxyz", ("nowhere.extxyz", "not finite"), "another"),
    case("evaluate-infinite-label", f"piwsl evaluate {F}/model.pt --data a.extxyz", ("a.extxyz:0", "not finite"), "another",
         **{"a.extxyz": "2\nProperties=species:S:1:pos:R:3:forces:R:3 energy=1.0 pbc='F F F'\nO 0 0 0 inf 0 0\nH 0 0 1 0 0 0\n"}),
    case("evaluate-unlabelled", f"piwsl evaluate {F}/model.pt --data {F}/unlabelled.xyz", "unlabelled.xyz", "label"),
    case("evaluate-group", f"{EVALUATE} --group-by colour", "--group-by colour", "choose"),
    case("evaluate-limit", f"{EVALUATE} --limit 0", "--limit", "--help"),
    case("evaluate-batch-size", f"{EVALUATE} --batch-size 0", "--batch-size", "--help"),
    case("consistency-dr-reversed", f"{CONSISTENCY} --dr 0.1 0.01", "--dr", "above 0"),
    case("consistency-dr-zero", f"{CONSISTENCY} --dr 0 0.01", "--dr", "above 0"),
    case("consistency-dr-infinite", f"{CONSISTENCY} --dr 0.01 inf", "--dr", "above 0"),
    case("consistency-seed", f"{CONSISTENCY} --seed -1", "--seed", "--help"),
    case("consistency-structures", f"{CONSISTENCY} --structures 0", "--structures", "--help"),
    case("consistency-jacobians", f"{CONSISTENCY} --jacobians -1", "--jacobians", "--help"),
    case("profile-no-such-atom", f"{PROFILE[:-3]}0 99", ("--bond", "99"), "0 to 8"),
    case("profile-one-atom", f"{PROFILE[:-3]}1 1", "--bond", "different"),
    case("profile-not-bonded", f"{PROFILE[:-3]}0 3", "--bond 0 3", "not bonded"),
    case("profile-range-reversed", f"{PROFILE} --range 1.8 0.8", "--range", "shorter"),
    case("profile-range-infinite", f"{PROFILE} --range 0.8 inf", "--range", "shorter"),
    case("profile-points", f"{PROFILE} --points 2", "--points", "--help"),
    case("profile-reference", f"{PROFILE} --reference ccsd", "ccsd", "choose"),
    case("profile-nothing-to-draw", f"piwsl profile --structure {F}/ethanol.xyz --bond 0 1", "checkpoint", "xtb"),
    case("profile-huge-weights", f"piwsl profile {F}/huge.pt --structure {F}/ethanol.xyz --bond 0 1",
         ("huge.pt", "not finite"), "train"),
    case("evaluate-huge-weights", f"piwsl evaluate {F}/huge.pt --data {F}/data.lmdb", ("huge.pt", "not finite"),
         "train"),
    case("report-diverged", f"piwsl report {F}/runs {F}/diverged", ("best_checkpoint.pt", "NaN"), "another"),
    case("report-absent", "piwsl report nowhere", "nowhere", "give folders"),
    case("report-no-runs", "piwsl report .", "no checkpoint", "train"),
    case("report-broken-json", f"piwsl report {F}/runs .", "evaluate.json", "delete", evaluate_json="{{half"),
    case("report-foreign-json", f"piwsl report {F}/runs .", "evaluate.json", "delete",
         evaluate_json='{{"command": "evaluate", "models": ["a", "b"]}}'),
    case("report-paper-dataset", f"{REPORT} --paper-dataset moon", "--paper-dataset moon", "choose"),
    case("report-data-absent", f"{REPORT} --data no.lmdb", "no.lmdb", "path"),
    case("report-data-cut", f"{REPORT} --data {F}/cut.lmdb", "cut.lmdb", "prepare"),
    *(
        case(f"report-run-{name}", "piwsl report runs", (f"runs/{name}/best_checkpoint.pt", word), remedy,
             **{f"runs__{name}__best_checkpoint.pt": content})
        for name, word, remedy, content in (
            ("text", "cannot be read", "another", "text"), ("empty", "cannot be read", "another", b""))
    ),
]  # fmt: skip
