"""Displacement fields in every layout of their archives, as miniatures that the tests write themselves.

The truth is analytic: a few point forces, whose displacement at the other pixels is Boussinesq's formula.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from datamodules.batches import Sample
from datamodules.converters import dl_tfm
from datamodules.shards.lists import trimmed
from datamodules.shards.reader import ShardDataset
from datamodules.simulators import dl_tfm as simulator
from mechanolab import data
from mechanolab.config import RequestError

SIZE = 16
MODULUS_PA, NU, PIXEL_UM = 5000.0, 0.45, 2.0
CONDITIONS = {"youngs_modulus_pa": MODULUS_PA, "poisson_ratio": NU, "pixel_size_um": PIXEL_UM}
CENTRE = 1.17
"""px per unit of traction / E: the constant of Wang & Lin's generator."""
CORNERS = np.array([[3.0, 4.0], [14.0, 4.0], [14.0, 13.0], [3.0, 13.0]])
"""x and y counted from 1, as the authors do."""
FORCES = {(4, 5): (900.0, 300.0), (11, 5): (-700.0, 200.0), (10, 11): (-200.0, -800.0)}
"""(x, y) counted from 0 to Pa."""


def pair(size: int = SIZE, modulus_pa: float = MODULUS_PA, turn: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(displacement in px, traction), (x, y, component) each, by Boussinesq's formula for one force after another."""
    traction = np.zeros((size, size, 2))
    for (x, y), force in FORCES.items():
        traction[x, y] = force
    traction = np.roll(traction, turn, axis=(0, 1))
    displacement = np.zeros_like(traction)
    a = (1 + NU) / (math.pi * modulus_pa)
    reach = size // 2 - 1
    for x, y in np.argwhere(traction.any(axis=2)):
        for i in range(max(0, x - reach), min(size, x + reach + 1)):
            for j in range(max(0, y - reach), min(size, y + reach + 1)):
                dx, dy, (tx, ty) = i - x, j - y, traction[x, y]
                r = math.hypot(dx, dy)
                xx, yy, xy = CENTRE / modulus_pa, CENTRE / modulus_pa, 0.0
                if r:
                    xx = a * ((1 - NU) / r + NU * dx**2 / r**3)
                    yy = a * ((1 - NU) / r + NU * dy**2 / r**3)
                    xy = a * NU * dx * dy / r**3
                displacement[i, j] += xx * tx + xy * ty, xy * tx + yy * ty
    return displacement, traction


DSPL, TRAC = pair()
OUTLINE = {"brdx": CORNERS[:, 0].astype(np.uint8), "brdy": CORNERS[:, 1].astype(np.uint8)}


def save(path: Path, version: str = "5", **arrays: np.ndarray) -> Path:
    """Write arrays as MATLAB or numpy show them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif version == "7.3":
        with h5py.File(path, "w", userblock_size=512) as file:
            for name, array in arrays.items():
                # MATLAB's vectors have two axes, and HDF5 keeps all axes in reverse
                file.create_dataset(name, data=np.atleast_2d(array).T, chunks=True, compression="gzip")
        header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
        with path.open("r+b") as file:
            file.write(header)
    else:
        scipy.io.savemat(path, arrays, do_compression=version == "7")
    return path


def say(folder: Path, **changes: object) -> Path:
    stated = {name: value for name, value in (CONDITIONS | changes).items() if value is not None}
    (folder / "conditions.json").write_text(json.dumps(stated))
    return folder


def expected(samples: list[Sample], displacement: np.ndarray = DSPL, traction: np.ndarray = TRAC) -> None:
    """The fields of one pair in our convention: (component, y, x), um and Pa."""
    for sample in samples:
        values = sample.fields
        assert set(values) == set(dl_tfm.FIELDS)
        for x in range(SIZE):
            for y in range(SIZE):
                assert values["displacement_um"][:, y, x] == pytest.approx(displacement[x, y] * PIXEL_UM, rel=1e-6)
                assert values["traction_pa"][:, y, x] == pytest.approx(traction[x, y], rel=1e-6)
        assert values["displacement_um"].dtype == values["traction_pa"].dtype == np.float32
        for name in CONDITIONS:
            assert (values[name].shape, values[name].dtype, float(values[name])) == ((), np.float64, CONDITIONS[name])
        assert trimmed(sample, "outline_px").tolist() == (CORNERS - 1).tolist()
        assert values["outline_px"].shape == (360, 2)
        # corners at pixel centres: columns 2 to 13, rows 3 to 12, the edge included
        assert values["cell_mask"].shape == (1, SIZE, SIZE)
        assert values["cell_mask"].dtype == np.uint8
        assert np.argwhere(values["cell_mask"][0]).min(axis=0).tolist() == [3, 2]
        assert int(values["cell_mask"].sum()) == 12 * 10


def test_the_fields_are_those_of_the_simulator_without_its_recipe():
    assert {name: entry for name, entry in simulator.FIELDS.items() if name != "recipe"} == dl_tfm.FIELDS


@pytest.mark.parametrize(("suffix", "version"), [(".mat", "5"), (".mat", "7"), (".mat", "7.3"), (".npz", "")])
def test_a_file_with_both_fields(tmp_path, suffix, version):
    save(tmp_path / f"MLData0001{suffix}", version, dspl=DSPL, trac=TRAC, **OUTLINE)
    samples = list(dl_tfm.convert(say(tmp_path)))
    assert [(s.sample_id, s.group) for s in samples] == [("MLData0001", "MLData0001")]
    expected(samples)


def training_folders(folder: Path) -> Path:
    """Two cells in two rotations, and one radial pattern, as in the authors' training data."""
    for name in ("MLData0010-1", "MLData0010-2", "MLData0009-1", "MLData0009-2"):
        save(folder / "dspl" / f"{name}.mat", dspl=DSPL, **OUTLINE)
        save(folder / "trac" / f"{name}.mat", "7.3", trac=TRAC, **OUTLINE)
    save(folder / "dsplRadial" / "MLData0009.mat", dspl=DSPL, **OUTLINE)
    save(folder / "tracRadial" / "MLData0009.mat", trac=TRAC, **OUTLINE)
    return say(folder)


def test_fields_in_folders_of_their_own_are_paired_by_name_and_grouped_by_cell(tmp_path):
    samples = list(dl_tfm.convert(training_folders(tmp_path)))
    assert [(s.sample_id, s.group) for s in samples] == [
        ("MLData0009-1", "MLData0009"),
        ("MLData0009-2", "MLData0009"),
        ("MLData0010-1", "MLData0010"),
        ("MLData0010-2", "MLData0010"),
        ("radial_MLData0009", "radial_MLData0009"),
    ]
    expected(samples)


def test_numbers_that_run_on_are_grouped_by_the_files_per_cell(tmp_path):
    for number in (1, 2, 9, 10):
        save(tmp_path / f"MLData{number}.npz", dspl=DSPL, trac=TRAC)
    groups = [s.group for s in dl_tfm.convert(say(tmp_path, files_per_cell=2))]
    assert groups == ["MLData1", "MLData1", "MLData9", "MLData9"]
    with pytest.raises(ValueError, match="4 fields, no multiple of files_per_cell 3"):
        list(dl_tfm.convert(say(tmp_path, files_per_cell=3)))


@pytest.mark.parametrize("modulus_pa", [10.0, MODULUS_PA])
def test_tractions_for_another_modulus_are_turned_into_pascals(tmp_path, modulus_pa):
    share = modulus_pa / MODULUS_PA
    save(tmp_path / "MLData0001.mat", dspl=DSPL, trac=TRAC * share, **OUTLINE)
    expected(list(dl_tfm.convert(say(tmp_path, traction_modulus_pa=modulus_pa))))
    if share != 1:
        with pytest.raises(ValueError, match=r"MLData0001.*substrate of 10 Pa, not 5000.*traction_modulus_pa"):
            list(dl_tfm.convert(say(tmp_path)))


def test_measured_displacements_have_no_traction_and_are_for_testing(tmp_path):
    for number in (1, 2, 3):
        save(tmp_path / "dspl" / f"MLData00{number}.mat", dspl=DSPL, **OUTLINE)
    samples = list(dl_tfm.convert(say(tmp_path)))
    assert set(dl_tfm.fields(tmp_path)) == set(samples[0].fields) == set(dl_tfm.FIELDS) - {"traction_pa"}
    assert dl_tfm.splits(tmp_path) == dl_tfm.TEST_ONLY
    assert [s.group for s in samples] == ["MLData001", "MLData002", "MLData003"]


def test_two_cells_are_for_testing_and_three_are_shared_out(tmp_path):
    training_folders(tmp_path)
    assert dl_tfm.splits(tmp_path) == dl_tfm.SPLITS
    for name in ("dsplRadial", "tracRadial"):
        (tmp_path / name / "MLData0009.mat").unlink()
        (tmp_path / name).rmdir()
    assert dl_tfm.splits(tmp_path) == dl_tfm.TEST_ONLY
    assert set(dl_tfm.fields(tmp_path)) == set(dl_tfm.FIELDS)


IMAGE_UM = 0.25
PYTFM = {"image_pixel_size_um": IMAGE_UM, "youngs_modulus_pa": 8000.0, "poisson_ratio": 0.5}


def cytometry() -> dict[str, np.ndarray]:
    """A shear wave across the rows and a compression wave along them: T = k E u / (2 (1 + nu)), / (1 - nu) along k.

    (y, x) arrays that are not square; displacement in camera pixels, traction in Pa.
    """
    y, x = np.mgrid[:12, :20]
    k_y, k_x = 2 * math.pi * 2 / (12 * PIXEL_UM), 2 * math.pi * 3 / (20 * PIXEL_UM)
    shear, pressure = np.cos(k_y * PIXEL_UM * y), np.sin(k_x * PIXEL_UM * x)
    stiffness = PYTFM["youngs_modulus_pa"] / (2 * (1 + 0.5)) * IMAGE_UM
    across, along = 2.0 * shear, pressure
    u = across + along
    v = 1.5 * np.cos(k_x * PIXEL_UM * x) + 0.5 * np.sin(k_y * PIXEL_UM * y)
    tx = stiffness * (k_y * across + k_x / 0.5 * along)
    ty = stiffness * (1.5 * k_x * np.cos(k_x * PIXEL_UM * x) + 0.5 / 0.5 * k_y * np.sin(k_y * PIXEL_UM * y))
    return {"u": u, "v": v, "tx": tx, "ty": ty}


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_components_saved_by_traction_software(tmp_path, kind):
    stored = cytometry()
    for recording, frames in {"cellA": ("01", "02"), "cellB": ("01",)}.items():
        (tmp_path / recording).mkdir()
        for frame in frames:
            if kind == "npz":
                np.savez(tmp_path / recording / f"{frame}.npz", **stored)
            else:
                for name, array in stored.items():
                    np.save(tmp_path / recording / f"{frame}{name}.npy", array)
    samples = list(dl_tfm.convert(say(tmp_path, **PYTFM)))
    assert [(s.sample_id, s.group) for s in samples] == [
        ("cellA_01", "cellA"),
        ("cellA_02", "cellA"),
        ("cellB_01", "cellB"),
    ]
    for sample in samples:
        moved, pulled = sample.fields["displacement_um"], sample.fields["traction_pa"]
        assert moved == pytest.approx(np.stack([stored["u"], stored["v"]]) * IMAGE_UM, rel=1e-6, abs=1e-7)
        assert pulled == pytest.approx(np.stack([stored["tx"], stored["ty"]]), rel=1e-6, abs=1e-4)
        assert len(trimmed(sample, "outline_px")) == 0
        assert sample.fields["cell_mask"].all()
    assert [s.group for s in dl_tfm.convert(say(tmp_path, **PYTFM, files_per_cell=1))] == [s.sample_id for s in samples]


@pytest.mark.parametrize("kind", ["npy", "npz", "csv"])
def test_a_mask_beside_components_and_tables_is_the_cells(tmp_path, kind):
    stored = cytometry()
    mask = np.zeros(stored["u"].shape, bool)
    mask[2:5, 1:7] = True
    conditions = PYTFM
    if kind == "npz":
        np.savez(tmp_path / "01.npz", **stored, cell_mask=mask)
    elif kind == "npy":
        for name, array in (stored | {"mask": mask}).items():
            np.save(tmp_path / f"01{name}.npy", array)
    else:
        u, v = stored["u"], stored["v"]
        rows = [f"{7 * x},{7 * y},{u[y, x]},{v[y, x]}" for y, x in np.ndindex(mask.shape)]
        (tmp_path / "day1.csv").write_text("\n".join(["x,y,u,v", *rows]))
        np.save(tmp_path / "day1_mask.npy", mask)
        conditions = {"pixel_size_um": None, "image_pixel_size_um": 0.275}
    (sample,) = dl_tfm.convert(say(tmp_path, **conditions))
    np.testing.assert_array_equal(sample.fields["cell_mask"][0], mask)


def test_components_whose_y_axes_differ_are_refused(tmp_path):
    for name, array in cytometry().items():
        np.save(tmp_path / f"{name}.npy", -array if name == "ty" else array)
    with pytest.raises(ValueError, match=r"u\.npy.* does not explain .*sign of its y component turned"):
        list(dl_tfm.convert(say(tmp_path, **PYTFM)))


def test_tables_become_fields_in_pixels_of_their_grid(tmp_path):
    (tmp_path / "day1").mkdir()
    rows = [f"{7 * x + 3.5},{7 * y + 3.5},{x + 10 * y},{-y / 7}" for y in range(4) for x in range(5)]
    for name in ("b", "a"):
        (tmp_path / "day1" / f"{name}.csv").write_text("\n".join(["x,y,u,v", *reversed(rows)]))
    samples = list(dl_tfm.convert(say(tmp_path, pixel_size_um=None, image_pixel_size_um=0.275)))
    assert [(s.sample_id, s.group) for s in samples] == [("day1_a", "day1"), ("day1_b", "day1")]
    values = samples[0].fields
    assert float(values["pixel_size_um"]) == pytest.approx(7 * 0.275)
    assert values["displacement_um"].shape == (2, 4, 5)
    assert values["displacement_um"][:, 3, 2] == pytest.approx([32 * 0.275, -3 / 7 * 0.275], rel=1e-6)
    with pytest.raises(ValueError, match=r"7 camera pixels apart, 1\.925 um, but .*says pixel_size_um 2"):
        list(dl_tfm.convert(say(tmp_path, image_pixel_size_um=0.275)))


def test_the_command_writes_pairs_and_measurements(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHANOLAB_DATA", str(tmp_path / "data"))
    pairs, cells = tmp_path / "pairs", tmp_path / "cells"
    training_folders(pairs)
    corners = np.linspace(3.0, 14.0, 400)
    save(cells / "MLData001.mat", "7.3", dspl=DSPL, brdx=corners, brdy=np.r_[corners[:200], corners[199::-1]])
    assert data.convert("dl_tfm", source=pairs) == data.convert("dl_tfm", source=say(cells)) == 0
    first, second = (ShardDataset(tmp_path / "data" / "dl_tfm" / name) for name in ("pairs", "cells"))
    assert first.manifest.provenance["conditions"] == CONDITIONS
    assert {n: first.manifest.splits["default"]["groups"][n] for n in ("train", "val", "test")} == dict.fromkeys(
        ("train", "val", "test"), 1
    )
    assert "traction_pa" not in second.manifest.fields
    assert second.manifest.fields["outline_px"].shape == (400, 2)
    assert second.manifest.splits["default"]["samples"]["test"] == 1
    assert data.verify(tmp_path / "data" / "dl_tfm" / "pairs") == 0
    with pytest.raises(RequestError, match=r"youngs_modulus_pa 5000\.0, not 6000\.0"):
        data.convert("dl_tfm", source=say(cells, youngs_modulus_pa=6000))
