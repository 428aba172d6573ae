"""Outlines of migrating cells by local excitation and global inhibition (LEGI) along the membrane.

Satulovsky, Lui & Wang 2008 (Biophys J 94:3671, PMC2292371): a cell is its 360 boundary points; each carries a
protrusion signal S that arises by chance, excites itself, decays and diffuses along the membrane, against one inhibitor
I for the whole cell that grows with the area and the total signal. Where S > I the membrane protrudes, elsewhere it
retracts towards a circle. What `simulate` returns is the outline and the net signal S - I, from which Wang & Lin 2021
(Biophys J 120:3079) make tractions: positive where the cell protrudes, negative where it retracts.

Deviations: the numbers that Wang & Lin used are not published. `PRESETS` are ours, searched so that outlines and
signals look like their stored cells: a few broad lobes of signal, none between them, finely crinkled outlines.
Membranes that no lobe took hold of are refused by `plausible`. The boundary is re-sampled by linear interpolation, and
where a process folds over itself, seen from the middle, the fold is dropped: an outline is star-shaped about its mean
point.

Functions work on many cells at a time, (cells, 360). A cell alone takes 150 cycles in about 20 ms, eight take 60 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

POINTS = 360
CYCLES = 150
"""Ours; from about 100 on the lobes have formed."""
MINIMUM_RADIUS_PX = 10.0
"""Radius of the circle that the cell starts from and retracts to."""
SIGNAL_FLOOR, SIGNAL_CEILING = 1e-4, 100.0
ANGLE_RAD = np.arange(POINTS) * (2 * np.pi / POINTS)
"""Directions of the boundary points from the middle, (360,), rad."""
MARGIN = 60
"""Points repeated on either side of the cut of the circle: no neighbourhood and no shift reaches further."""
FAR = 1e6
"""Set between the cells when they are strung on one line to be searched together; longer than any outline in px."""

_COS, _SIN = np.cos(ANGLE_RAD), np.sin(ANGLE_RAD)


@dataclass(frozen=True, kw_only=True)
class Membrane:
    """The nine numbers of the simulation, per cycle; lengths in the simulation's pixels.

    Args:
        diffusion_px2: membrane diffusion D; signal is averaged over neighbours within sqrt(2 D) along the membrane.
        decay: share of the signal lost.
        burst: signal, in units of `size`, that arises anywhere by chance.
        size: scale of what is added to the signal.
        slope: self-excitation per unit of the signal above I + `offset`.
        offset: signal above the inhibitor from where excitation begins.
        inhibition_per_px2: inhibitor per area and total signal.
        retraction: share of the distance to the smallest circle that a retracting point gives up.
        protrusion_px: mean of a protruding point's step; its variance is the same number.
    """

    diffusion_px2: float
    decay: float
    burst: float
    size: float
    slope: float
    offset: float
    inhibition_per_px2: float
    retraction: float
    protrusion_px: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{field.name} must be positive and finite, got {value}")
        for name in ("decay", "retraction"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be at most 1, got {getattr(self, name)}")


PRESETS = {
    "lamellipod": Membrane(
        diffusion_px2=31.0, decay=0.1, burst=0.0042, size=2.5, slope=0.3, offset=0.11,
        inhibition_per_px2=1.6e-6, retraction=0.012, protrusion_px=0.11,
    ),
    "fibroblast": Membrane(
        diffusion_px2=6.8, decay=0.081, burst=0.023, size=0.61, slope=0.31, offset=0.12,
        inhibition_per_px2=2.0e-6, retraction=0.0026, protrusion_px=0.055,
    ),
    "fan": Membrane(
        diffusion_px2=35.0, decay=0.06, burst=0.0087, size=3.2, slope=0.29, offset=0.2,
        inhibition_per_px2=4.0e-6, retraction=0.017, protrusion_px=0.18,
    ),
    "crescent": Membrane(
        diffusion_px2=21.0, decay=0.021, burst=0.0068, size=0.81, slope=0.076, offset=0.24,
        inhibition_per_px2=2.1e-6, retraction=0.026, protrusion_px=0.065,
    ),
    "spindle": Membrane(
        diffusion_px2=8.7, decay=0.025, burst=0.017, size=0.2, slope=0.41, offset=0.42,
        inhibition_per_px2=3.5e-7, retraction=0.0028, protrusion_px=0.32,
    ),
    "stellate": Membrane(
        diffusion_px2=7.9, decay=0.047, burst=0.023, size=1.4, slope=0.44, offset=0.61,
        inhibition_per_px2=1.3e-6, retraction=0.0055, protrusion_px=0.11,
    ),
}  # fmt: skip
"""Ours: one broad front; irregular; a keratocyte's fan; a front of graded strength; few long processes; many."""


class Outlines(NamedTuple):
    """Cells as polar curves about their mean boundary points, with what drives them."""

    radius_px: Floats
    """(cells, 360) at `ANGLE_RAD`, in the simulation's pixels."""
    net_signal: Floats
    """(cells, 360), S - I: positive where the membrane protrudes."""


def draw_membranes(rng: np.random.Generator, count: int, *, spread: float) -> list[Membrane]:
    """Return `count` cells' numbers: a preset each, every number log-uniform within a factor `spread` around it.

    Raises:
        ValueError: `count` is not positive or `spread` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
    if not (np.isfinite(spread) and spread >= 1):
        raise ValueError(f"spread must be at least 1 and finite, got {spread}")
    presets = list(PRESETS.values())
    names = [field.name for field in fields(Membrane)]
    chosen = rng.integers(len(presets), size=count)
    factors = spread ** rng.uniform(-1.0, 1.0, (count, len(names)))
    drawn = []
    for which, row in zip(chosen, factors, strict=True):
        values = {name: getattr(presets[which], name) * factor for name, factor in zip(names, row, strict=True)}
        values |= {name: min(values[name], 1.0) for name in ("decay", "retraction")}
        drawn.append(Membrane(**values))
    return drawn


def simulate(membranes: Sequence[Membrane], rng: np.random.Generator, *, cycles: int = CYCLES) -> Outlines:
    """Let cells of radius 10 px without signal move for `cycles` cycles.

    A cycle: the signal diffuses and decays; what is added to it is normal with mean and variance
    f = size (burst + slope max(0, S - I - offset)), never negative; signals below 1e-4 become 0, above 100 they are
    cut; I = inhibition * area * sum S; points move; the cell is set on its mean boundary point and re-sampled to one
    point per degree.

    Raises:
        ValueError: there is no membrane, or `cycles` is not positive.
    """
    if not membranes:
        raise ValueError("membranes must hold at least one cell")
    if cycles < 1:
        raise ValueError(f"cycles must be positive, got {cycles}")
    column = {f.name: np.array([[getattr(m, f.name)] for m in membranes]) for f in fields(Membrane)}
    diffusion, keep = column["diffusion_px2"], 1.0 - column["decay"]
    burst, slope = column["size"] * column["burst"], column["size"] * column["slope"]
    offset, retraction = column["offset"], column["retraction"]
    inhibition = column["inhibition_per_px2"] * (np.pi / POINTS)
    protrusion, protrusion_sd = column["protrusion_px"], np.sqrt(column["protrusion_px"])

    radius = np.full((len(membranes), POINTS), MINIMUM_RADIUS_PX)
    signal, inhibitor = np.zeros_like(radius), np.zeros((len(membranes), 1))
    for _ in range(cycles):
        signal = diffuse(signal, _steps(radius), diffusion) * keep
        added = burst + slope * np.maximum(signal - inhibitor - offset, 0.0)
        noise = rng.standard_normal((2, *radius.shape))
        signal += np.maximum(added + np.sqrt(added) * noise[0], 0.0)
        signal[signal < SIGNAL_FLOOR] = 0.0
        np.minimum(signal, SIGNAL_CEILING, out=signal)
        area = (radius * radius).sum(axis=1, keepdims=True)
        inhibitor = inhibition * area * signal.sum(axis=1, keepdims=True)
        inwards = np.maximum(radius - retraction * (radius - MINIMUM_RADIUS_PX), MINIMUM_RADIUS_PX)
        outwards = radius + np.maximum(protrusion + protrusion_sd * noise[1], 0.0)
        radius, signal = _recentred(np.where(signal > inhibitor, outwards, inwards), signal)
    return Outlines(radius, signal - inhibitor)


def diffuse(signal: Floats, step_px: Floats, diffusion_px2: Floats) -> Floats:
    """One cycle of diffusion along closed membranes.

    To either side a point takes over half of the difference to the mean of all points within sqrt(2 D) along the
    membrane; where there is one at most, the share D / d^2 (at most half) of the difference to the next point, d away.
    The result is the mean of both sides.

    Args:
        signal: (cells, 360).
        step_px: (cells, 360), distance from a point to the next.
        diffusion_px2: (cells, 1), D.

    Returns:
        (cells, 360).
    """
    cells = len(signal)
    reach = np.sqrt(2.0 * diffusion_px2)
    apart = FAR * np.arange(cells)[:, None]
    place = np.zeros((cells, POINTS + 2 * MARGIN))
    np.cumsum(_wrapped(step_px)[:, :-1], axis=1, out=place[:, 1:])
    place += apart
    total = np.zeros((cells, POINTS + 2 * MARGIN + 1))
    np.cumsum(_wrapped(signal), axis=1, out=total[:, 1:])
    line, own = place.ravel(), place[:, MARGIN : MARGIN + POINTS]
    index = np.arange(MARGIN, MARGIN + POINTS) + place.shape[1] * np.arange(cells)[:, None]
    after = np.searchsorted(line, (own + reach).ravel(), side="right").reshape(index.shape) - index - 1
    before = index - np.searchsorted(line, (own - reach).ravel(), side="left").reshape(index.shape)
    lone = np.minimum(diffusion_px2 / np.maximum(step_px * step_px, 1e-12), 0.5)

    change = np.zeros_like(signal)
    column, row = np.arange(MARGIN, MARGIN + POINTS), np.arange(cells)[:, None]
    for side, found, share in ((1, after, lone), (-1, before, np.roll(lone, 1, axis=1))):
        count = np.clip(found, 1, MARGIN - 1)
        if side > 0:
            summed = total[row, column + 1 + count] - total[:, MARGIN + 1 : MARGIN + 1 + POINTS]
        else:
            summed = total[:, MARGIN : MARGIN + POINTS] - total[row, column - count]
        change += np.where(found <= 1, share, 0.5) * (summed / count - signal)
    return signal + 0.5 * change


def equivalent_radius_px(radius_px: Floats) -> Floats:
    """Radius of the circle of the same area, (cells,), from (cells, 360)."""
    return np.sqrt((radius_px**2).mean(axis=-1))


def roundness(radius_px: Floats) -> Floats:
    """Area over that of the circle through the furthest point, (cells,), 1 for a circle."""
    return (radius_px**2).mean(axis=-1) / radius_px.max(axis=-1) ** 2


def plausible(
    outlines: Outlines,
    *,
    radius_px: tuple[float, float] = (12.0, 80.0),
    roundness_window: tuple[float, float] = (0.28, 0.75),
    protruding: tuple[float, float] = (0.08, 0.85),
    least_signal: float = 1.0,
) -> NDArray[np.bool_]:
    """Which cells look like cells, (cells,); all windows are ours, wide enough for Wang & Lin's stored cells.

    Args:
        outlines: of `simulate`.
        radius_px: window of the equivalent radius.
        roundness_window: window of `roundness`; the stored cells have 0.30 ... 0.55.
        protruding: window of the share of points that protrude.
        least_signal: what the largest |S - I| must reach. Wang & Lin drop signals below 1; membranes without a lobe
            stay below that all over.
    """
    radius, net = outlines
    quantities = (equivalent_radius_px(radius), roundness(radius), (net > 0).mean(axis=1))
    inside = np.abs(net).max(axis=1) >= least_signal
    for quantity, (low, high) in zip(quantities, (radius_px, roundness_window, protruding), strict=True):
        inside &= (quantity > low) & (quantity < high)
    return inside


def _steps(radius: Floats) -> Floats:
    """Distance from every point to the next, (cells, 360)."""
    x, y = radius * _COS, radius * _SIN
    return np.hypot(np.roll(x, -1, axis=1) - x, np.roll(y, -1, axis=1) - y)


def _wrapped(values: Floats) -> Floats:
    """The closed curve with `MARGIN` points of it repeated at either end."""
    return np.concatenate([values[:, -MARGIN:], values, values[:, :MARGIN]], axis=1)


def _recentred(radius: Floats, signal: Floats) -> tuple[Floats, Floats]:
    """The cells about their mean boundary points, one point per degree."""
    x, y = radius * _COS, radius * _SIN
    x -= x.mean(axis=1, keepdims=True)
    y -= y.mean(axis=1, keepdims=True)
    turn = np.arctan2(y, x) - ANGLE_RAD
    angle = _wrapped(np.mod(turn + np.pi, 2 * np.pi) - np.pi + ANGLE_RAD)
    angle[:, :MARGIN] -= 2 * np.pi
    angle[:, -MARGIN:] += 2 * np.pi
    np.maximum.accumulate(angle, axis=1, out=angle)
    apart = FAR * np.arange(len(radius))[:, None]
    line, asked = (angle + apart).ravel(), (ANGLE_RAD + apart).ravel()
    resampled = (np.interp(asked, line, _wrapped(values).ravel()) for values in (np.hypot(x, y), signal))
    new_radius, new_signal = (values.reshape(radius.shape) for values in resampled)
    return new_radius, new_signal
