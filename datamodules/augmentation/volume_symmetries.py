"""The symmetries of a voxel grid that a microscope respects, and random patches of a volume.

A microscope blurs alike along x and y and otherwise along z: mirrors in x, y and z and the exchange of x and y leave
its blur as it is (where its axial blur is symmetric), an exchange with z does not. Elasticity has all of them. Vector
fields are (..., 3, z, y, x) with components (x, y, z), x along the last axis; pixels and components move together,
without interpolation. What is drawn depends on (seed, epoch, index) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SYMMETRY, _PATCH = 0x73796D, 0x706174
"""Keep these draws apart from others that start from the same seed."""


class VolumeSymmetry(NamedTuple):
    """First the exchange of x and y, then the mirrors."""

    transposed: bool
    mirrored_x: bool
    mirrored_y: bool
    mirrored_z: bool

    @classmethod
    def draw(cls, *, seed: int, epoch: int, index: int, square: bool) -> VolumeSymmetry:
        """One of the sixteen, or of the eight without exchange where x and y are not alike (`square` is false)."""
        code = int(np.random.default_rng([_SYMMETRY, seed, epoch, index]).integers(16))
        return cls(square and bool(code & 1), bool(code & 2), bool(code & 4), bool(code & 8))

    def move_voxels(self, field: NDArray[Any]) -> NDArray[Any]:
        """Move the voxels of (..., z, y, x), a volume or a mask, without touching the values; a view."""
        if self.transposed:
            field = field.swapaxes(-1, -2)
        step_x, step_y, step_z = (-1 if mirrored else 1 for mirrored in self[1:])
        return field[..., ::step_z, ::step_y, ::step_x]

    def move_vectors(self, field: NDArray[np.floating]) -> NDArray[np.floating]:
        """Move a vector field (..., 3, z, y, x): voxels and components."""
        moved = self.move_voxels(field)
        if self.transposed:
            moved = moved[..., [1, 0, 2], :, :, :]
        sign = np.array([-1 if mirrored else 1 for mirrored in self[1:]], field.dtype)
        return moved * sign[:, None, None, None]

    def move_voxel_size(self, voxel_size_um: NDArray[np.floating]) -> NDArray[np.floating]:
        """Edges (z, y, x) of a voxel after the exchange."""
        return voxel_size_um[[0, 2, 1]] if self.transposed else voxel_size_um


def draw_patch(
    shape_zyx: Sequence[int], patch_zyx: Sequence[int], *, seed: int, epoch: int, index: int
) -> tuple[slice, slice, slice]:
    """Where a patch lies in a volume, every place equally likely.

    Raises:
        ValueError: the patch is larger than the volume.
    """
    if any(patch > size for patch, size in zip(patch_zyx, shape_zyx, strict=True)):
        raise ValueError(f"patch_zyx {list(patch_zyx)} must fit into the volume of {list(shape_zyx)} voxels")
    rng = np.random.default_rng([_PATCH, seed, epoch, index])
    starts = [int(rng.integers(size - patch + 1)) for patch, size in zip(patch_zyx, shape_zyx, strict=True)]
    z, y, x = (slice(start, start + patch) for start, patch in zip(starts, patch_zyx, strict=True))
    return z, y, x
