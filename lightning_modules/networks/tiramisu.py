"""The Bayesian Tiramisu: a fully convolutional DenseNet that gives every pixel a log-normal traction magnitude.

Pielawski et al., "In Silico Prediction of Cell Traction Forces", ISBI 2020, arXiv 1910.07380, section 2.2, and the
authors' models/densenet.py and train_model.ipynb, which the layers follow: 4,324,946 trainable parameters.

    image -> conv 3x3 -> 6 x (dense block -> transition, half the size) -> dense block
          -> 6 x (its new maps, twice the size, beside the skipped maps -> dense block) -> mu, sigma of ln F
    dense layer: batch normalisation -> ReLU -> conv 3x3, 16 maps -> dropout; its maps join those it has read.
    transition: batch normalisation -> ReLU -> conv 1x1 -> maximum over 2 x 2 pixels.

Dropout belongs to the model: the paper leaves it on at prediction, where every pass is another draw of the network,
while batch normalisation uses its running statistics. `eval()` switches both off as everywhere in torch; `sampling()`
switches on dropout alone.

Deviations. The text has convolutions of 128 filters after each doubling; the authors' code has none (the argument goes
unused), and with them the count would be another. Keras truncates its Glorot normal at two standard deviations and
rescales it, torch's has the same variance and is not truncated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.networks.dense_block import DenseBlock, batch_norm

SIGMA_START = 1.0


class BayesianTiramisu(nn.Module):
    """Fluorescence -> mean and standard deviation of the logarithm of the traction magnitude.

    Args:
        in_channels: channels of the image (#).
        blocks: dense blocks on the way down, and as many on the way up (#); sizes are multiples of 2**blocks pixels.
        layers: layers of a dense block (#).
        growth: maps that a layer adds (#).
        initial_channels: maps of the first convolution (#).
        dropout_rate: share of the new maps' values that dropout sets to 0, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.

    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        blocks: int = 6,
        layers: int = 5,
        growth: int = 16,
        initial_channels: int = 48,
        dropout_rate: float = 0.2,
    ) -> None:
        for name, value in (
            ("in_channels", in_channels),
            ("blocks", blocks),
            ("layers", layers),
            ("growth", growth),
            ("initial_channels", initial_channels),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= dropout_rate < 1:
            raise ValueError(f"dropout_rate must lie in [0, 1), got {dropout_rate}")
        super().__init__()
        self.in_channels = in_channels
        self.size_step_px = 2**blocks
        self.first = nn.Conv2d(in_channels, initial_channels, kernel_size=3, padding=1, bias=False)
        self.first_norm = batch_norm(initial_channels)
        self.down = nn.ModuleList()
        self.transitions = nn.ModuleList()
        channels, skipped = initial_channels, []
        for _ in range(blocks):
            self.down.append(DenseBlock(channels, layers=layers, growth=growth, dropout_rate=dropout_rate))
            channels += layers * growth
            skipped.append(channels)
            self.transitions.append(_transition(channels))
        self.bottom = DenseBlock(channels, layers=layers, growth=growth, dropout_rate=dropout_rate)
        self.up = nn.ModuleList()
        for channels in reversed(skipped):
            width = layers * growth + channels
            self.up.append(DenseBlock(width, layers=layers, growth=growth, dropout_rate=dropout_rate))
        self.out_channels = 2 * layers * growth + skipped[0]
        self.mu = nn.Conv2d(self.out_channels, 1, kernel_size=1)
        self.sigma = nn.Conv2d(self.out_channels, 1, kernel_size=1)
        _start(self)
        self.to(memory_format=torch.channels_last)  # a fifth faster on a CPU (measured)

    def forward(self, image: Tensor) -> Tensor:
        """Image (batch, in_channels, y, x), logarithm of grey levels -> (batch, 2, y, x): mu, sigma of ln(traction).

        The traction is in the unit that the network was trained on. The dtype is the weights', under autocast too.

        Raises:
            ValueError: the shape is another, or y or x is not a multiple of 2**blocks.
        """
        features = self.features(image)
        with torch.autocast(features.device.type, enabled=False):  # bfloat16's 8 bits are too few for a logarithm
            features = features.to(self.mu.weight.dtype)
            weight = torch.cat((self.mu.weight, self.sigma.weight))
            bias = torch.cat((self.mu.bias, self.sigma.bias))
            mu, before = _pointwise(features, weight, bias).split(1, dim=1)
            return torch.cat((mu, functional.softplus(before)), dim=1)

    def features(self, image: Tensor) -> Tensor:
        """Image as in `forward` -> what both heads read, (batch, out_channels, y, x): 288 as published."""
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(f"image must have shape (batch, {self.in_channels}, y, x), got {tuple(image.shape)}")
        if image.shape[2] % self.size_step_px or image.shape[3] % self.size_step_px:
            raise ValueError(f"image must have y and x divisible by {self.size_step_px}, got {tuple(image.shape)}")
        maps = self.first_norm(self.first(image)).relu()
        skips = []
        for block, transition in zip(self.down, self.transitions, strict=True):
            skips.append(block(maps))
            maps = transition(skips[-1])
        maps, new = self.bottom(maps), self.bottom.new_channels
        for block in self.up:
            doubled = functional.interpolate(maps[:, -new:], scale_factor=2.0, mode="nearest")
            maps, new = block(doubled, skips.pop()), block.new_channels
        return maps

    @contextmanager
    def sampling(self, generators: Sequence[torch.Generator] | None = None) -> Iterator[None]:
        """Within, every pass is one draw: dropout on, all else as in `eval()`; afterwards every mode is as it was.

        `generators`, one per image of the batch and on its device, make an image's draw a function of its generator
        alone; None has dropout take from torch's global one.
        """
        modes = [(module, module.training) for module in self.modules()]
        try:
            self.eval()
            for module, _ in modes:
                if isinstance(module, nn.Dropout):
                    module.training = True
                if isinstance(module, DenseBlock):
                    module.generators = generators
            yield
        finally:
            for module, mode in modes:
                module.training = mode
                if isinstance(module, DenseBlock):
                    module.generators = None

    @torch.no_grad()
    def sample(self, image: Tensor, *, draws: int) -> Tensor:
        """Predict with `draws` networks: image as in `forward` -> (draws, batch, 2, y, x), mu and sigma of each draw.

        Dropout takes from torch's global generator of the device.

        Raises:
            ValueError: `draws` is below 1.
        """
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        with self.sampling():
            return torch.stack([self(image) for _ in range(draws)])

    def penalised_weights(self) -> list[nn.Parameter]:
        """The kernels that the authors' L2 penalty is on: the first convolution's and the transitions' (757,936).

        Keras adds 1e-4 times their sum of squares to the loss: `weight_decay=2e-4` of torch's Adam.
        """
        return [self.first.weight, *(transition[2].weight for transition in self.transitions)]


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        batch_norm(channels),
        nn.ReLU(inplace=True),
        _Pointwise(channels, channels, kernel_size=1, bias=False),
        nn.MaxPool2d(2),
    )


class _Pointwise(nn.Conv2d):
    """A 1 x 1 convolution, as one matrix product of maps that lie channels last."""

    def forward(self, maps: Tensor) -> Tensor:
        return _pointwise(maps, self.weight, self.bias)


def _pointwise(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Maps (batch, channels, y, x) and a kernel (new, channels, 1, 1) -> (batch, new, y, x).

    torch's own convolution takes twice as long in the backward pass of a head (measured on a CPU).
    """
    return functional.linear(maps.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _start(network: BayesianTiramisu) -> None:
    """Glorot-normal kernels; the head of sigma starts at 1 everywhere, whatever the image."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    nn.init.zeros_(network.sigma.weight)
    nn.init.constant_(network.sigma.bias, math.log(math.expm1(SIGMA_START)))  # the inverse of softplus
