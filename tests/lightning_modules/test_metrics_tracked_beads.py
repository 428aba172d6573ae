"""A field against tracked beads: values by hand."""

import numpy as np
import pytest

from lightning_modules.metrics.tracked_beads import at_beads, block_error, inward_share, median_length_um

VOXEL_UM = (0.8, 0.5, 0.25)  # z, y, x


def slope():
    """u_x = 2 x, u_y = -y, u_z = 1 + z, in um, on 4 x 5 x 6 voxels."""
    z, y, x = np.meshgrid(*(np.arange(n) * step for n, step in zip((4, 5, 6), VOXEL_UM, strict=True)), indexing="ij")
    return np.stack((2 * x, -y, 1 + z))


def test_a_linear_field_is_read_exactly_and_nothing_outside():
    position = np.array([[0.3, 1.1, 2.0], [1.25, 2.0, 2.4], [1.3, 0.0, 0.0], [0.0, 0.0, -0.1]])
    found = at_beads(slope(), position, VOXEL_UM)
    np.testing.assert_allclose(found[:2], [[0.6, -1.1, 3.0], [2.5, -2.0, 3.4]], atol=1e-12)
    assert np.isnan(found[2:]).all()


def test_a_block_compares_the_same_beads_on_both_sides():
    position = np.array([[0.0, 0, 0], [1.0, 0, 0], [-1.0, 0, 0], [1.5, 0, 0], [0, 0, 9.0]])
    tracked = np.zeros((5, 3))
    tracked[3] = 100.0  # outside the volume: not found
    found = np.array([[3.0, 4, 0], [3.0, 4, 0], [9.0, 9, 9], [np.nan] * 3, [50.0] * 3])
    error = block_error(found, tracked, position, centre_um=np.zeros(3), size_um=np.array([4.0, 2, 2]))
    assert error == (5.0, 3)
    empty = block_error(found, tracked, position, centre_um=np.full(3, 40.0), size_um=np.ones(3))
    assert empty is None


def test_lengths_and_signs_by_hand():
    moved = np.array([[0.0, 0, 2], [0.0, 0, 4], [np.nan] * 3, [0, 3.0, 4.0]])
    distance = np.array([0.0, 1.0, 2.0, 5.0])
    assert median_length_um(moved, distance, 0, 5) == 3.0
    assert median_length_um(moved, distance, 5, 9) == 5.0
    assert np.isnan(median_length_um(moved, distance, 9, 12))
    below = np.array([[0.0, 0, -1], [0, 0, 5.0], [0, 0, -1], [0.0, -1, -1]])
    assert inward_share(moved, below, np.zeros(3)) == pytest.approx(2 / 3)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"^displacement_um must have shape \(3, z, y, x\)"):
        at_beads(np.zeros((2, 3, 3, 3)), np.zeros((1, 3)), VOXEL_UM)
    with pytest.raises(ValueError, match=r"^position_um must have shape \(n, 3\)"):
        inward_share(np.zeros((1, 3)), np.zeros((1, 2)), np.zeros(3))
