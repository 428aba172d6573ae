"""A plain 2-D U-Net for displacement -> traction: the cheap sibling of the published networks (ours).

The components are two channels of an image, so that every layer mixes both, which the published 3-D network does one
way only. Blocks are plain: 3 x 3 convolutions and ReLU, no normalisation layer (its statistics would tie the network
to the amplitudes it was trained on) and no residual path. With the amplitude taken out of the input and put back onto
the output, one network serves every stiffness and every strength of pulling, as linear elasticity does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.networks.field_strength import strength
from lightning_modules.networks.tiling import on_any_size

BLOCK_CONVOLUTIONS = 2
BOTTOM_CONVOLUTIONS = 3


class PlanarUNet(nn.Module):
    """U-Net whose width doubles with each of `depth` halvings; two convolutions a block, three at the bottom.

    Args:
        in_channels: channels of the input (#), for a displacement its components (x, y).
        out_channels: channels of the output (#), for a traction its components (x, y).
        width: channels at full resolution (#). 16 at depth 3 has 629,490 parameters.
        depth: halvings (#); sizes that are no multiple of 2**depth are padded with zeros at the far edges, and the
            output is cropped back. In evaluation mode, fields above 512 px are computed in tiles (`tiling`).
        scale_equivariant: divide each input by its root mean square (`field_strength`) and multiply the output by it,
            so that f(a u) = a f(u) for every a > 0 and f(0) = 0: any unit, stiffness or strength of pulling works
            alike. False leaves the amplitude to the network, which can then learn what is noise from how small it is.

    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 2,
        *,
        width: int = 16,
        depth: int = 3,
        scale_equivariant: bool = True,
    ) -> None:
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("width", width),
            ("depth", depth),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        super().__init__()
        self.in_channels = in_channels
        self.scale_equivariant = scale_equivariant
        self.size_step_px = 2**depth
        self.encoders = nn.ModuleList()
        channels = in_channels
        for level in range(depth):
            self.encoders.append(_block(channels, width * 2**level, BLOCK_CONVOLUTIONS))
            channels = width * 2**level
        self.pool = nn.MaxPool2d(2)
        self.bottom = _block(channels, 2 * channels, BOTTOM_CONVOLUTIONS)
        self.doublings = nn.ModuleList()
        self.decoders = nn.ModuleList()
        channels = 2 * channels
        for _ in range(depth):
            self.doublings.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
            self.decoders.append(_block(channels, channels // 2, BLOCK_CONVOLUTIONS))
            channels = channels // 2
        self.last = nn.Conv2d(channels, out_channels, kernel_size=1)
        _start(self)
        self.to(memory_format=torch.channels_last)  # a quarter faster on a CPU (measured)

    def forward(self, displacement: Tensor) -> Tensor:
        """Displacement (batch, in_channels, y, x), any size and unit -> traction (batch, out_channels, y, x).

        Raises ValueError when the shape is another.
        """
        if displacement.ndim != 4 or displacement.shape[1] != self.in_channels:
            raise ValueError(
                f"displacement must have shape (batch, {self.in_channels}, y, x), got {tuple(displacement.shape)}"
            )
        if not self.scale_equivariant:
            return self._traction(displacement)
        rms = strength(displacement)  # (batch, 1, 1, 1)
        return self._traction(displacement / torch.where(rms > 0, rms, 1)) * rms

    def _traction(self, displacement: Tensor) -> Tensor:
        return on_any_size(self._layers, displacement, step_px=self.size_step_px, tiles=not self.training)

    def _layers(self, features: Tensor) -> Tensor:
        skips = []
        for encoder in self.encoders:
            skips.append(encoder(features))
            features = self.pool(skips[-1])
        features = self.bottom(features)
        for doubling, decoder in zip(self.doublings, self.decoders, strict=True):
            features = decoder(torch.cat((skips.pop(), doubling(features)), dim=1))
        return self.last(features)


def _block(in_channels: int, out_channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        layers += [nn.Conv2d(out_channels if index else in_channels, out_channels, kernel_size=3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _start(network: nn.Module) -> None:
    """Weights that keep the mean square of the activations: He normal before a ReLU, 1 / inputs elsewhere."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            if layer.kernel_size == (3, 3):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:  # kernel 1, or 2 with stride 2: an output pixel sees one input pixel
                nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)
            nn.init.zeros_(layer.bias)
