"""Adhesions of a cell: sites near its rim that ripen and fade, seen as short streaks that point to the nucleus.

A site keeps its direction from the nucleus and its share of the way to the rim, so it moves with the outline. Lengths
in um in the cell's own frame (`cell_outlines`), then in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.simulators.cell_outlines import SUBPIXEL_BITS, Floats

RIM_SHARE = 0.3
"""Sites lie within this share of the radius from the rim, most of them close to it."""


class Sites(NamedTuple):
    """Where adhesions can form."""

    angle_rad: Floats
    """(n,) in the cell's own frame, 0 = front."""
    share: Floats
    """(n,) of the way from the nucleus to the rim."""
    length_um: Floats
    """(n,) of the streak."""


def draw_sites(rng: np.random.Generator, count: int, *, length_um: tuple[float, float]) -> Sites:
    """Draw sites all around the cell; lengths are uniform in the range.

    Raises:
        ValueError: the count is negative or the lengths are no range of positive numbers.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    low, high = length_um
    if not 0 < low <= high < np.inf:
        raise ValueError(f"length_um must be two positive numbers, the smaller one first, got {length_um}")
    return Sites(
        angle_rad=rng.uniform(-np.pi, np.pi, count),
        share=0.97 - RIM_SHARE * rng.random(count) ** 2,
        length_um=rng.uniform(low, high, count),
    )


def streak_radii(sites: Sites, rim_radius_um: Floats, rim_angle_rad: Floats) -> tuple[Floats, Floats]:
    """Distances (n,) of the streaks' outer and inner ends from the nucleus, um, in an outline of radii (m,) at angles.

    The inner end never passes the nucleus.
    """
    outer = sites.share * np.interp(sites.angle_rad, rim_angle_rad, rim_radius_um, period=2 * np.pi)
    return outer, np.maximum(outer - sites.length_um, 0.2 * outer)


def streaks(
    size_px: int, outer_px: Floats, inner_px: Floats, strengths: Floats, *, width_px: float
) -> NDArray[np.float32]:
    """Streaks from the points (n, 2) to the points (n, 2) on a (size, size) canvas of zeros, anti-aliased.

    `strengths` (n,) are drawn in 255 steps of the highest; where several overlap the highest counts, those that are
    not positive are left out.
    """
    canvas = np.zeros((size_px, size_px), np.uint8)
    tallest = float(strengths.max(initial=0.0))
    if tallest <= 0.0:
        return canvas.astype(np.float32)
    ends = [np.rint(points * (1 << SUBPIXEL_BITS)).astype(int).tolist() for points in (outer_px, inner_px)]
    levels = np.rint(strengths * (255 / tallest)).astype(int).tolist()
    width = max(round(width_px), 1)
    for site in np.argsort(strengths):
        if levels[site] > 0:
            cv2.line(canvas, ends[0][site], ends[1][site], levels[site], width, cv2.LINE_AA, SUBPIXEL_BITS)
    return canvas * np.float32(tallest / 255)
