"""The two forms of the mask-weighted L1 loss by hand, and over the images of a pyramid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.losses.translation import mask_weighted_l1, over_scales


def pair(size=4, error_inside=0.5, error_outside=0.25):
    """A nucleus of 2 x 2 pixels, off by one number inside and by another outside."""
    real = torch.zeros(1, 1, size, size, dtype=torch.float64)
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
    mask[..., :2, :2] = True
    return torch.where(mask, error_inside, -error_outside).to(real.dtype), real, mask


def test_both_forms_by_hand():
    """4 pixels of 16 are nucleus; every mean is over all 16."""
    generated, real, mask = pair()
    inside, outside = 4 * 0.5 / 16, 12 * 0.25 / 16
    text = mask_weighted_l1(generated, real, mask, alpha=10.0, form="text")
    code = mask_weighted_l1(generated, real, mask, alpha=10.0, form="code")
    assert text.item() == pytest.approx(10 * inside + outside, rel=1e-12)
    assert code.item() == pytest.approx(11 * inside + outside, rel=1e-12)


def test_the_weight_of_a_nucleus_does_not_depend_on_how_many_there_are():
    """A mean over the nuclei's own pixels would divide by their area."""
    one = mask_weighted_l1(*pair(error_outside=0.0), alpha=10.0, form="text")
    generated, _, mask = pair(error_outside=0.0)
    twice = torch.cat([generated, generated.flip(-1)[..., :2]], dim=-1)
    both = torch.cat([mask, mask.flip(-1)[..., :2]], dim=-1)
    two = mask_weighted_l1(twice, torch.zeros_like(twice), both, alpha=10.0, form="text")
    assert two.item() * 24 == pytest.approx(one.item() * 16, rel=1e-12)


@given(st.floats(0.0, 50.0))
@settings(deadline=None, max_examples=20)
def test_alpha_of_the_text_is_alpha_less_one_of_the_code(alpha):
    generated, real, mask = pair()
    text = mask_weighted_l1(generated, real, mask, alpha=alpha + 1, form="text")
    code = mask_weighted_l1(generated, real, mask, alpha=alpha, form="code")
    torch.testing.assert_close(text, code)


def test_gradients_are_those_of_finite_differences():
    generated, real, mask = pair()
    assert torch.autograd.gradcheck(
        lambda g: mask_weighted_l1(g, real, mask, alpha=10.0, form="code"), generated.requires_grad_()
    )


def test_one_image_of_full_size_is_the_plain_loss_whatever_the_colours():
    generated, real, mask = (part.expand(2, -1, -1, -1) for part in pair())
    colours = [part.expand(-1, 3, -1, -1) for part in (generated, real)]
    plain = mask_weighted_l1(generated, real, mask, alpha=10.0, form="code")
    torch.testing.assert_close(over_scales(colours[:1], colours[1], mask, alpha=10.0, form="code"), plain)


def test_smaller_images_are_compared_with_the_real_ones_averaged():
    _, real, mask = pair()
    real = real + mask  # 1 inside the nucleus
    small = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    small[..., 0, 0] = 0.6  # of 1, all nucleus; the other three are right
    full = real.clone()
    loss = over_scales([small, full], real, mask, alpha=10.0, form="text")
    assert loss.item() == pytest.approx((10 * 0.4 / 4 + 0.0) / 2, rel=1e-9)


def test_what_cannot_be_is_refused():
    generated, real, mask = pair()
    with pytest.raises(ValueError, match="form must be one of text, code, got 'paper'"):
        mask_weighted_l1(generated, real, mask, alpha=1.0, form="paper")
    with pytest.raises(ValueError, match="generated and real must have one shape"):
        mask_weighted_l1(generated[..., :2], real, mask, alpha=1.0, form="text")
