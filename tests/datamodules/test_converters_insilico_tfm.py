"""Archives of force movies, written here in miniature as they are published, and every fault that they can have."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from datamodules.converters.cell_boxes import cell_box
from datamodules.converters.force_frames import known_unit, read_force
from datamodules.converters.force_movies import in_order
from datamodules.converters.insilico_tfm import FIELDS, codes, convert, fields, provenance, splits
from datamodules.shards.reader import ShardDataset
from mechanolab import data

PUBLISHED_CELLS = ("20160809-002-xy1", "20160809-003-xy2", "20160810-001-xy1", "20160810-002-xy5", "20160810-002-xy6")
SIZE = (40, 48)
FRAMES = 3


def frame(seed: int, *, left: int = 12) -> np.ndarray:
    """A bright square of 16 px on a dark ground, (40, 48) uint16."""
    image = np.random.default_rng(seed).integers(20, 60, SIZE).astype(np.uint16)
    image[10:26, left : left + 16] += 3000
    return image


def force(seed: int) -> np.ndarray:
    return np.random.default_rng(1000 + seed).lognormal(3, 0.5, SIZE).astype(np.float32)


def write_cell(root: Path, cell: str, *, frames: int = FRAMES, suffix: str = "tif", table: bool = False) -> None:
    for channel in ("RAW", "FRET", "FORCE"):
        (root / f"{cell}{channel}").mkdir(parents=True)
    rows = ["filename,x,y,w,h"]
    for number in range(frames):
        name = f"{cell}_t{number + 8}.{suffix}"  # t8, t9, t10: by name t10 would come first
        image = frame(number)
        assert cv2.imwrite(
            str(root / f"{cell}RAW" / name), image if suffix == "tif" else (image // 16).astype(np.uint8)
        )
        assert cv2.imwrite(str(root / f"{cell}FRET" / name), image)
        assert cv2.imwrite(str(root / f"{cell}FORCE" / f"{cell}_t{number + 8}.tif"), force(number))
        rows.append(f"/somewhere/{name},{4 + number},5,20,21")
    if table:
        (root / f"{cell}_bbox.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for cell in PUBLISHED_CELLS:
        write_cell(tmp_path / "zenodo" / cell[:8], cell, table=cell.endswith("xy1"))
    return tmp_path / "zenodo"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    write_cell(tmp_path / "own", "fibroblast a_")
    (tmp_path / "own" / "conditions.json").write_text('{"pixel_size_um": 0.3}')
    return tmp_path / "own"


def test_a_name_like_a_published_one_makes_no_published_cell(own: Path, archive: Path) -> None:
    write_cell(own, "20240105-001-xy1")
    (own / "conditions.json").write_text('{"pixel_size_um": 0.3}')
    assert {float(sample.fields["pixel_size_um"]) for sample in convert(own)} == {0.3}
    assert codes(own) is None
    write_cell(archive / "20160809", "20160809-004-xy1")
    with pytest.raises(ValueError, match=r"holds cell 20160809-004-xy1 beside published ones, .* data merge"):
        list(convert(archive))


# -- the published layout ---------------------------------------------------------------------------------------------


def test_the_published_archive_becomes_one_sample_a_frame(archive: Path) -> None:
    samples = list(convert(archive))
    assert [sample.group for sample in samples] == [cell for cell in PUBLISHED_CELLS for _ in range(FRAMES)]
    assert samples[1].sample_id == "20160809-002-xy1_001"
    for index, sample in enumerate(samples):
        number = index % FRAMES
        assert sample.fields.keys() == FIELDS.keys() == fields(archive).keys()
        np.testing.assert_array_equal(sample.fields["image"][0], frame(number))
        np.testing.assert_array_equal(sample.fields["traction_pa"][0], force(number))
        assert sample.fields["image"].dtype == np.uint16
        assert float(sample.fields["pixel_size_um"]) == 0.2
        assert float(sample.fields["time_s"]) == 30 * number


def test_the_boxes_are_those_of_the_table_else_found_by_the_same_rule(archive: Path) -> None:
    for sample in convert(archive):
        number = int(sample.sample_id[-3:])
        expected = (4 + number, 5, 20, 21) if sample.group.endswith("xy1") else cell_box(frame(number))
        assert tuple(sample.fields["box_px"].tolist()) == expected
    assert cell_box(frame(0)) == (12, 10, 16, 16)


def test_the_published_cells_have_the_published_sets_under_both_names(archive: Path) -> None:
    given = codes(archive)
    assert given is not None
    sets = {name: code.reshape(5, FRAMES)[:, 0].tolist() for name, code in given.items()}
    assert sets == {"default": [0, 0, 2, 2, 1], "paper": [0, 0, 1, 1, 2]}
    assert splits(archive)["default"] == {"unit": "group", "train": 0.4, "val": 0.2, "test": 0.4}
    assert splits(archive)["paper"] == {"unit": "group", "train": 0.4, "val": 0.4, "test": 0.2}


def test_the_command_writes_the_published_sets(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "data" / "ht1080"
    assert data.convert("insilico_tfm", source=archive, out=out) == 0
    for scheme, single, others in (("default", "val", "test"), ("paper", "test", "val")):
        assert set(ShardDataset(out, scheme=scheme, split=single).groups) == {"20160810-002-xy6"}
        assert set(ShardDataset(out, scheme=scheme, split=others).groups) == {"20160810-001-xy1", "20160810-002-xy5"}
        assert {group[:8] for group in ShardDataset(out, scheme=scheme, split="train").groups} == {"20160809"}
    assert data.verify(out, workers=1) == 0
    said = ShardDataset(out).manifest.provenance
    assert (said["layout"], said["conditions"]["force_unit"]) == ("movies", "Pa")


def test_own_movies_are_shared_out_by_cell_and_need_a_pixel_size(own: Path) -> None:
    samples = list(convert(own))
    assert {sample.group for sample in samples} == {"fibroblast a"}
    assert all("time_s" not in sample.fields for sample in samples)
    assert "time_s" not in fields(own)
    assert float(samples[0].fields["pixel_size_um"]) == 0.3
    assert codes(own) is None
    assert splits(own) == {"default": {"unit": "group", "test": 1.0}}
    for cell in ("b", "c"):
        write_cell(own, cell)
    assert splits(own)["default"]["train"] == 0.8
    (own / "conditions.json").write_text('{"pixel_size_um": 0.3, "frame_interval_s": 10}')
    assert [float(sample.fields["time_s"]) for sample in convert(own)][:3] == [0, 10, 20]
    (own / "conditions.json").unlink()
    with pytest.raises(ValueError, match=r"own does not say its pixel size: write conditions\.json"):
        list(convert(own))


def test_eight_bits_and_jpeg_are_read_and_kept_in_their_own_grey_levels(tmp_path: Path) -> None:
    write_cell(tmp_path, "20160809-002-xy1", suffix="png")
    samples = list(convert(tmp_path))
    np.testing.assert_array_equal(samples[0].fields["image"][0], frame(0) // 16)
    assert samples[0].fields["image"].dtype == np.uint16
    for path in (tmp_path / "20160809-002-xy1RAW").iterdir():
        cv2.imwrite(str(path.with_suffix(".jpg")), (frame(0) // 16).astype(np.uint8))
        path.unlink()
    image = next(iter(convert(tmp_path))).fields["image"][0].astype(int)
    assert np.abs(image - frame(0) // 16).mean() < 5


def test_frames_whose_numbers_differ_are_no_pair(own: Path) -> None:
    folder = own / "fibroblast a_FORCE"
    (folder / "fibroblast a__t9.tif").rename(folder / "fibroblast a__t11.tif")
    with pytest.raises(ValueError, match=r"RAW/\S* ?a__t9.tif and .*FORCE/.*a__t10.tif would be a pair, but their num"):
        list(convert(own))


def test_frames_may_count_from_zero_in_one_folder_and_from_one_in_another(own: Path) -> None:
    for channel, first in (("RAW", 0), ("FRET", 0), ("FORCE", 1)):
        for number in range(FRAMES):
            folder = own / f"fibroblast a_{channel}"
            (folder / f"fibroblast a__t{number + 8}.tif").rename(folder / f"C2-frame{number + first}.tif")
    np.testing.assert_array_equal(list(convert(own))[2].fields["traction_pa"][0], force(2))


def test_a_second_number_in_the_names_does_not_hide_that_frames_are_shifted(own: Path) -> None:
    folder = own / "fibroblast a_FORCE"
    for number in (10, 9, 8):
        (folder / f"fibroblast a__t{number}.tif").rename(folder / f"force_t{number + 1}_{30 * number}s.tif")
    with pytest.raises(ValueError, match=r"a__t8.tif and .*force_t9_240s.tif would be a pair, but their numbers"):
        list(convert(own))
    for number in (8, 9, 10):
        (folder / f"force_t{number + 1}_{30 * number}s.tif").rename(folder / f"force_t{number}_{30 * number}s.tif")
    np.testing.assert_array_equal(next(iter(convert(own))).fields["traction_pa"][0], force(0))


def test_names_that_count_in_another_way_are_paired_in_their_order(own: Path) -> None:
    folder = own / "fibroblast a_FORCE"
    for number in range(FRAMES):
        (folder / f"fibroblast a__t{number + 8}.tif").rename(folder / f"{2 + number**2}_{16 + 31 * number**2}s.tif")
    np.testing.assert_array_equal(list(convert(own))[2].fields["traction_pa"][0], force(2))


def test_times_follow_the_numbers_of_the_names(tmp_path: Path) -> None:
    write_cell(tmp_path, "20160809-002-xy1", frames=6)
    for channel in ("RAW", "FRET", "FORCE"):
        (tmp_path / f"20160809-002-xy1{channel}" / "20160809-002-xy1_t9.tif").unlink()
    samples = list(convert(tmp_path))
    assert [float(sample.fields["time_s"]) for sample in samples] == [0, 60, 90, 120, 150]
    assert [sample.sample_id[-3:] for sample in samples] == ["000", "002", "003", "004", "005"]


def test_a_force_below_zero_by_rounding_is_no_force(own: Path) -> None:
    spoilt = force(0)
    spoilt[3, 4] = -1e-9
    assert cv2.imwrite(str(own / "fibroblast a_FORCE" / "fibroblast a__t8.tif"), spoilt)
    assert next(iter(convert(own))).fields["traction_pa"][0, 3, 4] == 0


# -- the unit of the force --------------------------------------------------------------------------------------------


def test_a_declared_unit_scales_the_force(own: Path) -> None:
    (own / "conditions.json").write_text('{"pixel_size_um": 0.3, "force_unit": "kPa"}')
    np.testing.assert_allclose(next(iter(convert(own))).fields["traction_pa"][0], 1000 * force(0), rtol=1e-6)
    assert provenance(own)["conditions"]["force_unit"] == "kPa"


def test_a_unit_that_the_file_says_itself_goes_before_a_declared_one(tmp_path: Path) -> None:
    path = tmp_path / "f.tif"
    stored = np.array([[0, 10], [20, 30]], np.uint16)
    tifffile.imwrite(path, stored, description="ImageJ=1.53k\nvunit=kPa\ncf=0\nc0=0.5\nc1=0.1\n", metadata=None)
    np.testing.assert_allclose(read_force(path, unit="Pa"), 1000 * (0.5 + 0.1 * stored))
    tifffile.imwrite(path, stored, description="ImageJ=1.53k\nvunit=Gray Value\n", metadata=None)
    with pytest.raises(ValueError, match="calibrated by ImageJ in 'Gray Value'"):
        read_force(path, unit="Pa")
    tifffile.imwrite(path, stored, description="ImageJ=1.53k\nunit=micron\n", metadata=None)
    np.testing.assert_array_equal(read_force(path, unit="Pa"), stored)


@pytest.mark.parametrize(
    ("text", "unit"), [("Pa", "Pa"), (" kpa", "kPa"), ("nN/µm²", "nN/um^2"), ("pN/um^2", "pN/um^2"), ("N", None)]
)
def test_units_are_known_by_their_spellings(text: str, unit: str | None) -> None:
    assert known_unit(text) == unit


# -- faults -----------------------------------------------------------------------------------------------------------


def remove(path: str):
    return lambda root: (root / path).unlink()


def picture(path: str, image: np.ndarray):
    return lambda root: cv2.imwrite(str(root / path), image)


def text(path: str, content: str):
    return lambda root: (root / path).write_text(content)


def without_force(root: Path) -> None:
    for path in (root / "aFORCE").iterdir():
        path.unlink()
    (root / "aFORCE").rmdir()


NAN = np.where(np.arange(1920).reshape(SIZE) < 2, np.nan, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (remove("aFORCE/a_t9.tif"), r"a: its folders hold different numbers of frames \(RAW 3, FRET 3, FORCE 2\)"),
        (remove("aFRET/a_t9.tif"), r"different numbers of frames \(RAW 3, FRET 2, FORCE 3\)"),
        (without_force, "has no folder aFORCE beside it: add it"),
        (picture("aFORCE/a_t9.tif", NAN), r"a_t9\.tif has 2 pixels that are NaN, infinite"),
        (picture("aRAW/a_t9.tif", NAN), r"a_t9\.tif has 2 pixels that are NaN, infinite"),
        (picture("aFORCE/a_t9.tif", -force(0)), r"a_t9\.tif has the traction -.* Pa, but magnitudes are not negative"),
        (
            picture("aRAW/a_t9.tif", frame(1) // 100),
            r"a_t9\.tif shows no cell, .* than 100: give a lower threshold_grey",
        ),
        (
            picture("aFORCE/a_t9.tif", force(0)[:-1]),
            r"is 48 x 40 px, but .* is 48 x 39 px: they do not belong together",
        ),
        (
            picture("aRAW/a_t9.tif", frame(1).astype(np.float32) / 65535),
            r"a_t9\.tif has no value above .*, as if scaled to 1 or a mask: save it with its grey levels",
        ),
        (text("aRAW/a_t9.tif", "no picture"), r"a_t9\.tif cannot be read as an image"),
        (text("a_bbox.csv", "filename,x,y,w\n"), r"a_bbox\.csv lacks the column h"),
        (
            text("a_bbox.csv", "filename,x,y,w,h\na_t8.tif,1,2,0,4\n"),
            r"a_bbox\.csv, line 2 must have a file name and x, y, w, h in whole",
        ),
        (
            text("a_bbox.csv", "filename,x,y,w,h\na_t8.tif,1,two,3,4\n"),
            r"a_bbox\.csv, line 2 must have a file name and",
        ),
        (text("a_bbox.csv", "x,y,w,h,filename\n1,2,3,4\n"), r"a_bbox\.csv, line 2 must have a file name"),
        (text("a_bbox.csv", "filename,x,y,w,h\na_t8.tif,1,2,3,4\n"), r"a_bbox\.csv lacks a_t9\.tif: add its box"),
        (text("a_bbox.csv", "filename,x,y,w,h\na_t8.tif,40,2,9,4\n"), r"ends at 49, 6, outside the frame of 48 x 40"),
        (text("conditions.json", "{"), r"conditions\.json is not valid JSON"),
        (text("conditions.json", "[1]"), r"conditions\.json must hold an object"),
        (text("conditions.json", '{"pixel_size": 1}'), "has an unknown entry 'pixel_size': remove it"),
        (text("conditions.json", '{"pixel_size_um": -1}'), "pixel_size_um must be a positive number, got -1"),
        (text("conditions.json", '{"force_unit": "dyn"}'), 'force_unit must be one of Pa, kPa, .* got "dyn"'),
    ],
)
def test_a_faulty_archive_is_refused_in_one_sentence(tmp_path: Path, spoil, said: str) -> None:
    write_cell(tmp_path, "a")
    (tmp_path / "conditions.json").write_text('{"pixel_size_um": 0.3}')
    assert len(list(convert(tmp_path))) == FRAMES
    spoil(tmp_path)
    with pytest.raises(ValueError, match=said) as error:
        list(convert(tmp_path))
    assert "\n" not in str(error.value)


def test_frames_of_different_sizes_are_refused(own: Path) -> None:
    write_cell(own, "b")
    for channel in ("RAW", "FORCE"):
        for path in (own / f"b{channel}").iterdir():
            path_image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert cv2.imwrite(str(path), path_image[:-4])
    with pytest.raises(ValueError, match="fibroblast a_000 is 48 x 40 px uint16, but b_000 is 48 x 36 px"):
        list(convert(own))


def test_a_folder_of_neither_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of the layouts of paper insilico_tfm"):
        convert(tmp_path)
    with pytest.raises(FileNotFoundError, match="no source folder"):
        convert(tmp_path / "nowhere")


def test_names_are_ordered_by_the_numbers_in_them() -> None:
    assert sorted(["xy10", "xy9", "a2b10", "a2b9", "9", "x"], key=in_order) == [
        "9",
        "a2b9",
        "a2b10",
        "x",
        "xy9",
        "xy10",
    ]


# -- fields on a coarser grid -----------------------------------------------------------------------------------------


def write_fields(path: Path, **changed: np.ndarray) -> None:
    """A movie of 2 frames of 64 x 72 px with vectors every 4 px whose components are linear in x and y."""
    rows, columns = np.mgrid[:64, :72].astype(float)
    grid = np.s_[:, 4:60:4, 4:68:4]  # windows of 9 px that overlap by 5: the first in the middle of px 0 to 8
    tx, ty = np.stack([3 * columns, 5 + columns]), np.stack([4 * rows, 2 * rows])
    arrays = {
        "image": np.random.default_rng(0).integers(0, 4000, (2, 64, 72)).astype(np.uint16),
        "tx_Pa": tx[grid],
        "ty_Pa": ty[grid],
        "window_px": np.array(9),
        "overlap_px": np.array(5),
        "pixelsize1_um": np.array(0.4),
    }
    np.savez(path, **{name: value for name, value in {**arrays, **changed}.items() if value is not None})


def test_vectors_on_a_coarser_grid_become_magnitudes_at_the_pixels(tmp_path: Path) -> None:
    write_fields(tmp_path / "cell1.npz")
    samples = list(convert(tmp_path))
    assert [sample.sample_id for sample in samples] == ["cell1_000", "cell1_001"]
    rows, columns = np.mgrid[:64, :72].astype(float)
    inside = np.s_[4:57, 4:65]
    for sample, expected in zip(
        samples, (np.hypot(3 * columns, 4 * rows), np.hypot(5 + columns, 2 * rows)), strict=True
    ):
        np.testing.assert_allclose(sample.fields["traction_pa"][0][inside], expected[inside], rtol=1e-5)
        assert sample.fields["traction_pa"][0, 0, 0] == sample.fields["traction_pa"][0, 4, 4]
        assert float(sample.fields["pixel_size_um"]) == 0.4
        assert sample.fields["image"].dtype == np.uint16
    assert provenance(tmp_path)["layout"] == "fields"


@pytest.mark.parametrize(
    ("changed", "conditions", "said"),
    [
        (
            {"other": np.ones((2, 64, 72))},
            {},
            r"which array is the image \(image, other\)\? Say it in conditions\.json",
        ),
        ({"tx_smooth": np.ones((2, 14, 16))}, {}, r"which array is the traction_x \(tx_Pa, tx_smooth\)"),
        ({}, {"image": "beads"}, "has no beads, which conditions.json names as image"),
        ({"window_px": None}, {}, "lacks window_px and overlap_px"),
        ({"window_px": np.array(40)}, {}, "do not fit into images of 72 x 64 px"),
        ({"pixelsize1_um": None}, {}, "does not say its pixel size"),
        ({"ty_Pa": np.full((2, 14, 16), np.nan)}, {}, "has 448 values that are NaN or infinite"),
        ({"ty_Pa": np.ones((2, 14, 15))}, {}, r"they must be \(t, y, x\) and twice \(t, rows, columns\)"),
    ],
)
def test_a_faulty_file_of_fields_is_refused_in_one_sentence(tmp_path: Path, changed, conditions, said: str) -> None:
    write_fields(tmp_path / "cell1.npz", **changed)
    (tmp_path / "conditions.json").write_text(json.dumps(conditions))
    with pytest.raises(ValueError, match=said):
        list(convert(tmp_path))


def test_conditions_choose_among_candidates(tmp_path: Path) -> None:
    write_fields(tmp_path / "cell1.npz", other=np.full((2, 64, 72), 1.5), unneeded=np.full((2, 3, 3), np.nan))
    (tmp_path / "conditions.json").write_text('{"image": "other", "pixel_size_um": 1.0, "threshold_grey": 1}')
    sample = next(iter(convert(tmp_path)))
    assert sample.fields["image"].dtype == np.float32
    assert float(sample.fields["pixel_size_um"]) == 1
    assert sample.fields["box_px"].tolist() == [0, 0, 72, 64]
