"""The pixels of a cell: exact by hand and in whole numbers, scikit-image's elsewhere, and the published count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import grid_points_in_poly

from physics.polygons import polygon_interior

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "dl_tfm"


def test_interior_of_a_triangle_by_hand() -> None:
    inside = polygon_interior(np.array([[0.0, 4.0, 0.0], [0.0, 0.0, 4.0]]), 6, 6)
    expected = np.add.outer(np.arange(6), np.arange(6)) <= 4
    np.testing.assert_array_equal(inside, expected)  # both legs and the hypotenuse count
    beyond = polygon_interior(np.array([[-9.0, 99.0, 99.0, -9.0], [-9.0, -9.0, 99.0, 99.0]]), 6, 6)
    assert beyond.all()
    assert not polygon_interior(np.array([[1.2, 1.8, 1.5], [1.2, 1.2, 1.8]]), 6, 6).any()


def interior_in_whole_numbers(polygon: np.ndarray, size: int) -> np.ndarray:
    """Exact for corners on pixel centres: on an edge by the cross product, inside by crossings to the left."""
    y, x = np.indices((size, size))
    on_edge, crossings = np.zeros((size, size), bool), np.zeros((size, size), int)
    for (x0, y0), (x1, y1) in zip(polygon.T.tolist(), np.roll(polygon, -1, axis=1).T.tolist(), strict=True):
        cross = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
        between = (x - x0) * (x - x1) + (y - y0) * (y - y1) <= 0
        on_edge |= (cross == 0) & between
        crossings += ((y0 > y) != (y1 > y)) & ((cross < 0) == (y1 > y0)) & (cross != 0)
    return on_edge | (crossings % 2 == 1)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), corners=st.integers(3, 60))
def test_interior_is_exact_where_corners_are_pixel_centres(seed: int, corners: int) -> None:
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    polygon = np.ceil(16 + rng.uniform(2, 14, corners) * np.stack([np.cos(angle), np.sin(angle)])).astype(int)
    reference = interior_in_whole_numbers(polygon, 32)
    np.testing.assert_array_equal(polygon_interior(polygon.astype(np.float64), 32, 32), reference)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), corners=st.integers(3, 60))
def test_interior_agrees_with_scikit_image_where_corners_are_anywhere(seed: int, corners: int) -> None:
    polygon = np.random.default_rng(seed).uniform(-3, 35, (2, corners))  # crosses itself and leaves the frame
    reference = grid_points_in_poly((32, 32), polygon[::-1].T)
    np.testing.assert_array_equal(polygon_interior(polygon, 32, 32), reference)


def test_many_polygons_at_a_time_are_each_their_own() -> None:
    rng = np.random.default_rng(4)
    polygons = rng.uniform(0, 31, (2, 3, 2, 12))
    together = polygon_interior(polygons, 32, 32)
    assert together.shape == (2, 3, 32, 32)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(together[index], polygon_interior(polygons[index], 32, 32))


@pytest.mark.skipif(not REAL.is_dir(), reason="real data is not there")
def test_the_interior_of_the_stored_cell_has_the_published_number_of_pixels() -> None:
    stored = np.load(REAL / "generic_MLData0018_104.npz")
    corners = np.stack([stored["brdx"], stored["brdy"]]) - 1
    interior = polygon_interior(corners, 104, 104)
    assert interior.sum() == 2213
    nonzero = np.hypot(*stored["trac"].transpose(2, 1, 0)) > 0
    assert (nonzero & interior).sum() / interior.sum() == pytest.approx(0.104, abs=0.001)


def test_a_grid_need_not_be_square() -> None:
    polygon = np.random.default_rng(2).uniform(-3, 35, (2, 20))
    whole = polygon_interior(polygon, 32, 32)
    np.testing.assert_array_equal(polygon_interior(polygon, 20, 32), whole[:20])
    np.testing.assert_array_equal(polygon_interior(polygon, 32, 17), whole[:, :17])


@pytest.mark.parametrize("corners", [np.zeros((3, 5)), np.zeros((2, 2)), np.full((2, 5), np.nan)])
def test_corners_that_make_no_polygon_are_refused(corners: np.ndarray) -> None:
    with pytest.raises(ValueError, match="corners_px"):
        polygon_interior(corners, 8, 8)
