"""Output activations and losses for a direction, and the nine configurations of them that the paper compares.

Bruns, Lamparter, Galic, Jiang, "Single Image Estimation of Cell Migration Direction by Deep Circular Regression",
arXiv 2406.19162 (2024), eqs. 1-8 and Table 3. Angles are radians; points are (..., 2) = (cos, sin). Every loss is the
mean over the batch.

Where the authors' code differs from their text, the text's formula has the plain name and the code's its own:
    text: (|dx| + |dy|)^2 (eq. 8)          `distance_squared`    code: mean of dx^2 and dy^2            `mse`
    text: -cos(a - b), radians (eq. 6)     `cosine`              code: cosine of a number of degrees    `cosine_degrees`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from physics.angles import angular_difference, direction_of, unit_vector, wrap

FULL_TURN_DEG = 360.0


def phi_cyclic(x: Tensor) -> Tensor:
    """Take x mod 2 pi (eq. 1), in [0, 2 pi) for negative x too; the gradient is 1 although the value jumps."""
    return wrap(x)


def phi_cyclic_degrees(x: Tensor) -> Tensor:
    """Take x mod 360 as degrees, returned in radians: eq. 1 as the authors coded it."""
    return torch.deg2rad(torch.remainder(x, FULL_TURN_DEG))


def phi_identity(x: Tensor) -> Tensor:
    """The output itself (eq. 2)."""
    return x


def phi_sigmoid(x: Tensor) -> Tensor:
    """(e^x - 1) / (e^x + 1) = tanh(x / 2) (eq. 2), in (-1, 1): not the logistic function."""
    return torch.tanh(x / 2)


def linear(prediction_rad: Tensor, target_rad: Tensor) -> Tensor:
    """Mean |a - b| (eq. 3), blind to the circle: 359 degrees against 1 costs 358."""
    return (prediction_rad - target_rad).abs().mean()


def linear_squared(prediction_rad: Tensor, target_rad: Tensor) -> Tensor:
    """Mean (a - b)^2 (eq. 3)."""
    return (prediction_rad - target_rad).square().mean()


def cyclic(prediction_rad: Tensor, target_rad: Tensor) -> Tensor:
    """Mean min(|a - b|, 2 pi - |a - b|) (eq. 4)."""
    return angular_difference(prediction_rad, target_rad).abs().mean()


def cyclic_squared(prediction_rad: Tensor, target_rad: Tensor) -> Tensor:
    """Mean square of the shorter arc (eq. 5)."""
    return angular_difference(prediction_rad, target_rad).square().mean()


def cosine(prediction_rad: Tensor, target_rad: Tensor) -> Tensor:
    """Mean -cos(a - b) (eqs. 6 and 12): maximum likelihood of a von Mises distribution of fixed concentration."""
    return -torch.cos(prediction_rad - target_rad).mean()


def cosine_degrees(prediction_rad: Tensor, target_rad: Tensor) -> Tensor:
    """Mean -cos of the difference *in degrees*, as the authors coded eq. 6; it has a minimum every 6.28 degrees."""
    return -torch.cos(torch.rad2deg(prediction_rad) - torch.rad2deg(target_rad)).mean()


def distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean |x1 - x2| + |y1 - y2| over points (..., 2) (eq. 7)."""
    return (prediction - target).abs().sum(dim=-1).mean()


def distance_squared(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean (|x1 - x2| + |y1 - y2|)^2 over points (..., 2) (eq. 8 as printed)."""
    return (prediction - target).abs().sum(dim=-1).square().mean()


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of (x1 - x2)^2 and (y1 - y2)^2 over coordinates and points: eq. 8 as the authors coded it."""
    return (prediction - target).square().mean()


class Configuration(NamedTuple):
    """One row of Table 3: how many outputs, their activation, and the loss."""

    outputs: int
    """1 for an angle, 2 for a point on the circle (section 2.1)."""
    activation: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]

    def activate(self, raw: Tensor) -> Tensor:
        """Network outputs (batch, outputs) -> what the loss compares: radians (batch,) or points (batch, 2)."""
        return self.activation(raw.squeeze(-1) if self.outputs == 1 else raw)

    def encode(self, angle_rad: Tensor) -> Tensor:
        """True angles (batch,) in radians -> angles (batch,) or points on the circle (batch, 2)."""
        return angle_rad if self.outputs == 1 else unit_vector(angle_rad)

    def decode(self, activated: Tensor) -> Tensor:
        """What `activate` returned -> radians (batch,) in [0, 2 pi), for points their direction ((0, 0) gives 0)."""
        return wrap(activated) if self.outputs == 1 else direction_of(activated)


CONFIGURATIONS: Mapping[str, Configuration] = {
    "angle-cyclic-linear": Configuration(1, phi_cyclic, linear),
    "angle-cyclic-linear_squared": Configuration(1, phi_cyclic, linear_squared),
    "angle-cyclic-cyclic": Configuration(1, phi_cyclic, cyclic),
    "angle-cyclic-cyclic_squared": Configuration(1, phi_cyclic, cyclic_squared),
    "angle-cyclic-cosine": Configuration(1, phi_cyclic, cosine),
    "circle-identity-distance": Configuration(2, phi_identity, distance),
    "circle-identity-distance_squared": Configuration(2, phi_identity, distance_squared),
    "circle-sigmoid-distance": Configuration(2, phi_sigmoid, distance),
    "circle-sigmoid-distance_squared": Configuration(2, phi_sigmoid, distance_squared),
}
"""The nine rows of Table 3 in its order, named encoding-activation-loss; the last is the one the paper chose."""

AS_CODED: Mapping[str, Configuration] = {
    "angle-cyclic-cosine_degrees": Configuration(1, phi_cyclic_degrees, cosine_degrees),
    "circle-sigmoid-mse": Configuration(2, phi_sigmoid, mse),
}
"""What the authors' code computes in place of rows 5 and 9."""


def configuration_named(name: str) -> Configuration:
    """The configuration of that name, from Table 3 or as coded; ValueError lists the names that exist."""
    known = {**CONFIGURATIONS, **AS_CODED}
    if name not in known:
        raise ValueError(f"configuration must be one of {', '.join(known)}, got {name!r}")
    return known[name]
