"""A predicted traction magnitude over time: figures 3 and 4 of Pielawski et al., ISBI 2020, arXiv 1910.07380."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BANDS = ((0, 6, "#d9e7f5", "95 %"), (1, 5, "#abc9e8", "90 %"), (2, 4, "#6aa0d4", "68 %"))
"""Rows of the band levels (.025, .05, .16, .5, .84, .95, .975) that a band lies between, its colour and name."""
MEDIAN_ROW = 3
PREDICTED_COLOUR, TRUE_COLOUR, ENTROPY_COLOUR = "#1f5a99", "black", "#b5651d"
LINE_COLOURS = ("#cb3e38", "#2159a6", "#35a29f")
FEW_CELLS = 3
"""More than so many have no lines of their own."""


def pixel_over_time(
    *,
    bands_pa: np.ndarray,
    mean_pa: np.ndarray,
    entropy_bits: np.ndarray,
    true_pa: np.ndarray,
    time_s: np.ndarray,
    pixel: tuple[int, int],
) -> Figure:
    """Draw one pixel's traction over a movie, its bands of confidence and its entropy (figure 3).

    Args:
        bands_pa: (7, frames), quantiles at .025, .05, .16, .5, .84, .95 and .975.
        mean_pa: (frames,).
        entropy_bits: (frames,).
        true_pa: (frames,); NaN where unknown.
        time_s: (frames,).
        pixel: row and column.

    """
    order = np.argsort(time_s, kind="stable")
    time, bands = time_s[order], bands_pa[:, order]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    force, entropy = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for low, high, colour, name in BANDS:
        force.fill_between(time, bands[low], bands[high], color=colour, linewidth=0, label=name)
    force.plot(time, mean_pa[order], color=PREDICTED_COLOUR, linewidth=1.4, label="mean")
    force.plot(time, bands[MEDIAN_ROW], color=PREDICTED_COLOUR, linewidth=1, linestyle=":", label="median")
    if np.isfinite(true_pa).any():
        force.plot(time, true_pa[order], color=TRUE_COLOUR, linewidth=1.2, label="true")
    force.set(ylabel="traction (Pa)", title=f"pixel in row {pixel[0]}, column {pixel[1]}")
    force.set_ylim(bottom=0)
    force.legend(frameon=False, fontsize=8, ncols=6)
    entropy.plot(time, entropy_bits[order], color=ENTROPY_COLOUR, linewidth=1.2)
    entropy.set(xlabel="time (s)", ylabel="entropy (bit)")
    for ax in (force, entropy):
        _plain(ax)
    return figure


def error_over_time(
    errors_pa: Mapping[str, np.ndarray], *, time_s: np.ndarray, groups: Sequence[str], name: str
) -> Figure:
    """Draw the mean absolute error of every frame, and its mean and deviation over the cells (figure 4).

    Up to three cells have a line each per statistic; of more, thin lines lie behind their mean and deviation.

    Args:
        errors_pa: by the name of the statistic, (frames,); NaN where unknown.
        time_s: (frames,); where it is not known the frames of a cell are numbered.
        groups: cell of every frame.
        name: of the error.

    """
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    ax = figure.subplots()
    with_time = bool(np.isfinite(time_s).all())
    cells, cell = np.unique(np.asarray(groups), return_inverse=True)
    x = np.array(time_s, dtype=float)
    if not with_time:
        for own in range(len(cells)):
            x[cell == own] = np.arange((cell == own).sum())
    for number, (style, (statistic, error)) in enumerate(zip(("-", ":", "--"), errors_pa.items(), strict=False)):
        if np.isfinite(error).any():
            if len(cells) > FEW_CELLS:
                _draw_mean(ax, statistic, error, x, cell, colour=LINE_COLOURS[1 - number % 2])
            else:
                for own, label in enumerate(cells):
                    drawn = {"color": LINE_COLOURS[own], "linestyle": style, "marker": "o", "markersize": 3}
                    _draw_line(ax, f"{label}, {statistic}", error[cell == own], x[cell == own], drawn)
    ax.set(xlabel="time (s)" if with_time else "frame", ylabel=f"{name} (Pa)")
    ax.set_ylim(bottom=0)
    if ax.lines:
        ax.legend(frameon=False, fontsize=7.5)
    _plain(ax)
    return figure


def _draw_line(ax: Axes, label: str, error: np.ndarray, x: np.ndarray, drawn: Mapping[str, Any]) -> None:
    if np.isfinite(error).any():
        order = np.argsort(x, kind="stable")
        label = f"{label}: {np.nanmean(error):.3g} ± {np.nanstd(error):.2g} Pa"
        ax.plot(x[order], error[order], label=label.replace("$", r"\$"), **drawn)


def _draw_mean(ax: Axes, statistic: str, error: np.ndarray, x: np.ndarray, cell: np.ndarray, *, colour: str) -> None:
    """Every cell's line, thin, and at every time that at least two of them share their mean and deviation."""
    known = np.isfinite(error)
    for own in np.unique(cell[known]):
        order = np.flatnonzero(known & (cell == own))
        order = order[np.argsort(x[order], kind="stable")]
        ax.plot(x[order], error[order], color=colour, linewidth=0.6, alpha=0.35)
    times, at, counts = np.unique(x[known], return_inverse=True, return_counts=True)
    mean = np.bincount(at, error[known]) / counts
    sd = np.sqrt(np.maximum(np.bincount(at, error[known] ** 2) / counts - mean**2, 0))
    shared = counts > 1
    label = f"{len(np.unique(cell[known]))} cells, {statistic}: {error[known].mean():.3g} ± {error[known].std():.2g} Pa"
    ax.plot(times[shared], mean[shared], color=colour, linewidth=1.6, label=label)
    ax.fill_between(times[shared], (mean - sd)[shared], (mean + sd)[shared], color=colour, alpha=0.2, linewidth=0)


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
