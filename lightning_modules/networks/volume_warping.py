"""Volumes sampled at displaced voxels, and displacements between grids of different spacing.

Displacements are (batch, 3, z, y, x) in voxels, components (x, y, z), of the material at the voxels of the reference
volume: a deformed volume warped by the true one looks like the reference volume. Sampling is trilinear: it keeps the
place of a bead, though it blurs it by up to a quarter of a square voxel. Beyond a face the volume is continued.

A coarse grid of step s has the voxels at the centres of blocks of s x s x s: its point k lies at (k + 1/2) s - 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional


def warped(volume: Tensor, displacement_voxels: Tensor) -> Tensor:
    """The volume at X + u(X): (batch, channels, z, y, x) and (batch, 3, z, y, x) -> as the volume.

    Raises:
        ValueError: shapes that do not fit.

    """
    batch, _, *size = volume.shape
    if displacement_voxels.shape != (batch, 3, *size):
        raise ValueError(
            f"displacement_voxels must have shape {(batch, 3, *size)}, got {tuple(displacement_voxels.shape)}"
        )
    axes = [
        torch.arange(length, device=volume.device, dtype=volume.dtype).reshape(-1, *[1] * trailing)
        for trailing, length in zip((0, 1, 2), reversed(size), strict=True)  # x, y, z
    ]
    places = [
        (displacement_voxels[:, component] + axes[component]) * (2 / max(size[2 - component] - 1, 1)) - 1
        for component in range(3)
    ]
    grid = torch.stack(places, dim=-1)  # (batch, z, y, x, 3), -1 and 1 at the centres of the outermost voxels
    return functional.grid_sample(volume, grid, mode="bilinear", padding_mode="border", align_corners=True)


def inside(displacement_voxels: Tensor) -> Tensor:
    """Where X + u(X) lies in the volume: (batch, 3, z, y, x) -> (batch, 1, z, y, x), 1 there and 0 elsewhere."""
    size = displacement_voxels.shape[2:]
    result = torch.ones_like(displacement_voxels[:, :1])
    for component, length in enumerate(reversed(size)):  # x, y, z
        axis = torch.arange(length, device=displacement_voxels.device, dtype=displacement_voxels.dtype)
        place = displacement_voxels[:, component : component + 1] + axis.reshape(-1, *[1] * component)
        result = result * ((place >= 0) & (place <= length - 1))
    return result


def refined(field: Tensor, step: int) -> Tensor:
    """Cubic B-spline through the control points of a coarse grid: (batch, c, z, y, x) -> each axis times `step`.

    Twice continuously differentiable, so that the body force of a displacement has no steps at the coarse grid; linear
    fields pass through unchanged, up to the faces, where the control points are continued linearly. Raises ValueError
    for a step below 1.
    """
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}")
    return along_axes(field, [_refinement(size, step) for size in field.shape[-3:]])


def blur(field: Tensor, sd: float) -> Tensor:
    """Gaussian sums over (..., z, y, x), nothing beyond the faces."""
    return along_axes(field, [_gaussian(size, sd) for size in field.shape[-3:]])


def along_axes(field: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Apply a matrix (new size, size) of weights along z, y and x of a field (..., z, y, x)."""
    z, y, x = (weight.to(field) for weight in weights)
    field = y @ (field @ x.T)
    leading, depth = field.shape[:-3], field.shape[-3]
    return (z @ field.reshape(*leading, depth, -1)).reshape(*leading, len(z), len(y), len(x))


@lru_cache(maxsize=64)
def _refinement(size: int, step: int) -> Tensor:
    """(size * step, size): values of the spline at the fine points, per control point."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in a later backward pass
        fine = (torch.arange(size * step, dtype=torch.float32, device="cpu") + 0.5) / step - 0.5
        if size == 1:
            return torch.ones(step, 1)
        distance = (fine[:, None] - torch.arange(-2, size + 2, dtype=torch.float32, device="cpu")).abs()
        weights = torch.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clamp(min=0) ** 3 / 6)
        continued = torch.zeros(size + 4, size)
        continued[2:-2] = torch.eye(size)
        for beyond in (1, 2):  # point -1 is 2 p_0 - p_1, and so on
            continued[2 - beyond, :2] = torch.tensor([1.0 + beyond, -float(beyond)])
            continued[size + 1 + beyond, -2:] = torch.tensor([-float(beyond), 1.0 + beyond])
        return weights @ continued


@lru_cache(maxsize=64)
def _gaussian(size: int, sd: float) -> Tensor:
    """(size, size): what each voxel weighs in the blur at each other."""
    with torch.inference_mode(False):
        place = torch.arange(size, dtype=torch.float32, device="cpu")
        weights = torch.exp(-0.5 * ((place[:, None] - place) / sd) ** 2)
        offset = torch.arange(-4 * size, 4 * size + 1, dtype=torch.float32, device="cpu")
        return weights / torch.exp(-0.5 * (offset / sd) ** 2).sum()
