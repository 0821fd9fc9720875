"""Options that no command can work with."""

from helpers_malformed import Case

CASES = [
    Case("unknown-command", "piwsl prepair a.xyz", ("prepair",), "--help"),
    Case("unknown-option", "piwsl evaluate --dta x", ("--dta",), "--data"),
    Case("missing-option", "piwsl evaluate checkpoint.pt", ("--data",), "--help"),
    Case(
        "no-such-checkpoint",
        "piwsl evaluate no.pt --data {tiny_data}/test.lmdb",
        ("no.pt",),
        "give the path",
        uses=("tiny_data",),
    ),
    Case(
        "references-there",
        "piwsl references a.yml r.npz",
        ("r.npz", "there already"),
        "new",
        files={"r.npz": b"x"},
    ),
    Case("references-npz", "piwsl references a.yml r.txt", ("r.txt", "no .npz"), "new"),
    Case("main-unknown-mode", "main.py --mode trane --config-yml a.yml", ("--mode", "trane"), "train"),
    Case("main-no-config", "main.py --mode train --config-yml a.yml", ("a.yml",), "--config-yml"),
]
