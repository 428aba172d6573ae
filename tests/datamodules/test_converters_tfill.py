"""Archives of actin and nuclei: what is read, in which groups and splits, and one sentence for every fault."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from datamodules.batches import Sample
from datamodules.converters import tfill
from datamodules.shards.reader import ShardDataset
from datamodules.shards.schema import Manifest
from datamodules.shards.verify import verify_dataset
from mechanolab import data

SIDE = 20


def picture(seed: int, height: int = SIDE, width: int = SIDE, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (height, width)).astype(dtype)


def state(folder: Path, **conditions: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conditions.json").write_text(json.dumps(conditions))
    return folder


def authors(folder: Path, numbers: dict[str, range], **conditions: object) -> Path:
    """The authors' layout: actin is green, nuclei are red, merged is both."""
    for slide, chosen in numbers.items():
        (folder / slide).mkdir(parents=True, exist_ok=True)
        for number in chosen:
            for kind, channel, seed in (("Actin", 1, number), ("Nucleus", 2, 1000 + number), ("Merged", 0, 2000)):
                colours = np.zeros((SIDE, SIDE, 3), np.uint8)
                colours[..., channel] = picture(seed)
                assert cv2.imwrite(str(folder / slide / f"{kind}_3T3_{number}.tif"), colours)
    return state(folder, **({"field_um": 159.41} | conditions))


@pytest.fixture
def archive(tmp_path) -> Path:
    return authors(tmp_path / "prints", {"slide1": range(1, 9), "slide2": range(9, 13), "slide3": range(13, 16)})


def by_id(source: Path) -> dict[str, Sample]:
    return {sample.sample_id: sample for sample in tfill.convert(source)}


def test_the_authors_folders_are_read(archive):
    found = by_id(archive)
    assert len(found) == 15
    sample = found["slide1_3T3_7"]
    assert sample.group == "slide1"
    assert np.array_equal(sample.fields["actin"], picture(7)[None])
    assert np.array_equal(sample.fields["nucleus"], picture(1007)[None])
    assert float(sample.fields["pixel_size_um"]) == pytest.approx(159.41 / SIDE)
    assert list(sample.fields) == list(tfill.FIELDS)
    groups = [one.group for one in tfill.convert(archive)]
    assert groups == sorted(groups)


@pytest.mark.slow
def test_the_authors_tested_on_every_fifth_number(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("MECHANOLAB_DATA", str(tmp_path / "data"))
    assert data.convert("tfill", source=archive) == 0
    folder = tmp_path / "data" / "tfill" / "prints"
    tested = ShardDataset(folder, scheme="parity", split="test")
    assert sorted(int(one.sample_id.split("_")[-1]) for one in tested.__getitems__(range(len(tested)))) == [5, 10, 15]
    validated = ShardDataset(folder, scheme="parity", split="val")
    assert sorted(int(one.sample_id.split("_")[-1]) for one in validated.__getitems__(range(2))) == [1, 11]
    manifest = Manifest.read(folder)
    assert manifest.splits["parity"]["unit"] == "sample"
    assert manifest.splits["default"]["groups"] == {"train": 1, "val": 1, "test": 1, "unused": 0}
    lines = verify_dataset(folder)
    assert len(lines) == 1
    assert "leak" in lines[0]
    assert data.convert("tfill", source=archive) == 0  # the same again
    assert data.inspect(folder) == 0


def test_one_folder_is_told_into_slides_by_its_names(tmp_path):
    for slide in "ab":
        for number in (1, 2, 5):
            for kind, seed in (("Actin", number), ("Nucleus", 50 + number)):
                (tmp_path / "flat").mkdir(exist_ok=True)
                assert cv2.imwrite(str(tmp_path / "flat" / f"{kind}_{slide}_{number:04d}.tif"), picture(seed))
    source = state(tmp_path / "flat", field_um=210)
    assert {sample.group for sample in tfill.convert(source)} == {"a", "b"}
    assert tfill.splits(source)["default"] == tfill.TEST_ONLY["default"]  # two slides are too few to split
    assert tfill.codes(source)["parity"].tolist() == [1, 0, 2, 1, 0, 2]
    state(source, field_um=210, slides="folder")
    assert {sample.group for sample in tfill.convert(source)} == {"flat"}


def test_files_of_two_channels_and_stacks(tmp_path):
    stack = np.random.default_rng(3).integers(0, 4000, (4, 2, SIDE, SIDE)).astype(np.uint16)
    source = state(tmp_path / "confocal", pixel_size_um=0.4151, actin_channel=1, nucleus_channel=0, white_level=4095)
    tifffile.imwrite(source / "slide_01.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    (sample,) = tfill.convert(source)
    expected = np.rint(stack[:, 1].max(axis=0) * (65535 / 4095))
    assert np.array_equal(sample.fields["actin"][0], expected)
    assert sample.fields["actin"].dtype == np.uint16
    assert float(sample.fields["pixel_size_um"]) == pytest.approx(0.4151)
    assert tfill.provenance(source)["layout"] == "channels"
    assert tfill.provenance(source)["conditions"]["white_level"] == 4095
    state(source, pixel_size_um=0.4151, actin_channel=1, nucleus_channel=0, white_level=1000)
    with pytest.raises(ValueError, match=r"slide_01\.tif has grey levels up to .*: raise white_level"):
        list(tfill.convert(source))


def test_a_large_picture_is_cut_into_tiles_of_one_group(tmp_path):
    actin, nucleus = picture(0, 50, 70), picture(1, 50, 70)
    actin[:SIDE, SIDE : 2 * SIDE] = 3  # blank: the glass beside the sample
    source = state(tmp_path / "mosaic", field_um=140, tile_px=SIDE, actin_channel=0, nucleus_channel=1)
    for name in ("m1", "m2", "m3"):
        tifffile.imwrite(source / f"{name}.tif", np.stack([actin, nucleus]), imagej=True, metadata={"axes": "CYX"})
    found = by_id(source)
    corners = [(0, 0), (0, 40), (20, 0), (20, 20), (20, 40)]
    assert list(found) == [f"m{n}_y{y}_x{x}" for n in (1, 2, 3) for y, x in corners]
    for y, x in corners:
        assert np.array_equal(found[f"m1_y{y}_x{x}"].fields["actin"][0], actin[y : y + SIDE, x : x + SIDE])
        assert np.array_equal(found[f"m1_y{y}_x{x}"].fields["nucleus"][0], nucleus[y : y + SIDE, x : x + SIDE])
    assert {float(sample.fields["pixel_size_um"]) for sample in found.values()} == {2.0}
    assert len({sample.group for sample in found.values()}) == 1
    assert tfill.codes(source) == {}
    wider = np.stack([picture(0, 50, 90), picture(1, 50, 90)])
    tifffile.imwrite(source / "m4.tif", wider, imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(
        ValueError, match=r"m4\.tif is 90 x 50 px, but .*m1\.tif is 70 x 50 px: field_um .* pixel_size_um"
    ):
        list(tfill.convert(source))
    (source / "m4.tif").unlink()
    state(source, field_um=140, tile_px=60, actin_channel=0, nucleus_channel=1)
    with pytest.raises(ValueError, match="too small for tiles of 60 px: lower tile_px"):
        list(tfill.convert(source))


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({}, "must give the scale once"),
        ({"field_um": 159.41, "pixel_size_um": 0.4}, "must give the scale once"),
        ({"field_um": 0}, "field_um must be a positive number, got 0"),
        ({"field_um": True}, "field_um must be a positive number, got true"),
        ({"field_um": 1, "tile": 3}, "unknown entry 'tile'"),
        ({"field_um": 1, "tile_px": 2}, "tile_px must be a whole number from 16 on"),
        ({"field_um": 1, "pages": "t"}, "pages must be one of z, channel"),
        ({"field_um": 1, "actin_channel": 0}, "gives actin_channel without nucleus_channel"),
        ({"field_um": 1, "actin_channel": 0, "nucleus_channel": 0}, "the same value 0"),
        ({"field_um": 1, "actin_files": "a.tif", "nucleus_files": "b*.tif"}, r"actin_files must be a file name with"),
        (
            {"field_um": 1, "actin_files": "a*", "nucleus_files": "b*", "actin_channel": 0, "nucleus_channel": 1},
            "gives both files and channels",
        ),
    ],
)
def test_unfit_conditions_are_refused_in_one_sentence(tmp_path, conditions, message):
    with pytest.raises(ValueError, match=message) as caught:
        tfill.convert(state(tmp_path / "a", **conditions))
    assert "\n" not in str(caught.value)


def test_without_a_scale_nothing_is_converted(archive):
    (archive / "conditions.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold an object"):
        tfill.convert(archive)
    (archive / "conditions.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        tfill.convert(archive)
    (archive / "conditions.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"do not say how large they are.*159\.41"):
        tfill.convert(archive)
    with pytest.raises(FileNotFoundError, match="no source folder"):
        tfill.convert(archive / "nowhere")


@pytest.mark.parametrize("gone", ["Actin", "Nucleus"])
def test_a_picture_without_partner_is_named(archive, gone):
    (archive / "slide2" / f"{gone}_3T3_10.tif").unlink()
    with pytest.raises(ValueError, match=rf"has no partner {gone}_3T3_10\.tif beside it"):
        tfill.convert(archive)


def test_pictures_that_contradict_each_other_are_named(archive):
    place = archive / "slide1"
    faults = [
        ("Nucleus_3T3_1.tif", picture(0, SIDE, 24), "Actin_3T3_1.tif is 20 x 20 px, but its partner .* is 24 x 20 px"),
        ("Nucleus_3T3_1.tif", picture(0, dtype=np.uint16), r"Nucleus_3T3_1\.tif is uint16, but .* is uint8"),
        ("Nucleus_3T3_1.tif", np.full((SIDE, SIDE), 4, np.uint8), "shows nothing"),
        ("Nucleus_3T3_1.tif", np.full((SIDE, SIDE), np.nan, np.float32), "not finite"),
    ]
    for name, wrong, message in faults:
        tifffile.imwrite(place / name, wrong)
        with pytest.raises(ValueError, match=message):
            list(tfill.convert(archive))
    tifffile.imwrite(place / "Nucleus_3T3_1.tif", picture(5))
    for kind in ("Actin", "Nucleus"):
        tifffile.imwrite(place / f"{kind}_3T3_2.tif", picture(6, 24, 24))
    with pytest.raises(ValueError, match=r"is 24 x 24 px, but .* convert each size from a folder of its own"):
        list(tfill.convert(archive))
    for kind in ("Actin", "Nucleus"):
        tifffile.imwrite(place / f"{kind}_3T3_1.tif", picture(6, 24, 20))
    with pytest.raises(ValueError, match="20 x 24 px, no square: let tile_px"):
        list(tfill.convert(archive))


def test_an_empty_source_says_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"holds no pictures: looked for Actin_\*\.tif and Nucleus_\*\.tif"):
        tfill.convert(state(tmp_path / "a", field_um=1))
    with pytest.raises(ValueError, match="looked for TIFF files"):
        tfill.convert(state(tmp_path / "a", field_um=1, actin_channel=0, nucleus_channel=1))
