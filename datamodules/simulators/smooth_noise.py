"""Normal noise that is smooth along time or in a picture, with mean 0 and variance 1 everywhere, borders included."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

REACH = 4.0
"""Kernels are cut at so many widths."""


def smooth_series(
    rng: np.random.Generator, length: int, shape: tuple[int, ...], *, width: float
) -> NDArray[np.float64]:
    """Independent stationary series, (length, *shape).

    White noise under a Gaussian of the standard deviation `width` in steps; values a steps apart have the correlation
    exp(-a^2 / (4 width^2)). A width of 0 gives white noise.

    Raises:
        ValueError: the length is not positive, or the width is negative.
    """
    if length < 1:
        raise ValueError(f"length must be positive, got {length}")
    kernel = _kernel(width)
    white = rng.standard_normal((length + len(kernel) - 1, *shape))
    windows = np.lib.stride_tricks.sliding_window_view(white, len(kernel), axis=0)
    return windows @ kernel


def smooth_picture(rng: np.random.Generator, size_px: int, *, width_px: float) -> NDArray[np.float32]:
    """A stationary picture, (size, size) float32, correlated as `smooth_series` along both axes.

    Raises:
        ValueError: the size is not positive, or the width is negative.
    """
    if size_px < 1:
        raise ValueError(f"size_px must be positive, got {size_px}")
    kernel = _kernel(width_px)
    side, rim = size_px + len(kernel) - 1, len(kernel) // 2
    white = rng.standard_normal((side, side), dtype=np.float32)
    return cv2.sepFilter2D(white, -1, kernel, kernel)[rim : rim + size_px, rim : rim + size_px]


def _kernel(width: float) -> NDArray[np.float64]:
    """Weights whose squares sum to 1, an odd number of them."""
    if not (np.isfinite(width) and width >= 0):
        raise ValueError(f"width must be finite and not negative, got {width}")
    half = int(np.ceil(REACH * width))
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / max(width, 1e-12)) ** 2)
    return weights / np.sqrt((weights**2).sum())
