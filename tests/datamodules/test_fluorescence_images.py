"""One plane of a file that holds channels, slices or colours, and what is refused."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from datamodules.converters.fluorescence_images import covering_tiles, read_plane, tile_corners

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 4000, (2, 5, 12, 10), dtype=np.uint16)  # channel, z, y, x


@pytest.mark.parametrize("axes", ["CZYX", "ZCYX"])
@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_slices_are_projected_within_a_channel(tmp_path, axes, kind):
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    if kind == "ome":
        stored = STACK.transpose(["CZYX".index(letter) for letter in axes])
        tifffile.imwrite(path, stored, ome=True, metadata={"axes": axes})
    else:  # ImageJ has one order of its axes
        tifffile.imwrite(path, STACK.transpose(1, 0, 2, 3), imagej=True, metadata={"axes": "ZCYX"})
    for channel in (0, 1):
        assert np.array_equal(read_plane(path, channel=channel), STACK[channel].max(axis=0))
    with pytest.raises(ValueError, match="holds 2 channels: say which one"):
        read_plane(path)
    with pytest.raises(ValueError, match="has no channel 2: it has 2, counted from 0"):
        read_plane(path, channel=2)


def test_pages_without_a_name_are_what_the_caller_says(tmp_path):
    path = tmp_path / "pages.tif"
    tifffile.imwrite(path, STACK[0], metadata=None)
    assert np.array_equal(read_plane(path), STACK[0].max(axis=0))
    assert np.array_equal(read_plane(path, pages="channel", channel=3), STACK[0, 3])


def test_two_samples_a_pixel_are_two_channels(tmp_path):
    path = tmp_path / "samples.tif"
    both = np.ascontiguousarray(STACK[:, 0].transpose(1, 2, 0))
    tifffile.imwrite(path, both, photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"])
    assert np.array_equal(read_plane(path, channel=1), STACK[1, 0])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_pseudo_colour_is_its_brightest_channel(tmp_path, suffix):
    grey = RNG.integers(0, 255, (9, 7), dtype=np.uint8)
    green = np.zeros((9, 7, 3), np.uint8)
    green[..., 1] = grey
    path = tmp_path / f"green{suffix}"
    assert cv2.imwrite(str(path), green)
    assert np.array_equal(read_plane(path), grey)
    opaque = np.dstack([green, np.full((9, 7), 255, np.uint8)])
    assert cv2.imwrite(str(tmp_path / "opaque.png"), opaque)
    assert np.array_equal(read_plane(tmp_path / "opaque.png"), grey)


def test_deep_grey_is_read_as_stored(tmp_path):
    for name in ("deep.png", "deep.tif"):
        assert cv2.imwrite(str(tmp_path / name), STACK[0, 0])
        assert np.array_equal(read_plane(tmp_path / name), STACK[0, 0])


def test_compressed_tiff_is_read(tmp_path):
    path = tmp_path / "lzw.tif"
    assert cv2.imwrite(str(path), STACK[0, 0], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    assert np.array_equal(read_plane(path), STACK[0, 0])


def test_what_cannot_be_told_is_refused_by_name(tmp_path):
    faults = {
        "nan.tif": (np.array([[0.0, np.nan]], np.float32), "values that are not finite"),
        "real.tif": (np.array([[0.0, 1.5]], np.float32), "is float32, 8 or 16-bit grey levels were expected"),
        "flat.tif": (np.full((4, 4), 9, np.uint8), "shows nothing: all its pixels are 9"),
    }
    for name, (picture, message) in faults.items():
        tifffile.imwrite(tmp_path / name, picture)
        with pytest.raises(ValueError, match=rf"{name}.*{message}"):
            read_plane(tmp_path / name)
    tifffile.imwrite(tmp_path / "movie.tif", STACK[0], imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(ValueError, match="holds 5 pictures along its axis T"):
        read_plane(tmp_path / "movie.tif")
    for name in ("broken.tif", "broken.png"):
        (tmp_path / name).write_bytes(b"no picture at all")
        with pytest.raises(ValueError, match=rf"{name} cannot be read"):
            read_plane(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no image at"):
        read_plane(tmp_path / "gone.tif")


def test_tiles_keep_apart():
    assert tile_corners((4, 10), 4) == [(0, 0), (0, 4)]
    assert tile_corners((8, 4), 4) == [(0, 0), (4, 0)]


@given(st.integers(4, 60), st.integers(4, 60), st.integers(4, 30), st.integers(0, 15))
def test_covering_tiles_overlap_enough_and_every_pixel_has_one_owner(height, width, side, overlap):
    side = min(side, height, width)
    overlap = min(overlap, side // 2)
    owners = np.zeros((height, width), int)
    tiles = covering_tiles((height, width), side, overlap_px=overlap)
    for tile in tiles:
        assert 0 <= tile.top <= tile.rows.start < tile.rows.stop <= tile.top + side <= height
        assert 0 <= tile.left <= tile.columns.start < tile.columns.stop <= tile.left + side <= width
        owners[tile.rows.start : tile.rows.stop, tile.columns.start : tile.columns.stop] += 1
    assert (owners == 1).all()
    for starts in ({tile.top for tile in tiles}, {tile.left for tile in tiles}):
        assert all(before + side - after >= overlap for before, after in itertools.pairwise(sorted(starts)))
