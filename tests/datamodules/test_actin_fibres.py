"""Fibres that part round an oval: none crosses it, distant ones stay, and turning all turns all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.simulators.actin_fibres import (
    Oval,
    drawn,
    fibres,
    from_oval_coordinates,
    oval_coordinates,
    parted,
)

OVAL = Oval(np.array([3.0, -2.0]), 7.0, 5.0, 0.6)


def test_the_oval_is_the_unit_circle_of_its_own_coordinates():
    tip = OVAL.centre_um + 7.0 * np.array([np.cos(0.6), -np.sin(0.6)])  # counter-clockwise as displayed, y down
    assert oval_coordinates(tip, OVAL) == pytest.approx([1.0, 0.0])
    side = OVAL.centre_um + 5.0 * np.array([np.sin(0.6), np.cos(0.6)])
    assert oval_coordinates(side, OVAL) == pytest.approx([0.0, 1.0])
    assert from_oval_coordinates(np.array([1.0, 0.0]), OVAL) == pytest.approx(tip)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_points_leave_the_oval_straight_outwards_and_stay_where_they_are_far_away(seed):
    points = np.random.default_rng(seed).normal(0.0, 20.0, (200, 2))
    before, after = (oval_coordinates(p, OVAL) for p in (points, parted(points, OVAL)))
    lengths = np.hypot(*before.T), np.hypot(*after.T)
    assert (lengths[1] >= 1).all()
    np.testing.assert_allclose(lengths[1] ** 3, lengths[0] ** 3 + 1, rtol=1e-9)
    np.testing.assert_allclose(after / lengths[1][:, None], before / lengths[0][:, None], atol=1e-9)


def test_no_stretch_of_a_fibre_cuts_through_the_middle_of_the_oval():
    lines = fibres(OVAL, axis_rad=0.4, reach_um=30.0, spacing_um=1.5, bend_per_um=0.01, rng=np.random.default_rng(0))
    middles = oval_coordinates(0.5 * (lines[:, 1:] + lines[:, :-1]), OVAL)
    assert np.hypot(middles[..., 0], middles[..., 1]).min() > 0.8
    assert lines.shape[0] == 40
    steps = np.diff(lines, axis=1)
    direction = np.angle(np.exp(2j * np.arctan2(-steps[..., 1], steps[..., 0])).mean()) / 2
    assert direction == pytest.approx(0.4, abs=0.1)


def test_lines_are_drawn_where_their_points_are():
    picture = drawn(np.array([[[2.0, 5.0], [9.0, 5.0]]]), np.array([0.6]), shape_px=(12, 14))
    assert picture.shape == (12, 14)
    assert picture[5, 3:9].min() == pytest.approx(0.6, abs=0.07)  # anti-aliasing dims a line a little
    assert picture[:4].max() == picture[7:].max() == 0
