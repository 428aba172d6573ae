"""CycleGAN: a generator of nine residual blocks, and the pool of past images that its discriminators are shown.

Zhu, Park, Isola, Efros, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks", ICCV 2017,
appendix 7, in the authors' PyTorch form, which Vasudevan, Zheng et al., PLOS ONE 0271056 (2022) compare with as it
comes. Parameters: each of the two generators 11,378,179, each of the two discriminators 2,764,737; these are
`pix2pix.PatchDiscriminator(3, normalization="instance")`. The pool follows Shrivastava et al., CVPR 2017.

Deviations: none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.networks.pix2pix import start_narrow

SIZE_STEP_PX = 4
POOLED_IMAGES = 50


class ResNetGenerator(nn.Module):
    """Image in [-1, 1] -> image in [-1, 1] of the same size, a multiple of 4.

    Args:
        image_channels: of the input and of the output (#).
        width: channels at full resolution (#); the residual blocks have four times as many.
        blocks: residual blocks (#); 9 for images of 256 pixels and more, 6 for 128.

    """

    def __init__(self, image_channels: int = 3, *, width: int = 64, blocks: int = 9) -> None:
        for name, value in {"image_channels": image_channels, "width": width}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if blocks < 0:
            raise ValueError(f"blocks must not be negative, got {blocks}")
        super().__init__()
        self.image_channels = image_channels
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(3),
            *_normalised(nn.Conv2d(image_channels, width, kernel_size=7)),
            *_normalised(nn.Conv2d(width, 2 * width, kernel_size=3, stride=2, padding=1)),
            *_normalised(nn.Conv2d(2 * width, 4 * width, kernel_size=3, stride=2, padding=1)),
            *(ReflectedBlock(4 * width) for _ in range(blocks)),
            *_normalised(nn.ConvTranspose2d(4 * width, 2 * width, 3, stride=2, padding=1, output_padding=1)),
            *_normalised(nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1)),
            nn.ReflectionPad2d(3),
            nn.Conv2d(width, image_channels, kernel_size=7),
            nn.Tanh(),
        )
        start_narrow(self)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, channels, y, x) in [-1, 1] -> image (B, channels, y, x) in [-1, 1].

        Raises ValueError when the channels are others, or y or x is no multiple of 4.
        """
        if image.ndim != 4 or image.shape[1] != self.image_channels:
            raise ValueError(f"image must have shape (batch, {self.image_channels}, y, x), got {tuple(image.shape)}")
        if image.shape[2] % SIZE_STEP_PX or image.shape[3] % SIZE_STEP_PX:
            raise ValueError(f"image must have y and x divisible by {SIZE_STEP_PX}, got {tuple(image.shape)}")
        return self.layers(image)


class ReflectedBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), 3 x 3 with reflected borders; the shape stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normalised(nn.Conv2d(channels, channels, kernel_size=3)),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, kernel_size=3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, y, x) -> the same shape."""
        return features + self.residual(features)


class ImagePool(nn.Module):
    """Up to `capacity` past images; what it holds is part of the state dict, so that a resumed run goes on as it was.

    Args:
        capacity: images held (#); 0 hands every image straight back.

    """

    def __init__(self, capacity: int = POOLED_IMAGES) -> None:
        if capacity < 0:
            raise ValueError(f"capacity must not be negative, got {capacity}")
        super().__init__()
        self.capacity = capacity
        self.held: list[Tensor] = []

    def forward(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Images (B, ...) -> as many: each is held and handed back until the pool is full.

        From then on, one after the other and with probability 1/2, an image takes the place of a held one, which is
        handed back instead. What comes back has no gradient. The draws are the CPU generator's, torch's own by default.
        """
        if self.capacity == 0:
            return images.detach()
        returned = []
        for image in images.detach():
            if len(self.held) < self.capacity:
                self.held.append(image.clone())
                returned.append(image)
            elif torch.rand((), generator=generator) > 0.5:
                place = int(torch.randint(self.capacity, (), generator=generator))
                returned.append(self.held[place].to(image))
                self.held[place] = image.clone()
            else:
                returned.append(image)
        return torch.stack(returned)

    def get_extra_state(self) -> dict[str, Tensor]:
        """The held images as one tensor, or nothing while there are none."""
        return {"held": torch.stack(self.held)} if self.held else {}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Hold the images of a state dict again."""
        self.held = list(state["held"].clone()) if state else []


def _normalised(convolution: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Convolution, instance normalisation without learned scales, ReLU."""
    return convolution, nn.InstanceNorm2d(int(convolution.out_channels)), nn.ReLU()  # type: ignore[arg-type]
