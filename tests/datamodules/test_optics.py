"""Phase contrast, light and camera against closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from datamodules.simulators import optics

HALO_PX = 3.0
RING = 0.5


def test_an_even_specimen_is_as_bright_as_the_background() -> None:
    for phase in (0.0, 0.4, 3.0):
        picture = optics.phase_contrast(
            np.full((64, 64), phase, np.float32), halo_sigma_px=HALO_PX, ring_amplitude=RING
        )
        np.testing.assert_allclose(picture, 1.0, atol=1e-5)


def test_a_weak_specimen_shows_its_high_passed_phase() -> None:
    rng = np.random.default_rng(0)
    phase = 1e-3 * gaussian_filter(rng.standard_normal((128, 128)), 4.0, mode="mirror")
    phase /= np.abs(phase).max() / 1e-3
    wide = optics.WIDE_SHARE
    passed = (1 - wide) * gaussian_filter(phase, HALO_PX, mode="mirror")
    passed += wide * gaussian_filter(phase, 4 * HALO_PX, mode="mirror")
    expected = -2.0 * (phase - passed) / RING
    picture = optics.phase_contrast(phase.astype(np.float32), halo_sigma_px=HALO_PX, ring_amplitude=RING)
    inside = slice(24, 104)
    error = (picture - 1.0 - expected)[inside, inside]
    assert np.abs(error).max() < 0.05 * np.abs(expected).max()


def test_a_thick_disc_is_dark_in_a_bright_halo() -> None:
    rows, columns = np.indices((96, 96))
    distance = np.hypot(rows - 47.5, columns - 47.5)
    phase = (0.3 * (distance < 10)).astype(np.float32)
    picture = optics.phase_contrast(phase, halo_sigma_px=HALO_PX, ring_amplitude=RING)
    assert picture[distance < 8].mean() < 0.9
    assert picture[(distance > 11) & (distance < 14)].mean() > 1.1
    assert picture[distance > 45].mean() == pytest.approx(1.0, abs=0.02)


def test_a_constant_delay_over_everything_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    phase = rng.uniform(0.0, 1.0, (64, 64)).astype(np.float32)
    here = optics.phase_contrast(phase, halo_sigma_px=HALO_PX, ring_amplitude=RING)
    there = optics.phase_contrast(phase + np.float32(0.7), halo_sigma_px=HALO_PX, ring_amplitude=RING)
    np.testing.assert_allclose(here, there, atol=1e-4)


@pytest.mark.parametrize(("halo", "ring", "name"), [(1.0, 0.5, "halo_sigma_px"), (3.0, 0.0, "ring_amplitude")])
def test_impossible_optics_are_refused_by_name(halo: float, ring: float, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        optics.phase_contrast(np.zeros((32, 32), np.float32), halo_sigma_px=halo, ring_amplitude=ring)


def test_blur_agrees_with_scipy_and_zero_leaves_the_image() -> None:
    image = np.random.default_rng(3).standard_normal((40, 48)).astype(np.float32)
    expected = gaussian_filter(image, 1.5, mode="mirror", truncate=3.4)
    np.testing.assert_allclose(optics.blur(image, 1.5), expected, atol=5e-3)
    assert optics.blur(image, 0.0) is image


def test_light_has_mean_one_and_rises_along_its_slope_with_y_up() -> None:
    light = optics.illumination(
        101, slope=0.2, slope_direction_rad=np.pi / 2, vignette=0.0, vignette_centre_px=(50.0, 50.0)
    )
    assert light.mean() == pytest.approx(1.0, abs=1e-6)
    assert light[0, 50] - light[100, 50] == pytest.approx(0.2 * 100 / 101, rel=1e-4)
    np.testing.assert_allclose(light[:, 0], light[:, -1], atol=1e-6)


def test_vignetting_falls_by_its_amount_half_a_frame_from_its_centre() -> None:
    light = optics.illumination(101, slope=0.0, slope_direction_rad=0.0, vignette=0.1, vignette_centre_px=(50.0, 50.0))
    assert light[50, 50] - light[50, 0] == pytest.approx(0.1, rel=1e-4)
    assert light[50, 50] - light[0, 0] == pytest.approx(0.2, rel=1e-4)


def test_a_defocused_body_touches_nothing_far_away_and_scales_with_its_strength() -> None:
    pictures = [
        optics.defocused_body(
            160, centre_px=(50.0, 60.0), radius_px=30.0, strength=strength, rng=np.random.default_rng(5)
        )
        for strength in (0.05, 0.1)
    ]
    np.testing.assert_allclose(2.0 * pictures[0], pictures[1], rtol=1e-5)
    rows, columns = np.indices((160, 160))
    far = np.hypot(rows - 60.0, columns - 50.0) > 60.0
    assert np.abs(pictures[1][far]).max() < 1e-4
    assert np.abs(pictures[1]).max() > 0.05


def test_the_camera_adds_noise_whose_variance_follows_the_brightness() -> None:
    rng = np.random.default_rng(6)
    for brightness in (0.5, 1.0, 1.6):
        picture = optics.camera(
            np.full((400, 400), brightness, np.float32), background_grey=100.0, noise_grey=4.0, rng=rng
        ).astype(float)
        variance = 16.0 * brightness + 1.0 / 12.0  # rounding to whole grey levels adds a twelfth
        assert picture.mean() == pytest.approx(100.0 * brightness, abs=5 * np.sqrt(variance) / 400)
        assert picture.var() == pytest.approx(variance, rel=5 * np.sqrt(2.0) / 400)


def test_the_camera_saturates_instead_of_wrapping() -> None:
    rng = np.random.default_rng(7)
    picture = optics.camera(np.array([[-1.0, 0.0, 5.0]], np.float32), background_grey=100.0, noise_grey=0.0, rng=rng)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, [[0, 0, 255]])


def test_a_dark_camera_is_refused() -> None:
    with pytest.raises(ValueError, match="background_grey"):
        optics.camera(np.ones((4, 4), np.float32), background_grey=0.0, noise_grey=1.0, rng=np.random.default_rng(0))
