"""pix2pix: a U-Net that halves an image down to one pixel, and a discriminator that judges patches of 70 x 70 pixels.

Isola, Zhu, Zhou, Efros, "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017, appendix 6.1, in
the authors' PyTorch form, which Vasudevan, Zheng et al., PLOS ONE 0271056 (2022) compare with as it comes. Parameters:
generator 54,413,955 at 256 pixels, discriminator 2,768,705 over image and condition (3 + 3 channels).

Dropout is the generator's only noise, and the paper keeps it on at test time; here it follows the module's mode.
Deviations: none.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

WIDEST = 8
WIDENING_LEVELS = 4
WEIGHT_SD = 0.02
SLOPE = 0.2
NORMALISATIONS = ("batch", "instance")


class Pix2PixUNet(nn.Module):
    """Image in [-1, 1] -> image in [-1, 1] of the same size, a multiple of 2^levels (384 pixels: levels 7).

    Args:
        image_channels: of the input and of the output (#).
        levels: halvings (#), at least 5; 8 is their "unet_256", 7 their "unet_128".
        width: channels after the first halving (#); they double up to eight times that.

    """

    def __init__(self, image_channels: int = 3, *, levels: int = 8, width: int = 64) -> None:
        if image_channels < 1:
            raise ValueError(f"image_channels must be at least 1, got {image_channels}")
        if levels < 5:
            raise ValueError(f"levels must be at least 5, got {levels}")
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        super().__init__()
        channels = [width * min(2**level, WIDEST) for level in range(levels)]
        self.image_channels = image_channels
        self.size_step_px = 2**levels
        self.downs = nn.ModuleList()
        before = image_channels
        for level, after in enumerate(channels):
            layers: list[nn.Module] = [nn.LeakyReLU(SLOPE)] if level else []
            layers.append(nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1, bias=False))
            if 0 < level < levels - 1:
                layers.append(nn.BatchNorm2d(after))
            self.downs.append(nn.Sequential(*layers))
            before = after
        self.ups = nn.ModuleList()  # from the bottom to the last but one
        for level in reversed(range(1, levels)):
            after = channels[level - 1]
            layers = [nn.ReLU(), _doubling(before, after, bias=False), nn.BatchNorm2d(after)]
            if WIDENING_LEVELS <= level < levels - 1:
                layers.append(nn.Dropout(0.5))
            self.ups.append(nn.Sequential(*layers))
            before = 2 * after
        self.last = nn.Sequential(nn.ReLU(), _doubling(before, image_channels, bias=True), nn.Tanh())
        start_narrow(self)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, channels, y, x) in [-1, 1] -> image (B, channels, y, x) in [-1, 1].

        Raises ValueError when the channels are others, or y or x is no multiple of 2^levels.
        """
        if image.ndim != 4 or image.shape[1] != self.image_channels:
            raise ValueError(f"image must have shape (batch, {self.image_channels}, y, x), got {tuple(image.shape)}")
        if image.shape[2] % self.size_step_px or image.shape[3] % self.size_step_px:
            raise ValueError(f"image must have y and x divisible by {self.size_step_px}, got {tuple(image.shape)}")
        features = image
        skips = []
        for down in self.downs:
            features = down(features)
            skips.append(features)
        features = skips.pop()
        for up in self.ups:
            features = torch.cat((skips.pop(), up(features)), dim=1)
        return self.last(features)


class PatchDiscriminator(nn.Module):
    """One logit per patch of 70 x 70 pixels, 8 pixels apart ("70 x 70 PatchGAN").

    Args:
        image_channels: of what is judged (#): 6 for an image beside its condition, 3 for an image alone.
        normalization: "batch" for pix2pix; "instance" for CycleGAN, without learned scales.
        width: channels after the first convolution (#); they double three times.

    """

    def __init__(
        self, image_channels: int = 6, *, normalization: Literal["batch", "instance"] = "batch", width: int = 64
    ) -> None:
        if image_channels < 1:
            raise ValueError(f"image_channels must be at least 1, got {image_channels}")
        if normalization not in NORMALISATIONS:
            raise ValueError(f"normalization must be one of {', '.join(NORMALISATIONS)}, got {normalization!r}")
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        super().__init__()
        self.image_channels = image_channels
        layers: list[nn.Module] = [
            nn.Conv2d(image_channels, width, kernel_size=4, stride=2, padding=1),
            nn.LeakyReLU(SLOPE),
        ]
        for before, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            batch = normalization == "batch"
            layers += [
                nn.Conv2d(before, 2 * before, kernel_size=4, stride=stride, padding=1, bias=not batch),
                nn.BatchNorm2d(2 * before) if batch else nn.InstanceNorm2d(2 * before),
                nn.LeakyReLU(SLOPE),
            ]
        layers.append(nn.Conv2d(8 * width, 1, kernel_size=4, padding=1))
        self.layers = nn.Sequential(*layers)
        start_narrow(self)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, channels, y, x) in [-1, 1] -> logits (B, 1, y / 8 - 2, x / 8 - 2); refuses other channels."""
        if image.ndim != 4 or image.shape[1] != self.image_channels:
            raise ValueError(f"image must have shape (batch, {self.image_channels}, y, x), got {tuple(image.shape)}")
        return self.layers(image)


def start_narrow(module: nn.Module) -> None:
    """Set the authors' start in place: weights N(0, 0.02), scales N(1, 0.02), zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=WEIGHT_SD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, mean=1.0, std=WEIGHT_SD)


def _doubling(in_channels: int, out_channels: int, *, bias: bool) -> nn.ConvTranspose2d:
    """Transposed convolution to exactly twice the size."""
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=bias)
