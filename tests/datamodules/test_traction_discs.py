"""Discs of traction: the closed form against integrals of the Boussinesq kernel, limits, symmetry and the draw."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from datamodules.simulators.traction_discs import Discs, Draw, displacement, draw, pixel_centres, traction

RADIUS = 0.04
INTEGRATION = 1e-6  # relative, of the adaptive quadrature where the chord length has a corner


def single(traction_xy: tuple[float, float], centre: tuple[float, float] = (0.5, 0.5), radius: float = RADIUS) -> Discs:
    return Discs(np.array([centre]), np.array([radius]), np.array([traction_xy]))


def integrated(distance: float, direction: float, traction_xy: tuple[float, float], nu: float) -> np.ndarray:
    """Boussinesq and Cerruti over the disc in polar coordinates about the observer.

    The kernel times the radius does not depend on the radius, so that only the chord's length is left to integrate.
    """

    def chord(theta: float) -> float:
        # the disc's centre lies at -distance along `direction`
        along, across = -distance * np.cos(theta - direction), distance * np.sin(theta - direction)
        half = RADIUS**2 - across**2
        if half <= 0:
            return 0.0
        return max(along + np.sqrt(half), 0.0) - max(along - np.sqrt(half), 0.0)

    opposite = direction + np.pi
    half_angle = np.pi if distance < RADIUS else np.arcsin(min(RADIUS / distance, 1.0))
    low, high = opposite - half_angle, opposite + half_angle
    breaks = np.linspace(low, high, 9)

    def total(kernel: object) -> float:
        parts = [
            quad(lambda t: kernel(t) * chord(t), a, b, limit=200, epsabs=1e-13, epsrel=1e-10)[0]  # type: ignore[operator]
            for a, b in itertools.pairwise(breaks)
        ]
        return float(sum(parts))

    xx = total(lambda t: 1 - nu + nu * np.cos(t) ** 2)
    yy = total(lambda t: 1 - nu + nu * np.sin(t) ** 2)
    xy = total(lambda t: nu * np.sin(t) * np.cos(t))
    return (1 + nu) / np.pi * np.array([[xx, xy], [xy, yy]]) @ np.array(traction_xy)


@pytest.mark.parametrize("relative", [0.0, 1e-6, 0.005, 0.011, 0.3, 0.9, 0.9999, 1.0, 1.0001, 1.3, 3.0, 20.0])
@pytest.mark.parametrize("direction", [0.0, 0.7, 2.5, -1.1])
def test_the_displacement_is_the_integral_of_boussinesq_over_the_disc(relative: float, direction: float) -> None:
    force, nu, distance = (0.3, -0.2), 0.49, relative * RADIUS
    x, y = 0.5 + distance * np.cos([direction]), 0.5 + distance * np.sin([direction])
    found = displacement(single(force), x, y, poisson_ratio=nu)[0, :, 0]
    expected = integrated(distance, direction, force, nu)
    np.testing.assert_allclose(found, expected, rtol=0, atol=INTEGRATION * np.linalg.norm(expected))


def test_in_the_middle_it_is_the_known_closed_form() -> None:
    nu, middle = 0.3, np.array([0.5])
    found = displacement(single((0.1, 0.4)), middle, middle, poisson_ratio=nu)[0, :, 0]
    np.testing.assert_allclose(found, (2 - nu) * (1 + nu) * RADIUS * np.array([0.1, 0.4]), rtol=1e-12)


def test_far_away_it_is_that_of_a_point_force() -> None:
    nu, distance, angle = 0.45, 60 * RADIUS, 0.4
    cos, sin = np.cos(angle), np.sin(angle)
    kernel = (1 + nu) / np.pi / distance * ((1 - nu) * np.eye(2) + nu * np.outer([cos, sin], [cos, sin]))
    x, y = np.array([0.5 + distance * cos]), np.array([0.5 + distance * sin])
    found = displacement(single((0.2, 0.1)), x, y, poisson_ratio=nu)[0, :, 0]
    np.testing.assert_allclose(found, kernel @ [0.2, 0.1] * np.pi * RADIUS**2, rtol=1e-3)


def test_the_series_near_the_middle_joins_the_closed_form() -> None:
    distance = RADIUS * np.array([0.00999, 0.01001])  # on both sides of m = 1e-4
    u = displacement(single((0.0, 1.0)), 0.5 + distance, np.full(2, 0.5), poisson_ratio=0.45)[0]
    assert np.abs(np.diff(u[1])) < 1e-6 * u[1, 0]
    slope = np.diff(displacement(single((0.0, 1.0)), 0.5 + distance, 0.5 + distance, poisson_ratio=0.45)[0, 0])
    assert 0 < slope[0] < 1e-6


@settings(deadline=None, max_examples=25)
@given(angle=st.floats(-7.0, 7.0), seed=st.integers(0, 10**6))
def test_turning_discs_and_points_turns_the_displacement(angle: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    discs = Discs(rng.uniform(0, 1, (5, 2)), rng.uniform(0.01, 0.05, 5), rng.normal(size=(5, 2)))
    points = rng.uniform(0, 1, (2, 20))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = Discs(discs.centre @ turn.T, discs.radius, discs.traction @ turn.T)
    u = displacement(discs, *points, poisson_ratio=0.4)
    u_turned = displacement(turned, *(turn @ points), poisson_ratio=0.4)
    np.testing.assert_allclose(u_turned, np.einsum("ij,njp->nip", turn, u), atol=1e-10)


def test_the_whole_grid_is_finite_also_where_a_pixel_is_a_centre_or_on_a_rim() -> None:
    x, y = pixel_centres(8)
    discs = Discs(np.array([[x[3, 3], y[3, 3]], [x[5, 5], y[5, 5]]]), np.array([0.125, 0.125]), np.ones((2, 2)))
    assert np.isfinite(displacement(discs, x, y, poisson_ratio=0.5)).all()


def test_traction_lies_on_the_disc_and_nowhere_else() -> None:
    x, y = pixel_centres(400)
    field = traction(single((0.25, -0.5)), x, y)[0]
    covered = field[0] != 0
    np.testing.assert_array_equal(covered, np.hypot(x - 0.5, y - 0.5) <= RADIUS)
    assert covered.mean() == pytest.approx(np.pi * RADIUS**2, rel=0.02)
    np.testing.assert_array_equal(field[1][covered], -0.5)
    assert x[0, 1] > x[0, 0]
    assert y[1, 0] > y[0, 0]
    assert x[0, 0] == pytest.approx(0.5 / 400)


def test_discs_are_drawn_by_the_published_rules() -> None:
    fields = [draw(np.random.default_rng(seed), Draw()) for seed in range(200)]
    numbers = np.array([len(field.radius) for field in fields])
    assert numbers.min() >= 10
    assert numbers.max() <= 50
    # from 10 on every trial ends the draw with probability (count - 10) / 40; the mean without refusals is 17.8
    expected = 10 + sum(np.prod([1 - (k - 10) / 40 for k in range(10, last + 1)]) for last in range(10, 50))
    assert numbers.mean() == pytest.approx(expected, abs=1.5)
    for field in fields:
        assert (field.radius >= 0.01).all()
        assert (field.radius <= 0.05).all()
        assert (np.hypot(*field.traction.T) <= 0.5).all()
        assert (field.centre - field.radius[:, None] >= 0.05 - 1e-12).all()
        assert (field.centre + field.radius[:, None] <= 0.95 + 1e-12).all()
        for new in range(1, len(field.radius)):
            gaps = np.hypot(*(field.centre[:new] - field.centre[new]).T)
            assert (gaps > 2 * field.radius[new] + 0.001).all()
    angles = np.concatenate([np.arctan2(*field.traction.T) for field in fields])
    assert abs(np.exp(1j * angles).mean()) < 4 / np.sqrt(len(angles))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: Draw(fewest=60.0), "fewest"),
        (lambda: Draw(largest_radius=0.2), "largest_radius"),
        (lambda: Draw(margin=-0.1), "margin"),
        (lambda: Draw(gap=0.5), "gap"),
        (lambda: Draw(largest_traction=0.0), "largest_traction"),
        (lambda: displacement(single((1, 1)), np.zeros(2), np.zeros(3), poisson_ratio=0.4), "x and y"),
        (lambda: displacement(single((1, 1)), np.zeros(2), np.zeros(2), poisson_ratio=0.6), "poisson_ratio"),
        (lambda: pixel_centres(0), "size_px"),
    ],
)
def test_bad_numbers_are_named(call: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call()  # type: ignore[operator]
