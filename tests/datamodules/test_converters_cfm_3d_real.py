"""A real cell in a gel, with tracked beads, through the converter (FM-Track's example)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from datamodules.cfm_3d import BeadVolumeData
from datamodules.converters import cfm_3d
from datamodules.converters.bead_tables import Beads
from datamodules.converters.depth_drift import beads_without_drift, drift_of_beads, drift_of_volumes

FOLDER = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "cfm_3d"
pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the real cell in shared/real/cfm_3d"),
    pytest.mark.slow,
]

SLICES = 176
SIDE, EDGE = 160, 48
DEPTHS = np.arange(SLICES)


@pytest.fixture(scope="module")
def tracked() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "beads_and_displacements.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def cropped() -> dict[str, np.ndarray]:
    """The middle of the stored volumes, which is faster."""
    with np.load(FOLDER / "volumes_crop_zyx.npz") as stored:
        held = dict(stored)
    for name, array in held.items():
        if array.ndim == 3:
            held[name] = np.ascontiguousarray(array[:, EDGE:-EDGE, EDGE:-EDGE])
    return held


def far(tracked: dict[str, np.ndarray]) -> Beads:
    distant = tracked["distance_to_cell_um"] >= np.median(tracked["distance_to_cell_um"])
    return Beads(*(tracked[f"matched_{name}_xyz_um"][distant].astype(np.float64) for name in ("pos", "disp_raw")))


def test_far_beads_tell_the_drift_that_the_source_fitted(tracked) -> None:
    depth_um = DEPTHS * 0.79545
    found = drift_of_beads(far(tracked), depth_um)
    published = np.stack([np.polyval(line, depth_um) for line in tracked["drift_poly3_of_z_um"]])
    assert np.abs(found - published)[:2].max() < 0.15
    assert np.median(np.abs(found - published)[2]) < 0.3
    assert found[2].min() < -5  # one global shift would not do


def test_without_drift_the_displacement_falls_off_with_the_distance_from_the_cell(tracked) -> None:
    drift_um = drift_of_beads(far(tracked), DEPTHS * 0.79545)
    beads = Beads(*(tracked[f"matched_{name}_xyz_um"].astype(np.float64) for name in ("pos", "disp_raw")))
    length = np.linalg.norm(beads_without_drift(beads, drift_um, 0.79545).displacement_um, axis=1)
    distance = tracked["distance_to_cell_um"]
    near, away = (np.median(length[(distance >= a) & (distance < b)]) for a, b in ((0, 5), (50, 100)))
    assert near == pytest.approx(1.61, abs=0.15)
    assert away == pytest.approx(0.28, abs=0.05)


@pytest.fixture(scope="module")
def source(tmp_path_factory, tracked, cropped) -> Path:
    """The crop as the stacks and the table that the converter reads."""
    folder = tmp_path_factory.mktemp("real")
    for name, stored in (("reference", "CytoD_Beads"), ("deformed", "Normal_Beads"), ("cell", "Normal_Cell")):
        tifffile.imwrite(folder / f"cell_{name}.tif", cropped[stored])
    edges = cropped["voxel_um_zyx"]
    corner = np.array([cropped["crop_x0"] + EDGE, cropped["crop_y0"] + EDGE, 0]) * edges[::-1]
    place = tracked["matched_pos_xyz_um"] - corner
    inside = ((place > 0) & (place < (np.array([SIDE, SIDE, SLICES]) - 1) * edges[::-1])).all(axis=1)
    table = {"position_um": place[inside], "displacement_um": tracked["matched_disp_raw_xyz_um"][inside]}
    np.savez(folder / "cell_beads.npz", **table)
    stated = {"voxel_size_um": edges.tolist(), "youngs_modulus_pa": 1000, "poisson_ratio": 0.45}
    (folder / "conditions.json").write_text(json.dumps({**stated, "drift_correction": "beads"}))
    return folder


def test_the_volumes_alone_tell_nearly_the_same_drift_as_the_beads(source, cropped) -> None:
    (sample,) = cfm_3d.convert(source)
    edges = tuple(float(edge) for edge in cropped["voxel_um_zyx"])
    of_volumes = drift_of_volumes(cropped["CytoD_Beads"], cropped["Normal_Beads"], edges)
    apart_um = np.abs(of_volumes - sample.fields["drift_um"])
    assert np.median(apart_um) < 0.2  # the drift itself spans 11 um
    assert apart_um.max() < 1.0

    # bright beads are on each other far from the cell once the drift is gone
    reference, raw = (cropped[name].astype(np.float64) for name in ("CytoD_Beads", "Normal_Beads"))
    still = sample.fields["deformed"][0].astype(np.float64)
    quiet = sample.fields["cell_mask"][0] == 0
    before, after = (np.corrcoef(reference[quiet], volume[quiet])[0, 1] for volume in (raw, still))
    assert after > max(3 * before, 0.25)

    displacement = sample.fields["displacement_um"]
    known = sample.fields["displacement_known"][0] > 0
    assert known.sum() > 700
    assert np.median(np.linalg.norm(displacement[:, known], axis=0)) < 0.8
    assert 0.003 < sample.fields["cell_mask"].mean() < 0.03


def test_the_whole_crop_reaches_a_batch(source) -> None:
    numbers = {"dataset": "x", "split": "default", "batch_size": 2, "num_workers": 0, "memory_gib": 0.0, "seed": 0}
    augmented = {"patch_zyx": [64, 64, 64], "symmetries": True, "intensity_percentiles": [10.0, 99.9]}
    module = BeadVolumeData(data_root=str(source), **numbers, **augmented)
    module.predict_on(files=[source / "cell_reference.tif"])
    (batch,) = module.predict_dataloader()
    assert batch.reference.shape == (1, 1, SLICES, SIDE, SIDE)
    assert batch.sample_id == ["cell"]
    assert 0.001 < batch.reference.mean() < 0.1
    assert batch.reference.max() == 1
    assert known_voxels(batch) > 700


def known_voxels(batch) -> int:
    return int(batch.displacement_um.isfinite().all(dim=1).sum())
