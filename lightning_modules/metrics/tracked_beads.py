"""A displacement field against beads that were tracked one by one, where nobody knows the true field.

Definitions ours; Duan et al., Biophys J 121:2180 (2022), 10.1016/j.bpj.2022.04.028, give none in the text at hand.
Positions and displacements are (n, 3) in um, components (x, y, z); the centre of the first voxel is at (0, 0, 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.floating[Any]]


class BlockError(NamedTuple):
    """What a block of the field says against its beads."""

    error_um: float
    """Length of the difference of the medians, component by component, of found and tracked displacement."""
    beads: int


def at_beads(displacement_um: Floats, position_um: Floats, voxel_size_um: Sequence[float] | Floats) -> Floats:
    """The field (3, z, y, x) at positions (n, 3), linearly between voxels of (z, y, x) um: (n, 3).

    NaN outside the volume. Raises ValueError for arguments of another shape.
    """
    if displacement_um.ndim != 4 or len(displacement_um) != 3:
        raise ValueError(f"displacement_um must have shape (3, z, y, x), got {displacement_um.shape}")
    _check("position_um", position_um)
    places = (position_um / np.asarray(voxel_size_um)[::-1]).T[::-1]  # z, y, x
    values = [ndimage.map_coordinates(part, places, order=1, cval=np.nan) for part in displacement_um]
    return np.stack(values, axis=1)


def block_error(
    found_um: Floats, tracked_um: Floats, position_um: Floats, *, centre_um: Floats, size_um: Floats
) -> BlockError | None:
    """Compare medians over the beads of a block; None where it holds no bead whose displacement was found.

    The same beads count on both sides, so a block that the volume cuts is compared by what of it is inside.

    Args:
        found_um: at the beads, NaN outside the volume.
        tracked_um: of the beads.
        position_um: of the beads.
        centre_um: of the block, (3,), components (x, y, z).
        size_um: of the block, (3,).

    """
    for name, array in (("found_um", found_um), ("tracked_um", tracked_um), ("position_um", position_um)):
        _check(name, array)
    inside = (np.abs(position_um - centre_um) <= np.asarray(size_um) / 2).all(axis=1)
    inside &= np.isfinite(found_um).all(axis=1)
    if not inside.any():
        return None
    apart = np.median(found_um[inside], axis=0) - np.median(tracked_um[inside], axis=0)
    return BlockError(float(np.linalg.norm(apart)), int(inside.sum()))


def median_length_um(displacement_um: Floats, distance_um: Floats, low_um: float, high_um: float) -> float:
    """Median |u| of the beads from `low_um` to below `high_um` from the cell; NaN without any.

    >>> median_length_um(np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]]), np.array([2.0, 9.0]), 0, 5)
    5.0

    """
    _check("displacement_um", displacement_um)
    chosen = (distance_um >= low_um) & (distance_um < high_um) & np.isfinite(displacement_um).all(axis=1)
    return float(np.median(np.linalg.norm(displacement_um[chosen], axis=1))) if chosen.any() else float("nan")


def inward_share(displacement_um: Floats, position_um: Floats, cell_um: Floats) -> float:
    """Share of the beads that move towards the middle of the cell (3,); NaN without any.

    >>> inward_share(np.array([[1.0, 0, 0], [0, 1.0, 0]]), np.array([[-2.0, 0, 0], [0, 5.0, 0]]), np.zeros(3))
    0.5

    """
    _check("displacement_um", displacement_um)
    _check("position_um", position_um)
    known = np.isfinite(displacement_um).all(axis=1)
    pull = (displacement_um * (np.asarray(cell_um) - position_um)).sum(axis=1)
    return float((pull[known] > 0).mean()) if known.any() else float("nan")


def _check(name: str, array: Floats) -> None:
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"{name} must have shape (n, 3), got {array.shape}")
