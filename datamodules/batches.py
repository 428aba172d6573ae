"""What travels between the halves: samples on their way to disk, batches on their way to a network.

A `Sample` is what every simulator and converter yields and every shard holds. A batch is a NamedTuple, so
`default_collate` keeps its type and Lightning moves it to the device; each field says shape, dtype and unit.
Arrays are (..., channel, y, x); angles are radians, counter-clockwise as displayed (y up), 0 = right, in [0, 2 pi).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor


class Sample(NamedTuple):
    """One sample of a data set, before it is written or after it is read."""

    sample_id: str
    """Unique in its data set, for example `cell0007_003`."""
    group: str
    """What must not be split between train and test: a tracked cell, a slide, an experiment."""
    fields: dict[str, np.ndarray]
    """Field name to array; scalars are 0-d arrays."""


class DirectionBatch(NamedTuple):
    """Images of single cells with their migration direction (paper `circular`)."""

    image: Tensor
    """(batch, 1, 128, 128) float32, grey / 255, in [0, 1]."""
    angle_rad: Tensor
    """(batch,) float32, radians in [0, 2 pi); NaN where the direction is unknown."""
    sample_id: list[str]
    group: list[str]


class TractionBatch(NamedTuple):
    """Displacement fields of substrates under cells with the tractions that made them (paper `dl_tfm`)."""

    displacement_px: Tensor
    """(batch, 2, y, x) float32, measured: with noise; pixels of the field's own grid, components (x, y)."""
    traction_pa: Tensor
    """(batch, 2, y, x) float32, Pa; NaN where the truth is unknown."""
    cell_mask: Tensor
    """(batch, y, x) bool, true inside the cell's outline or on it."""
    youngs_modulus_pa: Tensor
    """(batch,) float32, of the substrate."""
    poisson_ratio: Tensor
    """(batch,) float32, of the substrate."""
    pixel_size_um: Tensor
    """(batch,) float32, distance between the points of the field."""
    sample_id: list[str]
    group: list[str]
