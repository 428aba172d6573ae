"""Direction losses: eqs. 1-8 by hand, gradients, symmetries, and the nine configurations of Table 3."""

import math

import numpy as np
import pytest
import torch

from lightning_modules.figures.circular import TABLE_3_ORDER
from lightning_modules.losses import direction
from lightning_modules.losses.direction import AS_CODED, CONFIGURATIONS, configuration_named

TAU = 2 * math.pi
ANGLE_LOSSES = ["linear", "linear_squared", "cyclic", "cyclic_squared", "cosine", "cosine_degrees"]
POINT_LOSSES = ["distance", "distance_squared", "mse"]


def rad(*degrees):
    return torch.tensor(degrees, dtype=torch.float64).deg2rad()


def random_angles(count=16):
    return torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * TAU


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", math.radians((358 + 90) / 2)),
        ("linear_squared", math.radians(1) ** 2 * (358**2 + 90**2) / 2),
        ("cyclic", math.radians((2 + 90) / 2)),
        ("cyclic_squared", math.radians(1) ** 2 * (2**2 + 90**2) / 2),
        ("cosine", -(math.cos(math.radians(2)) + 0) / 2),
        ("cosine_degrees", -(math.cos(358) + math.cos(90)) / 2),
    ],
)
def test_angle_losses_by_hand_for_359_against_1_and_100_against_10_degrees(name, expected):
    loss = getattr(direction, name)(rad(359, 100), rad(1, 10))
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", POINT_LOSSES)
def test_point_losses_by_hand(name):
    prediction = torch.tensor([[1.0, 2.0], [0.5, 0.0]], dtype=torch.float64)
    target = torch.tensor([[-1.0, 0.25], [0.0, -0.25]], dtype=torch.float64)
    sums = np.array([3.75, 0.75])
    squares = np.array([2.0**2 + 1.75**2, 0.5**2 + 0.25**2])
    by_numpy = {"distance": sums.mean(), "distance_squared": (sums**2).mean(), "mse": squares.mean() / 2}[name]
    loss = getattr(direction, name)(prediction, target)
    assert loss.item() == pytest.approx(by_numpy, abs=1e-15)


def test_printed_and_coded_squares_differ_by_the_cross_term():
    prediction, target = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    assert direction.distance_squared(prediction, target) == 49
    assert direction.mse(prediction, target) == 12.5


@pytest.mark.parametrize("name", ANGLE_LOSSES + POINT_LOSSES)
def test_gradients_agree_with_finite_differences(name):
    generator = torch.Generator().manual_seed(3)
    shape = (5,) if name in ANGLE_LOSSES else (5, 2)
    # small numbers: away from the kinks at half a turn, and differences in degrees that finite steps can follow
    prediction = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
    target = -torch.rand(shape, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(getattr(direction, name), (prediction.requires_grad_(), target), eps=1e-7)


@pytest.mark.parametrize("name", ["cyclic", "cyclic_squared", "cosine"])
def test_cycle_sensitive_losses_do_not_see_full_turns_or_common_rotations(name):
    loss = getattr(direction, name)
    a, b = random_angles(), random_angles().flip(0)
    plain = loss(a, b)
    torch.testing.assert_close(loss(a + TAU, b - 2 * TAU), plain, atol=1e-12, rtol=0)
    torch.testing.assert_close(loss(a + 1.3, b + 1.3), plain, atol=1e-12, rtol=0)
    torch.testing.assert_close(loss(b, a), plain, atol=1e-12, rtol=0)


def test_linear_losses_see_the_seam_at_zero():
    assert direction.linear(rad(359), rad(1)) > 100 * direction.cyclic(rad(359), rad(1))


@pytest.mark.parametrize("name", POINT_LOSSES)
def test_point_losses_keep_their_value_when_both_points_turn_by_90_degrees(name):
    a, b = torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    loss = getattr(direction, name)
    torch.testing.assert_close(loss(a @ quarter.T, b @ quarter.T), loss(a, b))


def test_cosine_is_the_von_mises_log_likelihood_up_to_scale_and_offset():
    prediction, target, concentration = random_angles(), random_angles().flip(0), 3.0
    von_mises = torch.distributions.VonMises(prediction, torch.tensor(concentration, dtype=torch.float64))
    offset = math.log(TAU * np.i0(concentration))
    expected = -(von_mises.log_prob(target).mean() + offset) / concentration
    torch.testing.assert_close(direction.cosine(prediction, target), expected, atol=1e-8, rtol=0)


def test_activations_are_those_of_eqs_1_and_2():
    x = torch.tensor([-7.0, -0.1, 0.0, 1.0, 40.0], dtype=torch.float64)
    np.testing.assert_allclose(direction.phi_cyclic(x), np.mod(x.numpy(), TAU), atol=1e-14)
    e = np.exp(x.numpy())
    np.testing.assert_allclose(direction.phi_sigmoid(x), (e - 1) / (e + 1), atol=1e-14)
    assert direction.phi_identity(x) is x
    np.testing.assert_allclose(direction.phi_cyclic_degrees(x), np.radians(np.mod(x.numpy(), 360)), atol=1e-14)


def test_cyclic_outputs_pass_gradients_unchanged():
    x = torch.linspace(-20, 20, 9, dtype=torch.float64, requires_grad=True)
    direction.phi_cyclic(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_coded_cosine_sees_raw_outputs_as_degrees():
    raw = torch.tensor([[10.0], [370.0]], dtype=torch.float64)
    coded = AS_CODED["angle-cyclic-cosine_degrees"]
    loss = coded.loss(coded.activate(raw), coded.encode(rad(4, 4)))
    assert loss.item() == pytest.approx(-math.cos(6.0), abs=1e-9)


def test_table_3_has_exactly_nine_configurations_in_its_order():
    assert len(CONFIGURATIONS) == 9
    assert tuple(CONFIGURATIONS) == TABLE_3_ORDER
    assert [entry.outputs for entry in CONFIGURATIONS.values()] == [1] * 5 + [2] * 4
    assert not set(AS_CODED) & set(CONFIGURATIONS)
    for name, entry in {**CONFIGURATIONS, **AS_CODED}.items():
        encoding, activation, loss = name.split("-")
        assert encoding == ("angle" if entry.outputs == 1 else "circle")
        assert entry.activation.__name__.startswith(f"phi_{activation}")
        assert entry.loss.__name__ == loss


@pytest.mark.parametrize("name", [*CONFIGURATIONS, *AS_CODED])
def test_every_configuration_decodes_what_it_encodes_and_its_loss_is_least_there(name):
    entry = configuration_named(name)
    angle = random_angles()
    encoded = entry.encode(angle)
    torch.testing.assert_close(entry.decode(encoded), angle, atol=1e-12, rtol=0)
    assert entry.loss(encoded, encoded) <= entry.loss(encoded + 0.03, encoded)
    assert entry.decode(entry.activate(torch.randn(16, entry.outputs))).shape == (16,)


def test_points_are_projected_to_the_circle_before_they_are_read():
    entry = CONFIGURATIONS["circle-identity-distance"]
    decoded = entry.decode(torch.tensor([[0.0, -0.2], [-7.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(decoded, rad(270, 180, 0))


def test_unknown_configurations_are_refused_with_the_list():
    with pytest.raises(ValueError, match=r"configuration must be one of angle-cyclic-linear, .*got 'angle-linear'"):
        configuration_named("angle-linear")
