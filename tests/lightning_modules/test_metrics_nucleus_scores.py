"""Nuclei of images that the test draws: counted, matched, put into tables, added up; the paper's own numbers."""

import math

import numpy as np
import pytest
import torch

from lightning_modules.metrics.nucleus_scores import COUNTS, NucleusSums, added, count_nuclei, statistics

SIZE = 96
PIXEL_UM = 0.5
RADIUS_PX = 8


def discs(*centres_px, size=SIZE, level=0.8):
    y, x = np.indices((size, size))
    image = np.full((size, size), 0.05, dtype=np.float32)
    for centre_y, centre_x in centres_px:
        image[(y - centre_y) ** 2 + (x - centre_x) ** 2 <= RADIUS_PX**2] = level
    return image


def found(generated, real, cells=None, *, area_um2=10.0):
    cells = np.ones((SIZE, SIZE), dtype=bool) if cells is None else cells
    return count_nuclei(generated, real, cells, pixel_size_um=PIXEL_UM, minimum_area_um2=area_um2)


def test_distances_are_in_um_and_the_table_tells_who_was_given_whom():
    real = discs((20, 20), (20, 70), (70, 45))
    image = found(discs((20, 26), (20, 71)), real)  # 3 um and 0.5 um off, the third is missing
    counts = image.counts
    assert (counts["nuclei_real"], counts["nuclei_generated"]) == (3, 2)
    assert (counts["matched_4um"], counts["matched_1um"], counts["paired_4um"], counts["paired_1um"]) == (2, 1, 2, 1)
    generated = image.table["kind"] == "generated"
    assert generated.tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(image.table["distance_um"][generated], [3.0, 0.5], atol=0.02)
    assert image.table["real_nucleus"].tolist() == [0, 1, -1, -1, -1]
    np.testing.assert_allclose(image.table["x_um"][~generated], [10.0, 35.0, 22.5], atol=0.02)
    disc_um2 = math.pi * (RADIUS_PX * PIXEL_UM) ** 2
    np.testing.assert_allclose(image.table["area_um2"], disc_um2, rtol=0.1)
    assert len({len(column) for column in image.table.values()}) == 1
    assert image.generated.max() == 2
    assert image.real.max() == 3


def test_one_threshold_for_both_finds_nothing_in_a_black_image():
    noise = np.random.default_rng(0).normal(0.02, 0.005, (SIZE, SIZE)).astype(np.float32)
    image = found(noise, discs((20, 20), (70, 45)))
    assert image.counts["nuclei_generated"] == 0
    assert image.counts["area_generated_px"] == 0
    sums = statistics(image.counts)
    assert sums["detection_rate"] == 0
    assert sums["count_error"] == 1
    assert sums["f1"] == 0
    assert math.isnan(sums["matched_4um"])
    assert sums["area_share_generated"] == 0 < sums["area_share_real"]


@pytest.mark.parametrize("level", [math.nan, math.inf])
def test_an_image_that_is_not_finite_shows_no_nucleus_and_hides_no_other(level):
    real = discs((20, 20), (70, 45))
    broken = real.copy()
    broken[3, 3] = level
    image = found(broken, real)
    assert (image.counts["nuclei_real"], image.counts["nuclei_generated"], image.counts["matched_4um"]) == (2, 0, 0)
    assert statistics(added([image.counts, found(real, real).counts]))["recall"] == 0.5
    alone = count_nuclei(broken, None, None, pixel_size_um=PIXEL_UM, minimum_area_um2=10.0)
    assert alone.counts["nuclei_generated"] == 0


def test_without_a_real_image_only_what_was_generated_is_counted():
    image = count_nuclei(discs((20, 20), (70, 45)), None, None, pixel_size_um=PIXEL_UM, minimum_area_um2=10.0)
    assert image.counts["nuclei_generated"] == 2
    assert math.isnan(image.counts["nuclei_real"])
    assert math.isnan(image.counts["matched_4um"])
    assert image.real is None
    assert np.isnan(image.table["distance_um"]).all()
    assert image.table["real_nucleus"].tolist() == [-1, -1]


def test_a_constant_real_image_is_no_threshold_for_the_generated_one():
    generated = discs((20, 20)) + 0.1  # nowhere as dark as the real one
    nothing = found(generated, np.zeros_like(generated)).counts
    assert (nothing["nuclei_real"], nothing["nuclei_generated"]) == (0, 1)
    assert nothing["area_generated_px"] < 0.2 * generated.size


def test_a_nucleus_that_overlapping_images_show_is_counted_by_its_owner():
    picture = discs((20, 12), (20, 30), size=40)
    left = np.zeros(picture.shape, bool)
    left[:, :21] = True
    counts = [
        count_nuclei(picture, None, None, pixel_size_um=1.0, minimum_area_um2=10.0, owned=own) for own in (left, ~left)
    ]
    assert [one.counts["nuclei_generated"] for one in counts] == [1, 1]
    assert [one.table["x_um"].round().tolist() for one in counts] == [[12], [30]]
    assert [int(one.generated.max()) for one in counts] == [1, 1]
    none = count_nuclei(picture, None, None, pixel_size_um=1.0, minimum_area_um2=10.0, owned=np.zeros_like(left))
    assert len(none.table["kind"]) == none.counts["area_generated_px"] == 0


def test_the_least_area_is_physical():
    disc_um2 = math.pi * (RADIUS_PX * PIXEL_UM) ** 2
    real = discs((20, 20), (70, 45))
    assert found(real, real, area_um2=0.9 * disc_um2).counts["nuclei_real"] == 2
    assert found(real, real, area_um2=1.2 * disc_um2).counts["nuclei_real"] == 0
    with pytest.raises(ValueError, match="minimum_area_um2 must be positive and finite, got 0"):
        found(real, real, area_um2=0)


def test_chances_are_those_of_a_disc_in_the_image_and_of_the_cell_that_is_the_nucleus_own():
    """Two cells that touch: each nucleus has the half that lies nearer to it."""
    real = discs((48, 24), (48, 72))
    counts = found(real, real).counts
    image_um2 = (SIZE * PIXEL_UM) ** 2
    assert counts["chance_image_4um"] == pytest.approx(2 * math.pi * 16 / image_um2, rel=1e-6)
    assert counts["chance_image_1um"] == pytest.approx(2 * math.pi / image_um2, rel=1e-6)
    free_um2 = (SIZE * PIXEL_UM / 2 - 8) * (SIZE * PIXEL_UM - 8)  # half the image less 4 um along each edge
    assert counts["chance_cell_4um"] == pytest.approx(2 * math.pi * 16 / free_um2, rel=0.08)
    nowhere = found(real, real, np.zeros((SIZE, SIZE), dtype=bool)).counts
    assert nowhere["chance_cell_4um"] == 2  # certain: what no cell holds must not count as skill


def test_a_cell_is_the_piece_of_the_mask_that_the_nucleus_lies_in():
    real = discs((48, 24))
    cells = np.ones((SIZE, SIZE), dtype=bool)
    cells[:, SIZE // 2 : SIZE // 2 + 1] = False  # two cells, parted by a line of one pixel; the other has no nucleus
    free_um2 = (SIZE * PIXEL_UM / 2 - 8) * (SIZE * PIXEL_UM - 8)
    assert found(real, real, cells).counts["chance_cell_4um"] == pytest.approx(math.pi * 16 / free_um2, rel=0.08)
    elsewhere = np.zeros((SIZE, SIZE), dtype=bool)
    elsewhere[:, SIZE // 2 :] = True  # a large cell, in which this nucleus does not lie
    assert found(real, real, elsewhere).counts["chance_cell_4um"] == 1


def test_the_papers_counts_give_the_papers_shares_and_tails():
    """Intervals and log10 tails as computed from the printed counts; the printed p-values do not follow from them."""
    sums = dict.fromkeys(COUNTS, 0.0)
    sums |= {"nuclei_real": 9659, "nuclei_generated": 8151, "matched_4um": 5785, "matched_1um": 2328}
    sums |= {"chance_image_4um": 9659 / 505.5, "chance_cell_4um": 9659 * 0.5}
    shares = statistics(sums)
    expected = {"matched_4um": 0.7097, "matched_4um_low": 0.6997, "matched_4um_high": 0.7196}
    expected |= {"matched_1um": 0.2856, "matched_1um_low": 0.2758, "matched_1um_high": 0.2956}
    expected |= {"detection_rate": 0.8439, "count_error": 0.1561}
    for name, value in expected.items():
        assert shares[name] == pytest.approx(value, abs=5e-5), name
    assert shares["log10_p_image_4um"] == pytest.approx(-13513, abs=1)
    assert shares["log10_p_cell_4um"] == pytest.approx(-323.0, abs=0.1)
    for name in ("matched_4um", "matched_1um"):
        assert shares[f"{name}_wilson_low"] == pytest.approx(shares[f"{name}_low"], abs=5e-4)


def test_sums_add_images_whose_truth_is_known():
    real = discs((20, 20), (70, 45))
    rows = [found(real, real).counts, found(discs((20, 20)), real).counts]
    unknown = count_nuclei(real, None, None, pixel_size_um=PIXEL_UM, minimum_area_um2=10.0).counts
    sums = added([*rows, unknown])
    assert (sums["nuclei_real"], sums["nuclei_generated"], sums["paired_4um"]) == (4, 3, 3)
    metric = NucleusSums()
    for row in rows:
        metric.update(row)
    shares = metric.compute()
    assert shares["recall"] == pytest.approx(0.75)
    assert shares["precision"] == 1
    assert shares["f1"] == pytest.approx(6 / 7)
    metric.reset()
    assert metric.sums.eq(torch.zeros(len(COUNTS))).all()
