"""Arithmetic on a circle: wrapping, signed differences, means, unit vectors.

Angles are radians, counter-clockwise as displayed (y up), 0 = right; unit vectors are (cos, sin), so their second
component points up. Every function takes tensors of any shape, keeps their dtype and is differentiable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FULL_TURN_RAD = 2 * math.pi


def wrap(angle_rad: Tensor) -> Tensor:
    """Bring angles into [0, 2 pi): angle mod 2 pi, non-negative for negative angles too.

    Args:
        angle_rad: angles in radians, any shape.

    Returns:
        The same shape. The gradient is 1 everywhere, also across the jump at 2 pi. A remainder that rounds up to a full
        turn (a tiny negative angle) is returned as 0, so the interval is half open in every dtype.

    >>> wrap(torch.tensor([-math.pi / 2, 2 * math.pi])) / math.pi
    tensor([1.5000, 0.0000])

    """
    remainder = torch.remainder(angle_rad, FULL_TURN_RAD)
    return torch.where(remainder >= FULL_TURN_RAD, remainder - FULL_TURN_RAD, remainder)


def angular_difference(a_rad: Tensor, b_rad: Tensor) -> Tensor:
    """Signed difference a - b along the shorter arc, in [-pi, pi).

    Its absolute value is min(|a - b|, 2 pi - |a - b|) for angles in [0, 2 pi): eqs. 4 and 13 of Bruns et al. 2024.
    Positive where `a` lies counter-clockwise of `b`; two opposite directions differ by -pi.

    Args:
        a_rad: angles in radians, any shape.
        b_rad: angles in radians, broadcastable with `a_rad`.

    Returns:
        The broadcast shape, radians. Small differences keep their full relative precision.

    >>> torch.rad2deg(angular_difference(torch.tensor(math.radians(1)), torch.tensor(math.radians(359)))).round()
    tensor(2.)

    """
    difference = a_rad - b_rad
    return difference - FULL_TURN_RAD * torch.floor(difference / FULL_TURN_RAD + 0.5)


def circular_mean(angles_rad: Tensor, dim: int = -1) -> Tensor:
    """Direction of the sum of the unit vectors, in [0, 2 pi).

    atan2(mean sin, mean cos): Mardia & Jupp, Directional Statistics, section 2.2.

    Args:
        angles_rad: angles in radians.
        dim: the dimension that is averaged and removed.

    Returns:
        Radians in [0, 2 pi). Undefined where the unit vectors cancel (see `resultant_length`).

    """
    return wrap(torch.atan2(torch.sin(angles_rad).mean(dim), torch.cos(angles_rad).mean(dim)))


def resultant_length(angles_rad: Tensor, dim: int = -1) -> Tensor:
    """Length of the mean unit vector in [0, 1]: 1 for equal angles, 0 where they cancel (ibid.)."""
    return torch.hypot(torch.sin(angles_rad).mean(dim), torch.cos(angles_rad).mean(dim))


def unit_vector(angle_rad: Tensor) -> Tensor:
    """Points on the unit circle: (...) radians -> (..., 2) holding (cos, sin), the second component up."""
    return torch.stack((torch.cos(angle_rad), torch.sin(angle_rad)), dim=-1)


def direction_of(vector: Tensor) -> Tensor:
    """Angle of vectors (x right, y up): (..., 2) of any length -> (...) radians in [0, 2 pi); the zero vector gives 0.

    Raises:
        ValueError: the last dimension does not hold two components.

    """
    if vector.shape[-1] != 2:
        raise ValueError(f"vector must hold two components in its last dimension, got shape {tuple(vector.shape)}")
    return wrap(torch.atan2(vector[..., 1], vector[..., 0]))
