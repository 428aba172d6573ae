"""Fluorescence images and their force magnitudes on the way to the network, in the paper's order.

Pielawski et al., ISBI 2020, arXiv 1910.07380, section 2.3, and the authors' generate_bbox.py and utils/dataset.py:

    once per frame:  box around the cell (`converters.cell_boxes`) -> `cell_patch`, the box and a margin of both
                     pictures, in which the force fades out towards the rim (Tukey)
    per sample:      flip left-right, flip top-bottom, rotate (bicubic), crop -> salt noise on the image alone, in raw
                     grey levels -> logarithm of both, clipped at 1, last: bicubic rotation overshoots below 0

Force is a magnitude, no vector turns with it. The rotation fills with 0 what comes from outside of the patch, also in
the image, as in the original. What is drawn depends on (seed, epoch, index) and on nothing else; geometry and salt have
streams of their own. Pictures are (y, x), x along the last axis, y down the rows; boxes are in pixels.

Deviations. The original limits the crop's width by the frame's height and the other way round, which for frames that
are not square cuts too little or too much. Its zero-length taper, for pictures of less than 10 pixels, is an error
there and none here. Rotation and crop are one interpolation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from physics.windows import tukey_window_2d

MARGIN_PX = 128
TAPER_FRACTION = 0.1
_STREAM = 0x666F7263
"""Keeps these draws apart from others that start from the same seed."""
_GEOMETRY, _SALT = range(2)


def cell_patch(
    image: NDArray[np.generic],
    force: NDArray[np.generic],
    box: tuple[int, int, int, int],
    *,
    margin_px: int = MARGIN_PX,
    taper_fraction: float = TAPER_FRACTION,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Image and tapered force in the box and a margin around it, as far as the picture goes, (y, x) float32 each.

    `box` is (x, y, width, height) in pixels, x and y its first column and row.

    Raises:
        ValueError: the pictures have no common shape (y, x), the margin is negative, or the box lies outside.
    """
    _check_pair(image, force)
    rows, columns = _patch_slices(box, margin_px=margin_px)
    if not image[rows, columns].size:
        raise ValueError(f"box must lie in the picture of {image.shape[1]} x {image.shape[0]} px, got {box}")
    patch = np.ascontiguousarray(image[rows, columns], np.float32)
    return patch, taper(force[rows, columns], fraction=taper_fraction)


def patch_side(box: tuple[int, int, int, int], shape_px: tuple[int, ...], *, margin_px: int) -> int:
    """Shorter side (px) of the patch that `cell_patch` cuts from a picture of the shape (y, x)."""
    rows, columns = _patch_slices(box, margin_px=margin_px)
    return min(len(range(shape_px[0])[rows]), len(range(shape_px[1])[columns]))


def taper(force: NDArray[np.generic], *, fraction: float = TAPER_FRACTION) -> NDArray[np.float32]:
    """Force (y, x) that fades to 0 at the rim: times the outer product of two windows. At test time, whole frames."""
    height, width = force.shape
    return (force * tukey_window_2d((height, width), fraction=fraction)).astype(np.float32)


def clipped_log(picture: NDArray[np.floating]) -> NDArray[np.floating]:
    """Take ln(max(1, x)), the network's scale for image and force; dtype kept."""
    return np.log(np.maximum(picture, 1))


class Placement(NamedTuple):
    """Where a crop is taken from: first the flips, then the rotation about the centre, then the crop."""

    flip_x: bool
    """Swaps left and right."""
    flip_y: bool
    """Swaps top and bottom."""
    rotation_deg: float
    """Counter-clockwise as displayed."""
    corner_x: float
    """In [0, 1): of the columns that the crop may start at."""
    corner_y: float
    """In [0, 1): of the rows that the crop may start at."""

    def crop(self, picture: NDArray[np.floating], size_px: int) -> NDArray[np.float32]:
        """Crop (size_px, size_px) of a picture (y, x) at least as large, bicubic, 0 from outside of the picture."""
        height, width = picture.shape
        left = math.floor(self.corner_x * (width - size_px + 1))
        top = math.floor(self.corner_y * (height - size_px + 1))
        flipped = picture[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1].astype(np.float32)
        if self.rotation_deg == 0:
            return np.ascontiguousarray(flipped[top : top + size_px, left : left + size_px])
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), self.rotation_deg, 1.0)
        matrix[:, 2] -= (left, top)
        return cv2.warpAffine(
            flipped,
            matrix,
            (size_px, size_px),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0,
        )


@dataclass(frozen=True, kw_only=True)
class ForceAugmentation:
    """What is drawn for a training sample; the defaults are the paper's.

    Args:
        crop_px: side of the crop (px).
        mirror: flip left-right and, independently, top-bottom, each with probability 1/2.
        rotation_deg: rotations are uniform within plus and minus this, in [0, 180].
        salt_image_probability: share of the images that get salt noise, in [0, 1].
        salt_pixel_probability: share of their pixels that are replaced, in [0, 1].
        salt_maximum_grey: the new values are uniform between 0 and this, in raw grey levels.

    Raises:
        ValueError: an argument is out of its range.
    """

    crop_px: int = 256
    mirror: bool = True
    rotation_deg: float = 180.0
    salt_image_probability: float = 0.5
    salt_pixel_probability: float = 0.01
    salt_maximum_grey: float = 2000.0

    def __post_init__(self) -> None:
        if self.crop_px < 1:
            raise ValueError(f"crop_px must be at least 1, got {self.crop_px}")
        if not 0 <= self.rotation_deg <= 180:
            raise ValueError(f"rotation_deg must lie in [0, 180], got {self.rotation_deg}")
        for name in ("salt_image_probability", "salt_pixel_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not (math.isfinite(self.salt_maximum_grey) and self.salt_maximum_grey >= 0):
            raise ValueError(f"salt_maximum_grey must be finite and not negative, got {self.salt_maximum_grey}")

    def apply(
        self, image: NDArray[np.generic], force: NDArray[np.generic], *, seed: int, epoch: int, index: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Patch of image and force, as `cell_patch` gives them -> logarithms of both, (crop_px, crop_px) float32 each.

        Raises:
            ValueError: the pictures have no common shape (y, x), or are smaller than the crop.
        """
        _check_pair(image, force)
        if min(image.shape) < self.crop_px:
            size = f"{image.shape[1]} x {image.shape[0]}"
            raise ValueError(f"image must be at least {self.crop_px} px wide and high, got {size} px")
        placement = self.place(seed=seed, epoch=epoch, index=index)
        raw = placement.crop(image, self.crop_px)
        self._salt(raw, np.random.default_rng((_STREAM, _SALT, seed, epoch, index)))
        return clipped_log(raw), clipped_log(placement.crop(force, self.crop_px))

    def place(self, *, seed: int, epoch: int, index: int) -> Placement:
        """Return the placement of sample `index` in `epoch`; all three are not negative.

        Five numbers are taken from the stream whatever is switched off, so that the others stay as they were.
        """
        flip_x, flip_y, turn, corner_x, corner_y = np.random.default_rng(
            (_STREAM, _GEOMETRY, seed, epoch, index)
        ).random(5)
        return Placement(
            flip_x=self.mirror and bool(flip_x < 0.5),
            flip_y=self.mirror and bool(flip_y < 0.5),
            rotation_deg=float(self.rotation_deg * (2 * turn - 1)),
            corner_x=float(corner_x),
            corner_y=float(corner_y),
        )

    def _salt(self, raw: NDArray[np.float32], generator: np.random.Generator) -> None:
        """Replace pixels of an image (y, x) in raw grey levels, in place."""
        if generator.random() < self.salt_image_probability:
            salted = generator.random(raw.shape) < self.salt_pixel_probability
            raw[salted] = generator.uniform(0, self.salt_maximum_grey, int(salted.sum()))


def _check_pair(image: NDArray[np.generic], force: NDArray[np.generic]) -> None:
    if image.ndim != 2 or image.shape != force.shape:
        raise ValueError(f"image and force must have one shape (y, x), got {image.shape} and {force.shape}")


def _patch_slices(box: tuple[int, int, int, int], *, margin_px: int) -> tuple[slice, slice]:
    """Rows and columns of the box (x, y, width, height) with its margin."""
    if margin_px < 0:
        raise ValueError(f"margin_px must not be negative, got {margin_px}")
    x, y, width, height = box
    rows = slice(max(0, y - margin_px), y + height + margin_px)
    columns = slice(max(0, x - margin_px), x + width + margin_px)
    return rows, columns
