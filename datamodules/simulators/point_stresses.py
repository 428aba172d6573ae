"""Point stresses along the rim of a cell, as Wang & Lin 2021 (Biophys J 120:3079) make them from an outline.

A cell is a polar curve of 360 points with a signed net signal, positive where it protrudes. Every stress points from
the rim to the middle, as strong as the signal where it stands; signals of retracting points are scaled so that the
forces balance. Stresses are set near the rim in three layers, 3 px inside and deeper: every 2nd degree by Poisson(1)
px, every 6th by Poisson(2) px, every 10th by Poisson(6) px and blurred into 3 x 3 px.

Steps and numbers after the authors' generator of test data (github.com/yuliwang8177/DL-TFM, test/*/createData.m,
MIT), written anew for many rotations at a time. Deviations: the balance. Theirs takes one factor from the sum of the x
and y components, so that it depends on how the cell lies; ours is the factor that leaves the smallest net force, the
same for all rotations, and the remaining net force is judged in all directions, not along x and y only. Stresses never
jump over the middle.

Angles are rad, counter-clockwise as displayed; x to the right, y down the rows; pixel (0, 0) has its centre at 0, 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

LAYERS = ((2, 1.0, False), (6, 2.0, False), (10, 6.0, True))
"""Step in points, mean of the Poisson depth in px of magnification 1, blurred or not."""
LEAST_DEPTH_PX = 3.0
"""From the rim to the outermost stress; not scaled with the magnification, as in the source."""
BLUR = np.array([[0.4, 0.6, 0.4], [0.6, 1.0, 0.6], [0.4, 0.6, 0.4]])
"""Spreads a stress of the third layer; its sum is 5, as in the source."""
CELL_LENGTH_PX = 64.0
"""Longer side of a cell's bounding box at magnification 1."""
DIRECTIONS = 180
"""Directions in which `imbalance` looks."""


class Placed(NamedTuple):
    """Stresses of one cell in several rotations, of no particular unit, with its outlines."""

    stress: Floats
    """(rotations, 2, y, x), components (x, y)."""
    outline_px: Floats
    """(rotations, 2, n), x and y of the corners."""


def balanced_strength(net_signal: Floats, angle_rad: Floats, *, threshold: float = 1.0) -> Floats:
    """Strengths of inward stresses whose net force is as small as one factor can make it.

    Signals below the threshold become 0; the magnitudes of the negative ones are multiplied by the factor
    f = -(P . N) / |N|^2, where P and N are the net forces of the positive and negative ones.

    Args:
        net_signal: (n,), positive where the cell protrudes.
        angle_rad: (n,).
        threshold: signals below it are dropped; where all are below 1, it applies to ten times the signal, as in the
            source.

    Returns:
        (n,), not negative; all 0 where no positive factor balances the cell.

    Raises:
        ValueError: the shapes differ, or `threshold` is negative.
    """
    if net_signal.ndim != 1 or net_signal.shape != angle_rad.shape:
        raise ValueError(f"net_signal and angle_rad must be (n,), got {net_signal.shape} and {angle_rad.shape}")
    if not threshold >= 0:
        raise ValueError(f"threshold must not be negative, got {threshold}")
    signal = net_signal * (10.0 if np.abs(net_signal).max() < 1.0 else 1.0)
    signal = np.where(np.abs(signal) < threshold, 0.0, signal)
    inward = _inward(angle_rad)
    protruding, retracting = np.maximum(signal, 0.0), np.maximum(-signal, 0.0)
    force, counterforce = inward @ protruding, inward @ retracting
    square = counterforce @ counterforce
    factor = -(force @ counterforce) / square if square > 0 else 0.0
    return protruding + factor * retracting if factor > 0 else np.zeros_like(signal)


def imbalance(strength: Floats, angle_rad: Floats) -> float:
    """Largest |sum T_d| / sum |T_d| over all directions d, of inward stresses (n,); infinite where there is none."""
    if not strength.any():
        return np.inf
    direction = np.arange(DIRECTIONS) * (np.pi / DIRECTIONS)
    along = np.stack([np.cos(direction), np.sin(direction)], axis=1) @ _inward(angle_rad)  # (directions, n)
    return float(np.max(np.abs(along @ strength) / (np.abs(along) @ strength)))


def place(
    radius: Floats,
    angle_rad: Floats,
    strength: Floats,
    *,
    rotations_rad: Floats,
    grid_size_px: int,
    magnification: float,
    rng: np.random.Generator,
) -> Placed:
    """Set a cell's stresses and outline on the grid, once for every rotation: polar angles turn, nothing is resampled.

    Each rotation is scaled so that the longer side of its own bounding box is 64 px * magnification, centred, and
    draws its own depths.

    Args:
        radius: (n,), in any unit.
        angle_rad: (n,).
        strength: (n,), not negative.
        rotations_rad: (rotations,), counter-clockwise as displayed.
        grid_size_px: side of the square grid.
        magnification: size of the cell and of the depths.
        rng: of the depths.

    Raises:
        ValueError: the shapes differ, or the cell does not fit into the grid.
    """
    if not radius.shape == angle_rad.shape == strength.shape or radius.ndim != 1:
        raise ValueError(
            f"radius, angle_rad and strength must be (n,), got {radius.shape}, {angle_rad.shape} and {strength.shape}"
        )
    if not 0 < CELL_LENGTH_PX * magnification <= grid_size_px - 4:
        raise ValueError(
            f"magnification must be positive and leave room for a cell of {CELL_LENGTH_PX:g} px times it on a grid of "
            f"{grid_size_px} px, got {magnification}"
        )
    angle = angle_rad + np.asarray(rotations_rad)[:, None]
    outward = np.stack([np.cos(angle), -np.sin(angle)], axis=1)  # (rotations, 2, n)
    longest = np.ptp(radius * outward, axis=2).max(axis=1)
    scaled = radius * (CELL_LENGTH_PX * magnification / longest)[:, None]
    rim = np.ceil(scaled[:, None] * outward)
    low, high = rim.min(axis=2, keepdims=True), rim.max(axis=2, keepdims=True)
    shift = np.ceil(0.5 * (grid_size_px - high + low)) - low - 1  # the source counts pixels from 1

    places, values = [], []
    for step, mean_depth, blurred in LAYERS:
        kept = slice(None, None, step)
        depth = LEAST_DEPTH_PX + magnification * rng.poisson(mean_depth, scaled[:, kept].shape)
        at = np.ceil(np.maximum(scaled[:, kept] - depth, 0.0)[:, None] * outward[..., kept]) + shift
        vector = -strength[kept] * outward[..., kept]
        for (row, column), weight in np.ndenumerate(BLUR) if blurred else (((1, 1), 1.0),):
            places.append(at + np.array([column - 1, row - 1])[:, None])
            values.append(weight * vector)
    return Placed(_gathered(np.concatenate(places, axis=2), np.concatenate(values, axis=2), grid_size_px), rim + shift)


def shrunk(placed: Placed, grid_size_px: int) -> Placed:
    """Take every pixel of a smaller grid from the pixel of the larger one that its centre falls into.

    Corners are multiplied by the ratio of the sizes, counted from 1, as in the stored cells of Wang & Lin (their
    corners on the 104 grid are multiples of 0.65).

    Raises:
        ValueError: `grid_size_px` is larger than the grid.
    """
    size = placed.stress.shape[-1]
    if not 0 < grid_size_px <= size:
        raise ValueError(f"grid_size_px must be positive and at most {size}, got {grid_size_px}")
    ratio = grid_size_px / size
    nearest = np.floor((np.arange(grid_size_px) + 0.5) / ratio).astype(np.intp)
    return Placed(
        np.ascontiguousarray(placed.stress[..., nearest[:, None], nearest]), ratio * (placed.outline_px + 1.0) - 1.0
    )


def _inward(angle_rad: Floats) -> Floats:
    """Unit vectors from the rim to the middle, (2, n)."""
    return np.stack([-np.cos(angle_rad), np.sin(angle_rad)])


def _gathered(at_px: Floats, vectors: Floats, size_px: int) -> Floats:
    """Sum vectors (rotations, 2, n) at pixels (rotations, 2, n) into fields (rotations, 2, y, x)."""
    rotations = len(at_px)
    x, y = at_px.astype(np.intp).transpose(1, 0, 2)
    index = ((np.arange(2 * rotations).reshape(rotations, 2, 1) * size_px) + y[:, None]) * size_px + x[:, None]
    sums = np.bincount(index.ravel(), vectors.ravel(), minlength=2 * rotations * size_px**2)
    return sums.reshape(rotations, 2, size_px, size_px)
