"""Pixels and labels move together: checked on blobs whose centroids are found without the code under test."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from datamodules.augmentation.geometry import Motion, MotionRange

SIZE = 129
CENTRE = (SIZE - 1) / 2
ARM_PX = 18.0
ANGLE_TOLERANCE_RAD = math.radians(0.2)  # bilinear interpolation moves a blob's centroid by less than 0.05 px
POSITION_TOLERANCE_PX = 0.05
PAPER = MotionRange(rotation_step_deg=None, shift_fraction=0.2, zoom_fraction=0.1, mirror=True)

angles = st.floats(0, 2 * math.pi, exclude_max=True)
motions = st.builds(
    Motion,
    rotation_deg=st.floats(0, 360, exclude_max=True),
    zoom=st.floats(0.5, 2),
    mirror_x=st.booleans(),
    mirror_y=st.booleans(),
)


def blob(x: float, y: float) -> np.ndarray:
    """A round spot at (x, y) px from the centre, y down."""
    rows, columns = np.mgrid[:SIZE, :SIZE] - CENTRE
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 3.0**2)).astype(np.float32)


def centroid(image: np.ndarray) -> np.ndarray:
    """(x, y) of the spot in px from the centre."""
    rows, columns = np.mgrid[:SIZE, :SIZE] - CENTRE
    return np.array([(image * columns).sum(), (image * rows).sum()]) / image.sum()


def apart(a: float, b: float) -> float:
    return abs((a - b + math.pi) % (2 * math.pi) - math.pi)


@pytest.mark.parametrize(
    ("mirror_x", "mirror_y", "zoom", "shift"),
    list(itertools.product([False, True], [False, True], [0.9, 1.0, 1.1], [(0.0, 0.0), (0.12, -0.15)])),
)
def test_an_arrow_points_where_its_moved_label_says(mirror_x, mirror_y, zoom, shift):
    for rotation_deg, angle_rad in itertools.product([0.0, 37.0, 90.0, 180.0, 270.0, 301.5], [0.3, 2.0, 4.4]):
        motion = Motion(rotation_deg, zoom, mirror_x, mirror_y, shift)
        tip = (ARM_PX * math.cos(angle_rad), -ARM_PX * math.sin(angle_rad))
        tail, head = centroid(motion.move_image(blob(0, 0))), centroid(motion.move_image(blob(*tip)))
        seen_rad = math.atan2(-(head - tail)[1], (head - tail)[0])
        assert apart(seen_rad, motion.move_angle(angle_rad)) < ANGLE_TOLERANCE_RAD
        assert tail == pytest.approx(np.array(shift) * SIZE, abs=POSITION_TOLERANCE_PX)
        assert np.hypot(*(head - tail)) == pytest.approx(zoom * ARM_PX, abs=POSITION_TOLERANCE_PX)


def test_a_positive_rotation_is_counter_clockwise_as_displayed():
    motion = Motion(rotation_deg=90.0)
    assert centroid(motion.move_image(blob(20, 0))) == pytest.approx([0, -20], abs=1e-4)
    assert motion.move_angle(0.0) == pytest.approx(math.pi / 2)


@given(angle_rad=angles)
def test_mirrors_change_the_label_as_a_mirror_does(angle_rad):
    assert apart(Motion(mirror_y=True).move_angle(angle_rad), -angle_rad) < 1e-12
    assert apart(Motion(mirror_x=True).move_angle(angle_rad), math.pi - angle_rad) < 1e-12


@given(motion=motions, angle_rad=angles)
def test_labels_stay_in_the_circle_and_follow_rotation_after_mirrors(motion, angle_rad):
    moved = motion.move_angle(angle_rad)
    mirrored = -angle_rad if motion.mirror_y else angle_rad
    mirrored = math.pi - mirrored if motion.mirror_x else mirrored
    assert 0 <= moved < 2 * math.pi
    assert apart(moved, mirrored + math.radians(motion.rotation_deg)) < 1e-9


@given(motion=motions)
def test_the_matrix_is_a_similarity_of_the_drawn_zoom(motion):
    np.testing.assert_allclose(motion.matrix.T @ motion.matrix, motion.zoom**2 * np.eye(2), atol=1e-12)
    assert np.sign(np.linalg.det(motion.matrix)) == (-1) ** (motion.mirror_x + motion.mirror_y)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("size", [5, 8])
def test_right_angles_move_every_pixel_exactly(dtype, size):
    image = np.random.default_rng(0).integers(0, 256, (size, size)).astype(dtype)
    for quarters, mirror_x, mirror_y in itertools.product(range(4), [False, True], [False, True]):
        motion = Motion(rotation_deg=90.0 * quarters, mirror_x=mirror_x, mirror_y=mirror_y)
        moved = motion.move_image(image)
        expected = np.zeros_like(image)
        for (row, column), value in np.ndenumerate(image):
            at = motion.matrix @ (column - (size - 1) / 2, row - (size - 1) / 2) + (size - 1) / 2
            expected[int(at[1]), int(at[0])] = value
        np.testing.assert_array_equal(moved, expected)
        assert moved.dtype == dtype
        assert moved.flags.c_contiguous


def test_four_quarter_turns_or_a_mirror_twice_give_the_picture_back():
    image = np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8)
    turned = image
    for _ in range(4):
        turned = Motion(rotation_deg=90.0).move_image(turned)
    np.testing.assert_array_equal(turned, image)
    mirror = Motion(mirror_x=True)
    np.testing.assert_array_equal(mirror.move_image(mirror.move_image(image)), image)
    np.testing.assert_array_equal(Motion().move_image(image), image)


def test_what_comes_from_outside_of_the_picture_is_black():
    white = np.full((64, 64), 255, np.uint8)
    turned = Motion(rotation_deg=45.0).move_image(white)
    assert turned[0, 0] == turned[0, -1] == turned[-1, 0] == turned[-1, -1] == 0
    assert turned[32, 32] == 255
    shifted = Motion(shift=(0.25, 0.0)).move_image(white)
    assert not shifted[:, :15].any()
    assert (shifted[:, 17:] == 255).all()


def test_a_picture_that_is_not_square_refuses_a_quarter_turn_only():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with pytest.raises(ValueError, match="square image, got 4 x 3 px"):
        Motion(rotation_deg=90.0).move_image(image)
    np.testing.assert_array_equal(Motion(rotation_deg=180.0).move_image(image), image[::-1, ::-1])


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), epoch=st.integers(0, 10**4), index=st.integers(0, 10**6))
def test_a_draw_depends_on_seed_epoch_and_index_alone(seed, epoch, index):
    first = PAPER.draw(seed=seed, epoch=epoch, index=index)
    PAPER.draw(seed=seed + 1, epoch=epoch, index=index)
    np.random.default_rng(0).random(100)
    assert PAPER.draw(seed=seed, epoch=epoch, index=index) == first
    others = [(seed + 1, epoch, index), (seed, epoch + 1, index), (seed, epoch, index + 1)]
    assert all(PAPER.draw(seed=s, epoch=e, index=i) != first for s, e, i in others)
    assert 0 <= first.rotation_deg < 360
    assert 0.9 <= first.zoom <= 1.1
    assert max(map(abs, first.shift)) <= 0.2


def test_draws_fill_their_ranges_evenly_and_mirrors_are_independent():
    drawn = [PAPER.draw(seed=3, epoch=epoch, index=index) for epoch in range(4) for index in range(500)]
    columns = {
        "rotation": [m.rotation_deg / 360 for m in drawn],
        "zoom": [(m.zoom - 0.9) / 0.2 for m in drawn],
        "shift x": [(m.shift[0] + 0.2) / 0.4 for m in drawn],
        "shift y": [(m.shift[1] + 0.2) / 0.4 for m in drawn],
    }
    for name, values in columns.items():
        assert kstest(values, "uniform").pvalue > 1e-3, name
    assert np.abs(np.corrcoef(list(columns.values())) - np.eye(4)).max() < 0.1
    for pair in itertools.product([False, True], repeat=2):
        share = np.mean([(m.mirror_x, m.mirror_y) == pair for m in drawn])
        assert share == pytest.approx(0.25, abs=0.04)  # four standard deviations of 2000 draws


def test_switching_one_quantity_off_leaves_the_others_as_they_were():
    plain = PAPER.draw(seed=1, epoch=2, index=3)
    unmirrored = MotionRange(None, 0.2, 0.1, False).draw(seed=1, epoch=2, index=3)
    unshifted = MotionRange(None, 0.0, 0.1, True).draw(seed=1, epoch=2, index=3)
    assert (unmirrored.rotation_deg, unmirrored.zoom, unmirrored.shift) == (plain.rotation_deg, plain.zoom, plain.shift)
    assert (unmirrored.mirror_x, unmirrored.mirror_y) == (False, False)
    assert (unshifted.rotation_deg, unshifted.mirror_x, unshifted.shift) == (plain.rotation_deg, plain.mirror_x, (0, 0))


def test_a_rotation_step_draws_its_multiples_and_all_of_them():
    quarter_turns = MotionRange(90, 0.0, 0.0, True)
    drawn = [quarter_turns.draw(seed=0, epoch=0, index=index) for index in range(200)]
    assert {m.rotation_deg for m in drawn} == {0.0, 90.0, 180.0, 270.0}
    assert {m.zoom for m in drawn} == {1.0}
    image = np.random.default_rng(2).integers(0, 256, (128, 128), dtype=np.uint8)
    for motion in drawn[:20]:
        np.testing.assert_array_equal(np.sort(motion.move_image(image).ravel()), np.sort(image.ravel()))
    assert {MotionRange(360, 0, 0, False).draw(seed=0, epoch=0, index=i).rotation_deg for i in range(20)} == {0.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rotation_step_deg", 0.0),
        ("rotation_step_deg", -90.0),
        ("rotation_step_deg", 100.0),
        ("rotation_step_deg", 720.0),
        ("rotation_step_deg", math.nan),
        ("shift_fraction", -0.1),
        ("shift_fraction", 1.5),
        ("shift_fraction", math.nan),
        ("zoom_fraction", 1.0),
        ("zoom_fraction", -0.1),
    ],
)
def test_a_bad_range_is_refused_by_its_name(name, value):
    ranges = {"rotation_step_deg": None, "shift_fraction": 0.2, "zoom_fraction": 0.1, "mirror": True}
    with pytest.raises(ValueError, match=f"^{name} must"):
        MotionRange(**{**ranges, name: value})


def test_rotation_shift_and_zoom_each_take_place_as_often_as_asked():
    motions = [MotionRange(None, 0.2, 0.1, True, 0.25).draw(seed=1, epoch=0, index=k) for k in range(4000)]
    took_place = np.array([(m.rotation_deg != 0, m.zoom != 1, m.shift != (0, 0)) for m in motions])
    np.testing.assert_allclose(took_place.mean(axis=0), 0.25, atol=4 * math.sqrt(0.25 * 0.75 / 4000))
    np.testing.assert_allclose(np.corrcoef(took_place.T)[np.triu_indices(3, 1)], 0, atol=0.07)
    always = MotionRange(None, 0.2, 0.1, True).draw(seed=1, epoch=0, index=5)
    assert always.rotation_deg != 0
    with pytest.raises(ValueError, match="motion_probability must lie in"):
        MotionRange(None, 0.2, 0.1, True, 0.0)
