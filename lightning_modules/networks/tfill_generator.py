"""TFill-Coarse: a restrictive encoder, a transformer over its tokens, and a decoder that writes images at every size.

Zheng, Cham, Cai, Phung, "Bridging Global Context Interactions for High-Fidelity Image Completion", CVPR 2022 (TFill),
used by Vasudevan, Zheng et al., PLOS ONE 0271056 (2022) to draw nuclei from actin. The layers follow TFill's code, not
the papers' text, where the two differ: the text says LayerNorm, leaky ReLU throughout and one addition of the position
to the tokens; the code has PixelNorm, GELU in the transformer, and adds the position to the queries and keys of every
layer, neither to the values nor to the tokens. Parameters at the published size: encoder 3,328,576, transformer
38,374,912, decoder 22,475,783 (22,475,775 without noise; 16,695,295 with neither attention nor noise).

The encoder's kernels are 1 x 1 and its pooling 2 x 2, so a token sees its own 16 x 16 pixels and nothing else: 256
tokens of an image of 256 pixels, 576 of 384. What joins distant parts of the image is the transformer alone.

Deviations: none in what is computed for an image without holes. TFill's partial convolutions then only divide by the
share of the taps that lie inside the image, which `BorderScaledConvolution` does without a mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 4
PATCH_PX = 2**LEVELS
POSITION_ROWS = 32
MAXIMUM_SIZE_PX = PATCH_PX * POSITION_ROWS
SLOPE = 0.2
PIXEL_NORM_EPSILON = 1e-8


class TFillGenerator(nn.Module):
    """Image in [-1, 1] -> image in [-1, 1] of the same size; with no argument the published 64,179,271 parameters.

    Args:
        image_channels: of the input and of the output (#); the authors repeat a grey image three times.
        width: channels at full resolution (#, their ngf); the tokens have 16 times as many.
        layers: of the transformer (#).
        heads: of every attention layer (#); must divide 8 * width, the channels of the decoder's narrowest attention.
        feed_forward: hidden channels of every attention layer (#).
        decoder_attention: attention within the decoder (their attn_G).
        noise: noise with a learned strength, 0 at the start, before each block of the decoder (their add_noise); it is
            drawn anew in every call, in evaluation too. The published run at 384 pixels went without.

    """

    def __init__(
        self,
        image_channels: int = 3,
        *,
        width: int = 32,
        layers: int = 12,
        heads: int = 8,
        feed_forward: int = 2048,
        decoder_attention: bool = True,
        noise: bool = True,
    ) -> None:
        sizes = {"image_channels": image_channels, "width": width, "heads": heads, "feed_forward": feed_forward}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if layers < 0:
            raise ValueError(f"layers must not be negative, got {layers}")
        if 8 * width % heads:
            raise ValueError(f"heads must divide 8 * width = {8 * width}, got {heads}")
        super().__init__()
        self.encoder = RestrictiveEncoder(image_channels, width)
        self.transformer = TokenTransformer(PATCH_PX * width, layers, heads, feed_forward)
        self.decoder = PyramidDecoder(image_channels, width, heads, feed_forward, decoder_attention, noise)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, channels, y, x) in [-1, 1] -> the last of `pyramid`, (B, channels, y, x) in [-1, 1].

        Raises ValueError when the channels are others, or y or x is no multiple of 16 or above 512 pixels.
        """
        return self.pyramid(image)[-1]

    def pyramid(self, image: Tensor) -> tuple[Tensor, ...]:
        """The same image at 1/16, 1/8, 1/4, 1/2 and the full size, each made from the one before and the features.

        The published loss takes the last only; the paper credits the others with helping the gradient back.
        """
        channels = self.encoder.first.in_channels
        if image.ndim != 4 or image.shape[1] != channels:
            raise ValueError(f"image must have shape (batch, {channels}, y, x), got {tuple(image.shape)}")
        if any(size % PATCH_PX or not 0 < size <= MAXIMUM_SIZE_PX for size in image.shape[2:]):
            raise ValueError(
                f"image must have y and x divisible by {PATCH_PX} and of at most {MAXIMUM_SIZE_PX} pixels, got "
                f"{tuple(image.shape)}"
            )
        return self.decoder(self.transformer(self.encoder(image)))


class RestrictiveEncoder(nn.Module):
    """Image (B, image_channels, y, x) -> tokens (B, 16 width, y / 16, x / 16), each from its own 16 x 16 pixels."""

    def __init__(self, image_channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(image_channels, width, kernel_size=1)
        channels = width
        levels: list[nn.Module] = []
        for _ in range(LEVELS):
            levels.append(nn.Conv2d(channels, channels, kernel_size=2, stride=2))  # the learned pooling
            levels.append(ResidualBlock(channels, 2 * channels, kernel_size=1))
            levels.append(ResidualBlock(2 * channels, 2 * channels, kernel_size=1))
            channels *= 2
        self.levels = nn.Sequential(*levels)
        self.middle = nn.Sequential(*(ResidualBlock(channels, channels, kernel_size=1) for _ in range(2)))
        self.last = ResidualBlock(channels, channels, kernel_size=1)
        _start_kaiming(self)

    def forward(self, image: Tensor) -> Tensor:
        """Image -> tokens."""
        return self.last(self.middle(self.levels(self.first(image))))


class TokenTransformer(nn.Module):
    """Tokens (B, channels, rows, columns) -> the same shape, every token informed by all; up to 32 x 32 tokens."""

    def __init__(self, channels: int, layers: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(channels, channels, kernel_size=1)
        self.row_position = nn.Parameter(torch.rand(POSITION_ROWS, channels))
        self.column_position = nn.Parameter(torch.rand(POSITION_ROWS, channels))
        self.layers = nn.ModuleList(AttentionLayer(channels, heads, feed_forward) for _ in range(layers))
        self.last = nn.Sequential(PixelNorm(channels), nn.GELU(), nn.Conv2d(channels, channels, kernel_size=1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens -> tokens."""
        rows, columns = tokens.shape[2:]
        position = self.row_position[:rows, None] + self.column_position[None, :columns]  # (rows, columns, channels)
        tokens = self.embedding(tokens)
        for layer in self.layers:
            tokens = layer(tokens, position.flatten(0, 1))
        return self.last(tokens)


class PyramidDecoder(nn.Module):
    """Tokens (B, 16 width, rows, columns) -> five images in [-1, 1], from (rows, columns) to 16 times that."""

    def __init__(
        self, image_channels: int, width: int, heads: int, feed_forward: int, attention: bool, noise: bool
    ) -> None:
        super().__init__()
        channels = PATCH_PX * width

        def attending(count: int) -> nn.Module:
            return AttentionLayer(count, heads, feed_forward) if attention else nn.Identity()

        self.first = BorderScaledConvolution(channels, channels)
        self.middle = nn.Sequential(
            ResidualBlock(channels, channels, kernel_size=3),
            attending(channels),
            ResidualBlock(channels, channels, kernel_size=3),
        )
        self.levels = nn.ModuleList()
        self.to_images = nn.ModuleList()
        self.doublings = nn.ModuleList()
        for level in range(LEVELS):
            layers: list[nn.Module] = []
            for before in (channels, channels // 2):
                layers.append(NoiseInjection() if noise else nn.Identity())
                layers.append(ResidualBlock(before, channels // 2, kernel_size=3))
                layers.append(attending(channels // 2) if level == 0 else nn.Identity())
            channels //= 2
            self.levels.append(nn.Sequential(*layers))
            self.to_images.append(ToImage(channels + (image_channels if level else 0), image_channels))
            self.doublings.append(BorderScaledConvolution(channels, channels))
        self.to_images.append(ToImage(channels + image_channels, image_channels))
        _start_kaiming(self)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Tokens -> images, the smallest first."""
        features = self.middle(self.first(tokens))
        images: list[Tensor] = []
        seen: list[Tensor] = []  # the image before, doubled, beside the features
        for level, to_image, doubling in zip(self.levels, self.to_images[:-1], self.doublings, strict=True):
            features = level(features)
            images.append(to_image(torch.cat([features, *seen], dim=1)))
            features = doubling(_doubled(features))
            seen = [_doubled(images[-1])]
        images.append(self.to_images[-1](torch.cat([features, *seen], dim=1)))
        return tuple(images)


class AttentionLayer(nn.Module):
    """Pre-norm self-attention and feed-forward layer over the pixels of (B, channels, y, x); the shape stays."""

    def __init__(self, channels: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = PixelNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.joined = nn.Linear(channels, channels)
        self.feed_forward = nn.Sequential(
            PixelNorm(channels),
            nn.Conv2d(channels, feed_forward, kernel_size=1),
            nn.GELU(),
            nn.Conv2d(feed_forward, channels, kernel_size=1),
        )
        for projection in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, tokens: Tensor, position: Tensor | None = None) -> Tensor:
        """Tokens (B, channels, y, x), position (y * x, channels) or none -> (B, channels, y, x)."""
        values = self.attention_norm(tokens).flatten(2).transpose(1, 2)  # (B, y * x, channels)
        placed = values if position is None else values + position
        attended = functional.scaled_dot_product_attention(
            self._split(self.query(placed)), self._split(self.key(placed)), self._split(self.value(values))
        )  # (B, heads, y * x, channels / heads)
        joined = self.joined(attended.transpose(1, 2).flatten(2))
        tokens = tokens + joined.transpose(1, 2).unflatten(2, tokens.shape[2:])
        return tokens + self.feed_forward(tokens)

    def _split(self, projected: Tensor) -> Tensor:
        """(B, tokens, channels) -> (B, heads, tokens, channels / heads)."""
        return projected.unflatten(2, (self.heads, -1)).transpose(1, 2)


class ResidualBlock(nn.Module):
    """(shortcut + conv(act(norm(conv(act(norm(x))))))) / sqrt 2; the shortcut is 1 x 1 where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            PixelNorm(in_channels),
            nn.LeakyReLU(SLOPE),
            _convolution(in_channels, out_channels, kernel_size),
            PixelNorm(out_channels),
            nn.LeakyReLU(SLOPE),
            _convolution(out_channels, out_channels, kernel_size),
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in, y, x) -> (B, out, y, x)."""
        return (self.shortcut(features) + self.residual(features)) / math.sqrt(2)


class ToImage(nn.Module):
    """Features (B, channels, y, x) -> image (B, image_channels, y, x) in [-1, 1]."""

    def __init__(self, channels: int, image_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            PixelNorm(channels), nn.LeakyReLU(SLOPE), BorderScaledConvolution(channels, image_channels), nn.Tanh()
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features -> image."""
        return self.layers(features)


class NoiseInjection(nn.Module):
    """Adds one normal deviate per pixel, the same to all channels, times a learned strength that starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, y, x) -> the same shape."""
        return features + self.strength * torch.randn_like(features[:, :1])


class PixelNorm(nn.Module):
    """Features over their root mean square across the channels of a pixel, times a learned factor per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, y, x) -> the same shape."""
        power = features.square().mean(dim=1, keepdim=True)
        return features * torch.rsqrt(power + PIXEL_NORM_EPSILON) * self.scale


class BorderScaledConvolution(nn.Conv2d):
    """Zero-padded 3 x 3 convolution of stride 1, its sums at a border times 9 over the taps inside the image."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in, y, x) -> (B, out, y, x)."""
        row, column = (3 / _taps_inside(size, features) for size in features.shape[2:])
        summed = functional.conv2d(features, self.weight, padding=1)
        return summed * (row[:, None] * column) + self.bias[:, None, None]


def _taps_inside(size: int, like: Tensor) -> Tensor:
    """How many of three neighbouring places lie within `size`, for each place: 2, 3, ..., 3, 2 (1 if size is 1)."""
    place = torch.arange(size, device=like.device)
    return 1 + (place > 0).to(like.dtype) + (place < size - 1).to(like.dtype)


def _doubled(features: Tensor) -> Tensor:
    """Twice the size, bilinear with the corners held."""
    return functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)


def _convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """Convolution of kernel 1, or of kernel 3 with scaled borders."""
    if kernel_size == 1:
        return nn.Conv2d(in_channels, out_channels, kernel_size=1)
    return BorderScaledConvolution(in_channels, out_channels)


def _start_kaiming(module: nn.Module) -> None:
    """Begin with weights N(0, 2 / fan_in) and zero biases, attention included; TFill leaves its transformer out."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
