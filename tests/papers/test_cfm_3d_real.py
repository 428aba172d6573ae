"""A real cell in a gel (FM-Track's example): correlation against beads that others tracked one by one.

The gel is relaxed by cytochalasin D; between the recordings it drifts by an amount that depends on depth. 96 blocks of
the field were compared with the tracked beads when the sample was made; here those that the stored crop holds whole.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from lightning_modules.networks.volume_correlation import VolumeCorrelation

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "cfm_3d"
BLOCK_ZYX = (16, 32, 32)  # voxels to either side of a block's middle
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REAL / "volumes_crop_zyx.npz").is_file(), reason="the real cell is not at hand"),
]


@pytest.fixture(scope="module")
def cell():
    volumes, beads = np.load(REAL / "volumes_crop_zyx.npz"), np.load(REAL / "beads_and_displacements.npz")
    voxel_um = volumes["voxel_um_zyx"]
    corner = np.array([0, int(volumes["crop_y0"]), int(volumes["crop_x0"])])
    pair = np.stack([volumes["CytoD_Beads"], volumes["Normal_Beads"]]).astype(np.float32) / 255
    with torch.inference_mode():  # few beads: large windows
        found = VolumeCorrelation([64, 48], overlap=0.5, passes=3, outlier_threshold=2.0)(torch.from_numpy(pair)[None])
    displacement_um = found[0].numpy() * voxel_um[::-1][:, None, None, None]
    axes = [
        (np.arange(size) + start) * step for size, start, step in zip(pair.shape[1:], corner, voxel_um, strict=True)
    ]
    place = beads["matched_pos_xyz_um"]
    inside = np.all([(place[:, 2 - k] >= axes[k][0]) & (place[:, 2 - k] <= axes[k][-1]) for k in range(3)], axis=0)
    at_beads = [RegularGridInterpolator(axes, part)(place[inside][:, ::-1]) for part in displacement_um]
    drift = (beads["matched_disp_raw_xyz_um"] - beads["matched_disp_driftcorrected_xyz_um"])[inside]
    return {
        "displacement_um": displacement_um,
        "corner": corner,
        "bead_um": place[inside],
        "corrected_um": np.stack(at_beads, axis=1) - drift,
        "tracked_um": beads["matched_disp_driftcorrected_xyz_um"][inside],
        "distance_um": beads["distance_to_cell_um"][inside],
        "cell_um": np.argwhere(volumes["CytoD_Cell"] > np.percentile(volumes["CytoD_Cell"], 99.5)).mean(axis=0)
        + corner,
        "voxel_um": voxel_um,
    }


def test_every_block_agrees_with_its_tracked_beads(cell):
    blocks = np.load(REAL / "block_dvc_check.npy")
    size = cell["displacement_um"].shape[1:]
    errors = []
    for block in blocks:
        middle = block[:3].astype(int) - cell["corner"]
        if all(m >= half - 4 and m + half <= s + 4 for m, half, s in zip(middle, BLOCK_ZYX, size, strict=True)):
            box = tuple(slice(max(m - half, 0), m + half) for m, half in zip(middle, BLOCK_ZYX, strict=True))
            found = np.median(cell["displacement_um"][(slice(None), *box)], axis=(1, 2, 3))
            errors.append(float(np.linalg.norm(found - block[6:9])))
    assert len(errors) == 36
    assert max(errors) < 1.0, sorted(errors)[-5:]


def test_the_displacement_decays_away_from_the_cell(cell):
    """Tracked: 1.62 um within 5 um of the cell, 0.27 um from 35 to 50 um; windows average over 14 um and more."""

    def median_um(low, high):
        chosen = (cell["distance_um"] >= low) & (cell["distance_um"] < high)
        return np.median(np.linalg.norm(cell["corrected_um"][chosen], axis=1))

    assert 1.2 < median_um(0, 5) < 1.9
    assert median_um(0, 5) > median_um(5, 10) > median_um(10, 20) > median_um(20, 35) > median_um(35, 50)
    assert median_um(35, 50) < 0.7


def test_the_gel_near_the_cell_is_pulled_inwards(cell):
    inwards = (cell["cell_um"] * cell["voxel_um"])[::-1] - cell["bead_um"]
    inwards /= np.linalg.norm(inwards, axis=1, keepdims=True)
    near = cell["distance_um"] < 5
    pull_um = (cell["corrected_um"] * inwards).sum(axis=1)[near]
    tracked_um = (cell["tracked_um"] * inwards).sum(axis=1)[near]
    assert (pull_um > 0).mean() > 0.7
    assert pull_um.mean() == pytest.approx(tracked_um.mean(), rel=0.35)
