"""Whether a predicted uncertainty is right: calibration (Kuleshov et al. 2018) and sparsification (Ilg et al. 2018)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

PREDICTED_COLOUR, BEST_COLOUR = "#1f5a99", "#35a29f"


def calibration_plot(expected: np.ndarray, observed: np.ndarray) -> Figure:
    """Draw how often the truth lies below the predicted quantile of each level, beside the diagonal; (levels,) each."""
    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="right")
    ax.plot(expected, observed, color=PREDICTED_COLOUR, marker="o", markersize=4, label="predicted")
    ax.fill_between(expected, expected, observed, color=PREDICTED_COLOUR, alpha=0.15, linewidth=0)
    error = float(np.abs(observed - expected).mean())
    ax.set(xlabel="probability below, predicted", ylabel="share below, observed", title=f"mean distance {error:.3f}")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def sparsification_plot(share: np.ndarray, by_uncertainty: np.ndarray, by_error: np.ndarray) -> Figure:
    """Draw the error of what is left when the most uncertain pixels are taken away, beside the best possible order.

    Args:
        share: (points,) taken away, in [0, 1).
        by_uncertainty: (points,), error over that of all pixels.
        by_error: the same when the largest errors are taken away first.

    """
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.axhline(1, color="0.6", linewidth=1, linestyle="--", label="in random order")
    ax.plot(share, by_uncertainty, color=PREDICTED_COLOUR, label="by predicted deviation")
    ax.plot(share, by_error, color=BEST_COLOUR, label="by the error itself")
    ax.fill_between(share, by_error, by_uncertainty, color=PREDICTED_COLOUR, alpha=0.12, linewidth=0)
    area = float(np.trapezoid(by_uncertainty - by_error, share))
    ax.set(xlabel="share of the pixels taken away", ylabel="error of the rest / of all", title=f"area {area:.3f}")
    ax.set_xlim(0, 1)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return figure
