"""StyleGAN2's residual discriminator, in plain PyTorch: equalised learning rate, blurred halving, minibatch deviation.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, in the form that TFill (CVPR 2022)
and Vasudevan, Zheng et al., PLOS ONE 0271056 (2022) train against: half of StyleGAN2's channels above 16 pixels.
19,048,993 parameters at 256 pixels and 24,291,873 at the 384 of the published run, whose last map is 6 x 6.

Deviations: the originals stop at a batch that their groups of four do not divide; here the group is the largest number
up to four that does, the same wherever theirs runs. With one image in the group the deviation is the constant 1e-4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

BLUR = (1.0, 3.0, 3.0, 1.0)
SLOPE = 0.2
GROUP = 4
COARSE_SIZE_PX = 16
MINIMUM_SIZE_PX = 8
DEVIATION_EPSILON = 1e-8


class StyleGAN2Discriminator(nn.Module):
    """One number per image, high for a real one.

    Args:
        image_size: rows and columns in pixels; 2^k, or more by a multiple of 2^(k - 2), which can be halved down to
            less than 8 and stays whole (256, 320, 384, 448, 512).
        image_channels: of the image (#).
        width: channels of an image of 256 pixels (#, their ndf); they double with every halving down to 32 pixels.
        coarse_channels: channels at 16 pixels and below (#).

    """

    def __init__(
        self, image_size: int = 256, *, image_channels: int = 3, width: int = 32, coarse_channels: int = 512
    ) -> None:
        if image_size < MINIMUM_SIZE_PX:
            raise ValueError(f"image_size must be at least {MINIMUM_SIZE_PX}, got {image_size}")
        size = 2 ** int(math.log2(image_size))  # the power of two that names the channels
        if image_size % (size // 4):
            raise ValueError(f"image_size must be divisible by {size // 4}, got {image_size}")
        for name, value in {"image_channels": image_channels, "coarse_channels": coarse_channels}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if width < 1 or width * 256 < size:
            raise ValueError(f"width must leave a channel at {size} pixels, got {width}")
        super().__init__()
        self.image_shape = (image_channels, image_size, image_size)

        def channels(size_px: int) -> int:
            return coarse_channels if size_px <= COARSE_SIZE_PX else width * 256 // size_px

        before = channels(size)
        layers: list[nn.Module] = [
            EqualisedConvolution(image_channels, before, kernel_size=1),
            BiasedActivation(before),
        ]
        while size > 4:
            size //= 2
            image_size //= 2
            layers.append(HalvingBlock(before, channels(size)))
            before = channels(size)
        self.blocks = nn.Sequential(*layers)
        self.last = nn.Sequential(
            EqualisedConvolution(before + 1, coarse_channels, kernel_size=3, padding=1),
            BiasedActivation(coarse_channels),
            nn.Flatten(),
            EqualisedLinear(coarse_channels * image_size**2, coarse_channels, bias=False),
            BiasedActivation(coarse_channels),
            EqualisedLinear(coarse_channels, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, channels, y, x) in [-1, 1] -> logits (B, 1); ValueError when the shape is another."""
        if image.shape[1:] != self.image_shape:
            raise ValueError(
                f"image must have shape (batch, {', '.join(map(str, self.image_shape))}), got {tuple(image.shape)}"
            )
        features = self.blocks(image)
        return self.last(torch.cat([features, minibatch_deviation(features)], dim=1))


def minibatch_deviation(features: Tensor) -> Tensor:
    """Mean over (channels, y, x) of the deviation between the images of a group: (B, c, y, x) -> (B, 1, y, x).

    The B images fall into B / g groups of g <= 4, image i into group i mod (B / g); its members all get the group's
    value.
    """
    batch, _, y, x = features.shape
    group = max(size for size in range(1, GROUP + 1) if batch % size == 0)
    grouped = features.unflatten(0, (group, -1))  # (g, B / g, c, y, x)
    deviation = (grouped.var(dim=0, unbiased=False) + DEVIATION_EPSILON).sqrt().mean(dim=(1, 2, 3))  # (B / g)
    return deviation.repeat(group)[:, None, None, None].expand(-1, 1, y, x)


class HalvingBlock(nn.Module):
    """(shortcut + residual) / sqrt 2, both blurred and of half the size: (B, in, y, x) -> (B, out, y / 2, x / 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            EqualisedConvolution(in_channels, in_channels, kernel_size=3, padding=1),
            BiasedActivation(in_channels),
            Blur(padding=2),
            EqualisedConvolution(in_channels, out_channels, kernel_size=3, stride=2),
            BiasedActivation(out_channels),
        )
        self.shortcut = nn.Sequential(
            Blur(padding=1, stride=2), EqualisedConvolution(in_channels, out_channels, kernel_size=1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features -> features."""
        return (self.residual(features) + self.shortcut(features)) / math.sqrt(2)


class Blur(nn.Module):
    """Every channel filtered with (1, 3, 3, 1) / 8 along y and x; zero-padded by `padding`, every `stride`-th pixel."""

    kernel: Tensor

    def __init__(self, padding: int, stride: int = 1) -> None:
        super().__init__()
        self.padding = padding
        self.stride = stride
        taps = torch.tensor(BLUR) / sum(BLUR)
        self.register_buffer("kernel", torch.outer(taps, taps), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, y, x) -> (B, channels, ...)."""
        channels = features.shape[1]
        kernel = self.kernel.to(features.dtype).expand(channels, 1, -1, -1)
        return functional.conv2d(features, kernel, stride=self.stride, padding=self.padding, groups=channels)


class EqualisedConvolution(nn.Module):
    """Convolution without bias whose weights begin as N(0, 1) and are divided by sqrt(fan in) in every call."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.stride = stride
        self.padding = padding

    def forward(self, features: Tensor) -> Tensor:
        """(B, in, y, x) -> (B, out, ...)."""
        weight = self.weight / math.sqrt(self.weight[0].numel())
        return functional.conv2d(features, weight, stride=self.stride, padding=self.padding)


class EqualisedLinear(nn.Module):
    """Dense layer whose weights begin as N(0, 1) and are divided by sqrt(fan in) in every call; zero bias."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, features: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        return functional.linear(features, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


class BiasedActivation(nn.Module):
    """Leaky ReLU of slope 0.2 after a learned bias per channel, times sqrt 2, which about keeps a unit variance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, ...) -> the same shape."""
        bias = self.bias.reshape(-1, *[1] * (features.ndim - 2))
        return functional.leaky_relu(features + bias, SLOPE) * math.sqrt(2)
