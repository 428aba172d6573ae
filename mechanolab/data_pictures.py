"""The picture of any data set: what the fields of its samples look like, drawn by their axes and units alone.

A paper may draw its own samples better (`lightning_modules.figures.<stem>.contact_sheet`); this one needs no code of
the paper. Images are grey between their percentiles, vector fields a heat map of their size with arrows, volumes their
maximum along z, lists outlines on the first image, scalars text. Rows point down, as in FORMAT.md.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datamodules.batches import Sample
    from datamodules.shards.schema import Field

MOST_SAMPLES = 12
MOST_PANELS = 8
MOST_CHANNELS = 3
MOST_NUMBERS_AS_TEXT = 4
"""Longer one-dimensional fields are curves."""
ARROWS_ACROSS = 11
LARGEST = 1e150
"""Beyond it squares overflow, and matplotlib's limits not much later; such values are drawn as this."""
VECTOR_UNITS = ("um", "nm", "px", "Pa", "kPa", "N", "nN")
OUTLINE_COLOURS = ("#ffb000", "#38b6ff", "#ff6ea1", "#7ddf64")
# the layout in inches: a panel is a square box with room for a colour bar and its numbers to the right
_BOX, _BAR_GAP, _BAR, _PANEL = 2.0, 0.05, 0.08, 2.7
_MARGIN, _LINE, _HEADLINE, _ROW_GAP = 0.15, 0.125, 0.2, 0.2
_LETTERS_PER_INCH = 16.0
_HEADLINE_LETTERS_PER_INCH = 12.0


Kind = Literal["grey", "mask", "vectors", "curve", "outline"]


class Panel(NamedTuple):
    """One picture of one field of a sample."""

    title: str
    kind: Kind
    """`outline` is a list that no image is there for."""
    values: NDArray[Any]
    """(y, x) for grey and mask, (c, y, x) for vectors, (length, ...) for the others."""
    unit: str


def contact_sheet(fields: Mapping[str, Field], samples: Sequence[Sample], *, most: int = MOST_SAMPLES) -> Figure:
    """Draw the fields of some samples, each sample under its id and scalars.

    Args:
        fields: Name to description, from the manifest; nothing else is known about the data.
        samples: Samples with these fields; their arrays are read, never changed.
        most: At most this many samples are drawn, the first ones.

    Raises:
        ValueError: `samples` is empty or `most` is not positive.
    """
    if not samples:
        raise ValueError("samples must hold at least one sample")
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    shown = samples[:most]
    panels = [_panels(fields, sample)[:MOST_PANELS] for sample in shown]
    across = max(1, *(len(found) for found in panels))
    columns = min(len(shown), 4 if across == 1 else max(1, 6 // across))
    rows = math.ceil(len(shown) / columns)
    width = across * _PANEL + _MARGIN
    lines = [_scalars(fields, sample, letters=int(_LETTERS_PER_INCH * (width - _MARGIN))) for sample in shown]
    headline = _HEADLINE + _LINE * max(map(len, lines))
    titles = _LINE * max((panel.title.count("\n") + 1 for found in panels for panel in found), default=0)
    height = headline + titles + (_BOX if any(panels) else 0.0) + _ROW_GAP
    figure = Figure(figsize=(columns * width + _MARGIN, rows * height + _MARGIN), dpi=120)
    for number, (sample, found) in enumerate(zip(shown, panels, strict=True)):
        left = _MARGIN + number % columns * width
        top = rows * height - number // columns * height
        _write_header(
            figure, left, top, sample.sample_id, lines[number], letters=int(_HEADLINE_LETTERS_PER_INCH * width)
        )
        marked = _panel_for_outlines(found)
        for place, panel in enumerate(found):
            box = (left + place * _PANEL, top - headline - titles - _BOX)
            ax = _draw(figure, box, panel)
            if place == marked:
                names = [name for name, field in fields.items() if _is_outline(field) and field.unit == "px"]
                _draw_outlines(ax, {name: _entries(sample, name) for name in names})
    return figure


# -- what is drawn how ------------------------------------------------------------------------------------------------


def _panels(fields: Mapping[str, Field], sample: Sample) -> list[Panel]:
    """The pictures of a sample in the order of its fields, lists last."""
    panels: list[Panel] = []
    lists: list[Panel] = []
    for name, field in fields.items():
        values = np.asarray(sample.fields[name])
        title = name if field.unit == "1" else f"{name} ({field.unit})"
        if _is_outline(field):
            lists.append(Panel(title, "outline", _entries(sample, name), field.unit))
        elif field.axes.startswith("n") or (values.ndim == 1 and values.size > MOST_NUMBERS_AS_TEXT):
            panels.append(Panel(title, "curve", _entries(sample, name), field.unit))
        elif 2 <= values.ndim <= 4:
            panels += _image_panels(title, field, values)
    if _panel_for_outlines(panels) is not None:
        lists = [panel for panel in lists if panel.unit != "px"]
    return panels + lists


def _image_panels(title: str, field: Field, values: NDArray[Any]) -> list[Panel]:
    """Pictures of (y, x), (c, y, x), (z, y, x) or (c, z, y, x); of other leading axes the first entries."""
    numbers = _drawable(values.astype(np.float64))
    if np.abs(numbers).max() == LARGEST:
        title += f"\ncut at {LARGEST:g}"
    channels = numbers[None] if numbers.ndim == 2 or (numbers.ndim == 3 and field.axes[0] == "z") else numbers
    kind: Kind = "mask" if field.unit == "mask" else "grey"
    if len(channels) in (2, 3) and field.unit in VECTOR_UNITS and field.axes.startswith("c"):
        if channels.ndim == 4:
            deepest = np.linalg.norm(channels, axis=0).argmax(axis=0)
            channels = np.take_along_axis(channels, deepest[None, None], axis=1)[:, 0]
            title += f"\nlargest along {field.axes[1]}"
        return [Panel(title, "vectors", channels, field.unit)]
    if channels.ndim == 4:
        channels = channels.max(axis=1)
        title += f"\nmaximum along {field.axes[-3]}"
    if len(channels) == 1:
        return [Panel(title, kind, channels[0], field.unit)]
    return [
        Panel(f"{title}\n{field.axes[0]} = {number} of {len(channels)}", kind, channel, field.unit)
        for number, channel in enumerate(channels[:MOST_CHANNELS])
    ]


def _drawable(values: NDArray[Any]) -> NDArray[Any]:
    return values.clip(-LARGEST, LARGEST) if values.dtype == np.float64 else values


def _is_outline(field: Field) -> bool:
    return len(field.shape) == 2 and field.axes.startswith("n") and field.shape[1] == 2


def _panel_for_outlines(panels: Sequence[Panel]) -> int | None:
    """Number of the panel that positions in pixels are drawn on: an image, else a mask, else a vector field."""
    for kind in ("grey", "mask", "vectors"):
        for number, panel in enumerate(panels):
            if panel.kind == kind:
                return number
    return None


def _entries(sample: Sample, name: str) -> NDArray[Any]:
    from datamodules.shards.lists import LENGTH_SUFFIX, trimmed

    return _drawable(
        trimmed(sample, name) if name + LENGTH_SUFFIX in sample.fields else np.asarray(sample.fields[name])
    )


def _scalars(fields: Mapping[str, Field], sample: Sample, *, letters: int) -> list[str]:
    """The scalars and short vectors of a sample as lines of text; lengths of lists show in the lists."""
    from datamodules.shards.lists import list_fields

    lengths = set(list_fields(fields).values())
    texts = []
    for name, field in fields.items():
        values = np.asarray(sample.fields[name])
        if values.ndim > 4:
            texts.append(f"{name} has {values.ndim} axes: not drawn")
        if name in lengths or values.ndim > 1 or values.size > MOST_NUMBERS_AS_TEXT or field.axes.startswith("n"):
            continue
        numbers = ", ".join(f"{value:.4g}" if values.dtype.kind == "f" else str(value) for value in values.ravel())
        told = field.unit == "1" or name.endswith(f"_{field.unit.lower()}")
        texts.append(f"{name} {numbers}" if told else f"{name} {numbers} {field.unit}")
    return textwrap.wrap("   ".join(text.replace(" ", "\xa0") for text in texts), max(letters, 1))


# -- drawing, in inches from the lower left corner of the sheet -------------------------------------------------------


def _write_header(figure: Figure, left: float, top: float, name: str, lines: list[str], *, letters: int) -> None:
    """The id in bold, cut in its middle where it is too long, and lines below it."""
    if len(name) > letters:
        name = f"{name[: letters // 2]}…{name[-(letters - letters // 2 - 1) :]}"
    width, height = figure.get_size_inches()
    place: dict[str, Any] = {"ha": "left", "va": "top", "parse_math": False}
    figure.text(left / width, top / height, name, fontsize=8, weight="bold", **place)
    for number, line in enumerate(lines):
        below = top - _HEADLINE + 0.04 - number * _LINE
        figure.text(left / width, below / height, line, fontsize=7, color="0.25", **place)


def _draw(figure: Figure, box: tuple[float, float], panel: Panel) -> Axes:
    """Draw a panel into the square whose lower left corner is `box`."""
    if panel.kind in ("curve", "outline"):
        ax = _axes(figure, box[0] + 0.25, box[1] + 0.2, _BOX - 0.05, _BOX - 0.2)
        ax.tick_params(labelsize=6, length=2, pad=1)
        if panel.kind == "curve":
            ax.plot(panel.values.reshape(len(panel.values), math.prod(panel.values.shape[1:])), linewidth=1)
            ax.spines[["top", "right"]].set_visible(False)
        else:
            ax.set_aspect("equal", adjustable="datalim")
            ax.invert_yaxis()
            _draw_outlines(ax, {"": panel.values})
    else:
        rows, columns = panel.values.shape[-2:]
        # thin images keep a visible width instead of their aspect
        width, height = (max(0.15, extent / max(rows, columns)) * _BOX for extent in (columns, rows))
        ax = _axes(figure, box[0], box[1] + _BOX - height, width, height)
        ax.set_axis_off()
        if panel.kind == "vectors":
            image = _draw_vectors(ax, panel.values)
        else:
            low, high = (0.0, 1.0) if panel.kind == "mask" else _limits(panel.values)
            image = _show(ax, panel.values, "gray", low, high)
        if panel.kind != "mask":
            bar = _axes(figure, box[0] + width + _BAR_GAP, box[1] + _BOX - height, _BAR, height)
            _colour_bar(figure, bar, image, panel.unit)
    ax.set_title(panel.title, fontsize=7, pad=3, loc="left", linespacing=1.1, parse_math=False)
    return ax


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _show(ax: Axes, values: NDArray[Any], colours: str, low: float, high: float) -> AxesImage:
    return ax.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="nearest", aspect="auto")


def _limits(values: NDArray[Any]) -> tuple[float, float]:
    """Percentiles, so that a few hot pixels leave the rest visible; a constant image is mid-grey."""
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    if high <= low:  # sparse or constant
        low, high = float(values.min()), float(values.max())
    # relative to the value: adding 1 to 1e20 changes nothing
    return (low, high) if high > low else (low - max(0.5, abs(low) / 2), low + max(0.5, abs(low) / 2))


def _draw_vectors(ax: Axes, vectors: NDArray[Any]) -> AxesImage:
    """Size of (c, y, x) vectors as colours, and arrows of their x and y components.

    An arrow stands for a block: at the centre of what is there and along its mean, both weighted by size, so that
    small spots of traction are not missed between the arrows.
    """
    size = np.linalg.norm(vectors, axis=0)
    largest = float(size.max())
    image = _show(ax, size, "viridis", 0.0, largest or 1.0)
    step = max(1, math.ceil(max(size.shape) / ARROWS_ACROSS))
    arrows = []
    for top in range(0, size.shape[0], step):
        for left in range(0, size.shape[1], step):
            weight = size[top : top + step, left : left + step]
            if weight.max() <= 0.04 * largest:
                continue
            weight = weight / weight.sum()
            y, x = np.indices(weight.shape)
            along = (vectors[:2, top : top + step, left : left + step] * weight).sum(axis=(1, 2))
            arrows.append((left + (x * weight).sum(), top + (y * weight).sum(), *along))
    if arrows:
        x_px, y_px, u, v = np.array(arrows).T
        scale = 1.5 * step / (float(np.hypot(u, v).max()) or 1.0)
        placed: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1.0, "pivot": "mid"}
        heads: dict[str, Any] = {"width": 0.010, "headwidth": 3.2, "headlength": 3.8, "headaxislength": 3.4}
        quiver = ax.quiver(x_px, y_px, u * scale, v * scale, color="white", minlength=0.5, **placed, **heads)
        quiver.set_path_effects([withStroke(linewidth=0.8, foreground="black")])
    return image


def _draw_outlines(ax: Axes, outlines: Mapping[str, NDArray[Any]]) -> None:
    """Closed lines through (x, y) positions in pixels, with a legend where they have names."""
    for number, (name, points) in enumerate(outlines.items()):
        if not len(points):
            continue
        closed = np.concatenate([points, points[:1]])
        colour = OUTLINE_COLOURS[number % len(OUTLINE_COLOURS)]
        (line,) = ax.plot(closed[:, 0], closed[:, 1], color=colour, linewidth=1.2, label=name or None)
        line.set_path_effects([withStroke(linewidth=2.0, foreground="black")])
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=5, loc="lower left", borderpad=0.25, handlelength=1.2, framealpha=0.7)


def _colour_bar(figure: Figure, place: Axes, image: AxesImage, unit: str) -> None:
    bar = figure.colorbar(image, cax=place, ticks=MaxNLocator(4))
    place.tick_params(labelsize=6, length=2, pad=1, width=0.5)
    place.yaxis.get_offset_text().set_fontsize(6)
    for spine in place.spines.values():
        spine.set_linewidth(0.4)
    if unit != "1":
        bar.set_label(unit, fontsize=6, labelpad=1)
