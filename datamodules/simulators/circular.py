"""Synthetic twin of the migration-direction data (paper `circular`: Bruns et al. 2024, arXiv:2406.19162).

Phase-contrast patches of polarised glioblastoma-like cells (the look of Nishimoto 2019, PLOS ONE e0221245, U373 set:
170 x 170 px of 0.65 um shrunk to 128 x 128), several frames per cell. A cell has a broad ruffled lamella in front, a
thick body with a nucleus and a tapering tail, between crescent (wide, short tail) and fan (narrow, long tail); bright
halo, granules, uneven light, neighbours cut by the frame, debris and camera noise come with it.

The label is the polarity axis plus von Mises noise of concentration 16 per sample: cells do not go exactly where they
point. That noise alone bounds the score of any method, so `irreducible_error` is exact.

One image costs 2-3 ms on one core.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import i0e, ndtr

from datamodules.batches import Sample
from datamodules.simulators import cell_outlines, optics
from datamodules.simulators.cell_outlines import CellShape, Floats
from datamodules.simulators.sample_groups import equal_groups

FIELDS: dict[str, dict[str, str]] = {
    "image": {"axes": "cyx", "unit": "grey level"},
    "angle_rad": {"axes": "", "unit": "rad"},
    "polarity_rad": {"axes": "", "unit": "rad"},
}
SPLITS: dict[str, dict[str, Any]] = {"default": {"unit": "group", "train": 0.8, "val": 0.1, "test": 0.1}}
LICENCE = "CC0-1.0 (simulated)"
GROUP_KEY = "cell"
DEFAULT_COUNT = 8000
"""Enough for the probing CNN to come within 1.5 times the irreducible error in two epochs."""

MARGIN_PX = 16
"""Cells and halos are drawn this far beyond the frame, so that what the frame cuts looks cut."""
OUTLINE_POINTS = 160
HARMONICS = 7
TRAITS = 12
GRAIN_SD = 0.49
"""Standard deviation that white noise of unit variance keeps under the blur that makes granules."""
BODY_RIM_UM = 8.5
"""Distance from its rim at which the body reaches its full thickness."""
FOLDS_PER_UM = 1.6
"""Corners of the ruffled line per um of front edge."""
ROUNDED_PHASE_RAD = 1.6
ROUNDED_GLOW = 1.7
"""Delay of a rounded cell's middle, and the brightness it gathers as a ball lens: such cells look bright in a halo."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """All numbers of the twin.

    Args:
        image_size_px: side of the square patch.
        pixel_size_um: side of a pixel; 170 px of 0.65 um in 128 px, as the U373 patches.
        frames_per_cell: images of one cell (one group) when there are enough samples.
        label_concentration: von Mises concentration of the label about the polarity axis.
        polarity_drift_deg: standard deviation of the axis' turn from frame to frame.
        shape_persistence: correlation of a cell's shape from frame to frame, in [0, 1).
        centre_offset_um: standard deviation of the nucleus' offset from the patch centre, per axis.
        neighbours_mean: expected number of other cells whose centre lies near the frame.
        rounded_share: share of neighbours that are rounded up, bright and without polarity.
        debris_mean: expected number of specks.
        floating_probability: probability that a floating cell out of focus hangs over the patch.
        background_grey_low, background_grey_high: range of the empty background's grey level.
        noise_grey_low, noise_grey_high: range of the camera noise's standard deviation at the background.
        unevenness: largest relative slope and vignetting of the light across the frame.
        halo_um: mean Gaussian width of the light that passes the phase ring.
        ring_amplitude: square root of the phase ring's transmittance.
        body_phase_rad, lamella_phase_rad, ruffle_phase_rad: delay of the light by a body's middle, a lamella, a ruffle.
        contrast_sd: relative spread of the cells' optical thickness (log-normal).
        size_sd: relative spread of the cells' size (log-normal).
    """

    image_size_px: int = 128
    pixel_size_um: float = 170 * 0.65 / 128
    frames_per_cell: int = 4
    label_concentration: float = 16.0
    polarity_drift_deg: float = 12.0
    shape_persistence: float = 0.8
    centre_offset_um: float = 2.5
    neighbours_mean: float = 1.0
    rounded_share: float = 0.2
    debris_mean: float = 3.0
    floating_probability: float = 0.15
    background_grey_low: float = 94.0
    background_grey_high: float = 108.0
    noise_grey_low: float = 0.8
    noise_grey_high: float = 2.2
    unevenness: float = 0.08
    halo_um: float = 2.6
    ring_amplitude: float = 0.5
    body_phase_rad: float = 0.58
    lamella_phase_rad: float = 0.05
    ruffle_phase_rad: float = 0.28
    contrast_sd: float = 0.2
    size_sd: float = 0.12

    def __post_init__(self) -> None:
        may_be_zero = {"polarity_drift_deg", "shape_persistence", "centre_offset_um", "neighbours_mean", "debris_mean"}
        may_be_zero |= {"rounded_share", "floating_probability", "noise_grey_low", "noise_grey_high", "unevenness"}
        may_be_zero |= {"contrast_sd", "size_sd"}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and int(value) != value:
                raise ValueError(f"{field.name} must be a whole number, got {value}")
            if not np.isfinite(value) or value < 0 or (value == 0 and field.name not in may_be_zero):
                kind = "not negative" if field.name in may_be_zero else "positive"
                raise ValueError(f"{field.name} must be {kind} and finite, got {value}")
        if self.image_size_px % optics.COARSENESS or self.image_size_px < 64:
            raise ValueError(
                f"image_size_px must be a multiple of {optics.COARSENESS} from 64 on, got {self.image_size_px}"
            )
        for name in ("rounded_share", "floating_probability", "ring_amplitude"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be at most 1, got {getattr(self, name)}")
        if self.shape_persistence >= 1:
            raise ValueError(f"shape_persistence must be below 1, got {self.shape_persistence}")
        for name in ("background_grey", "noise_grey"):
            if getattr(self, f"{name}_low") > getattr(self, f"{name}_high"):
                raise ValueError(f"{name}_low must not exceed {name}_high")
        if self.unevenness > 0.4:
            raise ValueError(f"unevenness must be at most 0.4, got {self.unevenness}")


class _Cell(NamedTuple):
    """One cell of the scene: persistent traits, where it is and where it points."""

    traits: NDArray[np.float64]  # (TRAITS,) standard normal
    ripples: NDArray[np.complex128]  # (2, HARMONICS), standard complex normal: front edge, body
    polarity_rad: float
    centre_px: NDArray[np.float64]  # (2,) x, y on the canvas
    rounded: bool


class _Slide(NamedTuple):
    """What stays the same over the frames of a cell: light, focus and dirt."""

    light: NDArray[np.float32]
    floating: NDArray[np.float32] | None
    specks: NDArray[np.float64]  # (n, 4): x, y, radius in px, phase in rad
    background_grey: float
    noise_grey: float
    halo_px: float


def group_sizes(count: int, parameters: Parameters) -> list[int]:
    """How many samples each group (cell) holds: `frames_per_cell` or fewer, at least four groups if count >= 4."""
    return equal_groups(count, groups=-(-count // parameters.frames_per_cell))


def irreducible_error(parameters: Parameters) -> dict[str, Any]:
    """Mean absolute angular error (deg) of a perfect reader of the polarity axis: E|x| under von Mises(0, kappa)."""
    kappa = parameters.label_concentration
    integral, _ = quad(lambda x: x * np.exp(kappa * (np.cos(x) - 1.0)), 0.0, np.pi, points=[min(np.pi, kappa**-0.5)])
    return {
        "metric": "angular_error_deg",
        "value": float(np.degrees(integral / (np.pi * i0e(kappa)))),
        "how": f"E|x| of the von Mises label noise (concentration {kappa:g}) about the polarity axis, integrated",
    }


def simulate_group(seed: int, group: int, size: int, parameters: Parameters) -> list[Sample]:
    """The first `size` frames of cell `group`: fields image (1, s, s) uint8, angle_rad and polarity_rad float32 rad.

    A pure function of its arguments; a shorter group is a prefix of a longer one.
    """
    if min(seed, group) < 0 or size < 1:
        raise ValueError(f"seed and group must not be negative and size must be positive, got {seed}, {group}, {size}")
    rng = np.random.default_rng([seed, group])
    slide = _draw_slide(rng, parameters)
    cells = _draw_cells(rng, parameters)
    samples = []
    for frame in range(size):
        if frame:
            cells = [_advance(cell, rng, parameters) for cell in cells]
        image = _render(cells, slide, rng, parameters)
        polarity = cells[0].polarity_rad
        label = polarity + rng.vonmises(0.0, parameters.label_concentration)
        values: dict[str, np.ndarray] = {
            "image": image[None],
            "angle_rad": _wrapped(label),
            "polarity_rad": _wrapped(polarity),
        }
        samples.append(Sample(f"cell{group:05d}_{frame:03d}", f"cell{group:05d}", values))
    return samples


def _wrapped(angle_rad: float) -> NDArray[np.float32]:
    """0-d float32 in [0, 2 pi); rounding to float32 may not reach 2 pi itself."""
    wrapped = np.float32(np.mod(angle_rad, 2 * np.pi))
    return np.array(wrapped if wrapped < np.float32(2 * np.pi) else 0.0, np.float32)


def _draw_slide(rng: np.random.Generator, parameters: Parameters) -> _Slide:
    size = parameters.image_size_px + 2 * MARGIN_PX
    light = optics.illumination(
        size,
        slope=rng.uniform(0.0, parameters.unevenness),
        slope_direction_rad=rng.uniform(0.0, 2 * np.pi),
        vignette=rng.uniform(0.0, 0.5 * parameters.unevenness),
        vignette_centre_px=tuple(rng.uniform(0.0, size, 2)),
    )
    floating = None
    if rng.random() < parameters.floating_probability:
        floating = optics.defocused_body(
            size,
            centre_px=tuple(rng.uniform(0.0, size, 2)),
            radius_px=rng.uniform(22.0, 40.0) / parameters.pixel_size_um,
            strength=rng.uniform(0.04, 0.14),
            rng=rng,
        )
    count = rng.poisson(parameters.debris_mean)
    specks = np.column_stack(
        [
            rng.uniform(0.0, size, (count, 2)),
            rng.gamma(2.0, 0.35, count),
            rng.choice([0.12, 0.25, 2.0], count, p=[0.6, 0.3, 0.1]),
        ]
    )
    return _Slide(
        light=light,
        floating=floating,
        specks=specks,
        background_grey=rng.uniform(parameters.background_grey_low, parameters.background_grey_high),
        noise_grey=rng.uniform(parameters.noise_grey_low, parameters.noise_grey_high),
        halo_px=max(parameters.halo_um * rng.uniform(0.8, 1.25) / parameters.pixel_size_um, optics.COARSENESS),
    )


def _draw_cells(rng: np.random.Generator, parameters: Parameters) -> list[_Cell]:
    """The cell in the middle first, then neighbours about the frame's edge, each with its own axis."""
    middle = 0.5 * (parameters.image_size_px - 1) + MARGIN_PX
    offset = rng.normal(0.0, parameters.centre_offset_um / parameters.pixel_size_um, 2)
    centres = [middle + np.clip(offset, -0.1 * parameters.image_size_px, 0.1 * parameters.image_size_px)]
    for _ in range(rng.poisson(parameters.neighbours_mean)):
        bearing = rng.uniform(0.0, 2 * np.pi)
        distance = parameters.image_size_px * rng.uniform(0.5, 0.75)
        centres.append(middle + distance * np.array([np.cos(bearing), np.sin(bearing)]))
    cells = []
    for index, centre in enumerate(centres):
        rounded = index > 0 and bool(rng.random() < parameters.rounded_share)
        polarity = rng.uniform(0.0, 2 * np.pi)
        cells.append(_Cell(rng.standard_normal(TRAITS), _complex_normal(rng), polarity, centre, rounded))
    return cells


def _complex_normal(rng: np.random.Generator) -> NDArray[np.complex128]:
    return (rng.standard_normal((2, HARMONICS, 2)) @ np.array([1.0, 1.0j])) / np.sqrt(2.0)


def _advance(cell: _Cell, rng: np.random.Generator, parameters: Parameters) -> _Cell:
    """The same cell one frame on: traits and ripples by a stationary autoregression, axis by a random walk."""
    keep, renew = parameters.shape_persistence, np.sqrt(1.0 - parameters.shape_persistence**2)
    jitter = rng.normal(0.0, 0.4 * parameters.centre_offset_um / parameters.pixel_size_um, 2)
    return cell._replace(
        traits=keep * cell.traits + renew * rng.standard_normal(TRAITS),
        ripples=keep * cell.ripples + renew * _complex_normal(rng),
        polarity_rad=cell.polarity_rad + np.radians(parameters.polarity_drift_deg) * rng.standard_normal(),
        centre_px=cell.centre_px + jitter,
    )


def _between(low: float, high: float, trait: float) -> float:
    """A uniform number in [low, high] from a standard normal trait (or the reverse, if low > high)."""
    return low + (high - low) * float(ndtr(trait))


def _shape(cell: _Cell, parameters: Parameters) -> CellShape:
    """The outline that a cell's traits stand for; trait 0 leads from fan (long tail) to crescent (wide front)."""
    t = cell.traits
    size = float(np.exp(parameters.size_sd * t[1]))
    falling = 1.0 / np.arange(2, 2 + HARMONICS)
    return CellShape(
        nucleus_half_length_um=size * _between(6.0, 7.5, t[2]),
        nucleus_half_width_um=size * _between(4.0, 5.5, t[3]),
        body_half_length_um=size * (_between(12.0, 8.5, t[0]) + 0.6 * t[2]),
        body_half_width_um=size * (_between(7.0, 11.0, t[0]) + 0.5 * t[3]),
        tail_length_um=size * _between(1.0, 0.35, t[0]) * _between(16.0, 36.0, t[4]),
        tail_half_width_rad=_between(0.16, 0.32, t[5]),
        tail_bend_per_um=0.004 * t[6],
        horn_length_um=size * _between(3.0, 15.0, 0.7 * t[0] + 0.7 * t[7]),
        lamella_reach_um=size * _between(1.0, 0.85, t[0]) * _between(21.0, 31.0, t[8]),
        lamella_half_opening_rad=_between(0.85, 1.6, t[0]) + 0.1 * float(np.tanh(t[9])),
        front_ripple=0.16 * falling * cell.ripples[0],
        body_ripple=0.16 * falling * cell.ripples[1],
    )


def _render(cells: list[_Cell], slide: _Slide, rng: np.random.Generator, parameters: Parameters) -> NDArray[np.uint8]:
    """All cells and specks through the microscope onto the camera, (s, s) uint8."""
    size = parameters.image_size_px + 2 * MARGIN_PX
    phase = np.zeros((size, size), np.float32)
    glow = np.zeros_like(phase)
    grain = optics.blur(rng.standard_normal((size, size), dtype=np.float32), 0.6)
    grain *= np.float32(1.0 / GRAIN_SD)
    for cell in reversed(cells):
        if cell.rounded:
            _add_rounded(phase, glow, grain, cell, parameters)
        else:
            _add_cell(phase, grain, cell, rng, parameters)
    phase += cell_outlines.discs(size, slide.specks[:, :2], slide.specks[:, 2], slide.specks[:, 3])
    brightness = glow + optics.phase_contrast(
        optics.blur(phase, 0.6), halo_sigma_px=slide.halo_px, ring_amplitude=parameters.ring_amplitude
    )
    if slide.floating is not None:
        brightness += slide.floating
    inside = slice(MARGIN_PX, size - MARGIN_PX)
    brightness = (brightness * slide.light)[inside, inside]
    return optics.camera(brightness, background_grey=slide.background_grey, noise_grey=slide.noise_grey, rng=rng)


def _on_canvas(radius_um: Floats, angle_rad: Floats, cell: _Cell, shape: CellShape, parameters: Parameters) -> Floats:
    """Points (n, 2) in pixels of a polar curve in the cell's own frame."""
    points = cell_outlines.to_points(radius_um, angle_rad, bend_per_um=shape.tail_bend_per_um)
    return cell_outlines.place(
        points, polarity_rad=cell.polarity_rad, centre_px=cell.centre_px, pixel_size_um=parameters.pixel_size_um
    )


def _add_cell(
    phase: NDArray[np.float32],
    grain: NDArray[np.float32],
    cell: _Cell,
    rng: np.random.Generator,
    parameters: Parameters,
) -> None:
    """Add one polarised cell's delay to `phase` (canvas, rad), in place."""
    shape, size, pixel = _shape(cell, parameters), len(phase), parameters.pixel_size_um
    density = np.float32(np.exp(parameters.contrast_sd * cell.traits[10]))
    angle = cell_outlines.polar_grid(OUTLINE_POINTS)
    oval = cell_outlines.ellipse_radius(
        angle, half_length=shape.nucleus_half_length_um, half_width=shape.nucleus_half_width_um
    )
    curves = (cell_outlines.lamella_radius(shape, angle), cell_outlines.body_radius(shape, angle), oval)
    lamella, body, nucleus = (
        cell_outlines.fill(_on_canvas(curve, angle, cell, shape, parameters), size_px=size) for curve in curves
    )
    height = cell_outlines.dome(body, half_width_px=BODY_RIM_UM / pixel)
    height *= 1.0 + 0.14 * grain * (1.0 - np.float32(0.75 / 255) * nucleus)  # granules keep out of the nucleus
    height += np.float32(0.1 / 255) * body
    height -= np.float32(0.16 / 255) * nucleus  # more watery than what surrounds it
    phase += (density * np.float32(parameters.body_phase_rad)) * height
    phase += (density * np.float32(parameters.lamella_phase_rad / 255)) * lamella * (1.0 + 0.15 * grain)

    count = rng.poisson(3.0)
    where = rng.uniform(0.0, 0.7, count) * shape.nucleus_half_width_um
    nucleoli = _on_canvas(where, rng.uniform(-np.pi, np.pi, count), cell, shape, parameters)
    heights = np.full(count, 0.2 * parameters.body_phase_rad)
    phase += density * cell_outlines.discs(size, nucleoli, np.full(count, 1.0 / pixel), heights)

    folds = optics.blur(_ruffles(size, shape, cell, rng, parameters), 0.5)
    phase += (density * np.float32(parameters.ruffle_phase_rad)) * folds * (1.0 + 0.2 * grain)


def _ruffles(
    size_px: int, shape: CellShape, cell: _Cell, rng: np.random.Generator, parameters: Parameters
) -> NDArray[np.float32]:
    """Folds of the front edge, a foot at the tail's tip and a few stray ones on the rim, canvas of 0..1."""

    def on_rim(angle_rad: Floats) -> Floats:
        inward = rng.gamma(1.5, 0.7, len(angle_rad))
        return _on_canvas(cell_outlines.lamella_radius(shape, angle_rad) - inward, angle_rad, cell, shape, parameters)

    reach = 0.9 * shape.lamella_half_opening_rad
    count = int(reach * shape.lamella_reach_um * FOLDS_PER_UM)
    front = on_rim(np.sort(rng.uniform(-reach, reach, count)))
    folds = cell_outlines.ribbon(size_px, front, rng.uniform(0.05, 1.0, count))
    stray = rng.uniform(-np.pi, np.pi, rng.poisson(2.0))
    feet = on_rim(np.concatenate([stray, np.pi + 0.03 * rng.standard_normal(2)]))
    radii = rng.uniform(0.5, 1.3, len(feet)) / parameters.pixel_size_um
    return np.maximum(folds, cell_outlines.discs(size_px, feet, radii, rng.uniform(0.2, 0.9, len(feet))))


def _add_rounded(
    phase: NDArray[np.float32],
    glow: NDArray[np.float32],
    grain: NDArray[np.float32],
    cell: _Cell,
    parameters: Parameters,
) -> None:
    """Add a rounded cell to `phase` (canvas, rad) and what it gathers of the light to `glow`, in place."""
    radius = _between(7.0, 10.0, cell.traits[1]) / parameters.pixel_size_um
    circle = cell.centre_px + radius * cell_outlines.to_points(np.ones(1), cell_outlines.polar_grid(OUTLINE_POINTS))
    ball = cell_outlines.dome(cell_outlines.fill(circle, size_px=len(phase)), half_width_px=radius)
    phase += np.float32(ROUNDED_PHASE_RAD) * ball
    glow += np.float32(ROUNDED_GLOW) * ball * ball * (1.0 + 0.12 * grain)
