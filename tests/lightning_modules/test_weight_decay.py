"""Decay is for weights: not for biases, not for the scales of batch normalisation."""

import pytest
import torch
from torch import nn

from lightning_modules.losses.weight_decay import decay_weights_only


def network():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 2, 2), nn.Linear(4, 4))


def test_every_parameter_is_in_one_group_and_only_weights_decay():
    layers = network()
    decayed, others = decay_weights_only(layers, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    kernels = [layers[0].weight, layers[2].weight, layers[3].weight]
    assert [id(parameter) for parameter in decayed["params"]] == [id(parameter) for parameter in kernels]
    both = [id(parameter) for group in (decayed, others) for parameter in group["params"]]
    assert sorted(both) == sorted(id(parameter) for parameter in layers.parameters())


def test_a_step_without_gradient_shrinks_the_weights_alone():
    layers = network()
    for parameter in layers.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD(decay_weights_only(layers, 0.1), lr=0.5).step()
    for name, parameter in layers.named_parameters():
        expected = 1 - 0.5 * 0.1 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected), msg=name)


def test_negative_decay_is_refused():
    with pytest.raises(ValueError, match="weight_decay must not be negative"):
        decay_weights_only(network(), -0.1)
