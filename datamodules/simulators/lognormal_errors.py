"""Expected absolute error of a prediction under a log-normal truth, in closed form.

The truth of a pixel is X = max(1, L) with ln L normal of mean ln m and standard deviation s, as targets are that are
clipped at 1. With A(a) = E[L; L >= a] = m exp(s^2 / 2) Phi((ln m + s^2 - ln a) / s) and P(a) = Phi((ln m - ln a) / s)
the error of a prediction p >= 1 above a threshold c >= 1 is, for q = max(p, c),

    E[|X - p|; X >= c] = A(q) - p P(q) + p (P(c) - P(q)) - (A(c) - A(q)),

and below c = 1 the clipped pixels add (p - 1) (1 - P(1)). The error above c is least at X's
median there, where P(p) = P(c) / 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Floats = NDArray[np.floating]
SMALLEST = 1e-12
"""Medians are taken to be at least this: far below 1 all of them are the same."""


def expected_absolute_error(median: Floats, log_sigma: Floats, prediction: Floats) -> Floats:
    """E|X - p| of every pixel, in the unit of the medians; arguments of one shape, `prediction` at least 1."""
    error, probability = error_above(median, log_sigma, prediction, threshold=1.0)
    return error + (prediction - 1.0) * (1.0 - probability)


def error_above(median: Floats, log_sigma: Floats, prediction: Floats, *, threshold: float) -> tuple[Floats, Floats]:
    """E[|X - p|; L >= threshold] and P(L >= threshold) of every pixel.

    Args:
        median: m, not negative.
        log_sigma: s, positive.
        prediction: p, at least 1.
        threshold: c, at least 1.

    Raises:
        ValueError: a sigma is not positive, or the threshold or a prediction lies below 1.
    """
    if threshold < 1:
        raise ValueError(f"threshold must be at least 1, got {threshold}")
    if not np.all(log_sigma > 0):
        raise ValueError("log_sigma must be positive")
    if not np.all(prediction >= 1):
        raise ValueError("prediction must be at least 1, as the truth is")
    log_median = np.log(np.maximum(median, SMALLEST))
    split = np.maximum(prediction, threshold)
    mean = np.exp(log_median + 0.5 * log_sigma**2)

    def share(above: Floats | float) -> Floats:
        return ndtr((log_median - np.log(above)) / log_sigma)

    def amount(above: Floats | float) -> Floats:
        return mean * ndtr((log_median + log_sigma**2 - np.log(above)) / log_sigma)

    probability = share(threshold)
    over = amount(split) - prediction * share(split)
    under = prediction * (probability - share(split)) - (amount(threshold) - amount(split))
    return over + under, probability


def median_above(median: Floats, log_sigma: Floats, *, threshold: float) -> Floats:
    """Median of X where L >= threshold, of every pixel: what errs least there; arguments as in `error_above`.

    >>> median_above(np.array([0.0, 5.0, 500.0]), np.full(3, 0.5), threshold=5.0).round(1).tolist()
    [5.0, 7.0, 500.0]
    """
    log_median = np.log(np.maximum(median, SMALLEST))
    half = np.maximum(0.5 * ndtr((log_median - np.log(threshold)) / log_sigma), np.finfo(np.float64).tiny)
    return np.exp(np.maximum(log_median - log_sigma * ndtri(half), np.log(threshold)))
