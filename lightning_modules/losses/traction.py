"""Losses for predicted traction fields (..., 2, y, x): the published sum of squares and a relative one.

Wang, Lin, Biophys J 120:3079 (2021) train with MATLAB's regressionLayer, which for images is half the squared error
summed over all pixels and components, averaged over the batch but *not* over pixels: with a mean in its place the
published learning rate would be 104 * 104 * 2 = 21,632 times too small.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIELD_DIMS = (-3, -2, -1)
PUBLISHED_MODULUS = 10.0
PUBLISHED_GRID_PX = 104


def summed_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Half the squared error summed over components and pixels, mean over the leading dimensions: ().

    sqrt(2 loss) of one field is the "RMSE" that the paper's training curve shows.

    >>> summed_squared_error(torch.full((5, 2, 3, 3), 2.0), torch.zeros(5, 2, 3, 3))
    tensor(36.)

    """
    _check(prediction, target)
    return 0.5 * (prediction - target).square().sum(dim=FIELD_DIMS).mean()


def published_units(field: Tensor, youngs_modulus_pa: Tensor, trained_grid_px: Tensor | None = None) -> Tensor:
    """Factor (batch, 1, 1, 1) from Pa to the units of the published network's targets: E0 / E * 104 / S.

    Its training substrate has E0 = 10 in its own units, on a grid of 104. S is the side of the grid that the network
    was trained on, () in pixels; without it, or where it is 0, the side of `field` (batch, 2, y, x), as in the authors'
    software, which has a network for every S. A network has one scale for all fields: with lengths in pixels, traction
    / E follows from the displacement alone, and a wider frame around a cell changes nothing inside.
    """
    grid_px = torch.tensor(grid_side_px(field), device=field.device)
    if trained_grid_px is not None:
        grid_px = torch.where(trained_grid_px > 0, trained_grid_px, grid_px)
    return (PUBLISHED_MODULUS * PUBLISHED_GRID_PX / grid_px / youngs_modulus_pa)[:, None, None, None]


def grid_side_px(field: Tensor) -> float:
    """Side of a field (..., y, x) in pixels, of one that is not square that of the square of its area."""
    return float((field.shape[-1] * field.shape[-2]) ** 0.5)


def relative_error(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the fields of |t - t0| / |t0|, norms over components and pixels: () (ours).

    Every field weighs the same, however hard the cell pulls; with a mask it is the mean of the metric `nrmse`.

    Args:
        prediction: (..., 2, y, x).
        target: (..., 2, y, x).
        mask: (..., y, x), bool, or one (y, x) for all; None for the whole frame.

    Returns:
        (). Fields without traction (in the mask) have no relative error and are left out; 0 if there is no other.

    Raises:
        ValueError: shapes that do not fit, or a mask that is not bool.

    """
    _check(prediction, target)
    error = prediction - target
    if mask is not None:
        shape = torch.Size((*target.shape[:-3], *target.shape[-2:]))
        if mask.dtype != torch.bool or mask.shape not in (shape, shape[-2:]):
            raise ValueError(f"mask must be bool of shape {tuple(shape)}, got {mask.dtype} {tuple(mask.shape)}")
        inside = mask.unsqueeze(-3)
        error, target = torch.where(inside, error, 0), torch.where(inside, target, 0)
    norm = torch.linalg.vector_norm(target, dim=FIELD_DIMS)
    counted = norm != 0
    relative = torch.linalg.vector_norm(error, dim=FIELD_DIMS) / torch.where(counted, norm, 1)
    return torch.where(counted, relative, 0).sum() / counted.sum().clamp(min=1)


def _check(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape or target.ndim < 3 or target.shape[-3] != 2:
        raise ValueError(
            f"both fields must have one shape (..., 2, y, x), got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
