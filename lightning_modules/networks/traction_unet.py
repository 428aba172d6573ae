"""TracNet: the 51-layer 3-D-convolution U-Net that reads traction from displacement, and a variant without its slip.

Wang, Lin, "Traction force microscopy by deep learning", Biophys J 120:3079 (2021), supplementary fig. 1 of the preprint
(bioRxiv 2020.05.20.107128), and the authors' train/createTracnet.m, which the layers follow one by one. A field is a
volume of depth 2, the planes its x and its y component, with one channel; a kernel is 3 x 3 pixels x 2 planes.
4,025,892 parameters; every convolution has a bias, no batch normalisation stands after an encoder level's second one.

The published network mixes the components one way only. An even kernel with MATLAB's "same" padding gets its zeros on
the far side, so along the depth plane x sees planes x and y, and plane y sees itself and zeros. Layer after layer this
stays so: the traction along y never depends on the displacement along x. `variant="faithful"` keeps that.
`variant="symmetric"` gives the kernels three planes, so that "same" pads one plane on either side and each component
sees the other: 5,649,924 parameters. Circular padding of the two planes would be cheaper, but makes the network
commute with an exchange of the components that leaves the pixels in place; elasticity does not (G_xx differs from
G_yy): of a white traction the best linear inverse with that symmetry misses 20.5 % at Poisson's ratio 0.45.

Deviations: none in what is computed by the faithful variant. Depth-2 convolutions are carried out as 2-D convolutions
over stacked planes (3-D ones are several times slower on a CPU) with the weights in the published 3-D shape; whatever
acts within a plane (pooling, transposed convolution, batch normalisation) sees the planes as further samples, which is
the same arithmetic. MATLAB gathers the statistics of batch normalisation after training, torch during it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

ENCODER_CHANNELS = ((32, 64), (64, 128), (128, 256))
BOTTOM_CHANNELS = (128, 256)
DECODER_CHANNELS = ((64, 128), (32, 64), (1, 32))  # one channel at full resolution: as published
SIZE_STEP_PX = 2 ** len(ENCODER_CHANNELS)
NARROW_NORMAL_SD = 0.01
VARIANTS = ("faithful", "symmetric")


class TractionUNet3d(nn.Module):
    """U-Net over the two planes of a displacement field, for any size that is a multiple of 8.

    Args:
        variant: "faithful", the published network, whose y traction is blind to the x displacement; "symmetric", the
            same layers with kernels of three planes, in which both components see each other.

    """

    def __init__(self, variant: Literal["faithful", "symmetric"] = "faithful") -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        super().__init__()
        kernel_planes = 2 if variant == "faithful" else 3
        self.encoders = nn.ModuleList()
        channels = 1
        for middle, out in ENCODER_CHANNELS:
            self.encoders.append(
                nn.Sequential(
                    *_normalised(channels, middle, kernel_planes),
                    PlaneConvolution(middle, out, kernel_planes),
                    nn.ReLU(),
                )
            )
            channels = out
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in ENCODER_CHANNELS)
        middle, out = BOTTOM_CHANNELS
        self.bottom = nn.Sequential(
            *_normalised(channels, middle, kernel_planes), *_normalised(middle, out, kernel_planes)
        )
        self.doublings = nn.ModuleList()
        self.decoders = nn.ModuleList()
        for (_, skipped), (middle, out_next) in zip(reversed(ENCODER_CHANNELS), DECODER_CHANNELS, strict=True):
            self.doublings.append(_doubling(out))
            self.decoders.append(
                nn.Sequential(
                    *_normalised(skipped + out, middle, kernel_planes), *_normalised(middle, out_next, kernel_planes)
                )
            )
            out = out_next
        self.last = PlaneConvolution(out, 1, kernel_planes)

    def forward(self, displacement: Tensor) -> Tensor:
        """Displacement (batch, 2, y, x) in pixels, planes (x, y) -> traction (batch, 2, y, x) in the network's unit.

        The network's unit is the stress on a substrate of Young's modulus 10 (at 104 pixels); raises ValueError when
        the shape is another or y or x is not a multiple of 8.
        """
        if displacement.ndim != 4 or displacement.shape[1] != 2:
            raise ValueError(f"displacement must have shape (batch, 2, y, x), got {tuple(displacement.shape)}")
        if displacement.shape[2] % SIZE_STEP_PX or displacement.shape[3] % SIZE_STEP_PX:
            raise ValueError(
                f"displacement must have y and x divisible by {SIZE_STEP_PX}, got {tuple(displacement.shape)}"
            )
        planes = displacement.reshape(-1, 1, *displacement.shape[2:])  # (2 batch, 1, y, x): x, y of a field in turn
        skips = []
        for encoder, pool in zip(self.encoders, self.pools, strict=True):
            skips.append(encoder(planes))
            planes = pool(skips[-1])
        planes = self.bottom(planes)
        for doubling, decoder in zip(self.doublings, self.decoders, strict=True):
            doubled = doubling(planes)[..., :-1, :-1]  # (n, n) -> (2n + 1, 2n + 1) -> (2n, 2n), "Cropping same"
            planes = decoder(torch.cat((skips.pop(), doubled), dim=1))
        return self.last(planes).reshape(displacement.shape)


class PlaneConvolution(nn.Module):
    """3-D convolution of kernel (planes, 3, 3) over volumes of two planes, "same" size, computed in two dimensions.

    Equal to `torch.nn.Conv3d` with `padding="same"`, with its weight and bias shapes; begins with MATLAB's
    "narrow-normal" weights N(0, 0.01) and zero biases.

    Args:
        in_channels: channels of either plane (#).
        out_channels: channels of either plane (#).
        kernel_planes: 2, padded on the far side; or 3, padded on both.

    """

    def __init__(self, in_channels: int, out_channels: int, kernel_planes: int) -> None:
        if kernel_planes not in (2, 3):
            raise ValueError(f"kernel_planes must be 2 or 3, got {kernel_planes}")
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_planes, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.normal_(self.weight, std=NARROW_NORMAL_SD)

    def forward(self, planes: Tensor) -> Tensor:
        """Planes (2 batch, in, y, x), the x and y plane of a field in turn -> (2 batch, out, y, x)."""
        pairs = planes.unflatten(0, (-1, 2)).flatten(1, 2)  # (batch, 2 in, y, x)
        kernels = self.weight.unbind(2)
        if len(kernels) == 2:
            own, following = kernels
            seen_by_y, kernel_y = pairs[:, planes.shape[1] :], own
        else:
            preceding, own, following = kernels
            seen_by_y, kernel_y = pairs, torch.cat((preceding, own), dim=1)
        plane_x = functional.conv2d(pairs, torch.cat((own, following), dim=1), self.bias, padding=1)
        plane_y = functional.conv2d(seen_by_y, kernel_y, self.bias, padding=1)
        return torch.stack((plane_x, plane_y), dim=1).flatten(0, 1)


def _doubling(channels: int) -> nn.ConvTranspose2d:
    """Transposed convolution of kernel (1, 3, 3) and stride (1, 2, 2): n -> 2n + 1 pixels, before the crop."""
    layer = nn.ConvTranspose2d(channels, channels, kernel_size=3, stride=2)
    nn.init.normal_(layer.weight, std=NARROW_NORMAL_SD)
    nn.init.zeros_(layer.bias)
    return layer


def _normalised(in_channels: int, out_channels: int, kernel_planes: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Convolution, batch normalisation (over both planes, as in three dimensions), ReLU."""
    return PlaneConvolution(in_channels, out_channels, kernel_planes), nn.BatchNorm2d(out_channels), nn.ReLU()
