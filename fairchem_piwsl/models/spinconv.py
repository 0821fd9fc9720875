"""SpinConv: rotation-invariant message passing by convolutions over longitudes (arXiv 2106.09575).

fairchem-core 1.x no longer ships it. Checkpoints of ocpmodels 0.x load under the same parameter names.

```yaml
model:
  name: fairchem_piwsl.models.spinconv.SpinConv
  hidden_channels: 32
  mid_hidden_channels: 256
  num_interactions: 3
  force_estimator: random   # or grad: exact gradient of the energy
  otf_graph: True
```
"""

from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import GraphData, GraphModelMixin
from fairchem.core.models.scn.smearing import GaussianSmearing
from torch import Tensor, nn
from torch.nn import functional as F

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.models.gradient_forces import energy_and_forces
from fairchem_piwsl.models.sphere import splat_spectrum
from fairchem_piwsl.models.spinconv_geometry import (
    edge_frames,
    incoming_edges,
    nearest_pairs,
    random_rotations,
    rows,
    views_along_axes,
)
from fairchem_piwsl.models.spinconv_layers import (
    CHANNELS_PER_GROUP,
    DistanceBlock,
    EmbeddingBlock,
    ForceOutputBlock,
    MessageBlock,
)


@registry.register_model("spinconv")
class SpinConv(nn.Module, GraphModelMixin):
    """Spin convolution network; the defaults are the paper's settings.

    force_estimator `random`: forces read from spheres in `num_rand_rotations` random orientations per atom;
    `grad`: the exact gradient of the energy. Distances in Angstrom.
    """

    def __init__(
        self,
        use_pbc: bool = True,
        use_pbc_single: bool = False,
        regress_forces: bool = True,
        otf_graph: bool = False,
        hidden_channels: int = 32,
        mid_hidden_channels: int = 256,
        num_interactions: int = 3,
        num_basis_functions: int = 512,
        basis_width_scalar: float = 3.0,
        max_num_neighbors: int = 40,
        sphere_size_lat: int = 16,
        sphere_size_long: int = 12,
        cutoff: float = 6.0,
        distance_block_scalar_max: float = 2.0,
        max_num_elements: int = 90,
        embedding_size: int = 32,
        sphere_message: str = "fullconv",
        output_message: str = "fullconv",
        force_estimator: str = "random",
        num_rand_rotations: int = 5,
        scale_distances: bool = True,
    ) -> None:
        super().__init__()
        _check("sphere_message", sphere_message, ("fullconv",))
        _check("output_message", output_message, ("fullconv",))
        _check("force_estimator", force_estimator, ("random", "grad"))
        if hidden_channels % CHANNELS_PER_GROUP:
            raise UserError(
                f"model.hidden_channels of SpinConv is {hidden_channels}: use a multiple of {CHANNELS_PER_GROUP}."
            )
        self.use_pbc = use_pbc
        self.use_pbc_single = use_pbc_single
        self.regress_forces = regress_forces
        self.otf_graph = otf_graph
        self.cutoff = cutoff
        self.max_neighbors = max_num_neighbors
        self.enforce_max_neighbors_strictly = False  # equidistant neighbours stay together, as published
        self.max_num_elements = max_num_elements
        self.n_lat, self.n_long = sphere_size_lat, sphere_size_long
        self.force_estimator = force_estimator
        self.num_rand_rotations = num_rand_rotations
        hidden, mid = hidden_channels, mid_hidden_channels
        sphere = (hidden, mid, sphere_size_lat, sphere_size_long, embedding_size, max_num_elements)

        self.dist_block = DistanceBlock(
            num_basis_functions,
            mid,
            cutoff,
            basis_width_scalar,
            distance_block_scalar_max,
            max_num_elements,
            scale_distances,
        )
        self.distfc1 = nn.Linear(mid, mid)
        self.distfc2 = nn.Linear(mid, mid)
        self.embeddingblock2 = EmbeddingBlock(mid, mid, hidden, embedding_size, max_num_elements)
        self.message_blocks = nn.ModuleList(MessageBlock(*sphere) for _ in range(num_interactions))
        self.energyembeddingblock = EmbeddingBlock(hidden, mid, 1, embedding_size, max_num_elements)
        if self.draws_random_numbers:
            self.force_output_block = ForceOutputBlock(*sphere)
            # Not used by these settings, kept so that published state dicts load strictly.
            self.distance_expansion_forces = GaussianSmearing(
                0.0, cutoff, num_basis_functions, basis_width_scalar
            )

    @property
    def draws_random_numbers(self) -> bool:
        """Whether forces are read off in random orientations, in training and in evaluation."""
        return self.regress_forces and self.force_estimator == "random"

    def generate_graph(self, data: Any, *args: Any, **kwargs: Any) -> GraphData:
        """Upstream's neighbour list, cut to pairs of atoms that are near for one of both ends."""
        graph = super().generate_graph(data, *args, **kwargs)
        keep = nearest_pairs(graph.edge_index, graph.edge_distance, len(data.pos), self.max_neighbors)
        image = data.batch[graph.edge_index[1, keep]]
        graph.edge_index = graph.edge_index[:, keep]
        graph.edge_distance = graph.edge_distance[keep]
        graph.edge_distance_vec = graph.edge_distance_vec[keep]
        graph.cell_offsets = graph.cell_offsets[keep]
        graph.offset_distances = graph.offset_distances[keep]
        graph.neighbors = torch.bincount(image, minlength=len(data.natoms))
        return graph

    def forward(self, data: Any) -> dict[str, Tensor]:
        """Energy `[B]` and, if asked for, forces `[N, 3]`."""
        if self.draws_random_numbers:
            return self._outputs(data)
        return energy_and_forces(lambda batch: self._outputs(batch)["energy"], data, self.regress_forces)

    def _outputs(self, data: Any) -> dict[str, Tensor]:
        """Energy, and forces where they are not its gradient."""
        graph = self.generate_graph(data)
        source, target = graph.edge_index
        number = data.atomic_numbers.long()
        elements = number[source], number[target]
        unit = F.normalize(graph.edge_distance_vec, dim=-1)
        incoming, mask = incoming_edges(target, len(number))

        # Edges that arrive at an edge's source, on the sphere in the edge's frame
        on_sphere = incoming[source]
        with torch.autocast(unit.device.type, enabled=False):  # angles need all digits
            frames = edge_frames(
                graph.edge_distance_vec, graph.edge_distance, target, len(number), self.cutoff
            )
            seen = torch.einsum("eij,edj->edi", frames, rows(unit, on_sphere))
            weights = splat_spectrum(seen, mask[source], self.n_lat, self.n_long)

        x_dist = self.dist_block(graph.edge_distance, *elements)
        x = F.silu(self.distfc2(F.silu(self.distfc1(x_dist))))
        messages = self.embeddingblock2(x, *elements)
        for i, block in enumerate(self.message_blocks):
            update = block(messages, x_dist, weights, on_sphere, elements)
            messages = messages + update if i > 0 else update

        per_atom = messages.new_zeros(len(number), messages.shape[1]).index_add(0, target, messages)
        per_atom = per_atom / (self.max_neighbors / 2 + 1)
        per_atom = self.energyembeddingblock(per_atom, number, number).squeeze(-1)
        energy = per_atom.new_zeros(len(data.natoms)).index_add(0, data.batch, per_atom)
        if not self.draws_random_numbers:
            return {"energy": energy}
        return {"energy": energy, "forces": self._random_forces(messages, unit, incoming, mask, number)}

    def _random_forces(
        self, messages: Tensor, unit: Tensor, incoming: Tensor, mask: Tensor, number: Tensor
    ) -> Tensor:
        """Mean over random orientations of the forces read off around each atom, `[N, 3]`."""
        n_atoms, n_neighbours = incoming.shape
        with torch.autocast(unit.device.type, enabled=False):
            rotation = random_rotations(n_atoms, self.num_rand_rotations, unit)
            views = views_along_axes(rotation)  # [N, R * 3, 3, 3]
            seen = torch.einsum("nvij,ndj->ndvi", views, unit[incoming])
            mask = mask[:, :, None].expand(-1, -1, views.shape[1])
            weights = splat_spectrum(seen, mask, self.n_lat, self.n_long).view(n_atoms, n_neighbours, -1)
        along = self.force_output_block(weights, rows(messages, incoming), number).view(n_atoms, -1, 3)
        return torch.einsum("nrij,nri->nj", rotation, along) / self.num_rand_rotations


def _check(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"model.{key} of SpinConv is {value!r}: use {' or '.join(known)}.")
