"""What a generator and a discriminator play for: the non-saturating game, the least-squares game, and R1.

Goodfellow et al., NeurIPS 2014 (non-saturating form), which TFill (Zheng et al., CVPR 2022) takes in StyleGAN2's
softplus form and pix2pix as binary cross entropy, the same numbers; Mao et al., ICCV 2017 (least squares), for
CycleGAN; Mescheder, Geiger, Nowozin, ICML 2018, eq. 9 (R1), off in the published runs. With logits d, f over all of
their entries:
    nonsaturating   D: mean softplus(-d_real) + mean softplus(d_fake)      G: mean softplus(-d_fake)
    least_squares   D: mean (d_real - 1)^2 + mean d_fake^2                 G: mean (d_fake - 1)^2
pix2pix and CycleGAN halve the discriminator's loss; that factor is the caller's. Logits of half precision are taken to
single precision first.

"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

GAMES = ("nonsaturating", "least_squares")
Game = Literal["nonsaturating", "least_squares"]


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, *, game: Game) -> Tensor:
    """Loss () of a discriminator whose logits, of any shape, are to be high for real and low for generated images.

    >>> round(float(discriminator_loss(torch.zeros(2), torch.zeros(2), game="nonsaturating")), 4)  # 2 ln 2
    1.3863

    Raises:
        ValueError: an unknown game.

    """
    real, fake = _whole(real_logits), _whole(fake_logits)
    if _named(game) == "least_squares":
        return (real - 1).square().mean() + fake.square().mean()
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def generator_loss(fake_logits: Tensor, *, game: Game) -> Tensor:
    """Loss () of a generator whose images the discriminator gives these logits; ValueError for an unknown game."""
    fake = _whole(fake_logits)
    if _named(game) == "least_squares":
        return (fake - 1).square().mean()
    return functional.softplus(-fake).mean()


def r1_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """Half the mean over images of |gradient of the logit with respect to a real image|^2, (), differentiable.

    R1 is gamma times this; applied in every k-th step only ("lazily"), gamma k times it.
    """
    image = real.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(image).sum(), image, create_graph=True)
    return 0.5 * gradient.square().sum(dim=(1, 2, 3)).mean()


def _whole(logits: Tensor) -> Tensor:
    """Half precision to single; others as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _named(game: str) -> str:
    if game not in GAMES:
        raise ValueError(f"game must be one of {', '.join(GAMES)}, got {game!r}")
    return game
