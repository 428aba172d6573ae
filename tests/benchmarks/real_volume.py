"""The measured cell in a gel of ../shared/real/cfm_3d, against the beads that others tracked one by one.

Blocks: the reference set compares 96 blocks of 24 x 96 x 96 voxels (its bead counts say so); 54 of them reach into the
stored crop, the other 42 lie outside and cannot be judged. In each, the median displacement at the tracked beads that
are in the crop is compared with the median of what was tracked there; 1 um is asked for. The gel drifts by an amount
that depends on depth: blocks are compared with drift, all else without. Net force over the sum of the forces' lengths
needs no modulus; Poisson's ratio is taken as .45. No truth is known for the force.

Rows: what was tracked; correlation in cubes, which suits no voxel of .80 x .29 x .29 um, and in windows that are nearly
cubes in um; and the network of VOLUMES_RUN, a run of cfm_3d_small, on volumes without drift. Of the beads beyond 50 um,
.28 um over the whole field, the crop holds three, too few for a median. Processor seconds are those of all threads, of
the displacement alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.force import net_force_share
from lightning_modules.metrics.tracked_beads import at_beads, block_error, inward_share, median_length_um

FOLDER = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "cfm_3d"
BLOCK_ZYX = (24, 96, 96)
LARGEST_BLOCK_ERROR_UM = 1.0
DISTANCES_UM = ((0, 5), (5, 10), (10, 20), (20, 35), (35, 50), (50, 100))
FEWEST_BEADS = 10
NEAR_UM = 5.0
POISSON_RATIO = 0.45
CORRELATIONS: dict[str, tuple[list[Any], int]] = {
    "correlation in cubes of 64, 48": ([64, 48], 3),
    "correlation in 32 x 96 x 96, 24 x 64 x 64": ([[32, 96, 96], [24, 64, 64]], 4),
}


class Cell(NamedTuple):
    """The crop and the beads in it, lengths in um from the centre of its first voxel."""

    volumes: np.ndarray
    """(2, z, y, x) uint8, relaxed and pulled."""
    voxel_um: np.ndarray
    """(z, y, x)."""
    position_um: np.ndarray
    """(n, 3), components (x, y, z)."""
    tracked_um: np.ndarray
    """(n, 3), with drift."""
    drift_um: np.ndarray
    """(n, 3), of the beads."""
    slice_drift_um: np.ndarray
    """(3, z)."""
    distance_um: np.ndarray
    """(n,), to the cell."""
    cell_um: np.ndarray
    """(3,), its middle."""
    blocks_um: np.ndarray
    """(96, 3), centres, components (x, y, z)."""


def run() -> list[dict[str, object]]:
    if not FOLDER.is_dir():
        return [{"method": "nothing: the measured cell is not there"}]
    from lightning_modules.networks.volume_correlation import VolumeCorrelation

    cell = read_cell()
    rows: list[dict[str, object]] = [{"method": "tracked beads", **judged(cell, cell.tracked_um)}]
    for name, (windows, passes) in CORRELATIONS.items():
        method = VolumeCorrelation(windows, overlap=0.5, passes=passes, outlier_threshold=2.0)
        rows.append(_row(name, cell, method, cell.volumes, drift_in_volumes=True))
    run_id = os.environ.get("VOLUMES_RUN")
    if run_id is not None:
        from datamodules.converters.depth_drift import without_drift

        edges = (float(cell.voxel_um[0]), float(cell.voxel_um[1]), float(cell.voxel_um[2]))
        still = np.stack([cell.volumes[0], without_drift(cell.volumes[1], cell.slice_drift_um, edges)])
        rows.append(_row(f"network, run {run_id}", cell, _network(run_id), still, drift_in_volumes=False))
    return rows


def read_cell() -> Cell:
    """The crop that is stored, with the beads that lie in it."""
    with np.load(FOLDER / "volumes_crop_zyx.npz") as file:
        held = dict(file)
    with np.load(FOLDER / "beads_and_displacements.npz") as file:
        beads = {name: file[name].astype(np.float64) for name in file.files if not name.startswith("match_")}
    voxel_um = held["voxel_um_zyx"]
    volumes = np.stack([held["CytoD_Beads"], held["Normal_Beads"]])
    corner_um = np.array([int(held["crop_x0"]), int(held["crop_y0"]), 0]) * voxel_um[::-1]
    edges_um = (np.array(volumes.shape[1:]) - 1)[::-1] * voxel_um[::-1]
    position = beads["matched_pos_xyz_um"] - corner_um
    inside = ((position >= 0) & (position <= edges_um)).all(axis=1)
    tracked, corrected = (beads[f"matched_disp_{name}_xyz_um"][inside] for name in ("raw", "driftcorrected"))
    depth_um = np.arange(volumes.shape[1]) * voxel_um[0]
    shown = held["CytoD_Cell"] > np.percentile(held["CytoD_Cell"], 99.5)
    blocks = np.load(FOLDER / "block_dvc_check.npy")
    return Cell(
        volumes=volumes,
        voxel_um=voxel_um,
        position_um=position[inside],
        tracked_um=tracked,
        drift_um=tracked - corrected,
        slice_drift_um=np.stack([np.polyval(line, depth_um) for line in beads["drift_poly3_of_z_um"]]),
        distance_um=beads["distance_to_cell_um"][inside],
        cell_um=(np.argwhere(shown).mean(axis=0) * voxel_um)[::-1],
        blocks_um=blocks[:, 2::-1] * voxel_um[::-1] - corner_um,
    )


def judged(cell: Cell, found_um: np.ndarray) -> dict[str, object]:
    """What a displacement at the beads, drift included, agrees with."""
    size_um = np.array(BLOCK_ZYX[::-1]) * cell.voxel_um[::-1]
    errors = [
        block_error(found_um, cell.tracked_um, cell.position_um, centre_um=centre, size_um=size_um)
        for centre in cell.blocks_um
    ]
    lengths = sorted(error.error_um for error in errors if error is not None)
    good = sum(length < LARGEST_BLOCK_ERROR_UM for length in lengths)
    own = found_um - cell.drift_um
    near = cell.distance_um < NEAR_UM
    counts = {shell: ((cell.distance_um >= shell[0]) & (cell.distance_um < shell[1])).sum() for shell in DISTANCES_UM}
    return {
        "blocks < 1 um": f"{good} of {len(lengths)}",
        "largest block error (um)": lengths[-1],
        **{
            f"median d at {low}-{high} um (um)": median_length_um(own, cell.distance_um, low, high)
            for (low, high), count in counts.items()
            if count >= FEWEST_BEADS
        },
        f"inward share < {NEAR_UM:g} um": inward_share(own[near], cell.position_um[near], cell.cell_um),
    }


@torch.inference_mode()
def _row(
    name: str, cell: Cell, method: Callable[[Tensor], Tensor], volumes: np.ndarray, *, drift_in_volumes: bool
) -> dict[str, object]:
    from datamodules.cfm_3d import scaled_volume

    pair = torch.from_numpy(np.stack([scaled_volume(volume, (10.0, 99.9)) for volume in volumes]))[None]
    began = time.process_time()
    voxels = method(pair)[0].numpy()
    seconds = time.process_time() - began
    displacement_um = voxels * cell.voxel_um[::-1].astype(np.float32)[:, None, None, None]
    drift_um = cell.slice_drift_um.astype(np.float32)[:, :, None, None]
    found_um = at_beads(displacement_um, cell.position_um, cell.voxel_um)
    if drift_in_volumes:
        displacement_um = displacement_um - drift_um
    else:
        found_um = found_um + cell.drift_um
    return {
        "method": name,
        **judged(cell, found_um),
        "net force / sum of forces": _net_force_share(displacement_um, cell.voxel_um),
        "processor seconds": seconds,
    }


def _net_force_share(displacement_um: np.ndarray, voxel_um: np.ndarray) -> float:
    from lightning_modules.networks.physics_layer import PhysicsLayer
    from lightning_modules.networks.volume_patches import in_slabs

    physics, gel = PhysicsLayer(), {"youngs_modulus_pa": 1.0, "poisson_ratio": POISSON_RATIO}

    def force(slab: Tensor) -> list[Tensor]:
        return [physics(slab, voxel_size_um=voxel_um.tolist(), **gel).body_force_n_per_m3]

    (found,) = in_slabs(force, torch.from_numpy(displacement_um), slab_voxels=32, halo_voxels=7)
    return float(net_force_share(found[None]))


def _network(run_id: str) -> Callable[[Tensor], Tensor]:
    from mechanolab.checkpoints import checkpoint_file, load_weights
    from mechanolab.launch import construct
    from mechanolab.runs import read_config, run_folder

    folder = run_folder("cfm_3d_small", run_id)
    module: Any = construct(read_config(folder)).module
    load_weights(module, checkpoint_file(folder, "best"))
    return module.eval()
