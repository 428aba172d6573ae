"""Eq. 1 by hand, against torch and by its minimum; the floor."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import LogNormal

from lightning_modules.losses.lognormal import (
    SIGMA_FLOOR,
    balanced,
    floored_variance,
    negative_log_likelihood,
    pixel_losses,
)

SETTINGS = settings(deadline=None, derandomize=True, max_examples=25)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mu, log_force = (torch.randn(2, *shape, generator=generator, dtype=torch.float64) + 3).unbind()
    sigma = torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.1
    return mu, sigma, log_force


def test_by_hand():
    mu, sigma, log_force = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]), torch.tensor([5.0, 0.0])
    by_hand = ((16 / 8 + math.log(4) / 2) + 0) / 2
    assert negative_log_likelihood(mu, sigma, log_force, sigma_floor=0).item() == pytest.approx(by_hand)
    assert negative_log_likelihood(mu, sigma, log_force).item() == pytest.approx(by_hand, rel=1e-5)


def test_without_floor_it_is_the_gaussian_likelihood_and_the_log_normal_one_up_to_its_constants():
    mu, sigma, log_force = drawn(2, 1, 5, 4)
    losses = pixel_losses(mu, sigma, log_force, sigma_floor=0)
    gaussian = nn.functional.gaussian_nll_loss(mu, log_force, sigma.square(), reduction="none")
    torch.testing.assert_close(losses, gaussian)
    density = LogNormal(mu, sigma).log_prob(log_force.exp())
    torch.testing.assert_close(losses, -density - log_force - math.log(2 * math.pi) / 2)


def test_gradients_are_right():
    arguments = [tensor.requires_grad_() for tensor in drawn(2, 3, 4)]
    assert torch.autograd.gradcheck(negative_log_likelihood, arguments)


@SETTINGS
@given(error=st.floats(0.01, 10), sigma=st.floats(0.01, 10))
def test_the_best_sigma_is_the_error(error, sigma):
    error, sigma, zero = (torch.tensor(value, dtype=torch.float64) for value in (error, sigma, 0.0))
    at_error = negative_log_likelihood(zero, error, error, sigma_floor=0)
    assert negative_log_likelihood(zero, sigma, error, sigma_floor=0) >= at_error - 1e-12


@SETTINGS
@given(shift=st.floats(-5, 5), seed=st.integers(0, 1000))
def test_a_change_of_the_unit_of_force_changes_nothing(shift, seed):
    mu, sigma, log_force = drawn(3, 4, seed=seed)
    torch.testing.assert_close(
        negative_log_likelihood(mu + shift, sigma, log_force + shift), negative_log_likelihood(mu, sigma, log_force)
    )


def test_the_floor_bounds_the_loss_and_keeps_a_gradient():
    sigma = torch.tensor([1e-9], requires_grad=True)
    exact = negative_log_likelihood(torch.zeros(1), sigma, torch.zeros(1))
    assert exact.item() == pytest.approx(math.log(SIGMA_FLOOR))
    wrong = negative_log_likelihood(torch.zeros(1), sigma, torch.tensor([0.1]))
    (gradient,) = torch.autograd.grad(wrong, sigma)
    assert gradient < 0  # sigma must grow
    assert gradient.isfinite()
    assert floored_variance(torch.tensor(3.0), sigma_floor=4.0).item() == 25


def test_bad_arguments_are_refused():
    one, two = torch.ones(1), torch.ones(2)
    with pytest.raises(ValueError, match="mu, sigma and log_force must have one shape"):
        negative_log_likelihood(one, two, two)
    for floor in (-1.0, math.nan):
        with pytest.raises(ValueError, match="sigma_floor must not be negative"):
            negative_log_likelihood(one, one, one, sigma_floor=floor)


@SETTINGS
@given(beta=st.floats(0, 1), seed=st.integers(0, 1000))
def test_balancing_scales_every_pixels_pull_and_moves_no_optimum(beta, seed):
    mu, sigma, log_force = (tensor.requires_grad_() for tensor in drawn(3, 4, seed=seed))
    plain = torch.autograd.grad(pixel_losses(mu, sigma, log_force, sigma_floor=0).sum(), (mu, sigma))
    losses = pixel_losses(mu, sigma, log_force, sigma_floor=0)
    scaled = torch.autograd.grad(balanced(losses, sigma.square(), beta=beta).sum(), (mu, sigma))
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other, one * sigma.detach() ** (2 * beta))
    assert balanced(losses, sigma.square(), beta=0) is losses
    with pytest.raises(ValueError, match="beta must lie in"):
        balanced(losses, sigma.square(), beta=beta + 1.001)
