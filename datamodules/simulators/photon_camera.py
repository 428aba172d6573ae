"""What a scientific camera of 16 bits makes of weak light: an offset, photon noise and read-out noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LARGEST_GREY = 65535


def exposure(
    light_grey: NDArray[np.floating],
    *,
    offset_grey: float,
    grey_per_photon: float,
    read_noise_grey: float,
    rng: np.random.Generator,
) -> NDArray[np.uint16]:
    """Light in grey levels above the offset -> picture of the same shape, rounded and clipped to 0..65535.

    Photon noise is that of many photons: normal, with the variance `grey_per_photon` times the light.

    Raises:
        ValueError: an argument is negative.
    """
    for name, value in (
        ("offset_grey", offset_grey),
        ("grey_per_photon", grey_per_photon),
        ("read_noise_grey", read_noise_grey),
    ):
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {value}")
    light = np.maximum(light_grey, 0.0).astype(np.float32, copy=False)
    spread = np.sqrt(np.float32(grey_per_photon) * light + np.float32(read_noise_grey**2))
    grey = np.rint(light + np.float32(offset_grey) + spread * rng.standard_normal(light.shape, dtype=np.float32))
    return np.clip(grey, 0, LARGEST_GREY).astype(np.uint16)
