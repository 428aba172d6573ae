"""Grey pictures are read exactly, and anything that would need a guess is refused by name."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from datamodules.converters.grey_images import read_grey

LZW, DEFLATE = 5, 8
GREY = np.random.default_rng(5).integers(0, 256, (26, 34), dtype=np.uint8)


def write(path: Path, image: np.ndarray, compression: int = LZW) -> Path:
    options = [cv2.IMWRITE_TIFF_COMPRESSION, compression] if path.suffix == ".tif" else []
    assert cv2.imwrite(str(path), image, options)
    return path


@pytest.mark.parametrize("compression", [LZW, DEFLATE])
def test_both_published_compressions_can_be_read(tmp_path, compression):
    path = write(tmp_path / "t.tif", GREY, compression)
    np.testing.assert_array_equal(read_grey(path), GREY)


def test_a_deep_or_coloured_picture_is_read_only_where_nothing_is_lost(tmp_path):
    grey = GREY
    for name, image in {
        "deep.tif": grey.astype(np.uint16),
        "three.png": np.dstack([grey] * 3),
        "opaque.png": np.dstack([grey] * 3 + [np.full_like(grey, 255)]),
    }.items():
        np.testing.assert_array_equal(read_grey(write(tmp_path / name, image)), grey)
    for name, image, reason in [
        ("deep.tif", grey.astype(np.uint16) * 4, "uint16 with values 0 to 1020"),
        ("float.tif", grey.astype(np.float32), "float32"),
        ("colour.png", np.dstack([grey, grey, grey[::-1]]), "colour"),
        ("glass.png", np.dstack([grey] * 4), "transparent"),
        ("glass.tif", np.dstack([grey] * 4).astype(np.float32), "transparent"),
    ]:
        with pytest.raises(ValueError, match=rf"{name}.*{reason}"):
            read_grey(write(tmp_path / name, image))
    assert cv2.imwritemulti(str(tmp_path / "pages.tif"), [grey, grey])
    with pytest.raises(ValueError, match="holds 2 pages"):
        read_grey(tmp_path / "pages.tif")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_grey(tmp_path / "text.png")


def test_what_cannot_be_read_is_told_in_one_sentence_alone(tmp_path, capfd):
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    tifffile.imwrite(tmp_path / "half.tif", np.ones((5, 6), np.float16))
    level = cv2.utils.logging.getLogLevel()
    for name in ("broken.tif", "half.tif"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as an image: .*no TIFF.* of whole numbers"):
            read_grey(tmp_path / name)
    assert capfd.readouterr().err == ""
    assert cv2.utils.logging.getLogLevel() == level


def test_a_missing_file_is_told_by_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image at .*absent\.tif"):
        read_grey(tmp_path / "absent.tif")
