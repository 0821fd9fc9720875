"""Config files that cannot be read, circular or conflicting includes, overrides that lead nowhere."""

from collections.abc import Iterator

from helpers_malformed import Case, Content

#: what each command is called with a config, a sweep file or a recipe
TRAIN = "main.py --mode train --cpu --config-yml a.yml"
BENCH = "piwsl bench --cpu --config-yml a.yml"
SWEEP = "piwsl sweep start sweep.yml"

SPACE = "objective: loss\ntrials: 2\nspace: {optim.lr_initial: {type: float, low: 0.1, high: 1.0}}\n"
GOOD = "optim: {lr_initial: 0.1}\nloss_functions: [{energy: {fn: mae}}, {forces: {fn: l2mae}}]\nmodel: {name: painn}\n"

#: what is wrong with a file -> its content, a word that says where or what, the remedy
FILES: dict[str, tuple[Content, str, str]] = {
    "unclosed-bracket": ("optim: {a: 1\nmodel: 3\n", "line", "correct"),
    "tab": ("optim:\n\tlr_initial: 1\n", "line 2", "correct"),
    "two-colons": ("optim: lr_initial: 1\n", "line 1", "correct"),
    "latin-1": (b"title: \xe5ngstr\xf6m\n", "UTF-8", "save it as UTF-8"),
    "utf-16": ("optim: {}\n".encode("utf-16"), "UTF-8", "save it as UTF-8"),
    "binary": (bytes(range(1, 100)), "not valid YAML", "correct"),
    "empty": ("", "empty", "check the path"),
    "comments-only": ("# nothing\n", "empty", "check the path"),
    "list": ("- a\n- b\n", "a list", "key: value"),
    "text": ("hello\n", "text", "key: value"),
    "folder": (lambda path: path.mkdir(), "is a folder", "name a YAML file"),
    "key-twice": ("optim: {a: 1}\nmodel: {}\noptim: {b: 2}\n", "'optim' stands twice", "line 3"),
    "inner-key-twice": ("optim:\n  a: 1\n  a: 2\n", "'a' stands twice", "line 3"),
    "two-documents": ("a: 1\n---\nb: 2\n", "line 2", "correct"),
    "python-object": ("a: !!python/object/apply:os.system ['touch gone']\n", "line 1", "correct"),
    "holds-itself": ("optim: &o {piwsl: *o}\n", "holds itself", "line 1"),
    "no-such-alias": ("optim: *o\n", "line 1", "correct"),
    "no-such-month": ("started: 2024-13-45\n", "month", "correct"),
    "too-deep": ("a: " + "[" * 3000, "too deeply", "correct"),
    "includes-itself": ("includes: [a.yml]\n", "includes itself", "circle"),
    "includes-nothing": ("includes: [gone.yml]\n", "gone.yml", "correct 'includes'"),
    "includes-text": ("includes: base.yml\n", "'includes'", "list of files"),
    "includes-numbers": ("includes: [1]\n", "'includes'", "list of files"),
    "includes-folder": ("includes: [.]\n", "is a folder", "correct 'includes'"),
}

#: further files -> what the sentence names, the remedy
INCLUDES: dict[str, tuple[dict[str, Content], tuple[str, ...], str]] = {
    "circle": (
        {"a.yml": "includes: [b.yml]\n", "b.yml": "includes: [a.yml]\n"},
        ("a.yml", "includes itself"),
        "circle",
    ),
    "conflict": (
        {
            "a.yml": "includes: [b.yml, c.yml]\noptim: {lr: 3}\n",
            "b.yml": "optim: {lr: 1}\n",
            "c.yml": "optim: {lr: 2}\n",
        },
        ("a.yml", "b.yml", "c.yml", "optim.lr"),
        "remove",
    ),
    "broken-part": (
        {"a.yml": "includes: [parts/b.yml]\n", "parts/b.yml": "optim: [\n"},
        ("parts/b.yml", "line 2"),
        "correct",
    ),
    "part-of-a-part-is-missing": (
        {"a.yml": "includes: [b.yml]\n", "b.yml": "includes: [c.yml]\n"},
        ("b.yml", "c.yml"),
        "correct 'includes'",
    ),
}

#: arguments -> what the sentence names, the remedy
OVERRIDES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "bare-word": ("lr_initial", ("lr_initial",), "--key=value"),
    "no-value": ("--optim.lr_initial=", ("--optim.lr_initial=",), "--key=value"),
    "no-key": ("--=3", ("--=3",), "--key=value"),
    "value-after-a-space": ("--optim.lr_initial 4", ("--optim.lr_initial",), "--key=value"),
    "empty-part": ("--optim..lr_initial=4", ("optim..lr_initial",), "write it as"),
    "beyond-the-list": ("--loss_functions.2.energy.fn=mse", ("loss_functions.2", "a list of 2"), "number"),
    "no-list-entry": ("--loss_functions.energy.fn=mse", ("loss_functions.energy",), "number"),
    "through-a-value": ("--model.name.first=3", ("model.name", "'painn'"), "correct the key"),
    "unclosed-list": ("--optim.milestones=[1,2", ("--optim.milestones",), "correct"),
}


def _cases() -> Iterator[Case]:
    for name, (content, word, remedy) in FILES.items():
        yield Case(f"train-{name}", TRAIN, ("a.yml", word), remedy, {"a.yml": content})
    for name in ("two-colons", "empty", "folder", "key-twice", "includes-itself", "includes-nothing"):
        content, word, remedy = FILES[name]
        yield Case(f"bench-{name}", BENCH, ("a.yml", word), remedy, {"a.yml": content})
        sweep = {"sweep.yml": f"base: a.yml\n{SPACE}", "a.yml": content}
        remedy = "correct 'base'" if name == "folder" else remedy
        yield Case(f"sweep-base-{name}", SWEEP, ("a.yml", word), remedy, sweep)
    for name in ("two-colons", "latin-1", "empty", "list", "folder", "key-twice", "too-deep"):
        content, word, remedy = FILES[name]
        yield Case(f"sweep-{name}", SWEEP, ("sweep.yml", word), remedy, {"sweep.yml": content})
        grid: dict[str, Content] = {"a.yml": GOOD, "grid.yml": content}
        yield Case(f"grid-{name}", f"{TRAIN} --sweep-yml grid.yml", ("grid.yml", word), remedy, grid)
    for name, (files, names, remedy) in INCLUDES.items():
        yield Case(f"train-{name}", TRAIN, names, remedy, files)
        yield Case(f"bench-{name}", BENCH, names, remedy, files)
        sweep = {"sweep.yml": f"base: a.yml\n{SPACE}", **files}
        yield Case(f"sweep-base-{name}", SWEEP, names, remedy, sweep)
    for name, (argument, names, remedy) in OVERRIDES.items():
        yield Case(f"train-{name}", f"{TRAIN} {argument}", names, remedy, {"a.yml": GOOD})
        yield Case(f"bench-{name}", f"{BENCH} {argument}", names, remedy, {"a.yml": GOOD})


#: `--method` and what lies there -> what the sentence names, the remedy
METHODS: dict[str, tuple[str, dict[str, Content], tuple[str, ...], str]] = {
    "unknown-method": ("noisy_node", {}, ("--method noisy_node",), "noisy_nodes"),
    "no-method-file": ("mine.yml", {}, ("mine.yml",), "check the path"),
    "broken-method-file": ("mine.yml", {"mine.yml": "optim: ["}, ("mine.yml", "line 1"), "correct"),
    "method-without-weights": ("piwsl", {}, ("--method piwsl",), "set optim.piwsl.c_pitc"),
}


CASES = [
    *_cases(),
    *(
        Case(f"{command}-{name}", f"{line} --method {method}", names, remedy, {"a.yml": GOOD, **files})
        for command, line in {"train": TRAIN, "bench": BENCH}.items()
        for name, (method, files, names, remedy) in METHODS.items()
    ),
    Case(
        "train-method-on-no-block",
        f"{TRAIN} --method baseline",
        ("optim.piwsl",),
        "block of settings",
        {"a.yml": "optim: {piwsl: 3}"},
    ),
    Case("train-data-nowhere", f"{TRAIN} --data gone", ("--data gone",), "does not exist", {"a.yml": GOOD}),
    Case(
        "train-data-of-structures",
        f"{TRAIN} --data a.extxyz",
        ("--data a.extxyz is a file",),
        "piwsl prepare a.extxyz",
        {"a.yml": GOOD, "a.extxyz": "1\n\nH 0 0 0\n"},
    ),
    Case("bench-no-config", BENCH, ("a.yml",), "check the path"),
    Case("sweep-no-file", SWEEP, ("sweep.yml",), "check the path"),
    Case(
        "sweep-parts-conflict",
        SWEEP,
        ("sweep.yml", "b.yml", "c.yml", "optim.lr"),
        "remove",
        {"sweep.yml": f"base: [b.yml, c.yml]\n{SPACE}", "b.yml": "optim: {lr: 1}", "c.yml": "optim: {lr: 2}"},
    ),
    Case(
        "grid-of-a-number",
        f"{TRAIN} --sweep-yml grid.yml",
        ("grid.yml", "optim.lr_initial"),
        "list of values",
        {"a.yml": GOOD, "grid.yml": "optim: {lr_initial: 3}"},
    ),
    Case(
        "grid-through-a-value",
        f"{TRAIN} --sweep-yml grid.yml",
        ("model.name",),
        "correct the key",
        {"a.yml": GOOD, "grid.yml": "model: {name: {first: [1, 2]}}"},
    ),
]
