"""The symmetries of the grid: a group of eight under which elasticity does not change."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from datamodules.augmentation.grid_symmetries import GridSymmetry
from physics.half_space import displacement_from_traction
from physics.vector_fields import flip, rotate

ALL = [GridSymmetry(*bits) for bits in itertools.product((False, True), repeat=3)]


def field(seed: int = 0, size: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, size, size))


@pytest.mark.parametrize("symmetry", ALL)
def test_a_moved_pair_is_another_pair(symmetry: GridSymmetry) -> None:
    traction = field()
    substrate = {"pixel_size_um": 1.0, "youngs_modulus_pa": 1.0, "poisson_ratio": 0.4}

    def displaced(values: np.ndarray) -> np.ndarray:
        return displacement_from_traction(torch.from_numpy(values.copy()), **substrate).numpy()

    expected = symmetry.move_vectors(displaced(traction))
    np.testing.assert_allclose(displaced(symmetry.move_vectors(traction)), expected, atol=1e-12)


def test_the_eight_are_the_mirrors_and_quarter_turns_of_the_physics_floor() -> None:
    values = field(1)
    tensor = torch.from_numpy(values)
    turned = [rotate(tensor, quarter * np.pi / 2) for quarter in range(4)]
    expected = {one.numpy().tobytes() for one in [*turned, *(flip(one, "x") for one in turned)]}
    found = {np.ascontiguousarray(symmetry.move_vectors(values)).tobytes() for symmetry in ALL}
    assert len(expected) == 8
    assert found == expected


def test_vectors_follow_a_radial_field_and_masks_follow_the_pixels() -> None:
    y, x = np.mgrid[:9, :9] - 4.0
    radial = np.stack([x, y])
    mask = x > y + 1
    for symmetry in ALL:
        np.testing.assert_array_equal(symmetry.move_vectors(radial), radial)
        marked = symmetry.move_vectors(radial * mask)
        np.testing.assert_array_equal((marked != 0).any(axis=0), symmetry.move_pixels(mask))


def test_draws_are_even_and_depend_on_seed_epoch_and_index_alone() -> None:
    draws = [GridSymmetry.draw(seed=1, epoch=epoch, index=index) for epoch in range(10) for index in range(80)]
    assert draws == [GridSymmetry.draw(seed=1, epoch=epoch, index=index) for epoch in range(10) for index in range(80)]
    counts = Counter(draws)
    assert len(counts) == 8
    assert min(counts.values()) > 60
    assert draws[:80] != draws[80:160]


def test_a_field_that_is_not_square_keeps_its_shape() -> None:
    draws = {GridSymmetry.draw(square=False, seed=1, epoch=0, index=index) for index in range(80)}
    assert draws == {symmetry for symmetry in ALL if not symmetry.transposed}
    assert {symmetry.move_vectors(np.zeros((2, 4, 7))).shape for symmetry in draws} == {(2, 4, 7)}
