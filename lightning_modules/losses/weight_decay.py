"""Which parameters an L2 penalty or decoupled decay may touch."""

from __future__ import annotations

from typing import Any

from torch import nn


def decay_weights_only(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: weights with decay; biases and batch normalisation without (MATLAB's rule).

    Raises:
        ValueError: `weight_decay` is negative.

    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
