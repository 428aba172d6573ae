"""Noise of a measured displacement field, drawn from (seed, epoch, index) and from nothing else.

Four kinds, which add up: white noise, as Wang & Lin 2020 add it (10.1101/2020.05.20.107128: each component normal with
sd N / sqrt 2, N the magnitude of the vector; 0.0188 px is their experiments' noise); and what the windows of a PIV and
a microscope leave as well (ours): noise correlated over the window, a drift of the whole field and a tilt, a
displacement that grows linearly across the field. Every magnitude is the root mean square length of its vectors.

Each kind has its own stream, so that switching one off leaves the others as they were. All lengths in pixels: times the
pixel size they are um. Pure numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_STREAM = 0x6E6F6973
"""Keeps these draws apart from others that start from the same seed."""
_WHITE, _CORRELATED, _DRIFT, _TILT = range(4)
SIGMAS = 4.0
"""Reach of the Gaussian filter, in its standard deviations."""


@dataclass(frozen=True, kw_only=True)
class DisplacementNoise:
    """What noise is drawn; 0 leaves a kind out.

    Args:
        white_px: magnitude of the noise that is independent from pixel to pixel.
        correlated_px: magnitude of the correlated noise.
        correlation_length_px: distance at which its autocorrelation has fallen to 1/e.
        drift_px: magnitude of the constant.
        tilt_px: magnitude of the linear plane, which is 0 in the middle of the field.
    """

    white_px: float = 0.0
    correlated_px: float = 0.0
    correlation_length_px: float = 4.0
    drift_px: float = 0.0
    tilt_px: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be finite and not negative, got {value}")
        if self.correlation_length_px == 0:
            raise ValueError("correlation_length_px must be positive")

    def draw(self, *, height_px: int, width_px: int, seed: int, epoch: int, index: int) -> NDArray[np.float32]:
        """Return the noise of sample `index` in `epoch`, (2, y, x) in px; all three numbers are not negative.

        Raises:
            ValueError: the field has no pixel.
        """
        if min(height_px, width_px) < 1:
            raise ValueError(f"height_px and width_px must be positive, got {height_px}, {width_px}")
        noise = np.zeros((2, height_px, width_px), np.float32)
        for kind in self._present():
            generator = np.random.default_rng((_STREAM, kind, seed, epoch, index))
            if kind == _WHITE:
                noise += white(generator, height_px, width_px, magnitude_px=self.white_px)
            elif kind == _CORRELATED:
                noise += correlated(
                    generator,
                    height_px,
                    width_px,
                    magnitude_px=self.correlated_px,
                    correlation_length_px=self.correlation_length_px,
                )
            elif kind == _DRIFT:
                noise += drift(generator, magnitude_px=self.drift_px)
            else:
                noise += tilt(generator, height_px, width_px, magnitude_px=self.tilt_px)
        return noise

    def _present(self) -> Iterator[int]:
        magnitudes = (self.white_px, self.correlated_px, self.drift_px, self.tilt_px)
        return (kind for kind, magnitude in enumerate(magnitudes) if magnitude > 0)


def white(generator: np.random.Generator, height_px: int, width_px: int, *, magnitude_px: float) -> NDArray[np.float32]:
    """Independent noise, (2, y, x): each component normal with sd magnitude / sqrt 2."""
    noise = generator.standard_normal((2, height_px, width_px), dtype=np.float32)
    noise *= np.float32(magnitude_px / math.sqrt(2))
    return noise


def correlated(
    generator: np.random.Generator,
    height_px: int,
    width_px: int,
    *,
    magnitude_px: float,
    correlation_length_px: float,
) -> NDArray[np.float32]:
    """White noise under a Gaussian filter, (2, y, x), the same variance at every pixel, the rim included.

    The filter's sd is half the correlation length L: then the autocorrelation at distance d is exp(-(d / L)^2). The
    white noise reaches beyond the field, so that nothing wraps around or fades at the rim.
    """
    rows, columns = _filter(height_px, correlation_length_px), _filter(width_px, correlation_length_px)
    noise = generator.standard_normal((2, rows.shape[1], columns.shape[1]), dtype=np.float32)
    filtered = rows @ noise @ columns.T
    filtered *= np.float32(magnitude_px / math.sqrt(2))
    return filtered


def drift(generator: np.random.Generator, *, magnitude_px: float) -> NDArray[np.float32]:
    """One displacement for the whole field, (2, 1, 1)."""
    return generator.standard_normal((2, 1, 1), dtype=np.float32) * np.float32(magnitude_px / math.sqrt(2))


def tilt(generator: np.random.Generator, height_px: int, width_px: int, *, magnitude_px: float) -> NDArray[np.float32]:
    """A plane through 0 in the middle for each component, (2, y, x), with random slopes along x and y.

    The slopes are such that a field of any size has the root mean square length `magnitude_px` on average; a field one
    pixel wide cannot slope that way.
    """
    slope_x, slope_y = generator.standard_normal((2, 2, 1, 1), dtype=np.float32) * np.float32(0.5 * magnitude_px)
    return slope_x * _ramp(width_px) + slope_y * _ramp(height_px)[:, None]


@lru_cache(maxsize=8)
def _ramp(size_px: int) -> NDArray[np.float32]:
    """A straight line of mean 0 and variance 1, (size,)."""
    line = np.arange(size_px) - 0.5 * (size_px - 1)
    ramp = (line / max(float(line.std()), 1e-9)).astype(np.float32)
    ramp.flags.writeable = False
    return ramp


@lru_cache(maxsize=8)
def _filter(size_px: int, correlation_length_px: float) -> NDArray[np.float32]:
    """The Gaussian filter as a matrix (size, sources); every row has the norm 1, which keeps the variance.

    The sources of white noise stand a standard deviation apart, or a pixel where that is less: closer ones would change
    the autocorrelation by 1e-4 only.
    """
    sigma = 0.5 * correlation_length_px
    margin = math.ceil(SIGMAS * sigma)
    sources = np.arange(-margin, size_px + margin, max(int(sigma), 1))
    matrix = np.exp(-0.5 * ((np.arange(size_px)[:, None] - sources) / sigma) ** 2)
    unit = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)
    unit.flags.writeable = False
    return unit
