"""Synthetic twin of the force images (paper `insilico_tfm`: Pielawski et al., ISBI 2020, arXiv 1910.07380).

Movies of single crawling cells with a fluorescent sensor in their cytosol, 0.2 um per pixel, and the magnitude of the
traction below them. A cell has a lamella, a thick body with a nucleus and a tail; adhesions ripen and fade along its
rim. With a the adhesions' strength, e = exp(-depth / rim_um) the closeness to the rim and b the brightness of the
cytosol in grey levels, the median of the traction is

    m = K * [ (pull_pa a (0.35 + 0.65 e) + hold_pa e) sqrt(b / brightness_grey) ],

K two Gaussians as of an elastic gel: shape, adhesions and intensity make it, all of them local and seen in the image.
The traction is m exp(s z), z standard normal and smooth over `noise_um`, s between `log_sigma_low` in bright cytosol
and `log_sigma_high` where there is none. Both maps are stored, rounded before z is drawn: the traction's true
conditional distribution of every pixel is known, and with it what the best possible prediction reaches.

The picture has uneven light, bleaching, texture, specks of debris and camera noise that the rule knows nothing of.
Shape, place and adhesions change smoothly from frame to frame; z is drawn anew in every frame. All numbers are ours but
for the pixel size.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from datamodules.batches import Sample
from datamodules.simulators import adhesion_sites, cell_outlines, optics
from datamodules.simulators.cell_outlines import CellShape
from datamodules.simulators.lognormal_errors import error_above, expected_absolute_error, median_above
from datamodules.simulators.photon_camera import exposure
from datamodules.simulators.sample_groups import equal_groups
from datamodules.simulators.smooth_noise import smooth_picture, smooth_series
from physics.windows import tukey_window_2d

FIELDS: dict[str, dict[str, str]] = {
    "image": {"axes": "cyx", "unit": "grey level"},
    "traction_pa": {"axes": "cyx", "unit": "Pa"},
    "median_traction_pa": {"axes": "cyx", "unit": "Pa"},
    "log_sigma": {"axes": "cyx", "unit": "1"},
    "pixel_size_um": {"axes": "", "unit": "um"},
    "time_s": {"axes": "", "unit": "s"},
}
SPLITS: dict[str, dict[str, Any]] = {
    "default": {"unit": "group", "train": 12 / 24, "val": 1 / 24, "test": 11 / 24},
    "paper": {"unit": "group", "train": 12 / 24, "val": 11 / 24, "test": 1 / 24},
}
"""12, 11 and 1 cells. The authors' code tests on the 11, their paper calls these validation."""
LICENCE = "CC0-1.0 (simulated)"
GROUP_KEY = "cell"
DEFAULT_COUNT = 480
"""24 cells of 20 frames; about 0.7 GB."""

OUTLINE_POINTS = 200
HARMONICS = 6
TRAITS = 11
FOREGROUND_PA = 5.0
"""Foreground of the scores: where the true traction is at least this after the taper."""
TAPER_FRACTION = 0.1
ORACLE_CELLS = 96
ORACLE_STRIDE_PX = 4
"""The oracle's error is averaged over frames of so many cells, over every so many-th pixel along y and x."""
_ORACLE = 0x6F7261


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """All numbers of the twin.

    Args:
        image_size_px: side of the square frame.
        pixel_size_um: side of a pixel; 0.2 in the paper.
        frames_per_cell: frames of one cell (one group) when there are enough samples; 181 in the paper.
        frame_interval_s: between frames; 20 of 270 s last as long as the paper's 181 of 30 s.
        shape_persistence_s, adhesion_persistence_s: time after which shape, place, or adhesions have little in common
            with what they were.
        wander_um: standard deviation of the cell's place about the middle of the frame, per axis.
        size_sd: relative spread of the cells' size (log-normal).
        adhesions: sites where adhesions can form; about half of them are occupied.
        adhesion_contrast: how much brighter the strongest adhesions are than their surroundings.
        brightness_grey: of the thick cytosol of a cell of common brightness, above the offset.
        brightness_sd: relative spread of the cells' brightness (log-normal).
        bleaching: share of the light lost by the end of a movie, in [0, 1).
        texture: relative standard deviation of the cytosol's brightness.
        unevenness: largest relative slope and vignetting of the light across the frame.
        specks_mean: expected number of specks of debris.
        offset_grey: of the camera, with the empty background.
        grey_per_photon, read_noise_grey: of the camera.
        pull_pa, hold_pa, rim_um: of the rule.
        spread_um: standard deviation of the narrow Gaussian of K; the wide one has 2.5 times as much and a weight
            of 0.2.
        log_sigma_low, log_sigma_high: of the log-normal noise.
        noise_um: over which it is smooth.
    """

    image_size_px: int = 384
    pixel_size_um: float = 0.2
    frames_per_cell: int = 20
    frame_interval_s: float = 270.0
    shape_persistence_s: float = 1350.0
    adhesion_persistence_s: float = 600.0
    wander_um: float = 3.0
    size_sd: float = 0.1
    adhesions: int = 120
    adhesion_contrast: float = 1.2
    brightness_grey: float = 700.0
    brightness_sd: float = 0.2
    bleaching: float = 0.1
    texture: float = 0.1
    unevenness: float = 0.08
    specks_mean: float = 3.0
    offset_grey: float = 40.0
    grey_per_photon: float = 0.5
    read_noise_grey: float = 3.0
    pull_pa: float = 600.0
    hold_pa: float = 70.0
    rim_um: float = 4.0
    spread_um: float = 0.9
    log_sigma_low: float = 0.4
    log_sigma_high: float = 0.6
    noise_um: float = 0.4

    def __post_init__(self) -> None:
        positive = {"image_size_px", "pixel_size_um", "frames_per_cell", "frame_interval_s", "brightness_grey"}
        positive |= {"pull_pa", "rim_um", "spread_um", "log_sigma_low", "log_sigma_high"}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and int(value) != value:
                raise ValueError(f"{field.name} must be a whole number, got {value}")
            if not np.isfinite(value) or value < 0 or (value == 0 and field.name in positive):
                kind = "positive" if field.name in positive else "not negative"
                raise ValueError(f"{field.name} must be {kind} and finite, got {value}")
        if self.image_size_px * self.pixel_size_um < 51.2:
            raise ValueError(f"image_size_px must show at least 51.2 um, got {self.image_size_px} px")
        if self.bleaching >= 1 or self.unevenness > 0.4:
            raise ValueError(
                f"bleaching must be below 1 and unevenness at most 0.4, got {self.bleaching}, {self.unevenness}"
            )
        if self.log_sigma_low > self.log_sigma_high:
            raise ValueError("log_sigma_low must not exceed log_sigma_high")


class _Movie(NamedTuple):
    """Everything about one cell that does not depend on the frame, and the courses of what does."""

    traits: NDArray[np.float64]  # (frames, TRAITS), standard normal
    ripples: NDArray[np.complex128]  # (frames, 2, HARMONICS), standard complex normal
    polarity_rad: NDArray[np.float64]  # (frames,)
    centre_px: NDArray[np.float64]  # (frames, 2), x and y
    strengths: NDArray[np.float64]  # (frames, sites), of the adhesions, 0 where there is none
    sites: adhesion_sites.Sites
    size: float
    brightness: float  # relative to a cell of common brightness
    light: NDArray[np.float32]
    specks: NDArray[np.float64]  # (n, 4): x, y, radius in px, grey levels


class _Maps(NamedTuple):
    """What one frame is made of, (s, s) float32 each."""

    light_grey: NDArray[np.float32]
    median_pa: NDArray[np.float32]
    log_sigma: NDArray[np.float32]


def group_sizes(count: int, parameters: Parameters) -> list[int]:
    """How many samples each group (cell) holds: `frames_per_cell` or fewer, at least four groups if count >= 4."""
    return equal_groups(count, groups=-(-count // parameters.frames_per_cell))


def irreducible_error(parameters: Parameters) -> dict[str, Any]:
    """Expected error of an oracle that knows the traction's true distribution in every pixel and predicts its median.

    In closed form per pixel, over frames of cells of their own; `also` holds the same for the whole frame, and for an
    oracle that predicts the mean, which is scored by the same absolute error.
    """
    scores = dict(_oracle_scores(parameters))
    return {
        "metric": "mae_median_foreground_pa",
        "value": scores.pop("mae_median_foreground_pa"),
        "also": scores,
        "match": {"data.taper_fraction": TAPER_FRACTION, "data.frame_px": {"at_least": parameters.image_size_px}},
        "how": f"oracle that knows median and sigma of every pixel's log-normal, closed form, pooled over one whole "
        f"frame of {ORACLE_CELLS} cells of their own, which differ by about a tenth; foreground: true traction >= "
        f"{FOREGROUND_PA:g} Pa after the taper, which the oracle's median there takes into account",
    }


def simulate_group(seed: int, group: int, size: int, parameters: Parameters) -> list[Sample]:
    """The first `size` frames of cell `group`.

    Fields: `image` (1, s, s) uint16 grey levels, `traction_pa` (1, s, s) float32, `median_traction_pa` and `log_sigma`
    (1, s, s) float16: the traction is log-normal with this median and this standard deviation of its logarithm;
    `pixel_size_um`, `time_s` since the first frame, float64. A pure function of its arguments; a shorter group is a
    prefix of a longer one.
    """
    if min(seed, group) < 0 or size < 1:
        raise ValueError(f"seed and group must not be negative and size must be positive, got {seed}, {group}, {size}")
    if size > parameters.frames_per_cell:
        raise ValueError(f"size must be at most frames_per_cell ({parameters.frames_per_cell}), got {size}")
    rng = np.random.default_rng([seed, group])
    movie = _draw_movie(rng, parameters)
    samples = []
    for frame in range(size):
        maps = _frame_maps(movie, frame, rng, parameters)
        image = exposure(
            maps.light_grey,
            offset_grey=parameters.offset_grey,
            grey_per_photon=parameters.grey_per_photon,
            read_noise_grey=parameters.read_noise_grey,
            rng=rng,
        )
        # rounded first: the traction is drawn from exactly what is stored
        median, log_sigma = maps.median_pa.astype(np.float16), maps.log_sigma.astype(np.float16)
        noise = smooth_picture(rng, parameters.image_size_px, width_px=parameters.noise_um / parameters.pixel_size_um)
        traction = median.astype(np.float32) * np.exp(log_sigma.astype(np.float32) * noise)
        values: dict[str, np.ndarray] = {
            "image": image[None],
            "traction_pa": traction[None],
            "median_traction_pa": median[None],
            "log_sigma": log_sigma[None],
            "pixel_size_um": np.array(parameters.pixel_size_um, np.float64),
            "time_s": np.array(frame * parameters.frame_interval_s, np.float64),
        }
        samples.append(Sample(f"cell{group:03d}_{frame:03d}", f"cell{group:03d}", values))
    return samples


# -- the cell and its courses -----------------------------------------------------------------------------------------


def _draw_movie(rng: np.random.Generator, parameters: Parameters) -> _Movie:
    frames, pixel, size_px = parameters.frames_per_cell, parameters.pixel_size_um, parameters.image_size_px
    slow = parameters.shape_persistence_s / parameters.frame_interval_s
    fast = parameters.adhesion_persistence_s / parameters.frame_interval_s
    middle = 0.5 * (size_px - 1)
    parts = smooth_series(rng, frames, (2, 2, HARMONICS), width=slow) / np.sqrt(2.0)
    wander = smooth_series(rng, frames, (2,), width=slow) * parameters.wander_um / pixel
    specks = rng.poisson(parameters.specks_mean)
    return _Movie(
        traits=smooth_series(rng, frames, (TRAITS,), width=slow),
        ripples=parts[:, 0] + 1j * parts[:, 1],
        polarity_rad=rng.uniform(0, 2 * np.pi) + 0.4 * smooth_series(rng, frames, (), width=slow),
        centre_px=middle + np.clip(wander, -0.1 * size_px, 0.1 * size_px),
        strengths=np.clip(smooth_series(rng, frames, (parameters.adhesions,), width=fast), 0.0, 2.0) / 2.0,
        sites=adhesion_sites.draw_sites(rng, parameters.adhesions, length_um=(1.2, 3.5)),
        size=float(np.exp(parameters.size_sd * np.clip(rng.standard_normal(), -2, 2))),
        brightness=float(np.exp(parameters.brightness_sd * np.clip(rng.standard_normal(), -2, 2))),
        light=optics.illumination(
            size_px,
            slope=rng.uniform(0.0, parameters.unevenness),
            slope_direction_rad=rng.uniform(0.0, 2 * np.pi),
            vignette=rng.uniform(0.0, 0.5 * parameters.unevenness),
            vignette_centre_px=tuple(rng.uniform(0.25 * size_px, 0.75 * size_px, 2)),
        ),
        specks=np.column_stack(
            [
                rng.uniform(0.0, size_px, (specks, 2)),
                rng.uniform(0.2, 0.45, specks) / pixel,
                rng.uniform(100.0, 400.0, specks),
            ]
        ),
    )


def _shape(movie: _Movie, frame: int) -> CellShape:
    t = ndtr(movie.traits[frame])  # uniform in [0, 1]
    falling = 1.0 / np.arange(2, 2 + HARMONICS)
    return CellShape(
        nucleus_half_length_um=movie.size * (6.0 + t[0]),
        nucleus_half_width_um=movie.size * (4.5 + t[1]),
        body_half_length_um=movie.size * (10.5 + 3.0 * t[2]),
        body_half_width_um=movie.size * (8.5 + 2.5 * t[3]),
        tail_length_um=movie.size * (8.0 + 9.0 * t[4]),
        tail_half_width_rad=0.2 + 0.15 * t[5],
        tail_bend_per_um=0.006 * (2 * t[6] - 1),
        horn_length_um=movie.size * (1.0 + 5.0 * t[7]),
        lamella_reach_um=movie.size * (19.0 + 6.0 * t[8]),
        lamella_half_opening_rad=0.9 + 0.7 * t[9] + 0.1 * t[10],
        front_ripple=0.14 * falling * movie.ripples[frame, 0],
        body_ripple=0.14 * falling * movie.ripples[frame, 1],
    )


# -- one frame --------------------------------------------------------------------------------------------------------


def _frame_maps(movie: _Movie, frame: int, rng: np.random.Generator, parameters: Parameters) -> _Maps:
    size, pixel = parameters.image_size_px, parameters.pixel_size_um
    shape, angle = _shape(movie, frame), cell_outlines.polar_grid(OUTLINE_POINTS)

    def laid(radius: NDArray[np.floating], at_rad: NDArray[np.floating]) -> NDArray[np.floating]:
        points = cell_outlines.to_points(radius, at_rad, bend_per_um=shape.tail_bend_per_um)
        return cell_outlines.place(
            points,
            polarity_rad=movie.polarity_rad[frame],
            centre_px=movie.centre_px[frame],
            pixel_size_um=pixel,
        )

    rim = cell_outlines.lamella_radius(shape, angle)
    nucleus = cell_outlines.ellipse_radius(
        angle, half_length=shape.nucleus_half_length_um, half_width=shape.nucleus_half_width_um
    )
    whole = cell_outlines.fill(laid(rim, angle), size_px=size)
    body = cell_outlines.fill(laid(cell_outlines.body_radius(shape, angle), angle), size_px=size)
    core = cell_outlines.fill(laid(nucleus, angle), size_px=size)
    thickness = 0.35 * cell_outlines.dome(whole, half_width_px=1.5 / pixel)
    thickness += 0.45 * cell_outlines.dome(body, half_width_px=4.0 / pixel)
    thickness += 0.2 * cell_outlines.dome(core, half_width_px=2.0 / pixel)
    cytosol = optics.blur(thickness * np.float32(parameters.brightness_grey * movie.brightness), 0.2 / pixel)

    outer, inner = adhesion_sites.streak_radii(movie.sites, rim, angle)
    adhesions = optics.blur(
        adhesion_sites.streaks(
            size,
            laid(outer, movie.sites.angle_rad),
            laid(inner, movie.sites.angle_rad),
            movie.strengths[frame],
            width_px=0.8 / pixel,
        ),
        0.25 / pixel,
    )
    median, log_sigma = _rule(cytosol, adhesions, whole, parameters)

    texture = 1 + parameters.texture * smooth_picture(rng, size, width_px=0.5 / pixel)
    light = cytosol * np.maximum(texture, 0) * (1 + np.float32(parameters.adhesion_contrast) * adhesions)
    specks = movie.specks
    light += optics.blur(cell_outlines.discs(size, specks[:, :2], specks[:, 2], specks[:, 3]), 0.25 / pixel)
    left = 1 - parameters.bleaching * frame / max(parameters.frames_per_cell - 1, 1)
    return _Maps(light * movie.light * np.float32(left), median, log_sigma)


def _rule(
    cytosol_grey: NDArray[np.float32],
    adhesions: NDArray[np.float32],
    whole: NDArray[np.uint8],
    parameters: Parameters,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Median of the traction in Pa and standard deviation of its logarithm, (s, s) each."""
    pixel = parameters.pixel_size_um
    inside = whole * np.float32(1 / 255)
    depth = cv2.distanceTransform((whole > 127).astype(np.uint8), cv2.DIST_L2, 5)
    near_rim = np.exp(depth * np.float32(-pixel / parameters.rim_um)) * inside
    pull = np.float32(parameters.pull_pa) * adhesions * (0.35 * inside + 0.65 * near_rim)
    pull += np.float32(parameters.hold_pa) * near_rim
    pull *= np.sqrt(cytosol_grey / np.float32(parameters.brightness_grey))
    spread = parameters.spread_um / pixel
    median = 0.8 * optics.blur(pull, spread) + 0.2 * optics.blur(pull, 2.5 * spread)
    dimness = np.exp(optics.blur(cytosol_grey, 1.0 / pixel) * np.float32(-3 / parameters.brightness_grey))
    low, high = parameters.log_sigma_low, parameters.log_sigma_high
    return median, (low + np.float32(high - low) * dimness).astype(np.float32)


# -- the oracle -------------------------------------------------------------------------------------------------------


def oracle_sums(
    median_pa: NDArray[np.floating], log_sigma: NDArray[np.floating], *, prediction: str, stride_px: int = 1
) -> NDArray[np.float64]:
    """Expected sums over a frame (y, x): absolute error, absolute error in the foreground, foreground pixels, pixels.

    The frame is tapered; `prediction` is "median" or "mean" of the tapered log-normal, clipped at 1 as the truth is.
    In the foreground the median is that of forces of at least `FOREGROUND_PA`: which pixels are scored says so much.
    """
    tapered = median_pa.astype(np.float64) * tukey_window_2d(median_pa.shape, fraction=TAPER_FRACTION)
    median, sigma = tapered[::stride_px, ::stride_px], log_sigma[::stride_px, ::stride_px].astype(np.float64)
    predicted = np.maximum(median if prediction == "median" else median * np.exp(0.5 * sigma**2), 1.0)
    within = median_above(median, sigma, threshold=FOREGROUND_PA) if prediction == "median" else predicted
    foreground, probability = error_above(median, sigma, within, threshold=FOREGROUND_PA)
    total = expected_absolute_error(median, sigma, predicted)
    return np.array([total.sum(), foreground.sum(), probability.sum(), total.size])


@lru_cache(maxsize=4)
def _oracle_scores(parameters: Parameters) -> tuple[tuple[str, float], ...]:
    sums = {"median": np.zeros(4), "mean": np.zeros(4)}
    for cell in range(ORACLE_CELLS):
        rng = np.random.default_rng([_ORACLE, cell])
        maps = _frame_maps(_draw_movie(rng, parameters), 0, rng, parameters)
        for kind in sums:
            sums[kind] += oracle_sums(maps.median_pa, maps.log_sigma, prediction=kind, stride_px=ORACLE_STRIDE_PX)
    scores = []
    for kind, (total, foreground, share, pixels) in sums.items():
        scores += [(f"mae_{kind}_foreground_pa", foreground / share), (f"mae_{kind}_pa", total / pixels)]
    return tuple((name, float(value)) for name, value in scores)
