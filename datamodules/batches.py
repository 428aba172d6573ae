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


OPERATOR_CODES = {"centre_element": ("exact", "published"), "reach": ("full", "published")}
"""What the codes in these fields of a `TractionBatch` mean, as arguments of `physics.half_space`."""


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
    centre_element: Tensor
    """(batch,) int64, code of the operator behind the displacement (`OPERATOR_CODES`): 0 exact, 1 published."""
    reach: Tensor
    """(batch,) int64, code of the same operator: 0 full, 1 published."""
    gel_thickness_um: Tensor
    """(batch,) float32, of the substrate, bonded to rigid glass; inf for a half space."""
    sample_id: list[str]
    group: list[str]


class ForceImageBatch(NamedTuple):
    """Fluorescence images of cells with the magnitude of the traction below them (paper `insilico_tfm`)."""

    image: Tensor
    """(batch, 1, y, x) float32, ln(max(1, intensity)) of the raw grey values."""
    log_traction: Tensor
    """(batch, 1, y, x) float32, ln(max(1, traction magnitude in Pa)), tapered; NaN where the truth is unknown."""
    pixel_size_um: Tensor
    """(batch,) float32."""
    time_s: Tensor
    """(batch,) float32, since the first frame of the movie; NaN where the image is of no movie."""
    sample_id: list[str]
    group: list[str]


class BeadVolumeBatch(NamedTuple):
    """Volumes of beads in a gel before and after a cell deforms it (paper `cfm_3d`)."""

    reference: Tensor
    """(batch, 1, z, y, x) float32, undeformed, in [0, 1]."""
    deformed: Tensor
    """(batch, 1, z, y, x) float32, deformed, in [0, 1]."""
    displacement_um: Tensor
    """(batch, 3, z, y, x) float32, of the material at the voxels of the undeformed volume; components (x, y, z); NaN
    where the truth is unknown."""
    body_force_n_per_m3: Tensor
    """(batch, 3, z, y, x) float32, components (x, y, z); NaN where the truth is unknown."""
    cell_mask: Tensor
    """(batch, z, y, x) bool, true where the cell may exert force; outside, the gel is in equilibrium."""
    voxel_size_um: Tensor
    """(batch, 3) float32, in the order (z, y, x)."""
    youngs_modulus_pa: Tensor
    """(batch,) float32, of the gel."""
    poisson_ratio: Tensor
    """(batch,) float32, of the gel, below 0.5."""
    sample_id: list[str]
    group: list[str]


class TranslationBatch(NamedTuple):
    """Images of actin with images of the nuclei of the same cells (paper `tfill`)."""

    actin: Tensor
    """(batch, 1, y, x) float32, in [-1, 1]; -1 is black."""
    nucleus: Tensor
    """(batch, 1, y, x) float32, in [-1, 1]; NaN where the truth is unknown."""
    nucleus_mask: Tensor
    """(batch, 1, y, x) bool, true where the real image shows a nucleus."""
    cell_mask: Tensor
    """(batch, y, x) bool, true inside cells; where nuclei can lie by chance."""
    pixel_size_um: Tensor
    """(batch,) float32."""
    sample_id: list[str]
    group: list[str]
    owned: Tensor | None = None
    """(batch, y, x) bool, where nuclei count that other, overlapping images show too; None where none overlap."""
