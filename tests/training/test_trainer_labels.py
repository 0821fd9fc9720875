"""Training, validation and prediction where labels are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    KCAL_PER_MOL,
    labelled_molecules,
    make_config,
    make_trainer,
    parameters,
    to_data,
    write_lmdb,
)
from helpers_trainer import CASE_D, EV, first_batch, forward_and_loss, separate_call, trainer_at_step

from fairchem_piwsl.errors import UserError

WEAK = {"c_pitc": 0.1, "c_pisc": 0.01, "c_wl": 0.1, "eps_max": 0.02}


@pytest.fixture(scope="module")
def energy_only(tmp_path_factory) -> Path:
    """Records without the key `forces`."""
    return write(tmp_path_factory.mktemp("energy_only"), forces=lambda i: False)


@pytest.fixture(scope="module")
def some_forces(tmp_path_factory) -> Path:
    """Forces in every third record only, an energy missing in every fourth."""
    folder = tmp_path_factory.mktemp("some")
    return write(folder, forces=lambda i: i % 3 == 0, energy=lambda i: i % 4 != 1)


@pytest.fixture(scope="module")
def nan_forces(tmp_path_factory) -> Path:
    """The same, with NaN in place of missing keys."""
    return write(
        tmp_path_factory.mktemp("nan"), forces=lambda i: i % 3 == 0, energy=lambda i: i % 4 != 1, nan=True
    )


def write(folder: Path, forces, energy=lambda i: True, nan: bool = False) -> Path:
    for split, count in {"train": 12, "val": 6, "test": 6}.items():
        data = []
        for i, atoms in enumerate(labelled_molecules(count)):
            record = to_data(atoms, i, energy=nan or energy(i), forces=nan or forces(i))
            if nan and not forces(i):
                record.forces[:] = torch.nan
            if nan and not energy(i):
                record.energy = torch.full_like(record.energy, torch.nan)
            data.append(record)
        write_lmdb(folder / f"{split}.lmdb", data)
    return folder


def config_for(data: Path, run_dir: Path, primary: str = "energy_rmse", **more) -> dict:
    config = make_config(data, run_dir, **more)
    config["evaluation_metrics"]["primary_metric"] = primary
    return config


# ------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("data", ["energy_only", "some_forces", "nan_forces"])
@pytest.mark.parametrize("piwsl", [None, WEAK, {"noisy_nodes": True}], ids=["plain", "weak", "noisy"])
def test_train_validate_predict(request, tmp_path, data, piwsl):
    trainer = make_trainer(config_for(request.getfixturevalue(data), tmp_path, piwsl=piwsl))
    before = parameters(trainer)
    trainer.train(disable_eval_tqdm=True)
    assert any(not torch.equal(a, b) for a, b in zip(before, parameters(trainer), strict=True))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    metrics = trainer.validate(disable_tqdm=True)
    assert all(np.isfinite(entry["metric"]) for entry in metrics.values())
    forces = [name for name in metrics if name.startswith("forces") or name == "cosine_similarity"]
    assert bool(forces) is (data != "energy_only")
    assert {"energy_mae", "energy_rmse", "energy_per_atom_rmse"} <= metrics.keys()
    predictions = trainer.predict(trainer.test_loader, disable_tqdm=True)
    assert len(predictions["energy"]) == len(predictions["ids"]) == 6
    assert np.isfinite(np.concatenate(predictions["forces"])).all()


@pytest.mark.parametrize("kind", ["normalizer", "element_references"])
def test_a_fit_to_missing_labels_is_refused(nan_forces, tmp_path, kind):
    """Its NaN would make every label one that is missing: the loss would be zero, and no error would show."""
    targets: dict[str, Any] = {"normalizer": {"energy": {"mean": 0.0}}, "element_references": ["energy"]}
    config = config_for(nan_forces, tmp_path)
    config["dataset"]["train"]["transforms"] = {kind: {"fit": {"targets": targets[kind], "batch_size": 4}}}
    with pytest.raises(UserError, match=rf"transforms\.{kind} of 'energy' is NaN"):
        make_trainer(config)


def test_a_normaliser_without_width_is_refused(energy_only, tmp_path):
    config = config_for(energy_only, tmp_path)
    np.savez(tmp_path / "equal.npz", mean=0.0, std=0.0, rmsd=0.0)
    config["dataset"]["train"]["transforms"]["normalizer"]["energy"] = {"file": str(tmp_path / "equal.npz")}
    with pytest.raises(UserError, match=r"transforms\.normalizer of 'energy' .* has no width"):
        make_trainer(config)


def test_element_references_of_other_elements_are_refused(energy_only, tmp_path):
    """Energies would be off by those of all electrons, and no training learns that."""
    config = config_for(energy_only, tmp_path)
    table = np.zeros(119)
    table[[1, 22]] = -13.6, -1588.0  # Ti instead of C and O
    np.savez(tmp_path / "others.npz", coeff=table)
    config["dataset"]["train"]["transforms"]["element_references"] = {
        "energy": {"file": str(tmp_path / "others.npz")}
    }
    with pytest.raises(UserError, match=r"element_references of 'energy' has no value for C, O, which"):
        make_trainer(config)


@pytest.mark.parametrize("piwsl", [None, WEAK], ids=["plain", "weak"])
def test_missing_key_and_nan_are_the_same(some_forces, nan_forces, tmp_path, piwsl):
    trained = []
    for data in (some_forces, nan_forces):
        trainer = make_trainer(config_for(data, tmp_path, piwsl=piwsl))
        trainer.train(disable_eval_tqdm=True)
        trained.append(parameters(trainer))
    for a, b in zip(*trained, strict=True):
        assert torch.equal(a, b)


def test_metrics_over_what_is_there(some_forces, tmp_path):
    trainer = make_trainer(config_for(some_forces, tmp_path))
    trainer.ema = None
    found = {name: entry["metric"] for name, entry in trainer.validate(disable_tqdm=True).items()}
    energy, forces = [], []
    for batch in trainer.val_loader:
        e, f = separate_call(trainer.model, batch, batch.pos)
        energy.append(e * KCAL_PER_MOL - batch.energy.numpy())
        forces.append(f * KCAL_PER_MOL - batch.forces.numpy())
    energy, forces = np.concatenate(energy), np.concatenate(forces)
    assert np.isnan(energy).sum() == 2
    assert np.isnan(forces).any()
    assert found["energy_mae"] == pytest.approx(np.nanmean(np.abs(energy)), rel=1e-5)
    assert found["energy_rmse"] == pytest.approx(np.sqrt(np.nanmean(energy**2)), rel=1e-5)
    assert found["forces_mae"] == pytest.approx(np.nanmean(np.abs(forces)), rel=1e-5)
    assert found["forces_rmse"] == pytest.approx(np.sqrt(np.nanmean(forces**2)), rel=1e-5)


# ------------------------------------------------------------------ losses


def force_head(trainer) -> list[torch.Tensor]:
    head = [p.detach().clone() for name, p in trainer.model.named_parameters() if "out_forces" in name]
    assert head
    return head


def test_pitc_trains_forces_without_force_labels(energy_only, tmp_path):
    """The point of the method: with energies only, plain training leaves the force head where it was."""
    changed = {}
    for name, piwsl in {"plain": None, "pitc": {"c_pitc": 0.1}, "pisc": {"c_pisc": 0.1}}.items():
        # without weight decay only a gradient moves a parameter
        config = config_for(energy_only, tmp_path, piwsl=piwsl, optimizer_params={"weight_decay": 0})
        trainer = make_trainer(config)
        before = force_head(trainer)
        trainer.train(disable_eval_tqdm=True)
        changed[name] = [not torch.equal(a, b) for a, b in zip(before, force_head(trainer), strict=True)]
    assert not any(changed["plain"])
    assert all(changed["pitc"])
    assert all(changed["pisc"])


def test_supervised_terms_are_means_over_labelled_rows(some_forces, tmp_path):
    trainer = trainer_at_step(some_forces, tmp_path, None)
    batch = next(b for b in trainer.train_loader.loader if b.energy.isnan().any())
    out, _ = forward_and_loss(trainer, batch)
    energy, forces = (out[key].detach() for key in ("energy", "forces"))
    error = (energy.ravel() - batch.energy / KCAL_PER_MOL).abs()
    norm = (forces - batch.forces / KCAL_PER_MOL).norm(dim=-1)
    assert out.log["loss_energy"].item() == pytest.approx(error.nanmean().item(), rel=1e-5)
    assert out.log["loss_forces"].item() == pytest.approx(norm.nanmean().item(), rel=1e-5)


@pytest.mark.parametrize("forces", ["reference", "predicted"])
def test_weak_label_is_a_mean_over_structures_with_the_labels_it_needs(some_forces, tmp_path, forces):
    trainer = trainer_at_step(some_forces, tmp_path, {"c_wl": 1.0, "wl_forces": forces, "eps_max": 0.05})
    for batch in trainer.train_loader.loader:
        before = batch.clone()
        out, loss = forward_and_loss(trainer, batch)
        dr, unit = out.moved["C"].double().numpy(), KCAL_PER_MOL * EV
        _, f_a = separate_call(trainer.model, before, before.pos)
        e_c, _ = separate_call(trainer.model, before, before.pos + out.moved["C"])
        label_e, label_f = before.energy.numpy() * EV, before.forces.numpy() * EV
        slope = label_f if forces == "reference" else f_a * unit
        values = []
        for i in range(before.num_graphs):
            own = (before.batch == i).numpy()
            values.append((label_e[i] - (dr[own] * slope[own]).sum() - e_c[i] * unit) ** 2)
        value = out.log["loss_wl"].item()
        if np.isnan(values).all():
            assert value == 0
        else:
            assert value == pytest.approx(np.nanmean(values), rel=1e-3)
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in trainer.model.parameters() if p.grad is not None)


def test_adversarial_direction_without_force_labels(energy_only, tmp_path):
    """F_ref = 0: the direction is that of the predicted forces (Eq. A1)."""
    piwsl = {"c_pitc": 1, "perturbation": "adversarial", "magnitude": "fixed", "eps_max": 0.01}
    trainer = trainer_at_step(energy_only, tmp_path, piwsl, primary="energy_rmse")
    batch = first_batch(trainer)
    before = batch.clone()
    out, loss = forward_and_loss(trainer, batch)
    _, forces = separate_call(trainer.model, before, before.pos)
    cosine = (out.moved["C"].numpy() * forces).sum(1) / (0.01 * np.linalg.norm(forces, axis=1))
    np.testing.assert_allclose(np.abs(cosine), 1, rtol=1e-4)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("kind", ["adversarial", "uniform"])
def test_missing_energies_leave_the_weak_terms_alone(some_forces, tmp_path, kind):
    """PITC and PISC need no labels: every structure counts."""
    trainer = trainer_at_step(some_forces, tmp_path, {**CASE_D, "perturbation": kind})
    for batch in trainer.train_loader.loader:
        out, loss = forward_and_loss(trainer, batch)
        assert torch.isfinite(loss)
        assert out.log["loss_pitc"] > 0


# ------------------------------------------------------------------ fixed atoms


@pytest.fixture
def with_fixed_atoms(tmp_path):
    """Open Catalyst slabs: atoms marked `fixed`."""
    for split, count in {"train": 8, "val": 3, "test": 3}.items():
        data = [to_data(atoms, i) for i, atoms in enumerate(labelled_molecules(count))]
        for record in data:
            record.fixed[0] = 1
        write_lmdb(tmp_path / f"{split}.lmdb", data)
    return tmp_path


def test_gradients_at_fixed_atoms_do_not_count(with_fixed_atoms):
    """Their forces are not trained, so that there is nothing for the energy to follow."""
    trainer = trainer_at_step(with_fixed_atoms, with_fixed_atoms, {"auto": True})
    batch = first_batch(trainer)
    out = trainer._forward(batch)
    [pitc] = [term for term in trainer.terms(out, batch) if term.name == "pitc"]
    (by_gradient,) = torch.autograd.grad(pitc.value, out.at["A"].gradient)
    assert torch.equal((by_gradient != 0).any(-1), batch.fixed == 0)


def test_fixed_atoms_neither_move_nor_count(with_fixed_atoms):
    trainer = trainer_at_step(with_fixed_atoms, with_fixed_atoms, {**CASE_D, "c_wl": 0.1})
    batch = first_batch(trainer)
    out, _ = forward_and_loss(trainer, batch)
    fixed = batch.fixed == 1
    for dr in (out.moved["C"], out.moved["B"]):
        assert dr[fixed].eq(0).all()
        assert dr[~fixed].ne(0).any(-1).all()
    norm = (out["forces"].detach() - batch.forces / KCAL_PER_MOL).norm(dim=-1)[~fixed].mean()
    assert out.log["loss_forces"].item() == pytest.approx(norm.item(), rel=1e-5)
    trainer.train(disable_eval_tqdm=True)


@pytest.mark.parametrize("eval_on_free", [True, False])
def test_a_batch_of_fixed_atoms_has_no_force_loss(with_fixed_atoms, eval_on_free):
    """Upstream cannot reshape the forces of no atoms; its energy is trained like any other."""
    for split in ("train", "val"):
        data = [to_data(atoms, i) for i, atoms in enumerate(labelled_molecules(3))]
        data[1].fixed[:] = 1
        (with_fixed_atoms / f"{split}.lmdb").unlink()
        write_lmdb(with_fixed_atoms / f"{split}.lmdb", data)
    config = make_config(
        with_fixed_atoms, with_fixed_atoms, piwsl={"auto": True}, batch_size=1, eval_batch_size=1
    )
    config["outputs"]["forces"]["eval_on_free_atoms"] = eval_on_free
    trainer = make_trainer(config)
    trainer.model.train()
    batch = next(batch for batch in trainer.train_loader.loader if batch.fixed.all())
    out, loss = forward_and_loss(trainer, batch)
    assert out.log["loss_forces"] == 0
    assert out.log["loss_energy"] > 0
    assert batch.fixed.all()
    assert batch.forces.isfinite().all()
    loss.backward()
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step == 6


def test_energy_loss_alone_leaves_the_force_output_to_pitc(tiny_data, tmp_path):
    """Every parameter gets a gradient (distributed training insists), of zero in the force output without PITC."""
    for piwsl, learns in (({}, False), ({"c_pitc": 1.0}, True)):
        config = make_config(tiny_data, tmp_path, "painn", piwsl)
        config["loss_functions"] = [{"energy": {"fn": "mae", "coefficient": 1}}]
        trainer = make_trainer(config)
        trainer.step = 1
        trainer.model.train()
        batch = next(iter(trainer.train_loader))
        trainer._compute_loss(trainer._forward(batch), batch).backward()
        assert all(p.grad is not None for p in trainer.model.parameters() if p.requires_grad)
        output = [p.grad for n, p in trainer.model.named_parameters() if n.startswith("out_forces")]
        assert output
        assert any(gradient.abs().sum() > 0 for gradient in output) == learns


def test_forces_of_weight_zero_teach_nothing(tiny_data, tmp_path):
    """As without the entry, the force output is left to PITC."""
    gradients = []
    for forces in ([], [{"forces": {"fn": "l2mae", "coefficient": 0}}]):
        config = make_config(tiny_data, tmp_path, piwsl={"auto": True})
        config["loss_functions"] = [{"energy": {"fn": "mae", "coefficient": 1}}, *forces]
        trainer = make_trainer(config)
        trainer.step = 1
        trainer.model.train()
        forward_and_loss(trainer, first_batch(trainer))[1].backward()
        gradients.append([p.grad for n, p in trainer.model.named_parameters() if n.startswith("out_forces")])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)
    assert any(gradient.abs().sum() > 0 for gradient in gradients[0])
