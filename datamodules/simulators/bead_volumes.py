"""Volumes of fluorescent beads in a gel, as a microscope sees them: places, point-spread function, camera.

Positions are in voxels, (n, 3) in the order (x, y, z); the centre of the first voxel is at (0, 0, 0), so a volume
(z, y, x) fills [-0.5, size - 0.5) along each axis. A deformed volume is drawn from the beads' new places, never warped
from the undeformed one: warping would blur it and move its noise along. Nothing here knows what the volumes are for.

The point-spread function is a Gaussian, wider along z, whose value at the voxel's centre is taken; with a standard
deviation of a voxel and more the integral over the voxel differs only in a slightly larger width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.floating]

REACH = 3.5
"""Standard deviations at which the point-spread function ends: 0.2 % of its peak."""
LARGEST_PACKING = 0.3
"""Share of space that spheres of the minimum distance's diameter fill at most; at 0.38 random places run out."""
CHUNK_BEADS = 1024
"""Beads drawn at a time: their voxels stay in the processor's cache."""
MOST_ROUNDS = 200


class Blur(NamedTuple):
    """Standard deviations of the point-spread function in voxels."""

    xy_voxels: float
    z_voxels: float

    @property
    def reach_xyz(self) -> tuple[int, int, int]:
        """Voxels from the one nearest to a bead that it still lights."""
        xy, z = (int(np.ceil(REACH * sd)) for sd in self)
        return xy, xy, z


class Camera(NamedTuple):
    """What turns brightness into grey levels; one grey level is one photon."""

    photons: float
    """Expected at the peak of a bead of brightness 1."""
    background_photons: float
    """Expected in every voxel."""
    read_noise_photons: float
    """Standard deviation."""
    offset_grey: float
    """Grey level without light."""

    def expose(self, brightness: Floats, rng: np.random.Generator) -> NDArray[np.uint16]:
        """Grey levels of a volume: photons are counted (Poisson), read noise is added (Gaussian), then rounded."""
        counts = rng.poisson(self.background_photons + self.photons * brightness).astype(np.float32)
        if self.read_noise_photons > 0:
            counts += np.float32(self.read_noise_photons) * rng.standard_normal(counts.shape, dtype=np.float32)
        grey = np.rint(counts + np.float32(self.offset_grey))
        return np.clip(grey, 0, np.iinfo(np.uint16).max).astype(np.uint16)


def check_packing(density: float, distance_voxels: float) -> None:
    """Raise ValueError where so many beads cannot be placed at random at that distance from each other."""
    packing = density * np.pi / 6 * distance_voxels**3
    if packing > LARGEST_PACKING:
        raise ValueError(
            f"density {density:g} per voxel leaves no room for a minimum distance of {distance_voxels:g} voxels: "
            f"lower one of them so that density * pi / 6 * distance^3 = {packing:.2g} is at most {LARGEST_PACKING:g}"
        )


def scatter_beads(
    rng: np.random.Generator, low_xyz: Floats, high_xyz: Floats, *, density: float, distance_voxels: float
) -> NDArray[np.float64]:
    """Places of beads, (n, 3): uniform in a box, one after the other, none nearer than the distance to an earlier one.

    Args:
        rng: Source of randomness.
        low_xyz: Corner of the box, voxels.
        high_xyz: Opposite corner.
        density: Beads per voxel; n is the nearest whole number.
        distance_voxels: Least distance between two beads; 0 for none.

    Raises:
        ValueError: there is no room for so many beads.
    """
    check_packing(density, distance_voxels)
    wanted = max(round(density * float(np.prod(high_xyz - low_xyz))), 1)
    placed = np.empty((0, 3))
    for _ in range(MOST_ROUNDS):
        tried = rng.uniform(low_xyz, high_xyz, (wanted - len(placed), 3))
        if distance_voxels > 0:
            if len(placed):
                nearest, _ = cKDTree(placed).query(tried, distance_upper_bound=distance_voxels)
                tried = tried[np.isinf(nearest)]
            tried = tried[_first_of_close_ones(tried, distance_voxels)]
        placed = np.concatenate([placed, tried])
        if len(placed) >= wanted:
            return placed
    raise ValueError(f"density {density:g} per voxel leaves no room for a distance of {distance_voxels:g} voxels")


def _first_of_close_ones(points: Floats, distance: float) -> NDArray[np.bool_]:
    """Which points remain when each is dropped that is too near to an earlier one that remains."""
    keep = np.ones(len(points), bool)
    if len(points) > 1:
        pairs = cKDTree(points).query_pairs(distance, output_type="ndarray")  # the smaller index first
        for first, second in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
            if keep[first]:
                keep[second] = False
    return keep


def render(centres_xyz: Floats, brightness: Floats, shape_zyx: tuple[int, int, int], blur: Blur) -> NDArray[np.float32]:
    """Brightness of a volume in which every bead is a blurred point, (z, y, x); 1 at the peak of a bead of 1.

    Args:
        centres_xyz: (n, 3) voxels; those out of reach are left out.
        brightness: (n,) of the beads.
        shape_zyx: Of the volume.
        blur: The point-spread function.
    """
    reach, size = np.array(blur.reach_xyz), np.array(shape_zyx[::-1])
    nearest = np.rint(centres_xyz).astype(np.int64)
    seen = ((nearest >= -reach) & (nearest < size + reach)).all(axis=1)
    seen = np.flatnonzero(seen)[np.argsort(nearest[seen, 2], kind="stable")]  # a chunk then touches few slices
    centres, nearest, brightness = centres_xyz[seen], nearest[seen], brightness[seen]
    padded = size + 4 * reach  # beads out of the volume, and their own reach
    total = np.zeros(int(np.prod(padded)))
    strides = np.array([1, padded[0], padded[0] * padded[1]])
    steps = [np.arange(-r, r + 1) for r in reach]
    neighbourhood = (
        (steps[2] * strides[2])[:, None, None] + (steps[1] * strides[1])[:, None] + steps[0] * strides[0]
    ).ravel()
    for start in range(0, len(centres), CHUNK_BEADS):
        part = slice(start, start + CHUNK_BEADS)
        # profiles along x, y and z, (n, 2 reach + 1) each
        along = [
            np.exp(-0.5 * ((nearest[part, axis, None] + steps[axis] - centres[part, axis, None]) / sd) ** 2)
            for axis, sd in enumerate((blur.xy_voxels, blur.xy_voxels, blur.z_voxels))
        ]
        plane = along[1][:, :, None] * along[0][:, None, :]
        spots = (along[2] * brightness[part, None])[:, :, None] * plane.reshape(len(plane), 1, -1)
        places = ((nearest[part] + 2 * reach) @ strides)[:, None] + neighbourhood
        first = int(places.min())
        lit = np.bincount((places - first).ravel(), weights=spots.ravel())
        total[first : first + len(lit)] += lit
    inner = tuple(slice(2 * r, 2 * r + s) for r, s in zip(reach[::-1], shape_zyx, strict=True))
    return total.reshape(padded[::-1])[inner].astype(np.float32)


def localisation_sd_voxels(blur: Blur, camera: Camera, brightness: float) -> NDArray[np.float64]:
    """Smallest standard deviation of an unbiased estimate of an isolated bead's place, (3,) voxels, (x, y, z).

    The Cramer-Rao bound for a bead at a voxel's centre whose brightness and background are known: the noise of a voxel
    is taken as Gaussian with the variance of its photons and of the read noise together.
    """
    reach = blur.reach_xyz
    grid = np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij")
    sd = np.array([blur.xy_voxels, blur.xy_voxels, blur.z_voxels])
    spot = camera.photons * brightness * np.exp(-0.5 * sum((g / s) ** 2 for g, s in zip(grid, sd, strict=True)))
    variance = camera.background_photons + camera.read_noise_photons**2 + spot
    information = np.array([((spot * g / s**2) ** 2 / variance).sum() for g, s in zip(grid, sd, strict=True)])
    return 1 / np.sqrt(information)
