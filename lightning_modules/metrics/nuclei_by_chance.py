"""What chance would get: the share of positions in an image or in a cell that count as the nucleus' own.

Vasudevan, Zheng et al., PLOS ONE 0271056 (2022), "Statistical analysis" in its methods and fig. S3: a nucleus thrown at
random into the image, or into its cell such that all of it is inside, first a round cell and then real ones. The share
is the probability of `nuclei.log10_binomial_tail`.

The printed p-values, 10^-2170 in the image and 6.6 10^-130 in the cell, do not follow from the printed probabilities
1/500 and 1/2: with 5785 of 8151 nuclei within 4 um the tails are 10^-13,513 (at 1/505.5) and 10^-323; a tail of
6.6 10^-130 belongs to a probability of 0.580. Images whose border cuts a cell are not mentioned in the paper.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from torch import Tensor

from lightning_modules.metrics.nuclei import MATCHED_UM

PUBLISHED_FIELD_UM = 159.41


def chance_in_image(*, radius_um: float = MATCHED_UM, field_um: float = PUBLISHED_FIELD_UM) -> float:
    """Chance that a random point of a square image falls within a radius of a given one, away from the border.

    >>> round(1 / chance_in_image(), 1), round(1 / chance_in_image(radius_um=1.0))
    (505.5, 8089)

    """
    _check_positive(radius_um=radius_um, field_um=field_um)
    return min(1.0, math.pi * radius_um**2 / field_um**2)


def chance_in_round_cell(
    *, cell_radius_um: float, radius_um: float = MATCHED_UM, nucleus_radius_um: float = MATCHED_UM
) -> float:
    """`chance_in_cell` of a disc with the nucleus in its middle; NaN if the nucleus does not fit."""
    _check_positive(cell_radius_um=cell_radius_um, radius_um=radius_um, nucleus_radius_um=nucleus_radius_um)
    free_um = cell_radius_um - nucleus_radius_um
    return min(1.0, (radius_um / free_um) ** 2) if free_um > 0 else math.nan


def chance_in_cell(
    cell_mask: ArrayLike | Tensor,
    centroid_yx_px: tuple[float, float],
    *,
    pixel_size_um: float,
    radius_um: float = MATCHED_UM,
    nucleus_radius_um: float = MATCHED_UM,
) -> float:
    """Chance that a nucleus put anywhere inside a cell, wholly, has its centre within a radius of the true one.

    Args:
        cell_mask: (y, x), bool, one cell; the image's border is an edge of the cell.
        centroid_yx_px: of the true nucleus (pixels).
        pixel_size_um: side of a pixel (um).
        radius_um: within which a nucleus counts as matched (um).
        nucleus_radius_um: the least distance of a centre from the cell's edge (um), taken to run half a pixel outside
            the centres of the cell's outermost pixels.

    Returns:
        The share of the possible positions, in [0, 1]; NaN where the nucleus fits nowhere.

    Raises:
        ValueError: a mask of another shape, or a length that is not positive.

    """
    _check_positive(pixel_size_um=pixel_size_um, radius_um=radius_um, nucleus_radius_um=nucleus_radius_um)
    cell = np.asarray(cell_mask.cpu() if isinstance(cell_mask, Tensor) else cell_mask).astype(bool)
    if cell.ndim != 2:
        raise ValueError(f"cell_mask must have shape (y, x), got {cell.shape}")
    to_edge_px = ndimage.distance_transform_edt(np.pad(cell, 1))[1:-1, 1:-1] - 0.5
    possible = cell & (to_edge_px * pixel_size_um >= nucleus_radius_um)
    y, x = np.ogrid[: cell.shape[0], : cell.shape[1]]
    right = np.hypot(y - centroid_yx_px[0], x - centroid_yx_px[1]) * pixel_size_um < radius_um
    positions = int(possible.sum())
    return int((possible & right).sum()) / positions if positions else math.nan


def _check_positive(**lengths: float) -> None:
    for name, length in lengths.items():
        if not 0 < length < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {length}")
