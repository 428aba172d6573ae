"""Outlines of generated (red) and real (blue) nuclei on the picture of their cells' actin, with a scale bar; pixels.

As in fig. 3c of Vasudevan, Zheng et al., PLOS ONE 0271056 (2022). A pixel that lies on outlines of both is violet. The
bar in the lower right corner is a round length of at most a quarter of the width: 1, 2 or 5 times a power of ten um.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

GENERATED_RGB = (255, 45, 45)
REAL_RGB = (60, 130, 255)
BOTH_RGB = (205, 90, 255)
DIMMED = 0.75
LARGEST_BAR_SHARE = 0.25
STEPS = (5.0, 2.0, 1.0)


def overlay_rgb(
    actin: NDArray[np.floating],
    generated: NDArray[np.integer],
    real: NDArray[np.integer] | None,
    *,
    pixel_size_um: float,
) -> NDArray[np.uint8]:
    """Draw the outlines of labelled nuclei.

    Args:
        actin: (y, x), in [0, 1].
        generated: (y, x), numbers of the generated nuclei, 0 for background.
        real: (y, x), of the real ones; None where they are unknown.
        pixel_size_um: side of a pixel (um), for the bar.

    Returns:
        (y, x, 3) red, green, blue.

    """
    grey = np.clip(np.nan_to_num(np.asarray(actin, dtype=np.float64)), 0, 1) * 255 * DIMMED
    picture = np.repeat(grey[..., None], 3, axis=-1).round().astype(np.uint8)
    ours = outlines(generated)
    theirs = outlines(real) if real is not None else np.zeros_like(ours)
    picture[theirs] = REAL_RGB
    picture[ours] = GENERATED_RGB
    picture[ours & theirs] = BOTH_RGB
    rows, columns = scale_bar(picture.shape[:2], pixel_size_um=pixel_size_um)
    picture[rows, columns] = 255
    return picture


def side_by_side(
    actin: NDArray[np.floating], real: NDArray[np.floating], generated: NDArray[np.floating]
) -> NDArray[np.uint8]:
    """Actin, real and generated nuclei, each (y, x) in [0, 1], from left to right: (y, 3 x, 3); unknown is black."""
    row = np.concatenate([np.clip(np.nan_to_num(np.asarray(part)), 0, 1) for part in (actin, real, generated)], axis=1)
    return np.repeat((row * 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def outlines(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels of a nucleus that touch, along an edge, one of another number or the background; (y, x)."""
    numbers = np.asarray(labels)
    padded = np.pad(numbers, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (numbers > 0) & np.any([neighbour != numbers for neighbour in neighbours], axis=0)


def bar_um(width_px: int, *, pixel_size_um: float) -> float:
    """The bar's length in um.

    >>> bar_um(384, pixel_size_um=0.4151)
    20.0

    """
    most = LARGEST_BAR_SHARE * width_px * pixel_size_um
    decade = 10.0 ** math.floor(math.log10(most))
    return next(step * decade for step in STEPS if step * decade <= most * (1 + 1e-9))


def scale_bar(shape_px: tuple[int, ...], *, pixel_size_um: float) -> tuple[slice, slice]:
    """Rows and columns of the bar in a picture of this shape (y, x)."""
    height, width = shape_px[:2]
    length = max(1, round(bar_um(width, pixel_size_um=pixel_size_um) / pixel_size_um))
    margin, thick = max(1, width // 32), max(1, height // 96)
    return slice(height - margin - thick, height - margin), slice(width - margin - length, width - margin)
