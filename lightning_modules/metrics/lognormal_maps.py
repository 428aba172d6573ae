"""Maps of a predicted traction magnitude and of every part of its uncertainty, and the arrays that figures show.

Pielawski et al., ISBI 2020, arXiv 1910.07380: the panels of figure 2; calibration and sparsification are ours. Formulas
in `metrics.lognormal`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics import lognormal
from lightning_modules.metrics.lognormal_scores import FOREGROUND_PA, ForceDistribution, foreground, frame_errors

CURVE_POINTS = 200


class ForcePrediction(NamedTuple):
    """What is written of every image: maps (batch, y, x), numbers (batch,); without a distribution no spread: None."""

    median_pa: Tensor
    mean_pa: Tensor
    """Eq. 2."""
    aleatoric_sd_pa: Tensor | None
    """Root of eq. 3's first part."""
    epistemic_sd_pa: Tensor | None
    """Root of its second."""
    coefficient_of_variation: Tensor | None
    """Eq. 4."""
    entropy_bits: Tensor | None
    """Eq. 5."""
    lower_pa: Tensor | None
    """Lower end of the central 95 % interval."""
    upper_pa: Tensor | None
    time_s: Tensor
    """Since the movie's first frame; NaN for an image of no movie."""
    total_force_nn: Tensor
    """Of the median, summed over the pixels of at least 5 Pa; NaN without a pixel size."""
    mae_median_pa: Tensor
    """This and what follows: NaN where the truth is unknown."""
    mae_median_foreground_pa: Tensor
    mae_mean_pa: Tensor
    mae_mean_foreground_pa: Tensor
    coverage_95_foreground: Tensor | None


MAPS = ForcePrediction._fields[: ForcePrediction._fields.index("time_s")]


def force_maps(predicted: ForceDistribution, *, quantiles: bool = True) -> dict[str, Tensor | None]:
    """The maps of a batch by name; without `quantiles`, which cost most, median and 95 % interval are None."""
    maps: dict[str, Tensor | None] = dict.fromkeys(MAPS)
    maps["mean_pa"] = predicted.mean_pa()
    if quantiles:
        maps["median_pa"] = predicted.median_pa()
    if predicted.sigma_squared is None:
        return maps
    pair = (predicted.mu, predicted.sigma_squared)
    maps |= {
        "aleatoric_sd_pa": lognormal.aleatoric_variance(*pair).sqrt(),
        "epistemic_sd_pa": lognormal.epistemic_variance(*pair).sqrt(),
        "coefficient_of_variation": lognormal.coefficient_of_variation(*pair),
        "entropy_bits": lognormal.entropy_bits(*pair),
    }
    if quantiles:
        maps["lower_pa"], maps["upper_pa"] = lognormal.interval(*pair, probability=0.95)
    return maps


def force_prediction(
    predicted: ForceDistribution, log_force: Tensor, *, pixel_size_um: Tensor, time_s: Tensor
) -> ForcePrediction:
    """All maps and numbers of a batch.

    Args:
        predicted: of the images.
        log_force: (batch, y, x), true ln F; NaN where it is unknown.
        pixel_size_um: (batch,); NaN where it is unknown.
        time_s: (batch,).

    """
    maps: dict[str, Any] = force_maps(predicted)
    lower, upper = maps["lower_pa"], maps["upper_pa"]
    coverage = None
    if lower is not None and upper is not None:
        inside, force = foreground(log_force), log_force.exp()
        coverage = ((force >= lower) & (force <= upper) & inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2))
    median_pa = maps["median_pa"]
    # in the clipped logarithm no force is 1 Pa, of which a background holds many
    pulling_pa = torch.where(median_pa >= FOREGROUND_PA, median_pa, 0)
    total_nn = pulling_pa.sum(dim=(1, 2)) * pixel_size_um.square() * 1e-3
    errors = frame_errors(maps["median_pa"], maps["mean_pa"], log_force)
    numbers = {"time_s": time_s, "total_force_nn": total_nn, "coverage_95_foreground": coverage}
    return ForcePrediction(**maps, **numbers, **errors)


def drawn_arrays(predicted: ForceDistribution, *, log_image: Tensor, log_force: Tensor) -> dict[str, Any]:
    """What figures show of some frames, single precision.

    Args:
        predicted: of the frames.
        log_image: (frames, y, x), ln of the grey value.
        log_force: (frames, y, x), true ln F; NaN where it is unknown.

    Returns:
        `log_image`, `log_force`, `maps` by the names of `MAPS`, and `curves`: of a distribution where there is a
        foreground `calibration` (2, levels), expected and observed, and `sparsification` (3, points): share taken away,
        error of the rest by predicted uncertainty and by the error itself, over that of all.

    """
    maps = force_maps(predicted, quantiles=False)
    curves = {}
    inside = foreground(log_force)
    if predicted.sigma_squared is not None and inside.any():
        pixels, force = (predicted.mu[:, inside], predicted.sigma_squared[:, inside]), log_force[inside].exp()
        curves["calibration"] = torch.stack(lognormal.calibration_curve(*pixels, force))
        error, sd = (lognormal.mean(*pixels) - force).abs(), lognormal.variance(*pixels).sqrt()
        by_sd, by_error = (lognormal.sparsification_curve(error, by) for by in (sd, error))
        chosen = torch.linspace(0, len(error) - 1, min(len(error), CURVE_POINTS)).round().long()
        share = chosen.double() / len(error)
        curves["sparsification"] = torch.stack([share, *(curve.cpu()[chosen] for curve in (by_sd, by_error))])
    return {
        "log_image": _array(log_image),
        "log_force": _array(log_force),
        "maps": {name: None if part is None else _array(part) for name, part in maps.items()},
        "curves": {name: _array(part) for name, part in curves.items()},
    }


def _array(values: Tensor) -> np.ndarray:
    return values.float().numpy(force=True)  # numpy knows no bfloat16
