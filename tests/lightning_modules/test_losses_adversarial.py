"""The two games by hand, their gradients, and R1 of a discriminator whose gradient is known."""

import math

import pytest
import torch
from torch import nn

from lightning_modules.losses.adversarial import discriminator_loss, generator_loss, r1_penalty

REAL = torch.tensor([[0.5], [-1.0]], dtype=torch.float64)
FAKE = torch.tensor([[2.0], [0.0], [-3.0]], dtype=torch.float64)


def test_the_non_saturating_game_is_minus_the_mean_log_probability():
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    real = sum(-math.log(sigmoid(x)) for x in (0.5, -1.0)) / 2
    fake = sum(-math.log(1 - sigmoid(x)) for x in (2.0, 0.0, -3.0)) / 3
    loss = discriminator_loss(REAL, FAKE, game="nonsaturating")
    assert loss.item() == pytest.approx(real + fake, rel=1e-12)
    expected = sum(-math.log(sigmoid(x)) for x in (2.0, 0.0, -3.0)) / 3
    assert generator_loss(FAKE, game="nonsaturating").item() == pytest.approx(expected, rel=1e-12)


def test_the_least_squares_game_pulls_real_to_one_and_fake_to_zero():
    loss = discriminator_loss(REAL, FAKE, game="least_squares")
    assert loss.item() == pytest.approx((0.25 + 4.0) / 2 + (4.0 + 0.0 + 9.0) / 3)
    assert generator_loss(FAKE, game="least_squares").item() == pytest.approx((1.0 + 1.0 + 16.0) / 3)
    perfect = discriminator_loss(torch.ones(4), torch.zeros(4), game="least_squares")
    assert perfect == 0


@pytest.mark.parametrize("game", ["nonsaturating", "least_squares"])
def test_gradients_are_those_of_finite_differences(game):
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda r, f: discriminator_loss(r, f, game=game), (real, fake))
    assert torch.autograd.gradcheck(lambda f: generator_loss(f, game=game), (fake,))


@pytest.mark.parametrize("game", ["nonsaturating", "least_squares"])
def test_logits_of_half_precision_are_averaged_in_single(game):
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(1, 1, 30, 30, generator=generator).bfloat16() for _ in range(2))
    loss = discriminator_loss(real, fake, game=game), generator_loss(fake, game=game)
    exact = discriminator_loss(real.double(), fake.double(), game=game), generator_loss(fake.double(), game=game)
    for ours, reference in zip(loss, exact, strict=True):
        assert ours.dtype == torch.float32
        assert ours.item() == pytest.approx(reference.item(), rel=1e-6)


def test_a_certain_discriminator_still_teaches_the_generator():
    """What the non-saturating form is for: log(1 - D) would have no gradient left."""
    logits = torch.tensor([-40.0], requires_grad=True)
    generator_loss(logits, game="nonsaturating").backward()
    assert logits.grad.item() == pytest.approx(-1.0)


def test_an_unknown_game_is_refused():
    with pytest.raises(ValueError, match="game must be one of nonsaturating, least_squares, got 'wgan'"):
        discriminator_loss(REAL, FAKE, game="wgan")
    with pytest.raises(ValueError, match="game must be one of"):
        generator_loss(FAKE, game="wgan")


class Quadratic(nn.Module):
    """Logit w |x|^2 of an image x, whose gradient is 2 w x."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, image):
        return self.weight * image.square().flatten(1).sum(dim=1, keepdim=True)


def test_r1_is_half_the_mean_squared_gradient_and_teaches_the_discriminator():
    real = torch.randn(5, 2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    discriminator = Quadratic()
    penalty = r1_penalty(discriminator, real)
    power = real.square().sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(penalty, 0.5 * 4 * 9 * power)
    penalty.backward()
    torch.testing.assert_close(discriminator.weight.grad, 4 * 3 * power)  # d/dw of 2 w^2 power
    assert real.grad is None
