"""Surfaces on which tractions are asked for: fields of normals that point out of the gel, 0 off the surface."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from physics.solid import check_voxel_size

SURFACES = ("top", "cell")


def surface_normals(surface: str, cell_mask: Tensor, voxel_size_um: Tensor) -> Tensor:
    """Normals of a surface: (batch, z, y, x) bool and (batch, 3) in um -> (batch, 3, z, y, x), components (x, y, z).

    Args:
        surface: "top", the face z = 0 of the gel; "cell", the voxels of the gel next to the cell, whose normals point
            along the gradient of the mask, into the cell.
        cell_mask: true inside the cell.
        voxel_size_um: edges of a voxel (z, y, x).

    Raises:
        ValueError: another surface, or arguments of another shape.

    """
    if surface not in SURFACES:
        raise ValueError(f"surface must be one of {', '.join(SURFACES)}, got {surface!r}")
    if cell_mask.ndim != 4 or cell_mask.dtype != torch.bool:
        raise ValueError(f"cell_mask must be bool (batch, z, y, x), got {cell_mask.dtype} {tuple(cell_mask.shape)}")
    check_voxel_size(voxel_size_um)
    batch, *size = cell_mask.shape
    if surface == "top":
        normals = torch.zeros(batch, 3, *size, device=cell_mask.device)
        normals[:, 2, 0] = -1
        return normals
    padded = functional.pad(cell_mask.float()[:, None], [1] * 6, mode="replicate")[:, 0]
    inner = slice(1, -1)
    along_x = padded[:, inner, inner, 2:] - padded[:, inner, inner, :-2]
    along_y = padded[:, inner, 2:, inner] - padded[:, inner, :-2, inner]
    along_z = padded[:, 2:, inner, inner] - padded[:, :-2, inner, inner]
    gradient = torch.stack((along_x, along_y, along_z), dim=1) / voxel_size_um.flip(-1)[:, :, None, None, None]
    length = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    shown = (length > 0) & ~cell_mask[:, None]
    return torch.where(shown, gradient / torch.where(length > 0, length, 1), 0)
