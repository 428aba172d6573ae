"""Direction metrics: eq. 13 by hand, the fusion against the paper's procedure step by step, the quadrants."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.metrics.direction import (
    AngularError,
    angular_error_deg,
    fuse_by_largest_gap,
    mean_angular_error_deg,
    quadrant_centre,
    quadrant_centre_error_deg,
    quadrant_error_from_accuracy_deg,
    quadrant_of,
)

TAU = 2 * math.pi
REPEATABLE = settings(deadline=None, derandomize=True)


def rad(*degrees):
    return torch.tensor(degrees, dtype=torch.float64).deg2rad()


def test_error_by_hand():
    error = angular_error_deg(rad(350, 10, 90, 0, 30), rad(10, 350, 270, 0, 390))
    torch.testing.assert_close(error, torch.tensor([20.0, 20, 180, 0, 0], dtype=torch.float64), atol=1e-12, rtol=0)
    assert mean_angular_error_deg(rad(350, 10, 90, 0, 30), rad(10, 350, 270, 0, 390)).item() == pytest.approx(44)


def test_guessing_costs_90_degrees():
    target = rad(*range(360))
    for guess in (0.0, 1.0, 4.5):
        assert mean_angular_error_deg(torch.full_like(target, guess), target).item() == pytest.approx(90, abs=0.01)


@REPEATABLE
@given(st.lists(st.tuples(st.floats(0, 6.28), st.floats(0, 6.28)), min_size=1, max_size=20))
def test_error_is_eq_13(pairs):
    a, b = np.array(pairs).T
    eq_13 = np.degrees(np.minimum(np.abs(a - b), TAU - np.abs(a - b)).mean())
    assert mean_angular_error_deg(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(eq_13, abs=1e-9)


def test_unknown_directions_give_nan():
    error = angular_error_deg(rad(10, 20), torch.tensor([math.nan, 0.0], dtype=torch.float64))
    assert error[0].isnan()
    assert error[1].item() == pytest.approx(20)


def by_the_paper(angles):
    """Section 2.5 literally: sort, measure the range, add a full turn to the smallest, again until all were moved."""
    predictions = sorted(angle % TAU for angle in angles)
    best_range, best = math.inf, None
    for _ in range(len(predictions)):
        predictions.sort()
        distance = predictions[-1] - predictions[0]
        if distance < best_range:
            best_range, best = distance, list(predictions)
        predictions[0] += TAU
    return (sum(best) / len(best)) % TAU


def circle_distance(a, b):
    return abs((a - b + math.pi) % TAU - math.pi)


@REPEATABLE
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 4, 6, 10, 14]), st.sampled_from([0.0, 0.5, 4.0, 50.0]))
def test_fusion_equals_the_procedure_of_the_paper(seed, views, concentration):
    rng = np.random.default_rng(seed)
    angles = rng.vonmises(rng.uniform(0, TAU), concentration, views) + rng.integers(-1, 2, views) * TAU
    fused = fuse_by_largest_gap(torch.tensor(angles)).item()
    assert 0 <= fused < TAU
    assert circle_distance(fused, by_the_paper(angles)) < 1e-12


def test_fusion_by_hand():
    views = torch.stack([rad(350, 10, 30), rad(100, 100, 130), rad(180, 181, 359)])
    # 350 -> -10: mean 10; no seam: mean 110; the largest gap, 181 degrees, lies between 359 and 180: mean 240
    torch.testing.assert_close(fuse_by_largest_gap(views), rad(10, 110, 240), atol=1e-12, rtol=0)


def test_fusion_works_over_any_leading_dimensions_and_ignores_the_order_of_views():
    angles = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * TAU
    fused = fuse_by_largest_gap(angles)
    assert fused.shape == (3, 4)
    for i in range(3):
        for j in range(4):
            assert circle_distance(fused[i, j].item(), by_the_paper(angles[i, j].tolist())) < 1e-12
    torch.testing.assert_close(fuse_by_largest_gap(angles.flip(-1)), fused)


def test_fusion_turns_with_its_angles():
    angles = rad(20, 350, 5, 40)
    turned = fuse_by_largest_gap(angles + 2.0)
    assert circle_distance(turned.item(), fuse_by_largest_gap(angles).item() + 2.0) < 1e-12


def test_one_view_is_its_own_fusion():
    torch.testing.assert_close(fuse_by_largest_gap(rad(-30)[:, None]), rad(330))


def test_quadrants_count_counter_clockwise_from_the_upper_right():
    assert quadrant_of(rad(0, 45, 89, 91, 180.5, 269, 271, 359, -1, 361)).tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 3, 0]
    assert quadrant_of(torch.tensor([6.2831855, -1e-9])).max() <= 3
    torch.testing.assert_close(quadrant_centre(torch.arange(4)), rad(45, 135, 225, 315).float())


@pytest.mark.parametrize(("predicted", "mean_deg"), [(0, 22.5), (1, 90.0), (2, 157.5), (3, 90.0)])
def test_quadrant_centres_cost_what_section_3_3_derives(predicted, mean_deg):
    target = rad(*np.arange(0.5, 90, 1.0))  # spread evenly over the upper right quadrant
    error = quadrant_centre_error_deg(torch.full((90,), predicted), target)
    assert error.mean().item() == pytest.approx(mean_deg, abs=1e-9)


@pytest.mark.parametrize(("accuracy", "printed_deg"), [(0.8789, 33.41), (0.8186, 38.84)])
def test_accuracies_give_the_printed_mean_errors(accuracy, printed_deg):
    assert quadrant_error_from_accuracy_deg(accuracy) == pytest.approx(
        printed_deg, abs=0.02
    )  # printed from rounded shares


def test_impossible_accuracies_are_refused():
    with pytest.raises(ValueError, match="accuracy"):
        quadrant_error_from_accuracy_deg(87.89)


def test_metric_equals_the_function_however_the_data_is_batched():
    generator = torch.Generator().manual_seed(1)
    prediction, target = torch.rand(2, 50, generator=generator) * TAU
    metric = AngularError()
    for part in torch.arange(50).split([7, 1, 30, 12]):
        metric.update(prediction[part], target[part])
    torch.testing.assert_close(metric.compute(), mean_angular_error_deg(prediction, target))
    metric.reset()
    metric.update(prediction[:3], prediction[:3])
    assert metric.compute() == 0


def test_metric_of_two_processes_is_the_metric_of_all_their_samples():
    generator = torch.Generator().manual_seed(2)
    prediction, target = torch.rand(2, 9, generator=generator) * TAU
    one, two = AngularError(), AngularError()
    one.update(prediction[:6], target[:6])
    two.update(prediction[6:], target[6:])
    merged = AngularError()
    merged.update(prediction[:6], target[:6])
    merged.merge_state(two)
    torch.testing.assert_close(merged.compute(), mean_angular_error_deg(prediction, target))
    assert one.compute() != merged.compute()
