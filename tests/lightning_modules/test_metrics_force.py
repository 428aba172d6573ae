"""Scores of displacement and force in volumes: values by hand, what no truth means, and their mean over volumes."""

import pytest
import torch

from lightning_modules.metrics.force import (
    cosine,
    mean_error_vx,
    median_error_vx,
    net_force_relative_error,
    net_force_share,
    relative_l2,
    total_size,
)
from lightning_modules.metrics.force_scores import VolumeMean

SCORES = (median_error_vx, mean_error_vx, relative_l2, cosine, net_force_relative_error)


def random(seed):
    return torch.randn(2, 3, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


def test_errors_by_hand():
    truth = torch.zeros(1, 3, 1, 1, 3)
    prediction = truth.clone()
    prediction[0, :, 0, 0, 0] = torch.tensor([3.0, 4.0, 0.0])
    prediction[0, :, 0, 0, 1] = torch.tensor([0.0, 0.0, 1.0])
    assert median_error_vx(prediction, truth).tolist() == [1.0]
    assert mean_error_vx(prediction, truth).tolist() == [2.0]


def test_the_truth_is_perfect_and_zero_has_the_error_one():
    truth = random(0)
    assert relative_l2(truth, truth).tolist() == [0.0, 0.0]
    assert relative_l2(torch.zeros_like(truth), truth).tolist() == pytest.approx([1.0, 1.0])
    assert cosine(3 * truth, truth).tolist() == pytest.approx([1.0, 1.0])
    assert cosine(-truth, truth).tolist() == pytest.approx([-1.0, -1.0])
    assert cosine(torch.zeros_like(truth), truth).isnan().all()


def test_net_forces_by_hand():
    force = torch.zeros(1, 3, 1, 1, 2)
    force[0, 0, 0, 0] = torch.tensor([2.0, -2.0])
    assert net_force_share(force).tolist() == [0.0]
    assert total_size(force).tolist() == [4.0]
    pulled = force.clone()
    pulled[0, 1, 0, 0, 0] = 1.0
    assert net_force_relative_error(pulled, force).tolist() == [0.25]
    one_way = force.abs()
    assert net_force_share(one_way).tolist() == [1.0]


@pytest.mark.parametrize("score", SCORES)
def test_an_unknown_truth_has_no_score(score):
    truth = random(0)
    truth[1] = torch.nan
    values = score(random(1), truth)
    assert values[0].isfinite()
    assert values[1].isnan()
    with pytest.raises(ValueError, match=r"^both fields must have one shape"):
        score(truth, truth[:1])


def test_a_displacement_known_at_beads_is_judged_there():
    truth = torch.full((1, 3, 2, 2, 2), torch.nan)
    truth[0, :, 0, 0, 0] = torch.tensor([3.0, 4.0, 0.0])
    truth[0, :, 1, 1, 1] = 0.0
    truth[0, :, 1, 0, 1] = 0.0
    nothing = torch.zeros_like(truth)
    nothing[0, 2, 1, 1, 1] = 1.0
    nothing[0, :, 0, 1, 1] = 50.0  # nobody knows
    assert median_error_vx(nothing, truth).tolist() == [1.0]
    assert mean_error_vx(nothing, truth).tolist() == [2.0]
    assert relative_l2(nothing, truth).tolist() == pytest.approx([(26 / 25) ** 0.5])


def test_the_mean_over_volumes_leaves_out_those_without_a_score():
    mean = VolumeMean()
    mean.update(torch.tensor([1.0, torch.nan, 2.0]))
    mean.update(torch.tensor([6.0]))
    assert mean.compute().item() == 3
    mean.reset()
    mean.update(torch.tensor([torch.nan]))
    assert mean.compute().isnan()
