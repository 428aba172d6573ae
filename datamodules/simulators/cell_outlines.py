"""Outlines of polarised crawling cells: polar curves about the nucleus, and how they are laid on a pixel grid.

The cell's own frame has its origin in the nucleus, x forward along the polarity axis, y to the left, micrometres;
angle 0 is the front. A mesenchymal cell is read as three nested parts: the nucleus, a thick body that runs out into
tapering processes (a tail behind, two horns beside the front), and a flat lamella that spans the front.
`place` turns points of that frame into pixels (x right, y down) for a polarity given counter-clockwise with y up.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

SUBPIXEL_BITS = 4
"""Polygon corners are given to OpenCV in sixteenths of a pixel."""
LAMELLA_EDGE_RAD = 0.25
"""Angle over which the lamella's flanks fall back to the cell body."""


@dataclass(frozen=True, kw_only=True)
class CellShape:
    """The numbers that fix one cell's outline; lengths in um, angles in rad in the cell's own frame.

    `body_half_length_um` and `body_half_width_um` are the half axes of the thick body along and across the polarity
    axis; `tail_length_um` and `horn_length_um` are what its processes add to it. `tail_bend_per_um` is the sideways
    displacement of the tail per square of the distance behind the nucleus. `lamella_reach_um` is the front edge's
    distance from the nucleus, `lamella_half_opening_rad` half the angle the lamella spans. `front_ripple` holds the
    complex relative amplitudes of the angular harmonics 2, 3, ... of the front edge, `body_ripple` those of the body.
    """

    nucleus_half_length_um: float
    nucleus_half_width_um: float
    body_half_length_um: float
    body_half_width_um: float
    tail_length_um: float
    tail_half_width_rad: float
    tail_bend_per_um: float
    horn_length_um: float
    lamella_reach_um: float
    lamella_half_opening_rad: float
    front_ripple: NDArray[np.complexfloating]
    body_ripple: NDArray[np.complexfloating]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not np.all(np.isfinite(value)):
                raise ValueError(f"{field.name} must be finite, got {value}")
            may_be_zero = field.name.startswith(("tail_length", "horn_length"))
            signed = field.name.endswith("ripple") or field.name.startswith("tail_bend")
            if not signed and not (value > 0 or (may_be_zero and value == 0)):
                raise ValueError(f"{field.name} must be positive, got {value}")
        if self.lamella_half_opening_rad >= np.pi:
            raise ValueError(f"lamella_half_opening_rad must be below pi, got {self.lamella_half_opening_rad}")


def polar_grid(count: int) -> Floats:
    """Return `count` evenly spaced angles in [-pi, pi), (count,), float64, rad."""
    if count < 3:
        raise ValueError(f"count must be at least 3, got {count}")
    return np.linspace(-np.pi, np.pi, count, endpoint=False)


def ellipse_radius(angle_rad: Floats, *, half_length: float, half_width: float) -> Floats:
    """Distance of an ellipse from its centre at `angle_rad` from the axis that `half_length` lies on, (n,)."""
    return half_length * half_width / np.hypot(half_width * np.cos(angle_rad), half_length * np.sin(angle_rad))


def process_radius(angle_rad: Floats, *, direction_rad: float, length: float, half_width_rad: float) -> Floats:
    """What a tapering process adds to the radius, (n,): `length` at its direction, falling by e per `half_width_rad`.

    The exponential makes the flanks concave, as those of a cell that hangs between its adhesions.
    """
    distance = np.abs(np.angle(np.exp(1j * (angle_rad - direction_rad))))
    return length * np.exp(-distance / half_width_rad)


def ripple(angle_rad: Floats, amplitudes: NDArray[np.complexfloating]) -> Floats:
    """Relative undulation, (n,): the real part of the sum of `amplitudes[k] exp(i (k + 2) angle)`.

    Harmonics 0 and 1 are left out: they would change the size and shift the cell.
    """
    orders = np.arange(2, 2 + len(amplitudes))
    return (np.exp(1j * np.multiply.outer(angle_rad, orders)) @ amplitudes).real


def body_radius(shape: CellShape, angle_rad: Floats) -> Floats:
    """Outline of the thick body with its tail and horns, (n,) um, at the angles (n,) of the cell's own frame."""
    radius = ellipse_radius(angle_rad, half_length=shape.body_half_length_um, half_width=shape.body_half_width_um)
    radius = radius * np.maximum(1.0 + ripple(angle_rad, shape.body_ripple), 0.5)
    half_width = shape.tail_half_width_rad
    radius = radius + process_radius(
        angle_rad, direction_rad=np.pi, length=shape.tail_length_um, half_width_rad=half_width
    )
    for side in (-1.0, 1.0):
        radius = radius + process_radius(
            angle_rad,
            direction_rad=side * shape.lamella_half_opening_rad,
            length=shape.horn_length_um,
            half_width_rad=half_width,
        )
    return radius


def front_window(shape: CellShape, angle_rad: Floats) -> Floats:
    """1 where the lamella stands, 0 behind it, with soft flanks, (n,)."""
    return 0.5 * (1.0 + np.tanh((shape.lamella_half_opening_rad - np.abs(angle_rad)) / LAMELLA_EDGE_RAD))


def lamella_radius(shape: CellShape, angle_rad: Floats) -> Floats:
    """Outline of the whole cell, (n,) um: the rippled front edge where the lamella stands, else the body's."""
    body = body_radius(shape, angle_rad)
    front = shape.lamella_reach_um * np.maximum(1.0 + ripple(angle_rad, shape.front_ripple), 0.4)
    return np.maximum(body, front * front_window(shape, angle_rad))


def to_points(radius: Floats, angle_rad: Floats, *, bend_per_um: float = 0.0) -> Floats:
    """Polar curve to points (n, 2) = (x, y) of the cell's own frame, bent by y += `bend_per_um` x^2 behind the nucleus.

    The shear that bends the tail moves points sideways only, so it keeps every enclosed area.
    """
    x = radius * np.cos(angle_rad)
    y = radius * np.sin(angle_rad) + bend_per_um * np.minimum(x, 0.0) ** 2
    return np.stack([x, y], axis=-1)


def place(
    points_um: Floats, *, polarity_rad: float, centre_px: tuple[float, float] | Floats, pixel_size_um: float
) -> Floats:
    """Points (..., 2) of the cell's own frame to pixels (x right, y down), (..., 2).

    `polarity_rad` is counter-clockwise as displayed (y up); `centre_px` (x, y) is where the nucleus goes. Pixel centres
    have whole coordinates.
    """
    cosine, sine = np.cos(polarity_rad), np.sin(polarity_rad)
    turned = points_um @ np.array([[cosine, -sine], [-sine, -cosine]])
    return turned / pixel_size_um + np.asarray(centre_px)


def polygon_area(points: Floats) -> float:
    """Area of a simple polygon (n, 2), in the square of its unit (shoelace formula)."""
    x, y = points[:, 0], points[:, 1]
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def fill(points_px: Floats, *, size_px: int) -> NDArray[np.uint8]:
    """Anti-aliased polygon (n, 2) on a (size, size) canvas: 255 inside, 0 outside; parts beyond the frame are cut."""
    canvas = np.zeros((size_px, size_px), np.uint8)
    corners = np.rint(points_px * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(canvas, [corners], 255, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)
    return canvas


def dome(mask: NDArray[np.uint8], *, half_width_px: float) -> NDArray[np.float32]:
    """Thickness of a drop that stands on the mask (h, w): 0 outside, 1 at `half_width_px` from the rim and beyond.

    The profile is a parabola, d (2 - d): steep at the rim, flat on top. Within the rim's pixels it follows the mask's
    anti-aliasing.
    """
    depth = cv2.distanceTransform(cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY)[1], cv2.DIST_L2, 5)
    rise = np.clip(depth / np.float32(half_width_px), 0.0, 1.0)
    return rise * (2.0 - rise) * (mask * np.float32(1 / 255))


def discs(size_px: int, centres_px: Floats, radii_px: Floats, heights: Floats) -> NDArray[np.float32]:
    """Anti-aliased discs on a (size, size) canvas of zeros; where several overlap the highest counts.

    `centres_px` (n, 2) x, y; `radii_px` (n,); `heights` (n,) not negative, drawn in 255 steps of the highest.
    """
    canvas = np.zeros((size_px, size_px), np.uint8)
    tallest = float(heights.max(initial=0.0))
    if tallest == 0.0:
        return canvas.astype(np.float32)
    corners = np.rint(centres_px * (1 << SUBPIXEL_BITS)).astype(int).tolist()
    radii = np.maximum(np.rint(radii_px * (1 << SUBPIXEL_BITS)), 1).astype(int).tolist()
    levels = np.rint(heights * (255 / tallest)).astype(int).tolist()
    for index in np.argsort(heights):
        cv2.circle(canvas, corners[index], radii[index], levels[index], -1, cv2.LINE_AA, SUBPIXEL_BITS)
    return canvas * np.float32(tallest / 255)


def ribbon(size_px: int, points_px: Floats, heights: Floats) -> NDArray[np.float32]:
    """A ragged line through the points (n, 2) on a (size, size) canvas of zeros; `heights` (n,) in [0, 1].

    Each stretch has the height of its first point and is 1 to 3 pixels wide, the wider the higher.
    """
    canvas = np.zeros((size_px, size_px), np.uint8)
    corners = np.rint(points_px * (1 << SUBPIXEL_BITS)).astype(int).tolist()
    for start, end, height in zip(corners[:-1], corners[1:], heights[:-1].tolist(), strict=True):
        width = 1 + round(1.6 * height)
        cv2.line(canvas, start, end, round(255 * height), width, cv2.LINE_AA, SUBPIXEL_BITS)
    return canvas * np.float32(1 / 255)
