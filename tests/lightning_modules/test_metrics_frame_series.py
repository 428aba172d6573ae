"""Curves over a stage's frames: errors of all of them, and one pixel's distribution, by hand and against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_modules.metrics.frame_series import BAND_LEVELS, FrameSeries
from lightning_modules.metrics.lognormal_scores import ForceDistribution

SIGMA = 0.5


def movie(count: int, *, bright: tuple[int, int], first: int = 0, draws: int = 1):
    """Frames of 4 x 6 px of force 2 but for one pixel of 10 (1 + number of the frame); known sigma."""
    mu = torch.full((draws, count, 4, 6), math.log(2.0), dtype=torch.float64)
    for frame in range(count):
        mu[:, frame, *bright] = math.log(10.0 * (1 + first + frame))
    return ForceDistribution(mu, torch.full_like(mu, SIGMA**2)), mu[0] + 0.1


def add(series: FrameSeries, frames, group: str, times: list[float], errors: list[float]) -> None:
    predicted, log_force = frames
    named = {"mae_mean_pa": torch.tensor(errors), "mae_median_pa": 2 * torch.tensor(errors)}
    series.add(predicted, log_force, named, time_s=torch.tensor(times), groups=[group] * len(times))


def test_a_movies_pixel_stays_that_of_its_first_frame_and_its_curves_are_in_order_of_time() -> None:
    series = FrameSeries()
    add(series, movie(2, bright=(1, 4), first=1), "a", [60.0, 30.0], [1.0, 2.0])
    add(series, movie(1, bright=(3, 0)), "b", [0.0], [5.0])
    add(series, movie(1, bright=(1, 4)), "a", [0.0], [3.0])
    known = series.pixel("a")
    assert known is not None
    assert known["pixel"] == (1, 4)
    np.testing.assert_array_equal(known["time_s"], [0, 30, 60])
    medians = np.array([10.0, 30.0, 20.0])
    expected = [stats.lognorm(s=SIGMA, scale=medians).ppf(level) for level in BAND_LEVELS]
    np.testing.assert_allclose(known["bands_pa"], expected, rtol=1e-9)
    np.testing.assert_allclose(known["mean_pa"], stats.lognorm(s=SIGMA, scale=medians).mean())
    entropy = stats.lognorm(s=SIGMA, scale=medians).entropy() / math.log(2)
    np.testing.assert_allclose(known["entropy_bits"], entropy)
    np.testing.assert_allclose(known["true_pa"], medians * math.exp(0.1))
    assert series.pixel("b") is None  # one frame is no series
    assert series.groups == ["a", "a", "b", "a"]
    numbers = series.numbers()
    assert set(numbers) == {"time_s", "mae_mean_pa", "mae_median_pa"}
    np.testing.assert_array_equal(numbers["mae_mean_pa"], [1, 2, 5, 3])
    np.testing.assert_array_equal(numbers["mae_median_pa"], [2, 4, 10, 6])


@pytest.mark.parametrize("spread", [True, False])
def test_frames_without_time_or_distribution_have_errors_alone(spread: bool) -> None:
    series, frames = FrameSeries(), movie(2, bright=(0, 0), draws=3)
    frames = frames if spread else (ForceDistribution(frames[0].mu, None), frames[1])
    add(series, frames, "a", [math.nan, math.nan] if spread else [0.0, 30.0], [1.0, math.nan])
    assert series.pixel("a") is None
    np.testing.assert_array_equal(series.numbers()["mae_mean_pa"], [1, math.nan])


def test_the_calibration_curve_is_that_of_the_foreground_of_all_frames() -> None:
    series, generator = FrameSeries(), torch.Generator().manual_seed(0)
    normal = torch.randn(3, 40, 50, generator=generator, dtype=torch.float64)
    mu = torch.full((1, 3, 40, 50), math.log(100.0), dtype=torch.float64)
    predicted = ForceDistribution(mu, torch.full_like(mu, SIGMA**2))
    log_force = mu[0] + 2 * SIGMA * normal  # twice as wide as predicted
    log_force[:, :10] = 0.0  # background
    add(series, (ForceDistribution(*(part[:, :2] for part in predicted)), log_force[:2]), "a", [0.0, 30.0], [1.0, 2.0])
    add(series, (ForceDistribution(*(part[:, 2:] for part in predicted)), log_force[2:]), "b", [0.0], [1.0])
    curve = series.calibration()
    assert curve is not None
    inside = log_force >= math.log(5.0)
    expected = [(2 * normal[inside].numpy() <= stats.norm.ppf(level)).mean() for level in curve[0]]
    np.testing.assert_allclose(curve[0], np.arange(1, 20) / 20)
    np.testing.assert_allclose(curve[1], expected, atol=1e-3)
    series.clear()
    assert series.calibration() is None


def test_a_stage_begins_with_nothing() -> None:
    series = FrameSeries()
    add(series, movie(2, bright=(0, 0)), "a", [0.0, 30.0], [1.0, 2.0])
    series.clear()
    assert series.groups == []
    assert series.numbers() == {}
    assert series.pixel("a") is None
    add(series, movie(2, bright=(2, 2)), "a", [0.0, 30.0], [1.0, 2.0])
    known = series.pixel("a")
    assert known is not None
    assert known["pixel"] == (2, 2)
