"""Prediction on the user's own displacement fields: what is read, in which convention, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from datamodules.dl_tfm import TractionData
from physics.half_space import displacement_from_traction

MODULUS_PA, RATIO, PIXEL_UM = 5000.0, 0.45, 2.0
CONDITIONS = {"youngs_modulus_pa": MODULUS_PA, "poisson_ratio": RATIO, "pixel_size_um": PIXEL_UM}
REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "dl_tfm"
ROUNDING = 1e-5
"""Of float32 and its way through micrometres, in pixels."""


def build(**changes: Any) -> TractionData:
    """A data module whose data set does not exist, and which adds noise to stored ones."""
    arguments: dict[str, Any] = {"data_root": "nowhere", "dataset": "twin", "split": "default", "batch_size": 4}
    arguments |= {"num_workers": 0, "memory_gib": 0.0, "seed": 0, "noise_px": 0.5, "train_noise_px": None}
    arguments |= {"noise_free_share": 0.0, "correlated_px": 0.0, "correlation_length_px": 4.0, "drift_px": 0.0}
    arguments |= {"tilt_px": 0.0, "symmetries": True, "centre_element": "exact", "reach": None}
    return TractionData(**(arguments | {"poisson_ratio": None, "transfer_function": None} | changes))


def declare(folder: Path, **changes: Any) -> Path:
    """Write conditions.json; entries that are None are left out."""
    folder.mkdir(exist_ok=True)
    stated = {name: value for name, value in (CONDITIONS | changes).items() if value is not None}
    (folder / "conditions.json").write_text(json.dumps(stated))
    return folder


def field(height: int = 9, width: int = 13, seed: int = 0) -> np.ndarray:
    """Displacement (2, y, x) in pixels of the field."""
    return np.random.default_rng(seed).normal(scale=0.3, size=(2, height, width))


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def archived(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def table(path: Path, displacement_px: np.ndarray, spacing_px: float) -> Path:
    rows = ["x,y,u,v"]
    for y, x in np.ndindex(displacement_px.shape[1:]):
        u, v = displacement_px[:, y, x] * spacing_px
        rows.append(f"{(x + 0.5) * spacing_px},{(y + 0.5) * spacing_px},{u:.12g},{v:.12g}")
    path.write_text("\n".join(rows))
    return path


def predicted_on(*files: Path, pixel_size_um: float | None = None) -> list[Any]:
    data = build()
    data.predict_on(files=list(files), pixel_size_um=pixel_size_um)
    data.prepare_data()
    data.setup("predict")
    assert data.data_folder is None
    assert data.irreducible_error is None
    return list(data.predict_dataloader())


def test_every_layout_gives_the_same_field_without_noise(tmp_path):
    displacement_px = field()
    folder = declare(tmp_path / "own", image_pixel_size_um=0.5)
    camera_px = displacement_px * PIXEL_UM / 0.5
    unnamed = declare(tmp_path / "unnamed", axes="yxc", displacement_unit="um")
    camera = declare(tmp_path / "camera", axes="xyc", displacement_unit="image_px", image_pixel_size_um=0.5)
    square = declare(tmp_path / "square")
    saved(folder / "frame1_v.npy", camera_px[1])
    files = [
        archived(folder / "px.npz", displacement_px=displacement_px),
        archived(folder / "um.npz", displacement_um=displacement_px * PIXEL_UM),
        archived(folder / "uv.npz", u=camera_px[0], v=camera_px[1]),
        saved(folder / "frame1_u.npy", camera_px[0]),
        table(declare(tmp_path / "piv", pixel_size_um=None, image_pixel_size_um=0.5) / "piv.csv", displacement_px, 4.0),
        saved(unnamed / "one.npy", displacement_px.transpose(1, 2, 0) * PIXEL_UM),
        saved(camera / "other.npy", camera_px.transpose(2, 1, 0)),
    ]
    batches = predicted_on(*files, folder / "frame1_v.npy")
    assert [name for batch in batches for name in batch.sample_id] == [path.name for path in files]
    measured = torch.cat([batch.displacement_px for batch in batches])
    expected = torch.from_numpy(displacement_px).float().expand_as(measured)
    torch.testing.assert_close(measured, expected, rtol=0, atol=ROUNDING)
    for batch in batches:
        assert batch.traction_pa.isnan().all()
        assert batch.cell_mask.all()
        assert set(batch.youngs_modulus_pa.tolist()) == {MODULUS_PA}
        assert set(batch.pixel_size_um.tolist()) == {PIXEL_UM}
    (batch,) = predicted_on(archived(square / "dspl.npz", dspl=field(8, 8).transpose(2, 1, 0)))
    np.testing.assert_allclose(batch.displacement_px[0], field(8, 8), atol=ROUNDING)


def test_a_stored_traction_and_a_mask_are_kept(tmp_path):
    traction_pa = np.zeros((2, 12, 12))
    traction_pa[0, 4, 5], traction_pa[1, 7, 8] = 900.0, -400.0
    displacement_um = displacement_from_traction(
        torch.from_numpy(traction_pa), pixel_size_um=PIXEL_UM, youngs_modulus_pa=MODULUS_PA, poisson_ratio=RATIO
    ).numpy()
    mask = np.zeros((12, 12), bool)
    mask[3:9, 2:11] = True
    folder = declare(tmp_path / "xyc", axes="xyc")
    stored = {"displacement_um": displacement_um.transpose(2, 1, 0), "traction_pa": traction_pa.transpose(2, 1, 0)}
    (batch,) = predicted_on(archived(folder / "a.npz", **stored, cell_mask=mask.T))
    np.testing.assert_allclose(batch.traction_pa[0], traction_pa, rtol=1e-6)
    np.testing.assert_allclose(batch.displacement_px[0], displacement_um / PIXEL_UM, atol=ROUNDING)
    np.testing.assert_array_equal(batch.cell_mask[0], mask)
    # only the authors' arrays were made with the authors' kernel
    assert (batch.centre_element.item(), batch.reach.item()) == (0, 0)


def test_a_mask_beside_pairs_and_tables_is_the_cells(tmp_path):
    displacement_px, mask = field(), np.zeros((9, 13), bool)
    mask[2:5, 3:12] = True
    folder = declare(tmp_path / "own", image_pixel_size_um=PIXEL_UM)
    piv = declare(tmp_path / "piv", pixel_size_um=None, image_pixel_size_um=0.5)
    for name, array in {"u": displacement_px[0], "v": displacement_px[1], "mask": mask}.items():
        saved(folder / f"1_{name}.npy", array)
    files = [
        folder / "1_u.npy",
        folder / "1_mask.npy",
        archived(folder / "uv.npz", u=displacement_px[0], v=displacement_px[1], cell_mask=mask),
        table(piv / "day.csv", displacement_px, 4.0),
        saved(piv / "day_mask.npy", mask),
    ]
    batches = predicted_on(*files)
    assert [name for batch in batches for name in batch.sample_id] == ["1_u.npy", "uv.npz", "day.csv"]
    for batch in batches:
        np.testing.assert_array_equal(batch.cell_mask, np.broadcast_to(mask, batch.cell_mask.shape))
    saved(piv / "day_mask.npy", mask[1:])
    with pytest.raises(ValueError, match=r"day_mask\.npy is \(8, 13\), the vectors of the table are \(9, 13\)"):
        predicted_on(piv / "day.csv")


@pytest.mark.parametrize(
    ("displacement", "beside"),
    [
        (("u", "v"), "traction_pa"), (("u", "v"), "brdx"), (("dspl",), "cell_mask"), (("dspl",), "tx"),
        (("displacement_px",), "trac"), (("displacement_um",), "brdy"),
    ],
)  # fmt: skip
def test_a_traction_outline_or_mask_that_would_not_be_read_is_refused(tmp_path, displacement, beside):
    folder = declare(tmp_path / "own", image_pixel_size_um=0.5)
    arrays = {name: field(8, 8) if len(displacement) == 1 else field(8, 8)[0] for name in displacement}
    path = archived(folder / "a.npz", **arrays, **{beside: np.ones((8, 8))})
    with pytest.raises(
        ValueError, match=rf"a\.npz holds {beside}, but beside {displacement[0]} only .* are read: save"
    ):
        predicted_on(path)


def test_a_mask_whose_axes_are_swapped_is_refused_where_the_traction_tells(tmp_path):
    declare(tmp_path)
    traction, mask = np.zeros((2, 16, 16)), np.zeros((16, 16), bool)
    traction[0, 2:6, 3:13] = np.random.default_rng(0).normal(0, 300, (4, 10))
    mask[1:7, 2:14] = True
    substrate = {"pixel_size_um": 1.0, "youngs_modulus_pa": MODULUS_PA, "poisson_ratio": RATIO}
    u = displacement_from_traction(torch.from_numpy(traction), **substrate).numpy()
    arrays = {"displacement_px": u, "traction_pa": traction}
    predicted_on(archived(tmp_path / "right.npz", **arrays, cell_mask=mask))
    swapped = archived(tmp_path / "swapped.npz", **arrays, cell_mask=mask.T)
    with pytest.raises(
        ValueError, match=r"\d+% of the traction lies outside .* when the axes of cell_mask are swapped"
    ):
        predicted_on(swapped)


def test_fields_of_several_sizes_or_large_ones_come_one_by_one(tmp_path, monkeypatch):
    folder = declare(tmp_path / "own")
    files = [archived(folder / f"{n}.npz", displacement_px=field(seed=n)) for n in range(3)]
    assert [len(batch.sample_id) for batch in predicted_on(*files)] == [3]
    other = archived(folder / "other.npz", displacement_px=field(7, 20))
    shapes = [tuple(batch.displacement_px.shape) for batch in predicted_on(*files, other)]
    assert shapes == [(1, 2, 9, 13)] * 3 + [(1, 2, 7, 20)]
    monkeypatch.setattr("datamodules.dl_tfm.LARGE_PX", 12)
    assert [len(batch.sample_id) for batch in predicted_on(*files)] == [1, 1, 1]


def test_the_pixel_size_of_the_command_line_takes_the_place_of_the_stored_one(tmp_path):
    displacement_px = field()
    folder = declare(tmp_path / "own", pixel_size_um=None, image_pixel_size_um=0.5)
    micrometres = archived(folder / "um.npz", displacement_um=displacement_px * 4.0)
    pixels = archived(folder / "px.npz", displacement_px=displacement_px)
    vectors = archived(folder / "uv.npz", u=displacement_px[0] * 8.0, v=displacement_px[1] * 8.0)
    piv = table(declare(tmp_path / "piv", image_pixel_size_um=0.1) / "piv.txt", displacement_px, 7.0)
    (batch,) = predicted_on(micrometres, pixels, vectors, piv, pixel_size_um=4.0)
    assert batch.pixel_size_um.tolist() == [4.0] * 4
    expected = torch.from_numpy(displacement_px).float().expand(4, -1, -1, -1)
    torch.testing.assert_close(batch.displacement_px, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_size_um": None}, "lacks pixel_size_um: add it"),
        ({"youngs_modulus_pa": None}, "lacks youngs_modulus_pa: add it, for example"),
        ({"youngs_modulus_pa": -3.0}, "youngs_modulus_pa must be a positive number, got -3.0"),
        ({"axes": "ycx"}, 'axes must be one of cyx, yxc, xyc, got "ycx"'),
        ({"axes": 3}, "axes must be one of cyx, yxc, xyc, got 3"),
        ({"displacement_unit": "nm"}, "displacement_unit must be one of px, image_px, um"),
    ],
)
def test_conditions_that_say_too_little_or_nonsense_are_refused(tmp_path, changes, message):
    folder = declare(tmp_path / "own", **changes)
    with pytest.raises(ValueError, match=message) as refusal:
        build().predict_on(files=[archived(folder / "a.npz", displacement_px=field())])
    assert "conditions.json" in str(refusal.value)


def test_a_file_without_names_needs_its_axes_and_unit(tmp_path):
    folder = declare(tmp_path / "own")
    one = saved(folder / "one.npy", field(2, 2))
    with pytest.raises(ValueError, match=r'lacks axes: add it, for example {"axes": "cyx"}'):
        build().predict_on(files=[one])
    declare(folder, axes="cyx")
    with pytest.raises(ValueError, match="lacks displacement_unit"):
        build().predict_on(files=[one])
    declare(folder, axes="cyx", displacement_unit="image_px")
    with pytest.raises(ValueError, match="lacks image_pixel_size_um"):
        build().predict_on(files=[one])
    (folder / "conditions.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"conditions\.json: .* so write that file"):
        build().predict_on(files=[one])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("um.npz", {"displacement_unit": "px"}, 'displacement_um, of displacement_unit "um", but .* declares "px"'),
        ("px.npz", {"displacement_unit": "image_px"}, 'displacement_px, of displacement_unit "px", .* "image_px"'),
        ("uv.npz", {"displacement_unit": "px"}, 'u, of displacement_unit "image_px", .* declares "px"'),
        ("1_v.npy", {"displacement_unit": "um"}, 'u, of displacement_unit "image_px", .* declares "um"'),
        ("1_v.npy", {"axes": "xyc"}, 'u, of axes "cyx", .* declares "xyc"'),
        ("dspl.npz", {"displacement_unit": "um"}, 'dspl, of displacement_unit "px", .* declares "um"'),
        ("dspl.npz", {"axes": "yxc"}, 'dspl, of axes "xyc", .* declares "yxc"'),
        ("piv.csv", {"displacement_unit": "um"}, 'vectors of PIV, of displacement_unit "image_px", .* declares "um"'),
        ("um.npz", {"displacement_unit": "um", "axes": "cyx"}, None),
        ("1_v.npy", {"displacement_unit": "image_px", "axes": "yxc"}, None),
        ("dspl.npz", {"displacement_unit": "px", "axes": "xyc"}, None),
        ("piv.csv", {"displacement_unit": "image_px", "axes": "xyc"}, None),
    ],
)
def test_what_is_declared_must_not_contradict_the_name_of_an_array(tmp_path, name, changes, message):
    square = field(8, 8)
    folder = declare(tmp_path / "own", pixel_size_um=None if name == "piv.csv" else PIXEL_UM, image_pixel_size_um=0.5)
    archived(folder / "um.npz", displacement_um=square)
    archived(folder / "px.npz", displacement_px=square)
    archived(folder / "uv.npz", u=square[0], v=square[1])
    archived(folder / "dspl.npz", dspl=square.transpose(2, 1, 0))
    table(folder / "piv.csv", square, 4.0)
    for part, values in zip("uv", square, strict=True):
        saved(folder / f"1_{part}.npy", values)
    declare(folder, pixel_size_um=None if name == "piv.csv" else PIXEL_UM, image_pixel_size_um=0.5, **changes)
    if message is None:
        assert len(predicted_on(folder / name)) == 1
    else:
        with pytest.raises(ValueError, match=message):
            build().predict_on(files=[folder / name])


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1e-6, "less than any measurement sees: correct its unit"),
        (1e3, "more than the 13 of the field: correct its unit"),
    ],
)
def test_a_field_of_another_unit_than_was_said_is_refused(tmp_path, factor, message):
    folder = declare(tmp_path / "own")
    shifts = field() * CONDITIONS["pixel_size_um"] * factor  # in m, or in nm
    path = archived(folder / "a.npz", displacement_um=shifts)
    with pytest.raises(ValueError, match=rf"a\.npz: its largest displacement is .* pixels of .* um, {message}"):
        predicted_on(path)
    still = archived(folder / "still.npz", displacement_um=np.zeros_like(shifts))
    assert predicted_on(still)[0].displacement_px.abs().max() == 0


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f4", ">i2", "f2"])
def test_numbers_of_any_width_and_byte_order_are_read(tmp_path, dtype):
    displacement_px = np.round(5 * field()).astype(dtype)
    unnamed = declare(tmp_path / "unnamed", axes="cyx", displacement_unit="px")
    folder = declare(tmp_path / "own")
    with h5py.File(folder / "dspl.mat", "w") as file:
        file["dspl"] = np.round(5 * field(9, 9)).astype(dtype)  # HDF5 keeps MATLAB's axes in reverse
    files = [saved(unnamed / "one.npy", displacement_px), archived(folder / "px.npz", displacement_px=displacement_px)]
    (batch,) = predicted_on(*files)
    expected = torch.from_numpy(displacement_px.astype(np.float32)).expand(2, -1, -1, -1)
    torch.testing.assert_close(batch.displacement_px, expected, rtol=1e-6, atol=0)
    (batch,) = predicted_on(folder / "dspl.mat")
    torch.testing.assert_close(batch.displacement_px[0], torch.from_numpy(np.round(5 * field(9, 9))).float())


def test_files_that_cannot_be_predicted_on_are_refused_by_name(tmp_path):
    folder, displacement_px = declare(tmp_path / "own"), field()
    good = archived(folder / "good.npz", displacement_px=displacement_px)
    cases: list[tuple[Path, str]] = [
        (
            archived(folder / "turned.npz", displacement_px=displacement_px.transpose(1, 2, 0)),
            r"displacement_px in .*turned\.npz is \(9, 13, 2\), it must be \(2, y, x\): save it like that, or declare",
        ),
        (archived(folder / "none.npz", strain=displacement_px), r"none\.npz holds strain but no displacement: save it"),
        (
            archived(folder / "two.npz", displacement_px=displacement_px, displacement_um=displacement_px),
            r"two\.npz holds more than one displacement, displacement_px, displacement_um: leave one",
        ),
        (
            archived(folder / "sizes.npz", displacement_px=displacement_px, cell_mask=np.ones((13, 9), bool)),
            r"sizes\.npz: displacement_px is a field of 13 x 9 px but cell_mask has another size",
        ),
        (
            archived(folder / "empty.npz", displacement_px=displacement_px, cell_mask=np.zeros((9, 13), bool)),
            r"empty\.npz: cell_mask holds no pixel",
        ),
        (saved(folder / "alone_u.npy", displacement_px[0]), r"alone_u\.npy lacks its partner v"),
        (folder / "conditions.json", r"conditions\.json is of a kind that cannot be read; it must be one of \.mat"),
        (
            archived(folder / "nan.npz", displacement_px=np.where(displacement_px > 0.5, np.nan, displacement_px)),
            r"displacement_px in .*nan\.npz has \d+ values that are NaN",
        ),
        (
            archived(declare(tmp_path / "twin") / "good.npz", displacement_px=displacement_px),
            r"own/good\.npz and .*twin/good\.npz would be listed under one name",
        ),
    ]
    for path, message in cases:
        with pytest.raises(ValueError, match=message):
            build().predict_on(files=[good, path])
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.npz"):
        build().predict_on(files=[folder / "absent.npz"])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"files": []}, "^files must name at least one displacement field"),
        ({"pixel_size_um": 2.0}, "^pixel_size_um needs files"),
        ({"split": "all"}, "^split must be"),
        ({"files": [Path("a.npz")], "pixel_size_um": -1.0}, "^pixel_size_um must be positive"),
    ],
)
def test_requests_that_make_no_sense_are_refused(request_, message):
    data = build()
    with pytest.raises(ValueError, match=message):
        data.predict_on(**request_)
    assert data.data_folder is not None


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the authors' sample fields in shared/real/dl_tfm")
def test_the_authors_files_are_read_as_they_are(tmp_path):
    name = "real_cell_MLData001_104.npz"
    folder = declare(tmp_path / "real", youngs_modulus_pa=10670.0, pixel_size_um=1.925)
    (folder / name).write_bytes((REAL / name).read_bytes())
    (batch,) = predicted_on(folder / name)
    with np.load(REAL / name) as stored:
        # the authors' array is [x, y, component]
        at_30_70 = stored["dspl"][70, 30]
        inside = stored["brdx"].mean() - 1, stored["brdy"].mean() - 1
    np.testing.assert_allclose(batch.displacement_px[0, :, 30, 70], at_30_70, atol=ROUNDING)
    columns = batch.cell_mask[0].nonzero()[:, 1].float()
    assert columns.min() < inside[0] < columns.max()
    assert batch.traction_pa.isnan().all()
