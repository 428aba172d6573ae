"""Volumes too large for one piece: networks in overlapping patches that fade into each other, stencils in exact slabs.

A network whose normalisation sees its whole input gives each patch its own answer; where patches overlap, their answers
are averaged with weights that fall linearly towards a patch's border, so that no seam is left to differentiate. The
physics layer's stencils are local: its slabs see what they need beyond their ends, and the result is that of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

OVERLAP_SHARE = 0.25


def in_patches(compute: Callable[[Tensor], Tensor], volumes: Tensor, patch_voxels: int) -> Tensor:
    """Apply a network (batch, c, z, y, x) -> (batch, d, z, y, x) patch by patch.

    Args:
        compute: the network.
        volumes: (batch, c, z, y, x); axes that are no longer than `patch_voxels` are not cut.
        patch_voxels: longest side of a patch, at least 8; neighbours share a quarter of it or more.

    Raises:
        ValueError: a patch below 8 voxels.

    """
    if patch_voxels < 8:
        raise ValueError(f"patch_voxels must be at least 8, got {patch_voxels}")
    size = volumes.shape[2:]
    if max(size) <= patch_voxels:
        return compute(volumes)
    total: Tensor | None = None
    weight_sum = volumes.new_zeros(size)
    for z in _starts(size[0], patch_voxels):
        for y in _starts(size[1], patch_voxels):
            for x in _starts(size[2], patch_voxels):
                place = (..., *(slice(start, start + patch_voxels) for start in (z, y, x)))
                answer = compute(volumes[place])
                weight = _weights(answer.shape[2:]).to(answer)
                if total is None:
                    total = answer.new_zeros(*answer.shape[:2], *size)
                total[place] += answer * weight
                weight_sum[place] += weight.to(weight_sum)
    assert total is not None
    return total / weight_sum


def in_slabs(
    compute: Callable[[Tensor], Sequence[Tensor]], field: Tensor, *, slab_voxels: int, halo_voxels: int
) -> list[Tensor]:
    """Apply a local operation to a field (..., z, y, x), slab by slab along z, and join what it returns.

    Args:
        compute: returns fields (..., z, y, x) of the sizes that it gets, each voxel from those at most `halo_voxels`
            away.
        field: (..., z, y, x).
        slab_voxels: thickness of a slab without what it sees beyond its ends.
        halo_voxels: what it sees there.

    """
    depth = field.shape[-3]
    if depth <= slab_voxels + halo_voxels:
        return list(compute(field))
    slabs = []
    for start in range(0, depth, slab_voxels):
        first, stop = max(start - halo_voxels, 0), min(start + slab_voxels, depth)
        seen = field[..., first : min(stop + halo_voxels, depth), :, :]
        slabs.append([part[..., start - first : stop - first, :, :].clone() for part in compute(seen)])
    return [torch.cat(parts, dim=-3) for parts in zip(*slabs, strict=True)]


def _starts(size: int, patch: int) -> list[int]:
    """Where patches begin, evenly over an axis, at multiples of 4: the coarsest grid of the networks."""
    if size <= patch:
        return [0]
    step = max(int(patch * (1 - OVERLAP_SHARE)), 1)
    count = -(-(size - patch) // step)
    return [min(round((size - patch) * k / count / 4) * 4, size - patch) for k in range(count)] + [size - patch]


def _weights(size: Sequence[int]) -> Tensor:
    """Product over the axes of the distance to the nearer border."""
    weight = torch.ones(tuple(size))
    for trailing, length in zip((2, 1, 0), size, strict=True):
        place = torch.arange(length, dtype=torch.float32)
        ramp = torch.minimum(place + 1, length - place) / (length * OVERLAP_SHARE)
        weight = weight * ramp.clamp(max=1).reshape(-1, *[1] * trailing)
    return weight
