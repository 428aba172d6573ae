"""The physics of a 3-D force network as a layer without parameters: displacement -> strain, stress, body force.

Duan et al., Biophys J 121:2180 (2022), 10.1016/j.bpj.2022.04.028: the network's "specific function layers" couple the
constitutive relation of the matrix into it. The text at hand, the abstract, states neither the layers nor the relation;
what is here is ours: Gaussian smoothing, then gradient, strain, stress and divergence from `physics.solid`, whose axes
and units hold.

Smoothing comes first because the body force is a second derivative, which a voxel-wise error of the displacement would
drown. Near a face, where part of the Gaussian lies outside, the remaining weights are corrected to its first three
moments: a strain that is uniform or grows linearly passes through unchanged up to the faces. Padding with zeros, copies
or reflections would make a layer of false force there (reflected, 5 % of a Kelvin force in the middle of 48 voxels).
The price is that a face, seen from one side, stays noisier than the inside. Everything is computed in float32 (or
float64, when the displacement is), whatever precision the network around it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from physics.solid import (
    SMALLEST_SIZE,
    body_force_n_per_m3,
    check_vectors,
    deformation_gradient,
    green_lagrange,
    neo_hookean_stress,
    spacings,
    strain,
    stress,
)

KERNEL_REACH = 4.0  # standard deviations: the rest is 6e-5 of the Gaussian
MATERIALS = ("linear", "neo_hookean")


class Mechanics(NamedTuple):
    """What a displacement field means in a solid; components in the order (x, y, z)."""

    strain: Tensor
    """(..., 3, 3, z, y, x), no unit: small strain of a linear solid, Green-Lagrange strain of a neo-Hookean one."""
    stress_pa: Tensor
    """(..., 3, 3, z, y, x) in Pa: Cauchy stress of a linear solid, first Piola-Kirchhoff stress of a neo-Hookean."""
    body_force_n_per_m3: Tensor
    """(..., 3, z, y, x) in N/m^3, the force per (undeformed) volume that acts on the solid."""


class PhysicsLayer(nn.Module):
    """Smooth, differentiate, apply the material's law, take the divergence; nothing to train.

    Args:
        smoothing_voxels: standard deviation of the Gaussian along each axis, in voxels; 0 for none.
        material: "linear" for small strain; "neo_hookean" for large strain, on the undeformed grid. The latter raises
            ValueError where a displacement turns a voxel inside out.

    """

    def __init__(self, *, smoothing_voxels: float = 1.0, material: Literal["linear", "neo_hookean"] = "linear") -> None:
        if not 0 <= smoothing_voxels < math.inf:
            raise ValueError(f"smoothing_voxels must be 0 or a positive number, got {smoothing_voxels}")
        if material not in MATERIALS:
            raise ValueError(f"material must be one of {', '.join(MATERIALS)}, got {material!r}")
        super().__init__()
        self.smoothing_voxels = smoothing_voxels
        self.material = material

    def forward(
        self,
        displacement_um: Tensor,
        *,
        voxel_size_um: Sequence[float] | Tensor,
        youngs_modulus_pa: float | Tensor,
        poisson_ratio: float | Tensor,
    ) -> Mechanics:
        """Displacement (..., 3, z, y, x) in um -> `Mechanics`.

        The voxel size is (z, y, x) in um; it and the elastic constants may be tensors over the leading dimensions. With
        a modulus of 1 Pa, stress and force come per modulus. Raises ValueError as `physics.solid` does.
        """
        with torch.autocast(displacement_um.device.type, enabled=False):
            if displacement_um.dtype in (torch.float16, torch.bfloat16):
                displacement_um = displacement_um.float()
            check_vectors("displacement_um", displacement_um)
            smooth = smoothed(displacement_um, self.smoothing_voxels)
            if self.material == "linear":
                deformation = strain(smooth, voxel_size_um)
                stress_pa = stress(deformation, youngs_modulus_pa, poisson_ratio)
            else:
                F = deformation_gradient(smooth, voxel_size_um)
                deformation = green_lagrange(F)
                stress_pa = neo_hookean_stress(F, youngs_modulus_pa, poisson_ratio)
            return Mechanics(deformation, stress_pa, body_force_n_per_m3(stress_pa, voxel_size_um))

    def extra_repr(self) -> str:
        """Return the settings, for `print`."""
        return f"smoothing_voxels={self.smoothing_voxels}, material={self.material!r}"


def um_from_voxels(displacement_voxels: Tensor, voxel_size_um: Sequence[float] | Tensor) -> Tensor:
    """A displacement in voxels, as networks and correlations give it, in um: (..., 3, z, y, x), components (x, y, z).

    Raises:
        ValueError: a field of another shape, or a voxel size that is not three positive numbers (z, y, x).

    """
    check_vectors("displacement_voxels", displacement_voxels)
    steps = spacings(voxel_size_um, displacement_voxels, trailing_dims=3)
    components = [part * step for part, step in zip(displacement_voxels.unbind(-4), steps, strict=True)]
    return torch.stack(components, dim=-4)


def smoothed(field: Tensor, sd_voxels: float) -> Tensor:
    """Gaussian blur of fields (..., z, y, x) along z, y and x; next to the faces its weights keep their moments.

    Sums of products, not convolutions or matrix products: those may round to ten bits on a GPU, too coarse for second
    derivatives.

    Raises:
        ValueError: an axis of less than 3 voxels.

    """
    if min(field.shape[-3:]) < SMALLEST_SIZE:
        raise ValueError(f"field must have at least 3 voxels along z, y and x, got {tuple(field.shape[-3:])}")
    if sd_voxels == 0:
        return field
    for trailing, dim in enumerate((-1, -2, -3)):
        size = field.shape[dim]
        weights = _gaussian_weights(size, sd_voxels).to(field)  # (2 reach + 1, size)
        reach = len(weights) // 2
        longer = functional.pad(field, (0, 0) * trailing + (reach, reach))
        field = torch.zeros_like(field)
        for k, weight in enumerate(weights):
            field = torch.addcmul(field, longer.narrow(dim, k, size), weight.reshape(-1, *[1] * trailing))
    return field


@lru_cache(maxsize=16)
def _gaussian_weights(size: int, sd_voxels: float) -> Tensor:
    """Weight of the neighbour at each offset -reach..reach for each of `size` voxels: (2 reach + 1, size), float64.

    Every column has the sum, mean and second moment of the Gaussian, by a quadratic polynomial under a Gaussian window.
    """
    reach = max(SMALLEST_SIZE - 1, int(KERNEL_REACH * sd_voxels + 0.5))
    with torch.inference_mode(False):  # a cached inference tensor could not be used in a later backward pass
        offset = torch.arange(-reach, reach + 1, dtype=torch.float64, device="cpu")
        gaussian = torch.exp(-0.5 * (offset / sd_voxels) ** 2)
        gaussian /= gaussian.sum()
        window = torch.exp(-0.5 * (offset / max(sd_voxels, 1.0)) ** 2)
        powers = torch.stack((offset**0, offset, offset**2))  # (3, offset)
        place = torch.arange(size, dtype=torch.float64, device="cpu") + offset[:, None]  # (offset, voxel)
        inside = ((place >= 0) & (place <= size - 1)).double()
        present = gaussian[:, None] * inside
        missing = powers @ (gaussian[:, None] - present)  # (3, voxel)
        normal = torch.einsum("ik,kn,jk->nij", powers, window[:, None] * inside, powers)
        polynomial = torch.linalg.solve(normal, missing.T)  # (voxel, 3)
        return present + window[:, None] * inside * (polynomial @ powers).T
