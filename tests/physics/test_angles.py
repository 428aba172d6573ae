"""Angles: wrapping, differences, means and unit vectors against complex numbers and pencil-and-paper values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from physics.angles import angular_difference, circular_mean, direction_of, resultant_length, unit_vector, wrap

TAU = 2 * math.pi
ANGLES = st.floats(min_value=-50.0, max_value=50.0, allow_nan=False)
REPEATABLE = settings(deadline=None, derandomize=True)
ROUNDING = 1e-13  # float64, angles up to 50 rad


def rad(*degrees):
    return torch.tensor(degrees, dtype=torch.float64).deg2rad()


def test_wrapping_by_hand():
    wrapped = wrap(rad(-90, 0, 359, 360, 725))
    torch.testing.assert_close(wrapped, rad(270, 0, 359, 0, 5), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrapping_never_returns_a_full_turn(dtype):
    tiny = torch.tensor([-1e-30, -1e-20, -1e-9, -0.0, 0.0, TAU, -TAU], dtype=dtype)
    wrapped = wrap(tiny)
    assert (wrapped >= 0).all()
    assert (wrapped < torch.tensor(TAU, dtype=dtype)).all()


def test_wrapping_has_gradient_one_on_both_sides_of_the_jump():
    angle = torch.tensor([-7.0, -1e-12, 1.0, 6.3, 20.0], dtype=torch.float64, requires_grad=True)
    wrap(angle).sum().backward()
    assert torch.equal(angle.grad, torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("a", "b", "difference"),
    [(1, 359, 2), (359, 1, -2), (90, 0, 90), (0, 180, -180), (180, 0, -180), (10, 10, 0), (725, 0, 5), (-10, 340, 10)],
)
def test_differences_by_hand(a, b, difference):
    torch.testing.assert_close(angular_difference(rad(a), rad(b)), rad(difference), atol=ROUNDING, rtol=0)


def test_difference_keeps_the_precision_of_small_angles():
    small = torch.tensor(1e-20, dtype=torch.float64)
    assert angular_difference(small, torch.zeros((), dtype=torch.float64)) == small


@REPEATABLE
@given(ANGLES, ANGLES)
def test_difference_equals_the_phase_of_the_quotient(a, b):
    difference = angular_difference(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)).item()
    assert -math.pi - ROUNDING <= difference < math.pi + ROUNDING
    quotient = np.exp(1j * (a - b))
    assert abs(np.exp(1j * difference) - quotient) < ROUNDING


@REPEATABLE
@given(ANGLES, ANGLES, st.integers(-3, 3))
def test_difference_ignores_full_turns_and_common_rotations(a, b, turns):
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    plain = angular_difference(a, b)
    moved = angular_difference(a + 1.7 + turns * TAU, b + 1.7)
    assert angular_difference(plain, moved).abs() < ROUNDING


def test_difference_broadcasts_and_has_unit_gradients():
    a = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert angular_difference(a, b).shape == (4, 3)
    assert torch.autograd.gradcheck(angular_difference, (a, b))


def test_mean_of_directions_around_zero_is_zero_and_not_the_opposite_side():
    torch.testing.assert_close(circular_mean(rad(350, 10)).sin(), rad(0)[0], atol=ROUNDING, rtol=0)
    torch.testing.assert_close(circular_mean(rad(80, 100, 90)), rad(90)[0], atol=ROUNDING, rtol=0)


def test_mean_agrees_with_scipy_along_any_dimension():
    angles = torch.rand(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * TAU
    for dim in (0, 1, -1):
        expected = stats.circmean(angles.numpy(), high=TAU, axis=dim)
        np.testing.assert_allclose(circular_mean(angles, dim).numpy(), expected, atol=1e-12)
    variance = stats.circvar(angles.numpy(), high=TAU, axis=-1)
    np.testing.assert_allclose(resultant_length(angles).numpy(), 1 - variance, atol=1e-12)


def test_mean_is_differentiable():
    angles = torch.tensor([[0.1, 0.4, 6.2], [2.0, 2.5, 3.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(circular_mean, (angles,))
    assert torch.autograd.gradcheck(resultant_length, (angles,))


@REPEATABLE
@given(ANGLES, st.floats(0.1, 100.0))
def test_direction_of_a_scaled_unit_vector_is_its_angle(angle, length):
    angle = torch.tensor(angle, dtype=torch.float64)
    assert angular_difference(direction_of(length * unit_vector(angle)), angle).abs() < ROUNDING


def test_unit_vectors_point_up_for_a_quarter_turn():
    torch.testing.assert_close(
        unit_vector(rad(90)), torch.tensor([[0.0, 1.0]], dtype=torch.float64), atol=1e-15, rtol=0
    )
    assert direction_of(torch.zeros(2)) == 0


def test_direction_refuses_vectors_that_are_not_planar():
    with pytest.raises(ValueError, match="two components"):
        direction_of(torch.zeros(4, 3))
