"""Figures of the paper `dl_tfm`: tractions as maps, errors of methods against noise and against wrong operators.

Wang & Lin, bioRxiv 2020.05.20.107128 and Biophys J 120:3079 (2021): fields as heat maps with vectors (figures 2, 4, 5),
errors of every method at three noises, with and without cutoff (figure 3). Errors are `test/traction_nrmse`, inside the
outline, with their standard deviation over the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lightning_modules.figures import vector_maps
from lightning_modules.figures.traction_methods import AS_MADE, Condition, Method, methods_of

DISPLACEMENT_COLOURS, TRACTION_COLOURS, ERROR_COLOURS = "viridis", "inferno", "cividis"
MAP_INCHES, BAR_INCHES, BAR_SPACE_INCHES, GAP_INCHES = 2.6, 0.09, 0.58, 0.07
TITLE_INCHES, MARGIN_INCHES = 0.28, 0.3
BRIGHTEST_PERCENT = 99.5
"""Of the pixels: a few hot ones must not leave the others dark."""
LEAST_ERROR_SHARE = 0.1
"""Of the traction's largest colour: the error's colours are not stretched further."""
SAMPLES_ON_SHEET = 12
SHEET_COLUMNS, SHEET_INCHES = 3, 1.55
MOST_METHODS = 24
NUMBERED_BARS, LEAST_SLOTS = 60, 8
ERROR_TICKS = (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.5, 2, 3, 5, 10)
NRMSE, NOISE = "error inside the outline (NRMSE)", "noise (px)"
HATCH = "/////"
ERROR_BAR = {"elinewidth": 0.9, "capsize": 1.5, "ecolor": "0.15"}
PUBLISHED_MARK: dict[str, Any] = {"color": "black", "marker": "D", "markersize": 5, "markeredgecolor": "white"}


# -- fields -----------------------------------------------------------------------------------------------------------


def traction_panel(
    pixel_size_um: np.ndarray,
    cell_mask: np.ndarray,
    displacement_px: np.ndarray,
    true_pa: np.ndarray,
    predicted_pa: np.ndarray,
    *,
    sample_ids: Sequence[str],
) -> Figure:
    """Draw displacement, true and predicted traction and the error of a few fields, one field per row.

    True and predicted traction of a field share their colours and the scale of their arrows. Where no truth is known
    (NaN), its map and that of the error are left out, of all rows when none of them has one.

    Args:
        pixel_size_um: (n,), distance between the points of each field.
        cell_mask: (n, y, x), bool.
        displacement_px: (n, 2, y, x) in pixels of the field's grid.
        true_pa: (n, 2, y, x) in Pa; NaN where unknown.
        predicted_pa: (n, 2, y, x) in Pa.
        sample_ids: n names.

    """
    known = np.isfinite(true_pa).all(axis=(1, 2, 3))
    unit, factor = _pressure_unit(np.where(known[:, None, None, None], true_pa, predicted_pa))
    place = _Places(predicted_pa.shape[-2:], len(predicted_pa), bool(known.any()))
    figure = Figure(figsize=place.figure_inches)
    for row, (mask, name) in enumerate(zip(cell_mask, sample_ids, strict=True)):
        displacement_um = displacement_px[row] * pixel_size_um[row]
        true, predicted = true_pa[row] * factor, predicted_pa[row] * factor
        largest = _brightest(vector_maps.size_of(true if known[row] else predicted), mask)
        maps = [place.map(figure, row, 0, "displacement"), place.map(figure, row, 2, "predicted traction")]
        maps[0].set_ylabel(name, fontsize=8, labelpad=3, parse_math=False)
        longest_um = _brightest(vector_maps.size_of(displacement_um))
        _vector_map(maps[0], place.bar(figure, row, 0), displacement_um, longest_um, "µm")
        vector_maps.draw_scale_bar(maps[0], mask.shape, pixel_size_um=float(pixel_size_um[row]))
        _vector_map(maps[1], place.bar(figure, row, 2), predicted, largest, unit)
        if known[row]:
            maps.append(place.map(figure, row, 1, "true traction"))
            _vector_map(maps[2], None, true, largest, unit)
            maps.append(place.map(figure, row, 3, f"error, NRMSE {_nrmse(predicted, true, mask):.3f}"))
            error = vector_maps.size_of(predicted - true)
            limit = max(_brightest(error, mask), LEAST_ERROR_SHARE * largest)
            image = vector_maps.draw_map(maps[3], error, largest=limit, colours=ERROR_COLOURS)
            bar = place.bar(figure, row, 3)
            vector_maps.draw_colour_bar(bar, image, f"|T − T₀| ({unit})", cut=_highest(error) > limit)
        for ax in maps:
            vector_maps.draw_outline(ax, mask)
    return figure


class _Places:
    """Where the maps of a panel lie: in inches, so that maps of one row have one size.

    Columns are displacement, true and predicted traction, error; the colour bar of a map stands to its right.
    """

    def __init__(self, shape_px: tuple[int, ...], rows: int, with_truth: bool) -> None:
        self.height, self.width = (MAP_INCHES * extent / max(shape_px) for extent in shape_px)
        with_bar = self.width + GAP_INCHES + BAR_SPACE_INCHES
        steps = [with_bar, self.width + GAP_INCHES, with_bar, with_bar] if with_truth else [with_bar, 0, with_bar, 0]
        self.lefts = [MARGIN_INCHES + sum(steps[:column]) for column in range(5)]
        self.figure_inches = (self.lefts[-1], max(rows, 1) * (self.height + TITLE_INCHES) + 0.05)

    def map(self, figure: Figure, row: int, column: int, title: str) -> Axes:
        """Axes of a map."""
        ax = vector_maps.map_axes(figure, self.lefts[column], self._bottom(row), self.width, self.height)
        ax.set_title(title, fontsize=9, pad=4)
        return ax

    def bar(self, figure: Figure, row: int, column: int) -> Axes:
        """Axes of the colour bar beside a map."""
        left = self.lefts[column] + self.width + GAP_INCHES
        return vector_maps.map_axes(figure, left, self._bottom(row), BAR_INCHES, self.height)

    def _bottom(self, row: int) -> float:
        return self.figure_inches[1] - (row + 1) * (self.height + TITLE_INCHES)


def contact_sheet(samples: Sequence[Any]) -> Figure:
    """Samples of a data set, at most twelve spread evenly over those given: displacement beside traction.

    Args:
        samples: objects with `sample_id` and `fields` {"displacement_um": (2, y, x), "cell_mask": (1, y, x)}, and where
            it is known "traction_pa": (2, y, x).

    """
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), SAMPLES_ON_SHEET)).round().astype(int))
    columns = max(1, min(SHEET_COLUMNS, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    cell_width, cell_height = 2 * SHEET_INCHES + 0.2, SHEET_INCHES + 0.42
    figure = Figure(figsize=(columns * cell_width + 0.1, rows * cell_height + 0.05))
    up = figure.get_figheight()
    for place, number in enumerate(chosen):
        fields = samples[number].fields
        mask = np.asarray(fields["cell_mask"])[0]
        displacement_um = np.asarray(fields["displacement_um"])
        traction_pa = np.asarray(fields.get("traction_pa", np.full_like(displacement_um, np.nan)))
        height, width = (SHEET_INCHES * extent / max(mask.shape) for extent in mask.shape)
        left = 0.1 + (place % columns) * cell_width
        bottom = up - (place // columns + 1) * cell_height + SHEET_INCHES - height
        unit, factor = _pressure_unit(traction_pa)
        for step, (field, name, colours) in enumerate(
            ((displacement_um, "µm", DISPLACEMENT_COLOURS), (traction_pa * factor, unit, TRACTION_COLOURS))
        ):
            ax = vector_maps.map_axes(figure, left + step * (width + 0.04), bottom, width, height)
            size = vector_maps.size_of(field)
            vector_maps.draw_map(ax, size, largest=_brightest(size), colours=colours)
            vector_maps.draw_outline(ax, mask)
            title = f"{samples[number].sample_id}\n" if step == 0 else ""
            largest = f"{'uT'[step]} ≤ {_highest(size):.3g} {name}" if np.isfinite(size).any() else ""
            ax.set_title(title + (largest or "traction unknown"), fontsize=6.5, pad=3, loc="left", parse_math=False)
        if place == 0:
            pixel_size_um = float(fields["pixel_size_um"])
            vector_maps.draw_scale_bar(figure.axes[0], mask.shape, pixel_size_um=pixel_size_um)
    return figure


def _vector_map(ax: Axes, bar: Axes | None, field: np.ndarray, largest: float, unit: str) -> None:
    """One vector field with its arrows; with a colour bar where there is room for one."""
    size = vector_maps.size_of(field)
    colours = DISPLACEMENT_COLOURS if unit == "µm" else TRACTION_COLOURS
    image = vector_maps.draw_map(ax, size, largest=largest, colours=colours)
    vector_maps.draw_arrows(ax, field, largest=largest)
    vector_maps.draw_reference_arrow(ax, size.shape, largest=largest, unit=unit)
    if bar is not None:
        quantity = "|u|" if unit == "µm" else "|T|"
        vector_maps.draw_colour_bar(bar, image, f"{quantity} ({unit})", cut=_highest(size) > largest)


def _pressure_unit(traction_pa: np.ndarray) -> tuple[str, float]:
    finite = traction_pa[np.isfinite(traction_pa)]
    return ("kPa", 1e-3) if finite.size and np.abs(finite).max() >= 1000 else ("Pa", 1.0)


def _brightest(size: np.ndarray, inside: np.ndarray | None = None) -> float:
    """The value that gets the brightest colour, of the pixels inside where some are; 1 for a field of zeros."""
    if inside is not None and np.any(inside):
        size = size[np.asarray(inside, dtype=bool)]
    finite = size[np.isfinite(size)]
    if not finite.size:
        return 1.0
    return float(np.percentile(finite, BRIGHTEST_PERCENT)) or float(finite.max()) or 1.0


def _highest(size: np.ndarray) -> float:
    return float(np.max(size, where=np.isfinite(size), initial=0.0))


def _nrmse(predicted: np.ndarray, true: np.ndarray, mask: np.ndarray) -> float:
    inside = np.asarray(mask, dtype=bool)
    norm = float(np.linalg.norm(true[:, inside]))
    return float(np.linalg.norm((predicted - true)[:, inside])) / norm if norm else np.nan


# -- runs -------------------------------------------------------------------------------------------------------------


def comparison(runs: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Draw the errors of methods from tests, beside what the authors published.

    Args:
        runs: mappings with `config` (nested) and `summary`, trained or recorded tests; `figures.traction_methods` says
            which of them are one method.

    Returns:
        "figure_3": a bar per method, grouped by noise, hatched with cutoff; a panel per data set.
        "error_against_noise": a line per method that was tested at several noises; a panel per data set.
        "robustness": errors of methods tested with several operators that made the displacement, or on several data
        sets; panels per noise.
        Each only where the runs have its numbers.

    """
    methods = methods_of(runs)
    conditions = sorted({condition for method in methods for condition in method.scores})
    made = [condition for condition in conditions if condition.operator == AS_MADE]
    datasets = list(dict.fromkeys(condition.dataset for condition in made))
    noises = {name: [c.noise_px for c in made if c.dataset == name] for name in datasets}
    bars = [_bars(methods, name, noises[name]) for name in datasets]
    lines = [_lines(methods, name, noises[name]) for name in datasets]
    dots = []
    for dataset, noise_px in dict.fromkeys((c.dataset, c.noise_px) for c in conditions):
        places = {c.operator: c for c in conditions if (c.dataset, c.noise_px) == (dataset, noise_px)}
        ordered = {name: places[name] for name in sorted(places, key=lambda name: name != AS_MADE)}
        dots.append(_dots(methods, f"{dataset}, noise {noise_px:g} px: operator of the data", ordered))
    for noise_px in sorted({c.noise_px for c in made}):
        places = {c.dataset: c for c in made if c.noise_px == noise_px}
        dots.append(_dots(methods, f"noise {noise_px:g} px: data set", places))
    figures = {
        "figure_3": (bars, (10.5, 3.9)),
        "error_against_noise": (lines, (8.2, 4.2)),
        "robustness": (dots, (9.5, 3.6)),
    }
    drawn = {name: ([panel for panel in panels if panel.methods], size) for name, (panels, size) in figures.items()}
    return {name: _stacked(panels, size, methods) for name, (panels, size) in drawn.items() if panels}


class _Panel(NamedTuple):
    """One axes of a figure."""

    title: str
    methods: list[Method]
    draw: Callable[[Axes, list[Method]], None]
    marks: list[Artist]
    """What the legend explains after the methods' colours."""


def _bars(methods: Sequence[Method], dataset: str, noises_px: Sequence[float]) -> _Panel:
    """Figure 3: groups of bars, one per noise; every method keeps its place in all groups."""

    def draw(ax: Axes, shown: list[Method]) -> None:
        width = 0.86 / max(len(shown), LEAST_SLOTS)
        with_numbers = len(shown) * len(noises_px) <= NUMBERED_BARS
        for group, noise_px in enumerate(noises_px):
            for place, method in enumerate(shown):
                x = group + (place - (len(shown) - 1) / 2) * width
                for score in method.scores.get(Condition(dataset, noise_px, AS_MADE), [])[:1]:
                    bar: dict[str, Any] = {"color": method.colour, "linewidth": 0, "yerr": score.sd or None}
                    if method.cutoff:
                        bar |= {"hatch": HATCH, "edgecolor": "white"}
                    ax.bar(x, score.mean, 0.92 * width, error_kw=ERROR_BAR, **bar)
                    top = max([score.mean + score.sd, *_mark_published(ax, method, dataset, noise_px, x)])
                    if with_numbers:
                        above: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
                        text = f"{score.mean:.3f}" if score.mean >= 0.001 else f"{score.mean:.0e}"
                        ax.annotate(text, (x, top), va="bottom", rotation=90, fontsize=6, color="0.3", **above)
        ax.set_xticks(range(len(noises_px)), [f"{noise_px:g}" for noise_px in noises_px])
        ax.set(xlabel=NOISE, ylabel=NRMSE, xlim=(-0.5, len(noises_px) - 0.5))
        ax.margins(y=0.14)
        ax.set_ylim(bottom=0)

    tested = _tested(methods, [Condition(dataset, noise_px, AS_MADE) for noise_px in noises_px])
    cutoff = Patch(facecolor="0.6", edgecolor="white", hatch=HATCH, linewidth=0, label="with cutoff")
    marks = [cutoff] if any(method.cutoff for method in tested) else []
    return _Panel(f"data set {dataset}", tested, draw, [*marks, *_published_marks(tested, dataset, noises_px)])


def _lines(methods: Sequence[Method], dataset: str, noises_px: Sequence[float]) -> _Panel:
    """Error against noise, dashed with cutoff."""

    def draw(ax: Axes, shown: list[Method]) -> None:
        for method in shown:
            known = {
                noise_px: scores[0]
                for noise_px in noises_px
                if (scores := method.scores.get(Condition(dataset, noise_px, AS_MADE)))
            }
            ax.errorbar(
                list(known),
                [score.mean for score in known.values()],
                yerr=[score.sd for score in known.values()],
                color=method.colour,
                linestyle="--" if method.cutoff else "-",
                marker="s" if method.cutoff else "o",
                markersize=4,
                linewidth=1.4,
                elinewidth=0.8,
                capsize=2,
            )
            for noise_px in sorted(noise_px for name, noise_px in method.published if name == dataset):
                _mark_published(ax, method, dataset, noise_px, noise_px)
        ax.set(xlabel=NOISE, ylabel=NRMSE)
        _scale_errors(ax)

    tested = _tested(methods, [Condition(dataset, noise_px, AS_MADE) for noise_px in noises_px], least=2)
    cutoff = Line2D([], [], color="0.4", linestyle="--", marker="s", markersize=4, label="with cutoff")
    marks = [cutoff] if any(method.cutoff for method in tested) else []
    return _Panel(f"data set {dataset}", tested, draw, [*marks, *_published_marks(tested, dataset, None)])


def _dots(methods: Sequence[Method], title: str, places: Mapping[str, Condition]) -> _Panel:
    """Errors of the methods that were tested at several places; open where a method assumes another operator."""

    def draw(ax: Axes, shown: list[Method]) -> None:
        for place, condition in enumerate(places.values()):
            for number, method in enumerate(shown):
                x = place + 0.8 * ((number + 0.5) / len(shown) - 0.5)
                for score in method.scores.get(condition, []):
                    at = x if score.matched else x + 0.25 / len(shown)
                    dot: dict[str, Any] = {"color": method.colour, "markersize": 5, "capsize": 2, "elinewidth": 0.8}
                    dot |= {"marker": "s" if method.cutoff else "o", "linestyle": ""}
                    dot["markerfacecolor"] = method.colour if score.matched else "white"
                    ax.errorbar(at, score.mean, yerr=score.sd or None, **dot)
        for place in range(1, len(places)):
            ax.axvline(place - 0.5, color="0.88", linewidth=0.8, zorder=0)
        ax.set_xticks(range(len(places)), [name.replace(", ", "\n") for name in places])
        ax.set(ylabel=NRMSE, xlim=(-0.5, len(places) - 0.5))
        _scale_errors(ax)

    tested = _tested(methods, list(places.values()), least=2)
    style: dict[str, Any] = {"color": "0.4", "linestyle": "", "markersize": 5}
    marks: list[Artist] = []
    if any(method.cutoff for method in tested):
        marks.append(Line2D([], [], marker="s", label="with cutoff", **style))
    found = [score for method in tested for condition in places.values() for score in method.scores.get(condition, [])]
    if not all(score.matched for score in found):
        marks.append(Line2D([], [], marker="o", markerfacecolor="white", label="assumes another operator", **style))
    return _Panel(title, tested, draw, marks)


def _tested(methods: Sequence[Method], conditions: Sequence[Condition], *, least: int = 1) -> list[Method]:
    """The methods that were tested under at least so many of these conditions; of very many those that did best."""
    tested = [method for method in methods if sum(condition in method.scores for condition in conditions) >= least]
    errors = [np.mean([m.scores[c][0].mean for c in conditions if c in m.scores]) for m in tested]
    best = sorted(range(len(tested)), key=lambda number: errors[number])[:MOST_METHODS]
    return [tested[number] for number in sorted(best)]


def _mark_published(ax: Axes, method: Method, dataset: str, noise_px: float, x: float) -> list[float]:
    """Mark what was published for a method; returns how high the marks reach."""
    entries = method.published.get((dataset, noise_px), [])
    for entry in entries:
        ax.errorbar(x, entry.value, yerr=entry.sd or None, capsize=2, zorder=5, **PUBLISHED_MARK)
    return [entry.value + entry.sd for entry in entries]


def _published_marks(methods: Sequence[Method], dataset: str, noises_px: Sequence[float] | None) -> list[Artist]:
    """The legend of what `_mark_published` marks, at these noises or at any."""
    tables = {
        entry.table
        for method in methods
        for (name, noise_px), entries in method.published.items()
        if name == dataset and (noises_px is None or noise_px in noises_px)
        for entry in entries
    }
    return [Line2D([], [], linestyle="", label=f"published: {table}", **PUBLISHED_MARK) for table in sorted(tables)]


def _scale_errors(ax: Axes) -> None:
    """An axis that spreads small errors without losing those of zero: its heights are their square roots."""
    ax.set_yscale("function", functions=(lambda error: np.sqrt(np.maximum(error, 0)), np.square))
    top = 1.05 * ax.dataLim.ymax
    ax.set_ylim(0, top)
    ticks = [tick for tick in ERROR_TICKS if tick <= top]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def _stacked(panels: Sequence[_Panel], size_inches: tuple[float, float], methods: Sequence[Method]) -> Figure:
    """Panels below each other with one legend."""
    width, height = size_inches
    figure = Figure(figsize=(width, height * len(panels)), layout="constrained")
    for number, panel in enumerate(panels):
        ax = figure.add_subplot(len(panels), 1, number + 1)
        panel.draw(ax, panel.methods)
        ax.set_title(panel.title, fontsize=10, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    shown = {method.label for panel in panels for method in panel.methods}
    colours = {method.label: method.colour for method in methods if method.label in shown}
    marks = {str(mark.get_label()): mark for panel in panels for mark in panel.marks}
    legend = [*(Patch(color=colour, label=label) for label, colour in colours.items()), *marks.values()]
    title = f"the best {MOST_METHODS}" if any(len(panel.methods) == MOST_METHODS for panel in panels) else None
    figure.legend(handles=legend, title=title, loc="outside right upper", frameon=False, fontsize=8)
    return figure
