"""Volumetric force net: 3-D U-Net that reads a displacement field from an undeformed and a deformed volume.

Duan et al., Biophys J 121:2180 (2022), 10.1016/j.bpj.2022.04.028: a stack of deep convolutional networks takes pairs of
volumes of a random fluorescent pattern to the cell's force, no displacement given. The available text states no layer,
so the architecture is ours: both volumes as two channels, widths 16, 32, 64, 128, at each level two 3 x 3 x 3
convolutions with group normalisation (8 groups: batches are small) and leaky ReLU (0.1), max-pooling and transposed
convolutions by 2, a 1 x 1 x 1 head. 1,402,435 parameters. `lightning_modules.networks.physics_layer` makes strain,
stress and force of its output.

The head starts small, so that training starts near no displacement.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

VOLUMES = 2  # undeformed, deformed
COMPONENTS = 3  # x, y, z
GROUPS = 8
NEGATIVE_SLOPE = 0.1
HEAD_SD = 0.01


class VolumetricForceNet(nn.Module):
    """U-Net from a pair of volumes, stacked as channels, to the displacement that deforms the first into the second.

    Args:
        channels: channels at full resolution and after each halving (#), multiples of 8. Each halving doubles what
            the sizes of the volumes are continued to a multiple of.

    """

    def __init__(self, channels: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        if len(channels) < 2 or any(width < GROUPS or width % GROUPS for width in channels):
            raise ValueError(f"channels must be at least two multiples of {GROUPS}, got {channels}")
        super().__init__()
        *levels, bottom = channels
        self.size_step_voxels = 2 ** len(levels)
        self.encoders = nn.ModuleList()
        width = VOLUMES
        for level in levels:
            self.encoders.append(_block(width, level))
            width = level
        self.pool = nn.MaxPool3d(2)
        self.bottom = _block(width, bottom)
        self.doublings = nn.ModuleList()
        self.decoders = nn.ModuleList()
        width = bottom
        for level in reversed(levels):
            self.doublings.append(nn.ConvTranspose3d(width, level, kernel_size=2, stride=2))
            self.decoders.append(_block(2 * level, level))
            width = level
        self.head = nn.Conv3d(width, COMPONENTS, kernel_size=1)
        _start(self)

    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes (batch, 2, z, y, x), undeformed then deformed, in [0, 1] -> displacement (batch, 3, z, y, x).

        The displacement is in voxels of its own axis, components (x, y, z), at the undeformed positions. Sizes that are
        no multiple of 8 are continued at the far faces and the output is cropped back. Raises ValueError when the shape
        is another.
        """
        if volumes.ndim != 5 or volumes.shape[1] != VOLUMES:
            raise ValueError(f"volumes must have shape (batch, 2, z, y, x), got {tuple(volumes.shape)}")
        depth, height, width = volumes.shape[2:]
        step = self.size_step_voxels
        features = functional.pad(volumes, (0, -width % step, 0, -height % step, 0, -depth % step), mode="replicate")
        skips = []
        for encoder in self.encoders:
            skips.append(encoder(features))
            features = self.pool(skips[-1])
        features = self.bottom(features)
        for doubling, decoder in zip(self.doublings, self.decoders, strict=True):
            features = decoder(torch.cat((skips.pop(), doubling(features)), dim=1))
        return self.head(features)[..., :depth, :height, :width]


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv3d(channels, out_channels, kernel_size=3, padding=1),
            nn.GroupNorm(GROUPS, out_channels),
            nn.LeakyReLU(NEGATIVE_SLOPE),
        ]
    return nn.Sequential(*layers)


def _start(network: nn.Module) -> None:
    """Weights that keep the mean square of the activations, except in the head; zero biases."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            if layer.kernel_size == (1, 1, 1):
                nn.init.normal_(layer.weight, std=HEAD_SD)
            else:
                nn.init.kaiming_normal_(layer.weight, a=NEGATIVE_SLOPE)
        elif isinstance(layer, nn.ConvTranspose3d):  # kernel 2 with stride 2: an output voxel sees one input voxel
            nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.zeros_(layer.bias)
