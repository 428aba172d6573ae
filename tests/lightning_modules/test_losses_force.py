"""Losses of force from volumes: values by hand, gradients, units that drop out, unknown truths."""

import pytest
import torch
from torch.autograd import gradcheck

from lightning_modules.losses.force import endpoint_error_vx, imbalance, scaled_absolute_error


def fields(count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, 3, 3, 4, 5, generator=generator, dtype=torch.float64).unbind(0)


def test_the_endpoint_error_is_the_mean_length():
    target = torch.zeros(2, 3, 2, 2, 2)
    prediction = target.clone()
    prediction[0] += torch.tensor([1.0, 2.0, 2.0])[:, None, None, None]
    prediction[1, 0, 0, 0, 0] = 8.0
    assert endpoint_error_vx(prediction, target).item() == pytest.approx((3 + 1) / 2, abs=1e-3)


def test_the_scaled_error_by_hand():
    target = torch.tensor([-1.0, 1.0]).repeat(12).reshape(1, 3, 2, 2, 2)
    assert scaled_absolute_error(target + 0.5, target).item() == pytest.approx(0.5)
    assert scaled_absolute_error(2 * target, target).item() == pytest.approx(1.0)


def test_the_imbalance_counts_outside_the_cell_only():
    target = torch.tensor([-2.0, 2.0]).repeat(12).reshape(1, 3, 2, 2, 2)
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    mask[:, 0] = True
    force = torch.zeros(1, 3, 2, 2, 2)
    force[:, :, 0] = 9.0
    assert imbalance(force, mask, target).item() == 0
    force[:, :, 1] = 3.0
    assert imbalance(force, mask, target).item() == pytest.approx(1.5)
    assert imbalance(force, torch.ones_like(mask), target).item() == 0


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_units_drop_out(factor):
    prediction, target = fields()
    mask = prediction[:, 0] > 0
    for loss in (scaled_absolute_error, lambda f, t: imbalance(f, mask, t)):
        assert loss(factor * prediction, factor * target).item() == pytest.approx(loss(prediction, target).item())


def test_gradients_are_those_of_finite_differences():
    prediction, target = fields(1)
    prediction.requires_grad_()
    mask = target[:, 0] > 0
    assert gradcheck(lambda p: endpoint_error_vx(p, target), prediction)
    assert gradcheck(lambda p: scaled_absolute_error(p, target), prediction)
    assert gradcheck(lambda p: imbalance(p, mask, target), prediction)


def test_unknown_truths_are_left_out():
    prediction, target = fields()
    half = target.clone()
    half[1] = torch.nan
    for loss in (endpoint_error_vx, scaled_absolute_error):
        assert loss(prediction, half).item() == pytest.approx(loss(prediction[:1], target[:1]).item())
        assert loss(prediction, torch.full_like(target, torch.nan)).item() == 0


def test_unknown_truths_leave_the_gradient_finite():
    """A measured volume in the batch must not turn the weights into NaN."""
    prediction, target = fields()
    target[1] = torch.nan
    for loss in (endpoint_error_vx, scaled_absolute_error):
        moved = prediction.clone().requires_grad_()
        loss(moved, target).backward()
        assert moved.grad[0].abs().max() > 0
        assert (moved.grad[1] == 0).all()


def test_a_displacement_known_at_beads_counts_there():
    target = torch.full((1, 3, 2, 2, 2), torch.nan)
    target[0, :, 0, 1, 0] = torch.tensor([1.0, 2.0, 2.0])
    target[0, :, 1, 0, 1] = 0.0
    prediction = torch.zeros_like(target).requires_grad_()
    error = endpoint_error_vx(prediction, target)
    assert error.item() == pytest.approx(1.5, abs=1e-3)
    error.backward()
    assert prediction.grad[0, :, 0, 1, 0].tolist() == pytest.approx([-1 / 6, -1 / 3, -1 / 3], rel=1e-3)
    assert prediction.grad.isfinite().all()


def test_a_perfect_prediction_has_a_finite_gradient():
    target = fields()[1]
    prediction = target.clone().requires_grad_()
    (endpoint_error_vx(prediction, target) + scaled_absolute_error(prediction, target)).backward()
    assert prediction.grad.isfinite().all()


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"^both fields must have one shape"):
        endpoint_error_vx(torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, 3, 2, 2, 3))
    with pytest.raises(ValueError, match=r"^cell_mask must be bool of shape"):
        imbalance(torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 2, 2, 2))
