"""How far a generated image is from the real one, the nuclei counting more than the background.

Vasudevan, Zheng et al., PLOS ONE 0271056 (2022), methods, and the authors' code. With the mask M of the real nuclei,
    text   alpha mean |M (g - r)| + mean |(1 - M) (g - r)|        nuclei : background = alpha : 1
    code   alpha mean |M (g - r)| + mean |g - r|                  alpha + 1 : 1
and every mean over ALL pixels, as in TFill's code: a mean over the nuclei alone would weight them by the inverse of
their area. The text's display equations are not in the text at hand; its form is read from the sentences around them.

`over_scales` is the loss on every image of a generator's pyramid (the paper credits the smaller images with helping the
gradient back, the authors' code uses the last one only); ours: each is compared with the real image averaged to its
size, each pixel with the share of nucleus below it as M, and the losses are averaged.

"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional

FORMS = ("text", "code")
Form = Literal["text", "code"]


def mask_weighted_l1(generated: Tensor, real: Tensor, mask: Tensor, *, alpha: float, form: Form) -> Tensor:
    """Mask-weighted L1 loss () between images.

    Args:
        generated: (batch, channels, y, x), any unit.
        real: the same shape.
        mask: (batch, 1 or channels, y, x), bool or in [0, 1], 1 inside nuclei.
        alpha: weight of the nuclei.
        form: "text", 10:1 at alpha 10, or "code", 11:1.

    Raises:
        ValueError: an unknown form, or images of two shapes.

    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if generated.shape != real.shape:
        raise ValueError(f"generated and real must have one shape, got {tuple(generated.shape)}, {tuple(real.shape)}")
    inside = mask.to(generated.dtype)
    weight = 1 + (alpha - 1 if form == "text" else alpha) * inside
    return (weight * (generated - real).abs()).mean()


def over_scales(pyramid: Sequence[Tensor], real: Tensor, mask: Tensor, *, alpha: float, form: Form) -> Tensor:
    """Mean of `mask_weighted_l1` over images (batch, channels, y / k, x / k) of one pyramid, ()."""
    weights = mask.to(real.dtype)
    losses = []
    for image in pyramid:
        size = image.shape[-2:]
        small, share = (functional.adaptive_avg_pool2d(part, size) for part in (real, weights))
        losses.append(mask_weighted_l1(image, small, share, alpha=alpha, form=form))
    return sum(losses[1:], losses[0]) / len(losses)
