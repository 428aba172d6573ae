"""Gradient clipping tensor by tensor, as MATLAB's GradientThreshold does with its default method "l2norm".

Wang, Lin, Biophys J 120:3079 (2021) train with a threshold of 1 (train/trainTracnet.m). Lightning's and torch's
clipping by norm measure all parameters together, which is a different step: there one large gradient shrinks all.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip_each_tensor_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale every gradient whose own L2 norm exceeds `max_norm` down to that norm, in place; leave the others alone.

    Args:
        parameters: parameters (or one, as a list); those without a gradient are passed over.
        max_norm: positive.

    Returns:
        The norms before clipping, (parameters with a gradient,). Infinity in a gradient becomes NaN.

    Raises:
        ValueError: `max_norm` is not positive.

    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    for gradient, norm in zip(gradients, norms, strict=True):
        gradient.mul_((max_norm / norm).clamp(max=1).to(gradient.dtype))
    return torch.stack(norms) if norms else torch.zeros(0)
