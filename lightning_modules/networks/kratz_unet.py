"""The small 2-D U-Net of Kratz, Moellerherm and Kierfeld, the published alternative to TracNet.

Kratz, Moellerherm, Kierfeld, "Enhancing robustness, precision, and speed of traction force microscopy with machine
learning", Biophys J 122:3489 (2023). Layers and weights' shapes follow the authors' published weight files: 223,972
trainable parameters, 224,572 numbers with the moving statistics of batch normalisation.

Their training script writes two convolutions a level but feeds the level's input to both, so that the first has no
effect and is absent from the weight files; there is one here. Start (he_normal, Keras' default elsewhere), epsilon and
momentum of the normalisation are Keras'.

Deviations: none in the layers. Fields are (batch, 2, y, x) instead of (batch, x, y, 2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LEVEL_CHANNELS = (10, 20, 40)
BOTTOM_CHANNELS = 160
LEAK = 0.3
SIZE_STEP_PX = 2 ** len(LEVEL_CHANNELS)
TRUNCATION_SHRINKS_SD_TO = 0.87962566103423978  # sd of a standard normal cut at +-2


class KratzUNet(nn.Module):
    """U-Net with one 3 x 3 convolution a level, for any size that is a multiple of 8.

    Args:
        dropout: share of values zeroed after each pooling and each concatenation while training (#).

    """

    def __init__(self, dropout: float = 0.1) -> None:
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        super().__init__()
        self.encoders = nn.ModuleList()
        channels = 2
        for out in LEVEL_CHANNELS:
            self.encoders.append(_convolution(channels, out))
            channels = out
        self.pool = nn.Sequential(nn.MaxPool2d(2), nn.Dropout(dropout))
        self.bottom = _convolution(channels, BOTTOM_CHANNELS)
        self.doublings = nn.ModuleList()
        self.decoders = nn.ModuleList()
        channels = BOTTOM_CHANNELS
        for out in reversed(LEVEL_CHANNELS):
            self.doublings.append(nn.ConvTranspose2d(channels, out, kernel_size=4, stride=2, padding=1))
            self.decoders.append(nn.Sequential(nn.Dropout(dropout), *_convolution(2 * out, out)))
            channels = out
        self.last = nn.Conv2d(channels, 2, kernel_size=1)
        _start_as_keras_does(self)

    def forward(self, displacement: Tensor) -> Tensor:
        """Displacement (batch, 2, y, x), components (x, y), over the field's side -> traction / E of the same shape.

        Both sides of the published relation are free of units; raises ValueError when the shape is another or y or x
        is not a multiple of 8.
        """
        if displacement.ndim != 4 or displacement.shape[1] != 2:
            raise ValueError(f"displacement must have shape (batch, 2, y, x), got {tuple(displacement.shape)}")
        if displacement.shape[2] % SIZE_STEP_PX or displacement.shape[3] % SIZE_STEP_PX:
            raise ValueError(
                f"displacement must have y and x divisible by {SIZE_STEP_PX}, got {tuple(displacement.shape)}"
            )
        features = displacement
        skips = []
        for encoder in self.encoders:
            skips.append(encoder(features))
            features = self.pool(skips[-1])
        features = self.bottom(features)
        for doubling, decoder in zip(self.doublings, self.decoders, strict=True):
            features = decoder(torch.cat((doubling(features), skips.pop()), dim=1))
        return self.last(features)


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01),  # Keras' defaults; its momentum .99 is torch's .01
        nn.LeakyReLU(LEAK),
    )


def _start_as_keras_does(network: nn.Module) -> None:
    """he_normal (cut at two deviations) in the 3 x 3 convolutions, Glorot uniform in the others, zero biases."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            sd = math.sqrt(2 / layer.weight[0].numel()) / TRUNCATION_SHRINKS_SD_TO
            nn.init.trunc_normal_(layer.weight, std=sd, a=-2 * sd, b=2 * sd)
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
        else:
            continue
        nn.init.zeros_(layer.bias)
