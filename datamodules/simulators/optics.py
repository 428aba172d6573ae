"""What a phase-contrast microscope and its camera make of a thin, transparent specimen.

Zernike's method with a phase ring of finite width: the light that the specimen leaves undiffracted is not a plane wave
but its low-pass part, so the picture carries the bright halo and the shade-off known from real ones
(Yin, Kanade & Chen 2012, doi:10.1016/j.media.2011.12.006, describe the same with an Airy-shaped kernel).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

COARSENESS = 2
"""Wide blurs run on a grid this many times coarser; the kernel is wide enough not to notice."""
WIDE_SHARE = 0.2
"""Share of the wide Gaussian in the light that passes the phase ring."""


def blur(image: Image, sigma_px: float) -> Image:
    """Gaussian blur of a (h, w) float32 image, borders mirrored; 0 leaves it as it is."""
    if sigma_px <= 0:
        return image
    reach = 2 * int(np.ceil(3.0 * sigma_px)) + 1
    return cv2.GaussianBlur(image, (reach, reach), sigma_px, borderType=cv2.BORDER_REFLECT_101)


def wide_blur(image: Image, sigma_px: float) -> Image:
    """`blur` on a coarser grid, for kernels of several pixels: (h, w) with both sides multiples of COARSENESS."""
    height, width = image.shape
    small = cv2.resize(image, (width // COARSENESS, height // COARSENESS), interpolation=cv2.INTER_AREA)
    return cv2.resize(blur(small, sigma_px / COARSENESS), (width, height), interpolation=cv2.INTER_CUBIC)


def undiffracted(field: Image, halo_sigma_px: float) -> Image:
    """The part of a field (h, w) that passes the phase ring: a narrow and a four times wider Gaussian, summed to 1.

    The wide one stands for the slow decay of the Airy-shaped kernel.
    """
    return (1 - WIDE_SHARE) * wide_blur(field, halo_sigma_px) + WIDE_SHARE * wide_blur(field, 4.0 * halo_sigma_px)


def phase_contrast(phase_rad: Image, *, halo_sigma_px: float, ring_amplitude: float) -> Image:
    """Brightness relative to the empty background, (h, w) float32, of a specimen that delays light by `phase_rad`.

    With t = exp(i phase) and t0 its undiffracted part, the field behind the objective is (t - t0) - i a t0, so
    I / a^2 = |t - t0 - i a t0|^2 / a^2: 1 where nothing varies, 1 - 2 (phase - low-pass phase) / a for weak objects
    (positive contrast: thicker is darker, rims have halos), reversed for very thick ones. `ring_amplitude` a is the
    square root of the ring's transmittance.
    """
    if not 0 < ring_amplitude <= 1:
        raise ValueError(f"ring_amplitude must be in (0, 1], got {ring_amplitude}")
    if halo_sigma_px < COARSENESS:
        raise ValueError(f"halo_sigma_px must be at least {COARSENESS}, got {halo_sigma_px}")
    real, imaginary = np.cos(phase_rad), np.sin(phase_rad)
    real_0, imaginary_0 = undiffracted(real, halo_sigma_px), undiffracted(imaginary, halo_sigma_px)
    a = np.float32(ring_amplitude)
    field_real = real - real_0 + a * imaginary_0
    field_imaginary = imaginary - imaginary_0 - a * real_0
    return (field_real * field_real + field_imaginary * field_imaginary) / (a * a)


def illumination(
    size_px: int, *, slope: float, slope_direction_rad: float, vignette: float, vignette_centre_px: tuple[float, float]
) -> Image:
    """Uneven light, (size, size) float32 of mean 1: a linear slope and a bright spot that falls off as a parabola.

    `slope` is the relative rise from one side of the frame to the other along `slope_direction_rad` (counter-clockwise,
    y up); `vignette` the relative fall at half a frame from `vignette_centre_px` (x, y).
    """
    half = 0.5 * (size_px - 1)
    axis = np.arange(size_px, dtype=np.float32)
    along_x = slope * np.cos(slope_direction_rad) * (axis - half) / size_px
    along_x = along_x - vignette * ((axis - vignette_centre_px[0]) / half) ** 2
    along_y = -slope * np.sin(slope_direction_rad) * (axis - half) / size_px
    along_y = along_y - vignette * ((axis - vignette_centre_px[1]) / half) ** 2
    light = along_x[None, :] + along_y[:, None]
    return (1.0 + light - light.mean()).astype(np.float32)


def defocused_body(
    size_px: int, *, centre_px: tuple[float, float], radius_px: float, strength: float, rng: np.random.Generator
) -> Image:
    """Relative brightness that a floating cell far from focus adds, (size, size) float32 of about `strength`.

    A dim disc with the rings of its diffraction at the rim and a mottled bright middle.
    """
    axis = np.arange(size_px, dtype=np.float32)
    distance = np.hypot((axis - centre_px[0])[None, :], (axis - centre_px[1])[:, None]) / np.float32(radius_px)
    disc = 1.0 / (1.0 + np.exp(np.clip((distance - 1.0) * 18.0, -30.0, 30.0)))
    fringes = np.cos(2 * np.pi * 6.0 * distance) * np.exp(-(((distance - 0.93) / 0.14) ** 2))
    mottle = rng.standard_normal((size_px // COARSENESS,) * 2, dtype=np.float32)
    mottle = cv2.resize(mottle, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    middle = np.exp(-((distance / 0.5) ** 2)) * (1.0 + 0.8 * mottle)
    return (strength * (0.8 * fringes - 0.6 * disc + 1.3 * middle)).astype(np.float32)


def camera(
    brightness: Image, *, background_grey: float, noise_grey: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Brightness (1 = empty background) to grey levels 0..255, (h, w) uint8, rounded and clipped.

    The noise is that of photons in the limit of many: its variance is `noise_grey`^2 at the background and grows
    in proportion to the brightness.
    """
    if not (background_grey > 0 and noise_grey >= 0):
        raise ValueError(
            f"background_grey must be positive and noise_grey not negative, got {background_grey}, {noise_grey}"
        )
    light = np.maximum(brightness, 0.0)
    noise = rng.standard_normal(light.shape, dtype=np.float32) * np.sqrt(light) * np.float32(noise_grey)
    grey: Any = np.rint(light * np.float32(background_grey) + noise)
    return np.clip(grey, 0, 255).astype(np.uint8)
