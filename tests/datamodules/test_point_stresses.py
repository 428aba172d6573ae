"""Point stresses: balance, placement and scale against sums by hand; polygon interiors against scikit-image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from datamodules.simulators import point_stresses
from datamodules.simulators.point_stresses import Placed, balanced_strength, imbalance, place, shrunk
from physics.polygons import polygon_interior

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "dl_tfm"
ANGLE = np.arange(360) * (2 * np.pi / 360)
ROUNDING_PX = 1.0  # corners and stresses stand on whole pixels


def wavy(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Radius and signed signal of a smooth made-up cell, (360,) each."""
    rng = np.random.default_rng(seed)
    orders = np.arange(2, 6)
    waves = np.cos(np.multiply.outer(ANGLE, orders) + rng.uniform(0, 6.3, 4)) @ rng.normal(0, 0.4 / orders)
    signal = 6.0 * np.cos(ANGLE - rng.uniform(0, 6.3)) + rng.uniform(-1, 2)
    return 30.0 * np.exp(waves), signal


def net_force(strength: np.ndarray) -> np.ndarray:
    return np.array([-(strength * np.cos(ANGLE)).sum(), (strength * np.sin(ANGLE)).sum()])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_the_balancing_factor_leaves_the_smallest_net_force(seed: int) -> None:
    _, signal = wavy(seed)
    strength = balanced_strength(signal, ANGLE, threshold=0.5)
    kept = np.where(np.abs(signal) < 0.5, 0.0, signal)

    def remaining(factor: float) -> float:
        return float(np.linalg.norm(net_force(np.where(kept > 0, kept, -factor * kept))))

    best = minimize_scalar(remaining, bounds=(0.0, 50.0), method="bounded", options={"xatol": 1e-10})
    assert np.linalg.norm(net_force(strength)) == pytest.approx(best.fun, abs=1e-4)
    np.testing.assert_array_equal(strength[kept > 0], kept[kept > 0])
    np.testing.assert_array_equal(strength == 0, kept == 0)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), turn=st.floats(0, 7))
def test_balance_does_not_depend_on_how_the_cell_lies(seed: int, turn: float) -> None:
    _, signal = wavy(seed)
    strength = balanced_strength(signal, ANGLE)
    np.testing.assert_allclose(balanced_strength(signal, ANGLE + turn), strength, rtol=1e-9)
    # looked at in steps of one degree
    assert imbalance(strength, ANGLE + turn) == pytest.approx(imbalance(strength, ANGLE), abs=2e-3)


def test_signals_that_cannot_be_balanced_make_no_stress() -> None:
    for signal in (np.ones(360) * 5, -np.ones(360), np.zeros(360), np.where(np.cos(ANGLE) > 0.9, 9.0, 0.0)):
        strength = balanced_strength(signal, ANGLE)
        assert not strength.any()
        assert imbalance(strength, ANGLE) == np.inf
    same_side = np.where(np.cos(ANGLE) > 0.9, 9.0, 0.0) - np.where(np.cos(ANGLE + 0.5) > 0.99, 5.0, 0.0)
    assert not balanced_strength(same_side, ANGLE).any()


def test_the_threshold_is_taken_of_ten_times_a_signal_below_one() -> None:
    signal = np.cos(ANGLE) * 0.5
    strength = balanced_strength(signal, ANGLE, threshold=1.0)
    np.testing.assert_allclose(
        strength, np.where(np.abs(5 * np.cos(ANGLE)) < 1, 0, np.abs(5 * np.cos(ANGLE))), atol=1e-9
    )


def test_imbalance_of_two_unequal_halves_is_their_relative_difference() -> None:
    assert imbalance(np.ones(360), ANGLE) == pytest.approx(0, abs=1e-12)
    assert imbalance(np.where(np.cos(ANGLE) > 0, 3.0, 2.0), ANGLE) == pytest.approx(0.2, abs=0.005)
    assert imbalance(np.where(ANGLE == 0, 1.0, 0.0), ANGLE) == pytest.approx(1.0)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), magnification=st.sampled_from([1.0, 160 / 104]))
def test_placed_stresses_sum_to_those_of_the_three_layers(seed: int, magnification: float) -> None:
    radius, signal = wavy(seed)
    strength, turns = np.abs(signal), np.array([0.0, 0.3, 2.0])
    rng = np.random.default_rng(seed)
    placed = place(radius, ANGLE, strength, rotations_rad=turns, grid_size_px=160, magnification=magnification, rng=rng)
    for index, turn in enumerate(turns):
        angle = ANGLE + turn
        inward = np.stack([-np.cos(angle), np.sin(angle)]) * strength
        expected = inward[:, ::2].sum(axis=1) + inward[:, ::6].sum(axis=1) + 5.0 * inward[:, ::10].sum(axis=1)
        np.testing.assert_allclose(placed.stress[index].sum(axis=(1, 2)), expected, atol=1e-8)
        extent = np.ptp(placed.outline_px[index], axis=1)
        assert extent.max() == pytest.approx(64 * magnification, abs=ROUNDING_PX)
        middle = placed.outline_px[index].min(axis=1) + 0.5 * extent
        np.testing.assert_allclose(middle, 0.5 * 159, atol=ROUNDING_PX)


def test_stresses_point_inwards_from_inside_the_outline() -> None:
    placed = place(
        np.full(360, 7.0), ANGLE, np.ones(360), rotations_rad=np.zeros(1), grid_size_px=104, magnification=1.0,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    stress, centre = placed.stress[0], placed.outline_px[0].min(axis=1) + 32.0
    y, x = np.nonzero(np.hypot(*stress))
    arm = np.stack([x, y], axis=1) - centre
    assert (np.hypot(*arm.T) <= 32 - 3 + 2 * ROUNDING_PX).all()
    far = np.hypot(*arm.T) > 12
    cosine = -(stress[:, y, x].T * arm).sum(axis=1) / np.hypot(*stress[:, y, x]) / np.hypot(*arm.T)
    assert cosine[far].min() > 0.97
    assert polygon_interior(placed.outline_px[0], 104, 104)[y, x].all()
    # 180 + 60 + 36 x 9 points, some on top of each other
    assert 350 < len(x) <= 564


@pytest.mark.slow
def test_depths_follow_the_three_poisson_laws() -> None:
    """A single spoke, to the right of the middle; the third layer is blurred over the rows beside it too."""
    spoke = np.where(np.arange(360) == 0, 1.0, 0.0)  # point 0 belongs to all layers
    placed = place(
        np.full(360, 1.0), ANGLE, spoke, rotations_rad=np.zeros(2000), grid_size_px=104, magnification=1.0,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    row = -placed.stress[:, 0].sum(axis=0)  # (y, x), all rotations together
    tip = int(placed.outline_px[0, 0].max())
    depth = tip - np.arange(104)
    beside = row[int(placed.outline_px[0, 1, 0]) + 1] / 1.4 / 2000  # one row off the spoke: the blurred layer alone
    assert beside.sum() == pytest.approx(1.0)
    assert (beside * depth).sum() == pytest.approx(3 + 6, abs=0.15)
    on_spoke = row[int(placed.outline_px[0, 1, 0])] / 2000
    assert on_spoke.sum() == pytest.approx(1 + 1 + 2.2)
    assert (on_spoke * depth).sum() == pytest.approx((3 + 1) + (3 + 2) + 2.2 * (3 + 6), abs=0.35)


def test_shrinking_takes_the_pixel_that_a_centre_falls_into() -> None:
    rows, columns = np.indices((160, 160)).astype(float)
    small = shrunk(Placed(np.stack([columns, rows])[None], np.array([[[30.0, 129.0], [0.0, 19.0]]])), 104)
    assert small.stress.shape == (1, 2, 104, 104)
    centres = (np.arange(104) + 0.5) / 0.65 - 0.5
    assert np.abs(small.stress[0, 0, 0] - centres).max() <= 0.5
    np.testing.assert_array_equal(small.stress[0, 0], small.stress[0, 1].T)
    np.testing.assert_allclose(small.outline_px[0], [[31 * 0.65 - 1, 130 * 0.65 - 1], [0.65 - 1, 12.0]])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: balanced_strength(np.zeros(3), np.zeros(4)), "net_signal"),
        (lambda: balanced_strength(np.zeros(3), np.zeros(3), threshold=-1.0), "threshold"),
        (lambda: shrunk(Placed(np.zeros((1, 2, 8, 8)), np.zeros((1, 2, 3))), 9), "grid_size_px"),
    ],
)
def test_bad_numbers_are_named(call: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(("bad", "named"), [({"magnification": 2.0}, "magnification"), ({"strength": 3}, "strength")])
def test_a_cell_that_does_not_fit_is_refused(bad: dict[str, float], named: str) -> None:
    strength = np.ones(int(bad.get("strength", 360)))
    with pytest.raises(ValueError, match=named):
        point_stresses.place(
            np.ones(360), ANGLE, strength, rotations_rad=np.zeros(1), grid_size_px=104,
            magnification=bad.get("magnification", 1.0), rng=np.random.default_rng(0),
        )  # fmt: skip
