"""Maps of a traction magnitude and its uncertainty: figures 1 and 2 of Pielawski et al., ISBI 2020, arXiv 1910.07380.

Images and maps are (y, x), x along the last axis, y down the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from lightning_modules.figures import vector_maps

BORDER_PX = 5
"""Cut off on every side, as in figure 2: what a convolution makes of the frame's edge is not shown."""
BRIGHTEST_PERCENT = 99.8
"""Of the pixels: a few hot ones must not leave the others dark."""
PANEL_INCHES, GAP_INCHES, BAR_INCHES, BAR_SPACE_INCHES = 2.5, 0.06, 0.08, 0.56
TITLE_INCHES, MARGIN_INCHES = 0.26, 0.06
STRIP_INCHES, STRIP_LABEL_INCHES = 1.15, 0.3
FORCE_COLOURS = "inferno"


class _Panel(NamedTuple):
    """One of figure 2's."""

    key: str
    title: str
    unit: str
    colours: str


PANELS = (
    _Panel("image", "image", "grey", "gray"),
    _Panel("true_pa", "true traction", "Pa", FORCE_COLOURS),
    _Panel("mean_pa", "predicted traction, mean", "Pa", FORCE_COLOURS),
    _Panel("sd_pa", "standard deviation", "Pa", "viridis"),
    _Panel("epistemic_sd_pa", "epistemic part", "Pa", "viridis"),
    _Panel("aleatoric_sd_pa", "aleatoric part", "Pa", "viridis"),
    _Panel("coefficient_of_variation", "coefficient of variation", "1", "cividis"),
    _Panel("entropy_bits", "entropy", "bit", "cividis"),
)
"""In the order of figure 2, row by row."""
SHARED = ("true_pa", "mean_pa"), ("sd_pa", "epistemic_sd_pa", "aleatoric_sd_pa")
"""Panels with one scale of colours, that of the first one that is known."""


def uncertainty_panels(maps: Mapping[str, np.ndarray | None], *, pixel_size_um: float, title: str) -> Figure:
    """Draw image, true and predicted traction and every part of the uncertainty: two rows of four (figure 2).

    Args:
        maps: (y, x) each, by the keys of `PANELS`; what is missing, None or nowhere finite is left blank.
        pixel_size_um: of the scale bar; NaN draws none.
        title: what the frame is called.

    """
    known = {panel.key: _shown(maps.get(panel.key)) for panel in PANELS}
    limits = {key: _limits(values, key) for key, values in known.items() if values is not None}
    for group in SHARED:
        leading = next((limits[key] for key in group if key in limits), None)
        for key in group:
            if key in limits and leading is not None:
                limits[key] = leading
    first = known["image"] if known["image"] is not None else known["mean_pa"]
    if first is None:
        raise ValueError("maps must hold an image or a mean_pa")
    height, width = (PANEL_INCHES * extent / max(first.shape) for extent in first.shape)
    across = width + GAP_INCHES + BAR_SPACE_INCHES
    up = height + TITLE_INCHES
    figure = Figure(figsize=(4 * across + MARGIN_INCHES, 2 * up + TITLE_INCHES + MARGIN_INCHES))
    figure.text(0.01, 1 - 0.06 / figure.get_figheight(), title, fontsize=9, va="top", parse_math=False)
    for place, panel in enumerate(PANELS):
        row, column = divmod(place, 4)
        left, bottom = MARGIN_INCHES + column * across, MARGIN_INCHES + (1 - row) * up + 0.02
        ax = vector_maps.map_axes(figure, left, bottom, width, height)
        ax.set_title(panel.title, fontsize=8.5, pad=3)
        values = known[panel.key]
        if values is None:
            ax.set_facecolor("0.92")
            ax.text(0.5, 0.5, "unknown", transform=ax.transAxes, ha="center", va="center", color="0.5", fontsize=8)
            continue
        low, high = limits[panel.key]
        image = ax.imshow(
            np.ma.masked_invalid(values), cmap=panel.colours, vmin=low, vmax=high, interpolation="nearest"
        )
        bar = vector_maps.map_axes(figure, left + width + GAP_INCHES, bottom, BAR_INCHES, height)
        vector_maps.draw_colour_bar(bar, image, panel.unit, cut=bool(np.nanmax(values) > high))
        if panel.key == "image" and np.isfinite(pixel_size_um) and pixel_size_um > 0:
            vector_maps.draw_scale_bar(ax, values.shape, pixel_size_um=pixel_size_um)
    return figure


def frame_strip(
    image: np.ndarray,
    true_pa: np.ndarray,
    predicted_pa: np.ndarray,
    *,
    time_s: np.ndarray,
    pixel: tuple[int, int] | None,
) -> Figure:
    """Draw frames of a movie side by side: image, true and predicted traction, one scale of colours (figure 1).

    Args:
        image: (frames, y, x).
        true_pa: (frames, y, x); NaN where unknown.
        predicted_pa: (frames, y, x).
        time_s: (frames,); NaN where unknown.
        pixel: row and column that a cross marks; None for none.

    """
    known = bool(np.isfinite(true_pa).any())
    rows = [("image", image, "gray"), ("true", true_pa, FORCE_COLOURS), ("predicted", predicted_pa, FORCE_COLOURS)]
    rows = rows if known else [rows[0], rows[2]]
    height, width = (STRIP_INCHES * extent / max(image.shape[1:]) for extent in image.shape[1:])
    step_y, step_x = height + 0.03, width + 0.03
    figure = Figure(figsize=(STRIP_LABEL_INCHES + len(image) * step_x, len(rows) * step_y + 0.22))
    largest = _brightest(true_pa if known else predicted_pa)
    for number, (name, values, colours) in enumerate(rows):
        limits = (float(np.min(image)), _brightest(image)) if name == "image" else (0.0, largest)
        for frame, one in enumerate(values):
            left, bottom = STRIP_LABEL_INCHES + frame * step_x, (len(rows) - 1 - number) * step_y
            ax = vector_maps.map_axes(figure, left, bottom, width, height)
            shown = np.ma.masked_invalid(one)
            ax.imshow(shown, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest")
            if pixel is not None:
                ax.plot(pixel[1], pixel[0], "+", color="#7fe3ff", markersize=6, markeredgewidth=0.8)
            if frame == 0:
                ax.set_ylabel(name, fontsize=8, labelpad=2)
            if number == 0 and np.isfinite(time_s[frame]):
                ax.set_title(f"{time_s[frame]:.0f} s", fontsize=7.5, pad=2)
    return figure


def _shown(values: np.ndarray | None) -> np.ndarray | None:
    """Without the border; None where there is nothing to see."""
    if values is None or not np.isfinite(values).any():
        return None
    if min(values.shape) > 4 * BORDER_PX:
        values = values[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
    return values if np.isfinite(values).any() else None


def _limits(values: np.ndarray, key: str) -> tuple[float, float]:
    if key == "entropy_bits":  # of a density, so it may be negative: the background's is, by far
        finite = values[np.isfinite(values)]
        low, high = float(np.percentile(finite, 5)), float(finite.max())
        return low, high if high > low else low + 1.0
    return 0.0, _brightest(values)


def _brightest(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 1.0
    return float(np.percentile(finite, BRIGHTEST_PERCENT)) or float(finite.max()) or 1.0
