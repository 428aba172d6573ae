"""Noise of displacements: magnitudes, correlation, planes; a function of (seed, epoch, index) and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.augmentation import displacement_noise
from datamodules.augmentation.displacement_noise import DisplacementNoise

DRAWS = 400
SIZE = {"height_px": 40, "width_px": 56}


def drawn(noise: DisplacementNoise, *, draws: int = DRAWS, **size: int) -> np.ndarray:
    return np.stack([noise.draw(**(size or SIZE), seed=5, epoch=2, index=index) for index in range(draws)])


@pytest.mark.parametrize("name", ["white_px", "correlated_px", "drift_px", "tilt_px"])
def test_the_magnitude_is_the_root_mean_square_length_of_the_vectors(name: str) -> None:
    noise = drawn(DisplacementNoise(**{name: 0.3}))
    assert noise.shape == (DRAWS, 2, 40, 56)
    assert noise.dtype == np.float32
    assert np.sqrt((noise**2).sum(axis=1).mean()) == pytest.approx(0.3, rel=0.06)
    assert (noise[:, 0] ** 2).mean() == pytest.approx((noise[:, 1] ** 2).mean(), rel=0.25)
    assert np.abs(noise.mean()) < 0.03


def test_white_noise_has_the_published_sd_per_component_and_no_memory() -> None:
    noise = drawn(DisplacementNoise(white_px=0.0188), draws=60)
    assert noise.std() == pytest.approx(0.0188 / np.sqrt(2), rel=0.01)
    assert np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1] == pytest.approx(0, abs=0.01)
    assert np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("length", [1.5, 4.0, 9.0])
def test_correlated_noise_falls_to_one_over_e_at_its_length_and_keeps_its_variance_at_the_rim(length: float) -> None:
    noise = drawn(DisplacementNoise(correlated_px=1.0, correlation_length_px=length))
    variance = (noise**2).mean(axis=(0, 1))
    assert variance.mean() == pytest.approx(0.5, rel=0.05)
    for edge in (variance[0], variance[-1], variance[:, 0], variance[:, -1]):
        assert edge.mean() == pytest.approx(0.5, rel=0.15)
    for distance in (1, 3, 6):
        expected = np.exp(-((distance / length) ** 2))
        for axis in (2, 3):
            here, there = (np.take(noise, range(s, noise.shape[axis] - distance + s), axis) for s in (0, distance))
            assert (here * there).mean() / 0.5 == pytest.approx(expected, abs=0.05)
    opposite = (noise[..., 0] * noise[..., -1]).mean() / 0.5
    assert opposite == pytest.approx(0, abs=0.05)  # nothing wraps around


def test_drift_is_constant_and_tilt_a_plane_through_zero_in_the_middle() -> None:
    drift = drawn(DisplacementNoise(drift_px=1.0), draws=20)
    np.testing.assert_array_equal(drift, np.broadcast_to(drift[..., :1, :1], drift.shape))
    tilt = drawn(DisplacementNoise(tilt_px=1.0), draws=20).astype(np.float64)
    np.testing.assert_allclose(np.diff(tilt, n=2, axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(np.diff(tilt, n=2, axis=-2), 0, atol=1e-5)
    np.testing.assert_allclose(tilt, -tilt[..., ::-1, ::-1], atol=1e-5)
    assert (np.abs(np.diff(tilt, axis=-1)).max(axis=(2, 3)) > 0).all()
    assert (np.abs(np.diff(tilt, axis=-2)).max(axis=(2, 3)) > 0).all()


def test_a_draw_depends_on_seed_epoch_and_index_alone() -> None:
    noise = DisplacementNoise(white_px=0.1, correlated_px=0.1, drift_px=0.1, tilt_px=0.1)
    first = noise.draw(**SIZE, seed=1, epoch=2, index=3)
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        seed, epoch, index = other
        assert (noise.draw(**SIZE, seed=seed, epoch=epoch, index=index) != first).any()
    np.testing.assert_array_equal(noise.draw(**SIZE, seed=1, epoch=2, index=3), first)


def test_the_kinds_add_up_and_do_not_disturb_each_other() -> None:
    kinds = {"white_px": 0.1, "correlated_px": 0.2, "drift_px": 0.3, "tilt_px": 0.4}
    together = DisplacementNoise(**kinds).draw(**SIZE, seed=1, epoch=0, index=9)
    alone = [DisplacementNoise(**{k: v}).draw(**SIZE, seed=1, epoch=0, index=9) for k, v in kinds.items()]
    np.testing.assert_allclose(together, sum(alone), atol=1e-6)
    assert not DisplacementNoise().draw(**SIZE, seed=1, epoch=0, index=9).any()


def test_fields_one_pixel_wide_and_kept_filters_do_no_harm() -> None:
    noise = DisplacementNoise(white_px=0.1, correlated_px=0.1, drift_px=0.1, tilt_px=0.1)
    assert np.isfinite(noise.draw(height_px=1, width_px=1, seed=0, epoch=0, index=0)).all()
    before = noise.draw(**SIZE, seed=0, epoch=0, index=1).copy()
    noise.draw(**SIZE, seed=0, epoch=0, index=1)[:] = 99.0
    np.testing.assert_array_equal(noise.draw(**SIZE, seed=0, epoch=0, index=1), before)
    with pytest.raises(ValueError, match="read-only"):
        displacement_noise._ramp(8)[0] = 1.0


@pytest.mark.parametrize(
    "bad", [{"white_px": -0.1}, {"drift_px": float("nan")}, {"correlation_length_px": 0.0}, {"tilt_px": float("inf")}]
)
def test_bad_numbers_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        DisplacementNoise(**bad)


def test_an_empty_field_is_refused() -> None:
    with pytest.raises(ValueError, match="height_px"):
        DisplacementNoise(white_px=1.0).draw(height_px=0, width_px=3, seed=0, epoch=0, index=0)
