"""Outline geometry against closed forms: areas, directions, symmetries, thickness profiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datamodules.simulators import cell_outlines
from datamodules.simulators.cell_outlines import CellShape

RASTER_TOLERANCE_PX = 0.2  # how far OpenCV's outline may lie from where it should


@pytest.fixture
def shape() -> CellShape:
    rng = np.random.default_rng(4)
    front, body = 0.05 * (rng.standard_normal((2, 6)) + 1j * rng.standard_normal((2, 6)))
    return CellShape(
        nucleus_half_length_um=7.0,
        nucleus_half_width_um=5.0,
        body_half_length_um=11.0,
        body_half_width_um=8.0,
        tail_length_um=25.0,
        tail_half_width_rad=0.2,
        tail_bend_per_um=0.004,
        horn_length_um=6.0,
        lamella_reach_um=28.0,
        lamella_half_opening_rad=1.1,
        front_ripple=front,
        body_ripple=body,
    )


@pytest.fixture
def symmetric_shape(shape: CellShape) -> CellShape:
    return replace(shape, front_ripple=shape.front_ripple.real + 0j, body_ripple=shape.body_ripple.real + 0j)


def test_an_ellipse_drawn_as_a_polar_curve_has_the_area_pi_a_b() -> None:
    angle = cell_outlines.polar_grid(2000)
    points = cell_outlines.to_points(cell_outlines.ellipse_radius(angle, half_length=13.0, half_width=6.0), angle)
    assert cell_outlines.polygon_area(points) == pytest.approx(np.pi * 13.0 * 6.0, rel=1e-4)
    np.testing.assert_allclose((points / [13.0, 6.0]) ** 2 @ [1.0, 1.0], 1.0)


def test_a_filled_polygon_covers_its_area() -> None:
    angle = cell_outlines.polar_grid(400)
    points = cell_outlines.to_points(cell_outlines.ellipse_radius(angle, half_length=40.0, half_width=21.5), angle)
    mask = cell_outlines.fill(points + np.array([63.3, 60.7]), size_px=128)
    rim = np.linalg.norm(np.diff(points, axis=0, append=points[:1]), axis=1).sum()
    excess = (mask.sum() / 255 - cell_outlines.polygon_area(points)) / rim
    assert -RASTER_TOLERANCE_PX <= excess <= 0.5 + RASTER_TOLERANCE_PX  # OpenCV fills pixels it touches
    rows, columns = np.indices(mask.shape)
    centroid = np.array([(mask * columns).sum(), (mask * rows).sum()]) / mask.sum()
    np.testing.assert_allclose(centroid, [63.3, 60.7], atol=0.1)


@pytest.mark.parametrize(
    ("polarity", "pixel"), [(0.0, (84, 50)), (np.pi / 2, (64, 30)), (np.pi, (44, 50)), (-np.pi / 2, (64, 70))]
)
def test_the_front_points_counter_clockwise_as_displayed(polarity: float, pixel: tuple[int, int]) -> None:
    front = np.array([[10.0, 0.0]])
    placed = cell_outlines.place(front, polarity_rad=polarity, centre_px=(64.0, 50.0), pixel_size_um=0.5)
    np.testing.assert_allclose(placed[0], pixel, atol=1e-12)


def test_the_left_of_a_cell_that_points_right_is_up() -> None:
    placed = cell_outlines.place(np.array([[0.0, 3.0]]), polarity_rad=0.0, centre_px=(10.0, 10.0), pixel_size_um=1.0)
    np.testing.assert_allclose(placed[0], [10.0, 7.0])


def test_a_quarter_turn_of_the_polarity_turns_the_picture(shape: CellShape) -> None:
    angle = cell_outlines.polar_grid(160)
    points = cell_outlines.to_points(cell_outlines.lamella_radius(shape, angle), angle, bend_per_um=0.004)
    pictures = [
        cell_outlines.fill(
            cell_outlines.place(points, polarity_rad=turn, centre_px=(64.0, 64.0), pixel_size_um=0.8), size_px=129
        )
        for turn in (0.3, 0.3 + np.pi / 2)
    ]
    rim = np.linalg.norm(np.diff(points, axis=0, append=points[:1]), axis=1).sum() / 0.8
    difference = np.rot90(pictures[0]).astype(float) - pictures[1]
    assert np.abs(difference).sum() / 255 < 2 * RASTER_TOLERANCE_PX * rim
    wrong_way = np.rot90(pictures[0], -1).astype(float) - pictures[1]
    assert np.abs(wrong_way).sum() > 10 * np.abs(difference).sum()


def test_bending_the_tail_keeps_the_area_and_the_front(shape: CellShape) -> None:
    angle = cell_outlines.polar_grid(4000)
    radius = cell_outlines.body_radius(shape, angle)
    straight = cell_outlines.to_points(radius, angle)
    bent = cell_outlines.to_points(radius, angle, bend_per_um=0.01)
    assert cell_outlines.polygon_area(bent) == pytest.approx(cell_outlines.polygon_area(straight), rel=1e-5)
    ahead = straight[:, 0] >= 0
    np.testing.assert_array_equal(bent[ahead], straight[ahead])
    np.testing.assert_allclose((bent - straight)[~ahead, 1], 0.01 * straight[~ahead, 0] ** 2)


def test_ripples_neither_resize_nor_shift() -> None:
    rng = np.random.default_rng(1)
    angle = cell_outlines.polar_grid(360)
    wave = cell_outlines.ripple(angle, rng.standard_normal(5) + 1j * rng.standard_normal(5))
    spectrum = np.fft.rfft(wave)
    np.testing.assert_allclose(spectrum[:2], 0.0, atol=1e-10)
    np.testing.assert_allclose(spectrum[7:], 0.0, atol=1e-10)


def test_a_shape_with_even_ripples_is_its_own_mirror_image(symmetric_shape: CellShape) -> None:
    angle = np.linspace(0.0, np.pi, 91)
    for curve in (cell_outlines.body_radius, cell_outlines.lamella_radius):
        np.testing.assert_allclose(curve(symmetric_shape, angle), curve(symmetric_shape, -angle))


def test_the_lamella_is_broad_in_front_and_the_tail_tapers_behind(shape: CellShape) -> None:
    plain = replace(shape, front_ripple=np.zeros(1, complex), body_ripple=np.zeros(1, complex), horn_length_um=0.0)
    front, flank, tail = cell_outlines.lamella_radius(plain, np.array([0.0, 2.0, np.pi]))
    window = 0.5 * (1.0 + np.tanh(1.1 / cell_outlines.LAMELLA_EDGE_RAD))
    assert front == pytest.approx(28.0 * window)
    assert tail == pytest.approx(11.0 + 25.0, rel=1e-6)
    assert flank < 12.0
    half_width = tail * np.sin(plain.tail_half_width_rad)
    assert half_width < front * np.sin(plain.lamella_half_opening_rad) / 2


def test_a_process_falls_by_e_per_half_width_and_wraps_around() -> None:
    at = np.array([np.pi, np.pi - 0.3, -np.pi + 0.3])
    added = cell_outlines.process_radius(at, direction_rad=np.pi, length=20.0, half_width_rad=0.3)
    np.testing.assert_allclose(added, [20.0, 20.0 / np.e, 20.0 / np.e])


def test_the_dome_over_a_disc_is_the_parabola_of_the_depth() -> None:
    angle = cell_outlines.polar_grid(720)
    disc = cell_outlines.fill(cell_outlines.to_points(np.full(720, 30.0), angle) + 64.0, size_px=129)
    height = cell_outlines.dome(disc, half_width_px=20.0)
    for distance in (5, 15, 22, 27):
        shallow, deep = (min((rim - distance) / 20.0, 1.0) for rim in (30.0, 31.2))  # the rim's pixel counts as inside
        assert shallow * (2.0 - shallow) <= height[64, 64 + distance] + 1e-6
        assert deep * (2.0 - deep) >= height[64, 64 + distance] - 1e-6
    assert height.max() <= 1.0
    assert not height[disc == 0].any()


def test_discs_show_the_highest_where_they_overlap() -> None:
    canvas = cell_outlines.discs(
        64, np.array([[20.0, 30.0], [24.0, 30.0]]), np.array([6.0, 6.0]), np.array([0.5, 0.25])
    )
    assert canvas[30, 20] == pytest.approx(0.5)
    assert canvas[30, 22] == pytest.approx(0.5)
    assert canvas[30, 29] == pytest.approx(0.25, abs=0.002)
    assert canvas[30, 40] == 0.0
    alone = cell_outlines.discs(64, np.array([[31.5, 31.5]]), np.array([9.0]), np.array([1.0]))
    assert alone.sum() == pytest.approx(np.pi * 9.0**2, rel=0.12)  # OpenCV's discs reach half a pixel further


def test_no_discs_and_no_heights_give_an_empty_canvas() -> None:
    nothing = cell_outlines.discs(32, np.zeros((0, 2)), np.zeros(0), np.zeros(0))
    assert nothing.shape == (32, 32)
    assert nothing.dtype == np.float32
    assert not nothing.any()


def test_a_ribbon_follows_its_points() -> None:
    canvas = cell_outlines.ribbon(64, np.array([[10.0, 20.0], [50.0, 20.0], [50.0, 40.0]]), np.array([1.0, 0.4, 0.0]))
    np.testing.assert_allclose(canvas[20, 12:48], 1.0)
    np.testing.assert_allclose(canvas[23:40, 50], 0.4, atol=0.01)
    assert not canvas[30, :45].any()


@pytest.mark.parametrize(
    ("name", "value"),
    [("lamella_reach_um", 0.0), ("tail_length_um", -1.0), ("tail_bend_per_um", np.nan), ("body_half_width_um", np.inf)],
)
def test_an_impossible_shape_is_refused_by_name(shape: CellShape, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        replace(shape, **{name: value})


def test_a_lamella_all_around_is_refused(shape: CellShape) -> None:
    with pytest.raises(ValueError, match="lamella_half_opening_rad must be below pi"):
        replace(shape, lamella_half_opening_rad=3.2)
