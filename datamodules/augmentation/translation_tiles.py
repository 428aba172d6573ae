"""Grey pictures of fluorescence as a translation network takes them: scale of grey, size, and where things are.

Pictures are (y, x), grey in [0, 1] once `scaled`. The rules by which nuclei and cells are told are Vasudevan, Zheng et
al.'s (PLOS ONE 0271056, 2022) where they state one: their code takes a nucleus to be where the mean of three colours in
[-1, 1] is above -2/3, which is 1/6 of [0, 1]. How a cell is told they do not say; `cell_region` is ours.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

CONTRASTS = ("full_range", "stretched")
STRETCH_PERCENT = (0.1, 99.9)
NUCLEUS_LEVEL = 1 / 6
CELL_SMOOTHING_UM = 1.0
CELL_SHARE_OF_OTSU = 0.5


def scaled(picture: NDArray[Any], contrast: str) -> NDArray[np.float32]:
    """Grey levels (y, x) to [0, 1].

    Args:
        picture: uint8 or uint16; float32 is taken to be scaled already.
        contrast: "full_range", 0 to the largest value of the type; "stretched", the 0.1 to the 99.9 percentile of this
            picture, what lies beyond is clipped and a constant picture is 0.

    Raises:
        ValueError: another type or contrast.
    """
    if picture.dtype == np.float32:
        return picture
    if picture.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"picture must be uint8 or uint16, got {picture.dtype}")
    if contrast == "full_range":
        return picture.astype(np.float32) / np.float32(np.iinfo(picture.dtype).max)
    if contrast != "stretched":
        raise ValueError(f"contrast must be one of {', '.join(CONTRASTS)}, got {contrast!r}")
    low, high = np.percentile(picture, STRETCH_PERCENT)
    if low == high:
        return np.zeros(picture.shape, np.float32)
    return np.clip((picture.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)


def resized(picture: NDArray[np.float32], side_px: int) -> NDArray[np.float32]:
    """A square picture (y, x) with another side: by area where it shrinks, bilinear where it grows."""
    if picture.shape == (side_px, side_px):
        return picture
    way = cv2.INTER_AREA if side_px < len(picture) else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(picture), (side_px, side_px), interpolation=way)


def resized_mask(mask: NDArray[Any], side_px: int) -> NDArray[np.bool_]:
    """A square mask (y, x) with another side: true where at least half of a pixel is."""
    return resized((mask != 0).astype(np.float32), side_px) >= np.float32(0.5)


def resized_cells(mask: NDArray[Any], side_px: int) -> NDArray[np.bool_]:
    """`resized_mask` of cells, in which those that a line parts, however thin, are parted still.

    A pixel belongs to the cell at its middle; of two cells that would touch, along an edge or at a corner, one gives
    way by a pixel.
    """
    cells = (mask != 0).astype(np.uint8)
    if mask.shape == (side_px, side_px):
        return cells.astype(bool)
    numbers = cv2.connectedComponents(cells, connectivity=8)[1].astype(np.float32)
    nearest = cv2.resize(numbers, (side_px, side_px), interpolation=cv2.INTER_NEAREST_EXACT)
    alone = cv2.dilate(nearest, np.ones((3, 3), np.uint8)) == nearest
    return resized_mask(mask, side_px) & (nearest > 0) & alone


def nucleus_region(nucleus: NDArray[np.float32], rule: str) -> NDArray[np.bool_]:
    """Where a picture of nuclei (y, x) in [0, 1] shows one.

    Args:
        nucleus: a constant one shows none under "otsu".
        rule: "mean_sixth", above 1/6; "otsu", above Otsu's threshold of this picture.

    Raises:
        ValueError: another rule.
    """
    if rule == "mean_sixth":
        return nucleus > np.float32(NUCLEUS_LEVEL)
    if rule != "otsu":
        raise ValueError(f"rule must be mean_sixth or otsu, got {rule!r}")
    return nucleus > threshold_otsu(nucleus)


def cell_region(actin: NDArray[np.float32], *, pixel_size_um: float) -> NDArray[np.bool_]:
    """Where a picture of actin (y, x) shows cells: smoothed over 1 um, above half of Otsu's threshold, holes filled.

    Otsu's threshold itself lies between dim and bright cells where a picture is full of cells; half of it still lies
    above the empty glass. Holes are filled because actin is dim below the nucleus. A constant picture shows no cell.
    """
    smooth = ndimage.gaussian_filter(actin, CELL_SMOOTHING_UM / pixel_size_um)
    if smooth.min() == smooth.max():
        return np.zeros(actin.shape, bool)
    low = float(smooth.min())
    return ndimage.binary_fill_holes(smooth > low + CELL_SHARE_OF_OTSU * (threshold_otsu(smooth) - low))
