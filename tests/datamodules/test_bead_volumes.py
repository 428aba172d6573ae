"""Beads, blur and camera against formulas and statistics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from datamodules.simulators.bead_volumes import (
    Blur,
    Camera,
    check_packing,
    localisation_sd_voxels,
    render,
    scatter_beads,
)

BLUR = Blur(1.0, 2.0)
TAIL = 3e-3  # of a bead's peak: the point-spread function ends at 3.5 standard deviations


def formula(centres: np.ndarray, brightness: np.ndarray, shape: tuple[int, int, int], blur: Blur) -> np.ndarray:
    z, y, x = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    total = np.zeros(shape)
    for (cx, cy, cz), peak in zip(centres, brightness, strict=True):
        r2 = ((x - cx) ** 2 + (y - cy) ** 2) / blur.xy_voxels**2 + (z - cz) ** 2 / blur.z_voxels**2
        total += peak * np.exp(-0.5 * r2)
    return total


def test_a_volume_is_the_sum_of_its_blurred_beads_those_beyond_its_faces_included() -> None:
    rng = np.random.default_rng(0)
    shape = (12, 17, 14)
    centres = rng.uniform(-4, np.array(shape[::-1]) + 4, (60, 3))
    brightness = rng.uniform(0.5, 1, 60)
    expected = formula(centres, brightness, shape, BLUR)
    np.testing.assert_allclose(render(centres, brightness, shape, BLUR), expected, rtol=0, atol=3 * TAIL)


@given(shift=st.tuples(*[st.floats(-0.5, 0.5)] * 3))
def test_the_centre_of_a_bead_is_where_it_was_put(shift: tuple[float, float, float]) -> None:
    centre = np.array([[11.0, 10.0, 15.0]]) + shift
    volume = render(centre, np.ones(1), (32, 21, 23), BLUR)
    grid = np.meshgrid(*(np.arange(size) for size in volume.shape), indexing="ij")
    found = [float((volume * axis).sum() / volume.sum()) for axis in grid[::-1]]
    np.testing.assert_allclose(found, centre[0], atol=0.02)


def test_no_bead_in_view_is_darkness() -> None:
    assert not render(np.full((3, 3), -40.0), np.ones(3), (8, 8, 8), BLUR).any()


@pytest.mark.parametrize(("density", "distance"), [(0.01, 2.0), (0.03, 2.0), (0.02, 0.0)])
def test_beads_have_their_density_and_distance_and_fill_the_box_evenly(density: float, distance: float) -> None:
    low, high = np.array([-3.0, 0.0, 2.0]), np.array([30.0, 40.0, 50.0])
    beads = scatter_beads(np.random.default_rng(1), low, high, density=density, distance_voxels=distance)
    assert len(beads) == round(density * 33 * 40 * 48)
    assert ((beads >= low) & (beads < high)).all()
    assert pdist(beads).min() >= distance
    half = (beads < (low + high) / 2).mean(axis=0)
    np.testing.assert_allclose(half, 0.5, atol=4 * 0.5 / np.sqrt(len(beads)))


def test_too_many_beads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^density 0.1 per voxel leaves no room for a minimum distance of 2 voxels"):
        check_packing(0.1, 2.0)


def test_grey_levels_have_the_mean_and_variance_of_photons_and_read_noise() -> None:
    camera = Camera(photons=300.0, background_photons=20.0, read_noise_photons=5.0, offset_grey=100.0)
    grey = camera.expose(np.full((40, 40, 40), 0.5, np.float32), np.random.default_rng(2))
    assert grey.dtype == np.uint16
    assert grey.mean() == pytest.approx(100 + 170, abs=0.3)
    assert grey.var() == pytest.approx(170 + 25 + 1 / 12, rel=0.03)


def test_grey_levels_stay_within_sixteen_bits() -> None:
    bright = Camera(1e6, 0.0, 0.0, 0.0).expose(np.ones((8, 8, 8)), np.random.default_rng(0))
    assert (bright == 65535).all()
    dark = Camera(1.0, 0.0, 50.0, 0.0).expose(np.zeros((8, 8, 8)), np.random.default_rng(0))
    assert dark.min() == 0


def test_without_background_the_localisation_bound_is_the_width_over_the_root_of_the_photons() -> None:
    found = localisation_sd_voxels(BLUR, Camera(100.0, 0.0, 0.0, 0.0), 0.5)
    photons = 50 * (2 * np.pi) ** 1.5 * 1.0 * 1.0 * 2.0
    np.testing.assert_allclose(found, np.array([1.0, 1.0, 2.0]) / np.sqrt(photons), rtol=0.02)
    assert (localisation_sd_voxels(BLUR, Camera(100.0, 20.0, 5.0, 0.0), 0.5) > found).all()
