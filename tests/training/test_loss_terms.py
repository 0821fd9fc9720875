"""The total loss as a sum of terms."""

from __future__ import annotations

import dataclasses

import torch

from fairchem_piwsl.training.loss_terms import Term, add_up


def terms() -> list[Term]:
    values = [torch.tensor(value, requires_grad=True) for value in (2.0, 3.0, 5.0)]
    return [Term("energy", values[0], 1), Term("forces", values[1], 100), Term("pitc", values[2], 0.6, 4.0)]


def test_sum_log_and_gradient():
    own = terms()
    loss, log = add_up(own)
    assert loss.item() == 2 + 300 + 0.6 * 5 / 4
    assert {name: value.item() for name, value in log.items()} == {
        "loss_energy": 2, "weighted_energy": 2, "loss_forces": 3, "weighted_forces": 300,
        "loss_pitc": 5, "weighted_pitc": 0.75,
    }  # fmt: skip
    assert not any(value.requires_grad for value in log.values())
    loss.backward()
    assert [term.value.grad.item() for term in own] == torch.tensor([1, 100, 0.15]).tolist()


def test_two_losses_of_one_output_both_count():
    loss, log = add_up([Term("energy", torch.tensor(2.0), 1), Term("energy", torch.tensor(4.0), 0.5)])
    assert loss == 4 == log["weighted_energy"]
    assert log["loss_energy"] == 6


def test_a_rule_may_change_the_weights():
    loss, log = add_up([dataclasses.replace(term, weight=2 * term.weight) for term in terms()])
    assert loss == 4 + 600 + 1.5
    assert log["loss_pitc"] == 5
