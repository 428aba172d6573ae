"""The mean of a loss must not depend on how the samples were put into batches."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.metrics import mean_loss
from lightning_modules.metrics.mean_loss import MeanLoss


@given(st.lists(st.lists(st.floats(-1e2, 1e2), min_size=1, max_size=5), min_size=1, max_size=6))
def test_mean_loss_is_the_mean_over_all_samples(batches):
    mean = MeanLoss()
    for batch in batches:
        mean.update(torch.tensor(batch, dtype=torch.float64).mean(), len(batch))
    samples = [value for batch in batches for value in batch]
    assert mean.compute().item() == pytest.approx(sum(samples) / len(samples), rel=1e-4, abs=1e-2)


def test_mean_loss_lets_nan_through_and_starts_anew_after_a_reset():
    mean = MeanLoss()
    mean.update(torch.tensor(torch.nan), 2)
    assert mean.compute().isnan()
    mean.reset()
    mean.update(torch.tensor(3.0), 2)
    assert mean.compute() == 3


def test_mean_loss_example_holds():
    assert doctest.testmod(mean_loss).failed == 0
