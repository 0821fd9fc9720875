"""The weak losses on surfaces whose energies and forces are known analytically."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fairchem_piwsl.losses import (
    Prediction,
    leg_residual,
    pisc,
    pitc,
    pitc_limit,
    point_loss,
    taught_by_labels,
)

SIZES = torch.tensor([3, 1, 5])
BATCH = torch.repeat_interleave(torch.arange(3), SIZES)
NUM_ATOMS = int(SIZES.sum())
ALL_FREE = torch.ones(NUM_ATOMS, dtype=torch.bool)
EPS = np.finfo(float).eps


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


POS = rand(NUM_ATOMS, 3, seed=10)
DR, DR_B = 0.1 * rand(NUM_ATOMS, 3, seed=11), 0.1 * rand(NUM_ATOMS, 3, seed=12)


# ------------------------------------------------------------------ analytic surfaces


def per_structure(values: Tensor) -> Tensor:
    return torch.stack([values[i == BATCH].sum() for i in range(3)])


def linear(pos: Tensor) -> Prediction:
    slope = rand(NUM_ATOMS, 3, seed=1)
    return Prediction(per_structure((slope * pos).sum(-1)) + 7.0, -slope)


def quadratic(pos: Tensor) -> Prediction:
    """Every coordinate coupled with every other of its structure."""
    coupling = rand(3 * NUM_ATOMS, 3 * NUM_ATOMS, seed=2)
    same = (BATCH[:, None] == BATCH[None]).repeat_interleave(3, 0).repeat_interleave(3, 1)
    hessian = (coupling + coupling.T) * same
    flat = pos.reshape(-1)
    gradient = (hessian @ flat).reshape(-1, 3)
    return Prediction(per_structure(0.5 * (pos * gradient).sum(-1)) + linear(pos).energy,
                         -gradient + linear(pos).forces)  # fmt: skip


def anharmonic(pos: Tensor) -> Prediction:
    """Sines of all pair differences in a structure: derivatives of every order."""
    energy, gradient = torch.zeros(3, dtype=pos.dtype), torch.zeros_like(pos)
    for i in range(3):
        own = i == BATCH
        x = pos[own].reshape(-1)
        difference = x[:, None] - 0.7 * x[None] + 0.3
        energy[i] = torch.sin(difference).sum()
        slope = torch.cos(difference)
        gradient[own] = (slope.sum(1) - 0.7 * slope.sum(0)).reshape(-1, 3)
    return Prediction(energy, -gradient)


SURFACES = {"linear": linear, "quadratic": quadratic, "anharmonic": anharmonic}


@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES.keys())
def test_the_surfaces_of_these_tests_are_consistent(surface):
    direction, h = rand(NUM_ATOMS, 3, seed=5), 1e-5
    slope = (surface(POS + h * direction).energy - surface(POS - h * direction).energy) / (2 * h)
    torch.testing.assert_close(
        slope, -per_structure((surface(POS).forces * direction).sum(-1)), rtol=1e-7, atol=1e-7
    )


def order(residual) -> np.ndarray:
    """Exponent p of residual(h) ~ h^p for each structure, from a straight line in a log-log plot."""
    scales = np.geomspace(1e-3, 3e-2, 7)
    values = np.array([residual(h).abs().numpy() for h in scales])
    return np.polyfit(np.log(scales), np.log(values), 1)[0]


# ------------------------------------------------------------------ PITC


@pytest.mark.parametrize(("k", "expected"), [(0.0, 2), (0.25, 2), (0.5, 3)])
def test_order_of_convergence_of_the_pitc_residual(k, expected):
    def residual(h: float) -> Tensor:
        return leg_residual(anharmonic(POS), anharmonic(POS + h * DR), h * DR, BATCH, k)

    np.testing.assert_allclose(order(residual), expected, atol=0.1)


@pytest.mark.parametrize(("kind", "power"), [("mse", 2), ("mae", 1)])
@pytest.mark.parametrize(("k", "expected"), [(0.0, 2), (0.5, 3)])
def test_order_of_the_pitc_loss(k, expected, kind, power):
    def loss(h: float) -> Tensor:
        return pitc(anharmonic(POS), anharmonic(POS + h * DR), h * DR, BATCH, k, kind)

    np.testing.assert_allclose(order(loss), power * expected, atol=0.1 * power)


@pytest.mark.parametrize(("surface", "k"), [(linear, 0.0), (linear, 0.25), (linear, 0.5), (quadratic, 0.5)])
def test_residual_vanishes_where_the_expansion_is_exact(surface, k):
    a, c = surface(POS), surface(POS + DR)
    rounding = 100 * EPS * a.energy.abs().max()
    assert (leg_residual(a, c, DR, BATCH, k).abs() <= rounding).all()
    assert (pitc(a, c, DR, BATCH, k) <= rounding**2).all()


def test_residual_of_a_quadratic_surface_is_its_curvature():
    """At k = 0 what is missed is half of dr H dr, at 1/4 a quarter: (1/2 - k) of the second-order work."""
    a, c = quadratic(POS), quadratic(POS + DR)
    curvature = per_structure(((a.forces - c.forces) * DR).sum(-1))
    for k in (0.0, 0.1, 0.25, 0.4):
        torch.testing.assert_close(leg_residual(a, c, DR, BATCH, k), -(0.5 - k) * curvature)


def test_trapezoid_rule_is_the_same_there_and_back():
    a, c = anharmonic(POS), anharmonic(POS + DR)
    there, back = leg_residual(a, c, DR, BATCH, 0.5), leg_residual(c, a, -DR, BATCH, 0.5)
    torch.testing.assert_close(there, -back)


@pytest.mark.parametrize("k", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("kind", ["mse", "mae", "relu"])
def test_pitc_against_numpy(k, kind):
    a = Prediction(rand(3), rand(NUM_ATOMS, 3, seed=1))
    c = Prediction(a.energy + 0.01 * rand(3, seed=2), rand(NUM_ATOMS, 3, seed=3))
    np.testing.assert_allclose(pitc(a, c, DR, BATCH, k, kind), numpy_loss(a, c, DR, k, kind), rtol=1e-12)


def numpy_loss(start: Prediction, end: Prediction, step: Tensor, k: float, kind: str) -> list[float]:
    """l(E_end, T(start)) structure by structure, as printed in the paper."""
    values = []
    for i in range(3):
        own = (i == BATCH).numpy()
        forces = (1 - k) * start.forces.numpy()[own] + k * end.forces.numpy()[own]
        d, energy = step.numpy()[own], float(end.energy[i])
        residual = abs(float(start.energy[i]) - np.sum(d * forces) - energy)
        values.append(
            {
                "mse": residual**2,
                "mae": residual,
                "relu": max(0.0, residual - abs(energy) * np.linalg.norm(d) ** 2),
            }[kind]
        )
    return values


def test_relu_ignores_what_second_order_explains():
    """Eq. A10: nothing below |E_C| |dr|^2, the excess above."""
    residual, squared, energy = torch.tensor([0.5, -3.0]), torch.tensor([0.1, 0.1]), torch.tensor([10.0, -10])
    assert point_loss(residual, "relu", energy, squared).tolist() == [0.0, 2.0]


def test_unknown_point_loss():
    with pytest.raises(ValueError, match="huber"):
        point_loss(rand(1), "huber", rand(1), rand(1))  # type: ignore[arg-type]


# ------------------------------------------------------------------ PITC without displacements


@pytest.mark.parametrize("k", [0.0, 0.5])
def test_limit_is_that_of_pitc_over_all_directions(k):
    """Displacements of +-h along each of the 3n axes: their sum of PITC / 2 h^2 tends to 3n times the limit, as h^2."""
    wrong = rand(NUM_ATOMS, 3, seed=7)  # what the forces of this model miss

    def at(pos: Tensor) -> Prediction:
        return Prediction(anharmonic(pos).energy, anharmonic(pos).forces + wrong)

    def difference(h: float) -> Tensor:
        total = torch.zeros(3, dtype=POS.dtype)
        for axis in torch.eye(3 * NUM_ATOMS, dtype=POS.dtype).view(-1, NUM_ATOMS, 3):
            for step in (h * axis, -h * axis):
                total += pitc(at(POS), at(POS + step), step, BATCH, k) / (2 * h**2)
        return total / (3 * SIZES) - pitc_limit(at(POS).forces, -anharmonic(POS).forces, BATCH, ALL_FREE, 3)

    np.testing.assert_allclose(order(difference), 2, atol=0.1)


@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES.keys())
def test_limit_of_consistent_surfaces_is_zero(surface):
    assert (pitc_limit(surface(POS).forces, -surface(POS).forces, BATCH, ALL_FREE, 3) == 0).all()


def test_limit_of_a_structure_is_its_own_mean():
    forces, gradient = rand(NUM_ATOMS, 3, seed=1), rand(NUM_ATOMS, 3, seed=2)
    expected = [float((forces + gradient)[i == BATCH].square().mean()) for i in range(3)]
    np.testing.assert_allclose(pitc_limit(forces, gradient, BATCH, ALL_FREE, 3), expected, rtol=1e-12)


def test_fixed_atoms_have_no_part_in_the_limit():
    forces, gradient = (rand(NUM_ATOMS, 3, seed=s).requires_grad_() for s in (1, 2))
    free = torch.arange(NUM_ATOMS) % 2 == 0
    free[BATCH == 1] = False  # a structure of which no atom can move
    values = pitc_limit(forces, gradient, BATCH, free, 3)
    kept = (forces + gradient).detach()
    expected = [float(kept[(i == BATCH) & free].square().mean()) for i in (0, 2)]
    np.testing.assert_allclose(values.detach(), [expected[0], 0.0, expected[1]], rtol=1e-12)
    values.sum().backward()
    for one in (forces, gradient):
        assert torch.equal((one.grad != 0).any(-1), free)


def test_forces_with_labels_are_constants():
    forces, gradient = (rand(NUM_ATOMS, 3, seed=s).requires_grad_() for s in (1, 2))
    labelled = torch.arange(NUM_ATOMS) % 2 == 0
    a = taught_by_labels(Prediction(rand(3), forces, gradient), labelled)
    pitc_limit(a.forces, a.gradient, BATCH, ALL_FREE, 3).sum().backward()
    assert ((forces.grad == 0).all(-1) == labelled).all()
    assert (gradient.grad != 0).all()


# ------------------------------------------------------------------ PISC


def predictions(surface) -> tuple[Prediction, Prediction, Prediction]:
    return surface(POS), surface(POS + DR_B), surface(POS + DR)


@pytest.mark.parametrize("case", [1, 2, 3])
@pytest.mark.parametrize(("k", "expected"), [(0.0, 2), (0.5, 3)])
def test_order_of_pisc(case, k, expected):
    def loss(h: float) -> Tensor:
        a, b, c = anharmonic(POS), anharmonic(POS + h * DR_B), anharmonic(POS + h * DR)
        return pisc(a, b, c, h * DR, h * DR_B, BATCH, case, k, "mae")

    np.testing.assert_allclose(order(loss), expected, atol=0.15)


@pytest.mark.parametrize("case", [1, 2, 3])
@pytest.mark.parametrize(("surface", "k"), [(linear, 0.0), (linear, 0.5), (quadratic, 0.5)])
def test_pisc_vanishes_where_the_expansion_is_exact(case, surface, k):
    a, b, c = predictions(surface)
    assert (pisc(a, b, c, DR, DR_B, BATCH, case, k, "mae") <= 200 * EPS * a.energy.abs().max()).all()


@pytest.mark.parametrize("k", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["mse", "mae", "relu"])
def test_cases_are_legs_between_b_and_c(k, kind):
    """Case 1 is the leg B to C (Eq. A7), case 3 the leg C to B (Eq. A9)."""
    a, b, c = predictions(anharmonic)
    np.testing.assert_allclose(
        pisc(a, b, c, DR, DR_B, BATCH, 1, k, kind), numpy_loss(b, c, DR - DR_B, k, kind), rtol=1e-9
    )
    np.testing.assert_allclose(
        pisc(a, b, c, DR, DR_B, BATCH, 3, k, kind), numpy_loss(c, b, DR_B - DR, k, kind), rtol=1e-9
    )


@pytest.mark.parametrize("kind", ["mse", "mae", "relu"])
def test_case_2_against_numpy(kind):
    """l(T(A, dr), T(B, dr'')): the energy that A predicts at C takes the place of E_C (Eq. A8)."""
    a, b, _ = predictions(anharmonic)
    from_a = a.energy - per_structure((DR * a.forces).sum(-1))
    # where B's path leads, A's path ends; forces there do not matter at k = 0
    end = Prediction(from_a, b.forces)
    if kind == "relu":  # |dr| of Eq. A10 is the displacement from A to C
        excess = (b.energy - per_structure(((DR - DR_B) * b.forces).sum(-1)) - from_a).abs()
        expected = torch.relu(excess - from_a.abs() * per_structure(DR.square().sum(-1))).numpy()
    else:
        expected = numpy_loss(b, end, DR - DR_B, 0.0, kind)
    value = pisc(a, b, None, DR, DR_B, BATCH, 2, 0.0, kind)
    np.testing.assert_allclose(value, expected, rtol=1e-9)


@pytest.mark.parametrize("k", [0.0, 0.25, 0.5])
def test_case_2_is_the_difference_of_two_legs_to_c(k):
    a, b, c = predictions(anharmonic)
    legs = leg_residual(b, c, DR - DR_B, BATCH, k) - leg_residual(a, c, DR, BATCH, k)
    torch.testing.assert_close(pisc(a, b, c, DR, DR_B, BATCH, 2, k, "mae"), legs.abs())


@pytest.mark.parametrize("case", [1, 2, 3])
def test_b_at_a_gives_pitc_or_nothing(case):
    """dr' = 0: cases 1 and 3 are the leg between A and C, and case 2 compares a path with itself."""
    a, c = anharmonic(POS), anharmonic(POS + DR)
    value = pisc(a, a, c, DR, torch.zeros_like(DR), BATCH, case)
    expected = {1: pitc(a, c, DR, BATCH), 2: torch.zeros(3, dtype=DR.dtype), 3: pitc(c, a, -DR, BATCH)}[case]
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("case", [1, 3])
@pytest.mark.parametrize("k", [0.0, 0.5])
def test_b_at_c_vanishes(case, k):
    a, c = anharmonic(POS), anharmonic(POS + DR)
    assert pisc(a, c, c, DR, DR, BATCH, case, k).eq(0).all()


@pytest.mark.parametrize("surface", [quadratic, anharmonic])
def test_closed_path_of_trapezoids(surface):
    """Residuals around A, B, C, A add up to the work around the loop alone: all energies cancel."""
    a, b, c = predictions(surface)
    loop = (
        leg_residual(a, b, DR_B, BATCH, 0.5)
        + leg_residual(b, c, DR - DR_B, BATCH, 0.5)
        + leg_residual(c, a, -DR, BATCH, 0.5)
    )
    around = [(a, b, DR_B), (b, c, DR - DR_B), (c, a, -DR)]
    circulation = -sum(per_structure(((s.forces + e.forces) / 2 * d).sum(-1)) for s, e, d in around)
    torch.testing.assert_close(loop, circulation, rtol=1e-9, atol=1e-10)
    if surface is quadratic:
        assert (loop.abs() < 1e-11).all()


def test_forces_without_potential_have_a_residual():
    """A rotational force field belongs to no energy, and no choice of k hides that."""
    curl = Prediction(torch.zeros(3, dtype=DR.dtype), torch.stack([-POS[:, 1], POS[:, 0], 0 * POS[:, 2]], -1))
    moved = POS + DR
    end = Prediction(curl.energy, torch.stack([-moved[:, 1], moved[:, 0], 0 * moved[:, 2]], -1))
    assert (pitc(curl, end, DR, BATCH, 0.5) > 0).all()


def test_missing_predictions_are_named():
    a, b, _ = predictions(linear)
    for case in (1, 3):
        with pytest.raises(ValueError, match="prediction at C"):
            pisc(a, b, None, DR, DR_B, BATCH, case)
    with pytest.raises(ValueError, match="end of the leg"):
        pisc(a, b, None, DR, DR_B, BATCH, 2, k=0.5)
    with pytest.raises(ValueError, match="cases 1, 2 and 3"):
        pisc(a, b, b, DR, DR_B, BATCH, 4)  # type: ignore[arg-type]


def test_first_order_needs_no_forces_at_the_end():
    a, b, c = predictions(anharmonic)
    unknown = torch.full_like(a.forces, torch.nan)
    bare_c, bare_b = Prediction(c.energy, unknown), Prediction(b.energy, unknown)
    assert torch.equal(pitc(a, bare_c, DR, BATCH), pitc(a, c, DR, BATCH))
    assert torch.equal(pisc(a, b, bare_c, DR, DR_B, BATCH, 1), pisc(a, b, c, DR, DR_B, BATCH, 1))
    assert torch.equal(pisc(a, bare_b, c, DR, DR_B, BATCH, 3), pisc(a, b, c, DR, DR_B, BATCH, 3))


# ------------------------------------------------------------------ weak label


@pytest.mark.parametrize("kind", ["mse", "mae", "relu"])
def test_weak_label_against_numpy(kind):
    """Labels take the place of predictions at A (Eqs. A2, A3)."""
    reference = Prediction(rand(3, seed=5), rand(NUM_ATOMS, 3, seed=6))
    c = Prediction(rand(3, seed=7), torch.full((NUM_ATOMS, 3), torch.nan))
    filled = Prediction(c.energy, reference.forces)
    np.testing.assert_allclose(
        pitc(reference, c, DR, BATCH, kind=kind), numpy_loss(reference, filled, DR, 0.0, kind), rtol=1e-12
    )


# ------------------------------------------------------------------ gradients


def inputs() -> list[Tensor]:
    """Energies and forces at A, B and C."""
    out = []
    for i in range(3):
        out += [rand(3, seed=20 + i), rand(NUM_ATOMS, 3, seed=30 + i)]
    return [x.requires_grad_() for x in out]


def all_terms(case: int = 1, k: float = 0.5, kind: str = "mse"):
    def function(ea: Tensor, fa: Tensor, eb: Tensor, fb: Tensor, ec: Tensor, fc: Tensor) -> Tensor:
        a, b, c = Prediction(ea, fa), Prediction(eb, fb), Prediction(ec, fc)
        return pitc(a, c, DR, BATCH, k, kind) + pisc(a, b, c, DR, DR_B, BATCH, case, k, kind)

    return function


@pytest.mark.parametrize("case", [1, 2, 3])
@pytest.mark.parametrize("kind", ["mse", "mae", "relu"])
def test_gradients_in_float64(case, kind):
    assert torch.autograd.gradcheck(all_terms(case, 0.3, kind), inputs())


@pytest.mark.parametrize("case", [1, 2, 3])
def test_second_derivatives_in_float64(case):
    assert torch.autograd.gradgradcheck(all_terms(case), inputs())


def test_second_derivatives_through_a_surface():
    """Gradient forces: the loss is differentiated through forces that are derivatives themselves."""

    def loss(pos: Tensor, strength: Tensor) -> Tensor:
        def at(position: Tensor) -> Prediction:
            energy = per_structure((strength * torch.sin(position) * torch.cos(0.5 * position)).sum(-1))
            (slope,) = torch.autograd.grad(energy.sum(), position, create_graph=True)
            return Prediction(energy, -slope)

        return pitc(at(pos), at(pos + DR), DR, BATCH, 0.5)

    strength = rand(3, seed=40).requires_grad_()
    assert torch.autograd.gradcheck(loss, (POS.clone().requires_grad_(), strength))


@pytest.mark.parametrize("case", [1, 2, 3])
@pytest.mark.parametrize("k", [0.0, 0.5])
def test_no_leakage_between_structures(case, k):
    """The term of structure i has gradient exactly zero in every other structure's energies and forces."""
    variables = inputs()
    values = all_terms(case, k)(*variables)
    for i in range(3):
        gradients = torch.autograd.grad(values[i], variables, retain_graph=True, allow_unused=True)
        touched = False
        for gradient in gradients:
            if gradient is None:
                continue
            owner = BATCH if gradient.dim() == 2 else torch.arange(3)
            assert gradient[owner != i].eq(0).all()
            touched |= bool(gradient[owner == i].ne(0).any())
        assert touched


def test_both_sides_are_differentiated():
    """No stop-gradient: energies at both ends, and the forces of the expansion (Eqs. A5, A6)."""
    ea, fa, eb, fb, ec, fc = variables = inputs()
    first = pitc(Prediction(ea, fa), Prediction(ec, fc), DR, BATCH, 0.0).sum()
    for variable, flows in zip(variables, (True, True, False, False, True, False), strict=True):
        (gradient,) = torch.autograd.grad(first, variable, retain_graph=True, allow_unused=True)
        assert flows == (gradient is not None and bool(gradient.ne(0).all()))
    second = pisc(Prediction(ea, fa), Prediction(eb, fb), Prediction(ec, fc), DR, DR_B, BATCH, 2, 0.5)
    for variable, flows in zip(variables, (True, True, True, True, False, True), strict=True):
        (gradient,) = torch.autograd.grad(second.sum(), variable, retain_graph=True, allow_unused=True)
        assert flows == (gradient is not None and bool(gradient.ne(0).all()))


def test_gradient_of_the_energies_is_equal_and_opposite():
    """A constant added to all energies changes nothing."""
    ea, fa, _, _, ec, fc = inputs()
    loss = pitc(Prediction(ea, fa), Prediction(ec, fc), DR, BATCH, 0.5).sum()
    at_a, at_c = torch.autograd.grad(loss, (ea, ec))
    torch.testing.assert_close(at_a, -at_c)


# ------------------------------------------------------------------ invariance and precision


def test_rotation_translation_and_permutation_leave_every_term():
    a, b, c = predictions(anharmonic)
    rotation = torch.linalg.qr(rand(3, 3, seed=50))[0]
    order_ = torch.randperm(NUM_ATOMS, generator=torch.Generator().manual_seed(1))
    turn = lambda x: (x @ rotation.T)[order_]
    turned = [Prediction(x.energy, turn(x.forces)) for x in (a, b, c)]
    for case in (1, 2, 3):
        torch.testing.assert_close(
            pisc(*turned, turn(DR), turn(DR_B), BATCH[order_], case, 0.5),
            pisc(a, b, c, DR, DR_B, BATCH, case, 0.5),
        )
    torch.testing.assert_close(pitc(turned[0], turned[2], turn(DR), BATCH[order_]), pitc(a, c, DR, BATCH))


def test_float64_rounds_far_less_than_float32():
    a, c = quadratic(POS), quadratic(POS + DR)
    low = [Prediction(x.energy.float(), x.forces.float()) for x in (a, c)]
    double = leg_residual(a, c, DR, BATCH, 0.5).abs().max()
    single = leg_residual(*low, DR.float(), BATCH, 0.5).abs().max()
    assert double < 1e-5 * single


def test_energies_are_subtracted_before_the_work_is():
    """Large energies that cancel exactly leave the small work its digits, in float32."""
    big = torch.full((3,), 4.0e5)
    forces, step = torch.full((NUM_ATOMS, 3), 1e-3), torch.full((NUM_ATOMS, 3), 1e-3)
    residual = leg_residual(Prediction(big, forces), Prediction(big, forces), step, BATCH)
    torch.testing.assert_close(residual, -3e-6 * SIZES.float())
