"""Building blocks of SpinConv. Parameter names are those of the published checkpoints."""

import math

import torch
from fairchem.core.models.scn.smearing import GaussianSmearing
from torch import Tensor, nn
from torch.nn import functional as F

from fairchem_piwsl.models.sphere import circular_convolution
from fairchem_piwsl.models.spinconv_geometry import rows

N_MIXED = 8  # weight matrices that an EmbeddingBlock mixes by element pair
CHANNELS_PER_GROUP = 8


class DistanceBlock(nn.Module):
    """Distance features; distances are scaled and shifted by learnt numbers of each ordered element pair."""

    def __init__(
        self,
        n_basis: int,
        n_out: int,
        cutoff: float,
        width: float,
        scalar_max: float,
        max_num_elements: int,
        scale_distances: bool,
    ) -> None:
        super().__init__()
        self.max_num_elements = max_num_elements
        self.log_scalar_max = math.log(scalar_max)
        self.scale_distances = scale_distances
        self.distance_expansion = GaussianSmearing(0.0, cutoff, n_basis, width)
        if scale_distances:
            self.dist_scalar = nn.Embedding(max_num_elements**2, 1)
            self.dist_offset = nn.Embedding(max_num_elements**2, 1)
            nn.init.zeros_(self.dist_scalar.weight)
            nn.init.zeros_(self.dist_offset.weight)
        self.fc1 = nn.Linear(n_basis, n_out)

    def forward(self, distance: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Distances `[E]` and the elements of both ends `[E]` -> features `[E, n_out]`."""
        if self.scale_distances:
            pair = source * self.max_num_elements + target
            exponent = 2 * torch.sigmoid(self.dist_scalar(pair).squeeze(-1)) - 1
            distance = torch.exp(self.log_scalar_max * exponent) * distance
            distance = distance + self.dist_offset(pair).squeeze(-1)
        return self.fc1(self.distance_expansion(distance))


class EmbeddingBlock(nn.Module):
    """A perceptron whose middle layer is a mixture of eight, mixed according to the two elements."""

    def __init__(self, n_in: int, n_mid: int, n_out: int, embedding_size: int, max_num_elements: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(n_in, n_mid)
        self.fc2 = nn.Linear(n_mid, N_MIXED * n_mid)
        self.fc3 = nn.Linear(n_mid, n_out)
        self.source_embedding = nn.Embedding(max_num_elements, embedding_size)
        self.target_embedding = nn.Embedding(max_num_elements, embedding_size)
        nn.init.uniform_(self.source_embedding.weight, -1e-4, 1e-4)
        nn.init.uniform_(self.target_embedding.weight, -1e-4, 1e-4)
        self.embed_fc1 = nn.Linear(2 * embedding_size, N_MIXED)

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """`[M, n_in]` and two elements for each row, `[M]` -> `[M, n_out]`."""
        elements = torch.cat([self.source_embedding(source), self.target_embedding(target)], dim=1)
        mixing = torch.softmax(self.embed_fc1(elements), dim=1)
        x = F.silu(self.fc2(F.silu(self.fc1(x))))
        x = torch.bmm(mixing[:, None], x.view(len(x), N_MIXED, -1)).squeeze(1)
        return self.fc3(x)


class SpinConvBlock(nn.Module):
    """Messages around a centre -> sphere -> circular convolution over the longitudes -> invariant features.

    `conv1` only holds the weights: the convolution itself is evaluated in Fourier space (`sphere.py`).
    """

    def __init__(self, n_hidden: int, n_mid: int, n_lat: int, n_long: int) -> None:
        super().__init__()
        self.groups = n_hidden // CHANNELS_PER_GROUP
        self.conv1 = nn.Conv1d(n_hidden * n_lat, n_mid, n_long, groups=self.groups)
        self.GroupNorm = nn.GroupNorm(self.groups, n_mid)

    def forward(self, weights: Tensor, messages: Tensor) -> Tensor:
        """Splatting weights `[B, D, V * Q]` of D neighbours on V spheres, messages `[B, D, C]` -> `[B * V, n_mid]`.

        The V spheres of a centre share its messages (one sphere per edge, several per atom).
        """
        n_spectrum = 2 * self.conv1.in_channels * (self.conv1.kernel_size[0] // 2 + 1) // messages.shape[-1]
        spectrum = torch.bmm(messages.transpose(1, 2), weights)
        if weights.shape[-1] != n_spectrum:
            spectrum = spectrum.unflatten(2, (-1, n_spectrum)).transpose(1, 2).flatten(0, 1)
        bias = self.conv1.bias
        assert bias is not None
        x = circular_convolution(spectrum, self.conv1.weight, bias, self.groups)
        x = F.silu(x).mean(dim=1).transpose(0, 1).flatten(1)
        return self.GroupNorm(x)


class MessageBlock(nn.Module):
    """One interaction: new messages of all edges from the messages that arrive at their sources."""

    def __init__(
        self, n_hidden: int, n_mid: int, n_lat: int, n_long: int, embedding_size: int, max_num_elements: int
    ) -> None:
        super().__init__()
        self.spinconvblock = SpinConvBlock(n_hidden, n_mid, n_lat, n_long)
        self.embeddingblock1 = EmbeddingBlock(n_mid, n_mid, n_mid, embedding_size, max_num_elements)
        self.embeddingblock2 = EmbeddingBlock(n_mid, n_mid, n_hidden, embedding_size, max_num_elements)
        self.distfc1 = nn.Linear(n_mid, n_mid)
        self.distfc2 = nn.Linear(n_mid, n_mid)

    def forward(
        self,
        messages: Tensor,
        x_dist: Tensor,
        weights: Tensor,
        neighbours: Tensor,
        elements: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Messages `[E, C]` -> `[E, C]`; neighbours `[E, D]` are the edges on each edge's sphere."""
        x = self.spinconvblock(weights, rows(messages, neighbours))
        x = self.embeddingblock1(x, *elements)
        x = x + self.distfc2(F.silu(self.distfc1(x_dist)))
        return self.embeddingblock2(F.silu(x), *elements)


class ForceOutputBlock(nn.Module):
    """Messages around an atom, seen in several frames -> the force component along each frame's polar axis."""

    def __init__(
        self, n_hidden: int, n_mid: int, n_lat: int, n_long: int, embedding_size: int, max_num_elements: int
    ) -> None:
        super().__init__()
        self.spinconvblock = SpinConvBlock(n_hidden, n_mid, n_lat, n_long)
        self.block1 = EmbeddingBlock(n_mid, n_mid, n_mid, embedding_size, max_num_elements)
        # The second output is a leftover of the published model: it is never read.
        self.block2 = EmbeddingBlock(n_mid, n_mid, 2, embedding_size, max_num_elements)

    def forward(self, weights: Tensor, messages: Tensor, element: Tensor) -> Tensor:
        """Weights `[N, D, V * Q]`, messages `[N, D, C]`, elements `[N]` -> `[N, V]`."""
        x = self.spinconvblock(weights, messages)
        element_of_view = element.repeat_interleave(len(x) // len(element))
        x = self.block1(x, element_of_view, element_of_view)
        x = self.block2(F.silu(x), element_of_view, element_of_view)
        return x[:, 0].view(len(element), -1)
