"""A predicted traction magnitude over time: figures 3 and 4 of Pielawski et al., ISBI 2020, arXiv 1910.07380."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BANDS = ((0, 6, "#d9e7f5", "95 %"), (1, 5, "#abc9e8", "90 %"), (2, 4, "#6aa0d4", "68 %"))
"""Rows of the band levels (.025, .05, .16, .5, .84, .95, .975) that a band lies between, its colour and name."""
MEDIAN_ROW = 3
PREDICTED_COLOUR, TRUE_COLOUR, ENTROPY_COLOUR = "#1f5a99", "black", "#b5651d"
LINE_COLOURS = ("#cb3e38", "#2159a6", "#35a29f", "#f0a500", "#8c6bb1", "#5b5b5b")


def pixel_over_time(
    bands_pa: np.ndarray,
    mean_pa: np.ndarray,
    entropy_bits: np.ndarray,
    true_pa: np.ndarray,
    *,
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
    """Draw the mean absolute error of every frame, a line per cell and statistic (figure 4).

    Args:
        errors_pa: by the name of the statistic, (frames,); NaN where unknown.
        time_s: (frames,); where it is not known the frames are numbered.
        groups: cell of every frame.
        name: of the error.

    """
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    ax = figure.subplots()
    with_time = bool(np.isfinite(time_s).all())
    cells = list(dict.fromkeys(groups))
    for number, cell in enumerate(cells):
        own = np.array([group == cell for group in groups])
        x = time_s[own] if with_time else np.arange(own.sum(), dtype=float)
        order = np.argsort(x, kind="stable")
        for style, (statistic, error) in zip(("-", ":", "--"), errors_pa.items(), strict=False):
            colour = LINE_COLOURS[number % len(LINE_COLOURS)]
            values = error[own][order]
            known = values[np.isfinite(values)]
            if known.size:
                label = f"{cell}, {statistic}: {known.mean():.3g} ± {known.std():.2g} Pa"
                drawn = {"color": colour, "linestyle": style, "marker": "o", "markersize": 3}
                ax.plot(x[order], values, label=label.replace("$", r"\$"), **drawn)
    ax.set(xlabel="time (s)" if with_time else "frame", ylabel=f"{name} (Pa)")
    ax.set_ylim(bottom=0)
    if ax.lines:
        ax.legend(frameon=False, fontsize=7.5)
    _plain(ax)
    return figure


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
