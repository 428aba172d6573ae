"""An elastic layer of thickness h bonded to rigid glass, as a correction to the half space of `physics.half_space`.

Eigenvalues of the surface Green's tensor along k and across it, no normal traction on the surface, z = k h (del Alamo
et al. 2007, 10.1073/pnas.0705062104; Trepat et al. 2009, 10.1038/nphys1269), V = 2 (1 + nu) / E:
    g_T = V tanh(z) / k,
    g_L = V (1 - nu) / k [(3 - 4 nu) sinh z cosh z + z] / [(3 - 4 nu) cosh^2 z + (1 - 2 nu)^2 + z^2].
Thick (z >> 1) it is the half space; thin (z << 1) both are V h, the simple shear h / mu of a layer. As a fraction of
the half space's, g = g_half (1 + e), and the excess e decays like e^(-2 z).

In space (Merkel et al. 2007, 10.1529/biophysj.107.111328, who fit it for nu = 0.5) the excess is smooth over h, so its
inverse Hankel transform is tabulated once per nu and interpolated. Lengths are in any one unit; kernels in units of
a = (1 + nu) / (pi E) over that length. Meant for layers not much thinner than a pixel.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

TABLE_STEP = 1 / 64  # of h: four-point interpolation is then good to 1e-9 of a / h, torch's Bessel functions to 4e-9
REACH = 32.0  # of h: beyond it the rigid glass has cut the displacement by more than e^-32
WAVES = 24.0  # of 1 / h: layer and half space differ by less than e^-45 above it
NODES = 800
PIXEL_NODES = 48


def excess(z: Tensor, nu: float) -> tuple[Tensor, Tensor]:
    """Excess (e_L, e_T) at z = k h of the eigenvalues over the half space's: -1 at z = 0, 0 for a thick layer."""
    transverse = -2 / (torch.exp(2 * z.clamp(max=300.0)) + 1)  # tanh z - 1
    sech_squared = torch.cosh(z.clamp(max=300.0)) ** -2
    stiffness = (1 - 2 * nu) ** 2 + z**2
    longitudinal = ((3 - 4 * nu) * transverse + (z - stiffness) * sech_squared) / (
        3 - 4 * nu + stiffness * sech_squared
    )
    return longitudinal, transverse


def kernel_correction(r: Tensor, nu: float, thickness: float) -> tuple[Tensor, Tensor]:
    """Layer minus half space, (G_rr, G_tt) in units of a at distances r (same unit as the thickness)."""
    position = r / (thickness * TABLE_STEP)
    table = _table(nu)
    left = position.floor().clamp(1, table.shape[1] - 3)
    t = position - left
    weights = (
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -t * (t + 1) * (t - 2) / 2,
        t * (t * t - 1) / 6,
    )
    column = left.long()
    values = torch.stack([w * table[:, column + i] for i, w in zip((-1, 0, 1, 2), weights, strict=True)]).sum(0)
    near = r < REACH * thickness
    safe = r.clamp(min=1e-300)
    along = torch.where(near, values[0] / thickness, -1 / safe)  # beyond: no displacement at all
    return along, torch.where(near, values[1] / thickness, -(1 - nu) / safe)


@lru_cache(maxsize=16)
def _table(nu: float) -> Tensor:
    """Inverse Hankel transform of the excess for h = 1, (2, s) holding (G_rr, G_tt) / a at s = 0, step, 2 step, ...

    G_rr, G_tt = integral over z of (e_L + e_T) / 2 J_0(z s) -+ (e_L - e_T) / 2 J_2(z s), where e_L carries 1 - nu.
    """
    with torch.inference_mode(False):
        z, weights = _gauss_legendre(NODES, WAVES)
        longitudinal, transverse = excess(z, nu)
        longitudinal = (1 - nu) * longitudinal
        s = torch.arange(0, REACH + 4 * TABLE_STEP, TABLE_STEP, dtype=torch.float64, device="cpu")
        phase = (s[:, None] * z).clamp(min=1e-12)
        j0 = torch.special.bessel_j0(phase)
        j2 = 2 * torch.special.bessel_j1(phase) / phase - j0
        even = j0 @ (weights * (longitudinal + transverse) / 2)
        odd = j2 @ (weights * (longitudinal - transverse) / 2)
        return torch.stack((even - odd, even + odd))


def mean_correction_over_pixel(nu: float, thickness_px: float) -> float:
    """Mean of the correction's xx over the unit pixel, in units of a: that of (G_rr + G_tt) / 2 by symmetry."""
    nodes, weights = _gauss_legendre(PIXEL_NODES, 0.5)
    along, across = kernel_correction(torch.hypot(nodes, nodes[:, None]), nu, thickness_px)
    return float(4 * weights @ ((along + across) / 2) @ weights)


def _gauss_legendre(count: int, upper: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre quadrature over [0, upper] (Golub & Welsch 1969)."""
    i = torch.arange(1, count, dtype=torch.float64, device="cpu")
    off_diagonal = i / torch.sqrt(4 * i**2 - 1)
    values, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    return (values + 1) * (upper / 2), vectors[0] ** 2 * upper
