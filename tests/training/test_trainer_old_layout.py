"""Configs in the layout before fairchem 1.0."""

from __future__ import annotations

from pathlib import Path

from conftest import labelled_molecules, make_config, make_trainer, to_data, write_lmdb

CASE_D = {"c_pitc": 1.2, "c_pisc": 0.01, "eps_max": 0.025}


def test_config_in_the_old_layout_trains(tmp_path):
    """Before fairchem 1.0, losses stood under `optim`, metrics under `task`, and labels were `y` and `force`."""
    records = [to_data(atoms, i) for i, atoms in enumerate(labelled_molecules(8))]
    for record in records:
        record.y, record.force = record.energy, record.forces
        del record.energy, record.forces
    for split in ("train", "val", "test"):
        write_lmdb(tmp_path / f"{split}.lmdb", records)
    config = make_config(tmp_path, tmp_path, piwsl=CASE_D, eval_every=2, force_coefficient=100)
    config.update(task={"dataset": "lmdb"}, outputs={}, loss_functions={}, evaluation_metrics={})
    trainer = make_trainer(config)
    terms: set[str] = set()
    compute = trainer._compute_metrics
    trainer._compute_metrics = lambda out, *rest: (terms.update(out.log), compute(out, *rest))[1]
    trainer.train(disable_eval_tqdm=True)
    assert terms == {
        f"{kind}_{term}" for kind in ("loss", "weighted") for term in ("energy", "forces", "pitc", "pisc")
    }
    assert (Path(trainer.config["cmd"]["checkpoint_dir"]) / "best_checkpoint.pt").exists()
