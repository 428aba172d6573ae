"""Stress fibres of a spread cell: bundles along its axis that part round the nucleus and leave an oval free.

The nucleus presses the cytoplasm apart, so fibres bend round it, lie denser at its sides and leave its place dim
(Vasudevan, Zheng et al., PLOS ONE 0271056, 2022, read the nucleus from exactly this). A straight line is bent by the
map q -> q (|q|^n + 1)^(1/n) / |q| in coordinates in which the oval is the unit circle: it moves every point of the
plane out of the oval and leaves distant ones where they are.

Lengths are um in the image's directions, x right and y down; angles are radians, counter-clockwise as displayed.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

PUSH_ORDER = 3.0
"""n of the map: with 2 areas would be kept and a whole cell bent; with 3 a fibre two radii away moves by 1/24."""
POINTS = 60
LEAST_ASIDE = 0.25
"""A fibre passes the oval's centre at least this far aside, in units of its half width; nearer it would cut through."""
SUBPIXEL_BITS = 4


class Oval(NamedTuple):
    """An ellipse."""

    centre_um: Floats
    """(2,), x and y."""
    half_length_um: float
    half_width_um: float
    angle_rad: float
    """Of the long axis."""


def oval_coordinates(points_um: Floats, oval: Oval) -> Floats:
    """Points (..., 2) in the frame in which the oval is the unit circle and x runs along its long axis."""
    cosine, sine = np.cos(oval.angle_rad), np.sin(oval.angle_rad)
    turn = np.array([[cosine, sine], [-sine, cosine]], points_um.dtype)  # y down: see `from_oval_coordinates`
    scale = np.array([1 / oval.half_length_um, 1 / oval.half_width_um], points_um.dtype)
    return (points_um - oval.centre_um.astype(points_um.dtype)) @ turn * scale


def from_oval_coordinates(points: Floats, oval: Oval) -> Floats:
    """Undo `oval_coordinates`."""
    cosine, sine = np.cos(oval.angle_rad), np.sin(oval.angle_rad)
    scale = np.array([oval.half_length_um, oval.half_width_um])
    return points * scale @ np.array([[cosine, -sine], [sine, cosine]]) + oval.centre_um


def parted(points_um: Floats, oval: Oval) -> Floats:
    """Points (..., 2) moved out of the oval, each straight away from its centre in the oval's own coordinates."""
    places = oval_coordinates(points_um, oval)
    distance = np.maximum(np.hypot(places[..., 0], places[..., 1]), 1e-6)[..., None]
    return from_oval_coordinates(places * ((distance**PUSH_ORDER + 1) ** (1 / PUSH_ORDER) / distance), oval)


def fibres(
    oval: Oval, *, axis_rad: float, reach_um: float, spacing_um: float, bend_per_um: float, rng: np.random.Generator
) -> Floats:
    """Bundles about the oval, (n, POINTS, 2) um.

    Args:
        oval: what they leave free; their family is centred on it.
        axis_rad: direction of the fibres.
        reach_um: how far they run to each side, and how far the outermost ones lie from the oval's centre.
        spacing_um: mean distance between neighbours.
        bend_per_um: curvature of the whole family, 1 / um.
        rng: of their places, lengths and slight disorder.
    """
    count = max(int(2 * reach_um / spacing_um), 2)
    across = np.linspace(-reach_um, reach_um, count) + rng.uniform(-0.5, 0.5, count) * spacing_um
    least = LEAST_ASIDE * oval.half_width_um
    across = np.where(np.abs(across) < least, np.where(across < 0, -least, least), across)
    start = -reach_um * rng.uniform(0.3, 1.0, count)
    stop = reach_um * rng.uniform(0.3, 1.0, count)
    along = start[:, None] + (stop - start)[:, None] * np.linspace(0.0, 1.0, POINTS)
    tilt = rng.normal(0.0, 0.04, count)
    sideways = across[:, None] + tilt[:, None] * along + 0.5 * bend_per_um * along**2
    cosine, sine = np.cos(axis_rad), np.sin(axis_rad)
    straight = np.stack([along, sideways], axis=-1) @ np.array([[cosine, -sine], [sine, cosine]])
    return parted(straight + oval.centre_um, oval)


def drawn(lines_px: Floats, strengths: Floats, *, shape_px: tuple[int, int]) -> NDArray[np.float32]:
    """Lines (n, points, 2) px, x and y, one pixel wide on a canvas (h, w) of zeros; `strengths` (n,) in [0, 1]."""
    canvas = np.zeros(shape_px, np.uint8)
    corners = np.rint(lines_px * (1 << SUBPIXEL_BITS)).astype(np.int32)
    for index in np.argsort(strengths):
        level = round(255 * float(strengths[index]))
        cv2.polylines(canvas, [corners[index]], False, level, 1, cv2.LINE_AA, SUBPIXEL_BITS)
    return canvas * np.float32(1 / 255)
