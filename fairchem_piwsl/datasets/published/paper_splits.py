"""The splits of the paper (B.1) for the sizes that a file really has."""

from dataclasses import dataclass, field

from fairchem_piwsl.datasets.splits import Sizes
from fairchem_piwsl.errors import UserError

#: validation sets are no smaller in the paper
MIN_VAL = 100
#: part of a set that is too small for the paper's test set
TEST_SHARE = 0.4


@dataclass(frozen=True)
class PaperSplit:
    """Sizes of one data set in the paper."""

    trainings: tuple[int, ...]  # training set sizes, rising
    test: int
    val: int | None = None  # None: as many as for training, at least 100

    def validation(self, train: int) -> int:
        """Size of the validation set that goes with a training set."""
        return max(train, MIN_VAL) if self.val is None else self.val


@dataclass(frozen=True)
class Request:
    """What the user asked for; sizes that are left out are the paper's."""

    name: str
    train: int | None = None
    val: int | None = None
    test: int | None = None
    seed: int = 0
    molecule: str | None = None  # rmd17, md22, md17_ccsd_t: which, if the files hold several
    level: str = "wb97x_dz"  # ani1x: level of theory
    published_split: str | None = None  # rmd17: number of the split that the authors published


@dataclass(frozen=True)
class Chosen(Sizes):
    """Sizes that were settled on, and what to tell the user."""

    notes: list[str] = field(default_factory=list)


def choose_sizes(paper: PaperSplit, total: int, request: Request) -> Chosen:
    """The paper's sizes, cut down where `total` structures do not suffice.

    The size of the test set depends on `total` alone and never on `train`, so that it is the same for every
    training size. Sizes that the user gave are kept or refused.
    """
    notes = []
    train, val, test = request.train, request.val, request.test
    n_test = paper.test if test is None else test
    if test is None and total < paper.test + paper.trainings[-1] + MIN_VAL:
        n_test = min(paper.test, int(TEST_SHARE * total))
        if n_test < paper.test:
            notes.append(
                f"The set holds {total} structures, too few for a test set of {paper.test} beside training sets of "
                f"up to {paper.trainings[-1]}: for every training size it has {n_test} ({TEST_SHARE:.0%} of the set)."
            )
    room = total - n_test
    n_train = train if train is not None else _largest(paper, room, val)
    if train is None and n_train != paper.trainings[-1]:
        notes.append(
            f"Too few structures for the paper's training set of {paper.trainings[-1]}: it has {n_train}."
        )
    wanted = paper.validation(n_train) if val is None else val
    n_val = wanted if val is not None else min(wanted, room - n_train)
    if n_train < 1 or n_val < (1 if val is None else 0) or n_train + n_val > room:
        raise UserError(
            f"The set holds {total} structures, of which {n_test} are for the test, so that {n_train} for training "
            f"and {max(wanted, 1)} for validation do not fit: lower --train, --val or --test."
        )
    if n_val < wanted:
        notes.append(
            f"The validation set has {n_val} structures, all that is left, where the paper has {wanted}."
        )
    return Chosen(n_train, n_val, n_test, notes)


def _largest(paper: PaperSplit, room: int, val: int | None) -> int:
    """The largest training size of the paper that leaves 100 (or `val`) structures for validation."""
    fitting = [n for n in paper.trainings if n + (MIN_VAL if val is None else val) <= room]
    if not fitting:
        raise UserError(
            f"There are {room} structures for training and validation, fewer than the paper's smallest split needs "
            f"({paper.trainings[0]} + {MIN_VAL if val is None else val}): give --train and --val."
        )
    return fitting[-1]
