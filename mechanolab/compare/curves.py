"""Figures that any comparison has: learning curves, and the score against each setting that differs.

Every figure is drawn for a light and for a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mechanolab.compare.table import Comparison, Row, is_fold_key, without_folds
from mechanolab.sweeps.progress import describe, short_names

POINTS = 400
"""Points of a curve; longer ones are averaged in bins."""
PANELS = 6
"""Settings that are drawn at most."""


@dataclass(frozen=True)
class Theme:
    """Colours of a page."""

    ink: str
    muted: str
    grid: str
    other: str
    series: tuple[str, ...]


LIGHT = Theme(
    ink="#1f2328", muted="#59636e", grid="#e4e7eb", other="#c3c9d0",
    series=("#2a78d6", "#eb6834", "#1baf7a", "#c98500", "#d55181", "#4a3aa7", "#008300", "#e34948"),
)  # fmt: skip
DARK = Theme(
    ink="#e6e9ed", muted="#9aa4af", grid="#30363d", other="#4a525c",
    series=("#4f9bf0", "#f0834f", "#2fc48d", "#dba11c", "#e87ba4", "#9d92f2", "#3fae3f", "#f07c7b"),
)  # fmt: skip


def learning_curves(comparison: Comparison, theme: Theme) -> Figure | None:
    """The monitored metric and the losses of every run over the training batches seen; None without any.

    Runs that differ only in their fold share a colour; the best eight have one, the others are grey. Of runs that are
    ranked by a test metric, which has one value a run, the same quantity of the validation set is drawn.
    """
    logged = {key for run in comparison.runs for line in run.history for key in line}
    watched = comparison.metric.replace("test/", "val/", 1)
    metrics = list(dict.fromkeys(m for m in (watched, "train/loss", "val/loss") if m in logged))
    if not metrics:
        return None
    figure = Figure(figsize=(4.6 * len(metrics), 3.6), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    colours, names = _colours(comparison, theme)
    width = 1.6 if len(comparison.rows) <= len(theme.series) else 1.0
    shown: dict[str, Any] = {}
    for axes, metric in zip(panels, metrics, strict=True):
        values = []
        for row in reversed(comparison.rows):  # the best on top
            x, y = _curve(row, metric)
            if len(x):
                colour, label = colours[row.name], names[row.name]
                marker = "o" if len(x) == 1 else ""
                (line,) = axes.plot(x, y, color=colour, linewidth=width, marker=marker, markersize=4, label=label)
                shown.setdefault(label, line)
                values += [v for v in y if math.isfinite(v)]
        _dress(axes, theme)
        axes.set_xlabel("training batches", color=theme.muted)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_title(metric, loc="left", fontsize=10, color=theme.ink)
        if metric.endswith("loss") and values and min(values) > 0 and max(values) / min(values) > 100:
            axes.set_yscale("log")
        if metric == watched:
            _best_possible(axes, comparison, theme)
    order = [label for label in dict.fromkeys(names[row.name] for row in comparison.rows) if label in shown]
    legend = figure.legend(
        [shown[label] for label in order], order, loc="outside lower left", ncols=min(3, len(order)),
        frameon=False, fontsize=8, labelcolor=theme.ink,
    )  # fmt: skip
    legend.set_in_layout(True)
    return figure


def settings(comparison: Comparison, theme: Theme) -> list[tuple[str, Figure]]:
    """The best score against each setting that differs, for at most six settings: (short name, figure)."""
    rows = [row for row in comparison.rows if "best" in row.scores]
    paths = [p for p in comparison.parameters if not is_fold_key(p) and not p.endswith("class_path")]
    figures = []
    for path in paths:
        values = [row.parameters[path] for row in rows]
        if len(rows) >= 4 and len({str(value) for value in values}) >= 2:
            figures.append((short_names(paths)[path], _setting(comparison, rows, path, values, theme)))
    return figures[:PANELS]


def _setting(comparison: Comparison, rows: Sequence[Row], path: str, values: Sequence[Any], theme: Theme) -> Figure:
    scores = [row.scores["best"].value for row in rows]
    label = f"best {comparison.metric}"
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    if numeric:
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.scatter(values, scores, s=28, color=theme.series[0], alpha=0.8, linewidths=0)
        if min(values) > 0 and max(values) / min(values) >= 50:
            axes.set_xscale("log")
        axes.set_ylabel(label, color=theme.muted)
        axes.set_xlabel(path, color=theme.muted)
    else:
        texts = list(dict.fromkeys(str(value) for value in values))[::-1]  # in the order of the ranking, best on top
        figure = Figure(figsize=(6.4, 1.1 + 0.32 * len(texts)), layout="constrained")
        axes = figure.subplots()
        places = [texts.index(str(value)) for value in values]
        axes.scatter(scores, places, s=28, color=theme.series[0], alpha=0.8, linewidths=0)
        axes.set_yticks(range(len(texts)), [text if len(text) < 48 else text[:45] + "..." for text in texts])
        axes.set_xlabel(label, color=theme.muted)
        axes.set_title(path, loc="left", fontsize=10, color=theme.ink)
        axes.margins(y=0.5 / len(texts))
    _dress(axes, theme)
    return figure


def _colours(comparison: Comparison, theme: Theme) -> tuple[dict[str, str], dict[str, str]]:
    """Run id -> colour, run id -> what the legend says; one of each a group of runs that differ only in their fold."""
    colours: dict[str, str] = {}
    names: dict[str, str] = {}
    groups: dict[str, str] = {}
    for row, fixed in zip(comparison.rows, without_folds(comparison.rows), strict=True):
        words = str(*fixed.values()) if len(fixed) == 1 else describe(fixed)
        if not comparison.folds or not fixed:
            words = f"{row.name} {words}".strip() if len(words) < 60 else row.name
        name = words
        if name not in groups:
            free = len(groups) < len(theme.series)
            groups[name] = theme.series[len(groups)] if free else theme.other
        colours[row.name] = groups[name]
        names[row.name] = name if groups[name] != theme.other else "others"
    return colours, names


def _curve(row: Row, metric: str) -> tuple[np.ndarray, np.ndarray]:
    history = row.run.history if row.run else []
    points = [(line["step"], line[metric]) for line in history if isinstance(line.get(metric), (int, float))]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    if len(x) > POINTS:
        bins = np.array_split(np.arange(len(x)), POINTS)
        x, y = np.array([x[b].mean() for b in bins]), np.array([y[b].mean() for b in bins])
    return x, y


def _best_possible(axes: Axes, comparison: Comparison, theme: Theme) -> None:
    """A dashed line at the best score that any method could reach, when all runs share it."""
    known = [run.irreducible_error for run in comparison.runs if run.irreducible_error]
    values = {
        entry["value"]
        for entry in known
        if str(entry["metric"]).split("/")[-1] == axes.get_title("left").split("/")[-1]
    }
    if len(values) == 1:
        value = values.pop()
        axes.axhline(value, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"best possible {value:.4g}", (1, value), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", ha="right", fontsize=8, color=theme.muted,
        )  # fmt: skip


def _dress(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor("none")
    axes.figure.patch.set_alpha(0)
    axes.grid(True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelsize=8, length=0, which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(9)
