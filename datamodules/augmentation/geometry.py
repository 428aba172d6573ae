"""Geometry that moves labels with pixels, drawn from (seed, epoch, index) and from nothing else.

A `Motion` is one mirror, zoom, rotation and shift, composed into a single 2 x 2 matrix and applied to the pixels in a
single interpolation; the same matrix moves the angle. A `MotionRange` draws motions: the same (seed, epoch, index)
gives the same motion in every process, so that augmentation neither depends on the number of workers nor on where a
run was resumed.

Coordinates are (x, y) in pixels about the centre of the image, x along the last axis, y down the rows. Angles are
counter-clockwise as displayed (y up), so direction `a` points along (cos a, -sin a).

Pixels are moved by albumentations' Affine; the motions are drawn here, because in albumentations 2.0.8 every worker
draws the same stream, and `set_random_seed` hands one seed to every transform, so that both mirrors always coincide.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks a server for the newest version otherwise
import albumentations

_AFFINE = albumentations.Affine(interpolation=cv2.INTER_LINEAR, border_mode=cv2.BORDER_CONSTANT, fill=0)
_STREAM = 0x67656F6D
"""Keeps these draws apart from others that start from the same seed, such as the order of the batches."""


@dataclass(frozen=True)
class Motion:
    """Mirrors, then zoom, then rotation about the centre of the image, then shift."""

    rotation_deg: float = 0.0
    """Counter-clockwise as displayed."""
    zoom: float = 1.0
    mirror_x: bool = False
    """Swaps left and right."""
    mirror_y: bool = False
    """Swaps top and bottom."""
    shift: tuple[float, float] = (0.0, 0.0)
    """(x, y) as fractions of the width and height, to the right and down."""

    @property
    def matrix(self) -> np.ndarray:
        """(2, 2) float64: where the unit steps in x and y go; exact at right angles."""
        cos, sin = _cos_sin(self.rotation_deg)
        rotation = np.array([[cos, sin], [-sin, cos]])
        return self.zoom * rotation @ np.diag([-1.0 if self.mirror_x else 1.0, -1.0 if self.mirror_y else 1.0])

    def move_image(self, image: np.ndarray) -> np.ndarray:
        """Return the moved picture (y, x), dtype kept (uint8 or float32), bilinear, zero outside of the original.

        Right angles and mirrors alone are exact, no pixel is interpolated. Raises ValueError where a quarter turn
        alone meets a picture that is not square.
        """
        if self.zoom == 1 and self.shift == (0, 0) and self.rotation_deg % 90 == 0:
            return self._permute(image)
        height, width = image.shape
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        matrix = self.matrix
        offset = centre + np.array(self.shift) * (width, height) - matrix @ centre
        whole = np.vstack([np.column_stack([matrix, offset]), [0, 0, 1]])
        return _AFFINE.apply(image, matrix=whole, output_shape=(height, width))

    def move_angle(self, angle_rad: float) -> float:
        """Return where the direction `angle_rad` points after the motion, radians in [0, 2 pi)."""
        x, y = self.matrix @ (math.cos(angle_rad), -math.sin(angle_rad))
        moved = math.atan2(-y, x) % (2 * math.pi)
        return moved if moved < 2 * math.pi else 0.0

    def _permute(self, image: np.ndarray) -> np.ndarray:
        quarters = round(self.rotation_deg / 90) % 4
        if quarters % 2 and image.shape[0] != image.shape[1]:
            raise ValueError(f"a quarter turn needs a square image, got {image.shape[1]} x {image.shape[0]} px")
        mirrored = image[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]
        return np.ascontiguousarray(np.rot90(mirrored, quarters))


@dataclass(frozen=True)
class MotionRange:
    """What motions may be drawn; every quantity is uniform in its range.

    Args:
        rotation_step_deg: rotations are multiples of this many degrees, which divides 360: 90 for right angles only,
            360 for none; None for any angle in [0, 360).
        shift_fraction: shift along x and y of at most this fraction of the width and height, in [0, 1].
        zoom_fraction: zoom in 1 +- this fraction, in [0, 1).
        mirror: mirror left-right and, independently, top-bottom, each with probability 1/2.
        probability: rotation, shift and zoom each take place with this probability, in (0, 1]; the others stay out.
    """

    rotation_step_deg: float | None
    shift_fraction: float
    zoom_fraction: float
    mirror: bool
    probability: float = 1.0

    def __post_init__(self) -> None:
        step = self.rotation_step_deg
        if step is not None and not (0 < step <= 360 and (360 / step).is_integer()):
            raise ValueError(f"rotation_step_deg must divide 360 degrees or be null for any angle, got {step}")
        if not 0 <= self.shift_fraction <= 1:
            raise ValueError(f"shift_fraction must lie in [0, 1], got {self.shift_fraction}")
        if not 0 <= self.zoom_fraction < 1:
            raise ValueError(f"zoom_fraction must lie in [0, 1), got {self.zoom_fraction}")
        if not 0 < self.probability <= 1:
            raise ValueError(f"motion_probability must lie in (0, 1], got {self.probability}")

    def draw(self, *, seed: int, epoch: int, index: int) -> Motion:
        """Return the motion of sample `index` in `epoch`; all three are non-negative.

        Every motion takes nine numbers from its stream whatever the ranges are, so that switching one of them off
        leaves the others as they were.
        """
        generator = np.random.default_rng((_STREAM, seed, epoch, index))
        turn, zoom, shift_x, shift_y, mirror_x, mirror_y = generator.random(6)
        turns, shifts, zooms = generator.random(3) < self.probability
        step = self.rotation_step_deg
        rotation_deg = 360 * turn if step is None else step * math.floor(turn * 360 / step)
        shift = (self.shift_fraction * (2 * shift_x - 1), self.shift_fraction * (2 * shift_y - 1))
        return Motion(
            rotation_deg=rotation_deg if turns else 0.0,
            zoom=1 + self.zoom_fraction * (2 * zoom - 1) if zooms else 1.0,
            mirror_x=self.mirror and bool(mirror_x < 0.5),
            mirror_y=self.mirror and bool(mirror_y < 0.5),
            shift=shift if shifts else (0.0, 0.0),
        )


def _cos_sin(angle_deg: float) -> tuple[float, float]:
    """Return cosine and sine, without rounding at multiples of 90 degrees."""
    quarters, rest = divmod(angle_deg, 90)
    if rest == 0:
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarters) % 4]
    return math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
