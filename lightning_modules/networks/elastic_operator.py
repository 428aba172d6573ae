"""The elastic operator as an explicit part of a network: what a traction does to a measured displacement, and back.

Lengths in pixels, traction per Young's modulus: `physics.half_space` and `physics.traction_cytometry` on a grid of unit
pixels with E = 1. Everything is computed in float32, whatever precision the network around it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from physics.half_space import displacement_from_traction
from physics.traction_cytometry import traction_from_displacement

UNCHANGED_SHARE = 0.5
WIDEST_BLUR = 0.25
"""Weight of a neighbour in the widest kernel drawn, [.25 .5 .25]."""


class ElasticOperator(NamedTuple):
    """What is known of a substrate and of the measurement of its displacement."""

    poisson_ratio: float = 0.45
    centre_element: str = "exact"
    """"exact" or "published", see `physics.half_space`."""
    reach: str = "full"
    """"full" or "published"; the latter for square fields of even size only."""
    transfer_function: Tensor | None = None
    """Kernel (n,) of the displacement measurement along each axis; None for a perfect one."""

    def displacement(self, traction: Tensor) -> Tensor:
        """The displacement in px that a traction / E (..., 2, y, x) causes."""
        with torch.autocast(traction.device.type, enabled=False):
            return displacement_from_traction(
                traction.float(), centre_element=self.centre_element, reach=self.reach, **self._substrate()
            )

    def inverses(self, displacement_px: Tensor, regularizations: Sequence[float]) -> Tensor:
        """Regularised Fourier inverses of a displacement: (batch, 2, y, x) -> (batch, 2 per regularisation, y, x)."""
        with torch.autocast(displacement_px.device.type, enabled=False):
            inverses = [
                traction_from_displacement(displacement_px.float(), regularization=strength, **self._substrate())
                for strength in regularizations
            ]
            return torch.cat(inverses, dim=-3)

    def drawn(self) -> ElasticOperator:
        """Return this operator half of the time, else another centre element, reach and transfer function by chance.

        Kernels are [b, 1 - 2 b, b] with b uniform up to .25. Draws come from torch's global generator.
        """
        chance = torch.rand(5).tolist()
        if chance[0] < UNCHANGED_SHARE:
            return self
        blur = WIDEST_BLUR * chance[4] if chance[3] < 0.75 else 0.0
        return self._replace(
            centre_element="exact" if chance[1] < 0.5 else "published",
            reach="full" if chance[2] < 0.5 else "published",
            transfer_function=torch.tensor([blur, 1 - 2 * blur, blur]) if blur > 0 else None,
        )

    def measured_by(self, other: ElasticOperator, displacement_px: Tensor, traction: Tensor) -> Tensor:
        """What `other` would have measured where this operator measured `displacement_px`, (batch, 2, y, x) both.

        Noise stays as it is: the true traction / E tells what is to be exchanged.
        """
        if other is self:
            return displacement_px
        return displacement_px + other.displacement(traction) - self.displacement(traction)

    def _substrate(self) -> dict[str, Any]:
        kernel = self.transfer_function
        return {
            "pixel_size_um": 1.0,
            "youngs_modulus_pa": 1.0,
            "poisson_ratio": self.poisson_ratio,
            "transfer_function": kernel,
        }
