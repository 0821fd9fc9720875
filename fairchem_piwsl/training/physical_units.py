"""Between a model's outputs, the labels of a batch, and kcal/mol.

The paper's weights hold for kcal/mol. Energies count from the normaliser's mean and the element references:
both cancel in every identity, and adding them would cost float32 its digits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_piwsl.losses import Prediction


@dataclass(frozen=True)
class PhysicalUnits:
    """Converts B structures with N atoms in all to kcal/mol and kcal/mol/Angstrom."""

    #: One energy unit of the labels in kcal/mol.
    kcal_per_label: float
    #: Upstream's, by output; empty where the model works in label units.
    normalizers: Mapping[str, Any]
    #: Upstream's element references, by output.
    references: Mapping[str, Any]

    @property
    def kcal_per_output(self) -> float | Tensor:
        """One unit of the model's energy output in kcal/mol."""
        if "energy" not in self.normalizers:
            return self.kcal_per_label
        return self.kcal_per_label * self.normalizers["energy"].rmsd.reshape(())  # one entry in some files

    @property
    def fit_a_gradient(self) -> bool:
        """Whether forces are in the energy's unit per Angstrom, in outputs as in labels."""
        widths = [
            float(self.normalizers[n].rmsd) if n in self.normalizers else 1.0 for n in ("energy", "forces")
        ]
        return widths[0] == widths[1]

    def prediction(self, outputs: Mapping[str, Tensor]) -> Prediction:
        """Outputs `energy` [B, 1] and `forces` [N, 3] in kcal/mol and kcal/mol/Angstrom."""
        energy, forces = _at_least_float(outputs["energy"]), _at_least_float(outputs["forces"])
        if "forces" in self.normalizers:
            forces = self.normalizers["forces"].denorm(forces)
        return Prediction(energy.reshape(-1) * self.kcal_per_output, forces * self.kcal_per_label)

    def energy_labels(self, batch: Batch) -> Tensor:
        """Labels [B] in kcal/mol, from the zero of the predictions; NaN where there are none."""
        energy = batch.energy.view(-1, 1)
        if "energy" in self.references:
            energy = self.references["energy"].dereference(energy, batch)
        if "energy" in self.normalizers:
            energy = self.normalizers["energy"].norm(energy)
        return energy.view(-1) * self.kcal_per_output

    def force_labels(self, batch: Batch) -> Tensor:
        """Labels [N, 3] in kcal/mol/Angstrom; NaN where there are none."""
        return batch.forces * self.kcal_per_label


def _at_least_float(values: Tensor) -> Tensor:
    """Half precision (AMP) as float32: the identities are differences of nearly equal numbers."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
