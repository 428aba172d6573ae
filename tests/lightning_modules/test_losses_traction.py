"""Traction losses and the clipping of single tensors: by hand, by gradcheck, and against what each must ignore."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_modules.losses.tensor_clipping import clip_each_tensor_
from lightning_modules.losses.traction import relative_error, summed_squared_error
from lightning_modules.metrics.traction import nrmse

SETTINGS = settings(deadline=None, derandomize=True, max_examples=25)


def fields(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_summed_squared_error_by_hand():
    prediction, target = torch.zeros(2, 2, 1, 3), torch.zeros(2, 2, 1, 3)
    prediction[0, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
    target[1, 1, 0, 2] = -4
    assert summed_squared_error(prediction, target).item() == pytest.approx((14 / 2 + 16 / 2) / 2)


def test_summed_squared_error_is_21632_halves_of_a_mean_at_104_pixels():
    prediction, target = fields(3, 2, 104, 104)
    mean = nn.functional.mse_loss(prediction, target)
    assert summed_squared_error(prediction, target).item() == pytest.approx(21_632 / 2 * mean.item())


def test_summed_squared_error_has_the_difference_as_gradient():
    prediction, target = fields(4, 2, 3, 5)
    prediction.requires_grad_()
    summed_squared_error(prediction, target).backward()
    torch.testing.assert_close(prediction.grad, (prediction.detach() - target) / 4)


def test_relative_error_by_hand():
    target = torch.zeros(2, 2, 1, 2)
    target[0, :, 0, 0] = torch.tensor([3.0, 4.0])
    target[1, 0, 0, 1] = 10.0
    assert relative_error(0.9 * target, target).item() == pytest.approx(0.1)
    prediction = target.clone()
    prediction[1, 1, 0, 0] = 5.0
    assert relative_error(prediction, target).item() == pytest.approx((0 + 0.5) / 2)
    right = torch.tensor([[False, True]])
    assert relative_error(prediction, target, right).item() == 0  # the first field has nothing there
    with pytest.raises(ValueError, match="mask must be bool"):
        relative_error(prediction, target, right.float())


def test_relative_error_is_the_mean_of_the_metric():
    prediction, target = fields(5, 2, 7, 6)
    mask = fields(5, 7, 6, seed=3)[0] > 0
    torch.testing.assert_close(relative_error(prediction, target, mask), nrmse(prediction, target, mask).mean())


@SETTINGS
@given(exponents=st.lists(st.floats(-6, 6), min_size=3, max_size=3), seed=st.integers(0, 1000))
def test_relative_error_weighs_weak_and_strong_cells_alike(exponents, seed):
    prediction, target = fields(3, 2, 4, 5, seed=seed)
    factor = torch.tensor([10.0**e for e in exponents], dtype=torch.float64).reshape(3, 1, 1, 1)
    torch.testing.assert_close(relative_error(factor * prediction, factor * target), relative_error(prediction, target))


def test_fields_without_traction_are_left_out_with_a_clean_gradient():
    prediction, target = fields(3, 2, 4, 5)
    target[1] = 0
    prediction[2] = target[2]  # a perfect field: the norm has a corner there
    prediction.requires_grad_()
    loss = relative_error(prediction, target)
    assert loss.item() == pytest.approx(((prediction[0] - target[0]).norm() / target[0].norm()).item() / 2)
    loss.backward()
    assert prediction.grad.isfinite().all()
    assert prediction.grad[0].abs().max() > 0
    assert prediction.grad[1].abs().max() == 0
    nothing = relative_error(prediction, torch.zeros_like(target))
    assert nothing.item() == 0
    assert nothing.requires_grad


def test_a_broken_prediction_is_seen():
    prediction, target = fields(2, 2, 3, 3)
    prediction[0, 0, 0, 0] = torch.nan
    assert relative_error(prediction, target).isnan()
    assert summed_squared_error(prediction, target).isnan()


@pytest.mark.parametrize("loss", [summed_squared_error, relative_error])
def test_gradients_are_right(loss):
    prediction, target = fields(2, 2, 3, 4)
    assert torch.autograd.gradcheck(loss, (prediction.requires_grad_(), target.requires_grad_()))


def test_masked_gradients_are_right():
    prediction, target = fields(2, 2, 3, 4)
    mask = fields(2, 3, 4, seed=1)[0] > 0
    assert torch.autograd.gradcheck(lambda p: relative_error(p, target, mask), prediction.requires_grad_())


@pytest.mark.parametrize("loss", [summed_squared_error, relative_error])
def test_losses_refuse_other_shapes(loss):
    with pytest.raises(ValueError, match="one shape"):
        loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 4))
    with pytest.raises(ValueError, match="one shape"):
        loss(torch.zeros(1, 3, 3, 3), torch.zeros(1, 3, 3, 3))


def with_gradients(*gradients):
    parameters = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return parameters


def test_each_tensor_is_clipped_by_its_own_norm():
    parameters = with_gradients([3.0, 4.0], [0.6, 0.8], [0.3, 0.4], [0.0, 0.0])
    without = nn.Parameter(torch.zeros(2))
    norms = clip_each_tensor_(iter([without, *parameters]), 1.0)
    torch.testing.assert_close(norms, torch.tensor([5.0, 1.0, 0.5, 0.0]))
    expected = [[0.6, 0.8], [0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]
    torch.testing.assert_close(torch.stack([p.grad for p in parameters]), torch.tensor(expected))
    assert without.grad is None


def test_clipping_by_tensor_is_not_clipping_by_the_global_norm():
    small, large = [0.3, 0.4], [3.0, 4.0]
    each, together = with_gradients(small, large), with_gradients(small, large)
    clip_each_tensor_(each, 1.0)
    nn.utils.clip_grad_norm_(together, 1.0)
    assert each[0].grad.norm().item() == pytest.approx(0.5)
    assert together[0].grad.norm().item() == pytest.approx(0.5 / math.sqrt(25.25), rel=1e-5)


def test_clipping_keeps_the_dtype_and_shows_what_is_broken():
    half = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    half.grad = torch.tensor([3.0, 4.0], dtype=torch.bfloat16)
    broken = with_gradients([math.nan, 1.0], [math.inf, 1.0])
    clip_each_tensor_([half, *broken], 1.0)
    assert half.grad.dtype == torch.bfloat16
    assert half.grad.float().norm().item() == pytest.approx(1, rel=0.01)
    assert broken[0].grad.isnan().all()
    assert broken[1].grad[0].isnan()
    assert clip_each_tensor_([nn.Parameter(torch.zeros(1))], 1.0).numel() == 0
    with pytest.raises(ValueError, match="max_norm"):
        clip_each_tensor_([half], 0.0)
