"""Losses for displacements of volumes and for what the physics layer makes of them; all ours.

The abstract of Duan et al., Biophys J 121:2180 (2022), 10.1016/j.bpj.2022.04.028, states no loss. Fields are (batch,
components..., z, y, x). Every loss has one number per sample, which does not depend on units, and returns their mean;
samples whose truth is unknown (NaN) are left out, and without any other the loss is 0. A displacement may be known in
some voxels only, those of tracked beads.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_SQUARE_VX = 1e-6  # keeps the gradient of the length finite at a perfect prediction


def endpoint_error_vx(prediction_voxels: Tensor, target_voxels: Tensor) -> Tensor:
    """Mean length over the known voxels of the error of a displacement: (batch, 3, z, y, x) in voxels twice -> ().

    >>> endpoint_error_vx(torch.zeros(1, 3, 1, 1, 1), torch.tensor([2.0, 3.0, 6.0]).reshape(1, 3, 1, 1, 1))
    tensor(7.0000)

    """
    _check(prediction_voxels, target_voxels)
    known = target_voxels.isfinite().all(dim=1)
    # no NaN may reach the square: its gradient would be NaN even where the sum leaves it out
    error = torch.where(known[:, None], prediction_voxels - target_voxels, 0)
    length = (error.square().sum(dim=1) + SMALLEST_SQUARE_VX).sqrt()
    count = known.flatten(1).sum(dim=1)
    total = torch.where(known, length, 0).flatten(1).sum(dim=1)
    return _mean_of_known(torch.where(count > 0, total / count.clamp(min=1), torch.nan))


def scaled_absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error in units of the target's standard deviation: a force (batch, 3, ...) or a stress -> ().

    A sample whose target is the same everywhere has no such unit and is left out.
    """
    _check(prediction, target)
    spread = target.flatten(1).std(dim=1, correction=0)
    error = (prediction - target).abs().flatten(1).mean(dim=1)
    return _mean_of_known(torch.where(spread > 0, error / torch.where(spread > 0, spread, 1), torch.nan))


def imbalance(body_force: Tensor, cell_mask: Tensor, target: Tensor) -> Tensor:
    """Mean absolute force outside the cell, where there is none, in units of the true force's standard deviation: ().

    Args:
        body_force: predicted, (batch, 3, z, y, x), of any unit.
        cell_mask: (batch, z, y, x), bool; where it is true everywhere the sample is left out.
        target: true force in the unit of the predicted one, for its size alone.

    """
    _check(body_force, target)
    if cell_mask.dtype != torch.bool or cell_mask.shape != body_force[:, 0].shape:
        raise ValueError(
            f"cell_mask must be bool of shape {tuple(body_force[:, 0].shape)}, "
            f"got {cell_mask.dtype} {tuple(cell_mask.shape)}"
        )
    spread = target.flatten(1).std(dim=1, correction=0)
    outside = ~cell_mask
    count = outside.flatten(1).sum(dim=1)
    total = (body_force.abs().mean(dim=1) * outside).flatten(1).sum(dim=1)
    usable = (count > 0) & (spread > 0)
    return _mean_of_known(
        torch.where(usable, total / count.clamp(min=1) / torch.where(spread > 0, spread, 1), torch.nan)
    )


def _mean_of_known(values: Tensor) -> Tensor:
    """Mean () of the values that are finite; 0 without any."""
    known = values.isfinite()
    return torch.where(known, values, 0).sum() / known.sum().clamp(min=1)


def _check(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape or target.ndim < 5:
        raise ValueError(
            f"both fields must have one shape (batch, components, z, y, x), "
            f"got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
