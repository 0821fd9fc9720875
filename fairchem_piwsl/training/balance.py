"""Weights of the terms of a loss from the norms of their gradients.

Each term i of the loss has a gradient g_i over the parameters. The energy labels get the weight w_E at which
|w_E g_E| = energy_share |g_L|, where g_L is the gradient of the other labels; the share can follow from the labels
(`share_of_energies`). All weak terms together, w_W g_W, get the weight at which |w_W g_W| = weak_share |w_E g_E + g_L|.
A term in another unit has another gradient and hence another weight: the product is the same. Norms of single batches
scatter, so that the weights are geometric means. Values limit them: where an output hardly depends on the parameters yet,
its gradient is next to nothing, and the weight that makes up for it would be a thousand times what it has to be at the
next measurement.

What is measured on one batch has to fit the others. Values of weak terms are therefore `bounded`: a batch with larger
residuals has no larger gradient, and a structure at which the model explodes counts like another one. Other point losses
than squares are linear in the residual and need no bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from fairchem.core.common import distutils
from torch import Tensor

from fairchem_piwsl.training.loss_terms import Term

ENERGY, WEAK = "energy", "weak"
#: a squared residual that is rounding alone, (kcal/mol)^2: of atoms on their own, or held in place by symmetry
NEGLIGIBLE = 1e-6
#: of the energy labels, where it follows from them: with 3, TiO2's forces were 6 % worse for one seed, with 1 its energy
LARGEST_SHARE = 2.0

#: A number this many times the mean of those before says that a gradient has vanished, as when an output has gone
#: constant. In 33 healthy runs no later number was more than 23 times the mean; in one that was ruined, 290 to 1e9.
LARGEST_RISE = 50.0

#: Times its share that a term may have of the value of those it is measured against. Equal gradients seldom ask for
#: more: in trainings of PaiNN and eSCN-MD 20 of 380 measurements did. Those of a small eSCN asked for 350 (energy) and
#: 1,000 (PITC) early on, and its forces did not recover.
LARGEST_VALUE = {ENERGY: 1.0, WEAK: 10.0}


def gradient_products(terms: Sequence[Tensor], parameters: Sequence[Tensor], scale: float = 1.0) -> Tensor:
    """Inner products of the gradients of several terms, <g_i, g_j>: `[T, T]`, in double precision.

    With several ranks, each gradient is first averaged over them, as distributed training does. The graph stays.

    Args:
        terms: T scalars with their graph; one without a graph has no gradient.
        parameters: what to differentiate by.
        scale: factor on the terms while they are differentiated, against underflow in half precision.
    """
    rows = [_gradient(term * scale, parameters) for term in terms]
    stacked = torch.stack([distutils.all_reduce(row, average=True) for row in rows]).double() / scale
    return stacked @ stacked.T


def _gradient(term: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Gradient by all parameters as one vector [P]."""
    parts: Iterable[Tensor | None] = [None] * len(parameters)
    if term.requires_grad:
        parts = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(parts, parameters, strict=True)]
    )


def bounded(squares: Tensor, known: Tensor | None = None) -> Tensor:
    """Squared residuals r^2 [B] of a weak term as s log(1 + r^2 / s^2), Cauchy's loss with the scale s held constant.

    Near zero it is r^2 / s; at r = s it has the gradient of |r|; beyond, the gradient falls as 1 / r. A step would be
    about nothing else than a structure where r is a million times too large, and displaced structures are where models
    explode. s is 2.385 standard deviations, the usual choice, which for normal residuals are 5.4 times the power mean
    (mean |r|^(-1/4))^(-4). That one is taken over the structures of all ranks whose residual is not `NEGLIGIBLE`, since
    it is small numbers that rule it, and leaves explosions alone.

    Args:
        squares: r^2 [B] in (kcal/mol)^2.
        known: which structures [B] have a part in the term; all, where left out.
    """
    values = squares.detach()
    counted = values > NEGLIGIBLE if known is None else (values > NEGLIGIBLE) & known
    powers = torch.where(counted, values, torch.inf).pow(-1 / 8)
    total, count = distutils.all_reduce(torch.stack([powers.sum(), counted.sum().to(powers)]))
    scale = 5.4 * torch.where(count > 0, total / count, NEGLIGIBLE ** (-1 / 8)) ** -4
    return scale * torch.log1p(squares / scale**2)


def share_of_energies(energies: Tensor, forces: Tensor) -> float:
    """Share of the gradient for the energy labels, from what forces cannot tell: min(2, s / 1 Angstrom).

    s = std(E) / rms(F) is the length over which forces would have to act to make the energies differ as they do.
    Snapshots of one molecule are about as far apart (0.1 to 0.2 Angstrom), so that forces teach most of the
    energy, and labels of the energy cost them accuracy; molecules of many kinds, or crystals, are not.

    Args:
        energies: labels [B] above the element references, NaN where missing.
        forces: labels [N, 3] in the same unit per Angstrom, NaN where missing.

    Returns:
        The share, at most `LARGEST_SHARE`; 1 where there are no forces.
    """
    known = energies[~energies.isnan()].double()
    force = forces.double().square().nanmean().sqrt()
    spread = float(known.std(correction=0) / force) if len(known) else 0.0
    return min(LARGEST_SHARE, spread) if math.isfinite(spread) else 1.0


def norm_of_sum(products: Tensor, weights: Sequence[float]) -> float:
    """Norm of the weighted sum of gradients, |sum_i w_i g_i|, from their inner products [T, T]."""
    w = torch.tensor(weights, dtype=products.dtype, device=products.device)
    return math.sqrt(max(0.0, float(w @ products @ w)))


def equal_weight(
    products: Tensor, values: Tensor, of: Sequence[float], to: Sequence[float], largest_value: float
) -> float:
    """Factor w with |w g_to| = |g_of|, or the smaller one with w L_to = largest_value L_of; 0 where g_to is 0.

    Args:
        products: inner products of the gradients of all terms [T, T].
        values: of all terms [T].
        of: weights of the terms whose weighted sum is L_of, with the gradient g_of.
        to: the same of L_to.
        largest_value: see `LARGEST_VALUE`.
    """
    norm = norm_of_sum(products, to)
    if norm == 0:
        return 0.0
    value, most = (float(values @ values.new_tensor(weights)) for weights in (to, of))
    equal = norm_of_sum(products, of) / norm
    return min(equal, largest_value * most / value) if value > 0 else equal


class GeometricMean:
    """Running geometric mean of positive numbers: of all at first, later one that forgets with `window` values.

    Left out are 0 (a batch without that label), what is not finite and, later, what is far above the mean: a larger
    weight does not bring back a gradient that has vanished, and destroys a model when the gradient comes back.
    """

    def __init__(self, window: int = 5) -> None:
        self.window = window
        self.count = 0
        self.log = 0.0

    @property
    def value(self) -> float:
        """The mean; 0 before the first number."""
        return math.exp(self.log) if self.count else 0.0

    def add(self, value: float) -> None:
        """Take a number into account, unless it is one of those to be left out."""
        most = math.inf if self.count < self.window else LARGEST_RISE * self.value
        if 0 < value < most:
            self.count += 1
            self.log += (math.log(value) - self.log) / min(self.count, self.window)


class GradientBalance:
    """Weights of the energy labels and of the weak terms, measured now and then while training.

    Args:
        energy_share: multiple of the other labels' gradient; 0 leaves the energy's weight as it is.
        weak_share: multiple of the supervised gradient; 0 leaves the weights of the weak terms as they are.
    """

    def __init__(self, energy_share: float, weak_share: float) -> None:
        self.shares = {ENERGY: energy_share, WEAK: weak_share}
        self.factors = {name: GeometricMean() for name, share in self.shares.items() if share > 0}
        #: what was measured last, for the log: `gradient_<term>`, the norm of each weighted term's gradient
        self.norms: dict[str, float] = {}

    def measure(self, terms: Sequence[Term], parameters: Sequence[Tensor], scale: float = 1.0) -> None:
        """Take the gradients of one batch into account, unless they overflow, as now and then in half precision.

        Args:
            terms: of the loss, with their graph, which stays.
            parameters: what to differentiate by.
            scale: see `gradient_products`.
        """
        products = gradient_products([term.weighted for term in terms], parameters, scale)
        if not products.isfinite().all():
            return
        values = torch.stack([term.weighted.detach().double() for term in terms])
        values = distutils.all_reduce(values, average=True)

        def add(name: str, of: Sequence[float], to: Sequence[float]) -> None:
            if name in self.factors:
                factor = equal_weight(products, values, of, to, LARGEST_VALUE[name])
                self.factors[name].add(self.shares[name] * factor)

        labels = [float(not term.weak and term.name != ENERGY) for term in terms]
        add(ENERGY, of=labels, to=[float(term.name == ENERGY) for term in terms])
        supervised = [0.0 if term.weak else self._factor(term) for term in terms]
        add(WEAK, of=supervised, to=[float(term.weak) for term in terms])
        squares = products.diagonal().tolist()
        self.norms = {
            f"gradient_{term.name}": self._factor(term) * math.sqrt(square)
            for term, square in zip(terms, squares, strict=True)
        }

    def __call__(self, terms: Sequence[Term], ramp: float = 1.0) -> list[Term]:
        """The terms with their present weights; weak ones with the share `ramp` of what was measured for them."""
        parts = [ramp if term.weak and WEAK in self.factors else 1.0 for term in terms]
        return [
            replace(term, weight=part * term.weight * self._factor(term))
            for part, term in zip(parts, terms, strict=True)
        ]

    def log(self, terms: Sequence[Term]) -> dict[str, float | Tensor]:
        """`weight_<term>` of terms that have their weights, and the norms of the latest measurement."""
        return {**{f"weight_{term.name}": term.weight for term in terms}, **self.norms}

    def _factor(self, term: Term) -> float:
        """Present factor on the weight of a term in the config; 1 where nothing was measured yet."""
        mean = self.factors.get(WEAK if term.weak else term.name)
        return mean.value if mean is not None and mean.count else 1.0

    def __str__(self) -> str:
        return ", ".join(
            f"{name} x {mean.value:.3g}"
            if mean.count
            else f"{name} as configured, since nothing was measured"
            for name, mean in self.factors.items()
        )

    def state(self) -> dict[str, dict[str, float]]:
        """What a checkpoint keeps."""
        means = {name: {"count": mean.count, "log": mean.log} for name, mean in self.factors.items()}
        return {**means, "norms": self.norms}

    def load(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Take back what `state` returned; a factor that is not in it starts anew."""
        self.norms = dict(state.get("norms", {}))
        for name, mean in self.factors.items():
            if name in state:
                mean.count, mean.log = int(state[name]["count"]), float(state[name]["log"])
