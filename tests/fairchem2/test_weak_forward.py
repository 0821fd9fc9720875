"""The hooks around a real model: what is called, what is computed."""

from __future__ import annotations

import itertools
import math

import helpers_fairchem2 as helpers
import pytest
import torch
from fairchem.core.models.uma import escn_md

from fairchem_piwsl.fairchem2 import heads, stacked_data, weak_forward
from fairchem_piwsl.fairchem2.weak_forward import WeakForward
from fairchem_piwsl.perturbations import step_generator
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.training.repeated_draws import drops
from fairchem_piwsl.units import KCAL_PER_MOL

TASKS = [helpers.task("energy"), helpers.task("forces")]


def hooked(model, tasks=TASKS, **settings) -> WeakForward:
    """Hooks around `model`, ready for a step."""
    forward = WeakForward(PIWSLSettings(**settings), tasks)
    forward.attach(model)
    forward.ramp, forward.generator = 1.0, step_generator(0, 0, 1, torch.device("cpu"))
    return forward


def seen_positions(model, batch) -> list[torch.Tensor]:
    """Positions that the backbone meets in one call of the model."""
    seen: list[torch.Tensor] = []
    handle = model.backbone.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].pos.detach().clone())
    )
    model(batch)
    handle.remove()
    return seen


@pytest.mark.parametrize(("k", "order"), [(0.0, 2), (0.5, 3)])
def test_order_of_convergence_of_a_conservative_model(k: float, order: int) -> None:
    model = helpers.model(direct_forces=False, lmax=2, mmax=2).double()
    batch = helpers.batch(torch.float64, count=3)
    residuals = []
    for eps in (0.01, 0.005, 0.0025):
        forward = hooked(model, c_pitc=1.0, k_2nd=k, eps_max=eps, magnitude="fixed")
        out = model(batch)["piwsl_pitc"]["value"].detach()
        forward.ramp = 0.0
        residuals.append(float(out.sqrt().mean()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(residuals)]
    assert all(abs(slope - order) < 0.25 for slope in slopes), slopes


def test_without_displacements_a_conservative_model_has_nothing_to_learn() -> None:
    model = helpers.model(direct_forces=False, lmax=2, mmax=2).double()
    hooked(model, c_pitc=1.0, eps_max=0.0)
    assert model(helpers.batch(torch.float64, count=3))["piwsl_pitc"]["value"].max() < 1e-20


@pytest.mark.parametrize("periodic", [True, False])
def test_without_displacements_against_an_independent_computation(periodic: bool) -> None:
    model, batch = helpers.model().double(), helpers.batch(torch.float64, periodic=periodic)
    single = batch.clone()
    single.pos.requires_grad_()
    plain = model(single)
    (gradient,) = torch.autograd.grad(plain["energy"]["energy"].sum(), single.pos, retain_graph=True)
    squares = (KCAL_PER_MOL**-1 * (plain["forces"]["forces"] + gradient)).square().mean(1).detach()
    expected = torch.stack([squares[batch.batch == i].mean() for i in range(batch.num_graphs)])
    forward = hooked(model, c_pitc=1.0, eps_max=0.0)
    seen: list[int] = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0].pos)))
    out = model(batch)
    assert seen == [len(batch.pos)]
    value = out["piwsl_pitc"]["value"].detach()
    torch.testing.assert_close(value, KCAL_PER_MOL * expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(forward.terms["pitc"], expected.mean(), rtol=1e-6, atol=0)


def test_outputs_at_a_are_those_of_the_plain_model() -> None:
    model, batch = helpers.model(), helpers.batch()
    plain = model(batch.clone())
    hooked(model, c_pitc=1.0, c_pisc=1.0, k_2nd=0.5)
    out = model(batch)
    torch.testing.assert_close(out["energy"]["energy"], plain["energy"]["energy"])
    torch.testing.assert_close(out["forces"]["forces"], plain["forces"]["forces"])


@pytest.mark.parametrize("direct", [True, False])
def test_stress_heads_are_untouched(direct: bool) -> None:
    if direct:
        heads = helpers.DIRECT | {"stress": {"module": helpers.MODULE + "MLP_Stress_Head"}}
        model = helpers.model(heads, lmax=2, mmax=2).double()
    else:
        model = helpers.model(direct_forces=False, regress_stress=True).double()
    batch = helpers.batch(torch.float64, periodic=True)
    plain = model(batch.clone())["stress"]["stress"]
    assert plain.abs().max() > 1e-4
    forward = hooked(model, c_pitc=1.0, k_2nd=0.5)
    out = model(batch)
    assert forward.terms["pitc"] > 0
    torch.testing.assert_close(out["stress"]["stress"], plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("otf", [True, False])
@pytest.mark.parametrize("periodic", [True, False])
def test_one_call_and_one_neighbour_list(otf: bool, periodic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = helpers.model(), helpers.batch(periodic=periodic)
    if not otf:
        for key, value in stacked_data.model_list(model.backbone, batch).items():
            batch[key] = value
        model.backbone.otf_graph = False
    searches = []
    search = escn_md.generate_graph

    def counted(*args, **kwargs):
        searches.append(1)
        return search(*args, **kwargs)

    monkeypatch.setattr(escn_md, "generate_graph", counted)
    monkeypatch.setattr(stacked_data, "generate_graph", counted)
    hooked(model, c_pitc=1.0, c_pisc=1.0, k_2nd=0.5)
    seen = seen_positions(model, batch)
    assert [len(pos) for pos in seen] == [3 * len(batch.pos)]
    assert len(searches) == otf


@pytest.mark.parametrize("periodic", [True, False])
def test_a_shared_list_gives_what_own_lists_give(periodic: bool) -> None:
    batch, terms = helpers.batch(torch.float64, periodic=periodic), []
    for share in (True, False):
        model = helpers.model().double()
        forward = hooked(model, c_pitc=1.0, c_pisc=1.0, k_2nd=0.5, share_graph=share)
        model(batch.clone())
        terms.append(forward.terms)
    assert terms[0]["pitc"] > 0
    for name in ("pitc", "pisc"):
        torch.testing.assert_close(terms[0][name], terms[1][name], rtol=1e-6, atol=0)


def test_the_guard_sees_periodic_images_in_every_kind_of_list() -> None:
    batch = helpers.batch(periodic=True, count=3)
    lent = stacked_data.model_list(helpers.model().backbone, batch)
    expected = [
        min(
            (atoms.positions[i] - atoms.positions[j] + shift @ atoms.cell.array).dot(
                atoms.positions[i] - atoms.positions[j] + shift @ atoms.cell.array
            )
            ** 0.5
            for i in range(len(atoms))
            for j in range(len(atoms))
            for shift in helpers.np.array(helpers.np.meshgrid(*[range(-2, 3)] * 3)).T.reshape(-1, 3)
            if i != j or shift.any()
        )
        for atoms in helpers.structures(3, periodic=True)
    ]
    for edges in (lent, None):
        found = stacked_data.shortest_distances(edges, batch)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-4, atol=0)


def test_a_lonely_atom_needs_no_list() -> None:
    batch = helpers.atomicdata_list_to_batch([helpers.data(helpers.Atoms("H", calculator=helpers.EMT()))])
    model = helpers.model()
    forward = hooked(model, c_pitc=1.0, k_2nd=0.5)
    model(batch)
    assert forward.terms["pitc"].isfinite()


def test_fixed_atoms_stay() -> None:
    model, batch = helpers.model(), helpers.batch()
    batch.fixed[::2] = 1
    hooked(model, c_pitc=1.0, eps_max=0.05, magnitude="fixed")
    [pos] = seen_positions(model, batch)
    moved = (pos.view(2, -1, 3)[1] != batch.pos).any(-1)
    assert moved.tolist() == [fixed == 0 for fixed in batch.fixed.tolist()]


@pytest.mark.parametrize("case", [1, 2, 3])
def test_only_what_the_terms_need_is_evaluated(case: int) -> None:
    model, batch = helpers.model(), helpers.batch()
    hooked(model, c_pisc=1.0, pisc_case=case)
    [pos] = seen_positions(model, batch)
    assert len(pos) == (2 if case == 2 else 3) * len(batch.pos)
    value = model(batch)["piwsl_pisc"]["value"]
    assert value.shape == (4,)
    assert (value > 0).all()


def test_the_term_is_eq_3_in_kcal_and_in_units_of_the_energy_output() -> None:
    tasks = [helpers.task("energy", rmsd=3.0), helpers.task("forces", rmsd=0.5)]
    model, batch = helpers.model().double(), helpers.batch(torch.float64)
    forward = hooked(model, tasks, c_pitc=2.0, eps_max=0.05, magnitude="fixed")
    [pos] = seen_positions(model, batch)
    forward.generator = step_generator(0, 0, 1, torch.device("cpu"))
    value = model(batch)["piwsl_pitc"]["value"]
    forward.ramp = 0.0
    dr = pos.view(2, -1, 3)[1] - batch.pos
    moved = batch.clone()
    moved.pos = batch.pos + dr
    a, c = model(batch), model(moved)
    energies = [3.0 * out["energy"]["energy"].view(-1) for out in (a, c)]
    work = torch.zeros(4, dtype=torch.float64).index_add(
        0, batch.batch, (0.5 * a["forces"]["forces"] * dr).sum(-1)
    )
    residual = (energies[0] - work - energies[1]) / KCAL_PER_MOL
    torch.testing.assert_close(value, residual.square() * KCAL_PER_MOL / 3.0, rtol=1e-5, atol=1e-12)


def test_structures_use_the_heads_of_their_own_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"{data}_{kind}": kind for data in ("mol", "slab") for kind in ("energy", "forces")}
    model = helpers.model({name: helpers.DIRECT[kind] for name, kind in names.items()}).double()
    tasks = [helpers.task(kind, (name.split("_")[0],), name) for name, kind in names.items()]
    parts = [
        [helpers.data(atoms, data, torch.float64) for atoms in helpers.structures(2, periodic=data == "slab")]
        for data in ("mol", "slab")
    ]
    for part in parts:
        for one in part:
            for name, kind in names.items():
                one[name] = one[kind]
    forward = hooked(model, tasks, c_pitc=1.0, k_2nd=0.5)
    monkeypatch.setattr(weak_forward, "draw", lambda s, pos, *_: 0.05 * torch.sin(37 * pos))
    both = model(helpers.atomicdata_list_to_batch(parts[0] + parts[1]))["piwsl_pitc"]["value"]
    alone = [model(helpers.atomicdata_list_to_batch(part))["piwsl_pitc"]["value"] for part in parts]
    torch.testing.assert_close(both, torch.cat(alone))
    only_mol = [task for task in tasks if task.name != "slab_forces"]
    whole = helpers.atomicdata_list_to_batch(parts[0] + parts[1])
    assert heads.have_both(only_mol, whole).tolist() == [True, True, False, False]
    forward.tasks = only_mol
    model(whole)
    assert whole["piwsl_pitc"].tolist() == [0.0, 0.0, math.inf, math.inf]


@pytest.mark.parametrize("rates", [dict(moe_dropout=0.5), dict(composition_dropout=0.5), {}])
def test_dropout_is_shared_by_the_copies(rates: dict) -> None:
    mole = dict(model="fairchem.core.models.uma.escn_moe.eSCNMDMoeBackbone", num_experts=4, mmax=1)
    model = helpers.model(**mole, use_composition_embedding=True, **rates).double()
    forward = hooked(model, c_pitc=1.0, c_pisc=1.0, k_2nd=0.5, eps_max=1e-7)
    assert any(drops(module) for module in model.modules()) == bool(rates)
    model.modules = None  # looking through all of a model takes long: not in every step
    torch.manual_seed(1)
    batch = helpers.batch(torch.float64)
    first = model(batch)["energy"]["energy"]
    assert max(forward.terms.values()) < 1e-9
    forward.ramp = 0.0
    assert torch.allclose(first, model(batch)["energy"]["energy"], rtol=1e-9) == (not rates)


def test_auto_asks_for_labels_of_forces_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = helpers.model()
    hooked(model, auto=True, c_pitc=1.0)
    monkeypatch.setattr(heads, "labels", None)
    assert model(helpers.batch())["piwsl_pitc"]["value"].isfinite().all()


def test_an_adversarial_direction_follows_the_error_of_the_energy() -> None:
    model, batch = helpers.model(), helpers.batch()
    batch.forces[batch.batch == 1] = torch.inf
    batch.energy[2] = torch.inf
    hooked(model, c_pitc=1.0, eps_max=0.02, magnitude="fixed", perturbation="adversarial")
    seen = seen_positions(model, batch)
    assert [len(pos) // len(batch.pos) for pos in seen] == [1, 2]
    dr = seen[1].view(2, -1, 3)[1] - batch.pos
    error = helpers_errors(model, batch)
    cosine = torch.nn.functional.cosine_similarity(dr, error, dim=-1)
    for structure in range(4):
        mine = cosine[batch.batch == structure]
        torch.testing.assert_close(mine.abs(), torch.ones_like(mine), rtol=0, atol=1e-3)
        assert len(mine.sign().unique()) == 1


def helpers_errors(model, batch) -> torch.Tensor:
    """Force errors [N, 3], forces where there is no label."""
    plain = helpers.model()
    plain.load_state_dict(model.state_dict())
    forces = plain(batch.clone())["forces"]["forces"].detach()
    return torch.where(batch.forces.isfinite(), forces - batch.forces, forces)
