"""Our network for traction from displacement: U-Nets that take turns with an explicit elastic operator.

The first estimate is read from the displacement and from regularised Fourier inverses of it. Each further step asks the
operator what displacement the traction so far would have caused, inverts what is left of the measured one, and lets a
U-Net of its own decide what of it is traction and what is noise (learned primal-dual reconstruction, Adler & Oktem
2018, 10.1109/TMI.2018.2799231, with unshared steps):
    x_0 = N_0(R u, u, b),  r_k = u - G x_k,  x_(k+1) = x_k + N_(k+1)(x_k, R r_k, r_k, b).
G and R are those of `elastic_operator.ElasticOperator`, R at fixed regularisations; b, the same at every pixel, tells
how much the measurement blurs, for what of R's answers is noise depends on it. Poisson's ratio, centre element, reach
and the transfer function of the displacement measurement are arguments, not weights: the same weights serve a
measurement whose operator is known to differ.

Units are those of the grid: displacement in pixels, traction per Young's modulus. Every input is divided by its root
mean square (`field_strength`) and the output multiplied by it, so f(a u) = a f(u): one network for every stiffness,
magnification and strength of pulling. How noisy a field is the network sees from the field itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.networks.elastic_operator import ElasticOperator
from lightning_modules.networks.field_strength import strength
from lightning_modules.networks.planar_unet import PlanarUNet

REGULARIZATIONS = (0.002, 0.02, 0.2)
"""Of R, in (px E)^2: about where a thousandth to a tenth of the power of the shortest waves is given up."""

WIDEST_BLUR_PX2 = 0.5
"""Variance of [.25 .5 .25]: the blur that the networks see as 1."""


class UnrolledTractionNet(nn.Module):
    """Displacement (batch, 2, y, x) in px -> traction per Young's modulus (batch, 2, y, x).

    Args:
        steps: corrections after the first estimate (#).
        width: channels of each U-Net at full resolution (#).
        depth: halvings of each U-Net (#).

    Raises:
        ValueError: an argument is out of its range.

    """

    def __init__(self, *, steps: int = 1, width: int = 16, depth: int = 3) -> None:
        if steps < 0:
            raise ValueError(f"steps must be at least 0, got {steps}")
        super().__init__()
        inverses = 2 * len(REGULARIZATIONS)
        self.first = PlanarUNet(inverses + 3, 2, width=width, depth=depth, scale_equivariant=False)
        self.corrections = nn.ModuleList(
            PlanarUNet(inverses + 5, 2, width=width, depth=depth, scale_equivariant=False) for _ in range(steps)
        )
        for network in (self.first, *self.corrections):
            # starts from no traction: the inverse of a random one's residual would be enormous
            nn.init.zeros_(network.last.weight)

    def forward(self, displacement_px: Tensor, operator: ElasticOperator) -> Tensor:
        """Measured displacement (batch, 2, y, x) in px, noise and all -> traction / E (batch, 2, y, x)."""
        return self.estimates(displacement_px, operator)[-1]

    def estimates(self, displacement_px: Tensor, operator: ElasticOperator) -> list[Tensor]:
        """The estimate after every step, the last one being the answer; each (batch, 2, y, x)."""
        measured = displacement_px.float()
        rms = strength(measured)  # (batch, 1, 1, 1)
        measured = measured / torch.where(rms > 0, rms, 1)
        blur = torch.full_like(measured[:, :1], operator.blur_px2() / WIDEST_BLUR_PX2)
        seen = torch.cat((operator.inverses(measured, REGULARIZATIONS), measured, blur), dim=1)
        traction = self.first(seen).float()
        estimates = [traction * rms]
        for correction in self.corrections:
            left = measured - operator.displacement(traction)
            seen = torch.cat((traction, operator.inverses(left, REGULARIZATIONS), left, blur), dim=1)
            traction = traction + correction(seen).float()
            estimates.append(traction * rms)
        return estimates
