"""Time of a SpinConv training step: this package's version against a straightforward one.

    python tests/helpers_spinconv.py --structures 4 --threads 2
    python tests/helpers_spinconv.py --file examples/aspirin/test.extxyz.gz

The straightforward version follows the publication step by step: four scatter additions onto the grid of each
sphere, a padded circular convolution, and a loop over random rotations and axes for the forces. Both give the
same numbers.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
from ase.build import molecule
from ase.io import read
from torch import Tensor
from torch.nn import functional as F

from fairchem_piwsl.models import spinconv as fast
from fairchem_piwsl.models.sphere import sphere_coordinates


class StraightforwardSpinConv(fast.SpinConv):
    """SpinConv with spheres on a grid; parameters and results are those of `SpinConv`."""

    def _outputs(self, data: Any) -> dict[str, Tensor]:
        graph = self.generate_graph(data)
        source, target = graph.edge_index
        number = data.atomic_numbers.long()
        elements = number[source], number[target]
        unit = F.normalize(graph.edge_distance_vec, dim=-1)
        frames = fast.edge_frames(
            graph.edge_distance_vec, graph.edge_distance, target, len(number), self.cutoff
        )
        incoming, mask = fast.incoming_edges(target, len(number))
        edge = torch.arange(len(source)).repeat_interleave(mask.sum(1)[source])
        neighbour = incoming[source][mask[source]]
        splat = self._splat(neighbour, edge, frames, unit)

        x_dist = self.dist_block(graph.edge_distance, *elements)
        x = F.silu(self.distfc2(F.silu(self.distfc1(x_dist))))
        messages = self.embeddingblock2(x, *elements)
        for i, block in enumerate(self.message_blocks):
            x = self._convolve(block.spinconvblock, messages, neighbour, splat, len(source))
            x = block.embeddingblock1(x, *elements)
            x = F.silu(x + block.distfc2(F.silu(block.distfc1(x_dist))))
            x = block.embeddingblock2(x, *elements)
            messages = messages + x if i > 0 else x

        per_atom = torch.zeros(len(number), messages.shape[1]).index_add(0, target, messages)
        per_atom = self.energyembeddingblock(per_atom / (self.max_neighbors / 2 + 1), number, number)
        energy = torch.zeros(len(data.natoms)).index_add(0, data.batch, per_atom.squeeze(-1))
        rotation = fast.random_rotations(len(number), self.num_rand_rotations, unit)
        forces = torch.zeros(len(number), 3)
        block = self.force_output_block
        for r in range(self.num_rand_rotations):
            views = fast.views_along_axes(rotation[:, r : r + 1])
            along = []
            for axis in range(3):
                splat = self._splat(torch.arange(len(source)), target, views[:, axis], unit)
                x = self._convolve(
                    block.spinconvblock, messages, torch.arange(len(source)), splat, len(number)
                )
                x = block.block2(F.silu(block.block1(x, number, number)), number, number)
                along.append(x[:, 0])
            forces = forces + torch.einsum("nij,ni->nj", rotation[:, r], torch.stack(along, dim=1))
        return {"energy": energy, "forces": forces / self.num_rand_rotations}

    def _splat(
        self, neighbour: Tensor, sphere: Tensor, frames: Tensor, unit: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Cell and weight of each neighbour, for the four corners of the bilinear splatting."""
        seen = torch.bmm(frames[sphere], unit[neighbour][..., None]).squeeze(-1)
        lat, long = sphere_coordinates(seen, self.n_lat, self.n_long)
        corners = []
        for i in (0, 1):
            for j in (0, 1):
                row = (lat.floor().long() + i).clamp(max=self.n_lat - 1)
                column = (long.floor().long() + j) % self.n_long
                weight = (1 - (lat - lat.floor() - i).abs()) * (1 - (long - long.floor() - j).abs())
                corners.append(((sphere * self.n_lat + row) * self.n_long + column, weight))
        return corners

    def _convolve(
        self,
        block: Any,
        messages: Tensor,
        neighbour: Tensor,
        splat: list[tuple[Tensor, Tensor]],
        n_spheres: int,
    ) -> Tensor:
        grid = torch.zeros(n_spheres * self.n_lat * self.n_long, messages.shape[1])
        for cell, weight in splat:
            grid = grid.index_add(0, cell, messages[neighbour] * weight[:, None])
        x = grid.view(n_spheres, self.n_lat, self.n_long, -1).permute(0, 3, 1, 2).flatten(1, 2)
        x = F.pad(x, (self.n_long // 2, self.n_long // 2), mode="circular")
        x = F.silu(block.conv1(x)[..., : self.n_long]).mean(dim=-1)
        return block.GroupNorm(x)


def batch_of(count: int, file: str | None) -> Any:
    """The first structures of a file, or distorted molecules of 12 atoms and fewer, in large cells."""
    # after fairchem_piwsl, which may have to prepare fairchem
    from fairchem.core.datasets import data_list_collater
    from fairchem.core.preprocessing import AtomsToGraphs

    torch.manual_seed(0)
    convert = AtomsToGraphs(r_edges=False, r_pbc=True).convert
    if file:
        structures = read(file, index=f":{count}")
    else:
        structures = [molecule(("C6H6", "CH3CH2OCH3", "CH3COCH3")[i % 3]) for i in range(count)]
    for i, atoms in enumerate(structures):
        if not atoms.cell.rank:
            atoms.set_cell([40.0] * 3)
        atoms.rattle(0.01, seed=i)
    return data_list_collater([convert(atoms) for atoms in structures], otf_graph=True)


def seconds_per_step(model: torch.nn.Module, batch: Any, repeats: int) -> tuple[float, float]:
    """Wall-clock and processor seconds of a forward and backward pass, best of `repeats` after one warm-up."""
    wall, processor = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter(), time.process_time()
        out = model(batch)
        (out["energy"].sum() + out["forces"].square().sum()).backward()
        wall.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    return min(wall[1:]), min(processor[1:])


def main() -> None:
    """Print seconds per step of both versions with the published settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--structures", type=int, default=4)
    parser.add_argument("--file", help="structures in any format of ASE, instead of small molecules")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch = batch_of(arguments.structures, arguments.file)
    model = fast.SpinConv(otf_graph=True)
    plain = copy.deepcopy(model)
    plain.__class__ = StraightforwardSpinConv
    times = {}
    for name, candidate in (("straightforward", plain), ("this package", model)):
        times[name] = seconds_per_step(candidate, batch, arguments.repeats)
        print("{:16s} {:8.3f} s/step, processor {:8.3f} s/step".format(name, *times[name]), flush=True)
    ratios = [slow / fast for slow, fast in zip(times["straightforward"], times["this package"], strict=True)]
    print("ratio            {:8.2f}         processor {:8.2f}".format(*ratios))


if __name__ == "__main__":
    main()
