"""Fields of vectors as maps: the size as colours, arrows on top, the cell's outline, a scale bar and a reference arrow.

Fields are (2, y, x), components (x, y), x along the last axis and y down the rows, as images are displayed: a positive
y component points down.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.quiver import Quiver
from matplotlib.ticker import MaxNLocator

ARROWS_ACROSS = 22
WEAKEST_ARROW = 0.1
"""Of the largest colour: where no pixel of a block is larger, the block gets no arrow."""
LONGEST_ARROW_BLOCKS = 2.2
OUTLINE_COLOUR = "#7fe3ff"
BAR_SHARE = 0.28
"""A scale bar is at most this share of the map's width."""


def rendered(figure: Figure) -> np.ndarray:
    """A figure as a picture (y, x, 3), 8-bit."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def map_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches from the figure's lower left corner, without ticks."""
    across, up = figure.get_size_inches()
    ax = figure.add_axes((left / across, bottom / up, width / across, height / up))
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_linewidth(0.5)
    return ax


def size_of(field: np.ndarray) -> np.ndarray:
    """Length of the vectors of a field (2, y, x) -> (y, x)."""
    return np.hypot(field[0], field[1])


def draw_map(ax: Axes, values: np.ndarray, *, largest: float, colours: str) -> AxesImage:
    """Draw (y, x) values as colours from 0 to `largest`; what is not finite stays grey."""
    ax.set_facecolor("0.6")
    shown = np.ma.masked_invalid(values)
    image = ax.imshow(shown, cmap=colours, vmin=0, vmax=largest or 1.0, interpolation="nearest")
    ax.set_autoscale_on(False)  # arrows may leave the map
    return image


def draw_arrows(ax: Axes, field: np.ndarray, *, largest: float) -> Quiver | None:
    """Draw arrows for the blocks of a field.

    An arrow stands for a block of pixels: it starts at the centre of what is there and points along its mean, both
    weighted by size, so that stresses in single pixels are not missed between the arrows.

    Args:
        ax: of an image of the field's size.
        field: (2, y, x); vectors that are not finite count as none.
        largest: size of the vectors that get an arrow of full length; longer ones get no longer arrow.

    Returns:
        The arrows; None where every vector is too short for one.

    """
    field = np.where(np.isfinite(field).all(axis=0), field, 0.0)
    size = size_of(field)
    step = _block_px(size.shape)
    arrows = []
    for top in range(0, size.shape[0], step):
        for left in range(0, size.shape[1], step):
            weight = size[top : top + step, left : left + step]
            if not weight.max() > WEAKEST_ARROW * largest:
                continue
            weight = weight / weight.sum()
            y, x = np.indices(weight.shape)
            along = (field[:, top : top + step, left : left + step] * weight).sum(axis=(1, 2))
            along = along * min(1.0, largest / float(np.hypot(*along)))
            arrows.append((left + (x * weight).sum(), top + (y * weight).sum(), *along))
    if not arrows:
        return None
    x_px, y_px, u, v = np.array(arrows).T
    length_px = LONGEST_ARROW_BLOCKS * step / largest
    return _quiver(ax, x_px, y_px, u * length_px, v * length_px)


def draw_reference_arrow(ax: Axes, shape_px: tuple[int, ...], *, largest: float, unit: str) -> None:
    """Draw an arrow of a round size with its number into the lower right corner of a map with `draw_arrows`."""
    height_px, width_px = shape_px
    value = _round_below(largest)
    length_px = LONGEST_ARROW_BLOCKS * _block_px(shape_px) * value / largest
    right_px, low_px = 0.96 * width_px, 0.95 * height_px
    _plaque(ax, 0.78 * width_px, 0.2 * width_px, shape_px)
    arrow = _quiver(ax, *(np.array([number]) for number in (right_px - length_px, low_px, length_px, 0.0)))
    arrow.set_zorder(5)
    _corner_text(ax, right_px, low_px - 0.025 * height_px, f"{value:g} {unit}", "right")


def draw_outline(ax: Axes, mask: np.ndarray) -> None:
    """Draw the border of a mask (y, x); nothing where it is empty or full."""
    inside = np.asarray(mask, dtype=float)
    if inside.min() < inside.max():
        ax.contour(inside, levels=[0.5], colors=[OUTLINE_COLOUR], linewidths=0.8)


def draw_scale_bar(ax: Axes, shape_px: tuple[int, ...], *, pixel_size_um: float) -> None:
    """Draw a bar of a round length with its number into the lower left corner of a map."""
    height_px, width_px = shape_px
    length_um = _round_below(BAR_SHARE * width_px * pixel_size_um)
    left_px, low_px = 0.04 * width_px, 0.95 * height_px
    _plaque(ax, 0.02 * width_px, (BAR_SHARE + 0.04) * width_px, shape_px)
    ends = [left_px, left_px + length_um / pixel_size_um]
    ax.plot(ends, [low_px, low_px], color="white", linewidth=2.2, solid_capstyle="butt", zorder=5)
    _corner_text(ax, left_px, low_px - 0.025 * height_px, f"{length_um:g} µm", "left")


def draw_colour_bar(ax: Axes, image: ScalarMappable, label: str, *, cut: bool) -> None:
    """Fill axes with a colour bar; `cut` says that some values lie above it."""
    assert ax.figure is not None
    bar = ax.figure.colorbar(image, cax=ax, ticks=MaxNLocator(4), extend="max" if cut else "neither")
    bar.outline.set_linewidth(0.5)
    ax.tick_params(labelsize=7, length=2, pad=1.5, width=0.5)
    bar.set_label(label, fontsize=8, labelpad=2)


def _block_px(shape_px: tuple[int, ...]) -> int:
    return max(1, math.ceil(max(shape_px) / ARROWS_ACROSS))


def _quiver(ax: Axes, x_px: np.ndarray, y_px: np.ndarray, u_px: np.ndarray, v_px: np.ndarray) -> Quiver:
    """Arrows in data coordinates: y down as the axes have it."""
    placed: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1.0, "pivot": "tail", "minlength": 0.5}
    heads: dict[str, Any] = {"width": 0.0052, "headwidth": 4.2, "headlength": 4.6, "headaxislength": 4.0}
    quiver = ax.quiver(x_px, y_px, u_px, v_px, color="white", zorder=3, **placed, **heads)
    quiver.set_path_effects([withStroke(linewidth=0.8, foreground=(0, 0, 0, 0.7))])
    return quiver


def _plaque(ax: Axes, left_px: float, width_px: float, shape_px: tuple[int, ...]) -> None:
    """Dim a low corner, so that what is written there stands out from the arrows below."""
    top_px, height_px = 0.865 * shape_px[0], 0.115 * shape_px[0]
    ax.add_patch(Rectangle((left_px, top_px), width_px, height_px, color="black", alpha=0.5, linewidth=0, zorder=4))


def _corner_text(ax: Axes, x_px: float, y_px: float, text: str, side: str) -> None:
    ax.text(x_px, y_px, text, color="white", fontsize=7, ha=side, va="bottom", zorder=5)


def _round_below(value: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not above a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(number for number in (1, 2, 5, 10) if number * power <= value * (1 + 1e-9)) * power
