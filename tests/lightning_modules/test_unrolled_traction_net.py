"""Our network and its elastic operator: what each step sees, what the amplitude does, and what operator is used."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_modules.networks import tiling
from lightning_modules.networks.elastic_operator import WIDE_BLUR, WIDE_SHARE, ElasticOperator
from lightning_modules.networks.unrolled_traction_net import REGULARIZATIONS, UnrolledTractionNet
from physics.half_space import displacement_from_traction
from physics.traction_cytometry import traction_from_displacement

SETTINGS = settings(deadline=None, derandomize=True, max_examples=5)
SUBSTRATE = {"pixel_size_um": 1.925, "youngs_modulus_pa": 10670.0, "poisson_ratio": 0.3}
BLUR = torch.tensor([0.2, 0.6, 0.2])
FLOAT32 = 1e-5


def alike(count, poisson_ratio=0.3, centre_element="exact", reach="full", transfer_function=None):
    """One operator for all fields of a batch."""
    return ElasticOperator(
        [poisson_ratio] * count, [centre_element] * count, [reach] * count, transfer_function=transfer_function
    )


OPERATORS = [alike(2), alike(2, 0.3, "published", "published"), alike(2, transfer_function=BLUR)]
PUBLISHED = alike(2, 0.45, "published", "published")
ALONE = alike(1, 0.45, "published", "published")


def field(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awake(**shape):
    """A network whose last layers, which start at zero, answer something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UnrolledTractionNet(**{"width": 4, "depth": 2, **shape})
        for unet in (network.first, *network.corrections):
            nn.init.normal_(unet.last.weight, std=0.1)
    return network


def close(one, other, tolerance=FLOAT32):
    assert (one - other).abs().max() <= tolerance * other.abs().max()


# -- the operator -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_operator_is_that_of_the_physics_in_pixels_and_parts_of_youngs_modulus(operator):
    traction = field(2, 2, 16, 16)
    options = {
        "centre_element": operator.centre_element[0],
        "reach": operator.reach[0],
        "transfer_function": operator.transfer_function,
    }
    expected = displacement_from_traction(traction * SUBSTRATE["youngs_modulus_pa"], **SUBSTRATE, **options)
    close(operator.displacement(traction) * SUBSTRATE["pixel_size_um"], expected)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_inverses_are_those_of_the_physics_one_after_the_other(operator):
    displacement, strengths = field(2, 2, 16, 16), (0.0, 0.5)
    inverses = operator.inverses(displacement, strengths)
    assert inverses.shape == (2, 4, 16, 16)
    scale = SUBSTRATE["pixel_size_um"] / SUBSTRATE["youngs_modulus_pa"]  # from px E to um / Pa
    for number, strength in enumerate(strengths):
        expected = traction_from_displacement(
            displacement * SUBSTRATE["pixel_size_um"],
            **SUBSTRATE,
            regularization=strength * scale**2,
            transfer_function=operator.transfer_function,
        )
        close(inverses[:, 2 * number : 2 * number + 2] * SUBSTRATE["youngs_modulus_pa"], expected)


def test_every_field_has_an_operator_of_its_own():
    traction = field(4, 2, 16, 16)
    mixed = ElasticOperator(
        [0.45, 0.3, 0.45, 0.45],
        ["published", "exact", "exact", "published"],
        ["published", "full", "full", "published"],
    )
    answers = mixed.displacement(traction), mixed.inverses(traction, REGULARIZATIONS)
    for number in range(4):
        one = ElasticOperator(*([part[number]] for part in mixed[:3]))
        chosen = traction[number : number + 1]
        close(answers[0][number], one.displacement(chosen)[0])
        close(answers[1][number], one.inverses(chosen, REGULARIZATIONS)[0])


def test_fields_that_share_an_operator_are_computed_together_and_put_back_in_their_order():
    calls = []

    def compute(one, other, *, poisson_ratio, **operator):
        calls.append((poisson_ratio, len(one)))
        return one + other + poisson_ratio

    ratios = torch.tensor([0.45, 0.5, 0.3, 0.45])
    numbers = torch.arange(4.0)
    mixed = ElasticOperator(ratios.tolist(), ["exact"] * 4, ["full"] * 4)
    torch.testing.assert_close(mixed.each(compute, numbers, numbers), 2 * numbers + ratios)
    assert calls == [(0.45, 2), (0.5, 1), (0.3, 1)]  # .45 as it was meant, not as float32 holds it
    calls.clear()
    alike(4, 0.45).each(compute, numbers, numbers)
    assert calls == [(0.45, 4)]


def test_half_precision_around_the_operator_does_not_reach_it():
    traction = field(2, 2, 16, 16)
    expected = PUBLISHED.displacement(traction), PUBLISHED.inverses(traction, REGULARIZATIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = PUBLISHED.displacement(traction), PUBLISHED.inverses(traction, REGULARIZATIONS)
    assert all(
        one.dtype == torch.float32 and torch.equal(one, other) for one, other in zip(seen, expected, strict=True)
    )


def test_operators_are_drawn_within_their_ranges_and_half_the_time_not_at_all():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [PUBLISHED.drawn((104, 104)) for _ in range(400)]
        torch.manual_seed(0)
        again = PUBLISHED.drawn((104, 104))
        torch.manual_seed(0)
        oblong = [PUBLISHED.drawn((104, 96)) for _ in range(50)]
    assert (again.centre_element, again.reach) == (drawn[0].centre_element, drawn[0].reach)
    assert {reach for other in oblong if other is not PUBLISHED for reach in other.reach} == {"full"}
    assert sum(other is PUBLISHED for other in drawn) == pytest.approx(200, abs=40)
    others = [other for other in drawn if other is not PUBLISHED]
    assert {(*other.centre_element, *other.reach) for other in others} == {
        (centre, centre, reach, reach) for centre in ("exact", "published") for reach in ("full", "published")
    }
    assert all(0.3 <= ratio <= 0.5 for other in others for ratio in other.poisson_ratio)
    assert len({other.poisson_ratio[0] for other in others}) > 10
    kernels = [other.transfer_function for other in others if other.transfer_function is not None]
    assert 0 < len(kernels) < len(others)
    for kernel in kernels:
        assert kernel.sum().item() == pytest.approx(1)
        assert kernel[0] == kernel[2]
        assert 0 < kernel[0] <= 0.25
    wide = sum(kernel[0].item() > WIDE_BLUR for kernel in kernels)
    assert wide / len(kernels) == pytest.approx(WIDE_SHARE + (1 - WIDE_SHARE) * (1 - WIDE_BLUR / 0.25), abs=0.1)


def test_another_operator_would_have_measured_its_own_displacement_under_the_same_noise():
    traction, noise = field(2, 2, 16, 16), 0.1 * field(2, 2, 16, 16, seed=1)
    other = alike(2, 0.45, transfer_function=BLUR)
    measured = PUBLISHED.displacement(traction) + noise
    close(PUBLISHED.measured_by(other, measured, traction), other.displacement(traction) + noise)
    assert PUBLISHED.measured_by(PUBLISHED, measured, traction) is measured


# -- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_network_has_a_unet_for_every_step(steps):
    """The plain U-Net of width 16 has 629,490 parameters; every further input channel has 9 x 16 weights."""
    network = UnrolledTractionNet(steps=steps)
    unet = 629_490
    inverses, displacement, traction, blur = 2 * len(REGULARIZATIONS), 2, 2, 1
    first = unet + 9 * 16 * (inverses + displacement + blur - 2)
    further = unet + 9 * 16 * (traction + inverses + displacement + blur - 2)
    assert sum(parameter.numel() for parameter in network.parameters()) == first + steps * further


def test_an_untrained_network_answers_nothing():
    estimates = UnrolledTractionNet(steps=2, width=4, depth=2).estimates(field(2, 2, 16, 16), PUBLISHED)
    assert len(estimates) == 3
    assert all(estimate.abs().max() == 0 for estimate in estimates)


def test_each_step_sees_the_estimate_the_inverses_of_what_is_left_and_what_is_left():
    network, displacement, seen = awake(steps=2), field(2, 2, 16, 16), []
    answer = network(displacement, PUBLISHED)
    for unet in (network.first, *network.corrections):
        unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    estimates = network.estimates(displacement, PUBLISHED)
    assert torch.equal(answer, estimates[-1])
    rms = displacement.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    inverses = 2 * len(REGULARIZATIONS)
    close(seen[0][:, :inverses], PUBLISHED.inverses(displacement / rms, REGULARIZATIONS))
    close(seen[0][:, inverses:-1], displacement / rms)
    assert all(known[:, -1].abs().max() == 0 for known in seen)  # of a perfect measurement
    for known, estimate in zip(seen[1:], estimates[:-1], strict=True):
        left = displacement - displacement_from_traction(
            estimate, pixel_size_um=1.0, youngs_modulus_pa=1.0, poisson_ratio=0.45, centre_element="published",
            reach="published",
        )  # fmt: skip
        close(known[:, :2], estimate / rms)
        close(known[:, 2:-3], PUBLISHED.inverses(left / rms, REGULARIZATIONS))
        close(known[:, -3:-1], left / rms)


def test_the_networks_are_told_how_much_the_measurement_blurs():
    assert [operator.blur_px2() for operator in OPERATORS] == pytest.approx([0, 0, 0.4])
    assert alike(1, transfer_function=torch.outer(BLUR, BLUR)).blur_px2() == pytest.approx(0.4)
    network, seen = awake(steps=1), []
    for unet in (network.first, *network.corrections):
        unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(field(2, 2, 16, 16), OPERATORS[2])
    assert len(seen) == 2
    for known in seen:
        torch.testing.assert_close(known[:, -1], torch.full((2, 16, 16), 0.8))


def test_the_same_weights_serve_another_operator():
    network, displacement = awake(steps=1), field(2, 2, 16, 16)
    answers = [network(displacement, operator) for operator in (PUBLISHED, *OPERATORS)]
    for number, answer in enumerate(answers):
        for other in answers[:number]:
            assert (answer - other).abs().max() > 1e-4 * answer.abs().max()


@SETTINGS
@given(exponent=st.floats(-8, 8), seed=st.integers(0, 100))
def test_the_answer_is_proportional_to_the_amplitude_of_each_field(exponent, seed):
    network, displacement, factor = awake(steps=1), field(2, 2, 8, 8, seed=seed), 10.0**exponent
    scaled = torch.stack((displacement[0] * factor, displacement[1]))
    answer, expected = network(scaled, PUBLISHED), network(displacement, PUBLISHED)
    close(answer[0], factor * expected[0], 1e-4)
    close(answer[1], expected[1], 1e-4)


def test_no_displacement_is_answered_with_no_traction():
    network = awake(steps=1)
    answer = network(torch.zeros(1, 2, 8, 8), ALONE)
    assert answer.abs().max() == 0
    answer.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_any_size_is_answered_and_the_gradient_reaches_every_weight():
    network = awake(steps=1)
    answer = network(field(1, 2, 11, 18), alike(1))
    assert answer.shape == (1, 2, 11, 18)
    answer.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_fewer_than_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        UnrolledTractionNet(steps=-1)


@pytest.mark.parametrize("size", [(72, 72), (45, 90)])
def test_a_large_field_in_tiles_is_the_same_as_in_one_piece(size, monkeypatch):
    network, calls = awake(steps=2, depth=1).eval(), []
    for unet in (network.first, *network.corrections):
        unet.encoders[0].register_forward_hook(lambda *_: calls.append(1))
    displacement = field(1, 2, *size)
    with torch.no_grad():
        whole = network(displacement, alike(1))
        assert len(calls) == 3
        monkeypatch.setattr(tiling, "WHOLE_PX", 40)
        monkeypatch.setattr(tiling, "TILE_PX", 24)
        close(network(displacement, alike(1)), whole)
    assert len(calls) > 3 + 3 * 4
