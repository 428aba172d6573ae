"""Maps of a predicted traction magnitude and of every part of its uncertainty, and the numbers that figures show.

Pielawski et al., ISBI 2020, arXiv 1910.07380: the panels of figure 2, the time series of a pixel (figure 3), errors
over frames (figure 4); calibration and sparsification are ours. Formulas in `metrics.lognormal`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_modules.metrics import lognormal
from lightning_modules.metrics.lognormal_scores import ForceDistribution, foreground, frame_errors

BAND_LEVELS = (0.025, 0.05, 0.16, 0.5, 0.84, 0.95, 0.975)
"""Ends of figure 3's three bands, and the median."""
CURVE_POINTS = 200


class ForceMaps(NamedTuple):
    """Maps (batch, y, x) in Pa but for coefficient and entropy; None where the prediction is no distribution."""

    median_pa: Tensor
    mean_pa: Tensor
    aleatoric_sd_pa: Tensor | None
    epistemic_sd_pa: Tensor | None
    coefficient_of_variation: Tensor | None
    entropy_bits: Tensor | None
    lower_pa: Tensor | None
    upper_pa: Tensor | None


def force_maps(predicted: ForceDistribution, *, interval: bool = True) -> ForceMaps:
    """All maps of a batch; `interval` says whether the ends of the 95 % interval are among them."""
    median_pa, mean_pa = predicted.median_pa(), predicted.mean_pa()
    if predicted.sigma_squared is None:
        return ForceMaps(median_pa, mean_pa, *[None] * 6)
    pair = (predicted.mu, predicted.sigma_squared)
    return ForceMaps(
        median_pa,
        mean_pa,
        lognormal.aleatoric_variance(*pair).sqrt(),
        lognormal.epistemic_variance(*pair).sqrt(),
        lognormal.coefficient_of_variation(*pair),
        lognormal.entropy_bits(*pair),
        *(lognormal.interval(*pair, probability=0.95) if interval else (None, None)),
    )


def drawn_numbers(predicted: ForceDistribution, log_force: Tensor) -> dict[str, Tensor]:
    """What figures show of frames of one movie or of several.

    Args:
        predicted: of the frames.
        log_force: (frames, y, x), true ln F; NaN where it is unknown.

    Returns:
        By name: `mae_median_pa` and the other errors of `frame_errors`, (frames,). Of a distribution also
        `pixel` (2,), row and column of the largest mean force over the frames, and there `bands_pa` (levels, frames) at
        `BAND_LEVELS`, `pixel_mean_pa`, `pixel_entropy_bits`, `pixel_true_pa` (frames,). Where there is a foreground,
        `calibration` (2, levels), expected and observed, and `sparsification` (3, points): share taken away, error of
        the rest by predicted uncertainty and by the error itself, over that of all.

    """
    mean_pa = predicted.mean_pa()
    numbers = frame_errors(predicted.median_pa(), mean_pa, log_force)
    if predicted.sigma_squared is None:
        return numbers
    place = int(mean_pa.mean(dim=0).argmax())
    row, column = divmod(place, mean_pa.shape[-1])
    there = tuple(part[:, :, row, column] for part in (predicted.mu, predicted.sigma_squared))
    numbers["pixel"] = torch.tensor([row, column])
    numbers["bands_pa"] = torch.stack([lognormal.quantile(*there, level) for level in BAND_LEVELS])
    numbers["pixel_mean_pa"] = lognormal.mean(*there)
    numbers["pixel_entropy_bits"] = lognormal.entropy_bits(*there)
    numbers["pixel_true_pa"] = log_force[:, row, column].exp()
    inside = foreground(log_force)
    if inside.any():
        pixels, force = (predicted.mu[:, inside], predicted.sigma_squared[:, inside]), log_force[inside].exp()
        numbers["calibration"] = torch.stack(lognormal.calibration_curve(*pixels, force))
        error, sd = (lognormal.mean(*pixels) - force).abs(), lognormal.variance(*pixels).sqrt()
        curves = [lognormal.sparsification_curve(error, by) for by in (sd, error)]
        chosen = torch.linspace(0, len(error) - 1, min(len(error), CURVE_POINTS)).round().long()
        share = chosen.double() / len(error)
        numbers["sparsification"] = torch.stack([share, *(curve.cpu()[chosen] for curve in curves)])
    return numbers
