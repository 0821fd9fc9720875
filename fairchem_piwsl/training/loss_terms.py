"""What a step computes: outputs, and the total loss as a sum of named, weighted terms (Eq. 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fairchem_piwsl.losses import Prediction


class Outputs(dict[str, Tensor]):
    """Upstream's outputs at the training structures A, and with them what a step computes besides.

    Args:
        outputs: upstream's, by name.
        at: predictions in kcal/mol at the points `A`, `C` and `B` that were evaluated for the weak terms.
        moved: displacements [N, 3] from A in Angstrom: dr at `C`, dr' at `B`.
    """

    def __init__(
        self,
        outputs: Mapping[str, Tensor],
        at: Mapping[str, Prediction] | None = None,
        moved: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(outputs)
        self.at = at or {}
        self.moved = moved or {}
        #: every term of the loss, raw and weighted
        self.log: dict[str, Tensor] = {}


@dataclass(frozen=True)
class Term:
    """One term of the total loss."""

    #: In the log, `loss_<name>` is the value and `weighted_<name>` its share of the total.
    name: str
    #: A scalar with its graph: in the model's units (supervised) or in kcal/mol (weak; squared with `mse`).
    value: Tensor
    #: Factor of the term, as in the config and with the ramp.
    weight: float
    #: The unit of the supervised energy term in the unit of `value`; None where they agree.
    unit: float | Tensor | None = None
    #: Whether it compares predictions with each other instead of with labels.
    weak: bool = False

    @property
    def weighted(self) -> Tensor:
        """Share of the total loss, in the unit of the supervised energy term."""
        weighted = self.weight * self.value
        return weighted if self.unit is None else weighted / self.unit


def add_up(terms: Sequence[Term]) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss, and what is to be logged of its terms, without graph; terms of one name are logged as one."""
    shares = [term.weighted for term in terms]
    log: dict[str, Tensor] = {}
    for term, share in zip(terms, shares, strict=True):
        for key, value in ((f"loss_{term.name}", term.value), (f"weighted_{term.name}", share)):
            log[key] = log[key] + value.detach() if key in log else value.detach()
    return sum(shares[1:], start=shares[0]), log
