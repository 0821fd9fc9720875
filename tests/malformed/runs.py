"""main.py with checkpoints that are none, names and flags that would break a batch script, places that cannot be written."""

from helpers_malformed import Case
from helpers_run_inputs import CONFIG

R = "{run_inputs}"
CONFIG_YML = f"--config-yml {R}/{CONFIG} --cpu --run-dir runs"
TRAIN = f"main.py --mode train {CONFIG_YML}"
SUBMIT = f"{TRAIN} --submit --logdir logs"
NOT_ONE = "is not a fairchem checkpoint"

#: checkpoint -> word of its sentence and word of the remedy, for every mode
CHECKPOINTS = {
    "absent": ("absent.pt does not exist", "path"),
    "cut": ("cut.pt cannot be read", "another --checkpoint"),
    "empty": ("empty.pt cannot be read", "another --checkpoint"),
    "text": ("text.pt cannot be read", "another --checkpoint"),
    "folder": ("folder.pt", "path"),
    "pickle": ("pickle.pt is a plain pickle", "--trust-checkpoint"),
    "old_format": ("format before torch 1.6", "--trust-checkpoint"),
    "code": ("posix.mkdir", "--trust-checkpoint"),
    "module": ("Linear", "--trust-checkpoint"),
    "list": (f"{NOT_ONE}: it holds an object of type list", "checkpoint.pt"),
    "weights": (f"{NOT_ONE}: it holds weights alone", "checkpoint.pt"),
    "no_config": (f"{NOT_ONE}: it has no 'config'", "checkpoint.pt"),
    "no_state_dict": (f"{NOT_ONE}: it has no 'state_dict'", "checkpoint.pt"),
    "no_normalizers": (f"{NOT_ONE}: it has no 'normalizers'", "checkpoint.pt"),
    "no_model": (f"{NOT_ONE}: it has a config without a model", "checkpoint.pt"),
    "numbers": (f"{NOT_ONE}: it has a 'state_dict' that is not a dict of tensors", "checkpoint.pt"),
    "nan": ("nan.pt has weights that are NaN", "another"),
    "other_model": ("holds a model 'painn' whose weights do not fit", "hyperparameters"),
    "wider": ("holds a model 'schnet' whose weights do not fit", "hyperparameters"),
}  # fmt: skip

#: flags of a training -> word of the sentence and word of the remedy
FLAGS = {
    "--identifier 'a\nb'": ("--identifier", "letters"),
    "--identifier 'a/../../b'": ("--identifier", "letters"),
    "--identifier ..": ("--identifier", "letters"),
    "--identifier %j": ("--identifier", "letters"),
    "--identifier 'two words'": ("--identifier", "letters"),
    "--identifier '$(touch x)'": ("--identifier", "letters"),
    "--timestamp-id ../up": ("--timestamp-id", "letters"),
    "--timestamp-id 'a\nb'": ("--timestamp-id", "letters"),
    "--seed -1": ("--seed -1", "from 0"),
    "--seed 4294967296": ("--seed 4294967296", "from 0"),
    "--seed one": ("--seed", "--help"),
    "--seeds 0 1 0": ("--seeds names 0 2 times", "once"),
    "--method baseline auto baseline": ("--method names baseline 2 times", "once"),
    "--seeds 0 -5": ("--seeds", "from 0"),
    "--num-gpus 0": ("--num-gpus", "at least 1"),
    "--num-gpus -2": ("--num-gpus", "at least 1"),
    "--num-nodes 0": ("--num-nodes", "at least 1"),
    "--print-every 0": ("--print-every", "at least 1"),
    "--gp-gpus 0": ("--gp-gpus", "at least 1"),
    "--run-dir file": ("--run-dir", "another"),
    "--run-dir 'a\nb'": ("--run-dir", "folder"),
}  # fmt: skip

#: flags of a job -> word of the sentence and word of the remedy
JOBS = {
    "--slurm-partition 'gpu\ntouch x'": ("--slurm-partition", "sinfo"),
    "--slurm-partition 'a b'": ("--slurm-partition", "sinfo"),
    "--slurm-account '$(id)'": ("--slurm-account", "sinfo"),
    "--slurm-qos '; id'": ("--slurm-qos", "sinfo"),
    "--slurm-timeout -3": ("--slurm-timeout", "at least 1"),
    "--slurm-timeout 0": ("--slurm-timeout", "at least 1"),
    "--slurm-mem 0": ("--slurm-mem", "at least 1"),
    "--logdir l%j": ("--logdir", "without"),
    "--logdir 'a\nb'": ("--logdir", "folder"),
    "--slurm.constraint='a\nb'": ("slurm.constraint", "one line"),
    "--slurm.signal_delay_s=-1": ("slurm.signal_delay_s", "at least 1"),
    "--slurm.setup=ls": ("slurm.setup", "list"),
}  # fmt: skip


def cases_of_flags(table: dict[str, tuple[str, str]], command: str) -> list[Case]:
    """One case for each row; the command may have written into a file named `file`."""
    return [
        Case(
            " ".join(flags.split()).replace("/", "|"),
            f"{command} {flags}",
            (said,),
            remedy,
            files={"file": "not a folder"},
            uses=("run_inputs",),
        )
        for flags, (said, remedy) in table.items()
    ]


CASES = [
    *(
        Case(
            f"{mode}-{name}",
            f"main.py --mode {mode} {CONFIG_YML} --checkpoint {R}/{name}.pt",
            (said,),
            remedy,
            uses=("run_inputs",),
        )
        for name, (said, remedy) in CHECKPOINTS.items()
        for mode in ("train", "validate", "predict")
    ),
    *(
        Case(f"fine-tune-{name}", f"{TRAIN} --optim.finetune_from={R}/{name}.pt", (f"{name}.pt", said), remedy, uses=("run_inputs",))
        for name, said, remedy in (
            ("cut", "cannot be read", "another optim.finetune_from"),
            ("code", "posix.mkdir", "--trust-checkpoint"),
            ("list", NOT_ONE, "optim.finetune_from"),
            ("wider", "do not fit", "hyperparameters"),
        )
    ),
    *cases_of_flags(FLAGS, TRAIN),
    *cases_of_flags(JOBS, SUBMIT),
    Case(
        "weights-to-train-from",
        f"{TRAIN} --checkpoint {R}/best_checkpoint.pt",
        ("best_checkpoint.pt holds weights without optimizer",),
        "optim.finetune_from",
        uses=("run_inputs",),
    ),
    Case(
        "other-settings",
        f"main.py --mode train --config-yml {R}/{CONFIG} --cpu --run-dir {R}/runs --timestamp-id done --seed 7",
        ("seed was 0 and is 7",),
        "--timestamp-id",
        uses=("run_inputs",),
    ),
    *(
        Case(f"{mode}-nothing", f"main.py --mode {mode} {CONFIG_YML}", ("--checkpoint",), "add", uses=("run_inputs",))
        for mode in ("validate", "predict", "run-relaxations")
    ),
    Case("no-mode", f"main.py {CONFIG_YML}", ("--mode is missing",), "give train", uses=("run_inputs",)),
]  # fmt: skip
