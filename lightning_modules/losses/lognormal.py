"""Likelihood of a traction magnitude under a predicted log-normal distribution.

Pielawski et al., ISBI 2020, arXiv 1910.07380, eq. 1: with y = ln(max(1, F)), mu and sigma the network's outputs,
    L = mean[ (y - mu)^2 / (2 sigma^2) + ln(sigma^2) / 2 ],
the Gaussian negative log-likelihood of y without its constant ln(2 pi) / 2. Sums over pixels are a mean, as in the
authors' notebook; their curves contain Keras's L2 penalty as well.

The clipped logarithm is exactly 0 wherever F is below 1, in most of a frame. There a prediction can be as good as exact
and eq. 1 has no minimum: sigma -> 0, L -> -infinity. Two things are therefore ours: a floor, added to sigma in
quadrature as an error of the target would be, so that its gradient stays; and a report of foreground and background
apart (`metrics.lognormal_scores.log_loss`), because a mean that a background at the floor rules says nothing about the
cell.
"""

from __future__ import annotations

from torch import Tensor

SIGMA_FLOOR = 1e-3
"""Of ln F (1): a tenth of a percent of the force. 0 gives eq. 1 as printed."""


def floored_variance(sigma: Tensor, *, sigma_floor: float = SIGMA_FLOOR) -> Tensor:
    """Variance of ln F that the loss and every statistic of the prediction use: sigma^2 + floor^2.

    Raises ValueError when the floor is negative.
    """
    if not sigma_floor >= 0:
        raise ValueError(f"sigma_floor must not be negative, got {sigma_floor}")
    return sigma.square() + sigma_floor**2


def pixel_losses(mu: Tensor, sigma: Tensor, log_force: Tensor, *, sigma_floor: float = SIGMA_FLOOR) -> Tensor:
    """Eq. 1 before the mean, (...) each: mean and deviation of ln F as predicted, and the true ln F.

    Raises:
        ValueError: the shapes differ, or the floor is negative.
    """
    if not mu.shape == sigma.shape == log_force.shape:
        shapes = f"{tuple(mu.shape)}, {tuple(sigma.shape)} and {tuple(log_force.shape)}"
        raise ValueError(f"mu, sigma and log_force must have one shape, got {shapes}")
    variance = floored_variance(sigma, sigma_floor=sigma_floor)
    return 0.5 * ((log_force - mu).square() / variance + variance.log())


def balanced(losses: Tensor, variance: Tensor, *, beta: float) -> Tensor:
    """Losses (...) of pixels, each times variance^beta (...), which counts as a number: the beta-NLL.

    Seitzer et al. 2022, arXiv 2203.09168. The pull of eq. 1 on mu goes with 1 / variance, so that pixels which are
    predicted well already, the whole background, outweigh those that are not. beta 0 is eq. 1; with 1 all pixels pull
    on mu alike, as by squared errors. Where every pixel's loss is smallest does not depend on beta.

    Raises ValueError when beta lies outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    return losses if beta == 0 else losses * variance.detach() ** beta


def negative_log_likelihood(
    mu: Tensor, sigma: Tensor, log_force: Tensor, *, sigma_floor: float = SIGMA_FLOOR
) -> Tensor:
    """Mean of `pixel_losses`: (), eq. 1.

    >>> import torch
    >>> zero, one = torch.zeros(2), torch.ones(2)
    >>> negative_log_likelihood(zero, one, torch.tensor([1.0, 3.0]), sigma_floor=0.0)
    tensor(2.5000)

    """
    return pixel_losses(mu, sigma, log_force, sigma_floor=sigma_floor).mean()
