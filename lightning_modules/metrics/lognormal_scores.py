"""The scores of a predicted traction magnitude that every module of `insilico_tfm` logs, and when.

Of every stage of a network, by name after `train/`, `val/`, `test/`:
    loss                            eq. 1 or the squared error, mean over the draws, without the weights of beta
    nll_foreground, nll_background  eq. 1 where ln F > 0 and where the clipped logarithm is 0
Of validation and test (`..._foreground`: pixels whose true traction is at least `FOREGROUND_PA`, all frames pooled):
    mae_median_pa, mae_mean_pa              |F - median|, |F - E| over whole frames
    mae_median_foreground_pa, mae_mean_foreground_pa
    crps_foreground_pa                      of a prediction without spread its absolute error
    coverage_50|68|90|95_foreground         share of the forces inside the central intervals; 68 and 95 in validation
Of the test also:
    mae_median_pa_sd, mae_mean_pa_sd        standard deviation over the frames
    sharpness_95_foreground_pa              mean width of the 95 % interval
    calibration_error_foreground            mean distance of the calibration curve from the diagonal
    sparsification_error_foreground         of |F - E| by the predicted standard deviation, mean over the frames
F is max(1 Pa, traction): what the clipped logarithm lets through of the truth. Frames whose truth is unknown (NaN) take
no part. Of these numbers the paper has eq. 1 and "MAE", without a formula.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_modules.metrics import lognormal
from lightning_modules.metrics.epoch_means import log_mean, named_metrics
from lightning_modules.metrics.mean_loss import MeanLoss
from lightning_modules.metrics.traction import FieldSd

FOREGROUND_PA = 5.0
SIGMA_CEILING, LOG_FORCE_CEILING = 5.0, 15.0
"""Of ln F (a factor of 150 either way; 3.3 MPa): below them eq. 3 of a thousand draws is finite in single precision."""
LEVELS = tuple(step / 20 for step in range(1, 20))
ERRORS = ("mae_median_pa", "mae_median_foreground_pa", "mae_mean_pa", "mae_mean_foreground_pa", "crps_foreground_pa")
VALIDATED_PROBABILITIES = (0.68, 0.95)


class ForceDistribution(NamedTuple):
    """What is predicted of ln F in every pixel of a batch."""

    mu: Tensor
    """(draws, batch, y, x)."""
    sigma_squared: Tensor | None
    """As `mu`, > 0; None for a prediction that is one number."""

    def bounded(self) -> ForceDistribution:
        """The same below the ceilings, so that one wild pixel does not make the means of an epoch infinite."""
        squared = None if self.sigma_squared is None else self.sigma_squared.clamp(max=SIGMA_CEILING**2)
        return ForceDistribution(self.mu.clamp(max=LOG_FORCE_CEILING), squared)

    def median_pa(self) -> Tensor:
        """Median of the mixture of the draws, (batch, y, x)."""
        if self.sigma_squared is None:
            return self.mu.mean(dim=0).exp()
        return lognormal.quantile(self.mu, self.sigma_squared, 0.5)

    def mean_pa(self) -> Tensor:
        """Expected force (eq. 2), (batch, y, x)."""
        if self.sigma_squared is None:
            return self.mu.exp().mean(dim=0)
        return lognormal.mean(self.mu, self.sigma_squared)


class CalibrationError(Metric):
    """Mean distance of a calibration curve from the diagonal, over all pixels of all batches.

    >>> error = CalibrationError()
    >>> error.update(torch.linspace(0, 1, 10_001))
    >>> error.compute().item() < 1e-3
    True
    """

    higher_is_better = False
    full_state_update = False
    below: Tensor
    pixels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("below", torch.zeros(len(LEVELS)), dist_reduce_fx="sum")
        self.add_state("pixels", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, probability: Tensor) -> None:
        """Add pixels (n,): the predicted probability of a force below the true one."""
        levels = torch.tensor(LEVELS, dtype=probability.dtype, device=probability.device)
        self.below += (probability <= levels[:, None]).sum(dim=1)
        self.pixels += probability.numel()

    def compute(self) -> Tensor:
        """Mean () of |observed - expected| over the levels, in [0, 1/2]; NaN before the first pixel."""
        observed = self.below / self.pixels
        return (observed - observed.new_tensor(LEVELS)).abs().mean()


def force_metrics(*, trained: bool, spread: bool) -> nn.ModuleDict:
    """One metric per name.

    Args:
        trained: whether there is a loss.
        spread: whether the prediction is a distribution.

    """
    names = [f"{stage}/{name}" for stage in ("val", "test") for name in ERRORS]
    if trained:
        names += [f"{stage}/loss" for stage in ("train", "val", "test")]
    if spread:
        names += [f"{stage}/nll_{part}" for stage in ("train", "val", "test") for part in ("foreground", "background")]
        names += [_coverage_name("val", probability) for probability in VALIDATED_PROBABILITIES]
        names += [_coverage_name("test", probability) for probability in lognormal.PUBLISHED_PROBABILITIES]
        names += ["test/sharpness_95_foreground_pa", "test/sparsification_error_foreground"]
    metrics: dict[str, Metric] = {name: MeanLoss() for name in names}
    metrics |= {f"test/{name}_sd": FieldSd(nn.Identity()) for name in ("mae_median_pa", "mae_mean_pa")}
    if spread:
        metrics["test/calibration_error_foreground"] = CalibrationError()
    return named_metrics(metrics)


def log_loss(module: Any, stage: str, losses: Tensor, log_force: Tensor, *, spread: bool) -> None:
    """Add what the pixels of a batch lost to the means of a stage; both are (batch, y, x), ln F finite."""
    frames = len(losses)
    log_mean(module, f"{stage}/loss", losses.mean(), frames, batch_size=frames)
    if spread:
        inside = log_force > 0
        for part, pixels in (("foreground", inside), ("background", ~inside)):
            _log_pooled(module, f"{stage}/nll_{part}", losses[pixels], batch_size=frames)


def log_scores(module: Any, stage: str, predicted: ForceDistribution, log_force: Tensor) -> dict[str, Tensor]:
    """Add a batch to the scores of a stage, "val" or "test".

    Args:
        module: owns `metrics` as `force_metrics` makes them.
        stage: of the scores.
        predicted: of the batch's frames, all of known truth.
        log_force: (batch, y, x), true ln F, finite.

    Returns:
        `mae_median_pa` and `mae_mean_pa` of every frame, (batch,) each.

    """
    frames, errors = len(log_force), {}
    force, inside = log_force.exp(), foreground(log_force)
    mean_pa = predicted.mean_pa()
    for name, estimate in (("median", predicted.median_pa()), ("mean", mean_pa)):
        error = (estimate - force).abs()
        errors[f"mae_{name}_pa"] = per_frame = error.mean(dim=(1, 2))
        log_mean(module, f"{stage}/mae_{name}_pa", per_frame.mean(), frames, batch_size=frames)
        _log_pooled(module, f"{stage}/mae_{name}_foreground_pa", error[inside], batch_size=frames)
        if stage == "test":
            log_mean(module, f"test/mae_{name}_pa_sd", per_frame, batch_size=frames)
    if predicted.sigma_squared is None:
        _log_pooled(module, f"{stage}/crps_foreground_pa", (mean_pa - force).abs()[inside], batch_size=frames)
        return errors
    truth = force[inside]
    pixels = (predicted.mu[:, inside], predicted.sigma_squared[:, inside])  # (draws, pixels)
    _log_pooled(module, f"{stage}/crps_foreground_pa", lognormal.crps(*pixels, truth), batch_size=frames)
    probability = lognormal.cdf(*pixels, truth)
    for level in VALIDATED_PROBABILITIES if stage == "val" else lognormal.PUBLISHED_PROBABILITIES:
        covered = ((probability - 0.5).abs() <= level / 2).to(truth.dtype)
        _log_pooled(module, _coverage_name(stage, level), covered, batch_size=frames)
    if stage == "test":
        lower, upper = lognormal.interval(*pixels, probability=0.95)
        _log_pooled(module, "test/sharpness_95_foreground_pa", upper - lower, batch_size=frames)
        log_mean(module, "test/calibration_error_foreground", probability, batch_size=frames)
        sd = lognormal.variance(predicted.mu, predicted.sigma_squared).sqrt()
        areas = [
            lognormal.sparsification_error(error[own], uncertainty[own])
            for error, uncertainty, own in zip((mean_pa - force).abs(), sd, inside, strict=True)
            if own.any()
        ]
        _log_pooled(module, "test/sparsification_error_foreground", force.new_tensor(areas), batch_size=frames)
    return errors


def frame_errors(median_pa: Tensor, mean_pa: Tensor, log_force: Tensor) -> dict[str, Tensor]:
    """The four mean absolute errors of every frame, (batch,) each, by name; NaN where truth or foreground is missing.

    Arguments are (batch, y, x).
    """
    force, inside = log_force.exp(), foreground(log_force)
    errors = {}
    for name, estimate in (("median", median_pa), ("mean", mean_pa)):
        error = (estimate - force).abs()
        errors[f"mae_{name}_pa"] = error.mean(dim=(1, 2))
        total = torch.where(inside, error, 0).sum(dim=(1, 2))
        errors[f"mae_{name}_foreground_pa"] = total / inside.sum(dim=(1, 2))
    return errors


def foreground(log_force: Tensor) -> Tensor:
    """Where the true traction is at least `FOREGROUND_PA`; nowhere where it is unknown."""
    return log_force >= math.log(FOREGROUND_PA)


def _coverage_name(stage: str, probability: float) -> str:
    return f"{stage}/coverage_{round(100 * probability)}_foreground"


def _log_pooled(module: Any, name: str, values: Tensor, *, batch_size: int) -> None:
    """Add values (n,), of which there may be none, to a mean over all values of all batches."""
    mean = values.mean() if values.numel() else values.new_zeros(())
    log_mean(module, name, mean, values.numel(), batch_size=batch_size)
