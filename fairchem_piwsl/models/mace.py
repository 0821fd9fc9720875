"""MACE as a fairchem model, from hyperparameters or from a foundation-model file.

```yaml
model:
  name: fairchem_piwsl.models.mace.MACE
  otf_graph: True
  elements: [H, C, O]         # from hyperparameters
  hidden_irreps: 64x0e + 64x1o
```

```yaml
model:
  name: fairchem_piwsl.models.mace.MACE
  otf_graph: True
  foundation: MACE-OFF23_small.model
  ev_per_output: 0.0433641    # the normaliser's stdev: the file predicts eV, training works in kcal/mol
```

Energies of isolated atoms belong to fairchem's `element_references`; MACE's own are set to zero, so that none
counts twice and float32 keeps the digits of the interaction energy. `mace_files.py` writes those of a file for
fairchem, and turns a trained checkpoint into a `.model` file for MACE's own programs.

Installation: `pip install --no-deps -r requirements-mace.txt`.
"""

from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers as NUMBER_OF
from ase.data import chemical_symbols
from fairchem.core.common.registry import registry
from fairchem.core.models.base import GraphModelMixin
from torch import Tensor, nn

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.models.gradient_forces import energy_and_forces
from fairchem_piwsl.models.mace_files import head_number, import_mace, make_copyable, read_model


@registry.register_model("mace")
class MACE(nn.Module, GraphModelMixin):
    """ScaleShiftMACE (or the model in a file) behind fairchem's interface; forces are the energy gradient.

    Args:
        elements: symbols or atomic numbers that the model knows; needed without `foundation`.
        foundation: a `.model` file. It brings all hyperparameters; those given here are ignored. The file is
            needed again wherever a checkpoint is loaded. It is a pickle: load only files that you trust.
        head: name of the head to use, for files with several; default the last.
        ev_per_output: eV in one unit of the energy that this model returns (a normaliser's stdev).
        dtype: precision of the parameters, `float32` or `float64`.
        cutoff: Angstrom. All neighbours within it count: `max_neighbors` is only a bound for the list.
        avg_num_neighbors: typical number of neighbours, which scales the messages.
    """

    def __init__(
        self,
        elements: list[str | int] | None = None,
        foundation: str | None = None,
        head: str | None = None,
        ev_per_output: float = 1.0,
        dtype: str = "float32",
        use_pbc: bool = True,
        use_pbc_single: bool = False,
        regress_forces: bool = True,
        otf_graph: bool = False,
        max_neighbors: int = 1000,
        cutoff: float = 5.0,
        num_bessel: int = 8,
        num_polynomial_cutoff: int = 5,
        max_ell: int = 3,
        num_interactions: int = 2,
        hidden_irreps: str = "128x0e + 128x1o",
        mlp_irreps: str = "16x0e",
        correlation: int = 3,
        avg_num_neighbors: float = 15.0,
        radial_mlp: list[int] | None = None,
    ) -> None:
        super().__init__()
        if dtype not in ("float32", "float64"):
            raise UserError(f"model.dtype of MACE is {dtype!r}: use float32 or float64.")
        if foundation is not None:
            self.mace = read_model(foundation)
        elif elements:
            self.mace = _from_hyperparameters(
                _numbers(elements),
                r_max=cutoff,
                num_bessel=num_bessel,
                num_polynomial_cutoff=num_polynomial_cutoff,
                max_ell=max_ell,
                num_interactions=num_interactions,
                hidden_irreps=hidden_irreps,
                MLP_irreps=mlp_irreps,
                correlation=correlation,
                avg_num_neighbors=avg_num_neighbors,
                radial_MLP=radial_mlp,
            )
        else:
            raise UserError("model of MACE needs `elements` (to build one) or `foundation` (a .model file).")
        make_copyable(self.mace)
        self.head = head_number(self.mace, head, "model.head")
        self.mace.atomic_energies_fn.atomic_energies.zero_()
        self._dtype = getattr(torch, dtype)
        self.mace.to(self._dtype)
        for parameter in self.mace.parameters():
            parameter.requires_grad_()
        self.use_pbc = use_pbc
        self.use_pbc_single = use_pbc_single
        self.regress_forces = regress_forces
        self.otf_graph = otf_graph
        self.max_neighbors = max_neighbors
        self.cutoff = float(self.mace.r_max)
        self.ev_per_output = ev_per_output
        columns = torch.full((len(chemical_symbols),), -1)
        columns[self.mace.atomic_numbers] = torch.arange(len(self.mace.atomic_numbers))
        self.register_buffer("element_columns", columns, persistent=False)

    def forward(self, data: Any) -> dict[str, Tensor]:
        """Energy `[B]` in units of `ev_per_output`, forces `[N, 3]` in the same unit per Angstrom."""
        return energy_and_forces(self._energy, data, self.regress_forces)

    def _energy(self, data: Any) -> Tensor:
        graph = self.generate_graph(data)
        columns = self.element_columns[data.atomic_numbers.long()]
        if (columns < 0).any():
            unknown = sorted({chemical_symbols[z] for z in data.atomic_numbers[columns < 0].long().tolist()})
            raise UserError(
                f"MACE does not know {', '.join(unknown)}: add it to model.elements or choose another foundation."
            )
        positions = data.pos if data.pos.requires_grad else data.pos.detach()
        inputs = {
            "positions": positions.to(self._dtype),
            "node_attrs": nn.functional.one_hot(columns, len(self.mace.atomic_numbers)).to(self._dtype),
            "edge_index": graph.edge_index,
            # fairchem's vectors point from target to source, MACE's from source to target
            "shifts": -graph.offset_distances.to(self._dtype),
            "unit_shifts": -graph.cell_offsets.to(self._dtype),
            "cell": data.cell.to(self._dtype).view(-1, 3),
            "batch": data.batch,
            "ptr": data.ptr,
            "head": torch.full_like(data.natoms, self.head),
        }
        energy = self.mace(inputs, compute_force=False)["energy"]
        return energy.to(data.pos.dtype) / self.ev_per_output


def _from_hyperparameters(numbers: list[int], **settings: Any) -> nn.Module:
    modules = import_mace()
    from e3nn import o3

    settings["hidden_irreps"] = o3.Irreps(settings["hidden_irreps"])
    settings["MLP_irreps"] = o3.Irreps(settings["MLP_irreps"])
    return modules.ScaleShiftMACE(
        **settings,
        interaction_cls=modules.RealAgnosticResidualInteractionBlock,
        interaction_cls_first=modules.RealAgnosticResidualInteractionBlock,
        num_elements=len(numbers),
        atomic_energies=np.zeros(len(numbers)),
        atomic_numbers=numbers,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def _numbers(elements: list[str | int]) -> list[int]:
    """Sorted atomic numbers of symbols or numbers."""
    numbers = set()
    for element in elements:
        number = NUMBER_OF.get(element) if isinstance(element, str) else element
        if not isinstance(number, int) or not 0 < number < len(chemical_symbols):
            raise UserError(f"model.elements of MACE holds {element!r}, which is no chemical element.")
        numbers.add(number)
    return sorted(numbers)
