"""Traction metrics: by hand, against loops over pixels and adhesions, and under what must not change them."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import measure
from torchmetrics import MetricCollection

from lightning_modules.metrics.traction import (
    FieldMean,
    FieldSd,
    above_percentile,
    adhesion_labels,
    angle_error_deg,
    dma,
    dtma,
    dtmb,
    forward_residual,
    grown,
    net_force_share,
    nrmse,
    nrmse_full,
    nrmse_squared,
    share_outside,
    snr,
    strain_energy_error,
    vector_correlation,
)
from physics.half_space import displacement_from_traction
from physics.vector_fields import flip, rotate, rotate_pixels, strain_energy_fj

SETTINGS = settings(deadline=None, derandomize=True, max_examples=20)
SUBSTRATE = {"pixel_size_um": 2.0, "youngs_modulus_pa": 1e4, "poisson_ratio": 0.45}
ADHESION_METRICS = [dtma, dma, dtmb, snr]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fields(seed=0, leading=(3,), size=(9, 12)):
    """Prediction, target and mask; the target pulls at sparse pixels only."""
    target = noise(*leading, 2, *size, seed=seed)
    pulls = noise(*leading, *size, seed=seed + 1) > 0.8
    target = torch.where(pulls.unsqueeze(-3), target, 0)
    prediction = target + 0.3 * noise(*leading, 2, *size, seed=seed + 2)
    return prediction, target, noise(*leading, *size, seed=seed + 3) > -0.5


def arrows(*vectors):
    """A field of one row of vectors (x, y)."""
    return torch.tensor(vectors, dtype=torch.float64).T.unsqueeze(1)


def row(*values):
    return torch.tensor([values])


TRUTH = arrows((3, 4), (0, 0), (0, -5), (0, 0))
GUESS = arrows((3, 0), (0, 2), (0, -5), (7, 0))


def test_errors_by_hand():
    inside = row(True, True, True, False)
    assert nrmse(GUESS, TRUTH, inside).item() == pytest.approx(math.sqrt((16 + 4) / 50))
    assert nrmse_squared(GUESS, TRUTH, inside).item() == pytest.approx(20 / 50)
    assert nrmse_full(GUESS, TRUTH).item() == pytest.approx(math.sqrt((16 + 4 + 49) / 50))
    assert nrmse(0 * TRUTH, TRUTH, inside).item() == pytest.approx(1)


def test_the_normaliser_is_the_truth():
    assert nrmse_full(2 * TRUTH, TRUTH).item() == pytest.approx(1)
    assert nrmse_full(TRUTH, 2 * TRUTH).item() == pytest.approx(0.5)


def test_pixels_outside_the_mask_do_not_count_whatever_they_hold():
    inside = row(True, True, True, False)
    broken = GUESS.clone()
    broken[..., 3] = torch.nan
    assert nrmse(broken, TRUTH, inside).equal(nrmse(GUESS, TRUTH, inside))
    assert nrmse_full(broken, TRUTH).isnan()


def test_one_value_per_field_over_any_leading_dimensions():
    prediction, target, mask = fields(leading=(2, 3))
    assert nrmse(prediction, target, mask).shape == (2, 3)
    for i in range(2):
        for j in range(3):
            p, t, m = prediction[i, j].numpy(), target[i, j].numpy(), mask[i, j].numpy()
            by_loop = np.sqrt(((p - t)[:, m] ** 2).sum() / (t[:, m] ** 2).sum())
            assert nrmse(prediction, target, mask)[i, j].item() == pytest.approx(by_loop)
            assert nrmse(prediction[i, j], target[i, j], mask[i, j]).item() == pytest.approx(by_loop)
    shared = nrmse(prediction, target, mask[0, 0])
    torch.testing.assert_close(shared[0, 0], nrmse(prediction, target, mask)[0, 0])


def all_metrics(prediction, target, mask):
    return torch.stack(
        [
            nrmse(prediction, target, mask),
            nrmse_squared(prediction, target, mask),
            nrmse_full(prediction, target),
            angle_error_deg(prediction, target, mask),
            vector_correlation(prediction, target, mask),
            share_outside(prediction, mask),
            net_force_share(prediction),
            *(metric(prediction, target) for metric in ADHESION_METRICS),
        ]
    )


@SETTINGS
@given(seed=st.integers(0, 1000), turns=st.integers(1, 3), factor=st.floats(1e-6, 1e6))
def test_turning_mirroring_and_rescaling_change_no_metric(seed, turns, factor):
    prediction, target, mask = fields(seed, size=(10, 10))
    values = all_metrics(prediction, target, mask)
    angle = turns * math.pi / 2
    turned_mask = rotate_pixels(mask.double(), angle) > 0.5
    turned = all_metrics(rotate(prediction, angle), rotate(target, angle), turned_mask)
    mirrored = all_metrics(flip(prediction, "x"), flip(target, "x"), mask.flip(-1))
    rescaled = all_metrics(factor * prediction, factor * target, mask)
    assert values.isfinite().all()
    for changed in (turned, mirrored, rescaled):
        torch.testing.assert_close(changed, values, rtol=1e-9, atol=1e-9)


def test_cutoff_keeps_what_either_field_has_above_matlabs_percentile():
    truth = arrows((1, 0), (0, 2), (3, 0), (0, -4), (50, 0))
    guess = arrows((9, 0), (0, 0), (0, 0), (0, 1), (0, 0))
    inside = row(True, True, True, True, False)
    # prctile([1 2 3 4], [25 50 95]) = 1.5, 2.5, 4
    assert above_percentile(guess, truth, inside, percentile=25).equal(row(True, True, True, True, False))
    assert above_percentile(0 * guess, truth, inside, percentile=25).equal(row(False, True, True, True, False))
    assert above_percentile(guess, truth, inside, percentile=50).equal(row(True, False, True, True, False))
    assert above_percentile(guess, truth, inside, percentile=95).equal(row(True, False, False, False, False))
    assert not above_percentile(guess, truth, ~inside & False, percentile=50).any()
    with pytest.raises(ValueError, match="percentile"):
        above_percentile(guess, truth, inside, percentile=101)


def test_angles_by_hand():
    truth = arrows((1, 0), (1, 0), (0, 2), (0.1, 0), (5, 0))
    guess = arrows((3, 0), (-2, 2), (0, 0), (-1, 0), (-5, 0))
    inside = row(True, True, True, True, False)
    assert angle_error_deg(guess, truth, inside, threshold=0.5).item() == pytest.approx((0 + 135 + 90) / 3)
    assert angle_error_deg(guess, truth, inside).item() == pytest.approx((0 + 135 + 90 + 180) / 4)
    assert angle_error_deg(guess, truth, inside, threshold=9).isnan()
    with pytest.raises(ValueError, match="threshold"):
        angle_error_deg(guess, truth, inside, threshold=-1)


@pytest.mark.parametrize("angle_deg", [10, 90, 130])
def test_a_field_turned_in_place_is_off_by_that_angle(angle_deg):
    truth = noise(2, 6, 7)
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    guess = 3 * torch.stack((truth[0] * cos + truth[1] * sin, truth[1] * cos - truth[0] * sin))
    everywhere = torch.ones(6, 7, dtype=torch.bool)
    assert angle_error_deg(guess, truth, everywhere).item() == pytest.approx(angle_deg)
    assert vector_correlation(guess, truth, everywhere).item() == pytest.approx(cos)


def test_share_outside_and_balance_by_hand():
    assert share_outside(GUESS, row(True, True, True, False)).item() == pytest.approx(7 / (3 + 2 + 5 + 7))
    assert net_force_share(GUESS).item() == pytest.approx(math.hypot(10, -3) / 17)
    assert net_force_share(arrows((1, 2), (-1, -2))).item() == 0


@pytest.mark.parametrize("radius_px", [0.0, 1.0, 2.5, 10.0])
def test_grown_masks_hold_every_pixel_within_the_radius(radius_px):
    mask = torch.zeros(2, 12, 14, dtype=torch.bool)
    mask[0, 5, 6] = mask[0, 0, 13] = True  # the second field has no cell
    rows, columns = np.mgrid[:12, :14]
    near = np.hypot(rows - 5, columns - 6) <= radius_px
    near |= np.hypot(rows, columns - 13) <= radius_px
    assert grown(mask, radius_px=radius_px)[0].equal(torch.from_numpy(near))
    assert not grown(mask, radius_px=radius_px)[1].any()


def test_grown_names_what_it_refuses():
    with pytest.raises(ValueError, match="radius_px"):
        grown(torch.ones(2, 2, dtype=torch.bool), radius_px=-1)
    with pytest.raises(ValueError, match="mask must be bool"):
        grown(torch.ones(2, 2), radius_px=1)


def test_energy_error_is_a_share_of_the_true_energy_inside():
    _, target, mask = fields()
    displacement = displacement_from_traction(target, **SUBSTRATE)
    torch.testing.assert_close(
        strain_energy_error(1.2 * target, target, displacement, mask), torch.full((3,), 0.2).double()
    )
    inside = torch.where(mask.unsqueeze(-3), target, 0)
    absolute = strain_energy_fj(inside, displacement, pixel_size_um=2.0)
    prediction = target + mask.logical_not().unsqueeze(-3) * 9.0
    assert strain_energy_error(prediction, target, displacement, mask).abs().max() < 1e-12
    assert (absolute > 0).all()


def test_forward_residual_of_the_truth_of_nothing_and_of_half():
    _, traction, mask = fields()
    displacement = displacement_from_traction(traction, **SUBSTRATE)
    assert forward_residual(traction, displacement, **SUBSTRATE).max() < 1e-12
    for where in (None, mask):
        half = forward_residual(traction / 2, displacement, mask=where, **SUBSTRATE)
        torch.testing.assert_close(half, torch.full((3,), 0.5).double())
        nothing = forward_residual(0 * traction, displacement, mask=where, **SUBSTRATE)
        torch.testing.assert_close(nothing, torch.ones(3).double())
    softer = {**SUBSTRATE, "youngs_modulus_pa": 5e3}
    torch.testing.assert_close(forward_residual(traction, displacement, **softer), torch.ones(3).double())


def test_forward_residual_of_a_broken_field_is_nan_and_spares_the_others():
    _, traction, _ = fields()
    displacement = displacement_from_traction(traction, **SUBSTRATE)
    traction[1, 0, 0, 0] = torch.nan
    assert forward_residual(traction, displacement, **SUBSTRATE).isnan().tolist() == [False, True, False]


def by_loops(prediction, target, labels):
    """The four formulas of the module's docstring, adhesion by adhesion."""
    t, t0 = np.hypot(*prediction), np.hypot(*target)
    adhesions = [labels == i for i in np.unique(labels) if i > 0]
    background = labels == 0
    return {
        dtma: np.mean([(t[a].mean() - t0[a].mean()) / t0[a].mean() for a in adhesions]),
        dma: np.mean([(t[a].max() - t0[a].max()) / t0[a].max() for a in adhesions]),
        dtmb: (t - t0)[background].mean() / np.mean([t0[a].mean() for a in adhesions]),
        snr: np.mean([t[a].mean() for a in adhesions]) / np.sqrt(np.trace(np.cov(prediction[:, background])) / 2),
    }


@pytest.mark.parametrize("metric", ADHESION_METRICS)
def test_adhesion_metrics_are_the_printed_formulas(metric):
    prediction, target, _ = fields(leading=(2, 2))
    values = metric(prediction, target)
    assert values.shape == (2, 2)
    for i in range(2):
        for j in range(2):
            p, t = prediction[i, j].numpy(), target[i, j].numpy()
            labels = measure.label(np.hypot(*t) > 0, connectivity=2)
            assert values[i, j].item() == pytest.approx(by_loops(p, t, labels)[metric])
            assert adhesion_labels(target)[i, j].equal(torch.from_numpy(labels).long())


@pytest.mark.parametrize("metric", ADHESION_METRICS)
def test_adhesion_metrics_take_a_map_of_their_own(metric):
    prediction, target, _ = fields(leading=(1,))
    labels = torch.zeros(1, 9, 12, dtype=torch.int32)
    labels[..., 2:5, 1:4], labels[..., 2:5, 4:9] = 7, 3  # neighbours that connected components would join
    loops = by_loops(prediction[0].numpy(), target[0].numpy(), labels[0].numpy())
    assert metric(prediction, target, labels).item() == pytest.approx(loops[metric])
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        metric(prediction, target, -labels)
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        metric(prediction, target, labels.double())


def test_adhesion_metrics_by_hand():
    guess, truth = arrows((3, 0), (6, 0), (0, 1), (0, -1), (0, 8)), arrows((4, 0), (8, 0), (0, 0), (0, 0), (0, 16))
    assert dtma(guess, truth).item() == pytest.approx((-0.25 - 0.5) / 2)
    assert dma(guess, truth).item() == pytest.approx((-0.25 - 0.5) / 2)
    assert dtmb(guess, truth).item() == pytest.approx(1 / 11)
    assert snr(guess, truth).item() == pytest.approx((4.5 + 8) / 2)  # background (0, 1), (0, -1): variance 2 / 2
    labelled_nothing = row(1, 1, 2, 2, 3)  # adhesion 2 does not pull
    assert dtma(guess, truth, labelled_nothing).item() == pytest.approx((-0.25 - 0.5) / 2)


@pytest.mark.parametrize("metric", [nrmse_full, *ADHESION_METRICS])
def test_a_field_without_traction_has_no_value(metric):
    prediction, target, _ = fields()
    target[1] = 0
    assert metric(prediction, target).isnan().tolist() == [False, True, False]


def test_a_silent_background_has_no_signal_to_noise_ratio():
    _, target, _ = fields()
    assert snr(target, target).isnan().all()
    assert dtmb(target, target).abs().max() == 0
    assert dtma(target, target).abs().max() == 0


def test_field_mean_leaves_out_and_counts_fields_without_a_value():
    mean = FieldMean(nrmse)
    prediction, target, mask = fields()
    mask[1] = False
    mean.update(prediction, target, mask)
    mean.update(prediction[:1], target[:1], mask[:1])
    values = nrmse(prediction, target, mask)
    assert mean.compute().item() == pytest.approx((2 * values[0] + values[2]).item() / 3, rel=1e-6)
    assert (mean.fields.item(), mean.left_out.item()) == (3, 1)
    mean.reset()
    assert (mean.fields.item(), mean.left_out.item(), mean.total.item()) == (0, 0, 0)


def test_field_mean_does_not_hide_a_broken_prediction():
    prediction, target, _ = fields()
    prediction[1, 0, 0, 0] = torch.nan
    mean = FieldMean(nrmse_full)
    mean.update(prediction, target)
    assert mean.compute().isnan()
    assert mean.left_out.item() == 0


def test_field_sd_is_the_population_deviation_over_the_fields_that_count():
    prediction, target, mask = fields()
    sd = FieldSd(nrmse)
    sd.update(prediction[:1], target[:1], mask[:1])
    assert sd.compute().item() == 0
    sd.update(prediction, target, mask)
    values = nrmse(prediction, target, mask).numpy()
    assert sd.compute().item() == pytest.approx(np.std([values[0], *values]), rel=1e-4)
    without = mask.clone()
    without[1] = False
    sd.update(prediction, target, without)
    assert sd.compute().item() == pytest.approx(np.std([values[0], *values, values[0], values[2]]), rel=1e-4)
    prediction[1, 0] = torch.nan
    sd.update(prediction, target, mask)
    assert sd.compute().isnan()


def test_field_means_of_one_collection_stay_apart():
    prediction, target, mask = fields()
    functions = {"error": nrmse, "angle": partial(angle_error_deg, threshold=0.1)}
    collection = MetricCollection({name: FieldMean(f) for name, f in functions.items()}, compute_groups=False).clone()
    collection.update(prediction, target, torch.zeros_like(mask))
    collection.update(prediction, target, mask)
    for name, value in collection.compute().items():
        assert value.item() == pytest.approx(functions[name](prediction, target, mask).mean().item(), rel=1e-6)


def test_shapes_that_do_not_fit_are_named():
    prediction, target, mask = fields()
    with pytest.raises(ValueError, match="one shape"):
        nrmse(prediction[:1], target, mask)
    with pytest.raises(ValueError, match="mask must have shape"):
        nrmse(prediction, target, mask[:1])
    with pytest.raises(ValueError, match="mask must be bool"):
        nrmse(prediction, target, mask.double())
