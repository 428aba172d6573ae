"""Nuclei of a real field: HT29 cells, DNA and actin, with the component counts recorded beside it."""

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_modules.metrics.nuclei import count, match, otsu_threshold, regions, segment

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "tfill"
PAIR, NUMBERS = REAL / "pair.npz", REAL / "reference_numbers.json"

pytestmark = pytest.mark.skipif(not PAIR.is_file() or not NUMBERS.is_file(), reason="needs the field tfill/pair.npz")


@pytest.fixture(scope="module")
def dna():
    with np.load(PAIR) as arrays:
        dna, actin = arrays["nuclei_dna"], arrays["actin"]
    recorded = json.loads(NUMBERS.read_text())["pearson_dna_actin"]
    assert np.corrcoef(dna.ravel(), actin.ravel())[0, 1] == pytest.approx(recorded), "another field"
    return dna


@pytest.mark.parametrize(("minimum_area_px", "connectivity", "components"), [(30, 2, 269), (30, 1, 270), (50, 2, 263)])
def test_components_of_the_real_nuclei(dna, minimum_area_px, connectivity, components):
    labels = segment(dna, minimum_area_px=minimum_area_px, connectivity=connectivity)
    assert labels.max() == len(np.unique(labels)) - 1 == components


def test_threshold_and_area_of_the_real_nuclei_are_those_recorded(dna):
    recorded = json.loads(NUMBERS.read_text())
    assert otsu_threshold(dna) == pytest.approx(recorded["dna_otsu_after_gauss1"], rel=1e-9)
    areas = regions(segment(dna, minimum_area_px=30)).area_px
    assert np.median(areas) == pytest.approx(recorded["median_area_px"])
    assert segment(dna, minimum_area_px=0).astype(bool).mean() == pytest.approx(
        recorded["nuclear_area_fraction"], rel=0.01
    )


def test_real_nuclei_match_themselves_and_their_shifted_image(dna):
    labels = segment(dna)
    for method in ("largest_overlap", "one_to_one"):
        itself = match(labels, labels, pixel_size_um=0.5, method=method)
        assert itself.real_index.tolist() == list(range(263))
        assert itself.distance_um.max() == 0
    rolled = np.roll(labels, 2, axis=1)
    whole = np.flatnonzero((itself.real.box_px[:, 1] > 0) & (itself.real.box_px[:, 3] < 510))
    shifted = match(rolled, labels, pixel_size_um=0.5, method="one_to_one")
    assert (np.abs(shifted.distance_um[whole] - 1.0) < 1e-9).mean() > 0.97
    counts = count(np.roll(dna, 2, axis=1), dna, pixel_size_um=0.4)
    assert counts.real == 263
    assert counts.strictly_matched >= 0.95 * 263
