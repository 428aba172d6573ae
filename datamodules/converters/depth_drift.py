"""Drift that depends on depth: how a gel moved as a whole between two recordings, slice by slice.

Stages creep while a stack is recorded and gels swell, so that far from the cell, where it moves nothing, volumes do not
fit on each other, and by how much depends on z: one shift for all is not enough. Drift is a polynomial of depth, at
most cubic, with the least sum of distances to the motions of beads, or to the shifts at which layers correlate best.
Such a fit follows the many that agree: the beads that the cell moves, and wrong matches, hardly count. Medians of
layers would not do in the layers where the cell lies.

Drift (3, z) is in um, components (x, y, z), for the slices of the undeformed volume: matter at X in the reference is at
X + u(X) + drift(X_z) in the deformed recording.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from datamodules.converters.bead_tables import Beads

Floats = NDArray[Any]

ORDER = 3
FEWEST_BEADS = 10
REWEIGHTINGS = 60
LEAST_DISTANCE_UM = 0.02
"""Below it a motion fits, and is not given more weight."""
LAYER_SLICES = 16
LARGEST_SHIFT = 0.25
"""Shift that is looked for, as a share of the volume along y and x; along z a layer's thickness."""
FIXED_POINT_STEPS = 20


def drift_of_beads(beads: Beads, slices_um: Floats) -> NDArray[np.float64]:
    """Drift (3, n) at the depths `slices_um` (n,) from the displacement of beads.

    Give it beads far from the cell.

    Raises:
        ValueError: fewer than 10 beads.
    """
    if len(beads.position_um) < FEWEST_BEADS:
        raise ValueError(f"drift needs at least {FEWEST_BEADS} beads, got {len(beads.position_um)}")
    return _polynomial(beads.position_um[:, 2], beads.displacement_um, slices_um)


def drift_of_field(displacement_um: Floats, far: NDArray[np.bool_], voxel_z_um: float) -> NDArray[np.float64]:
    """Drift (3, z) from the median over the voxels `far` (z, y, x) of each slice of a displacement (3, z, y, x).

    NaN is passed over; slices without a far voxel are interpolated.

    Raises:
        ValueError: no voxel is far.
    """
    known = far & np.isfinite(displacement_um).all(axis=0)
    slices = np.flatnonzero(known.any(axis=(1, 2)))
    if not len(slices):
        raise ValueError("far must hold voxels with a displacement, it holds none")
    motion = np.array([np.median(displacement_um[:, k][:, known[k]], axis=1) for k in slices])
    return _polynomial(slices * voxel_z_um, motion, np.arange(len(far)) * voxel_z_um)


def drift_of_volumes(
    reference: NDArray[Any], deformed: NDArray[Any], voxel_size_um: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Drift (3, z) from the shift at which each layer of 16 slices correlates best with the deformed volume.

    A layer's shift is that of most of its beads, so the cell must fill a small part of it.
    """
    depth = len(reference)
    thickness = min(LAYER_SLICES, depth)
    starts = np.unique(np.linspace(0, depth - thickness, max(round(depth / thickness), 2)).astype(int))
    middle, shifts = [], []
    for start in starts:
        low, high = max(start - thickness, 0), min(start + 2 * thickness, depth)
        layer, around = reference[start : start + thickness], deformed[low:high]
        shift = _best_shift(layer, around, start - low)
        if shift is not None:
            middle.append(start + (thickness - 1) / 2)
            shifts.append(shift)
    if not shifts:
        raise ValueError("the volumes must show beads to find their drift: no layer of the reference has any contrast")
    motion = np.array(shifts) * np.array(voxel_size_um[::-1])
    return _polynomial(np.array(middle), motion, np.arange(depth))


def without_drift(deformed: NDArray[Any], drift_um: Floats, voxel_size_um: tuple[float, float, float]) -> NDArray[Any]:
    """The deformed volume (z, y, x) at X + drift(X_z), by cubic interpolation, in its own dtype.

    What it then shows of the matter at X is `beads_without_drift`'s place.
    """
    coefficients = ndimage.spline_filter(deformed.astype(np.float32), order=3, output=np.float32, mode="nearest")
    moved = np.empty_like(deformed)
    for k, (dx, dy, dz) in enumerate(drift_um.T / np.array(voxel_size_um[::-1])):
        # drift is one shift for the whole slice, so that the spline is summed along one axis after the other
        values = _shifted(coefficients, 0, np.array([k + dz]))[0]
        for axis, shift in ((0, dy), (1, dx)):
            values = _shifted(values, axis, np.arange(values.shape[axis]) + shift)
        if moved.dtype.kind in "iu":
            values = np.clip(np.rint(values), 0, np.iinfo(moved.dtype).max)
        moved[k] = values
    return moved


def beads_without_drift(beads: Beads, drift_um: Floats, voxel_z_um: float) -> Beads:
    """The displacement that remains once the deformed volume is resampled by `without_drift`.

    A bead seen at x is afterwards at y with y + drift(y_z) = x, which differs from x - drift(X_z) where drift changes
    with depth.
    """
    slices_um = np.arange(drift_um.shape[1]) * voxel_z_um
    seen = beads.position_um + beads.displacement_um
    depth = seen[:, 2]
    for _ in range(FIXED_POINT_STEPS):
        depth = seen[:, 2] - np.interp(depth, slices_um, drift_um[2])
    removed = np.stack([np.interp(depth, slices_um, component) for component in drift_um], axis=1)
    return beads._replace(displacement_um=beads.displacement_um - removed)


def _shifted(coefficients: NDArray[np.float32], axis: int, places: Floats) -> NDArray[np.float32]:
    """A cubic spline along one axis at places that are whole numbers apart; the last coefficients continue."""
    first = int(np.floor(places[0]))
    t = float(places[0]) - first
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    total: Any = 0.0
    for step, weight in enumerate(weights):
        index = np.clip(np.arange(len(places)) + first + step - 1, 0, coefficients.shape[axis] - 1)
        total = total + np.float32(weight / 6) * coefficients.take(index, axis=axis)
    return total


def _polynomial(depth: Floats, motion: Floats, wanted: Floats) -> NDArray[np.float64]:
    """Least distances to (n, 3) at depths (n,), at other depths: (3, m); straight on beyond the last depths."""
    middle, scale = depth.mean(), max(float(np.ptp(depth)), 1e-9)
    powers = np.polynomial.polynomial.polyvander((depth - middle) / scale, min(ORDER, len(np.unique(depth)) - 1))
    weight = np.ones((len(depth), 1))
    for _ in range(REWEIGHTINGS):
        root = np.sqrt(weight)
        coefficients = np.linalg.lstsq(root * powers, root * motion, rcond=None)[0]
        distance = np.linalg.norm(motion - powers @ coefficients, axis=1, keepdims=True)
        weight = 1 / np.hypot(distance, LEAST_DISTANCE_UM)
    within = np.clip(wanted, depth.min(), depth.max())
    at, beyond = (within - middle) / scale, (wanted - within) / scale
    slope = np.polynomial.polynomial.polyval(at, np.polynomial.polynomial.polyder(coefficients))
    return np.polynomial.polynomial.polyval(at, coefficients) + slope * beyond


def _best_shift(layer: NDArray[Any], around: NDArray[Any], start: int) -> NDArray[np.float64] | None:
    """Shift (x, y, z) in voxels that takes a layer, at slice `start` of its surroundings, onto them; None if flat."""
    layer, around = (volume.astype(np.float32) - volume.mean(dtype=np.float32) for volume in (layer, around))
    if not layer.any() or not around.any():
        return None
    limits = [int(LARGEST_SHIFT * size) for size in layer.shape[1:]]
    shape = [fft.next_fast_len(n, real=True) for n in (len(around) + len(layer), *layer.shape[1:])]
    shape[1:] = [fft.next_fast_len(n + m, real=True) for n, m in zip(layer.shape[1:], limits, strict=True)]
    spectrum = fft.rfftn(around, shape) * np.conj(fft.rfftn(layer, shape))
    score = fft.irfftn(spectrum, shape)
    out = len(layer) // 2  # at the faces part of a layer may have left the volume
    z = np.arange(-out, len(around) - len(layer) + out + 1)
    y, x = (np.arange(-limit, limit + 1) for limit in limits)
    score = score[np.ix_(z % shape[0], y % shape[1], x % shape[2])]
    best = np.unravel_index(int(score.argmax()), score.shape)
    exact = [axis[k] + _vertex(score, best, n) for n, (axis, k) in enumerate(zip((z, y, x), best, strict=True))]
    return np.array([exact[2], exact[1], exact[0] - start])


def _vertex(score: Floats, best: tuple[Any, ...], axis: int) -> float:
    """Where the parabola through the highest score and its neighbours along an axis has its top, -0.5 to 0.5."""
    k = int(best[axis])
    if not 0 < k < score.shape[axis] - 1:
        return 0.0
    below, top, above = (float(score[(*best[:axis], k + step, *best[axis + 1 :])]) for step in (-1, 0, 1))
    curvature = below - 2 * top + above
    return 0.0 if curvature >= 0 else float(np.clip(0.5 * (below - above) / curvature, -0.5, 0.5))
