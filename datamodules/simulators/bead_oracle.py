"""What a method could reach that knows which bead is which: localised as the photons allow, interpolated smoothly.

No strict bound: elasticity says more about a displacement than smoothness does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from datamodules.simulators.force_cells import Grid, Load
from physics.solid import body_force_n_per_m3, strain, stress

POINTS = 400
"""Voxels, drawn at random, whose error counts."""
NEIGHBOURS = 40
"""Beads that the displacement of a voxel is interpolated from."""
SMOOTHING = (100.0, 1000.0, 10000.0)
"""Of the thin-plate spline; the best for a field is taken."""


class OracleErrors(NamedTuple):
    """Errors on one field."""

    localised_voxels: float
    """Median error of the displacement with beads found to `sd_voxels`."""
    exact_voxels: float
    """The same with exact places: what interpolation costs."""
    nothing_voxels: float
    """The same of predicting no displacement."""
    body_force: float
    """Relative L2 between second differences of the exact displacement and the force density; NaN without density."""


def oracle_errors(
    rng: np.random.Generator,
    grid: Grid,
    load: Load,
    displacement_um: NDArray[Any],
    reference: NDArray[Any],
    deformed: NDArray[Any],
    *,
    sd_voxels: NDArray[Any],
) -> OracleErrors:
    """Errors of the oracle on one field.

    Args:
        rng: Of the localisation's errors and the voxels that count.
        grid: The volume.
        load: What made the displacement.
        displacement_um: (3, z, y, x), exact.
        reference: Places of the beads in voxels, (n, 3); those outside the volume are not used.
        deformed: The same of the deformed volume.
        sd_voxels: Standard deviation of a localisation, (3,), components (x, y, z).
    """
    inside = ((reference > -0.5) & (reference < np.array(grid.shape_zyx[::-1]) - 0.5)).all(axis=1)
    beads = (reference[inside], deformed[inside])
    z, y, x = (rng.integers(size, size=POINTS) for size in grid.shape_zyx)
    truth = displacement_um[:, z, y, x].T / grid.voxel_xyz_um
    draws = rng.standard_normal((2, *beads[0].shape))

    def error(sd: NDArray[Any] | float, smoothing: float) -> float:
        places, moved = (points + sd * draw for points, draw in zip(beads, draws, strict=True))
        neighbours = min(NEIGHBOURS, len(places))
        spline = RBFInterpolator(places, moved - places, neighbors=neighbours, smoothing=smoothing)
        return float(np.median(np.linalg.norm(spline(np.stack((x, y, z), axis=1)) - truth, axis=1)))

    return OracleErrors(
        localised_voxels=min(error(sd_voxels, smoothing) for smoothing in SMOOTHING),
        exact_voxels=error(0.0, 0.0),
        nothing_voxels=float(np.median(np.linalg.norm(truth, axis=1))),
        body_force=_finite_difference_error(grid, load, displacement_um),
    )


def _finite_difference_error(grid: Grid, load: Load, displacement_um: NDArray[Any]) -> float:
    if load.cell.on_surface:
        return float("nan")
    strains = strain(torch.from_numpy(displacement_um), grid.voxel_zyx_um)
    stresses = stress(strains, load.youngs_modulus_pa, load.poisson_ratio)
    found = body_force_n_per_m3(stresses, grid.voxel_zyx_um).numpy()
    exact = load.body_force_n_per_m3(grid)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
