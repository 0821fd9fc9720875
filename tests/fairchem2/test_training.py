"""Whole trainings with upstream's unit and torchtnt's loop."""

from __future__ import annotations

from pathlib import Path

import helpers_fairchem2 as helpers
import pytest
import torch
from torchtnt.framework.callback import Callback

from fairchem_piwsl.fairchem2 import EMAWarmup, PIWSLCallback, weak_forward

PITC = dict(c_pitc=1.0, k_2nd=0.5, eps_max=0.05)


def trained(callbacks: list, epochs: int = 1, batches: list | None = None, **changes) -> list[torch.Tensor]:
    unit = helpers.unit(helpers.model(), **changes)
    helpers.fit(unit, batches or [helpers.batch(count=4)] * 5, callbacks, epochs)
    assert unit.tasks == unit.eval_unit.tasks
    return helpers.parameters(unit)


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("settings", [{}, dict(PITC, start_step=21)], ids=["zero weight", "not started"])
def test_a_callback_without_effect_leaves_20_steps_bit_for_bit(settings: dict) -> None:
    assert equal(trained([PIWSLCallback(**settings)], 4), trained([], 4))


def test_terms_change_the_parameters_and_repeat() -> None:
    with_term = trained([PIWSLCallback(**PITC)])
    assert not equal(with_term, trained([]))
    assert equal(with_term, trained([PIWSLCallback(**PITC)]))


def test_training_with_pitc_lowers_its_residual() -> None:
    record: list[float] = []

    class Record(PIWSLCallback):
        def on_train_step_end(self, state, unit):
            record.append(float(self._forward.terms["pitc"]))
            super().on_train_step_end(state, unit)

    trained([Record(c_pitc=30.0, k_2nd=0.5, eps_max=0.1, magnitude="fixed")], epochs=6)
    assert sum(record[-5:]) < 0.5 * sum(record[:5])


def test_a_resumed_run_repeats_the_draws_of_an_uninterrupted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[torch.Tensor] = []
    draw = weak_forward.draw

    def recorded(*args):
        draws.append(draw(*args))
        return draws[-1]

    monkeypatch.setattr(weak_forward, "draw", recorded)
    batches = [helpers.batch(count=4, seed=seed) for seed in range(4)]
    whole = trained([PIWSLCallback(**PITC)], 2, batches)
    first = helpers.unit(helpers.model())
    helpers.fit(first, batches, [PIWSLCallback(**PITC)], 1)
    saved = helpers.state(first)
    assert not any("piwsl" in name for name in saved["model"])
    second = helpers.unit(helpers.model(seed=1))
    second.load_scheduler(len(batches))
    second.load_state_dict(saved)
    helpers.fit(second, batches, [PIWSLCallback(**PITC)], 2)
    assert equal(draws[:8], draws[8:])
    assert not torch.equal(draws[0], draws[1])
    # upstream's own resumed runs differ in the last digit: DDP keeps gradients elsewhere after its first step
    for a, b in zip(whole, helpers.parameters(second), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-7, atol=1e-7)


def test_the_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = helpers.unit(helpers.model())
    inner = unit.model.module
    helpers.fit(unit, [helpers.batch()], [PIWSLCallback(**PITC)])
    assert "forward" not in vars(inner)
    monkeypatch.setattr(weak_forward, "draw", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        helpers.fit(unit, [helpers.batch()], [PIWSLCallback(**PITC)], 2)
    assert "forward" not in vars(inner)
    assert inner.backbone.otf_graph
    assert [task.name for task in unit.tasks] == ["energy", "forces"]


def displacement(settings, pos, *_) -> torch.Tensor:
    """Depends on the structure alone, whichever rank has it."""
    return 0.05 * torch.sin(37 * pos)


def _train_rank(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    weak_forward.draw = displacement
    helpers.start_process_group(rank, size, f"{folder}/store{size}")
    everything = [helpers.data(atoms) for atoms in helpers.structures(3)]
    mine = everything if size == 1 else everything[:2] if rank == 0 else everything[2:]
    unit = helpers.unit(helpers.model())
    helpers.fit(
        unit, [helpers.atomicdata_list_to_batch(mine)] * 3, [PIWSLCallback(c_pitc=1.0, c_pisc=1.0, k_2nd=0.5)]
    )
    if rank == 0:
        torch.save(helpers.parameters(unit), f"{folder}/{size}.pt")


def test_two_ranks_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weak_forward, "draw", displacement)
    _train_rank(0, 1, str(tmp_path))
    torch.multiprocessing.spawn(_train_rank, (2, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{size}.pt") for size in (1, 2))
    start = helpers.parameters(helpers.unit(helpers.model()))
    moved = max(float((a - b).abs().max()) for a, b in zip(one, start, strict=True))
    apart = max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))
    assert apart < 1e-2 * moved


def test_missing_labels_leave_training_finite_and_the_structure_in_the_term() -> None:
    full = helpers.batch(count=3)
    bare = full.clone()
    bare.energy[1] = torch.inf
    bare.forces[bare.batch == 1] = torch.inf
    for kind in ("uniform", "adversarial"):
        values = []
        for one in (full, bare):
            callback = PIWSLCallback(**PITC, perturbation=kind)
            kept = {}
            on_end = callback.on_train_step_end

            def keep(state, unit, callback=callback, kept=kept, on_end=on_end):
                kept.update(callback._forward.terms)
                on_end(state, unit)

            callback.on_train_step_end = keep
            unit = helpers.unit(helpers.model())
            helpers.fit(unit, [one], [callback])
            assert all(parameter.isfinite().all() for parameter in unit.model.parameters())
            values.append(kept["pitc"])
        if kind == "uniform":
            assert torch.equal(*values)


def test_the_average_with_warm_up_forgets_the_initial_weights() -> None:
    class Record(Callback):
        def __init__(self) -> None:
            self.expected: list[torch.Tensor] = []

        def on_train_step_end(self, state, unit) -> None:
            n, now = unit.train_progress.num_steps_completed - 1, helpers.parameters(unit)
            decay = min(0.3, (1 + n) / (10 + n))
            before = self.expected or now
            self.expected = [decay * a + (1 - decay) * b for a, b in zip(before, now, strict=True)]

    unit, record = helpers.unit(helpers.model(), ema_decay=0.3), Record()
    helpers.fit(unit, [helpers.batch()] * 6, [EMAWarmup(), record])
    for average, expected in zip(unit.ema_model.module.parameters(), record.expected, strict=True):
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)
