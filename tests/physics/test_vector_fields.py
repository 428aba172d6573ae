"""Vector fields: turned and mirrored linear fields against their closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physics.vector_fields import flip, magnitude, net_force_nn, rotate, rotate_pixels, strain_energy_fj

SIZE = 17
LINEAR = 1e-12  # bilinear interpolation of a linear field is exact up to float64 rounding


def centred_grid(height=SIZE, width=SIZE):
    y, x = np.mgrid[:height, :width].astype(float)
    return x - (width - 1) / 2, y - (height - 1) / 2


def linear_field(matrix, height=SIZE, width=SIZE):
    """The field v(r) = A r with r = (x right, y down) from the centre."""
    return torch.tensor(np.einsum("ij,jyx->iyx", matrix, np.stack(centred_grid(height, width))))


def rotation_matrix(angle):
    """Counter-clockwise as displayed, in (x right, y down) coordinates."""
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def inner_disc(size=SIZE):
    x, y = centred_grid(size, size)
    return torch.tensor(np.hypot(x, y) <= (size - 1) / 2)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.floats(-10.0, 10.0), st.lists(st.floats(-2.0, 2.0), min_size=4, max_size=4))
def test_a_rotated_linear_field_has_the_rotated_matrix(angle, entries):
    matrix = np.array(entries).reshape(2, 2)
    turned = rotate(linear_field(matrix), angle)
    R = rotation_matrix(angle)
    expected = linear_field(R @ matrix @ R.T)
    disc = inner_disc()
    assert (turned - expected)[:, disc].abs().max() < LINEAR


@pytest.mark.parametrize("matrix", [np.eye(2), [[0.0, 1.0], [-1.0, 0.0]]], ids=["radial", "vortex"])
def test_radial_and_vortex_fields_do_not_change(matrix):
    field = linear_field(np.array(matrix))
    disc = inner_disc()
    for angle in (0.3, 1.0, math.pi / 2, 4.0):
        assert (rotate(field, angle) - field)[:, disc].abs().max() < LINEAR


def test_a_quarter_turn_brings_a_rightward_vector_at_the_right_to_an_upward_vector_at_the_top():
    field = torch.zeros(2, 5, 5)
    field[0, 2, 4] = 1.0  # x component, right edge
    turned = rotate(field, math.pi / 2)
    expected = torch.zeros(2, 5, 5)
    expected[1, 0, 2] = -1.0  # up is negative y
    assert torch.equal(turned, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("quarters", range(-4, 9))
def test_quarter_turns_only_permute_and_are_exact(quarters, dtype):
    field = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    step_by_step = field
    for _ in range(quarters % 4):
        step_by_step = rotate(step_by_step, math.pi / 2)
    assert torch.equal(rotate(field, quarters * math.pi / 2), step_by_step)
    as_tensor = torch.full((3,), quarters * math.pi / 2, dtype=dtype)
    assert torch.equal(rotate(field, as_tensor), step_by_step)
    assert torch.equal(rotate(rotate(field, quarters * math.pi / 2), -quarters * math.pi / 2), field)


def test_each_field_of_a_batch_turns_by_its_own_angle():
    fields = torch.randn(4, 3, 2, 9, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    angles = torch.tensor([[0.0, 0.4, math.pi / 2]] * 4, dtype=torch.float64) + torch.arange(4)[:, None] * math.pi
    together = rotate(fields, angles)
    for i in range(4):
        for j in range(3):
            torch.testing.assert_close(together[i, j], rotate(fields[i, j], angles[i, j].item()), atol=1e-15, rtol=0)


def test_pixels_outside_the_array_count_as_zero():
    turned = rotate_pixels(torch.ones(1, 20, 20), math.pi / 4)
    assert turned[0, 0, 0] == 0
    assert turned[0, 10, 10] == pytest.approx(1)
    octagon = 2 * math.tan(math.pi / 8) * 20**2  # a square cut by itself turned by 45 degrees
    assert turned.sum().item() == pytest.approx(octagon, rel=0.01)


def test_rectangular_fields_turn_by_half_turns_and_odd_angles_but_not_by_quarter_turns():
    field = linear_field(np.array([[1.0, 0.5], [0.0, 2.0]]), height=5, width=9)
    assert torch.equal(rotate(field, math.pi), -field.rot90(2, (-2, -1)))
    R = rotation_matrix(0.1)
    expected = linear_field(R @ np.array([[1.0, 0.5], [0.0, 2.0]]) @ R.T, height=5, width=9)
    assert (rotate(field, 0.1) - expected)[:, 2, 3:6].abs().max() < LINEAR
    with pytest.raises(ValueError, match="must be square"):
        rotate(field, math.pi / 2)


def test_rotation_is_differentiable_in_field_and_angle():
    field = torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    angle = torch.tensor([0.37, 2.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotate, (field, angle))
    assert torch.autograd.gradcheck(lambda f: rotate(f, math.pi / 2), (field,))


@pytest.mark.parametrize(("axis", "mirror"), [("x", [-1.0, 1.0]), ("y", [1.0, -1.0])])
def test_a_mirrored_linear_field_has_the_mirrored_matrix_and_mirroring_twice_changes_nothing(axis, mirror):
    matrix, M = np.array([[0.3, -1.2], [0.7, 2.0]]), np.diag(mirror)
    field = linear_field(matrix, height=4, width=7)
    torch.testing.assert_close(flip(field, axis), linear_field(M @ matrix @ M, height=4, width=7), atol=1e-14, rtol=0)
    assert torch.equal(flip(flip(field, axis), axis), field)


def test_two_mirrorings_are_a_half_turn():
    field = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(4))
    assert torch.equal(flip(flip(field, "x"), "y"), rotate(field, math.pi))


def test_volumes_mirror_along_z():
    field = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(5))
    mirrored = flip(field, "z", spatial_dims=3)
    assert torch.equal(mirrored[2], -field[2].flip(0))
    assert torch.equal(mirrored[:2], field[:2].flip(1))


def test_magnitude_is_pythagoras_and_its_gradient_at_zero_is_zero():
    field = torch.zeros(2, 2, 2, dtype=torch.float64)
    field[:, 0, 0] = torch.tensor([3.0, -4.0])
    field.requires_grad_()
    length = magnitude(field)
    assert length[0, 0] == 5
    length.sum().backward()
    torch.testing.assert_close(field.grad[:, 0, 0], torch.tensor([0.6, -0.8], dtype=torch.float64))
    assert field.grad[:, 1, 1].abs().max() == 0
    assert magnitude(torch.ones(7, 3, 2, 4, 5), spatial_dims=3).shape == (7, 2, 4, 5)


def test_rotation_keeps_magnitude_and_turns_the_net_force():
    traction = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    turned = rotate(traction, math.pi / 2)
    assert torch.equal(magnitude(turned), magnitude(traction).rot90(1, (-2, -1)))
    force = net_force_nn(traction, pixel_size_um=0.5)
    expected = torch.tensor(rotation_matrix(math.pi / 2)) @ force
    torch.testing.assert_close(net_force_nn(turned, pixel_size_um=0.5), expected)


def test_force_and_energy_of_a_uniform_field_by_hand():
    traction = torch.zeros(2, 10, 10)
    traction[0] = 100.0  # Pa over 10 x 10 px of 2 um: 400 um^2
    displacement = torch.zeros(2, 10, 10)
    displacement[0] = 0.5
    force = net_force_nn(traction, pixel_size_um=2.0)
    torch.testing.assert_close(force, torch.tensor([40.0, 0.0]))  # 100 Pa * 400e-12 m^2 = 40 nN
    energy = strain_energy_fj(traction, displacement, pixel_size_um=2.0)
    torch.testing.assert_close(energy, torch.tensor(10.0))  # 40 nN * 0.5 um / 2 = 10 fJ


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rotate(torch.zeros(3, 4, 4), 0.1), r"\(\.\.\., 2, y, x\)"),
        (lambda: rotate(torch.zeros(5, 2, 4, 4), torch.zeros(3)), "angle_rad"),
        (lambda: rotate_pixels(torch.zeros(4, 4, dtype=torch.uint8), 0.1), "floating-point"),
        (lambda: flip(torch.zeros(2, 4, 4), "z"), "axis must be one of x, y"),
        (lambda: flip(torch.zeros(3, 4, 4), "x"), r"\(\.\.\., 2, y, x\)"),
        (lambda: magnitude(torch.zeros(2, 4, 4), spatial_dims=4), "spatial_dims"),
    ],
)
def test_wrong_shapes_and_names_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
