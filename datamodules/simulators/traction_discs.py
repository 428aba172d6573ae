"""Discs of uniform traction on a soft half space and the exact displacement around them.

Kratz, Moellerherm & Kierfeld 2023 (PMC10502481): random discs that stand for adhesions, on the unit square, with
random radius, traction and direction; the displacement is the Boussinesq solution integrated over each disc, in closed
form with complete elliptic integrals. With p the traction in units of Young's modulus, t the direction from the centre,
rho = r / R, m = min(rho, 1 / rho)^2, E = E(m), K = K(m):

    u = (1 + nu) / pi R { (1 - nu / 2) N p + nu D M p },  M = [[cos 2t, sin 2t], [sin 2t, -cos 2t]];
    inside:  N = 4 E,                      D = -2 [(m - 2) E + 2 (1 - m) K] / (3 m);
    outside: N = 4 rho [E - (1 - m) K],    D = -2 rho [(1 - 2 m) E - (1 - m) K] / 3.

N and D are their N1 and (N2 - N4) / (2 cos 2t) = -N3 / sin 2t. At the centre N = 2 pi and D = 0, where their code
yields NaN. The rules of the draw are those of their script (as vendored in github.com/alo996/UQ_DL-TFM).

Lengths are fractions of the field's side; x to the right, y down the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ellipe, ellipkm1

Floats = NDArray[np.floating]

SERIES_BELOW = 1e-4
"""Below this m, D is taken from its series pi m / 8: the closed form there is a difference of nearly equal numbers."""


class Discs(NamedTuple):
    """Discs of uniform traction on the unit square."""

    centre: Floats
    """(n, 2), x and y."""
    radius: Floats
    """(n,)."""
    traction: Floats
    """(n, 2), components (x, y), in units of Young's modulus."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Ranges of the draw, Kratz et al. 2023.

    Args:
        fewest, most: the number of discs is compared with a number drawn anew between these before every trial.
        smallest_radius, largest_radius: of a disc, as a fraction of the field's side.
        margin: least distance of a disc from the frame.
        gap: least distance between a new disc's rim and a circle of its own radius about any other disc's centre, so
            that discs of different size may overlap; tractions then add up.
        largest_traction: in units of Young's modulus (500 Pa of 1000 Pa).
    """

    fewest: float = 10.0
    most: float = 50.0
    smallest_radius: float = 0.01
    largest_radius: float = 0.05
    margin: float = 0.05
    gap: float = 0.001
    largest_traction: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be finite and not negative, got {value}")
        if not 1 <= self.fewest < self.most <= 50:
            raise ValueError(f"fewest and most must satisfy 1 <= fewest < most <= 50, got {self.fewest}, {self.most}")
        if not 0 < self.smallest_radius <= self.largest_radius <= 0.06:
            raise ValueError(
                "smallest_radius and largest_radius must satisfy 0 < smallest_radius <= largest_radius <= 0.06, got "
                f"{self.smallest_radius}, {self.largest_radius}"
            )
        if self.margin > 0.1 or self.gap > 0.01:
            raise ValueError(f"margin must be at most 0.1 and gap at most 0.01, got {self.margin}, {self.gap}")
        if self.largest_traction == 0:
            raise ValueError("largest_traction must be positive")


def draw(rng: np.random.Generator, ranges: Draw) -> Discs:
    """Draw the discs of one field; about 18 with the published ranges, between 10 and 50."""
    centres, radii = np.empty((0, 2)), np.empty(0)
    while len(radii) < rng.uniform(ranges.fewest, ranges.most):
        radius = rng.uniform(ranges.smallest_radius, ranges.largest_radius)
        centre = rng.uniform(radius + ranges.margin, 1.0 - radius - ranges.margin, 2)
        if np.all(np.hypot(*(centres - centre).T) > 2 * radius + ranges.gap):
            centres, radii = np.vstack([centres, centre]), np.append(radii, radius)
    size = rng.uniform(0.0, ranges.largest_traction, len(radii))
    angle = rng.uniform(0.0, 2 * np.pi, len(radii))
    return Discs(centres, radii, size[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1))


def displacement(discs: Discs, x: Floats, y: Floats, *, poisson_ratio: float) -> Floats:
    """Displacement by each disc alone at the points x, y (fractions of the side): (n, 2, *points), same unit.

    Raises:
        ValueError: `x` and `y` differ in shape, or the Poisson ratio is outside (0, 0.5].
    """
    if x.shape != y.shape:
        raise ValueError(f"x and y must have the same shape, got {x.shape} and {y.shape}")
    if not 0 < poisson_ratio <= 0.5:
        raise ValueError(f"poisson_ratio must lie in (0, 0.5], got {poisson_ratio}")
    points = (-1, *[1] * x.ndim)
    dx, dy = x - discs.centre[:, 0].reshape(points), y - discs.centre[:, 1].reshape(points)
    radius = discs.radius.reshape(points)
    square = dx * dx + dy * dy
    isotropic, turned = _shape_functions(np.sqrt(square) / radius)
    scale = (1.0 + poisson_ratio) / np.pi * radius
    isotropic *= (1.0 - 0.5 * poisson_ratio) * scale
    turned *= poisson_ratio * scale / np.where(square > 0, square, 1.0)
    cosine, sine = turned * (dx * dx - dy * dy), turned * (2.0 * dx * dy)
    p_x, p_y = (discs.traction[:, axis].reshape(points) for axis in (0, 1))
    return np.stack([(isotropic + cosine) * p_x + sine * p_y, sine * p_x + (isotropic - cosine) * p_y], axis=1)


def traction(discs: Discs, x: Floats, y: Floats) -> Floats:
    """Traction of each disc alone at the points x, y, in units of Young's modulus: (n, 2, *points); the rim counts."""
    points = (-1, *[1] * x.ndim)
    dx, dy = x - discs.centre[:, 0].reshape(points), y - discs.centre[:, 1].reshape(points)
    covered = dx * dx + dy * dy <= discs.radius.reshape(points) ** 2
    return covered[:, None] * discs.traction.reshape(-1, 2, *[1] * x.ndim)


def pixel_centres(size_px: int) -> tuple[Floats, Floats]:
    """Coordinates x and y of the centres of a square grid that fills the unit square, (y, x) each."""
    if size_px < 1:
        raise ValueError(f"size_px must be positive, got {size_px}")
    centre = (np.arange(size_px) + 0.5) / size_px
    y, x = np.meshgrid(centre, centre, indexing="ij")
    return x, y


def _shape_functions(rho: Floats) -> tuple[Floats, Floats]:
    """N and D of the module's docstring at the distances rho, in disc radii."""
    inside = rho <= 1.0
    m = np.minimum(rho, 1.0 / np.maximum(rho, 1e-300)) ** 2
    rest = np.where(inside, (1.0 - rho) * (1.0 + rho), (rho - 1.0) * (rho + 1.0) / np.maximum(rho, 1.0) ** 2)
    first_kind = rest * ellipkm1(np.where(rest > 0, rest, 1.0))  # (1 - m) K, which tends to 0 at the rim
    second_kind = ellipe(m)
    isotropic = 4.0 * np.where(inside, second_kind, rho * (second_kind - first_kind))
    small = inside & (m < SERIES_BELOW)
    near = ((m - 2.0) * second_kind + 2.0 * first_kind) / np.where(small, 1.0, np.where(inside, m, 1.0))
    far = rho * ((1.0 - 2.0 * m) * second_kind - first_kind)
    turned = np.where(small, np.pi / 8.0 * m, -2.0 / 3.0 * np.where(inside, near, far))
    return isotropic, turned
