"""Element references for fine-tuning with fairchem 2: those of a checkpoint, moved to the level of theory of new labels.

    python scripts/fairchem2_references.py CHECKPOINT DATA.aselmdb [DATA SET]

prints `references=[...]`, an entry for each atomic number from 0 on: a key of configs/fairchem2/aspirin_fine_tune.yml.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from fairchem.core import FAIRChemCalculator
from fairchem.core.datasets.ase_datasets import AseDBDataset
from fairchem.core.units.mlip_unit import load_predict_unit
from fairchem.core.units.mlip_unit.api.inference import InferenceSettings
from fairchem.core.units.mlip_unit.utils import load_inference_model

from fairchem_piwsl.datasets.element_references import composition, fit_references
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import errors_as_sentences


def moved_references(checkpoint: str, data: str, dataset: str | None = None) -> np.ndarray:
    """Energy of each element [119] in eV, by atomic number, with which fine-tuning starts closest to the labels.

    It starts from the checkpoint's last weights, not from their average, with which others predict.

    Args:
        checkpoint: an `inference_ckpt.pt`.
        data: ASE database with energies in eV; structures without one are left out.
        dataset: the name of the data set in the checkpoint's tasks, where there are several.

    Raises:
        UserError: no structure has an energy.
    """
    calculator = FAIRChemCalculator(load_predict_unit(checkpoint, InferenceSettings(), device="cpu"), dataset)
    last = load_inference_model(checkpoint, return_checkpoint=False)
    calculator.predictor.model.module.load_state_dict(last.state_dict())
    structures = AseDBDataset({"src": data})
    compositions, differences = [], []
    for i in range(len(structures)):
        atoms = structures.get_atoms(i)
        energy = atoms.calc.results.get("energy", np.nan) if atoms.calc else np.nan
        if np.isfinite(energy):
            compositions.append(composition(atoms.numbers))
            differences.append(energy - calculator.get_potential_energy(atoms))
    if not differences:
        raise UserError(
            f"{data} has no energies; references are fitted to energies of the new level of theory."
        )
    references = fit_references(np.array(compositions), np.array(differences))
    for task in calculator.predictor.dataset_to_tasks[calculator.task_name]:
        if task.property == "energy" and task.element_references is not None:
            old = task.element_references.element_references.cpu().numpy().ravel()
            references[: len(old)] += old[: len(references)]
    return references


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="an inference_ckpt.pt")
    parser.add_argument("data", type=Path, help="ASE database with energies in eV")
    parser.add_argument("dataset", nargs="?", help="name of the data set in the checkpoint's tasks")
    args = parser.parse_args()
    with errors_as_sentences("fairchem2_references.py"):
        for path in (args.checkpoint, args.data):
            if not path.exists():
                raise UserError(f"{path} does not exist; correct the path.")
        values = moved_references(str(args.checkpoint), str(args.data), args.dataset)
    print(f"references=[{','.join(f'{value:.9g}' for value in values)}]")


if __name__ == "__main__":
    main()
