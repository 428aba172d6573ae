"""How well a regularisation explains data: evidence, cross-validation and L-curve of a diagonal Tikhonov problem.

Every datum d_j = g_j f_j + noise is one Fourier coefficient, estimated as f_j = g_j d_j / (g_j^2 + lambda), which
leaves the residual rho_j d_j with rho_j = lambda / (g_j^2 + lambda). All scores are sums over j of `power` |d_j|^2
(..., j), times functions of `gain` g_j^2 (j,) and lambda; `count` (j,) says how many real numbers d_j stands for (2 for
a complex coefficient whose conjugate is not listed). `log10_lambda` is (l,); scores are (..., l), larger is better.
Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2**22  # coefficients times candidates held at once


def log_evidence(
    power: Tensor, gain: Tensor, count: Tensor, log10_lambda: Tensor, noise_std: Tensor | None = None
) -> Tensor:
    """Log probability of the data with f integrated out, up to a constant (MacKay 1992; Huang et al. 2019).

    d_j is normal with variance s^2 (1 + g_j^2 / lambda) = s^2 / rho_j: f is white with variance s^2 / lambda. The noise
    s is `noise_std` over the leading dimensions, or the value that maximises the probability for each lambda.
    """
    misfit = torch.cat([power @ residual for residual in _residuals(gain, log10_lambda)], dim=-1)
    determinant = torch.cat([count @ residual.log() for residual in _residuals(gain, log10_lambda)])
    if noise_std is None:
        total = count.sum()
        return 0.5 * (determinant - total * torch.log(misfit / total))
    return 0.5 * (determinant - misfit / noise_std.square().unsqueeze(-1))


def cross_validation(power: Tensor, gain: Tensor, count: Tensor, log10_lambda: Tensor) -> Tensor:
    """Minus the logarithm of the generalised cross-validation function (Golub, Heath & Wahba 1979)."""
    misfit = torch.cat([power @ residual.square() for residual in _residuals(gain, log10_lambda)], dim=-1)
    freedom = torch.cat([count @ residual for residual in _residuals(gain, log10_lambda)])
    return 2 * torch.log(freedom) - torch.log(misfit)


def l_curve_curvature(power: Tensor, gain: Tensor, log10_lambda: Tensor) -> Tensor:
    """Curvature of log |f| over log |residual| (Hansen 1992); log10_lambda must be evenly spaced."""
    misfit, size = [], []
    for residual in _residuals(gain, log10_lambda):
        misfit.append(power @ residual.square())
        size.append(power @ ((1 - residual).square() / gain.clamp(min=1e-300)[:, None]))
    step = math.log(10) * float(log10_lambda[1] - log10_lambda[0])
    x, y = (0.5 * torch.log(torch.cat(parts, dim=-1)) for parts in (misfit, size))
    (dx,), (dy,) = (torch.gradient(curve, spacing=step, dim=-1) for curve in (x, y))
    (ddx,), (ddy,) = (torch.gradient(curve, spacing=step, dim=-1) for curve in (dx, dy))
    return (dx * ddy - ddx * dy) / (dx.square() + dy.square()) ** 1.5


def refined_maximum(log10_lambda: Tensor, score: Tensor) -> Tensor:
    """Position of the largest score, (..., l) -> (...), on the parabola through it and its neighbours."""
    best = score.argmax(dim=-1, keepdim=True)
    middle = best.clamp(1, score.shape[-1] - 2)
    left, centre, right = (score.gather(-1, middle + shift) for shift in (-1, 0, 1))
    bend = left - 2 * centre + right
    offset = torch.where(bend < 0, (left - right) / (2 * torch.where(bend < 0, bend, -1.0)), 0.0).clamp(-1, 1)
    step = log10_lambda[1] - log10_lambda[0]
    return torch.where(best == middle, log10_lambda[middle] + offset * step, log10_lambda[best]).squeeze(-1)


def _residuals(gain: Tensor, log10_lambda: Tensor) -> Iterator[Tensor]:
    """Residual fractions rho for blocks of candidates: (j, up to l)."""
    for block in log10_lambda.split(max(1, BLOCK // len(gain))):
        strength = 10**block
        yield strength / (gain[:, None] + strength)
