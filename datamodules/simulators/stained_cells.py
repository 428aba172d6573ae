"""What the two stains of a field of cells look like through a microscope: actin with its fibres, and the nuclei.

Each picture is drawn from the same list of cells. What a cell shows of its nucleus in actin, dim haze, parted fibres
and a rim, is drawn from `Cell.shown` alone, and only where the cell is `telling`: `Cell.nucleus` is for the other
picture. Lengths are um from the frame's corner, x right and y down; angles are radians, counter-clockwise as displayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.simulators import actin_fibres, actin_territories, optics
from datamodules.simulators.actin_fibres import Floats, Oval

CORTEX_WIDTH_UM = 0.7
POOR_STAIN = 0.35
"""Brightness of the haze of a cell that shows nothing, relative to others."""


class Frame(NamedTuple):
    """What is recorded, and how finely."""

    size_px: int
    pixel_size_um: float
    fibre_spacing_um: float
    fibre_width_um: float


class Cell(NamedTuple):
    """One cell: the truth that the pictures are drawn from."""

    middle_um: Floats
    """(2,), x and y from the tile's corner; the outline is drawn about it."""
    radius_um: Floats
    """(actin_territories.OUTLINE_POINTS,), of the outline at the angles of its polar grid."""
    axis_rad: float
    """Direction of the fibres."""
    shown: Oval
    """What the actin shows: its nucleus without the jitter."""
    nucleus: Oval
    telling: bool
    """Whether the actin shows it at all."""
    stain: float
    """Relative brightness of its actin."""
    nucleus_stain: float


class Slide(NamedTuple):
    """What the tiles of one slide share: stain and camera."""

    gain: float
    nucleus_gain: float
    background: float
    noise_grey: float
    light_slope: float
    light_direction_rad: float


def actin_picture(
    cells: Sequence[Cell], slide: Slide, frame: Frame, *, confluent: bool, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The picture (y, x) and the number of the cell, from 1, that each pixel belongs to."""
    size, pixel = frame.size_px, frame.pixel_size_um
    outlines = [(cell.middle_um, cell.radius_um) for cell in cells]
    territory, depth = actin_territories.territories(outlines, size_px=size, pixel_size_um=pixel)
    stain = np.array([0.0, *(cell.stain * (1.0 if cell.telling else POOR_STAIN) for cell in cells)], np.float32)[
        territory
    ]
    light = 0.22 * stain * (0.4 + 0.6 * depth)
    lines = np.zeros_like(light)
    for number, cell in enumerate(cells, start=1):
        if cell.telling:
            _add_structures(light, lines, territory == number, cell, frame, rng)
    light += lines
    cortex = optics.blur(actin_territories.borders(territory), 0.5 / pixel)
    strength = np.float32((0.45 if confluent else 0.35) * min(1.0, CORTEX_WIDTH_UM / pixel))
    light += strength * np.minimum(cortex, 1.0) * np.maximum(stain, 0.25)
    grain = optics.blur(rng.standard_normal((size, size), dtype=np.float32), 0.6)
    light *= 1.0 + 0.25 * grain
    light = optics.blur(light, 0.3 / pixel)
    return _recorded(light, slide, slide.gain, rng), territory


def _add_structures(
    light: NDArray[np.float32],
    lines: NDArray[np.float32],
    own: NDArray[np.bool_],
    cell: Cell,
    frame: Frame,
    rng: np.random.Generator,
) -> None:
    """Add fibres to `lines`, and dim `light` where the nucleus presses and brighten it at the rim, in place."""
    pixel = frame.pixel_size_um
    pressed = cell.shown._replace(
        half_length_um=cell.shown.half_length_um + 0.3, half_width_um=cell.shown.half_width_um + 0.3
    )
    reach_um = float(cell.radius_um.max())
    bundle = actin_fibres.fibres(
        pressed,
        axis_rad=cell.axis_rad,
        reach_um=reach_um + float(np.hypot(*(cell.shown.centre_um - cell.middle_um))),
        spacing_um=frame.fibre_spacing_um,
        bend_per_um=rng.normal(0.0, 0.006),
        rng=rng,
    )
    strengths = rng.uniform(0.25, 1.0, len(bundle)) * min(1.0, frame.fibre_width_um / pixel)
    window = _window(cell.middle_um, reach_um, frame)
    if window is not None:
        rows, columns = window
        corner = np.array([columns.start, rows.start])
        drawn = actin_fibres.drawn(bundle / pixel - 0.5 - corner, strengths, shape_px=own[window].shape)
        lines[window] += np.float32(0.55 * cell.stain) * drawn * own[window]
    window = _window(cell.shown.centre_um, 2.0 * cell.shown.half_length_um, frame)
    if window is not None:
        distance = _oval_distance(pressed, window, pixel)
        free = np.clip((1.15 - distance) / 0.3, 0.0, 1.0) * own[window]
        thickness = np.sqrt(pressed.half_length_um * pressed.half_width_um)
        rim = np.exp(-(((distance - 1.0) * thickness / 0.7) ** 2)) * own[window]
        light[window] *= 1.0 - 0.75 * free
        light[window] += np.float32(0.16 * cell.stain) * rim


def nucleus_picture(
    cells: Sequence[Cell], slide: Slide, frame: Frame, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The picture (y, x) and where it shows a nucleus."""
    size, pixel = frame.size_px, frame.pixel_size_um
    light, mask = np.zeros((size, size), np.float32), np.zeros((size, size), bool)
    for cell in cells:
        window = _window(cell.nucleus.centre_um, 1.3 * cell.nucleus.half_length_um, frame)
        if window is None:
            continue
        distance = _oval_distance(cell.nucleus, window, pixel)
        edge_px = np.sqrt(cell.nucleus.half_length_um * cell.nucleus.half_width_um) / pixel
        filled = np.clip((1.0 - distance) * edge_px + 0.5, 0.0, 1.0) * (1.0 - 0.25 * np.minimum(distance, 1.0) ** 2)
        light[window] = np.maximum(light[window], np.float32(0.75 * cell.nucleus_stain) * filled)
        mask[window] |= distance < 1.0
    chromatin = optics.blur(rng.standard_normal((size, size), dtype=np.float32), 0.6 / pixel) * (0.6 / pixel)
    light *= 1.0 + 0.25 * np.clip(chromatin, -1.5, 1.5)
    return _recorded(optics.blur(light, 0.35 / pixel), slide, slide.nucleus_gain, rng), mask


def _recorded(light: NDArray[np.float32], slide: Slide, gain: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Light through an uneven field onto the camera, (y, x) uint8."""
    centre = tuple(0.5 * (np.array(light.shape) - 1))
    uneven = optics.illumination(
        len(light),
        slope=slide.light_slope,
        slope_direction_rad=slide.light_direction_rad,
        vignette=0.0,
        vignette_centre_px=centre,
    )
    bright = gain * light * uneven + slide.background
    return optics.camera(bright, background_grey=230.0, noise_grey=slide.noise_grey * np.sqrt(2.0), rng=rng)


def _window(centre_um: Floats, reach_um: float, frame: Frame) -> tuple[slice, slice] | None:
    """Rows and columns of the tile within reach of a point; None where there are none."""
    low = np.floor((centre_um - reach_um) / frame.pixel_size_um).astype(int).clip(0, frame.size_px)
    high = np.ceil((centre_um + reach_um) / frame.pixel_size_um).astype(int).clip(0, frame.size_px)
    if (high <= low).any():
        return None
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def _oval_distance(oval: Oval, window: tuple[slice, slice], pixel_size_um: float) -> NDArray[np.float32]:
    """Distance of every pixel of a window from the oval's centre, in units of its half axes."""
    rows, columns = window
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) * np.float32(pixel_size_um)
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) * np.float32(pixel_size_um)
    points = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)
    along, across = np.moveaxis(actin_fibres.oval_coordinates(points, oval), -1, 0)
    return np.hypot(along, across)
