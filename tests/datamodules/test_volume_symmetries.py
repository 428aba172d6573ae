"""Symmetries of volumes: beads and the displacement between them move together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from datamodules.augmentation.volume_symmetries import VolumeSymmetry, draw_patch

ALL = [VolumeSymmetry(*flags) for flags in itertools.product((False, True), repeat=4)]


@pytest.mark.parametrize("symmetry", ALL, ids=str)
def test_a_moved_vector_leads_from_the_moved_bead_to_where_it_moved(symmetry: VolumeSymmetry) -> None:
    z, y, x = np.array([2, 6, 3]), np.array([7, 2, 4]), np.array([5, 3, 8])
    step = np.array([[2, -1, 1], [0, 3, -2], [-3, 1, 2]])  # (bead, component x, y, z)
    before, after, field = np.zeros((9, 11, 13)), np.zeros((9, 11, 13)), np.zeros((3, 9, 11, 13))
    before[z, y, x] = (1, 2, 3)
    after[z + step[:, 2], y + step[:, 1], x + step[:, 0]] = (1, 2, 3)
    field[:, z, y, x] = step.T
    before, after = symmetry.move_voxels(before), symmetry.move_voxels(after)
    field = symmetry.move_vectors(field)
    assert before.shape == field.shape[1:]
    for bead in (1, 2, 3):
        here, there = np.argwhere(before == bead)[0], np.argwhere(after == bead)[0]
        np.testing.assert_array_equal(field[(slice(None), *here)], (there - here)[::-1])


def test_an_exchange_exchanges_the_edges_of_a_voxel() -> None:
    edges = np.array([3.0, 2.0, 1.0])
    np.testing.assert_array_equal(VolumeSymmetry(True, True, False, True).move_voxel_size(edges), [3.0, 1.0, 2.0])
    np.testing.assert_array_equal(VolumeSymmetry(False, True, True, True).move_voxel_size(edges), edges)


def test_draws_repeat_reach_every_symmetry_and_spare_what_is_not_square() -> None:
    drawn = [VolumeSymmetry.draw(seed=1, epoch=0, index=index, square=True) for index in range(400)]
    assert set(drawn) == set(ALL)
    assert drawn[:5] == [VolumeSymmetry.draw(seed=1, epoch=0, index=index, square=True) for index in range(5)]
    assert drawn[:50] != [VolumeSymmetry.draw(seed=1, epoch=1, index=index, square=True) for index in range(50)]
    flat = {VolumeSymmetry.draw(seed=1, epoch=0, index=index, square=False) for index in range(200)}
    assert flat == {symmetry for symmetry in ALL if not symmetry.transposed}


def test_patches_repeat_fit_and_reach_both_ends() -> None:
    drawn = [draw_patch((9, 8, 12), (8, 8, 9), seed=3, epoch=1, index=index) for index in range(200)]
    assert drawn[7] == draw_patch((9, 8, 12), (8, 8, 9), seed=3, epoch=1, index=7)
    for axis, starts in enumerate(({0, 1}, {0}, {0, 1, 2, 3})):
        assert {part[axis].start for part in drawn} == starts
        assert {part[axis].stop - part[axis].start for part in drawn} == {(8, 8, 9)[axis]}
    with pytest.raises(ValueError, match=r"^patch_zyx \[8, 9, 8\] must fit into the volume of \[8, 8, 8\] voxels"):
        draw_patch((8, 8, 8), (8, 9, 8), seed=0, epoch=0, index=0)
