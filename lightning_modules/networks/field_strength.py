"""How strong a field is, so that a network can be told of its shape alone.

A network that divides its input by the input's root mean square is tied to how much of the frame the cell fills: beside
a cell on a frame five times as wide, five times the rest lies at rest, and the same cell would come in five times as
strong. The root mean square is therefore that of the strongest window as large as the fields of training.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW_PX = 104
"""Side of the published fields, which all networks here are trained on."""


def strength(field: Tensor, *, window_px: int = WINDOW_PX) -> Tensor:
    """Root mean square (batch, 1, 1, 1) of fields (batch, components, y, x), in their strongest window.

    Fields of at most the window's size are one window. Larger ones are searched with windows a quarter of a window
    apart. Of a field at rest the gradient is 0.
    """
    size = [min(window_px, length) for length in field.shape[-2:]]
    if list(field.shape[-2:]) == size:
        norm = torch.linalg.vector_norm(field, dim=(1, 2, 3), keepdim=True)
        return norm / field[0].numel() ** 0.5
    power = field.square().mean(dim=1, keepdim=True)
    stride = [max(side // 4, 1) for side in size]
    rest = [-(length - side) % step for length, side, step in zip(field.shape[-2:], size, stride, strict=True)]
    padded = functional.pad(power, (0, rest[1], 0, rest[0]))  # so that windows reach the far edges
    return functional.avg_pool2d(padded, size, stride).amax(dim=(2, 3), keepdim=True).sqrt()
