"""Which cell a point of a crowded field belongs to: outlines about the cells' middles that give way to each other.

An outline is a radius over the angle; the depth of a point in a cell is its distance from the middle in units of that
radius, and a point within several outlines belongs to the cell in which it lies deepest. Where cells are few they keep
their own shape with its protrusions, where they are many they fill the field.

Angles are counter-clockwise as displayed, lengths um, x right and y down.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.simulators import cell_outlines
from datamodules.simulators.cell_outlines import Floats

OUTLINE_POINTS = 180
HARMONICS = 5
SPARSE_RADIUS = 0.5
CONFLUENT_RADIUS = 0.85
"""Mean radius in units of the root of the area that a cell has; 0.56 is a disc of that area."""


def outline_radius(
    spacing_um: float, axis_rad: float, *, confluent: bool, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Radius of one cell, (OUTLINE_POINTS,) um, at the angles of `cell_outlines.polar_grid`.

    Args:
        spacing_um: root of the area that a cell has in its field.
        axis_rad: along which it is stretched.
        confluent: whether it is to reach its neighbours; lone cells have two to four protrusions instead.
        rng: of its shape.
    """
    angle = cell_outlines.polar_grid(OUTLINE_POINTS)
    mean_um = spacing_um * (CONFLUENT_RADIUS if confluent else SPARSE_RADIUS)
    stretch = rng.uniform(1.05, 1.2)
    radius = cell_outlines.ellipse_radius(angle - axis_rad, half_length=mean_um * stretch, half_width=mean_um / stretch)
    waves = rng.standard_normal((2, HARMONICS)) / np.arange(2, 2 + HARMONICS)
    radius = radius * np.maximum(1.0 + 0.1 * cell_outlines.ripple(angle, waves[0] + 1j * waves[1]), 0.7)
    if not confluent:
        for _ in range(rng.integers(2, 5)):
            radius = radius + cell_outlines.process_radius(
                angle,
                direction_rad=rng.uniform(-np.pi, np.pi),
                length=rng.uniform(0.15, 0.5) * mean_um,
                half_width_rad=rng.uniform(0.1, 0.25),
            )
    return radius.astype(np.float32)


def territories(
    outlines: Sequence[tuple[Floats, Floats]], *, size_px: int, pixel_size_um: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Whose every pixel of a square field is, and how deep it lies.

    Args:
        outlines: middle (2,) um from the field's corner and radius (OUTLINE_POINTS,) um of every cell.
        size_px: side of the field.
        pixel_size_um: side of a pixel.

    Returns:
        Number of the cell from 1, 0 for none, (size, size); 1 - (distance / radius)^2 there, 0 outside all.
    """
    owner = np.zeros((size_px, size_px), np.int32)
    nearest = np.ones((size_px, size_px), np.float32)
    place_um = (np.arange(size_px, dtype=np.float32) + 0.5) * np.float32(pixel_size_um)
    per_rad = np.float32(OUTLINE_POINTS / (2 * np.pi))
    for number, (middle_um, radius_um) in enumerate(outlines, start=1):
        reach = float(radius_um.max())
        first = np.searchsorted(place_um, middle_um - reach)
        last = np.searchsorted(place_um, middle_um + reach)
        rows, columns = slice(first[1], last[1]), slice(first[0], last[0])
        if first[0] == last[0] or first[1] == last[1]:
            continue
        x = (place_um[columns] - np.float32(middle_um[0]))[None, :]
        y = (np.float32(middle_um[1]) - place_um[rows])[:, None]
        step = (np.arctan2(y, x) + np.float32(np.pi)) * per_rad
        below = step.astype(np.int32)
        share = step - below
        closed = np.append(radius_um, radius_um[:2]).astype(np.float32)
        radius = closed[below] * (1 - share) + closed[below + 1] * share
        squared = (x * x + y * y) / (radius * radius)
        deeper = squared < nearest[rows, columns]
        nearest[rows, columns][deeper] = squared[deeper]
        owner[rows, columns][deeper] = number
    return owner, 1 - nearest


def borders(owner: NDArray[np.int32]) -> NDArray[np.float32]:
    """1 on the pixels of a cell that touch another cell or none, else 0, (y, x)."""
    numbers = owner.astype(np.float32)
    kernel = np.ones((3, 3), np.uint8)
    apart = cv2.dilate(numbers, kernel) != cv2.erode(numbers, kernel)
    return (apart & (owner > 0)).astype(np.float32)


def separated(owner: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Where cells are, (y, x), without the line at which two of them touch: each is a component of its own."""
    numbers = owner.astype(np.float32)
    return (owner > 0) & (cv2.dilate(numbers, np.ones((3, 3), np.uint8)) == numbers)
