"""Projection of neighbours on a latitude-longitude sphere, and the convolution along its longitudes.

A neighbour at latitude `y` and longitude `x` (in grid units) is splatted bilinearly: its weights factor into
a hat function over the latitudes times a circular hat function over the longitudes. A circular convolution
along the longitudes is a product in Fourier space, so the sphere is built there directly: per neighbour the
longitude hat is replaced by its Fourier coefficients, and one batched matrix product sums over neighbours.
The grid itself is never formed, and a kernel as long as the circle costs one small matrix per frequency.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

# A neighbour on the axis of the frame has no longitude, and the counter-edge of the edge that defines the frame
# always lies there. In the published code rounding errors decided, which scatters energies by about 2e-5 of
# their value; here any neighbour this close to a pole gets a fixed angle, so that energies are reproducible
# and differentiable. The angles are arbitrary; these agree with published energies within 1e-5.
POLAR_RADIUS = 1e-4
POLAR_LONGITUDE = {"south": -5 * math.pi / 12, "north": math.pi / 4}


def sphere_coordinates(unit: Tensor, n_lat: int, n_long: int) -> tuple[Tensor, Tensor]:
    """Grid coordinates of unit vectors, `[..., 3]`, given in the frame of the sphere (x is the polar axis).

    Returns latitude in [0, n_lat - 1] and longitude in [0, n_long], both `[...]`. On the polar axis both are
    constants without gradient.
    """
    x, y, z = unit.unbind(-1)
    polar = y.square() + z.square() < POLAR_RADIUS**2
    y, z = torch.where(polar, 0.0, y), torch.where(polar, 1.0, z)  # keeps the gradients finite
    pole = torch.where(x < 0, POLAR_LONGITUDE["south"], POLAR_LONGITUDE["north"]).to(unit.dtype)
    longitude = torch.where(polar, pole, torch.atan2(y, z))
    latitude = torch.atan2(x, torch.sqrt(y.square() + z.square()))
    latitude = torch.where(polar, x.detach().sign() * (math.pi / 2), latitude)
    return (
        (0.99 * (latitude / math.pi + 0.5) + 0.005) * (n_lat - 1),
        (longitude / (2 * math.pi) + 0.5) * n_long,
    )


@lru_cache(maxsize=16)
def fourier_tables(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Real tables for circular convolutions of length `n`, with `K = n // 2 + 1` frequencies.

    * analysis `[n, K, 2]`: a signal -> the real and imaginary parts of its Fourier coefficients,
    * kernel `[n, K, 2]`: the weights of a convolution padded by `n // 2` -> its transfer function,
    * synthesis `[K, 2, n]`: Fourier coefficients -> the signal.
    """
    k = torch.arange(n // 2 + 1, dtype=torch.float64)
    x = torch.arange(n, dtype=torch.float64)
    angle = 2 * math.pi / n * torch.outer(x, k)
    shifted = 2 * math.pi / n * torch.outer(x - n // 2, k)
    multiplicity = torch.where((k == 0) | (2 * k == n), 1.0, 2.0) / n
    analysis = torch.stack([angle.cos(), -angle.sin()], dim=-1)
    kernel = torch.stack([shifted.cos(), shifted.sin()], dim=-1)
    synthesis = (analysis * multiplicity[:, None]).permute(1, 2, 0)
    return tuple(t.to(device=device, dtype=dtype).contiguous() for t in (analysis, kernel, synthesis))  # type: ignore[return-value]


def splat_spectrum(unit: Tensor, mask: Tensor, n_lat: int, n_long: int) -> Tensor:
    """Weights of each neighbour in the Fourier coefficients of its sphere.

    unit `[S, D, 3]`: D neighbours (padded) of S spheres in the sphere's frame; mask `[S, D]`, False: padding.
    Returns `[S, D, K * 2 * n_lat]`, ordered frequency, real or imaginary part, latitude.
    """
    latitude, longitude = sphere_coordinates(unit, n_lat, n_long)
    analysis, _, _ = fourier_tables(n_long, unit.dtype, unit.device)
    rows = torch.arange(n_lat, device=unit.device, dtype=unit.dtype)
    hat_lat = torch.relu(1 - (latitude[..., None] - rows).abs()) * mask[..., None]
    columns = torch.arange(n_long, device=unit.device, dtype=unit.dtype)
    separation = (longitude[..., None] - columns + n_long / 2).remainder(n_long) - n_long / 2
    hat_long = torch.relu(1 - separation.abs()) @ analysis.flatten(1)
    return (hat_long[..., None] * hat_lat[..., None, :]).flatten(-2)


def circular_convolution(spectrum: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """Grouped circular convolution along the longitudes, evaluated in Fourier space.

    spectrum `[S, C, K * 2 * n_lat]` (C channels), weight `[O, C * n_lat / groups, n_long]` in the layout of
    `torch.nn.Conv1d` with input channels ordered channel, latitude. Returns `[groups, n_long, S, O / groups]`.
    """
    n_spheres, n_channels, _ = spectrum.shape
    n_out, _, n_long = weight.shape
    n_freq = n_long // 2 + 1
    _, kernel_table, synthesis = fourier_tables(n_long, weight.dtype, weight.device)
    transfer = (weight @ kernel_table.flatten(1)).view(
        groups, n_out // groups, n_channels // groups, -1, n_freq, 2
    )
    re, im = transfer.unbind(-1)  # [g, o, c, lat, k]
    # (re + i im)(a + i b): rows hold the input's real and imaginary part, columns the output's
    blocks = torch.stack([torch.stack([re, im]), torch.stack([-im, re])])  # [in, out, g, o, c, lat, k]
    blocks = blocks.permute(2, 6, 4, 0, 5, 1, 3).reshape(groups * n_freq, -1, 2 * n_out // groups)
    signal = spectrum.view(n_spheres, groups, n_channels // groups, n_freq, -1).permute(1, 3, 0, 2, 4)
    product = torch.bmm(signal.reshape(groups * n_freq, n_spheres, -1), blocks)
    product = product.view(groups, n_freq, n_spheres, 2, -1).transpose(2, 3)
    product = product.reshape(groups, 2 * n_freq, -1)
    out = (synthesis.flatten(0, 1).T @ product).view(groups, n_long, n_spheres, -1)
    return out + bias.view(groups, 1, 1, -1)
