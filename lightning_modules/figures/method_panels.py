"""Panels that compare methods of traction force microscopy: bars, lines against noise, dots for each condition.

A panel is drawn of the methods that have scores for it; `stacked` puts panels below each other with one legend.
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

from lightning_modules.figures.traction_methods import AS_MADE, Condition, Method, Published, Score

MOST_METHODS = 24
NUMBERED_BARS, LEAST_SLOTS = 60, 8
BARS_INCHES, LINES_INCHES = 3.9, 4.2
AROUND_ROWS_INCHES, ROW_INCHES, DOT_INCHES = 1.1, 0.18, 0.085
"""Height of a panel of dots: around its rows, of each row, and of each method in one."""
ERROR_TICKS = (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.5, 2, 3, 5, 10)
NRMSE, NOISE = "error inside the outline (NRMSE)", "noise (px)"
HATCH = "/////"
ERROR_BAR = {"elinewidth": 0.9, "capsize": 1.5, "ecolor": "0.15"}
PUBLISHED_MARK: dict[str, Any] = {"color": "black", "marker": "D", "markersize": 5, "markeredgecolor": "white"}
OTHERS_MARK: dict[str, Any] = {**PUBLISHED_MARK, "color": "0.45"}
OTHERS_X = 0.47
"""Where the numbers of methods without a bar stand, left of the middle of a group."""


class Panel(NamedTuple):
    """One axes of a figure."""

    title: str
    methods: list[Method]
    draw: Callable[[Axes, list[Method]], None]
    marks: list[Artist]
    """What the legend explains after the methods' colours."""
    height_inches: float


def bars(
    methods: Sequence[Method],
    dataset: str,
    noises_px: Sequence[float],
    others: Mapping[float, Sequence[Published]],
) -> Panel:
    """Figure 3: groups of bars, one per noise; every method keeps its place in all groups.

    Args:
        methods: all that there are.
        dataset: the panel's.
        noises_px: one group each.
        others: by noise, what was published for methods that have no bar; it stands left of the bars.

    """

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
            for entry in others.get(noise_px, ()):
                ax.errorbar(group - OTHERS_X, entry.value, yerr=entry.sd or None, capsize=2, zorder=5, **OTHERS_MARK)
        ax.set_xticks(range(len(noises_px)), [f"{noise_px:g}" for noise_px in noises_px])
        ax.set(xlabel=NOISE, ylabel=NRMSE, xlim=(-0.5, len(noises_px) - 0.5))
        ax.margins(y=0.14)
        ax.set_ylim(bottom=0)

    tested = _tested(methods, [Condition(dataset, noise_px, AS_MADE) for noise_px in noises_px])
    cutoff = Patch(facecolor="0.6", edgecolor="white", hatch=HATCH, linewidth=0, label="with cutoff")
    marks: list[Artist] = [cutoff] if any(method.cutoff for method in tested) else []
    marks += _published_marks(tested, dataset, noises_px)
    known = {f"published: {entry.table}, {entry.of}": None for n in noises_px for entry in others.get(n, ())}
    marks += [Line2D([], [], linestyle="", label=label, **OTHERS_MARK) for label in known]
    return Panel(f"data set {dataset}", tested, draw, marks, BARS_INCHES)


def lines(methods: Sequence[Method], dataset: str, noises_px: Sequence[float]) -> Panel:
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
        _scale_errors(ax, "y")

    tested = _tested(methods, [Condition(dataset, noise_px, AS_MADE) for noise_px in noises_px], least=2)
    cutoff = Line2D([], [], color="0.4", linestyle="--", marker="s", markersize=4, label="with cutoff")
    marks = [cutoff] if any(method.cutoff for method in tested) else []
    marks = [*marks, *_published_marks(tested, dataset, None)]
    return Panel(f"data set {dataset}", tested, draw, marks, LINES_INCHES)


def dots(methods: Sequence[Method], title: str, places: Mapping[str, Condition]) -> Panel:
    """Errors of the methods that were tested at several places, a row each; open where one assumes another operator."""

    def draw(ax: Axes, shown: list[Method]) -> None:
        for place, condition in enumerate(places.values()):
            for number, method in enumerate(shown):
                y = place + 0.8 * ((number + 0.5) / len(shown) - 0.5)
                found = method.scores.get(condition, [])
                named = sum(not score.matched for score in found) > 1
                for score in found:
                    dot: dict[str, Any] = {"color": method.colour, "markersize": 5, "capsize": 2, "elinewidth": 0.8}
                    dot |= {"marker": "s" if method.cutoff else "o", "linestyle": ""}
                    dot["markerfacecolor"] = method.colour if score.matched else "white"
                    ax.errorbar(score.mean, y, xerr=score.sd or None, **dot)
                    if named and not score.matched:
                        _say_what_was_told(ax, score, y)
        for place in range(1, len(places)):
            ax.axhline(place - 0.5, color="0.88", linewidth=0.8, zorder=0)
        ax.set_yticks(range(len(places)), list(places))
        ax.set(xlabel=NRMSE, ylim=(len(places) - 0.5, -0.5))
        _scale_errors(ax, "x")

    tested = _tested(methods, list(places.values()), least=2)
    style: dict[str, Any] = {"color": "0.4", "linestyle": "", "markersize": 5}
    marks: list[Artist] = []
    if any(method.cutoff for method in tested):
        marks.append(Line2D([], [], marker="s", label="with cutoff", **style))
    found = [score for method in tested for condition in places.values() for score in method.scores.get(condition, [])]
    if not all(score.matched for score in found):
        marks.append(Line2D([], [], marker="o", markerfacecolor="white", label="assumes another operator", **style))
    height = AROUND_ROWS_INCHES + len(places) * (ROW_INCHES + DOT_INCHES * len(tested))
    return Panel(title, tested, draw, marks, height)


def _say_what_was_told(ax: Axes, score: Score, y: float) -> None:
    beside: dict[str, Any] = {"xytext": (5, 1), "textcoords": "offset points", "va": "bottom"}
    ax.annotate(score.told, (score.mean, y), fontsize=5.5, color="0.3", **beside)


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


def _scale_errors(ax: Axes, axis: str) -> None:
    """Give an axis a scale that spreads small errors without losing those of zero: lengths are their square roots."""
    functions = (lambda error: np.sqrt(np.maximum(error, 0)), np.square)
    top = 1.05 * (ax.dataLim.ymax if axis == "y" else ax.dataLim.xmax)
    ticks = [tick for tick in ERROR_TICKS if tick <= top]
    labels = [f"{tick:g}" for tick in ticks]
    if axis == "y":
        ax.set_yscale("function", functions=functions)
        ax.set_ylim(0, top)
        ax.set_yticks(ticks, labels)
    else:
        ax.set_xscale("function", functions=functions)
        ax.set_xlim(0, top)
        ax.set_xticks(ticks, labels)


def stacked(panels: Sequence[Panel], width_inches: float, methods: Sequence[Method]) -> Figure:
    """Draw panels below each other with one legend."""
    heights = [panel.height_inches for panel in panels]
    figure = Figure(figsize=(width_inches, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    for number, panel in enumerate(panels):
        ax = figure.add_subplot(grid[number, 0])
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
