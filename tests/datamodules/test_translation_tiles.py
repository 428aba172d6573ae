"""Scale of grey, size, and where things are, on pictures whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from datamodules.augmentation.translation_tiles import (
    cell_region,
    nucleus_region,
    resized,
    resized_cells,
    resized_mask,
    scaled,
)


def test_the_full_range_of_the_type_becomes_one():
    assert scaled(np.array([[0, 51, 255]], np.uint8), "full_range").tolist() == [[0, pytest.approx(0.2), 1]]
    assert scaled(np.array([[0, 65535]], np.uint16), "full_range").tolist() == [[0, 1]]
    assert scaled(np.array([[0.25]], np.float32), "full_range").tolist() == [[0.25]]


def test_stretching_uses_what_a_dim_recording_has():
    dim = np.random.default_rng(0).permutation(4000).reshape(50, 80).astype(np.uint16)
    grey = scaled(dim, "stretched")
    assert (grey.min(), grey.max()) == (0, 1)
    assert np.interp(2000, [4, 3995], [0, 1]) == pytest.approx(float(grey[dim == 2000][0]), abs=1e-3)
    assert scaled(np.full((3, 3), 7, np.uint8), "stretched").max() == 0


@pytest.mark.parametrize(("picture", "contrast"), [(np.zeros((2, 2)), "full_range"), (np.zeros((2, 2), np.uint8), "x")])
def test_another_type_or_contrast_is_refused(picture, contrast):
    with pytest.raises(ValueError, match="must be"):
        scaled(picture, contrast)


def test_shrinking_keeps_the_mean_and_growing_the_place():
    picture = np.random.default_rng(1).random((12, 12), dtype=np.float32)
    np.testing.assert_allclose(resized(picture, 4), picture.reshape(4, 3, 4, 3).mean(axis=(1, 3)), rtol=1e-5)
    assert resized(picture, 12) is picture
    spot = np.zeros((9, 9), np.float32)
    spot[3, 6] = 1
    assert ndimage.center_of_mass(resized(spot, 27)) == pytest.approx((10, 19))
    half = np.zeros((6, 6), np.uint8)
    half[:, :4] = 1
    assert resized_mask(half, 3).tolist() == [[True, True, False]] * 3


@pytest.mark.parametrize("side_px", [31, 32, 64, 96, 116])
def test_cells_parted_by_a_thin_line_stay_apart_at_any_size(side_px):
    cells = np.ones((96, 96), np.uint8)
    cells[40], cells[:40, 61] = 0, 0  # three cells
    found = resized_cells(cells, side_px)
    assert ndimage.label(found, np.ones((3, 3)))[1] == 3
    assert found.mean() > 0.85
    outside = np.zeros((96, 96), np.uint8)
    outside[:30] = 1
    assert resized_cells(outside, 32).tolist() == resized_mask(outside, 32).tolist()


def test_the_authors_threshold_is_a_sixth_of_the_range():
    grey = np.array([[0.16, 0.17]], np.float32)
    assert nucleus_region(grey, "mean_sixth").tolist() == [[False, True]]
    # their own form: the sum of three equal colours in [-1, 1] above -2
    assert (3 * (2 * grey - 1) > -2).tolist() == [[False, True]]
    assert nucleus_region(np.array([[0.1, 0.12, 0.3, 0.31]], np.float32), "otsu").tolist() == [
        [False, False, True, True]
    ]
    assert not nucleus_region(np.full((4, 4), 0.5, np.float32), "otsu").any()
    with pytest.raises(ValueError, match="rule must be"):
        nucleus_region(grey, "stored")


def test_a_cell_is_told_from_glass_with_its_dim_nucleus_inside():
    rows, columns = np.indices((100, 100))
    cell = np.hypot(rows - 50, columns - 45) < 30
    picture = np.where(cell, 0.4, 0.02)
    picture[np.hypot(rows - 52, columns - 40) < 8] = 0.03
    noisy = (picture + np.random.default_rng(0).normal(0, 0.02, cell.shape)).astype(np.float32)
    found = cell_region(noisy, pixel_size_um=0.5)
    assert found[52, 40]
    assert (found != cell).mean() < 0.03
    assert not cell_region(np.zeros((8, 8), np.float32), pixel_size_um=1.0).any()
