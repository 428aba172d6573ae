"""A real cell in a gel (FM-Track's example): correlation against beads that others tracked one by one.

The gel is relaxed by cytochalasin D; between the recordings it drifts by an amount that depends on depth. When the
sample was made, 96 blocks of the field were compared with the tracked beads: blocks of 24 x 96 x 96 voxels, side by
side, as their bead counts say. 12 of them lie in the stored crop as a whole, 42 in part: of these the part is compared
with the beads in it. The 42 others lie outside the crop.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.metrics.tracked_beads import at_beads, block_error, inward_share, median_length_um
from lightning_modules.networks.volume_correlation import VolumeCorrelation

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "cfm_3d"
BLOCK_ZYX = np.array([24, 96, 96])
WINDOWS = [[32, 96, 96], [24, 64, 64]]  # about cubes in um, with some 15 beads
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REAL / "volumes_crop_zyx.npz").is_file(), reason="the real cell is not at hand"),
]


@pytest.fixture(scope="module")
def blocks():
    return np.load(REAL / "block_dvc_check.npy")  # centre z, y, x; correlation's and the beads' x, y, z; beads


@pytest.fixture(scope="module")
def beads():
    with np.load(REAL / "beads_and_displacements.npz") as file:
        return {name: file[name].astype(np.float64) for name in file.files if not name.startswith("match_")}


@pytest.fixture(scope="module")
def cell(beads):
    with np.load(REAL / "volumes_crop_zyx.npz") as file:
        held = dict(file)
    voxel_um, corner = held["voxel_um_zyx"], np.array([0, int(held["crop_y0"]), int(held["crop_x0"])])
    pair = np.stack([held["CytoD_Beads"], held["Normal_Beads"]]).astype(np.float32) / 255
    with torch.inference_mode():
        found = VolumeCorrelation(WINDOWS, overlap=0.5, passes=4, outlier_threshold=2.0)(torch.from_numpy(pair)[None])
    displacement_um = found[0].numpy() * voxel_um[::-1][:, None, None, None]
    position_um = beads["matched_pos_xyz_um"]
    shown = held["CytoD_Cell"] > np.percentile(held["CytoD_Cell"], 99.5)
    return {
        "found_um": at_beads(displacement_um, position_um - (corner * voxel_um)[::-1], voxel_um),  # NaN outside
        "size": np.array(pair.shape[1:]),
        "corner": corner,
        "cell_um": ((np.argwhere(shown).mean(axis=0) + corner) * voxel_um)[::-1],
        "voxel_um": voxel_um,
    }


def test_the_reference_blocks_have_the_size_that_their_bead_counts_say(blocks, beads):
    voxel = beads["matched_pos_xyz_um"][:, ::-1] / np.load(REAL / "volumes_crop_zyx.npz")["voxel_um_zyx"]
    tracked = beads["matched_disp_raw_xyz_um"]
    for block in blocks:
        inside = (np.abs(voxel - block[:3]) <= BLOCK_ZYX / 2).all(axis=1)
        assert abs(inside.sum() - block[9]) <= 1
        assert np.abs(np.median(tracked[inside], axis=0) - block[6:9]).max() < 0.05


def test_every_block_agrees_with_its_tracked_beads(cell, blocks, beads):
    size_um = (BLOCK_ZYX * cell["voxel_um"])[::-1]
    errors, whole = [], 0
    for block in blocks:
        error = block_error(
            cell["found_um"],
            beads["matched_disp_raw_xyz_um"],
            beads["matched_pos_xyz_um"],
            centre_um=(block[:3] * cell["voxel_um"])[::-1],
            size_um=size_um,
        )
        low = block[:3] - BLOCK_ZYX / 2 - cell["corner"]
        in_crop = (np.minimum(low + BLOCK_ZYX, cell["size"]) - np.maximum(low, 0)).clip(min=0)
        assert (error is not None) == bool(in_crop.all())
        if error is not None:
            errors.append(error)
            whole += bool((in_crop == BLOCK_ZYX).all())
    assert len(errors) == 54
    assert whole == 12
    assert min(error.beads for error in errors) >= 10
    assert max(error.error_um for error in errors) < 1.0, sorted(errors)[-5:]


def test_the_displacement_decays_away_from_the_cell(cell, beads):
    """All tracked beads: 1.61 um within 5 um of the cell, .28 um from 50 to 100 um, where the crop holds three."""
    tracked = beads["matched_disp_driftcorrected_xyz_um"]
    own = cell["found_um"] - (beads["matched_disp_raw_xyz_um"] - tracked)
    distance = beads["distance_to_cell_um"]
    assert median_length_um(tracked, distance, 0, 5) == pytest.approx(1.61, abs=0.01)
    assert median_length_um(tracked, distance, 50, 100) == pytest.approx(0.28, abs=0.01)
    shells = ((0, 5), (5, 10), (10, 20), (20, 35), (35, 50))
    found = [median_length_um(own, distance, low, high) for low, high in shells]
    there = np.isfinite(own).all(axis=1)
    expected = [median_length_um(tracked[there], distance[there], low, high) for low, high in shells]
    assert found == pytest.approx(expected, rel=0.2, abs=0.1)  # windows average over 19 um
    assert found == sorted(found, reverse=True)


def test_the_gel_near_the_cell_is_pulled_inwards(cell, beads):
    tracked = beads["matched_disp_driftcorrected_xyz_um"]
    own = cell["found_um"] - (beads["matched_disp_raw_xyz_um"] - tracked)
    near = (beads["distance_to_cell_um"] < 5) & np.isfinite(own).all(axis=1)
    position = beads["matched_pos_xyz_um"][near]
    assert inward_share(own[near], position, cell["cell_um"]) > 0.7
    inwards = cell["cell_um"] - position
    inwards /= np.linalg.norm(inwards, axis=1, keepdims=True)
    pull_um, tracked_um = ((field[near] * inwards).sum(axis=1).mean() for field in (own, tracked))
    assert pull_um == pytest.approx(tracked_um, rel=0.35)
