"""What a Bayesian log-normal prediction of a traction magnitude says, and whether what it says is true.

Pielawski et al., ISBI 2020, arXiv 1910.07380, section 2.4: T draws of the network give T log-normal distributions of
the magnitude F in a pixel, ln F ~ N(mu_t, sigma_t^2), and the prediction is their even mixture. Arguments `mu` and
`sigma_squared` (> 0) are (draws, ...), of ln F with F in any unit; results are (...) in that unit.

    mean (eq. 2)       E = mean_t m_t,  m_t = exp(mu_t + sigma_t^2 / 2)
    variance (eq. 3)   V = mean_t m_t^2 (exp(sigma_t^2) - 1)  [aleatoric]  +  mean_t m_t^2 - E^2  [epistemic]
    CV (eq. 4)         mean_t sqrt(exp(sigma_t^2) - 1): of the data alone, blind to the draws' disagreement
    entropy (eq. 5)    mean_t log2(sigma_t exp(mu_t + 1/2) sqrt(2 pi)): of the components, not of the mixture

Eq. 5 is printed with a division by sqrt(2 pi), and figure 2's CV was drawn with exp(sigma^2 + 1/2); those two are here
as `..._as_printed`. The authors' intervals and entropies of figure 3 come from a log-normal with other parameters
(loc = mu, s = sqrt(sigma)) and have no counterpart here. Of ours are the mixture's own numbers and what tests them:
quantiles, total CV, entropy; coverage, calibration (Kuleshov et al. 2018), sharpness, CRPS (Gneiting, Raftery 2007),
sparsification (Ilg et al. 2018).

The clipped logarithm puts every force below 1 at 1, a value that a continuous prediction never gives weight to: test
calibration on the foreground (`mask`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PUBLISHED_PROBABILITIES = (0.5, 0.68, 0.9, 0.95)
ROOT_STEPS = 60
ROOT_TOLERANCE = {torch.float32: 1e-8, torch.float64: 1e-13}
"""Of ln F, where the search for a quantile stops."""
ROOT_PIXELS = 2**17
PANEL_EDGES_SD = (-6.0, -3.5, -1.6, 0.0, 1.6, 3.5, 6.0)
PANEL_NODES = 5


def mean(mu: Tensor, sigma_squared: Tensor) -> Tensor:
    """Expected force (eq. 2), not the median exp(mu).

    >>> mean(torch.zeros(1), torch.tensor([2.0]))
    tensor(2.7183)

    """
    return _means(mu, sigma_squared).mean(dim=0)


def aleatoric_variance(mu: Tensor, sigma_squared: Tensor) -> Tensor:
    """Mean of the components' variances: what the image does not tell (first part of eq. 3)."""
    return (_means(mu, sigma_squared).square() * torch.expm1(sigma_squared)).mean(dim=0)


def epistemic_variance(mu: Tensor, sigma_squared: Tensor) -> Tensor:
    """Variance of the components' means: what the draws disagree about (second part of eq. 3); never negative."""
    means = _means(mu, sigma_squared)
    return (means - means[:1]).var(dim=0, correction=0)  # exactly 0 for equal draws


def variance(mu: Tensor, sigma_squared: Tensor) -> Tensor:
    """Variance of the force (eq. 3), aleatoric and epistemic: that of the mixture."""
    return aleatoric_variance(mu, sigma_squared) + epistemic_variance(mu, sigma_squared)


def coefficient_of_variation(mu: Tensor, sigma_squared: Tensor) -> Tensor:
    """Mean of the components' deviation over mean (eq. 4), dimensionless; aleatoric only."""
    _check(mu, sigma_squared)
    return torch.expm1(sigma_squared).sqrt().mean(dim=0)


def coefficient_of_variation_as_printed(mu: Tensor, sigma_squared: Tensor) -> Tensor:
    """What figure 2 shows as CV: with exp(sigma^2 + 1/2) in place of exp(sigma^2); never below 0.805."""
    _check(mu, sigma_squared)
    return torch.expm1(sigma_squared + 0.5).sqrt().mean(dim=0)


def total_coefficient_of_variation(mu: Tensor, sigma_squared: Tensor) -> Tensor:
    """Deviation over mean of the mixture, dimensionless: sqrt(V) / E."""
    return variance(mu, sigma_squared).sqrt() / mean(mu, sigma_squared)


def entropy_bits(mu: Tensor, sigma_squared: Tensor) -> Tensor:
    """Mean of the components' differential entropies in bits (eq. 5 with its factor the right way up)."""
    _check(mu, sigma_squared)
    return ((mu + 0.5 + 0.5 * torch.log(2 * math.pi * sigma_squared)) / math.log(2)).mean(dim=0)


def entropy_bits_as_printed(mu: Tensor, sigma_squared: Tensor) -> Tensor:
    """Eq. 5 as printed, divided by sqrt(2 pi): log2(2 pi) = 2.65 bits too low."""
    return entropy_bits(mu, sigma_squared) - math.log2(2 * math.pi)


def mixture_entropy_bits(mu: Tensor, sigma_squared: Tensor) -> Tensor:
    """Differential entropy of the mixture in bits; above `entropy_bits` by what a draw's number tells of the force.

    H(F) = H(ln F) + E[ln F]; H(ln F) by Gauss-Legendre quadrature over panels between the points mu_t + k sigma_t of
    all components, so that each is resolved at its own width: to 1e-6 bits in double precision. Takes 35 draws^2
    exponentials a pixel, one node of all pixels at a time.
    """
    _check(mu, sigma_squared)
    sigma = sigma_squared.sqrt()
    shape = (-1, *[1] * mu.ndim)
    edges = (mu + sigma * mu.new_tensor(PANEL_EDGES_SD).reshape(shape)).flatten(0, 1).sort(dim=0).values
    nodes, weights = np.polynomial.legendre.leggauss(PANEL_NODES)
    entropy = torch.zeros_like(mu[0])
    for low, high in itertools.pairwise(edges):
        half = (high - low) / 2
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            log_density = _log_density_of_logarithm(low + half * (1 + node), mu, sigma)
            entropy = entropy - weight * half * log_density.exp() * log_density
    return (entropy + mu.mean(dim=0)) / math.log(2)


def cdf(mu: Tensor, sigma_squared: Tensor, force: Tensor) -> Tensor:
    """Probability of a force below `force` (...), in [0, 1]; 0 for a force that is not positive."""
    _check(mu, sigma_squared, force)
    return torch.special.ndtr((force.clamp(min=0).log() - mu) / sigma_squared.sqrt()).mean(dim=0)


def quantile(mu: Tensor, sigma_squared: Tensor, probability: float) -> Tensor:
    """Force that the mixture stays below with this probability, in (0, 1).

    Newton's steps in ln F, or bisection where they leave the bracket, which begins as the smallest and the largest
    quantile of a component; the gradient is that of the implicit function. ValueError for another probability.
    """
    _check(mu, sigma_squared)
    if not 0 < probability < 1:
        raise ValueError(f"probability must lie between 0 and 1, got {probability}")
    with torch.no_grad():
        tolerance = ROOT_TOLERANCE.get(mu.dtype, 1e-8)
        # in pieces: the search takes some 80 bytes a draw and pixel
        pieces = (part.reshape(len(mu), -1).split(ROOT_PIXELS, dim=1) for part in (mu, sigma_squared))
        roots = [
            _root(centre.double(), squared.double().sqrt(), probability, tolerance)
            for centre, squared in zip(*pieces, strict=True)
        ]
        root = torch.cat(roots).reshape(mu.shape[1:])
    if torch.is_grad_enabled() and (mu.requires_grad or sigma_squared.requires_grad):
        centre, sigma = mu.double(), sigma_squared.double().sqrt()
        slope = _log_density_of_logarithm(root, centre, sigma).exp().detach()
        step = torch.special.ndtr((root - centre) / sigma).mean(dim=0) / slope
        root = root - (step - step.detach())
    return root.exp().to(mu.dtype)


def interval(mu: Tensor, sigma_squared: Tensor, *, probability: float = 0.95) -> tuple[Tensor, Tensor]:
    """Lower and upper end (...) of the interval that holds the force with this probability, as much on either side."""
    if not 0 < probability < 1:
        raise ValueError(f"probability must lie between 0 and 1, got {probability}")
    tail = (1 - probability) / 2
    return quantile(mu, sigma_squared, tail), quantile(mu, sigma_squared, 1 - tail)


def crps(mu: Tensor, sigma_squared: Tensor, force: Tensor) -> Tensor:
    """Continuous ranked probability score (...) of the mixture, in the force's unit: 0 is perfect.

    E|X - F| - E|X - X'| / 2 with X, X' drawn from the prediction, in closed form: with P the normal distribution,
    w = (ln F - mu_t) / sigma_t and s^2 = sigma_t^2 + sigma_u^2,
        E|X_t - F| = F (2 P(w) - 1) + m_t (1 - 2 P(w - sigma_t))
        E|X_t - X_u| = m_t (2 P(d + s_t) - 1) + m_u (2 P(s_u - d) - 1), d = (mu_t - mu_u) / s, s_t = sigma_t^2 / s.
    For a prediction without spread it is the absolute error.
    """
    means = _means(mu, sigma_squared)
    _check(mu, sigma_squared, force)
    sigma, normal = sigma_squared.sqrt(), torch.special.ndtr
    w = (force.clamp(min=0).log() - mu) / sigma
    to_truth = (force * (2 * normal(w) - 1) + means * (1 - 2 * normal(w - sigma))).mean(dim=0)
    between = torch.zeros_like(to_truth)
    for m, centre, square in zip(means, mu, sigma_squared, strict=True):  # a row of the pairs at a time
        s = (square + sigma_squared).sqrt()
        # of a pair (t, u) and (u, t) alike, so m_t (...) counts twice
        between = between + 2 * (m * (2 * normal((centre - mu + square) / s) - 1)).mean(dim=0)
    return to_truth - between / len(mu) / 2


def sharpness(mu: Tensor, sigma_squared: Tensor, *, probability: float = 0.95, mask: Tensor | None = None) -> Tensor:
    """Mean width () of the central interval, in the force's unit; the smaller of two calibrated predictions wins."""
    lower, upper = interval(mu, sigma_squared, probability=probability)
    return _chosen(upper - lower, mask).mean()


def coverage(
    mu: Tensor,
    sigma_squared: Tensor,
    force: Tensor,
    *,
    probabilities: Sequence[float] = PUBLISHED_PROBABILITIES,
    mask: Tensor | None = None,
) -> Tensor:
    """Share of the forces inside the central interval of each probability, (probabilities,): as they are, if right.

    Args:
        mu: (draws, ...).
        sigma_squared: (draws, ...).
        force: (...), true.
        probabilities: of the intervals, in (0, 1).
        mask: (...), bool, the pixels that count; None for all.

    Raises:
        ValueError: shapes that do not fit, no pixel, or a probability out of its range.

    """
    levels = _levels(probabilities, mu)
    off_centre = (_chosen(cdf(mu, sigma_squared, force), mask) - 0.5).abs()
    return (off_centre <= levels[:, None] / 2).to(mu.dtype).mean(dim=1)


class Calibration(NamedTuple):
    """A calibration curve: the diagonal where the prediction is right."""

    expected: Tensor
    """(levels,) probability that the prediction gives to a force below its quantile."""
    observed: Tensor
    """(levels,) share of the forces below it."""


def calibration_curve(
    mu: Tensor,
    sigma_squared: Tensor,
    force: Tensor,
    *,
    levels: Sequence[float] = tuple(step / 20 for step in range(1, 20)),
    mask: Tensor | None = None,
) -> Calibration:
    """How often the force lies below the predicted quantile of each level; arguments as in `coverage`."""
    expected = _levels(levels, mu)
    below = _chosen(cdf(mu, sigma_squared, force), mask) <= expected[:, None]
    return Calibration(expected, below.to(mu.dtype).mean(dim=1))


def sparsification_curve(error: Tensor, uncertainty: Tensor) -> Tensor:
    """Mean error of what is left when the most uncertain are taken away one by one, over the error of all: (n,).

    Element k is for k of n taken away. Equal uncertainties share their mean error, as if drawn in random order.
    """
    if error.shape != uncertainty.shape or not error.numel():
        shapes = f"{tuple(error.shape)} and {tuple(uncertainty.shape)}"
        raise ValueError(f"error and uncertainty must have one shape, not empty, got {shapes}")
    errors = error.flatten().double()
    _, group, sizes = torch.unique(uncertainty.flatten(), return_inverse=True, return_counts=True)
    shared = errors.new_zeros(len(sizes)).index_add(0, group, errors) / sizes
    certain_first = shared.repeat_interleave(sizes)
    left = torch.arange(1, len(errors) + 1, device=errors.device)
    return (certain_first.cumsum(0) / left).flip(0) / errors.mean()


def sparsification_error(error: Tensor, uncertainty: Tensor) -> Tensor:
    """Area () between the sparsification curve and the best possible one, that of the error itself; 0 is perfect.

    Args:
        error: absolute errors, any shape; not negative, not all 0.
        uncertainty: same shape, any unit: only its order counts.

    """
    return (sparsification_curve(error, uncertainty) - sparsification_curve(error, error)).mean()


def _root(mu: Tensor, sigma: Tensor, probability: float, tolerance: float) -> Tensor:
    """Logarithm (pixels,) of the quantile; pixels that are done take no part in further steps."""
    quantiles = mu + sigma * torch.special.ndtri(mu.new_tensor(probability))
    low, high, root = quantiles.amin(dim=0), quantiles.amax(dim=0), quantiles.mean(dim=0)
    found, pixels = root.clone(), torch.arange(len(root), device=root.device)
    for _ in range(ROOT_STEPS):
        open_ = high - low > tolerance
        if not open_.all():
            pixels, low, high, root = (part[open_] for part in (pixels, low, high, root))
            mu, sigma = mu[:, open_], sigma[:, open_]
        if not len(pixels):
            break
        w = (root - mu) / sigma
        excess = torch.special.ndtr(w).mean(dim=0) - probability
        slope = (torch.exp(-0.5 * w.square()) / sigma).mean(dim=0) / math.sqrt(2 * math.pi)
        below = excess < 0
        low, high = torch.where(below, root, low), torch.where(below, high, root)
        step = root - excess / slope
        inside = (step > low) & (step < high)
        new = torch.where(inside, step, (low + high) / 2)
        settled = inside & ((new - root).abs() <= tolerance)
        found[pixels], root = new, new
        low, high = torch.where(settled, new, low), torch.where(settled, new, high)
    return found


def _means(mu: Tensor, sigma_squared: Tensor) -> Tensor:
    _check(mu, sigma_squared)
    return torch.exp(mu + sigma_squared / 2)


def _log_density_of_logarithm(log_force: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Logarithm of the mixture's density of ln F, (...)."""
    exponents = -0.5 * ((log_force - mu) / sigma).square() - sigma.log()
    return torch.logsumexp(exponents, dim=0) - math.log(len(mu) * math.sqrt(2 * math.pi))


def _levels(probabilities: Sequence[float], like: Tensor) -> Tensor:
    if not probabilities or not all(0 < probability < 1 for probability in probabilities):
        raise ValueError(f"probabilities must lie between 0 and 1, got {tuple(probabilities)}")
    return torch.tensor(tuple(probabilities), dtype=like.dtype, device=like.device)


def _chosen(values: Tensor, mask: Tensor | None) -> Tensor:
    """The values (pixels,) where the mask holds."""
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != values.shape:
            raise ValueError(f"mask must be bool of shape {tuple(values.shape)}, got {mask.dtype} {tuple(mask.shape)}")
        values = values[mask]
    if not values.numel():
        raise ValueError("mask must leave at least one pixel")
    return values.flatten()


def _check(mu: Tensor, sigma_squared: Tensor, force: Tensor | None = None) -> None:
    if mu.shape != sigma_squared.shape or mu.ndim < 1 or not len(mu):
        shapes = f"{tuple(mu.shape)} and {tuple(sigma_squared.shape)}"
        raise ValueError(f"mu and sigma_squared must have one shape (draws, ...), got {shapes}")
    if force is not None and force.shape != mu.shape[1:]:
        raise ValueError(f"force must have shape {tuple(mu.shape[1:])}, got {tuple(force.shape)}")
