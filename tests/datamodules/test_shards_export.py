"""Export: the files hold what the data set holds, any program can read them, and half an export never stands."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import tifffile

from datamodules.batches import Sample
from datamodules.shards.export import export_dataset
from datamodules.shards.reader import ShardDataset
from datamodules.shards.schema import ShardError
from datamodules.shards.writer import write_dataset

FIELDS = {
    "image": {"axes": "cyx", "unit": "grey level"},
    "counts": {"axes": "yx", "unit": "photons"},
    "displacement_um": {"axes": "czyx", "unit": "um"},
    "traction_pa": {"axes": "cyx", "unit": "Pa"},
    "outline": {"axes": "pq", "unit": "px"},
    "offset": {"axes": "yxc", "unit": "1"},
    "angle_rad": {"axes": "", "unit": "rad"},
    "frame": {"axes": "", "unit": "1"},
}
IMAGEJ = {"image": "YX", "counts": "YX", "displacement_um": "ZCYX"}
"""Field to axes as ImageJ sees them; an axis of length one is none to it."""
SPLITS = {
    "default": {"unit": "group", "train": 0.5, "val": 0.25, "test": 0.25},
    "part": {"unit": "sample", "train": 0.2, "test": 0.2},
}
IDS = ["plain", "Zelle ä/3", "..", "a%2Fb", 'a,b;"c"', "CON", "50%", "line\nbreak", "x.y_z", "käse:1", "g", "日本"]


def sample(number: int) -> Sample:
    rng = np.random.default_rng(number)
    fields = {
        "image": rng.integers(0, 255, (1, 6, 7), dtype=np.uint8),
        "counts": rng.integers(0, 2**16, (5, 3), dtype=np.uint16),
        "displacement_um": rng.normal(size=(3, 4, 5, 6)).astype(np.float32),
        "traction_pa": rng.normal(size=(2, 4, 4)),
        "outline": rng.normal(size=(5, 2)).astype(np.float16),
        "offset": rng.integers(-9, 9, (4, 5, 3), dtype=np.int32),
        "angle_rad": np.float32(rng.uniform(0, 6)),
        "frame": np.int64(2**62 + number),
    }
    return Sample(IDS[number], f"gruppe, {number // 3}", fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "twin"
    samples = (sample(number) for number in range(len(IDS)))
    write_dataset(
        folder, samples, stem="circular", fields=FIELDS, splits=SPLITS, seed=1, provenance={}, shard_bytes=8000
    )
    return folder


def read_table(out: Path) -> list[dict[str, str]]:
    with (out / "samples.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def file_of(out: Path, number: int, name: str, suffix: str) -> Path:
    """Found by undoing the encoding of every file's name, as a reader of the export would."""
    (path,) = [one for one in out.glob(f"*_{name}{suffix}") if unquote(one.name) == f"{IDS[number]}_{name}{suffix}"]
    return path


def array_fields() -> list[str]:
    return [name for name, entry in FIELDS.items() if entry["axes"]]


def test_npy_files_hold_every_array_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    assert export_dataset(folder, tmp_path / "out") == len(IDS)
    assert len(list((tmp_path / "out").iterdir())) == len(IDS) * len(array_fields()) + 2
    for number in range(len(IDS)):
        for name in array_fields():
            found = np.load(file_of(tmp_path / "out", number, name, ".npy"))
            expected = sample(number).fields[name]
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert np.array_equal(found, expected)


def test_tiff_files_hold_every_array_with_its_axes(folder: Path, tmp_path: Path) -> None:
    export_dataset(folder, tmp_path / "out", file_format="tiff")
    entries = json.loads((tmp_path / "out" / "fields.json").read_text(encoding="utf-8"))
    for number in range(len(IDS)):
        for name in array_fields():
            expected = sample(number).fields[name]
            axes, stored = entries[name]["axes"], entries[name]["axes_in_files"]
            order = [axes.index(axis) for axis in stored]
            with tifffile.TiffFile(file_of(tmp_path / "out", number, name, ".tif")) as file:
                assert file.is_imagej == (name in IMAGEJ)
                (series,) = file.series
                assert series.axes == IMAGEJ.get(name, stored.upper())
                found = series.asarray()
            assert found.dtype == expected.dtype
            assert np.array_equal(found.reshape(expected.transpose(order).shape), expected.transpose(order))
    assert entries["displacement_um"]["axes_in_files"] == "zcyx"
    assert entries["offset"]["axes_in_files"] == "yxc"


def test_imagej_gets_its_axes_in_its_own_order(tmp_path: Path) -> None:
    movie = np.arange(2 * 3 * 4 * 5 * 6, dtype=np.uint16).reshape(2, 3, 4, 5, 6)
    fields = {"movie": {"axes": "xyczt", "unit": "counts"}}
    samples = [Sample("a", "a", {"movie": movie})]
    arguments: dict[str, Any] = {"stem": "circular", "splits": {}, "seed": 0, "provenance": {}}
    write_dataset(tmp_path / "twin", samples, fields=fields, **arguments)
    export_dataset(tmp_path / "twin", tmp_path / "out", file_format="tiff")
    with tifffile.TiffFile(tmp_path / "out" / "a_movie.tif") as file:
        assert file.is_imagej
        assert file.imagej_metadata is not None
        assert [file.imagej_metadata[name] for name in ("frames", "slices", "channels")] == [6, 5, 4]
        assert file.series[0].axes == "TZCYX"
        assert np.array_equal(file.series[0].asarray(), movie.transpose(4, 3, 2, 1, 0))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize(("axes", "shape"), [("cyx", (3, 5, 1)), ("zcyx", (4, 3, 5, 1)), ("yx", (1, 1))])
def test_an_image_one_pixel_wide_keeps_its_axes(tmp_path: Path, axes: str, shape: tuple[int, ...], dtype: str) -> None:
    line = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    arguments: dict[str, Any] = {"stem": "circular", "splits": {}, "seed": 0, "provenance": {}}
    fields = {"line": {"axes": axes, "unit": "counts"}}
    write_dataset(tmp_path / "twin", [Sample("a", "a", {"line": line})], fields=fields, **arguments)
    export_dataset(tmp_path / "twin", tmp_path / "out", file_format="tiff")
    with tifffile.TiffFile(tmp_path / "out" / "a_line.tif") as file:
        assert file.is_imagej == (dtype != "float64")
        assert file.series[0].axes == axes.upper()
        assert np.array_equal(file.series[0].asarray(), line)


def test_the_table_has_a_row_per_sample_with_numbers_that_lose_nothing(folder: Path, tmp_path: Path) -> None:
    export_dataset(folder, tmp_path / "out")
    rows = read_table(tmp_path / "out")
    assert list(rows[0]) == ["sample_id", "group", "angle_rad [rad]", "frame [1]", "split default", "split part"]
    assert [row["sample_id"] for row in rows] == IDS
    splits = {}
    for scheme in SPLITS:
        splits[scheme] = dict.fromkeys(IDS, "unused")
        for split in ("train", "val", "test"):
            if scheme == "default" or split != "val":
                members = ShardDataset(folder, scheme=scheme, split=split).sample_ids.tolist()
                splits[scheme] |= dict.fromkeys(members, split)
    for number, row in enumerate(rows):
        expected = sample(number)
        assert row["group"] == expected.group
        assert np.float32(row["angle_rad [rad]"]) == expected.fields["angle_rad"]
        assert int(row["frame [1]"]) == 2**62 + number
        assert row["split default"] == splits["default"][expected.sample_id]
        assert row["split part"] == splits["part"][expected.sample_id]
    assert {row["split part"] for row in rows} == {"train", "test", "unused"}


def test_the_fields_are_described(folder: Path, tmp_path: Path) -> None:
    export_dataset(folder, tmp_path / "out")
    entries = json.loads((tmp_path / "out" / "fields.json").read_text(encoding="utf-8"))
    assert list(entries) == sorted(FIELDS, key=list(ShardDataset(folder).fields).index)
    for name, entry in entries.items():
        value = np.asarray(sample(0).fields[name])
        assert (entry["shape"], entry["dtype"]) == (list(value.shape), value.dtype.name)
        assert (entry["unit"], entry["axes"]) == (FIELDS[name]["unit"], FIELDS[name]["axes"])
    assert entries["image"]["files"] == "*_image.npy"
    assert entries["angle_rad"]["files"] == "samples.csv"


def test_a_split_and_some_fields_can_be_chosen(folder: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    chosen = ShardDataset(folder, scheme="default", split="test")
    count = export_dataset(
        folder,
        tmp_path / "out",
        fields=["counts", "angle_rad"],
        scheme="default",
        split="test",
        on_sample=lambda done, total: heard.append((done, total)),
    )
    assert count == len(chosen)
    assert heard == [(done, len(chosen)) for done in range(1, len(chosen) + 1)]
    rows = read_table(tmp_path / "out")
    assert [row["sample_id"] for row in rows] == chosen.sample_ids.tolist()
    assert {row["split default"] for row in rows} == {"test"}
    assert "frame [1]" not in rows[0]
    assert len(list((tmp_path / "out").iterdir())) == len(chosen) + 2
    for row in rows:
        number = IDS.index(row["sample_id"])
        found = np.load(file_of(tmp_path / "out", number, "counts", ".npy"))
        assert np.array_equal(found, sample(number).fields["counts"])


@pytest.mark.parametrize(
    ("field", "value", "axes", "complaint"),
    [
        ("big", np.zeros((2, 2), np.int64), "yx", "field 'big' is int64, which hardly any program reads from a TIFF"),
        ("big", np.zeros((2, 2), np.uint64), "yx", "field 'big' is uint64"),
        ("line", np.zeros(4, np.float32), "t", "field 'line' has one axis, a TIFF file needs two"),
    ],
)
def test_what_tiff_cannot_hold_is_refused_with_the_way_out(
    tmp_path: Path, field: str, value: Any, axes: str, complaint: str
) -> None:
    samples = [Sample(f"s{n}", f"g{n}", {field: value, "image": np.zeros((2, 2), np.uint8)}) for n in range(3)]
    fields = {field: {"axes": axes, "unit": "1"}, "image": {"axes": "yx", "unit": "grey level"}}
    arguments: dict[str, Any] = {"stem": "circular", "splits": {}, "seed": 0, "provenance": {}}
    write_dataset(tmp_path / "twin", samples, fields=fields, **arguments)
    with pytest.raises(ValueError, match=rf"{complaint}.*; export it with --format npy, or name the other fields"):
        export_dataset(tmp_path / "twin", tmp_path / "out", file_format="tiff")
    assert not (tmp_path / "out").exists()
    assert export_dataset(tmp_path / "twin", tmp_path / "out", file_format="tiff", fields=["image"]) == 3
    export_dataset(tmp_path / "twin", tmp_path / "npy")
    assert np.array_equal(np.load(tmp_path / "npy" / f"s1_{field}.npy"), value)


def test_samples_whose_files_would_be_one_are_refused(tmp_path: Path) -> None:
    fields = {"b_c": {"axes": "yx", "unit": "1"}, "c": {"axes": "yx", "unit": "1"}}
    value = np.zeros((2, 2), np.uint8)
    samples = [Sample(name, name, {"b_c": value, "c": value}) for name in ("a", "a_b")]
    arguments: dict[str, Any] = {"stem": "circular", "splits": {}, "seed": 0, "provenance": {}}
    write_dataset(tmp_path / "twin", samples, fields=fields, **arguments)
    with pytest.raises(ValueError, match=r"two samples would share the file a_b_c\.npy"):
        export_dataset(tmp_path / "twin", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["twin"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"file_format": "png"}, "file_format must be one of npy, tiff, got 'png'"),
        ({"fields": ["picture"]}, "field 'picture' is not in .*; it holds image"),
        ({"scheme": "fold0", "split": "train"}, "split scheme 'fold0' is not in"),
        ({"scheme": "default", "split": "dev"}, "split must be train, val or test"),
        ({"scheme": "part", "split": "val"}, "split 'val' of scheme 'part' in .* is empty"),
    ],
)
def test_a_wrong_request_leaves_nothing(
    folder: Path, tmp_path: Path, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        export_dataset(folder, tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_not_touched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ShardError, match="exists and is not an empty folder"):
        export_dataset(folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_export_that_fails_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_dataset(folder, tmp_path / "out", on_sample=stop)
    assert not list(tmp_path.iterdir())
