"""Our network for traction from displacement: U-Nets that take turns with an explicit elastic operator.

Step 0 reads a first traction from the displacement and from regularised Fourier inverses of it. Each further step asks
the operator what displacement the traction so far would have caused, inverts what is left of the measured one, and lets
a U-Net of its own decide what of it is traction and what is noise (learned primal-dual reconstruction, Adler & Oktem
2018, 10.1109/TMI.2018.2799231, with unshared steps):
    x_0 = N_0(R u, u),  r_k = u - G x_k,  x_(k+1) = x_k + N_(k+1)(x_k, R r_k, r_k).
G is `physics.half_space.displacement_from_traction`, R `physics.traction_cytometry.traction_from_displacement` at fixed
regularisations. Poisson's ratio, centre element, reach and the transfer function of the displacement measurement are
arguments, not weights: the same weights serve a measurement whose operator is known to differ.

Units are those of the grid: displacement in pixels, traction per Young's modulus. Every input is divided by its root
mean square and the output multiplied by it, so f(a u) = a f(u): one network for every stiffness, magnification and
strength of pulling. How noisy a field is the network sees from the field itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_modules.networks.planar_unet import PlanarUNet
from physics.half_space import displacement_from_traction
from physics.traction_cytometry import traction_from_displacement

REGULARIZATIONS = (0.02, 0.2)
"""Of R, in (px E)^2: about where a hundredth and a tenth of the power of the shortest waves is given up."""


class UnrolledTractionNet(nn.Module):
    """Displacement (batch, 2, y, x) in px -> traction per Young's modulus (batch, 2, y, x).

    Args:
        steps: corrections after the first estimate (#).
        width: channels of each U-Net at full resolution (#).
        depth: halvings of each U-Net (#).
        poisson_ratio: of the substrate.
        centre_element: "exact" or "published", see `physics.half_space`.
        reach: "full" or "published"; the latter for square fields of even size only.
        transfer_function: kernel (n,) of the displacement measurement along each axis; None for a perfect one.

    Raises:
        ValueError: an argument is out of its range.

    """

    transfer_function: Tensor | None

    def __init__(
        self,
        *,
        steps: int = 2,
        width: int = 16,
        depth: int = 3,
        poisson_ratio: float = 0.45,
        centre_element: str = "exact",
        reach: str = "full",
        transfer_function: Sequence[float] | None = None,
    ) -> None:
        if steps < 0:
            raise ValueError(f"steps must be at least 0, got {steps}")
        super().__init__()
        self.poisson_ratio = poisson_ratio
        self.centre_element = centre_element
        self.reach = reach
        kernel = None if transfer_function is None else torch.tensor(transfer_function, dtype=torch.float32)
        self.register_buffer("transfer_function", kernel, persistent=False)
        inverses = 2 * len(REGULARIZATIONS)
        self.first = PlanarUNet(inverses + 2, 2, width=width, depth=depth, scale_equivariant=False)
        self.corrections = nn.ModuleList(
            PlanarUNet(inverses + 4, 2, width=width, depth=depth, scale_equivariant=False) for _ in range(steps)
        )
        for network in (self.first, *self.corrections):
            # starts from no traction: the inverse of a random one's residual would be enormous
            nn.init.zeros_(network.last.weight)

    def forward(self, displacement_px: Tensor) -> Tensor:
        """Measured displacement (batch, 2, y, x) in px, noise and all -> traction / E (batch, 2, y, x)."""
        return self.estimates(displacement_px)[-1]

    def estimates(self, displacement_px: Tensor) -> list[Tensor]:
        """The estimate after every step, the last one being the answer; each (batch, 2, y, x)."""
        rms = displacement_px.float().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        rms = torch.where(rms > 0, rms, 1)  # (batch, 1, 1, 1)
        measured = displacement_px.float() / rms
        traction = self.first(torch.cat((self._inverses(measured), measured), dim=1)).float()
        estimates = [traction * rms]
        for correction in self.corrections:
            left = measured - self.predicted_displacement(traction)
            seen = torch.cat((traction, self._inverses(left), left), dim=1)
            traction = traction + correction(seen).float()
            estimates.append(traction * rms)
        return estimates

    def predicted_displacement(self, traction: Tensor) -> Tensor:
        """The displacement in px that a traction / E (..., 2, y, x) causes under this network's operator."""
        with torch.autocast(traction.device.type, enabled=False):
            return displacement_from_traction(
                traction.float(),
                pixel_size_um=1.0,
                youngs_modulus_pa=1.0,
                poisson_ratio=self.poisson_ratio,
                centre_element=self.centre_element,
                reach=self.reach,
                transfer_function=self.transfer_function,
            )

    def _inverses(self, displacement: Tensor) -> Tensor:
        """Regularised tractions of a displacement, (batch, 2 per regularisation, y, x)."""
        with torch.autocast(displacement.device.type, enabled=False):
            return torch.cat(
                [
                    traction_from_displacement(
                        displacement,
                        pixel_size_um=1.0,
                        youngs_modulus_pa=1.0,
                        poisson_ratio=self.poisson_ratio,
                        regularization=regularization,
                        transfer_function=self.transfer_function,
                    )
                    for regularization in REGULARIZATIONS
                ],
                dim=1,
            )
