"""The balance of the terms does not depend on label unit, normaliser or element references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import units
from conftest import labelled_molecules, make_config, make_trainer, to_data, write_lmdb
from helpers_trainer import first_batch, forward_and_loss
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_piwsl.taylor import segment_sum

#: label units in eV
UNITS = {
    "eV": 1.0,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
    "Hartree": units.Hartree,
}
#: a large energy of each element in eV, as total energies have
REFERENCES = {1: -13.6, 6: -1030.1, 8: -2041.4}
ALL_TERMS = {"c_pitc": 1.2, "c_pisc": 0.8, "c_wl": 0.5, "eps_max": 0.02}


class Surface(nn.Module):
    """A known surface in eV behind outputs in any unit, with any normaliser and element references.

    It errs on purpose: its energies are off by `scale` and its forces are those of another `scale`, so that
    no term vanishes. Energies count from the element references.
    """

    def __init__(self, trainer, unit: float) -> None:
        super().__init__()
        self.unit = unit
        self.scale = nn.Parameter(torch.tensor(1.1, dtype=torch.float64))
        self.tilt = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.normalizers = trainer.normalizers

    def forward(self, data: Batch) -> dict[str, Tensor]:
        pos = data.pos.double()
        energy = segment_sum(torch.sin(pos).sum(-1), data.batch, data.num_graphs)
        out = {"energy": self.scale * energy / self.unit, "forces": -self.tilt * torch.cos(pos) / self.unit}
        for name, normalizer in self.normalizers.items():
            out[name] = (out[name] - normalizer.mean.double()) / normalizer.rmsd.double()
        return out


def write_data(folder: Path, unit: float, references: bool) -> None:
    """Labels in a unit of choice, in float64 so that large totals keep their digits."""
    for split, count in {"train": 4, "val": 2, "test": 2}.items():
        data = []
        for i, atoms in enumerate(labelled_molecules(count)):
            record = to_data(atoms, i)
            total = atoms.get_potential_energy()
            if references:
                total += sum(REFERENCES[number] for number in atoms.numbers)
            record.energy = torch.tensor(total / unit, dtype=torch.float64)
            record.forces = record.forces.double() / unit
            data.append(record)
        write_lmdb(folder / f"{split}.lmdb", data)


def terms(
    folder: Path, unit: str, stdev: float | None, mean: float, references: bool, fn: str = "mae", **piwsl: Any
) -> dict:
    """Raw and weighted terms of one step; stdev and mean of the normaliser in eV, the loss `fn` of energies."""
    folder.mkdir()
    size = UNITS[unit]
    write_data(folder, size, references)
    config = make_config(folder, folder, piwsl={**ALL_TERMS, "energy_unit": unit, **piwsl})
    config["loss_functions"][0]["energy"]["fn"] = fn
    transforms: dict[str, Any] = {}
    if stdev is not None:
        transforms["normalizer"] = {
            "energy": {"mean": mean / size, "stdev": stdev / size},
            # forces are normalised with another width
            "forces": {"mean": 0.0, "stdev": 3 * stdev / size},
        }
    if references:
        table = np.zeros(100)
        for number, energy in REFERENCES.items():
            table[number] = energy / size
        np.savez(folder / "references.npz", coeff=table)
        transforms["element_references"] = {"energy": {"file": str(folder / "references.npz")}}
    config["dataset"]["train"]["transforms"] = transforms
    trainer = make_trainer(config)
    trainer.step = 1
    trainer.model = Surface(trainer, size).train()
    out, _ = forward_and_loss(trainer, first_batch(trainer))
    return out.log


VARIANTS = {
    "eV": ("eV", None, 0.0, False),
    "eV, 1 kcal/mol": ("eV", units.kcal / units.mol, 0.0, False),
    "eV, own scale": ("eV", 2.5, -4.0, False),
    "kcal/mol": ("kcal/mol", None, 0.0, False),
    "kcal/mol, own scale": ("kcal/mol", 2.5, -4.0, False),
    "kJ/mol": ("kJ/mol", 0.5, 1.0, False),
    "Hartree": ("Hartree", None, 0.0, False),
    "Hartree, own scale": ("Hartree", 2.5, -4.0, False),
    "eV, references": ("eV", None, 0.0, True),
    "eV, references, 1 kcal/mol": ("eV", units.kcal / units.mol, 0.0, True),
    "Hartree, references": ("Hartree", 2.5, -4.0, True),
}


@pytest.fixture(scope="module")
def in_ev(tmp_path_factory) -> dict:
    return terms(tmp_path_factory.mktemp("unit") / "eV", *VARIANTS["eV"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_weak_terms_are_in_kcal_per_mol_whatever_the_labels_are_in(tmp_path, in_ev, variant):
    """Raw weak terms are physical quantities: (kcal/mol)^2."""
    found = terms(tmp_path / "data", *VARIANTS[variant])
    for name in ("loss_pitc", "loss_pisc", "loss_wl"):
        assert found[name].item() == pytest.approx(in_ev[name].item(), rel=1e-4), name


@pytest.mark.parametrize("fn", ["mae", "mse"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ratio_of_weak_terms_to_the_supervised_energy_is_fixed(tmp_path, variant, fn):
    found = terms(tmp_path / "data", *VARIANTS[variant], fn=fn)
    paper = terms(tmp_path / "paper", *VARIANTS["kcal/mol"], fn=fn)
    for name in ("pitc", "pisc", "wl"):
        ratio = (found[f"weighted_{name}"] / found["weighted_energy"]).item()
        expected = (paper[f"weighted_{name}"] / paper["weighted_energy"]).item()
        assert ratio == pytest.approx(expected, rel=1e-4), name


def test_normaliser_of_one_entry(tmp_path, tiny_data):
    """As npz files hold them that were written as arrays."""
    np.savez(tmp_path / "array.npz", mean=[0.0], rmsd=[units.kcal / units.mol])
    logs = []
    for normaliser in ({"file": str(tmp_path / "array.npz")}, {"mean": 0.0, "rmsd": units.kcal / units.mol}):
        config = make_config(tiny_data, tmp_path, piwsl={"c_pitc": 1.0, "c_pisc": 1.0})
        config["dataset"]["train"]["transforms"]["normalizer"] = {"energy": normaliser, "forces": normaliser}
        trainer = make_trainer(config)
        trainer.step = 1
        logs.append(forward_and_loss(trainer, first_batch(trainer))[0].log)
    assert logs[0].keys() == logs[1].keys()
    for name, value in logs[0].items():
        assert value.item() == pytest.approx(logs[1][name].item(), rel=1e-6), name


def test_coefficients_hold_for_kcal_per_mol(tmp_path):
    """In labels of kcal/mol without normaliser the total is the paper's Eq. 5 as printed."""
    found = terms(tmp_path / "data", "kcal/mol", None, 0.0, False)
    for name, weight in (("pitc", 1.2), ("pisc", 0.8), ("wl", 0.5)):
        assert found[f"weighted_{name}"].item() == pytest.approx(
            weight * found[f"loss_{name}"].item(), rel=1e-6
        )


def test_wrong_unit_is_noticed_by_this_test(tmp_path, in_ev):
    """A unit that is not that of the labels changes the balance: the tests above can fail."""
    folder = tmp_path / "data"
    found = terms(folder, "eV", None, 0.0, False, energy_unit="kcal/mol")
    assert found["loss_pitc"].item() != pytest.approx(in_ev["loss_pitc"].item(), rel=0.5)


def test_adversarial_direction_with_references(tmp_path):
    """The sign of the energy error needs the references taken off the label."""
    plain = terms(tmp_path / "a", "eV", None, 0.0, False, perturbation="adversarial")
    shifted = terms(tmp_path / "b", "eV", 2.5, -4.0, True, perturbation="adversarial")
    for name in ("loss_pitc", "loss_pisc", "loss_wl"):
        assert shifted[name].item() == pytest.approx(plain[name].item(), rel=1e-4), name


def test_weak_terms_keep_their_digits_beside_large_totals(tmp_path):
    """-400,000 kcal/mol of references leave no digits in float32; the residuals never see them."""
    folder = tmp_path / "data"
    found = terms(folder, "eV", units.kcal / units.mol, 0.0, True, eps_max=1e-3, magnitude="fixed")
    plain = terms(
        tmp_path / "plain", "eV", units.kcal / units.mol, 0.0, False, eps_max=1e-3, magnitude="fixed"
    )
    assert found["loss_pitc"].item() == pytest.approx(plain["loss_pitc"].item(), rel=1e-6)


@pytest.mark.parametrize(
    ("model", "stdev", "warns"), [("schnet", 3, True), ("painn", 3, False), ("schnet", None, False)]
)
def test_forces_that_are_a_gradient_have_its_unit(tiny_data, tmp_path, caplog, model, stdev, warns):
    """Two widths make F a multiple of -dE/dr."""
    config = make_config(tiny_data, tmp_path, model)
    if stdev:
        config["dataset"]["train"]["transforms"]["normalizer"]["energy"] = {"mean": 0.0, "stdev": stdev}
    trainer = make_trainer(config)
    caplog.clear()
    trainer.settle()
    assert ("other widths for energy than for forces" in caplog.text) == warns
