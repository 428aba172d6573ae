"""Convolutional networks on fields of any size: padded to what they take, and large ones in tiles.

A U-Net that halves a field d times and, at each of its depths, has at most two 3 x 3 convolutions down, three at the
bottom and two up sees no further than 8 * 2^d - 5 pixels (59 for d = 3; measured by gradients for all networks here).
A tile is computed with 8 * 2^d pixels of the field around it, which are then cut off, and begins at a multiple of 2^d,
so that the halvings fall on the same pixels: the tiles are those of the whole field, and nothing is left to blend. Only
memory is saved. Whatever does see the whole field, the elastic operator or a norm, must stay outside. A network that
sees further states its own sizes; what lies beyond its halo is then missing from a tile.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

WHOLE_PX = 512
"""Longest side of a field that is computed in one piece."""
TILE_PX = 256
HALO_STEPS = 8


def on_any_size(
    compute: Callable[[Tensor], Tensor],
    field: Tensor,
    *,
    step_px: int,
    tiles: bool,
    whole_px: int | None = None,
    tile_px: int | None = None,
    halo_px: int | None = None,
) -> Tensor:
    """Apply a network to a field whose sides need not be multiples of `step_px`.

    Args:
        compute: the network, (batch, channels, y, x) -> (batch, other channels, y, x), in evaluation mode where there
            are tiles: batch statistics are not local.
        field: (batch, channels, y, x); it is padded with zeros at the far edges.
        step_px: what the sides that the network takes are multiples of, 2^d for d halvings.
        tiles: whether a field with a side above `whole_px` is cut.
        whole_px: longest side of a field that is computed in one piece; None for `WHOLE_PX`.
        tile_px: side of a tile; None for `TILE_PX`. It and the halo are rounded to multiples of `step_px`.
        halo_px: what a tile sees of the field around it; None for `HALO_STEPS` times `step_px`.

    Returns:
        (batch, other channels, y, x), the size of `field`.

    Raises:
        ValueError: `step_px` is not positive.

    """
    if step_px < 1:
        raise ValueError(f"step_px must be at least 1, got {step_px}")
    height, width = field.shape[-2:]
    padded = functional.pad(field, (0, -width % step_px, 0, -height % step_px))
    if tiles and max(height, width) > (WHOLE_PX if whole_px is None else whole_px):
        tile = TILE_PX if tile_px is None else tile_px
        halo = HALO_STEPS * step_px if halo_px is None else -(-halo_px // step_px) * step_px
        return _in_tiles(compute, padded, max(tile - tile % step_px, step_px), halo)[..., :height, :width]
    return compute(padded)[..., :height, :width]


def _in_tiles(compute: Callable[[Tensor], Tensor], field: Tensor, tile_px: int, halo_px: int) -> Tensor:
    rows, columns = (_tiles(size, tile_px, halo_px) for size in field.shape[-2:])
    return torch.cat(
        [
            torch.cat([compute(field[..., seen_y, seen_x])[..., own_y, own_x] for seen_x, own_x in columns], dim=-1)
            for seen_y, own_y in rows
        ],
        dim=-2,
    )


def _tiles(size: int, tile_px: int, halo_px: int) -> list[tuple[slice, slice]]:
    """Of every tile along one axis: what it sees of the field, and where the tile lies in that."""
    tiles = []
    for start in range(0, size, tile_px):
        first, stop = max(start - halo_px, 0), min(start + tile_px, size)
        tiles.append((slice(first, min(stop + halo_px, size)), slice(start - first, stop - first)))
    return tiles
