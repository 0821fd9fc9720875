"""Weights of the tasks: by hand, and from the norms of gradients (`auto`)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helpers_fairchem2 as helpers
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from fairchem.core.modules.normalization.element_references import ElementReferences
from fairchem.core.units.mlip_unit.mlip_unit import compute_loss
from omegaconf import OmegaConf
from torchtnt.framework.callback import Callback

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.fairchem2 import PIWSLCallback, run_checks, weak_forward
from fairchem_piwsl.fairchem2.weighted_tasks import STATE
from fairchem_piwsl.settings import AUTO_DISPLACED, CLIP_GRAD_NORM

AUTO = dict(auto=True, every_n_steps=1, eps_max=0.05, ramp_steps=0)


class Coefficients(Callback):
    """Weights of all tasks at every step; stands behind the callback of PIWSL, which takes them off again."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_step_start(self, state: Any, unit: Any) -> None:
        self.tasks = unit.tasks

    def on_train_step_end(self, state: Any, unit: Any) -> None:
        self.seen.append({task.name: float(task.loss_fn.coefficient) for task in self.tasks})


@pytest.fixture(autouse=True)
def measured_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every weak step but the first."""
    monkeypatch.setattr("fairchem_piwsl.settings.STEPS_BETWEEN_MEASUREMENTS", 1)


def started(unit: Any, batch: Any, **settings: Any) -> PIWSLCallback:
    """A callback within the second step of a run."""
    callback = PIWSLCallback(**settings)
    state = SimpleNamespace(train_state=SimpleNamespace(dataloader=helpers.Batches([batch])))
    callback.on_train_start(state, unit)
    unit.train_progress.increment_step()
    callback.on_train_step_start(state, unit)
    return callback


def norm(unit: Any, losses: dict[str, torch.Tensor], *names: str) -> float:
    """Norm of the gradient of some weighted losses."""
    total = sum(losses[name] for name in names)
    model = [parameter for parameter in unit.model.parameters() if parameter.requires_grad]
    parts = torch.autograd.grad(total, model, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts if part is not None))


def test_weights_by_hand_grow_with_the_ramp() -> None:
    unit, record = helpers.unit(helpers.model()), Coefficients()
    settings = dict(c_pitc=2.0, c_pisc=0.5, k_2nd=0.5, start_step=2, ramp_steps=4, every_n_steps=2)
    helpers.fit(unit, [helpers.batch()] * 4, [PIWSLCallback(**settings), record])
    plain = {"energy": 1.0, "forces": 1.0}
    assert record.seen == [
        plain,
        plain | {"piwsl_pitc": 0.5, "piwsl_pisc": 0.125},
        plain,
        plain | {"piwsl_pitc": 1.5, "piwsl_pisc": 0.375},
    ]
    assert [task.loss_fn.coefficient for task in unit.tasks] == [1.0, 1.0]


def test_energies_are_balanced_before_the_weak_terms_start() -> None:
    unit, record = helpers.unit(helpers.model()), Coefficients()
    helpers.fit(unit, [helpers.batch()] * 4, [PIWSLCallback(**AUTO | dict(start_step=4)), record])
    energies = [seen["energy"] for seen in record.seen]
    assert energies[0] == 1.0
    assert all(weight != 1.0 for weight in energies[1:])
    assert ["piwsl_pitc" in seen for seen in record.seen] == [False, False, False, True]


@pytest.mark.parametrize(("own", "limit"), [(None, CLIP_GRAD_NORM), (3.0, 3.0)])
def test_auto_limits_the_gradient_where_the_unit_does_not(own: float | None, limit: float) -> None:
    unit, seen = helpers.unit(helpers.model(), clip_grad_norm=own), []

    class Limit(Callback):
        def on_train_step_end(self, state: Any, unit: Any) -> None:
            seen.append(unit.clip_grad_norm)

    helpers.fit(unit, [helpers.batch()] * 2, [PIWSLCallback(**AUTO), Limit()])
    assert seen == [limit, limit]
    assert unit.clip_grad_norm == own


@pytest.mark.parametrize("possible", [True, False])
def test_auto_displaces_where_the_energy_cannot_be_differentiated(
    possible: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    if not possible:
        monkeypatch.setattr(run_checks, "energy_is_differentiable", lambda *_: False)
    callback = PIWSLCallback(auto=True, every_n_steps=1)
    unit = helpers.unit(helpers.model())
    helpers.fit(unit, [helpers.batch()] * 2, [callback])
    assert callback.settings.eps_max == (0 if possible else AUTO_DISPLACED["eps_max"])
    assert ("eps_max 0.03, since" in caplog.text) != possible
    if not possible:
        with pytest.raises(UserError, match="eps_max is 0, but"):
            helpers.fit(unit, [helpers.batch()] * 2, [PIWSLCallback(c_pitc=1.0, eps_max=0)])


def test_perfect_crystals_do_not_hide_the_gradient() -> None:
    """Where they are, there is none; training's random numbers stay as they were."""
    crystal = bulk("Cu", cubic=True)
    crystal.calc = EMT()
    batch, unit = helpers.atomicdata_list_to_batch([helpers.data(crystal)] * 2), helpers.unit(helpers.model())
    before = torch.get_rng_state()
    assert run_checks.has_gradient(unit, batch)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("block", [AUTO, dict(auto=True)], ids=["displaced", "differentiated"])
def test_element_references_are_taken_off_for_the_share(
    block: dict, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    shares = []
    for shift in (0.0, 1000.0):
        batch, energy = helpers.batch(), helpers.task("energy")
        references = torch.linspace(0, shift, 20, dtype=torch.float64)
        energy.element_references = ElementReferences(references)
        batch.energy += torch.zeros(batch.num_graphs).index_add(
            0, batch.batch, references[batch.atomic_numbers].float()
        )
        caplog.clear()
        helpers.fit(
            helpers.unit(helpers.model(), [energy, helpers.task("forces")]),
            [batch] * 2,
            [PIWSLCallback(**block)],
        )
        shares.append(re.search(r"energy_share ([\d.]+)", caplog.text)[1])
    assert shares[0] == shares[1]


def test_norms_are_the_set_multiples() -> None:
    unit, batch = helpers.unit(helpers.model()), helpers.batch()
    started(unit, batch, **AUTO | dict(c_pisc=0.1, c_pitc=1.0, weak_share=0.3, energy_share=0.5))
    losses = compute_loss(unit.tasks, unit.model(batch), batch)
    assert norm(unit, losses, "energy") == pytest.approx(0.5 * norm(unit, losses, "forces"), rel=1e-4)
    weak = norm(unit, losses, "piwsl_pitc", "piwsl_pisc")
    assert weak == pytest.approx(0.3 * norm(unit, losses, "energy", "forces"), rel=1e-4)


def test_the_share_of_the_energies_follows_from_the_labels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    batch = helpers.batch()
    spread = batch.energy[1:].std(correction=0) / batch.forces[1:].square().mean().sqrt()
    batch.energy *= 0.3 / spread
    batch.energy[0] = torch.inf
    batch.forces[0] = torch.inf
    unit = helpers.unit(helpers.model())
    started(unit, batch, **AUTO)
    assert "energy_share 0.30, from the spread of the labels" in caplog.text
    losses = compute_loss(unit.tasks, unit.model(batch), batch)
    # of the gradient, or of the value where that is the larger share
    gradient = norm(unit, losses, "energy") / norm(unit, losses, "forces")
    value = float(losses["energy"] / losses["forces"])
    assert max(gradient, value) == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize("labels", ["all", "none", "weights by hand"])
def test_forces_with_labels_are_not_taught_by_the_energy(labels: str) -> None:
    """The force head sees a gradient of PITC where it has no labels to learn from, and only there."""
    unit, batch = helpers.unit(helpers.model()), helpers.batch()
    if labels == "none":
        batch.forces[:] = torch.inf
    started(unit, batch, **dict(c_pitc=1.0, k_2nd=0.5) if labels == "weights by hand" else AUTO)
    pitc = unit.model(batch)["piwsl_pitc"]["value"].sum()
    model = unit.model.module
    of_head, of_trunk = (
        sum(
            float(part.abs().sum())
            for part in torch.autograd.grad(
                pitc,
                [p for p in module.parameters() if p.requires_grad],
                retain_graph=True,
                allow_unused=True,
            )
            if part is not None
        )
        for module in (model.output_heads["forces"], model.backbone)
    )
    assert of_trunk > 0
    assert (of_head > 0) == (labels != "all")


def test_the_coefficient_of_the_energy_does_not_matter() -> None:
    gradients = []
    for coefficient in (1.0, 1000.0):
        energy, batch = helpers.task("energy"), helpers.batch()
        energy.loss_fn.coefficient = coefficient
        unit = helpers.unit(helpers.model(), [energy, helpers.task("forces")])
        started(unit, batch, **AUTO)
        sum(compute_loss(unit.tasks, unit.model(batch), batch).values()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in unit.model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4 * float(gradients[0].abs().max()))


def test_energy_tasks_of_several_data_sets_share_one_factor() -> None:
    names = {f"{data}_{kind}": kind for data in ("mol", "slab") for kind in ("energy", "forces")}
    model = helpers.model({name: helpers.DIRECT[kind] for name, kind in names.items()})
    tasks = [helpers.task(kind, (name.split("_")[0],), name) for name, kind in names.items()]
    tasks[2].loss_fn.coefficient = 7.0
    parts = []
    for data in ("mol", "slab"):
        for atoms in helpers.structures(2, periodic=data == "slab"):
            one = helpers.data(atoms, data)
            for name, kind in names.items():
                one[name] = one[kind] if name.startswith(data) else torch.full_like(one[kind], torch.inf)
            parts.append(one)
    unit, record = helpers.unit(model, tasks), Coefficients()
    batch = helpers.atomicdata_list_to_batch(parts)
    helpers.fit(unit, [batch] * 3, [PIWSLCallback(**AUTO, energy_share=0.5), record])
    last = record.seen[-1]
    assert last["slab_energy"] == pytest.approx(7.0 * last["mol_energy"])
    assert last["mol_energy"] != 1.0
    assert last["mol_forces"] == last["slab_forces"] == 1.0
    unit = helpers.unit(model, tasks)
    started(unit, batch, **AUTO, energy_share=0.5)
    losses = compute_loss(unit.tasks, unit.model(batch), batch)
    energies, forces = (norm(unit, losses, f"mol_{kind}", f"slab_{kind}") for kind in ("energy", "forces"))
    assert energies == pytest.approx(0.5 * forces, rel=1e-4)


def test_steps_without_a_term_have_the_measured_weight_and_the_log_shows_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    unit, record = helpers.unit(helpers.model()), Coefficients()
    helpers.fit(
        unit, [helpers.batch()] * 6, [PIWSLCallback(**AUTO | dict(every_n_steps=3, ramp_steps=100)), record]
    )
    energy = [step["energy"] for step in record.seen]
    assert energy == [1.0] * 3 + [energy[3]] * 3
    assert energy[3] != 1.0
    assert ["piwsl_pitc" in step for step in record.seen] == [True, False, False] * 2
    for key in ("weight_energy", "weight_pitc", "gradient_energy", "gradient_forces", "gradient_pitc"):
        assert f"'train/{key}': " in caplog.text
    assert caplog.text.count("'train/loss_pitc': ") == 6  # also at steps without the term
    assert caplog.text.count(f"'train/weight_energy': {energy[3]:.4f}"[:-1]) == 3
    assert "weights at the end, from the norms of gradients: energy x " in caplog.text


def test_a_logger_gets_the_terms_with_the_loss_of_their_step() -> None:
    rows: list[set[str]] = [set()]

    def log(values: dict, step: int | None = None, commit: bool = False) -> None:
        rows[-1] |= values.keys() & {"train/loss", "train/loss_pitc"}
        if commit:
            rows.append(set())

    unit = helpers.unit(helpers.model())
    unit.logger = SimpleNamespace(log=log)
    helpers.fit(unit, [helpers.batch()] * 3, [PIWSLCallback(c_pitc=1.0, eps_max=0.01, every_n_steps=2)])
    with_term = {"train/loss", "train/loss_pitc"}
    assert rows == [with_term, {"train/loss"}, with_term, set()]


def test_a_resumed_run_keeps_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairchem_piwsl.settings.STEPS_BETWEEN_MEASUREMENTS", 2)  # at steps 3 and 5
    config = tmp_path / "config.yml"
    OmegaConf.save(OmegaConf.create({"job": {}, "runner": {"train_eval_unit": {}}}), config)
    job = OmegaConf.create(
        {"seed": 0, "debug": True, "logger": None, "metadata": {"config_path": str(config)}}
    )
    batches = [helpers.batch(seed=seed) for seed in range(3)]

    def unit() -> Any:
        return helpers.unit(helpers.model(), job_config=job, save_inference_ckpt=False)

    first, record = unit(), Coefficients()
    helpers.fit(first, batches, [PIWSLCallback(**AUTO), record])
    first.save_state(str(tmp_path / "checkpoint"))
    assert (tmp_path / "checkpoint" / STATE).exists()
    second = unit()
    second.load_state(str(tmp_path / "checkpoint"))
    second.load_scheduler(len(batches))
    again, callback = Coefficients(), PIWSLCallback(**AUTO)
    helpers.fit(second, batches, [callback, again], 2)
    assert len(again.seen) == 3
    assert again.seen[0]["energy"] == record.seen[-1]["energy"] != 1.0
    assert callback._tasks.balance.factors["weak"].count == 2
    (tmp_path / "checkpoint" / STATE).unlink()  # a checkpoint from before
    third, callback = unit(), PIWSLCallback(**AUTO)
    third.load_state(str(tmp_path / "checkpoint"))
    third.load_scheduler(len(batches))
    helpers.fit(third, batches, [callback], 2)
    assert callback._tasks.balance.factors["weak"].count == 1


def test_gradient_forces_switch_the_terms_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    parameters = []
    for callbacks in ([PIWSLCallback(**AUTO)], []):
        unit = helpers.unit(helpers.model(direct_forces=False))
        helpers.fit(unit, [helpers.batch()] * 3, callbacks)
        parameters.append(helpers.parameters(unit))
    assert all(torch.equal(a, b) for a, b in zip(*parameters, strict=True))
    assert caplog.text.count("the weak terms have nothing to teach it; they are off") == 1
    assert "from the norms of gradients" not in caplog.text


def displacement(settings: Any, pos: torch.Tensor, *_: Any) -> torch.Tensor:
    """Depends on the structure alone, whichever rank has it."""
    return 0.05 * torch.sin(37 * pos)


def _balance_of_rank(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    helpers.start_process_group(rank, size, f"{folder}/store{size}")
    everything = [helpers.data(atoms) for atoms in helpers.structures(3)]
    mine = everything if size == 1 else everything[:2] if rank == 0 else everything[2:]
    callback = PIWSLCallback(**AUTO, energy_share=0.5)
    with pytest.MonkeyPatch.context() as patch:  # a process of its own knows nothing of fixtures
        patch.setattr("fairchem_piwsl.settings.STEPS_BETWEEN_MEASUREMENTS", 1)
        patch.setattr(weak_forward, "draw", displacement)
        unit = helpers.unit(helpers.model())
        helpers.fit(unit, [helpers.atomicdata_list_to_batch(mine)] * 2, [callback])
    torch.save(callback._tasks.balance.state(), f"{folder}/{size}_{rank}.pt")


def test_ranks_agree_on_the_weights(tmp_path: Path) -> None:
    _balance_of_rank(0, 1, str(tmp_path))
    torch.multiprocessing.spawn(_balance_of_rank, (2, str(tmp_path)), nprocs=2)
    alone, one, other = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    assert one == other
    for name in ("energy", "weak"):
        assert one[name]["count"] == 1
        assert one[name]["log"] == pytest.approx(alone[name]["log"], rel=1e-3)
