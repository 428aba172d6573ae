"""Windows that let a field fade out towards the rim of its picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def tukey_window(length: int, *, fraction: float = 0.1) -> NDArray[np.float64]:
    """1 in the middle, with a taper of int(length * fraction) samples at *each* end, 0 at the outermost: (length,).

    The taper is the first half of a raised cosine over twice as many samples, ends included, as in the code of
    Pielawski et al. 2020 (arXiv 1910.07380); close to, but not the same as, scipy's `tukey(length, 2 * fraction)`.

    Raises:
        ValueError: fraction lies outside of [0, 0.5], or length is negative.
    """
    if not 0 <= fraction <= 0.5:
        raise ValueError(f"fraction must lie in [0, 0.5], got {fraction}")
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    samples = int(length * fraction)
    window = np.ones(length)
    rise = 0.5 - 0.5 * np.cos(2 * np.pi * np.linspace(0, 1, 2 * samples)[:samples])
    window[:samples] = rise
    window[length - samples :] = rise[::-1]
    return window


def tukey_window_2d(shape_px: tuple[int, int], *, fraction: float = 0.1) -> NDArray[np.float64]:
    """Outer product of the windows along y and x, (y, x); ValueError as in `tukey_window`."""
    height, width = shape_px
    return np.outer(tukey_window(height, fraction=fraction), tukey_window(width, fraction=fraction))
