"""What lies beside a pair of bead volumes and what it says: tracked beads, the cell, and drift that depends on depth.

- A table of beads gives the truth where a bead was tracked: `displacement_um` in the bead's voxel, NaN everywhere else.
- A volume of the cell, or its mask, gives `cell_mask`: what is not the smaller one of two values, otherwise what is
  above Otsu's threshold after a Gaussian of 1 voxel, and 2 um around it: there the cell may pull (ours).
- Drift by depth (`depth_drift`) is removed from the deformed volume and from the beads' displacement where
  conditions.json asks for it: "beads" takes it from the half of the tracked beads that is farthest from the cell,
  "correlation" from the volumes alone. `drift_um` (3, z) says what was removed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.filters import threshold_otsu

from datamodules.converters.bead_tables import Beads, displacement_at_voxels, read_beads
from datamodules.converters.depth_drift import beads_without_drift, drift_of_beads, drift_of_volumes, without_drift
from datamodules.converters.volume_conditions import VolumeConditions
from datamodules.converters.volume_pairs import VolumePair, Volumes
from datamodules.converters.volume_stacks import read_volume

CELL_MARGIN_UM = 2.0
CELL_BLUR_VOXELS = 1.0


def pair_values(pair: VolumePair, volumes: Volumes, conditions: VolumeConditions) -> dict[str, np.ndarray]:
    """Return the fields of a pair: its volumes, gel and drift, and displacement and cell mask where they are known.

    Raises:
        FileNotFoundError, ValueError: What lies beside the volumes cannot be read or does not fit to them; it is named.
    """
    shape, edges_um = volumes.reference.shape, volumes.voxel_size_um
    beads = read_beads(pair.files["beads"]) if "beads" in pair.files else None
    mask = _cell_mask(pair.files["cell"], conditions, volumes) if "cell" in pair.files else None
    drift_um = np.zeros((3, shape[0]))
    if conditions.drift_correction == "correlation":
        drift_um = drift_of_volumes(volumes.reference, volumes.deformed, edges_um)
    elif conditions.drift_correction == "beads":
        if beads is None:
            raise ValueError(
                f"{pair.folder / 'conditions.json'}: drift_correction 'beads' needs the table {pair.name}_beads: add "
                "it, or write 'correlation'"
            )
        drift_um = drift_of_beads(far_beads(beads, mask, edges_um), np.arange(shape[0]) * edges_um[0])
    if drift_um.any():
        volumes = volumes._replace(deformed=without_drift(volumes.deformed, drift_um, edges_um))
        beads = None if beads is None else beads_without_drift(beads, drift_um, edges_um[0])
    values = {**_gel(volumes, conditions), "drift_um": drift_um.astype(np.float32)}
    if beads is not None:
        values["displacement_um"] = displacement_at_voxels(beads, shape, edges_um, where=str(pair.files["beads"]))
    if mask is not None:
        values["cell_mask"] = mask[None].astype(np.uint8)
    return values


def far_beads(beads: Beads, mask: NDArray[np.bool_] | None, voxel_size_um: tuple[float, float, float]) -> Beads:
    """The half of the beads that is farthest from the cell; all where it is not known."""
    if mask is None or mask.all() or not mask.any():
        return beads
    rim = mask & ~ndimage.binary_erosion(mask)
    cell_um = np.argwhere(rim) * np.array(voxel_size_um)
    distance_um, _ = cKDTree(cell_um).query(beads.position_um[:, ::-1])
    far = distance_um >= np.median(distance_um)
    return Beads(beads.position_um[far], beads.displacement_um[far])


def _cell_mask(path: Path, conditions: VolumeConditions, volumes: Volumes) -> NDArray[np.bool_]:
    cell = read_volume(path, channel=conditions.cell_channel).voxels
    if cell.shape != volumes.reference.shape:
        raise ValueError(
            f"{path} has {list(cell.shape)} voxels (z, y, x), the volumes of beads have "
            f"{list(volumes.reference.shape)}: cut both to the same field"
        )
    low, high = cell.min(), cell.max()
    if ((cell == low) | (cell == high)).all():
        mask = cell > low
    else:
        smooth = ndimage.gaussian_filter(cell.astype(np.float32), CELL_BLUR_VOXELS)
        mask = smooth > threshold_otsu(smooth)
    return _widened(mask, volumes.voxel_size_um)


def _widened(mask: NDArray[np.bool_], voxel_size_um: tuple[float, float, float]) -> NDArray[np.bool_]:
    """A mask and all voxels up to the margin from it; distances are taken in the box around it only."""
    wide = np.zeros_like(mask)
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    steps = [int(CELL_MARGIN_UM / edge) + 1 for edge in voxel_size_um]
    box = tuple(slice(max(part.start - step, 0), part.stop + step) for part, step in zip(box, steps, strict=True))
    wide[box] = ndimage.distance_transform_edt(~mask[box], sampling=voxel_size_um) <= CELL_MARGIN_UM
    return wide


def _gel(volumes: Volumes, conditions: VolumeConditions) -> dict[str, np.ndarray]:
    return {
        "reference": volumes.reference[None],
        "deformed": volumes.deformed[None],
        "voxel_size_um": np.array(volumes.voxel_size_um, np.float64),
        "youngs_modulus_pa": np.array(conditions.youngs_modulus_pa, np.float64),
        "poisson_ratio": np.array(conditions.poisson_ratio, np.float64),
    }
