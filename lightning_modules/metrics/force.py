"""How well the displacement and the force of a volume were recovered: one number per volume.

Definitions ours; Duan et al., Biophys J 121:2180 (2022), 10.1016/j.bpj.2022.04.028, give none in the text at hand.
Displacements are (batch, 3, z, y, x) in voxels of each axis, components (x, y, z); forces (batch, 3, z, y, x) in any
unit. The results are (batch,): NaN where the truth is unknown (NaN) or where a denominator is 0. Of a displacement that
is known in some voxels, those of tracked beads, the first three count these alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

VECTOR_DIMS = (1, 2, 3, 4)
VOXEL_DIMS = (-3, -2, -1)


def median_error_vx(prediction_voxels: Tensor, target_voxels: Tensor) -> Tensor:
    """Median over the known voxels of |u - u0|, in voxels; the lower of two middle ones."""
    return _error_lengths(prediction_voxels, target_voxels).flatten(1).nanmedian(dim=1).values


def mean_error_vx(prediction_voxels: Tensor, target_voxels: Tensor) -> Tensor:
    """Mean over the known voxels of |u - u0|, in voxels."""
    return _error_lengths(prediction_voxels, target_voxels).nanmean(dim=VOXEL_DIMS)


def relative_l2(prediction: Tensor, target: Tensor) -> Tensor:
    """|u - u0| / |u0|, norms over components and known voxels: 1 is what zero gets.

    >>> truth = torch.ones(1, 3, 2, 2, 2)
    >>> relative_l2(1.25 * truth, truth)
    tensor([0.2500])

    """
    _check(prediction, target)
    known = target.isfinite()
    return _ratio(_norm(torch.where(known, prediction - target, 0)), _norm(torch.where(known, target, 0)))


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum f . f0 / (|f| |f0|) over the volume, in [-1, 1]: blind to the amplitude."""
    _check(prediction, target)
    return _ratio((prediction * target).sum(dim=VECTOR_DIMS), _norm(prediction) * _norm(target))


def net_force_relative_error(prediction: Tensor, target: Tensor) -> Tensor:
    """|sum f - sum f0| / sum |f0|: the true net force of a cell at rest is 0, so the sum of its sizes is the unit."""
    _check(prediction, target)
    wrong = torch.linalg.vector_norm((prediction - target).sum(dim=VOXEL_DIMS), dim=1)
    return _ratio(wrong, total_size(target))


def net_force_share(force: Tensor) -> Tensor:
    """|sum f| / sum |f|: 0 for a cell at rest, 1 when all forces point one way. Needs no truth."""
    return _ratio(torch.linalg.vector_norm(force.sum(dim=VOXEL_DIMS), dim=1), total_size(force))


def total_size(force: Tensor) -> Tensor:
    """Sum over the voxels of |f|."""
    return force.square().sum(dim=1).sqrt().sum(dim=VOXEL_DIMS)


def _error_lengths(prediction: Tensor, target: Tensor) -> Tensor:
    _check(prediction, target)
    return (prediction - target).square().sum(dim=1).sqrt()


def _norm(field: Tensor) -> Tensor:
    return field.square().sum(dim=VECTOR_DIMS).sqrt()


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    defined = denominator != 0
    return torch.where(defined, numerator / torch.where(defined, denominator, 1), torch.nan)


def _check(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape or target.ndim != 5 or target.shape[1] != 3:
        raise ValueError(
            f"both fields must have one shape (batch, 3, z, y, x), "
            f"got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
