"""The block `optim.piwsl` of a config, as one frozen dataclass in the paper's symbols and units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.kinds import FLAG, AnyKind, Block, number, one_of, optional, whole
from fairchem_piwsl.units import kcal_in

EnergyUnit = Literal["eV", "kcal/mol", "kJ/mol", "Hartree"]

#: What `auto: true` stands for.
AUTO: dict[str, Any] = {
    "c_pitc": 1.0,
    "weak_share": 0.5,
    "energy_share": None,
    "eps_max": 0.0,
    # of displacements, where there are any
    "magnitude": "fixed",
    "k_2nd": 0.5,
    "every_n_steps": 5,
    "ramp_steps": 1000,
}
#: Of `auto` with displacements: where the energy cannot be differentiated or a setting asks for them. A step with
#: them costs less and teaches less.
AUTO_DISPLACED: dict[str, Any] = {"eps_max": 0.03, "weak_share": 1.0, "every_n_steps": 3}
#: `optim.clip_grad_norm` of `auto` where a config has none: that of the paper's PaiNN. The gradient of a displaced
#: structure can be many times the usual one, and a few such steps ruined a SpinConv that was trained without a limit.
CLIP_GRAD_NORM = 10
#: Weights of the weak terms.
WEIGHTS = ("c_pitc", "c_pisc", "c_wl")
#: Steps from one measurement of the gradients to the next, about: measurements are made at weak steps.
STEPS_BETWEEN_MEASUREMENTS = 60


@dataclass(frozen=True)
class PIWSLSettings:
    """Every setting of the weak losses; symbols as in the paper, energies in kcal/mol, lengths in Angstrom.

    Paste into a config (Table A3, case D):

    ```yaml
    optim:
      piwsl:
        c_pitc: 1.2
        c_pisc: 0.01
        eps_max: 0.025
    ```
    """

    #: Weight of the Taylor-expansion consistency PITC (Eq. 3).
    c_pitc: float = 0.0
    #: Weight of the spatial consistency PISC (Eq. 4).
    c_pisc: float = 0.0
    #: Weight of the weak label of the rival method (Eq. A2).
    c_wl: float = 0.0
    #: Train on displaced structures with the labels of the undisplaced ones (Noisy Nodes, the other rival).
    noisy_nodes: bool = False

    #: Largest displacement of a component (`uniform`) or of an atom (`sphere`, `adversarial`), Angstrom.
    #: 0: PITC in the limit of small displacements, all directions at once (`losses.pitc_limit`).
    eps_max: float = 0.01
    #: 0: first order, as in the paper's tables; 0.5: trapezoid rule, exact on a quadratic surface.
    k_2nd: float = 0.0
    #: Which two paths PISC compares (Eqs. A7, A8, A9).
    pisc_case: Literal[1, 2, 3] = 1
    #: Point loss l of every weak term (Table A12).
    point_loss: Literal["mse", "mae", "relu"] = "mse"
    #: Forces in the weak label: of the data (WL) or the model's own (WL + FP, Table A17).
    wl_forces: Literal["reference", "predicted"] = "reference"

    #: Direction of the displacements (Sec. B.1, Eq. 6, Eq. 7).
    perturbation: Literal["uniform", "sphere", "adversarial"] = "uniform"
    #: Magnitude eps: drawn from U(0, eps_max) for each structure, or always eps_max.
    magnitude: Literal["drawn", "fixed"] = "drawn"
    #: Share of a structure's free atoms that move (Table A14).
    fraction: float = 1.0
    #: Longest displacement, as a share of the structure's shortest interatomic distance (Sec. 4.4).
    max_bond_fraction: float = 0.3

    #: First training step with weak terms.
    start_step: int = 0
    #: Steps over which their weights, or their share, grow linearly from zero, counted from `start_step`.
    ramp_steps: int = 0
    #: Evaluate the weak terms at every n-th step only.
    every_n_steps: int = 1

    #: Settings that follow from data and model while training: see `AUTO`; whatever is set beside it stays.
    auto: bool = False
    #: All weak terms together get this multiple of the norm of the supervised gradient; their weights then say
    #: only how they share it. 0: the weights as they are.
    weak_share: float = 0.0
    #: The energy labels get this multiple of the norm of the other labels' gradient. 0: the coefficient of
    #: `loss_functions`; null: the multiple follows from the labels (`training.balance.share_of_energies`).
    energy_share: float | None = 0.0

    #: Energy unit of the labels; forces are in this unit per Angstrom.
    energy_unit: EnergyUnit = "eV"
    #: Displaced structures use the neighbour list of the undisplaced one; `false` builds each list anew.
    share_graph: bool = True
    #: Report the PITC residual of the validation set; null: whenever a weak term is on.
    validate_consistency: bool | None = None

    def __post_init__(self) -> None:
        SETTINGS.check(asdict(self), "optim.piwsl")
        if self.noisy_nodes and self.weak:
            raise UserError(
                "optim.piwsl.noisy_nodes is a method of its own; set c_pitc, c_pisc and c_wl to 0 to use it."
            )
        if self.noisy_nodes and self.perturbation == "adversarial":
            raise UserError(
                "optim.piwsl.perturbation 'adversarial' needs the errors at the undisplaced structures, "
                "which noisy_nodes never evaluates; use 'uniform' or 'sphere'."
            )
        if self.eps_max == 0 and (self.c_pisc or self.c_wl or self.noisy_nodes or self.point_loss != "mse"):
            raise UserError(
                "optim.piwsl.eps_max 0 is the limit of PITC alone, with point_loss mse; give a displacement in "
                "Angstrom for c_pisc, c_wl, noisy_nodes and other point losses."
            )

    @classmethod
    def from_config(cls, block: Mapping[str, Any] | None) -> PIWSLSettings:
        """Build settings from `optim.piwsl`; no block means that everything is off.

        Raises:
            UserError: an unknown key or an impossible value, named with the remedy.
        """
        block = {} if block is None else block
        SETTINGS.check(block, "optim.piwsl")
        if block.get("auto") is True:
            by_hand = any(name in block for name in WEIGHTS)
            not_balanced = {"c_pitc": 0.0, "weak_share": 0.0, "ramp_steps": 0} if by_hand else {}
            displaced = AUTO_DISPLACED if by_hand or block.get("eps_max") else {}
            block = {**AUTO, **displaced, **not_balanced, **block}
        return cls(**block)

    @property
    def weak(self) -> bool:
        """Whether any weak term has a weight."""
        return self.c_pitc > 0 or self.c_pisc > 0 or self.c_wl > 0

    @property
    def differentiates(self) -> bool:
        """Whether PITC compares the forces at A with the gradient of the energy there, without displacements."""
        return self.c_pitc > 0 and self.eps_max == 0

    @property
    def points(self) -> tuple[str, ...]:
        """Displaced configurations whose predictions a weak term compares: C, B or both."""
        pisc_needs_c = self.c_pisc > 0 and (self.pisc_case != 2 or self.k_2nd > 0)
        needs_c = (self.c_pitc > 0 and not self.differentiates) or self.c_wl > 0 or pisc_needs_c
        return ("C",) * needs_c + ("B",) * (self.c_pisc > 0)

    @property
    def validates_consistency(self) -> bool:
        """Whether validation reports the PITC residual."""
        return self.weak if self.validate_consistency is None else self.validate_consistency

    @property
    def kcal_per_label_unit(self) -> float:
        """One energy unit of the labels in kcal/mol, for which the paper's coefficients hold."""
        return kcal_in(self.energy_unit)

    def ramp(self, step: int) -> float:
        """Factor on the weak weights at a training step (counted from 1), 0 where they are not evaluated."""
        elapsed = step - max(self.start_step, 1)
        if elapsed < 0 or elapsed % self.every_n_steps:
            return 0.0
        return min(1.0, (elapsed + 1) / self.ramp_steps) if self.ramp_steps else 1.0

    @property
    def bounds(self) -> bool:
        """Whether squared residuals enter by Cauchy's loss (`training.balance.bounded`)."""
        return self.weak_share > 0 and self.point_loss == "mse"

    @property
    def balances(self) -> bool:
        """Whether any weight follows from the gradients."""
        return self.energy_share != 0 or (self.weak_share > 0 and self.weak)

    def measures(self, step: int) -> bool:
        """Whether the gradients are measured at a training step (counted from 1).

        Not at the first ones: force heads start near zero and give hardly a gradient, so that the energy labels
        would get next to no weight while the model takes its direction, which costs forces to the end. Steps before
        `start_step` measure the energy alone.
        """
        elapsed = step - max(self.start_step, 1)
        interval = self.every_n_steps * math.ceil(STEPS_BETWEEN_MEASUREMENTS / self.every_n_steps)
        return self.balances and step > STEPS_BETWEEN_MEASUREMENTS and elapsed % interval == 0

    def without_weak_terms(self) -> PIWSLSettings:
        """These settings with all weak terms off, and the balances that are not set by hand."""
        off: dict[str, Any] = dict.fromkeys((*WEIGHTS, "weak_share"), 0.0)
        return replace(self, auto=False, energy_share=self.energy_share or 0.0, **off)

    def counts_from(self, num_steps: int) -> int:
        """First step of a run of `num_steps` whose validation may choose the best checkpoint.

        It is the first with full weak weights, or, where the run ends before it, with any at all.
        """
        if not (self.weak or self.noisy_nodes):
            return 0
        start = max(self.start_step, 1)
        full = start + max(self.ramp_steps, 1) - 1
        return full if full <= num_steps else start


#: what lies within the type of a setting, but makes no sense
RANGES = {
    "c_pitc": number(low=0),
    "c_pisc": number(low=0),
    "c_wl": number(low=0),
    "eps_max": number(low=0),
    "k_2nd": number(low=0, high=0.5),
    "fraction": number(above=0, high=1),
    "max_bond_fraction": number(above=0, below=0.5),
    "start_step": whole(0),
    "ramp_steps": whole(0),
    "every_n_steps": whole(1),
    "weak_share": number(low=0),
    "energy_share": optional(number(low=0)),
}


def _kind(annotation: Any) -> AnyKind:
    choices = get_args(annotation)
    if choices:
        return optional(FLAG) if bool in choices else one_of(choices)
    return {bool: FLAG, int: whole(), float: number()}[annotation]


SETTINGS = Block(
    {name: RANGES.get(name) or _kind(kind) for name, kind in get_type_hints(PIWSLSettings).items()}
)
