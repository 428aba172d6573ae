"""The three published layouts of migrating-cell images, as miniature archives and, where present, a real recording."""

from __future__ import annotations

import csv
import math
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from datamodules.converters.circular import FIELDS, SPLITS, convert, provenance
from datamodules.converters.grey_images import read_grey, read_stored
from datamodules.converters.tracks import find_recordings
from datamodules.shards.schema import check_scheme

REAL = Path(__file__).resolve().parents[2] / "../shared/real/circular"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real recording is not on this machine")
LZW, DEFLATE = 5, 8
HEIGHT, WIDTH, FRAMES = 260, 340, 4
QUADRANTS = ("0_upper_right", "1_upper_left", "2_lower_left", "3_lower_right")
# Positions (x, y) per frame, y down. 18 um are 27.7 px: the first track needs two steps, the second one step, the
# third never gets there, the fourth is too near the lower edge.
POSITIONS = {
    3: [(150.0, 150.0), (170.0, 130.0), (190.0, 110.0), (191.0, 109.0)],
    12: [(240.0, 120.0), (200.0, 120.0)],
    20: [(100.0, 100.0), (101.0, 100.0), (102.0, 100.0), (103.0, 100.0)],
    21: [(150.0, 200.0), (250.0, 200.0)],
}


def write(path: Path, image: np.ndarray, compression: int = LZW) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_TIFF_COMPRESSION, compression] if path.suffix == ".tif" else []
    assert cv2.imwrite(str(path), image, options)
    return path


def frame_image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


def write_frames(folder: Path, count: int = FRAMES) -> None:
    for number in range(count):
        write(folder / f"t{number:03d}.tif", frame_image(number), (LZW, DEFLATE)[number % 2])


def write_csv(path: Path, positions: dict[int, list[tuple[float, float]]]) -> Path:
    rows = [(track, frame, x, y, 9) for track, track_xy in positions.items() for frame, (x, y) in enumerate(track_xy)]
    lines = ["track_id,frame,x_px,y_px,area", *(",".join(map(str, row)) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def write_labels(folder: Path, positions: dict[int, list[tuple[float, float]]]) -> None:
    """Square marks of 5 x 5 px about each (whole) position."""
    for frame in range(FRAMES):
        labels = np.zeros((HEIGHT, WIDTH), np.uint16)
        for track, track_xy in positions.items():
            if frame < len(track_xy):
                x, y = map(int, track_xy[frame])
                labels[y - 2 : y + 3, x - 2 : x + 3] = track
        write(folder / f"man_track{frame:03d}.tif", labels)
    lines = [f"{track} 0 {len(track_xy) - 1} 0" for track, track_xy in positions.items()]
    (folder / "man_track.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def recording(tmp_path):
    """Frames beside a csv of positions."""
    write_frames(tmp_path / "frames")
    write_csv(tmp_path / "tracks_02.csv", POSITIONS)
    return tmp_path


def area_weights() -> np.ndarray:
    """(128, 170): how much of each of 170 px lies in each of 128 equal parts."""
    edges = np.linspace(0, 170, 129)
    low, high = np.arange(170), np.arange(1, 171)
    overlap = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)
    return np.clip(overlap, 0, None) / (170 / 128)


def test_a_direction_is_that_of_the_first_position_beyond_the_threshold(recording):
    samples = list(convert(recording))
    assert [(s.sample_id, s.group) for s in samples] == [
        ("track03_t000", "track03"),
        ("track03_t001", "track03"),
        ("track12_t000", "track12"),
    ]
    assert np.degrees([float(s.fields["angle_rad"]) for s in samples]) == pytest.approx([45.0, 45.0, 180.0])
    assert [int(s.fields["frame"]) for s in samples] == [0, 1, 0]


def test_every_sample_holds_the_documented_fields(recording):
    for sample in convert(recording):
        assert set(sample.fields) == set(FIELDS)
        assert (sample.fields["image"].shape, sample.fields["image"].dtype) == ((1, 128, 128), np.uint8)
        assert (sample.fields["angle_rad"].shape, sample.fields["angle_rad"].dtype) == ((), np.float64)
        assert (sample.fields["frame"].shape, sample.fields["frame"].dtype) == ((), np.int32)


def test_a_patch_is_the_area_mean_of_the_window_around_the_cell(recording):
    sample = next(convert(recording))
    window = frame_image(0)[150 - 85 : 150 + 85, 150 - 85 : 150 + 85].astype(float)
    expected = area_weights() @ window @ area_weights().T
    assert np.abs(sample.fields["image"][0] - expected).max() <= 0.5 + 1e-3  # rounding to whole grey levels


def test_a_smaller_threshold_labels_earlier_and_more(recording):
    ids = [sample.sample_id for sample in convert(recording, threshold_um=0.6)]
    assert ids == ["track03_t000", "track03_t001", "track03_t002", "track12_t000"] + [
        f"track20_t00{k}" for k in (0, 1, 2)
    ]


def test_the_near_edge_of_the_window_may_touch_the_frame_and_the_far_edge_may_not(tmp_path):
    write_frames(tmp_path / "frames", 2)
    starts = {1: (85.9, 85.0), 2: (84.9, 100.0), 3: (WIDTH - 86.0, 174.9), 4: (WIDTH - 85.0, 100.0), 5: (100.0, 175.0)}
    write_csv(tmp_path / "tracks.csv", {track: [xy, (xy[0] + 40, xy[1])] for track, xy in starts.items()})
    assert [sample.group for sample in convert(tmp_path)] == ["track01", "track03"]


def test_label_images_give_the_samples_of_the_csv(recording, tmp_path_factory):
    labelled = tmp_path_factory.mktemp("labelled")
    write_frames(labelled / "02")
    write_labels(labelled / "02_GT" / "TRA", POSITIONS)
    for one, other in zip(convert(recording), convert(labelled), strict=True):
        assert one.sample_id == other.sample_id
        assert {name: value.tolist() for name, value in one.fields.items()} == {
            name: value.tolist() for name, value in other.fields.items()
        }


def test_the_csv_is_preferred_to_label_images_and_either_can_be_chosen(recording):
    mirrored = {12: [(100.0, 120.0), (140.0, 120.0)]}
    write_labels(recording / "02_GT" / "TRA", mirrored)
    counts = {tracks: len(list(convert(recording, tracks=tracks))) for tracks in (None, "csv", "labels")}
    assert counts == {None: 3, "csv": 3, "labels": 1}
    assert provenance(recording)["tracks"] == "02: csv"
    assert provenance(recording, tracks="labels")["tracks"] == "02: labels"


def test_several_recordings_keep_their_cells_apart(tmp_path):
    for name in ("01", "02"):
        write_frames(tmp_path / name)
        write_labels(tmp_path / f"{name}_GT" / "TRA", POSITIONS)
    write_csv(tmp_path / "tracks_02.csv", {12: POSITIONS[12]})
    groups = [sample.group for sample in convert(tmp_path)]
    assert groups == ["seq01_track03", "seq01_track03", "seq01_track12", "seq02_track12"]
    assert [recording.source(None) for recording in find_recordings(tmp_path)] == ["labels", "csv"]


def write_patch(folder: Path, name: str, angle_net_deg: float, *, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (128, 128)).astype(dtype) * (16 if dtype is np.uint16 else 1)
    write(folder / f"{name}.tif", image)
    rows = [["t_tot", "angle_net"], [15.0, -angle_net_deg], [30.0, angle_net_deg]]
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return image


@pytest.fixture
def folds(tmp_path):
    """Four patches of three cells in two folds; angle_net counts with y down."""
    patches = [("NIH_1_1", 9, -30.0, 0), ("NIH_1_1", 10, -120.0, 1), ("NIH_1_2", 3, 135.0, 2), ("NIH_2", 0, 0.0, 0)]
    for fold in (0, 1):
        for row, (cell, frame, angle, quadrant) in enumerate(patches):
            part = "test" if row % 2 == fold else "train"
            folder = tmp_path / "datasets" / f"fold{fold}" / part / QUADRANTS[quadrant]
            write_patch(folder, f"{cell}_{frame}", angle, seed=row)
    return tmp_path / "datasets"


def test_a_patch_that_lies_in_several_folds_is_yielded_once_with_y_up(folds):
    samples = list(convert(folds))
    assert [s.sample_id for s in samples] == ["NIH_1_1_9", "NIH_1_1_10", "NIH_1_2_3", "NIH_2_0"]
    assert [s.group for s in samples] == ["NIH_1_1", "NIH_1_1", "NIH_1_2", "NIH_2"]
    assert [int(s.fields["frame"]) for s in samples] == [9, 10, 3, 0]
    assert np.degrees([float(s.fields["angle_rad"]) for s in samples]) == pytest.approx([30.0, 120.0, 225.0, 0.0])
    assert provenance(folds)["layout"] == "folds"


def test_folds_are_found_one_folder_down_but_not_two_data_sets_at_once(folds):
    assert len(list(convert(folds.parent))) == 4
    (folds.parent / "other").mkdir()
    (folds / "fold0").rename(folds.parent / "other" / "fold0")
    with pytest.raises(ValueError, match="several data sets"):
        list(convert(folds.parent))


def test_sixteen_bit_patches_are_stretched_as_their_own_reader_does(tmp_path):
    stored = write_patch(tmp_path / "fold0" / "train" / QUADRANTS[3], "cell_1", 10.0, dtype=np.uint16)
    (sample,) = convert(tmp_path)
    low, high = float(stored.min()), float(stored.max())
    np.testing.assert_array_equal(sample.fields["image"][0], np.floor((stored - low) * 255 / (high - low)))


def test_folders_of_degrees_count_with_y_up_and_group_by_cell_name(tmp_path):
    picture = {name: np.full((128, 128), value, np.uint8) for value, name in enumerate("abcd")}
    write(tmp_path / "7" / "cellA_3.png", picture["a"])
    write(tmp_path / "359" / "cellA_1.tif", picture["b"])
    write(tmp_path / "359" / "lonely.png", picture["c"])
    write(tmp_path / "90" / "fold0_train_cellB_2.png", picture["d"])
    write(tmp_path / "90" / "fold1_test_cellB_2.png", picture["d"])
    samples = {s.sample_id: s for s in convert(tmp_path)}
    said = {name: (s.group, int(s.fields["frame"]), s.fields["image"][0, 0, 0]) for name, s in samples.items()}
    assert said == {
        "deg359_cellA_1": ("cellA", 1, 1),
        "deg007_cellA_3": ("cellA", 3, 0),
        "deg090_cellB_2": ("cellB", 2, 3),
        "deg359_lonely": ("lonely", -1, 2),
    }
    assert list(samples) == sorted(samples, key=lambda name: said[name][:2])
    assert float(samples["deg090_cellB_2"].fields["angle_rad"]) == pytest.approx(math.pi / 2)


@pytest.mark.parametrize("layout", ["recording", "folds"])
def test_provenance_names_the_source_folder_and_no_path_of_this_machine(layout, request):
    source = request.getfixturevalue(layout)
    said = provenance(source)
    assert {"source", "licence", "layout", "rule"} <= set(said)
    assert said["source"] == source.name
    assert str(source.parent) not in " ".join(said.values())
    if layout == "recording":
        assert "18 um" in said["rule"]
        assert "5 um" in provenance(source, threshold_um=5.0)["rule"]


def test_every_split_scheme_has_the_papers_shares_and_only_the_patch_folds_split_by_sample():
    for name, scheme in SPLITS.items():
        check_scheme(name, scheme)
        assert (scheme["train"], scheme["val"], scheme["test"]) == (0.4, 0.1, 0.5)
        assert scheme["unit"] == ("sample" if name.startswith("patch_") else "group")
    assert len(SPLITS) == 9


def test_an_unknown_layout_is_told_what_was_looked_for(tmp_path):
    write(tmp_path / "picture.tif", frame_image(0))
    with pytest.raises(ValueError, match=r"looked for frames with tracks.*folds.*folder of images per degree"):
        convert(tmp_path)
    with pytest.raises(FileNotFoundError, match="no source folder"):
        convert(tmp_path / "absent")


@pytest.mark.parametrize(("keyword", "value"), [("tracks", "json"), ("threshold_um", 0.0), ("threshold_um", math.nan)])
def test_a_bad_option_is_refused_by_its_name(recording, keyword, value):
    with pytest.raises(ValueError, match=f"^{keyword} must"):
        convert(recording, **{keyword: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3,0,nan,150", "line 2: x_px must be a finite number, got 'nan'"),
        ("3,0,150", "line 2: y_px must be a finite number, got None"),
        ("3,0.5,150,150", "line 2: frame must be a whole number"),
        ("3,0,150,150\n3,0,151,150", "line 3: track 3 is in frame 0 twice"),
        ("3,0,150,150\n3,4,190,150", r"places track 3 in frame 4.*4 frames t000 to t003"),
        ("", "holds no track"),
        ("3,0,150,150\n3,1,151,150", r"yields no patch: no track moves farther than 18 um"),
    ],
)
def test_a_table_of_positions_that_cannot_be_used_is_refused(recording, text, message):
    (recording / "tracks_02.csv").write_text(f"track_id,frame,x_px,y_px\n{text}\n")
    with pytest.raises(ValueError, match=message):
        list(convert(recording))


def test_frames_that_are_deep_coloured_missing_or_of_another_size_are_refused(recording):
    path = recording / "frames" / "t001.tif"
    for image, message in [
        (frame_image(1)[:-1], "is 340 x 259 px, but"),
        (frame_image(1).astype(np.uint16) * 256, "is uint16"),
        (np.dstack([frame_image(k) for k in range(3)]), "colour"),
    ]:
        write(path, image)
        with pytest.raises(ValueError, match=message):
            list(convert(recording))
    path.unlink()
    with pytest.raises(ValueError, match=r"places track 3 in frame 1, which is not among the 3 frames"):
        list(convert(recording))
    (recording / "frames").rename(recording / "pictures")
    with pytest.raises(FileNotFoundError, match=r"no frames: looked for .*02.t000.tif or .*frames.t000.tif"):
        convert(recording)


def test_label_images_that_contradict_their_table_are_refused(tmp_path):
    write_frames(tmp_path / "02")
    folder = tmp_path / "02_GT" / "TRA"
    for table, message in [
        ("3 0 3 0\n12 0 1 0\n20 0 3 0", r"man_track000.tif has label 21, but .* does not place it in frame 0"),
        ("3 0 3 0\n12 0 2 0\n20 0 3 0\n21 0 1 0", r"man_track002.tif lacks label 12, but .* places it in frame 2"),
        ("3 0 9 0\n12 0 1 0\n20 0 3 0\n21 0 1 0", r"follows track 3 to frame 9, the label images end at 3"),
        ("3 0 3", r"line 1: expected 'label begin end parent'"),
        ("3 0 3 0\n3 0 3 0", r"line 2: track 3 is listed twice"),
        ("", "lists no track"),
    ]:
        write_labels(folder, POSITIONS)
        (folder / "man_track.txt").write_text(table)
        with pytest.raises(ValueError, match=message):
            list(convert(tmp_path))
    for image in folder.glob("*.tif"):
        image.unlink()
    (folder / "man_track.txt").write_text("3 0 3 0")
    with pytest.raises(FileNotFoundError, match="no label image"):
        list(convert(tmp_path))


def test_tracks_that_are_not_there_or_claimed_twice_are_refused(recording, folds):
    with pytest.raises(ValueError, match="has no label images"):
        list(convert(recording, tracks="labels"))
    with pytest.raises(ValueError, match="tracks='csv' needs frames with tracks"):
        convert(folds, tracks="csv")
    write_csv(recording / "again_02.csv", POSITIONS)
    with pytest.raises(ValueError, match="both hold tracks of recording '02'"):
        convert(recording)


def test_folds_whose_patches_contradict_each_other_are_refused(folds):
    path = folds / "fold0" / "train" / QUADRANTS[1] / "NIH_1_1_10"
    table, image = path.with_suffix(".csv").read_text(), read_grey(path.with_suffix(".tif"))
    for text, message in [
        ("t_tot,angle_net\n15,120\n", r"lies in 1_upper_left, but its table says 240.000 degrees"),
        ("t_tot,angle_net\n15,-100\n", "have one name but differ"),
        ("t_tot,angle_net\n15,\n", "no finite number"),
        ("t_tot,angle_net\n15,nan\n", "no finite number"),
        ("t_tot,angle\n15,3\n", "no row with a column angle_net"),
    ]:
        path.with_suffix(".csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            list(convert(folds))
    path.with_suffix(".csv").write_text(table)
    for picture, message in [
        (255 - image, "have one name but differ"),
        (image[:, :100], r"is 100 x 128 px, 128 x 128 px was expected"),
        (np.full((128, 128), 7, np.uint16), "is flat"),
        (image.astype(np.float32), "float32, 8 or 16-bit grey was expected"),
    ]:
        write(path.with_suffix(".tif"), picture)
        with pytest.raises(ValueError, match=message):
            list(convert(folds))
    write(path.with_suffix(".tif"), image)
    path.with_suffix(".csv").unlink()
    with pytest.raises(FileNotFoundError, match="no table"):
        list(convert(folds))


@pytest.mark.slow
@needs_real
@pytest.mark.parametrize(("tracks", "tolerance_deg"), [("csv", 1e-9), ("labels", 1e-3)])
def test_the_real_recording_gives_the_patches_and_labels_of_the_sources_script(tracks, tolerance_deg):
    with np.load(REAL / "nishimoto_patches_reference.npz") as file:
        reference = {name: file[name] for name in file.files}
    row_of = {
        (int(track), int(frame)): row
        for row, (track, frame) in enumerate(zip(reference["track_id"], reference["frame"], strict=True))
    }
    samples = list(convert(REAL, tracks=tracks))
    assert len(samples) == len({sample.sample_id for sample in samples}) == 176
    assert Counter(int(float(s.fields["angle_rad"]) // (math.pi / 2)) for s in samples) == {0: 13, 1: 28, 2: 52, 3: 83}
    assert Counter(s.group for s in samples)["track04"] == 95
    for sample in samples:
        row = row_of.pop((int(sample.group.removeprefix("track")), int(sample.fields["frame"])))
        np.testing.assert_array_equal(sample.fields["image"][0], reference["patches"][row])
        angle_deg = math.degrees(float(sample.fields["angle_rad"]))
        assert abs((angle_deg - reference["angle_math_deg_yup"][row] + 180) % 360 - 180) < tolerance_deg


@needs_real
def test_the_real_lzw_originals_hold_the_pixels_of_the_copies():
    originals = REAL / "lzw_originals"
    np.testing.assert_array_equal(read_grey(originals / "t000.tif"), read_grey(REAL / "frames" / "t000.tif"))
    labels = [read_stored(folder / "man_track000.tif") for folder in (originals, REAL / "02_GT" / "TRA")]
    np.testing.assert_array_equal(*labels)
