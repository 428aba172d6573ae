"""Errors of predicted directions, the fusion of several predictions, and the quadrant baseline.

Bruns, Lamparter, Galic, Jiang, arXiv 2406.19162 (2024): the error is eq. 13, the fusion section 2.5, the reading of a
quadrant as an angle section 3.3. Angles are radians, counter-clockwise as displayed, 0 = right; errors are degrees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from physics.angles import angular_difference, wrap


def angular_error_deg(prediction_rad: Tensor, target_rad: Tensor) -> Tensor:
    """Shorter arc between two directions in degrees, in [0, 180]; element by element, NaN where either is NaN."""
    return torch.rad2deg(angular_difference(prediction_rad, target_rad).abs())


def mean_angular_error_deg(prediction_rad: Tensor, target_rad: Tensor) -> Tensor:
    """Mean over all elements of min(|a - b|, 2 pi - |a - b|), in degrees (E_deg, eq. 13); guessing gives 90.

    >>> prediction, target = torch.tensor([350.0, 90.0]), torch.tensor([10.0, 90.0])
    >>> mean_angular_error_deg(torch.deg2rad(prediction), torch.deg2rad(target)).round()
    tensor(10.)

    """
    return angular_error_deg(prediction_rad, target_rad).mean()


def fuse_by_largest_gap(angles_rad: Tensor) -> Tensor:
    """One angle from several predictions of it: the paper's rule for test-time augmentation (section 2.5).

    The paper sorts the angles and keeps adding 2 pi to the smallest until it has seen every arrangement, takes the one
    with the smallest range, and returns its arithmetic mean modulo 2 pi. The arrangement with the smallest range is the
    one that cuts the circle at the largest gap between neighbours, so no loop is needed.

    Args:
        angles_rad: (..., views) in radians, any turn.

    Returns:
        (...) in [0, 2 pi). Of equal gaps the first arrangement counts, as in the paper's order; a set without a clear
        largest gap has no meaningful mean.

    """
    ordered = wrap(angles_rad).sort(dim=-1).values
    views = ordered.shape[-1]
    gap_over_zero = ordered[..., :1] + 2 * math.pi - ordered[..., -1:]
    gaps = torch.cat((gap_over_zero, ordered.diff(dim=-1)), dim=-1)  # gap k precedes the k-th smallest angle
    raised = gaps.argmax(dim=-1)  # so many of the smallest angles get 2 pi added
    return wrap(ordered.mean(dim=-1) + raised.to(ordered.dtype) * (2 * math.pi / views))


def quadrant_of(angle_rad: Tensor) -> Tensor:
    """Class of a direction: 0 upper right, 1 upper left, 2 lower left, 3 lower right (int64)."""
    return torch.div(wrap(angle_rad), math.pi / 2, rounding_mode="floor").long().clamp(max=3)


def quadrant_centre(quadrant: Tensor) -> Tensor:
    """Angle in the middle of a quadrant, in radians: pi / 4, 3 pi / 4, 5 pi / 4, 7 pi / 4."""
    return (quadrant + 0.5) * (math.pi / 2)


def quadrant_centre_error_deg(quadrant: Tensor, target_rad: Tensor) -> Tensor:
    """Error in degrees when the centre of the predicted quadrant is taken as the angle; element by element.

    For targets spread evenly over their quadrant it averages 22.5 degrees when the quadrant is right, 90 when it is a
    neighbour and 157.5 when it is the opposite one (pi / 8, pi / 2 and 7 pi / 8 in section 3.3).
    """
    return angular_error_deg(quadrant_centre(quadrant.to(target_rad.dtype)), target_rad)


def quadrant_error_from_accuracy_deg(accuracy: float) -> float:
    """Mean angular error that section 3.3 derives from a four-class accuracy in [0, 1].

    The errors are shared evenly by the three wrong quadrants. 0.8789 gives 33.4 degrees (NIH3T3; printed 33.41).

    >>> round(quadrant_error_from_accuracy_deg(1.0), 1)
    22.5

    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy must lie in [0, 1], got {accuracy}")
    return 22.5 * accuracy + (90.0 + 90.0 + 157.5) * (1 - accuracy) / 3


class AngularError(Metric):
    """Mean angular error in degrees over all that was seen since the last reset (E_deg, eq. 13), in every process."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    sum_deg: Tensor
    count: Tensor

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("sum_deg", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction_rad: Tensor, target_rad: Tensor) -> None:
        """Add predictions and targets in radians, of one shape."""
        error = angular_error_deg(prediction_rad, target_rad)
        self.sum_deg = self.sum_deg + error.sum()
        self.count = self.count + error.numel()

    def compute(self) -> Tensor:
        """Mean error in degrees; NaN before the first update."""
        return self.sum_deg / self.count
