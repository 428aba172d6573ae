"""Nuclei: components, boxes, both matchings, shares, intervals, tails and chance, by hand and by exact sums."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_modules.metrics.nuclei import (
    NucleusCounts,
    Share,
    clopper_pearson,
    count,
    hsv_value,
    log10_binomial_tail,
    match,
    otsu_threshold,
    rates,
    regions,
    segment,
    total,
    wilson,
)
from lightning_modules.metrics.nuclei_by_chance import chance_in_cell, chance_in_image, chance_in_round_cell

SETTINGS = settings(deadline=None, derandomize=True, max_examples=25)
GENERATED, MATCHED, STRICTLY, REAL = 8151, 5785, 2328, 9659  # as printed


def discs(*centres_yx_radius, size=96):
    """Bright discs on a dark ground."""
    y, x = np.mgrid[:size, :size]
    return sum(200.0 * (np.hypot(y - cy, x - cx) <= r) for cy, cx, r in centres_yx_radius) + 10.0


def boxes(*corners, shape=(40, 40)):
    """Labels 1, 2, ... of filled boxes (first row, first column, last row + 1, last column + 1)."""
    labels = np.zeros(shape, dtype=int)
    for number, (top, left, bottom, right) in enumerate(corners, start=1):
        labels[top:bottom, left:right] = number
    return labels


def test_discs_come_out_with_their_centres_boxes_and_areas():
    image = discs((20, 30, 6), (60, 70, 8), (80, 15, 5))
    found = regions(segment(image))
    np.testing.assert_allclose(found.centroid_yx_px, [[20, 30], [60, 70], [80, 15]], atol=1e-9)
    np.testing.assert_array_equal(found.box_px[0], [14, 24, 27, 37])
    np.testing.assert_allclose(found.area_px, [math.pi * r**2 for r in (6, 8, 5)], rtol=0.05)


def test_small_components_are_left_out_and_the_rest_numbered_on():
    image = discs((20, 20, 3), (50, 50, 8), (80, 80, 8))  # 29 pixels and twice 197
    assert segment(image, minimum_area_px=0).max() == 3
    labels = segment(image)
    assert sorted(np.unique(labels)) == [0, 1, 2]
    assert labels[50, 50] == 1
    assert labels[80, 80] == 2
    assert segment(image, minimum_area_px=30).max() == 2
    assert segment(image, gaussian_sigma_px=0, minimum_area_px=29).max() == 3  # exactly so many pixels are enough
    assert segment(image, gaussian_sigma_px=0, minimum_area_px=30).max() == 2


def test_corners_connect_in_eight_neighbours_only():
    image = np.zeros((40, 40))
    image[5:15, 5:15] = image[15:25, 15:25] = 1
    assert segment(image, gaussian_sigma_px=0).max() == 1
    assert segment(image, gaussian_sigma_px=0, connectivity=1).max() == 2


@pytest.mark.parametrize("value", [0, 255, -1.0])
def test_a_blank_image_has_no_nuclei(value):
    assert segment(np.full((32, 32), value)).max() == 0
    counts = count(np.full((96, 96), value), discs((40, 40, 8)), pixel_size_um=0.8)
    assert counts == NucleusCounts(1, 0, 0, 0, 0, 0)
    assert rates(counts)["detection_rate"] == 0
    assert math.isnan(rates(counts)["success_rate"])


def test_the_threshold_of_the_real_image_keeps_the_noise_of_a_black_one_out():
    real = discs((40, 40, 8))
    black = np.random.default_rng(0).normal(10, 0.1, real.shape)
    assert segment(black).max() > 0
    assert segment(black, threshold=otsu_threshold(real)).max() == 0
    np.testing.assert_array_equal(segment(real, threshold=otsu_threshold(real)), segment(real))


@SETTINGS
@given(gain=st.floats(0.01, 100), offset=st.floats(-100, 100), turns=st.integers(0, 3))
def test_gain_offset_and_turns_leave_the_nuclei(gain, offset, turns):
    image = discs((20, 30, 6), (60, 70, 8), (80, 15, 5))
    turned = segment(np.rot90(gain * image + offset, turns))
    np.testing.assert_array_equal(turned > 0, np.rot90(segment(image) > 0, turns))


def test_batches_tensors_and_colours_are_segmented_image_by_image():
    images = np.stack([discs((20, 30, 6)), discs((60, 70, 8), (20, 20, 8))])
    labels = segment(torch.from_numpy(images).float().reshape(2, 1, 96, 96))
    assert labels.shape == (2, 1, 96, 96)
    for alone, together in zip(images, labels[:, 0], strict=True):
        np.testing.assert_array_equal(segment(alone), together)
    colours = torch.from_numpy(np.stack([0.2 * images[0], images[0], 0 * images[0]]))
    torch.testing.assert_close(hsv_value(colours), torch.from_numpy(images[0]))


def test_regions_skip_missing_labels_and_may_be_none():
    labels = boxes((0, 0, 2, 3), (5, 5, 9, 6))
    labels[labels == 2] = 7
    found = regions(labels)
    np.testing.assert_array_equal(found.area_px, [6, 4])
    np.testing.assert_allclose(found.centroid_yx_px, [[0.5, 1], [6.5, 5]])
    np.testing.assert_array_equal(found.box_px, [[0, 0, 2, 3], [5, 5, 9, 6]])
    empty = regions(np.zeros((4, 4), dtype=int))
    assert [len(values) for values in empty] == [0, 0, 0]


def test_overlap_and_distance_by_hand():
    pair = match(boxes((0, 0, 10, 10)), boxes((5, 5, 15, 15)), pixel_size_um=0.5)
    assert pair.iou == pytest.approx([25 / 175])
    assert pair.distance_um == pytest.approx([0.5 * math.hypot(5, 5)])


def test_the_paper_gives_one_real_nucleus_to_several_and_one_to_one_does_not():
    generated = boxes((0, 0, 10, 10), (0, 12, 10, 20), (30, 30, 38, 38))
    real = boxes((0, 2, 10, 16))
    published = match(generated, real, pixel_size_um=1.0)
    assert published.real_index.tolist() == [0, 0, 0]
    np.testing.assert_allclose(published.iou, [80 / 160, 40 / 180, 0])
    exclusive = match(generated, real, pixel_size_um=1.0, method="one_to_one")
    assert exclusive.real_index.tolist() == [0, -1, -1]
    assert exclusive.distance_um.tolist() == [4.0, math.inf, math.inf]


@SETTINGS
@given(seed=st.integers(0, 10_000))
def test_one_to_one_finds_the_largest_sum_of_overlaps(seed):
    rng = np.random.default_rng(seed)
    layouts, filled = [], []
    for _ in range(2):  # a region of two opposite corners, so that boxes overlap where the regions cannot
        rows, columns = (rng.permutation(40)[:8].reshape(4, 2) for _ in range(2))
        labels = np.zeros((40, 40), dtype=int)
        filled.append([])
        for number, (two_rows, two_columns) in enumerate(zip(rows, columns, strict=True), start=1):
            labels[two_rows, two_columns] = number
            box = np.zeros((40, 40), dtype=bool)
            box[min(two_rows) : max(two_rows) + 1, min(two_columns) : max(two_columns) + 1] = True
            filled[-1].append(box)
        layouts.append(labels)
    overlap = np.array([[(one & other).sum() / (one | other).sum() for other in filled[1]] for one in filled[0]])
    best = max(overlap[range(4), order].sum() for order in itertools.permutations(range(4)))
    exclusive = match(*layouts, pixel_size_um=1.0, method="one_to_one")
    assert exclusive.iou.sum() == pytest.approx(best)
    given_ones = exclusive.real_index[exclusive.real_index >= 0]
    assert len(set(given_ones)) == len(given_ones)
    np.testing.assert_array_equal(exclusive.real_index >= 0, exclusive.iou > 0)
    published = match(*layouts, pixel_size_um=1.0)
    np.testing.assert_array_equal(published.real_index, overlap.argmax(axis=1))
    np.testing.assert_allclose(published.iou, overlap.max(axis=1))


def test_no_nuclei_on_either_side_is_no_match():
    some, none = boxes((0, 0, 10, 10)), np.zeros((40, 40), dtype=int)
    for method in ("largest_overlap", "one_to_one"):
        alone = match(some, none, pixel_size_um=1.0, method=method)
        assert alone.real_index.tolist() == [-1]
        assert alone.distance_um.tolist() == [math.inf]
        assert len(match(none, some, pixel_size_um=1.0, method=method).iou) == 0


def test_counts_depend_on_the_pixel_size_through_the_distances():
    real, generated = discs((30, 30, 8), (70, 70, 8)), discs((30, 35, 8), (70, 71, 8))
    assert count(generated, real, pixel_size_um=159.41 / 256) == NucleusCounts(2, 2, 2, 1, 2, 1)
    assert count(generated, real, pixel_size_um=210 / 256) == NucleusCounts(2, 2, 1, 1, 1, 1)
    assert count(generated, real, pixel_size_um=1.0, matched_um=5.5) == NucleusCounts(2, 2, 2, 0, 2, 0)
    assert count(generated, generated, pixel_size_um=1.0) == NucleusCounts(2, 2, 2, 2, 2, 2)


def test_counts_add_up_and_give_the_printed_shares():
    halves = [NucleusCounts(9000, 8000, 5000, 2000, 4000, 1500), NucleusCounts(659, 151, 785, 328, 700, 300)]
    counts = total(halves)
    assert counts == NucleusCounts(REAL, GENERATED, MATCHED, STRICTLY, 4700, 1800)
    got = rates(counts)
    assert got["detection_rate"] == pytest.approx(0.84, abs=0.005)
    assert got["count_error"] == pytest.approx(0.16, abs=0.005)
    assert got["success_rate"] == pytest.approx(0.710, abs=5e-4)
    assert got["strict_success_rate"] == pytest.approx(0.286, abs=5e-4)
    assert got["f1"] == pytest.approx(2 / (1 / got["precision"] + 1 / got["recall"]))
    assert total([]) == NucleusCounts(0, 0, 0, 0, 0, 0)


def test_share_adds_counts_before_it_divides():
    share = Share()
    share.update(1, 4)
    share.update(7, 12)
    assert share.compute().item() == 0.5
    share.reset()
    share.update(0, 0)
    assert share.compute().isnan()


@pytest.mark.parametrize(("successes", "trials"), [(0, 9), (9, 9), (1, 9), (MATCHED, GENERATED), (STRICTLY, GENERATED)])
@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_intervals_agree_with_scipy(successes, trials, confidence):
    known = stats.binomtest(successes, trials)
    for ours, method in ((clopper_pearson, "exact"), (wilson, "wilson")):
        expected = known.proportion_ci(confidence, method=method)
        np.testing.assert_allclose(ours(successes, trials, confidence), expected, atol=1e-12)


def test_intervals_of_the_published_counts():
    np.testing.assert_allclose(clopper_pearson(MATCHED, GENERATED), (0.6997, 0.7196), atol=5e-5)
    np.testing.assert_allclose(clopper_pearson(STRICTLY, GENERATED), (0.2758, 0.2956), atol=5e-5)
    for successes, printed in ((MATCHED, 0.710), (STRICTLY, 0.286)):
        np.testing.assert_allclose(wilson(successes, GENERATED), (printed - 0.01, printed + 0.01), atol=6e-4)


def exact_log10_tail(successes, trials, probability):
    """By whole numbers of any length."""
    hit, missed = probability.numerator, probability.denominator - probability.numerator
    term = math.comb(trials, successes) * hit**successes * missed ** (trials - successes)
    terms = 0
    for hits in range(successes, trials + 1):
        terms += term
        term = term * (trials - hits) * hit // ((hits + 1) * missed)
    return math.log10(terms) - trials * math.log10(probability.denominator)


@pytest.mark.parametrize(
    ("successes", "trials", "probability"),
    [
        *((k, 12, Fraction(1, 3)) for k in (1, 3, 4, 5, 12)),
        (300, 400, Fraction(1, 7)),
        (700, 1000, Fraction(1, 505)),
        (MATCHED, GENERATED, Fraction(1, 2)),
    ],
)
def test_tails_agree_with_exact_sums(successes, trials, probability):
    expected = exact_log10_tail(successes, trials, probability)
    assert log10_binomial_tail(successes, trials, float(probability)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_tails_of_the_published_counts_are_not_those_printed():
    assert log10_binomial_tail(MATCHED, GENERATED, chance_in_image()) == pytest.approx(-13_513, abs=1)
    assert log10_binomial_tail(STRICTLY, GENERATED, chance_in_image(radius_um=1.0)) == pytest.approx(-6982, abs=1)
    assert log10_binomial_tail(MATCHED, GENERATED, 0.5) == pytest.approx(-323.0, abs=0.05)
    assert log10_binomial_tail(MATCHED, GENERATED, 0.580) == pytest.approx(math.log10(6.6e-130), abs=0.5)


def test_tails_at_the_ends():
    assert log10_binomial_tail(0, 5, 0.3) == 0
    assert log10_binomial_tail(5, 5, 1.0) == 0
    assert log10_binomial_tail(1, 5, 0.0) == -math.inf
    assert log10_binomial_tail(5, 5, 0.1) == pytest.approx(-5)


def test_chance_in_the_image_and_in_a_round_cell():
    assert 1 / chance_in_image() == pytest.approx(505.5, abs=0.05)
    assert 1 / chance_in_image(radius_um=1.0) == pytest.approx(8089, abs=1)
    assert chance_in_image(radius_um=10, field_um=12) == 1
    assert chance_in_round_cell(cell_radius_um=4 * (1 + math.sqrt(2))) == pytest.approx(0.5)
    assert chance_in_round_cell(cell_radius_um=7) == 1
    assert math.isnan(chance_in_round_cell(cell_radius_um=4))


@pytest.mark.parametrize("cell_radius_um", [9.0, 12.0, 16.0])
@pytest.mark.parametrize("radius_um", [4.0, 1.0])
def test_chance_in_a_drawn_round_cell_is_the_analytic_one(cell_radius_um, radius_um):
    y, x = np.mgrid[:361, :361]
    cell = np.hypot(y - 180, x - 180) * 0.1 <= cell_radius_um
    got = chance_in_cell(cell, (180, 180), pixel_size_um=0.1, radius_um=radius_um)
    assert got == pytest.approx(chance_in_round_cell(cell_radius_um=cell_radius_um, radius_um=radius_um), rel=0.03)


def test_chance_in_a_cell_with_the_nucleus_aside_in_a_strip_and_too_narrow():
    strip = np.ones((100, 400), dtype=bool)  # 10 um by 40 um: centres in 2 um by 32 um
    middle = (49.5, 199.5)
    assert chance_in_cell(strip, middle, pixel_size_um=0.1) == pytest.approx(7.83 / 32, rel=0.02)  # chord of the disc
    assert chance_in_cell(strip, (49.5, 4000.0), pixel_size_um=0.1) == 0
    aside = chance_in_cell(torch.from_numpy(strip), (49.5, 39.5), pixel_size_um=0.1)
    assert aside == pytest.approx(7.83 / 64, rel=0.03)
    assert math.isnan(chance_in_cell(strip[:60], middle, pixel_size_um=0.1))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: segment(np.zeros(5)), "image"),
        (lambda: segment(np.full((4, 4), np.nan)), "image"),
        (lambda: segment(np.zeros((4, 4)), gaussian_sigma_px=-1), "gaussian_sigma_px"),
        (lambda: segment(np.zeros((4, 4)), minimum_area_px=-1), "minimum_area_px"),
        (lambda: segment(np.zeros((4, 4)), connectivity=8), "connectivity"),
        (lambda: regions(np.zeros((1, 4, 4), dtype=int)), "labels"),
        (lambda: match(boxes(), boxes(), pixel_size_um=0), "pixel_size_um"),
        (lambda: match(boxes(), boxes(), pixel_size_um=1, method="nearest"), "method"),
        (lambda: match(boxes(), boxes(shape=(4, 4)), pixel_size_um=1), "generated_labels"),
        (lambda: clopper_pearson(3, 2), "successes"),
        (lambda: wilson(0, 0), "trials"),
        (lambda: wilson(1, 2, 1.0), "confidence"),
        (lambda: log10_binomial_tail(3, 2, 0.5), "successes"),
        (lambda: log10_binomial_tail(1, 2, 1.5), "probability"),
        (lambda: chance_in_image(radius_um=-1), "radius_um"),
        (lambda: chance_in_cell(np.ones(4), (0, 0), pixel_size_um=1), "cell_mask"),
        (lambda: chance_in_round_cell(cell_radius_um=math.inf), "cell_radius_um"),
    ],
)
def test_what_is_wrong_is_named(call, named):
    with pytest.raises(ValueError, match=f"^{named} "):
        call()
