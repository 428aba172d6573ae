"""The elastic operator as an explicit part of a network: what a traction does to a measured displacement, and back.

Lengths in pixels, traction per Young's modulus: `physics.half_space` and `physics.traction_cytometry` on a grid of unit
pixels with E = 1. Everything is computed in float32, whatever precision the network around it has. The fields of a
batch may each have an operator of their own; only the transfer function of the measurement is the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from physics.half_space import displacement_from_traction
from physics.traction_cytometry import traction_from_displacement

UNCHANGED_SHARE = 0.5
POISSON_RATIOS = (0.3, 0.5)
BLURRED_SHARE = 0.75
WIDE_SHARE = 0.5
"""Of the blurs that are drawn, those from the upper part of the range only: they are the hard ones."""
WIDE_BLUR = 0.15
WIDEST_BLUR = 0.25
"""Weight of a neighbour in the widest kernel drawn, [.25 .5 .25]."""
EACH_FIELD = ("poisson_ratio", "centre_element", "reach", "thickness_um")
UNIT_SUBSTRATE = {"pixel_size_um": 1.0, "youngs_modulus_pa": 1.0}


class ElasticOperator(NamedTuple):
    """What is known of the substrates of a batch and of the measurement of their displacement."""

    poisson_ratio: Sequence[float]
    """(batch,), in (0, 0.5]."""
    centre_element: Sequence[str]
    """(batch,), "exact" or "published", see `physics.half_space`."""
    reach: Sequence[str]
    """(batch,), "full" or "published"; the latter for square fields of even size only."""
    transfer_function: Tensor | None = None
    """Kernel (n,) of the displacement measurement along each axis; None for a perfect one."""
    thickness_px: Sequence[float] | None = None
    """(batch,), thickness of gels bonded to rigid glass, inf for a half space; None for half spaces alone."""

    def displacement(self, traction: Tensor) -> Tensor:
        """The displacement in px that a traction / E (batch, 2, y, x) causes."""
        with torch.autocast(traction.device.type, enabled=False):
            return self.each(displacement_from_traction, traction.float())

    def inverses(self, displacement_px: Tensor, regularizations: Sequence[float]) -> Tensor:
        """Regularised Fourier inverses of a displacement: (batch, 2, y, x) -> (batch, 2 per regularisation, y, x).

        They know nothing of centre element and reach: a periodic field has neither.
        """

        def invert(field: Tensor, *, centre_element: str, reach: str, **substrate: Any) -> Tensor:
            return torch.cat(
                [traction_from_displacement(field, regularization=lam, **substrate) for lam in regularizations], dim=-3
            )

        with torch.autocast(displacement_px.device.type, enabled=False):
            return self.each(invert, displacement_px.float())

    def blur_px2(self) -> float:
        """Variance of the transfer function along an axis, mean of both; 0 for a perfect measurement."""
        if self.transfer_function is None:
            return 0.0
        kernel = self.transfer_function.double()
        plane = kernel if kernel.ndim == 2 else torch.outer(kernel, kernel)
        variances = []
        for weights in (plane.sum(dim=0), plane.sum(dim=1)):
            offset = torch.arange(len(weights), device=weights.device) - len(weights) // 2
            variances.append((weights * offset**2).sum() / weights.sum())
        return float(sum(variances)) / 2

    def each(self, compute: Callable[..., Tensor], *fields: Tensor) -> Tensor:
        """Call `compute(*fields, **operator)` once for those that share an operator; join the answers in their order.

        `operator`: the keyword arguments of `physics.half_space.displacement_from_traction`.
        """
        count, layers = len(self.poisson_ratio), self.thickness_px
        layers = [math.inf] * count if layers is None else layers
        thicknesses = [float(f"{layer:.6g}") if math.isfinite(layer) else None for layer in layers]
        ratios = [round(nu, 6) for nu in self.poisson_ratio]
        keys = list(zip(ratios, self.centre_element, self.reach, thicknesses, strict=True))
        parts: list[Tensor] = []
        order: list[int] = []
        for key in dict.fromkeys(keys):
            chosen = [number for number, other in enumerate(keys) if other == key]
            operator: dict[str, Any] = dict(zip(EACH_FIELD, key, strict=True))
            operator |= {"transfer_function": self.transfer_function, **UNIT_SUBSTRATE}
            alike = fields if len(chosen) == len(keys) else [field[chosen] for field in fields]
            parts.append(compute(*alike, **operator))
            order += chosen
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts)[torch.tensor(order, device=fields[0].device).argsort()]

    def drawn(self, shape_px: tuple[int, int]) -> ElasticOperator:
        """Return this operator half of the time, else one drawn by chance, the same for the whole batch.

        Poisson's ratio lies between .3 and .5, centre element and reach are either (the published reach for fields of
        a shape that it fits); kernels are [b, 1 - 2 b, b] with b up to .25. Draws come from torch's global generator.
        """
        chance = torch.rand(7).tolist()
        if chance[0] < UNCHANGED_SHARE:
            return self
        count, (low, high) = len(self.poisson_ratio), POISSON_RATIOS
        even_square = shape_px[0] == shape_px[1] and shape_px[0] % 2 == 0
        least = WIDE_BLUR if chance[4] < WIDE_SHARE else 0.0
        blur = least + (WIDEST_BLUR - least) * chance[5] if chance[3] < BLURRED_SHARE else 0.0
        return ElasticOperator(
            poisson_ratio=[round(low + (high - low) * chance[6], 2)] * count,
            centre_element=["exact" if chance[1] < 0.5 else "published"] * count,
            reach=["full" if chance[2] < 0.5 or not even_square else "published"] * count,
            transfer_function=torch.tensor([blur, 1 - 2 * blur, blur]) if blur > 0 else None,
            thickness_px=self.thickness_px,
        )

    def measured_by(self, other: ElasticOperator, displacement_px: Tensor, traction: Tensor) -> Tensor:
        """What `other` would have measured where this operator measured `displacement_px`, (batch, 2, y, x) both.

        Noise stays as it is: the true traction / E tells what is to be exchanged.
        """
        if other is self:
            return displacement_px
        return displacement_px + other.displacement(traction) - self.displacement(traction)
