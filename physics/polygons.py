"""Polygons on a pixel grid: the pixels of a cell from its outline. Pure NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDING_PX = 1e-9


def polygon_interior(corners_px: NDArray[np.floating], height_px: int, width_px: int) -> NDArray[np.bool_]:
    """Pixels whose centres lie inside a closed polygon or exactly on it.

    That is the rule of MATLAB's inpolygon, by which Wang & Lin take errors inside the cell. A pixel is inside where a
    ray crosses the polygon an odd number of times; corners are rounded to 1e-9 px, so that those on pixel centres count
    as such.

    Args:
        corners_px: (..., 2, n), x and y of the corners; the last is joined to the first.
        height_px: rows of the grid; pixel (0, 0) has its centre at 0, 0.
        width_px: columns of the grid.

    Returns:
        (..., y, x).

    Raises:
        ValueError: `corners_px` has another shape, or holds what is not finite.
    """
    if corners_px.ndim < 2 or corners_px.shape[-2] != 2 or corners_px.shape[-1] < 3:
        raise ValueError(f"corners_px must have shape (..., 2, n) with n > 2, got {corners_px.shape}")
    if not np.isfinite(corners_px).all():
        raise ValueError("corners_px must be finite")
    start = np.round(corners_px.reshape(-1, 2, corners_px.shape[-1]).astype(np.float64), 9)
    stop = np.roll(start, -1, axis=2)
    polygon = np.repeat(np.arange(len(start)), start.shape[2])
    (x0, y0), (x1, y1) = start.transpose(1, 0, 2).reshape(2, -1), stop.transpose(1, 0, 2).reshape(2, -1)

    swap = y0 > y1
    x0, x1, y0, y1 = np.where(swap, x1, x0), np.where(swap, x0, x1), np.where(swap, y1, y0), np.where(swap, y0, y1)
    first = np.ceil(y0).astype(np.intp)
    edge, nth = _repeated(np.floor(y1).astype(np.intp) - first + 1)
    row = first[edge] + nth
    level = y0[edge] == y1[edge]
    rise = np.where(level, 1.0, y1[edge] - y0[edge])
    crossing = x0[edge] + (x1[edge] - x0[edge]) * (row - y0[edge]) / rise
    valid = (row >= 0) & (row < height_px)

    parity = np.zeros((len(start), height_px, width_px + 1), np.intp)
    counted = valid & ~level & (row < y1[edge])  # the upper end of an edge belongs to the next edge
    at = np.clip(np.ceil(crossing[counted] - ROUNDING_PX), 0, width_px).astype(np.intp)
    np.add.at(parity, (polygon[edge[counted]], row[counted], at), 1)
    inside = np.cumsum(parity[..., :-1], axis=-1) % 2 == 1

    # centres on the polygon: single crossings, and all along level edges
    left = np.where(level, np.minimum(x0[edge], x1[edge]), crossing)
    right = np.where(level, np.maximum(x0[edge], x1[edge]), crossing)
    begin = np.ceil(left - ROUNDING_PX).astype(np.intp)
    many, nth = _repeated(np.where(valid, np.floor(right + ROUNDING_PX).astype(np.intp) - begin + 1, 0))
    column = begin[many] + nth
    within = (column >= 0) & (column < width_px)
    many = many[within]
    inside[polygon[edge[many]], row[many], column[within]] = True
    return inside.reshape(*corners_px.shape[:-2], height_px, width_px)


def _repeated(counts: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Index i `counts[i]` times (none where negative), and which of these times it is: 0, 1, ..."""
    counts = np.maximum(counts, 0)
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
