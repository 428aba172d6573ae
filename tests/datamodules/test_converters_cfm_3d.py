"""Pairs of bead volumes in the formats of microscopes and trackers, written by the tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from scipy.io import savemat

from datamodules.batches import Sample
from datamodules.cfm_3d import BeadVolumeData
from datamodules.converters import cfm_3d, depth_drift
from datamodules.converters.bead_tables import Beads, read_beads
from datamodules.converters.own_volumes import read_own_pairs
from datamodules.simulators.bead_volumes import Blur, render, scatter_beads
from mechanolab import data

SHAPE = (24, 32, 40)
VOXEL_UM = (0.8, 0.3, 0.3)
STATED = {"voxel_size_um": list(VOXEL_UM), "youngs_modulus_pa": 800, "poisson_ratio": 0.4}
BEADS = np.array([[3.0, 4.5, 6.4], [1.5, 2.1, 8.0], [6.0, 3.0, 12.0]])  # um, x, y, z
STEPS = np.array([[0.1, -0.2, 0.3], [0.4, 0.5, -0.6], [0.0, 0.1, 0.2]])


def volume(seed: int = 0, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, SHAPE).astype(dtype)


def source(folder: Path, *names: str, **stated: object) -> Path:
    """A folder with pairs of multi-page stacks and conditions; None leaves an entry out."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        tifffile.imwrite(folder / f"{name}_reference.tif", volume(2 * seed))
        tifffile.imwrite(folder / f"{name}_deformed.tif", volume(2 * seed + 1))
    merged = {key: value for key, value in {**STATED, **stated}.items() if value is not None}
    (folder / "conditions.json").write_text(json.dumps(merged))
    return folder


def only(folder: Path) -> Sample:
    (sample,) = cfm_3d.convert(folder)
    assert set(sample.fields) == set(cfm_3d.fields(folder))
    assert all(np.isfinite(value).all() for value in sample.fields.values())  # data sets hold nothing else
    return sample


# -- what is read ------------------------------------------------------------------------------------------------------


def test_a_stack_of_pages_is_read_as_it_was_stored(tmp_path: Path) -> None:
    sample = only(source(tmp_path, "cell1"))
    assert (sample.sample_id, sample.group) == ("cell1", "cell1")
    assert set(sample.fields) == set(cfm_3d.FIELDS) - {"displacement_um", "displacement_known", "cell_mask"}
    for seed, name in enumerate(("reference", "deformed")):
        np.testing.assert_array_equal(sample.fields[name], volume(seed)[None])
        assert sample.fields[name].dtype == np.uint8
    np.testing.assert_array_equal(sample.fields["voxel_size_um"], VOXEL_UM)
    assert (float(sample.fields["youngs_modulus_pa"]), float(sample.fields["poisson_ratio"])) == (800, 0.4)
    assert not sample.fields["drift_um"].any()


@pytest.mark.parametrize("kind", ["slices", "npy", "npz", "hyperstack", "colour"])
def test_every_layout_gives_the_same_volumes(tmp_path: Path, kind: str) -> None:
    arrays = {"reference": volume(0, "uint16"), "deformed": volume(1, "uint16")}
    stated = {"channel": 1} if kind in ("hyperstack", "colour") else {}
    folder = source(tmp_path, **stated)
    if kind == "npz":
        np.savez(folder / "a.npz", **{name: array.astype(float) for name, array in arrays.items()})
    for name, array in arrays.items():
        if kind == "slices":
            (folder / f"a_{name}").mkdir()
            for number, plane in enumerate(array, start=7):
                tifffile.imwrite(folder / f"a_{name}" / f"shot2_z{number}.tif", plane)
        elif kind == "npy":
            np.save(folder / f"a_{name}.npy", array)
        elif kind == "hyperstack":
            stack = np.stack((array // 2, array), axis=1)
            tifffile.imwrite(folder / f"a_{name}.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
        elif kind == "colour":
            stack = np.stack((array // 2, array, array // 3), axis=-1).astype(np.uint8)
            tifffile.imwrite(folder / f"a_{name}.tiff", stack, photometric="rgb")
    sample = only(folder)
    for name, array in arrays.items():
        np.testing.assert_array_equal(sample.fields[name][0], array)


@pytest.mark.parametrize("dtypes", [("uint8", "uint16"), ("uint16", "uint8"), ("uint16", "float32")])
def test_a_pair_of_two_types_keeps_its_grey_levels(tmp_path: Path, dtypes: tuple[str, str]) -> None:
    folder, stored = source(tmp_path), {}
    for seed, (name, dtype) in enumerate(zip(("reference", "deformed"), dtypes, strict=True)):
        factor = {"uint8": 1, "uint16": 300, "float32": 1 / 200}[dtype]
        stored[name] = (volume(seed).astype(np.float64) * factor).astype(dtype)
        tifffile.imwrite(folder / f"a_{name}.tif", stored[name])
    fields = only(folder).fields
    assert fields["reference"].dtype == fields["deformed"].dtype
    for name, array in stored.items():
        np.testing.assert_array_equal(fields[name][0], array)


def test_arrays_are_of_one_type_however_bright_they_are(tmp_path: Path) -> None:
    folder = source(tmp_path)
    for name, factor in (("a", 1), ("b", 300)):
        np.savez(folder / f"{name}.npz", reference=volume(0).astype(float) * factor, deformed=volume(1).astype(float))
    dim, bright = cfm_3d.convert(folder)
    np.testing.assert_array_equal(bright.fields["reference"], 300 * dim.fields["reference"].astype(int))
    np.testing.assert_array_equal(bright.fields["deformed"], dim.fields["deformed"])


def test_the_voxel_may_come_from_imagej(tmp_path: Path) -> None:
    folder = source(tmp_path, voxel_size_um=None)
    for name in ("reference", "deformed"):
        said = {"axes": "ZYX", "spacing": 0.8, "unit": "micron"}
        tifffile.imwrite(folder / f"a_{name}.tif", volume(), imagej=True, resolution=(1 / 0.3, 1 / 0.25), metadata=said)
    np.testing.assert_allclose(only(folder).fields["voxel_size_um"], (0.8, 0.25, 0.3), rtol=1e-5)


def test_pairs_of_a_folder_are_one_cell_and_splits_need_cells_and_truth(tmp_path: Path) -> None:
    for cell in ("one", "two", "three"):
        source(tmp_path / cell, "t0", "t1")
    samples = list(cfm_3d.convert(tmp_path))
    assert [(s.group, s.sample_id) for s in samples[:2]] == [("one", "one_t0"), ("one", "one_t1")]
    assert len({s.group for s in samples}) == 3
    assert cfm_3d.splits(tmp_path) == cfm_3d.TEST_ONLY
    for path in tmp_path.rglob("*_reference.tif"):
        np.savez(
            path.with_name(path.name.replace("reference.tif", "beads.npz")), position_um=BEADS, displacement_um=STEPS
        )
    assert cfm_3d.splits(tmp_path) == cfm_3d.SPLITS
    assert str(tmp_path) not in json.dumps(cfm_3d.provenance(tmp_path))


@pytest.mark.parametrize("kind", ["csv", "npz", "mat"])
def test_beads_tell_the_displacement_of_their_voxels(tmp_path: Path, kind: str) -> None:
    folder = source(tmp_path, "a")
    if kind == "csv":
        rows = np.hstack((STEPS, BEADS, np.arange(3)[:, None]))
        text = "u_um;v_um;w_um;x_um;y_um;z_um;id\n" + "\n".join(";".join(map(str, row)) for row in rows)
        (folder / "a_beads.csv").write_text(text + "\n")
    elif kind == "npz":
        np.savez(folder / "a_beads.npz", position_um=BEADS, displacement_um=STEPS)
    else:
        savemat(folder / "a_beads.mat", {"position_um": BEADS, "displacement_um": STEPS})
    fields = only(folder).fields
    field, known = fields["displacement_um"], fields["displacement_known"][0] > 0
    assert known.sum() == 3
    assert not field[:, ~known].any()
    np.testing.assert_allclose(field[:, 8, 15, 10], STEPS[0], rtol=1e-6)
    np.testing.assert_allclose(field[:, 10, 7, 5], STEPS[1], rtol=1e-6)


def test_tracked_beads_reach_a_batch_through_a_data_set(tmp_path: Path) -> None:
    for cell in ("one", "two", "three"):
        np.savez(source(tmp_path / "raw" / cell, "t") / "t_beads.npz", position_um=BEADS, displacement_um=STEPS)
    assert data.convert("cfm_3d", source=tmp_path / "raw", out=tmp_path / "cfm_3d" / "tracked") == 0
    assert data.verify(tmp_path / "cfm_3d" / "tracked") == 0
    plain = {"dataset": "tracked", "split": "default", "batch_size": 1, "num_workers": 0, "memory_gib": 0.0, "seed": 0}
    seen = {"patch_zyx": None, "symmetries": True, "intensity_percentiles": [10.0, 99.9]}
    module = BeadVolumeData(data_root=str(tmp_path), **plain, **seen)
    module.setup("fit")
    for batch in (next(iter(module.train_dataloader())), next(iter(module.val_dataloader()))):
        known = batch.displacement_um.isfinite()
        assert known.all(dim=1).sum() == known.any(dim=1).sum() == len(BEADS)
        lengths = batch.displacement_um.square().sum(dim=1).sqrt()[known.all(dim=1)]
        np.testing.assert_allclose(np.sort(lengths), np.sort(np.linalg.norm(STEPS, axis=1)), rtol=1e-6)
        assert batch.body_force_n_per_m3.isnan().all()


def test_the_cell_is_what_is_bright_and_a_margin_around_it(tmp_path: Path) -> None:
    folder = source(tmp_path, "a")
    cell = np.zeros(SHAPE, np.uint8)
    cell[12, 16, 20] = 1
    tifffile.imwrite(folder / "a_cell.tif", cell)
    z, y, x = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    r = np.sqrt(((z - 12) * 0.8) ** 2 + ((y - 16) * 0.3) ** 2 + ((x - 20) * 0.3) ** 2)
    np.testing.assert_array_equal(only(folder).fields["cell_mask"][0] > 0, r <= 2.0)
    stain = np.random.default_rng(0).integers(0, 20, SHAPE)
    stain[8:16, 10:20, 15:25] += 150
    tifffile.imwrite(folder / "a_cell.tif", stain.astype(np.uint8))
    mask = only(folder).fields["cell_mask"][0] > 0
    assert mask[8:16, 10:20, 15:25].all()
    assert not mask[:5].any()
    assert not mask[:, :, 34:].any()


# -- drift -------------------------------------------------------------------------------------------------------------


def drifting_volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray, Beads]:
    """Beads that drift by up to three voxels depending on depth, the drift (3, z) in um, and the beads' table."""
    shape, edges = (48, 64, 64), np.array(VOXEL_UM[::-1])
    places = scatter_beads(
        np.random.default_rng(0), np.full(3, -6.0), np.array([70, 70, 54.0]), density=5e-3, distance_voxels=3
    )
    depth = places[:, 2] / 48

    def drift(at: np.ndarray) -> np.ndarray:
        return np.stack((3 * at - 1, 2 * at**2, 1 + 2 * at - at**3), axis=-1)

    moved = places + drift(depth)
    volumes = [200 * render(p, np.ones(len(p)), shape, Blur(1.2, 1.2)) for p in (places, moved)]
    reference, deformed = (np.clip(v, 0, 255).astype(np.uint8) for v in volumes)
    inside = ((places > 0) & (places < np.array(shape[::-1]) - 1)).all(axis=1)
    table = Beads((places * edges)[inside], ((moved - places) * edges)[inside])
    return reference, deformed, (drift(np.arange(48) / 48) * edges).T, table


@pytest.mark.slow
def test_drift_is_found_and_removed() -> None:
    reference, deformed, truth, beads = drifting_volumes()
    of_beads = depth_drift.drift_of_beads(beads, np.arange(48) * VOXEL_UM[0])
    of_volumes = depth_drift.drift_of_volumes(reference, deformed, VOXEL_UM)
    edges = np.array(VOXEL_UM[::-1])[:, None]
    assert np.abs((of_beads - truth) / edges).max() < 0.15
    assert np.abs((of_volumes - truth) / edges).max() < 0.5
    still = depth_drift.without_drift(deformed, truth, VOXEL_UM)
    inner = (slice(4, -4), slice(4, -4), slice(4, -4))
    before, after = (np.corrcoef(reference[inner].ravel(), v[inner].ravel())[0, 1] for v in (deformed, still))
    assert before < 0.5
    assert after > 0.99
    left = depth_drift.beads_without_drift(beads, truth, VOXEL_UM[0])
    assert np.median(np.abs(left.displacement_um / edges.T)) < 0.02


def test_a_whole_drift_is_a_shift_and_a_fractional_one_a_cubic_spline() -> None:
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(20, 22, 24)), 2).astype(np.float32)
    for shift, tolerance in (((2.0, -1.0, 3.0), 1e-5), ((0.4, 1.3, -2.6), 1e-4)):  # x, y, z in voxels
        drift_um = np.outer(np.array(shift) * VOXEL_UM[::-1], np.ones(20))
        found = depth_drift.without_drift(smooth, drift_um, VOXEL_UM)
        expected = ndimage.shift(smooth, [-s for s in shift[::-1]], order=3, mode="nearest")
        inner = (slice(5, -5),) * 3
        np.testing.assert_allclose(found[inner], expected[inner], atol=tolerance)


def test_beads_that_the_cell_moves_do_not_bend_the_drift() -> None:
    rng = np.random.default_rng(4)
    depth = rng.uniform(0, 100, 300)
    drift = np.stack((0.02 * depth, 1 - 0.01 * depth, -5 + 1e-3 * depth**2), axis=1)
    motion = drift + 0.05 * rng.normal(size=(300, 3))
    pulled = (depth > 40) & (depth < 60)  # all of the cell's layer
    motion[pulled] += (2.0, 0.0, -3.0)
    places = np.stack((depth, depth, depth), axis=1)
    found = depth_drift.drift_of_beads(Beads(places, motion), np.array([0.0, 50.0, 100.0]))
    np.testing.assert_allclose(found.T, [[0, 1, -5], [1, 0.5, -2.5], [2, 0, 5]], atol=0.1)
    with pytest.raises(ValueError, match="drift needs at least 10 beads, got 9"):
        depth_drift.drift_of_beads(Beads(places[:9], motion[:9]), depth)


def test_the_drift_of_a_field_is_the_median_far_from_the_cell() -> None:
    field = np.zeros((3, 10, 8, 9)) + np.arange(10)[:, None, None] * np.array([1.0, 2.0, -1.0])[:, None, None, None]
    field[:, :, :3] += 50
    field[:, 4, 5, 5] = np.nan
    far = np.zeros((10, 8, 9), bool)
    far[:, 4:] = True
    expected = np.outer([1.0, 2.0, -1.0], np.arange(10))
    np.testing.assert_allclose(depth_drift.drift_of_field(field, far, 0.8), expected, atol=1e-9)
    with pytest.raises(ValueError, match=r"^far must hold voxels"):
        depth_drift.drift_of_field(field, ~np.ones_like(far), 0.8)


def test_drift_is_removed_where_conditions_ask_for_it(tmp_path: Path) -> None:
    reference, deformed, truth, beads = drifting_volumes()
    folder = source(tmp_path, drift_correction="beads")
    for name, array in (("reference", reference), ("deformed", deformed)):
        np.save(folder / f"a_{name}.npy", array)
    with pytest.raises(ValueError, match="drift_correction 'beads' needs the table a_beads"):
        only(folder)
    np.savez(folder / "a_beads.npz", position_um=beads.position_um, displacement_um=beads.displacement_um)
    fields = only(folder).fields
    np.testing.assert_allclose(fields["drift_um"], truth, atol=0.12)
    known = fields.pop("displacement_known")[0] > 0
    assert np.median(np.abs(fields["displacement_um"][:, known])) < 0.03
    (own,) = read_own_pairs([folder / "a_reference.npy"])
    assert np.isnan(own.fields["displacement_um"][:, ~known]).all()
    for name, value in fields.items():
        np.testing.assert_array_equal(np.nan_to_num(own.fields[name]), value)


# -- faults ------------------------------------------------------------------------------------------------------------


def replace_volume(folder: Path, array: np.ndarray) -> None:
    (folder / "a_deformed.tif").unlink()
    np.save(folder / "a_deformed.npy", array)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"voxel_size_um": None}, "lacks voxel_size_um and .*a_reference.tif does not tell it"),
        ({"voxel_size_um": [800, 300, 300]}, "give micrometres, in the order z, y, x"),
        ({"voxel_size_um": 0.3}, r"voxel_size_um must be three numbers \[z, y, x\]"),
        ({"poisson_ratio": 0.5}, r"poisson_ratio must lie in \[0, 0.5\), got 0.5"),
        ({"poisson_ratio": None}, "lacks poisson_ratio: add it"),
        ({"youngs_modulus_pa": -1}, "youngs_modulus_pa must be positive"),
        ({"youngs_modulus_pa": "soft"}, 'youngs_modulus_pa must be a finite number, got "soft"'),
        ({"voxel_size_nm": [1, 1, 1]}, "unknown entry 'voxel_size_nm'"),
        ({"drift_correction": "poly"}, "drift_correction must be one of none, beads, correlation"),
        ({"channel": 2}, "a_reference.tif has 1 channels, counted from 0: there is no channel 2"),
        ({"channel": 0.5}, "channel must be a whole number"),
    ],
)
def test_wrong_conditions_are_told_in_one_sentence(tmp_path: Path, stated: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(cfm_3d.convert(source(tmp_path, "a", **stated)))


def test_wrong_volumes_are_told_in_one_sentence(tmp_path: Path) -> None:
    folder = source(tmp_path, "a")
    holed = volume().astype(np.float32)
    holed[1, 2, 3] = np.nan
    faults = {
        r"has \[20, 32, 40\] voxels .* has \[24, 32, 40\]: cut both": volume()[:20],
        r"has 1 voxels that are NaN or infinite, the first at \(1, 2, 3\)": holed,
        "is flat, all its voxels are 7": np.full(SHAPE, 7, np.uint8),
        r"a volume \(z, y, x\) of at least 8 voxels": volume()[0],
        "must hold real numbers, it is complex64": volume().astype(np.complex64),
    }
    for message, array in faults.items():
        source(tmp_path, "a")
        replace_volume(folder, array)
        with pytest.raises(ValueError, match=message):
            list(cfm_3d.convert(folder))
        (folder / "a_deformed.npy").unlink()
    with pytest.raises(ValueError, match=r"has no partner: .* add the deformed volume"):
        list(cfm_3d.convert(folder))
    (folder / "a_deformed.tif").write_bytes(b"II*\0no picture")
    with pytest.raises(ValueError, match=r"a_deformed.tif cannot be read"):
        list(cfm_3d.convert(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x_um,y_um,z_um,u_um,v_um,w_um\n1,1,1,0,0,nan\n", "line 2: w_um is 'nan', no finite number"),
        ("x_px,y_um,z_um,u_um,v_um,w_um\n1,1,1,0,0,0\n", "column x_px must be x_um: give it in micrometres"),
        ("x_um,y_um,z_um,u_um,v_um\n1,1,1,0,0\n", "lacks the column w_um"),
        ("x_um,y_um,z_um,u_um,v_um,w_um\n", "holds no bead"),
        ("x_um,y_um,z_um,u_um,v_um,w_um\n900,900,900,0,0,0\n", "0 of 1 beads lie in the volume"),
    ],
)
def test_wrong_tables_are_told_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    folder = source(tmp_path, "a")
    (folder / "a_beads.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        list(cfm_3d.convert(folder))


def test_wrong_folders_are_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no source folder"):
        cfm_3d.convert(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no pair of bead volumes"):
        cfm_3d.convert(tmp_path)
    folder = source(tmp_path / "two", "a", "b")
    np.savez(folder / "b_beads.npz", position_um=BEADS, displacement_um=STEPS)
    with pytest.raises(ValueError, match="a_beads is missing, other pairs"):
        cfm_3d.convert(folder)
    (folder / "conditions.json").unlink()
    (folder / "b_beads.npz").unlink()
    with pytest.raises(FileNotFoundError, match="write that file with your numbers"):
        cfm_3d.convert(folder)
    np.savez(tmp_path / "beads.npz", places=BEADS)
    with pytest.raises(ValueError, match="lacks position_um"):
        read_beads(tmp_path / "beads.npz")
    slices = tmp_path / "gap" / "a_reference"
    for number in (0, 1, 3):
        slices.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(slices / f"z{number}.tif", volume()[0])
    source(tmp_path / "gap")
    np.save(tmp_path / "gap" / "a_deformed.npy", volume())
    with pytest.raises(ValueError, match="lacks slice 2 between 0 and 3"):
        list(cfm_3d.convert(tmp_path / "gap"))
