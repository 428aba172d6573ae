"""From a frame to the network's input and target: box, taper, geometry, salt, logarithm, each by its definition."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.signal.windows import tukey
from scipy.stats import kstest

from datamodules.augmentation.force_images import (
    MARGIN_PX,
    ForceAugmentation,
    Placement,
    cell_patch,
    clipped_log,
    taper,
)
from datamodules.converters.cell_boxes import Box, cell_box
from physics.windows import tukey_window

SETTINGS = settings(deadline=None, derandomize=True, max_examples=25)
SILENT = ForceAugmentation(crop_px=32, salt_image_probability=0.0)


def bump(height, width, row, column, radius_px=3.0):
    rows, columns = np.mgrid[:height, :width]
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * radius_px**2)).astype(np.float32)


def centre(picture):
    """(row, column) of the centre of mass."""
    return np.array(ndimage.center_of_mass(picture))


def test_the_box_is_that_of_the_largest_box_not_of_the_most_pixels():
    frame = np.full((200, 300), 100, np.uint16)  # at the threshold is not above it
    frame[20:60, 30:70] = 4000  # 1600 px
    frame[100:106, 40:140] = 101  # 600 px in a box of the same size
    frame[120:180, 200:206] = frame[174:180, 200:290] = 500  # an L: 864 px in a box of 5400
    frame[5, 5] = frame[190:194, 10:14] = 65535  # opened away
    assert cell_box(frame) == Box(x=200, y=120, width=90, height=60)
    assert cell_box(frame.astype(np.float32)) == cell_box(frame)
    assert cell_box(frame, threshold_grey=600) == Box(x=30, y=20, width=40, height=40)


def test_the_box_agrees_with_scipys_morphology():
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((160, 200)), 4)
    frame = (smooth - smooth.min()) / np.ptp(smooth) * 200
    frame[:10], frame[-10:], frame[:, :10], frame[:, -10:] = 0, 0, 0, 0  # the rims of the two libraries differ
    kernel = np.ones((5, 5))
    opened = ndimage.binary_opening(ndimage.binary_closing(frame > 100, kernel), kernel)
    labels, _ = ndimage.label(opened, np.ones((3, 3)))
    boxes = [(rows.stop - rows.start, cols.stop - cols.start) for rows, cols in ndimage.find_objects(labels)]
    found = cell_box(frame)
    assert len(boxes) > 2
    assert (found.height, found.width) == max(boxes, key=math.prod)


def test_closing_comes_before_opening():
    frame = np.zeros((60, 60))
    frame[20:40:4, 10:50] = 200  # lines that opening first would take away
    assert cell_box(frame) == Box(10, 20, 40, 17)


def test_a_frame_without_a_cell_is_refused():
    with pytest.raises(ValueError, match="image must hold a cell"):
        cell_box(np.zeros((64, 64)))
    with pytest.raises(ValueError, match=r"image must have shape \(y, x\)"):
        cell_box(np.zeros((1, 64, 64)))


def test_the_patch_is_the_box_and_a_margin_as_far_as_the_frame_goes():
    rows, columns = np.mgrid[:600, :1000]
    frame = (1000 * rows + columns).astype(np.float64)
    image, force = cell_patch(frame, frame, Box(x=300, y=50, width=100, height=200))
    assert image.dtype == force.dtype == np.float32
    assert image.shape == force.shape == (50 + 200 + MARGIN_PX, 100 + 2 * MARGIN_PX)
    assert (image[0, 0], image[-1, -1]) == (300 - 128, 1000 * 377 + 527)
    window = np.outer(tukey_window(378), tukey_window(356))
    np.testing.assert_allclose(force, image * window, rtol=1e-6)
    whole, _ = cell_patch(frame, frame, Box(0, 0, 1000, 600))
    np.testing.assert_array_equal(whole, frame)
    with pytest.raises(ValueError, match="one shape"):
        cell_patch(frame, frame[1:], Box(0, 0, 9, 9))
    with pytest.raises(ValueError, match="box must lie in the picture of 1000 x 600 px"):
        cell_patch(frame, frame, Box(1200, 0, 9, 9))
    with pytest.raises(ValueError, match="margin_px must not be negative"):
        cell_patch(frame, frame, Box(0, 0, 9, 9), margin_px=-1)


@pytest.mark.parametrize(("length", "difference"), [(1024, 0.007), (256, 0.036)])
def test_the_taper_is_ten_percent_at_each_end(length, difference):
    window = tukey_window(length)
    samples = length // 10
    assert (window[samples : length - samples] == 1).all()
    assert window[0] == window[-1] == 0
    assert (np.diff(window[:samples]) > 0).all()
    k = np.arange(samples)
    np.testing.assert_allclose(window[:samples], 0.5 - 0.5 * np.cos(2 * np.pi * k / (2 * samples - 1)), atol=1e-14)
    np.testing.assert_array_equal(window, window[::-1])
    assert np.abs(window - tukey(length, 0.2)).max() == pytest.approx(difference, abs=5e-4)  # near, not the same
    assert np.abs(window - tukey(length, 0.1)).max() > 0.5  # ten percent in all is another window


def test_short_and_flat_windows_and_bad_ones():
    np.testing.assert_array_equal(tukey_window(9), np.ones(9))
    np.testing.assert_array_equal(tukey_window(100, fraction=0.0), np.ones(100))
    np.testing.assert_array_equal(tukey_window(12), [0, *np.ones(10), 0])
    assert tukey_window(0).shape == (0,)
    np.testing.assert_allclose(taper(np.ones((20, 40))), np.outer(tukey_window(20), tukey_window(40)))
    for fraction in (-0.1, 0.6, math.nan):
        with pytest.raises(ValueError, match="fraction must lie in"):
            tukey_window(10, fraction=fraction)
    with pytest.raises(ValueError, match="length must not"):
        tukey_window(-1)


def test_the_logarithm_is_clipped_at_one():
    raw = np.array([-3.0, 0.0, 0.5, 1.0, math.e, 65535.0], np.float32)
    np.testing.assert_allclose(clipped_log(raw), [0, 0, 0, 0, 1, math.log(65535)], rtol=1e-6)
    assert clipped_log(raw).dtype == np.float32


@SETTINGS
@given(
    flip_x=st.booleans(),
    flip_y=st.booleans(),
    rotation_deg=st.floats(-180, 180),
    corner_x=st.floats(0.3, 0.7),  # so that the bump always lies well inside of the crop
    corner_y=st.floats(0.3, 0.7),
)
def test_a_crop_moves_what_it_shows_by_flips_then_rotation(flip_x, flip_y, rotation_deg, corner_x, corner_y):
    height, width, size = 90, 110, 64
    row, column = 41.0, 59.0
    crop = Placement(flip_x, flip_y, rotation_deg, corner_x, corner_y).crop(bump(height, width, row, column), size)
    x, y = column - (width - 1) / 2, row - (height - 1) / 2
    x, y = (-x if flip_x else x), (-y if flip_y else y)
    cos, sin = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    x, y = x * cos + y * sin, -x * sin + y * cos
    top, left = math.floor(corner_y * (height - size + 1)), math.floor(corner_x * (width - size + 1))
    expected = np.array([y + (height - 1) / 2 - top, x + (width - 1) / 2 - left])
    assert centre(crop) == pytest.approx(expected, abs=0.03)
    assert crop.sum() == pytest.approx(bump(height, width, row, column).sum(), rel=0.01)


def test_a_crop_of_the_rotation_is_the_rotation_cropped():
    picture = np.random.default_rng(0).random((80, 70)).astype(np.float32)
    matrix = cv2.getRotationMatrix2D((34.5, 39.5), 33.0, 1.0)
    rotated = cv2.warpAffine(picture, matrix, (70, 80), flags=cv2.INTER_CUBIC)
    crop = Placement(False, False, 33.0, 0.5, 0.25).crop(picture, 40)
    np.testing.assert_allclose(crop, rotated[10:50, 15:55], atol=0.05)  # OpenCV rounds positions to 1/32 px
    assert crop.min() < 0 or crop.max() > 1  # bicubic: it overshoots


def test_without_rotation_every_pixel_is_kept_and_the_smallest_and_largest_corners_are_reached():
    picture = np.arange(48, dtype=np.float32).reshape(6, 8)
    np.testing.assert_array_equal(Placement(False, False, 0.0, 0.0, 0.0).crop(picture, 4), picture[:4, :4])
    np.testing.assert_array_equal(Placement(True, False, 0.0, 0.999, 0.999).crop(picture, 4), picture[2:, 3::-1])
    np.testing.assert_array_equal(Placement(False, True, 0.0, 0.0, 0.0).crop(picture, 6), picture[::-1, :6])


def test_image_and_force_move_alike_and_the_logarithm_comes_last():
    picture = 50 * bump(48, 60, 25.0, 30.0, 6.0)
    for index in range(10):
        image, force = SILENT.apply(picture, picture, seed=1, epoch=2, index=index)
        np.testing.assert_array_equal(image, force)
        raw = SILENT.place(seed=1, epoch=2, index=index).crop(picture, 32)
        np.testing.assert_array_equal(image, np.log(np.maximum(raw, 1)))
        assert image.shape == (32, 32)
        assert image.dtype == np.float32


def test_salt_falls_on_the_image_alone_in_raw_grey_levels():
    salted = ForceAugmentation(crop_px=64, rotation_deg=0.0)
    flat = np.full((64, 64), math.e, np.float32)
    values, images = [], 0
    for index in range(400):
        image, force = salted.apply(flat, flat, seed=0, epoch=0, index=index)
        np.testing.assert_allclose(force, 1, rtol=1e-6)
        changed = image[np.abs(image - 1) > 1e-6]
        images += changed.size > 0
        values.append(changed)
    values = np.concatenate(values)
    assert images / 400 == pytest.approx(0.5, abs=4 * 0.5 / 20)
    assert len(values) / (images * 64 * 64) == pytest.approx(0.01, rel=0.03)
    raw = np.exp(values)[values > 0]
    assert kstest(raw, "uniform", args=(1, 1999)).pvalue > 1e-3
    always = ForceAugmentation(crop_px=64, salt_image_probability=1.0, salt_pixel_probability=1.0)
    assert always.apply(flat, flat, seed=0, epoch=0, index=0)[0].max() < math.log(2000)


@SETTINGS
@given(seed=st.integers(0, 2**32), epoch=st.integers(0, 10**4), index=st.integers(0, 10**6))
def test_a_draw_depends_on_seed_epoch_and_index_alone(seed, epoch, index):
    picture = np.random.default_rng(0).random((40, 36)) * 500
    salted = ForceAugmentation(crop_px=32, salt_image_probability=1.0)
    first = salted.apply(picture, picture, seed=seed, epoch=epoch, index=index)
    salted.apply(picture, picture, seed=seed + 1, epoch=epoch, index=index)
    for one, again in zip(first, salted.apply(picture, picture, seed=seed, epoch=epoch, index=index), strict=True):
        np.testing.assert_array_equal(one, again)
    for other in ((seed + 1, epoch, index), (seed, epoch + 1, index), (seed, epoch, index + 1)):
        moved, _ = salted.apply(picture, picture, seed=other[0], epoch=other[1], index=other[2])
        assert not np.array_equal(moved, first[0])
    silent = SILENT.apply(picture, picture, seed=seed, epoch=epoch, index=index)
    np.testing.assert_array_equal(silent[1], first[1])  # switching the salt off leaves the geometry


def test_placements_fill_their_ranges():
    drawn = [SILENT.place(seed=3, epoch=epoch, index=index) for epoch in range(4) for index in range(500)]
    assert kstest([p.rotation_deg / 360 + 0.5 for p in drawn], "uniform").pvalue > 1e-3
    for name in ("corner_x", "corner_y"):
        assert kstest([getattr(p, name) for p in drawn], "uniform").pvalue > 1e-3, name
    for pair in [(False, False), (False, True), (True, False), (True, True)]:
        assert np.mean([(p.flip_x, p.flip_y) == pair for p in drawn]) == pytest.approx(0.25, abs=0.04)
    still = ForceAugmentation(mirror=False, rotation_deg=0.0).place(seed=3, epoch=0, index=0)
    assert (still.flip_x, still.flip_y, still.rotation_deg) == (False, False, 0.0)
    assert (still.corner_x, still.corner_y) == (drawn[0].corner_x, drawn[0].corner_y)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop_px", 0),
        ("rotation_deg", 181.0),
        ("rotation_deg", math.nan),
        ("salt_image_probability", 1.1),
        ("salt_pixel_probability", -0.1),
        ("salt_maximum_grey", math.inf),
    ],
)
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must"):
        ForceAugmentation(**{name: value})


def test_bad_pictures_are_refused():
    with pytest.raises(ValueError, match="image must be at least 256 px wide and high, got 300 x 255 px"):
        ForceAugmentation().apply(np.zeros((255, 300)), np.zeros((255, 300)), seed=0, epoch=0, index=0)
    with pytest.raises(ValueError, match="one shape"):
        SILENT.apply(np.zeros((40, 40)), np.zeros((40, 41)), seed=0, epoch=0, index=0)
