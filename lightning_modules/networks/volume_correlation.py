"""Digital volume correlation: displacement from windows of two volumes, by their cross-correlation.

The traditional way, in the manner of the fast iterative digital volume correlation of Bar-Kochba et al., Exp Mech
55:261 (2015), 10.1007/s11340-014-9874-2: windows of both volumes are correlated by Fourier transform, the peak is found
to a part of a voxel by a quadratic fit of its 27 neighbours, outliers are replaced by the universal median test
(Westerweel & Scarano, Exp Fluids 39:1096 (2005), 10.1007/s00348-005-0016-6), the deformed volume is warped by the
displacement so far, and the next pass finds what is left, in smaller windows.

Deviations from theirs: only the deformed volume is warped (trilinear), so that the result is at the undeformed voxels,
not half way; no low-pass filter beyond the median test; a stated number of passes in place of a test of convergence.
All windows of a pass are correlated together; of large volumes as many as `CHUNK_VOXELS` hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.networks.volume_warping import along_axes, warped

SMALLEST_WINDOW = 8
CHUNK_VOXELS = 2**23
NOISE_VOXELS = 0.1  # epsilon of the universal median test
CONTRAST_FLOOR = 1e-6


class VolumeCorrelation(nn.Module):
    """Displacement of a pair of volumes by iterated cross-correlation; nothing to train.

    Args:
        window_voxels: side of the windows in each pass, in voxels, even, or three of them (z, y, x) where the voxel is
            no cube; the last one serves all later passes.
        overlap: share of a window's side that it has in common with its neighbour, in [0, 0.9].
        passes: number of passes.
        outlier_threshold: largest difference from the neighbours' median, in units of their median difference from it;
            null keeps all.

    """

    def __init__(
        self,
        window_voxels: Sequence[int | Sequence[int]],
        *,
        overlap: float,
        passes: int,
        outlier_threshold: float | None,
    ) -> None:
        windows = [(sides,) * 3 if isinstance(sides, int) else tuple(sides) for sides in window_voxels]
        if any(len(sides) != 3 for sides in windows):
            raise ValueError(f"window_voxels must be sides or triples of sides (z, y, x), got {list(window_voxels)}")
        if not windows or any(side < SMALLEST_WINDOW or side % 2 for sides in windows for side in sides):
            raise ValueError(
                f"window_voxels must be even numbers of at least {SMALLEST_WINDOW}, got {list(window_voxels)}"
            )
        if not 0 <= overlap <= 0.9:
            raise ValueError(f"overlap must lie in [0, 0.9], got {overlap}")
        if passes < 1:
            raise ValueError(f"passes must be at least 1, got {passes}")
        if outlier_threshold is not None and not outlier_threshold > 0:
            raise ValueError(f"outlier_threshold must be positive, got {outlier_threshold}")
        super().__init__()
        self.window_voxels = windows
        self.overlap = overlap
        self.passes = passes
        self.outlier_threshold = outlier_threshold

    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes (batch, 2, z, y, x), undeformed then deformed -> displacement (batch, 3, z, y, x).

        In voxels of each axis, components (x, y, z), at the undeformed voxels. Windows that are longer than an axis are
        as long as it. Raises ValueError when the shape is another.
        """
        if volumes.ndim != 5 or volumes.shape[1] != 2 or min(volumes.shape[2:]) < SMALLEST_WINDOW:
            raise ValueError(
                f"volumes must have shape (batch, 2, z, y, x), at least {SMALLEST_WINDOW} voxels along each axis, "
                f"got {tuple(volumes.shape)}"
            )
        reference, deformed = volumes[:, :1], volumes[:, 1:]
        size = volumes.shape[2:]
        displacement = volumes.new_zeros(len(volumes), 3, *size)
        for number in range(self.passes):
            sides = self.window_voxels[min(number, len(self.window_voxels) - 1)]
            coarse = number < len(self.window_voxels)  # later what is left is small, and the correction only noise
            moved = deformed if number == 0 else warped(deformed, displacement)
            window = [min(side, length - length % 2) for side, length in zip(sides, size, strict=True)]
            starts = [_starts(length, side, self.overlap) for length, side in zip(size, window, strict=True)]
            found = torch.cat(
                [_correlated(r, m, window, starts, coarse=coarse) for r, m in zip(reference, moved, strict=True)]
            )
            centres = [begin + (length - 1) / 2 for begin, length in zip(starts, window, strict=True)]
            points = found + along_axes(
                displacement, [linear_weights(c, n) for c, n in zip(centres, size, strict=True)]
            )
            if self.outlier_threshold is not None:
                points = without_outliers(points, self.outlier_threshold)
            displacement = along_axes(points, [spline_weights(c, n) for c, n in zip(centres, size, strict=True)])
        return displacement


def without_outliers(field: Tensor, threshold: float) -> Tensor:
    """Replace vectors that differ too much from their up to 26 neighbours by these neighbours' median.

    The universal median test, component by component: |u - median| / (median |u_i - median| + 0.1 voxel), its largest
    component against the threshold. (batch, 3, z, y, x) in voxels -> the same.
    """
    padded = functional.pad(field, [1] * 6, value=torch.nan)
    around = padded.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1).flatten(-3)  # (batch, 3, z, y, x, 27)
    around = torch.cat((around[..., :13], around[..., 14:]), dim=-1)
    median = around.nanmedian(dim=-1).values
    spread = (around - median[..., None]).abs().nanmedian(dim=-1).values
    wrong = ((field - median).abs() / (spread + NOISE_VOXELS)).amax(dim=1, keepdim=True) > threshold
    return torch.where(wrong & median.isfinite(), median, field)


def peak(correlation: Tensor) -> Tensor:
    """Place of the highest value of centred correlations (n, z, y, x), from the centre: (n, 3), components (x, y, z).

    To a part of a voxel: the summit of the quadratic that fits the 27 values around best. Where it has no summit within
    a voxel, and next to the rim, the voxel itself.
    """
    count, *size = correlation.shape
    inner = correlation[:, 1:-1, 1:-1, 1:-1]
    place = inner.flatten(1).argmax(dim=1)
    width, height = size[2] - 2, size[1] - 2
    corner = torch.stack((place // (width * height), place // width % height, place % width), dim=1)  # z, y, x
    step = torch.arange(3, device=correlation.device)
    z, y, x = (corner[:, axis, None] + step for axis in range(3))  # (n, 3) each
    rows = torch.arange(count, device=correlation.device)[:, None, None, None]
    values = correlation[rows, z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]].flatten(1)  # (n, 27)
    values = values / values[:, 13:14].abs().clamp(min=CONTRAST_FLOOR)
    slope_z, slope_y, slope_x, zz, yy, xx, zy, zx, yx = (values @ _quadratic_fit(values)).unbind(1)
    hessian = torch.stack((2 * xx, yx, zx, yx, 2 * yy, zy, zx, zy, 2 * zz), dim=1).reshape(-1, 3, 3)
    slope = torch.stack((slope_x, slope_y, slope_z), dim=1)
    rounding = 1e-9 * torch.eye(3, device=values.device, dtype=values.dtype)
    offset = -torch.linalg.solve_ex(hessian - rounding, slope).result
    usable = (
        offset.isfinite().all(dim=1) & (offset.abs() <= 1).all(dim=1) & (torch.diagonal(hessian, 0, 1, 2) < 0).all(1)
    )
    whole = corner.flip(1).to(values) + 1 - torch.tensor([size[2] // 2, size[1] // 2, size[0] // 2]).to(values)
    return whole + torch.where(usable[:, None], offset, 0)


def spline_weights(points: Tensor, size: int) -> Tensor:
    """What the values at `points` (n,), increasing, weigh in a natural cubic spline at the voxels 0 .. size - 1.

    (size, n), float64. Beyond the first and the last point the spline goes on as a straight line.
    """
    count = len(points)
    points = points.double()
    if count == 1:
        return torch.ones(size, 1, dtype=torch.float64)
    gap = points.diff()
    curvature = torch.zeros(count, count, dtype=torch.float64)  # second derivatives of the spline, per value
    if count > 2:
        system = torch.diag(2 * (gap[:-1] + gap[1:])) + torch.diag(gap[1:-1], 1) + torch.diag(gap[1:-1], -1)
        rise = torch.eye(count, dtype=torch.float64).diff(dim=0) / gap[:, None]
        curvature[1:-1] = torch.linalg.solve(system, 6 * rise.diff(dim=0))
    voxel = torch.arange(size, dtype=torch.float64)
    inner = voxel.clamp(float(points[0]), float(points[-1]))
    part = (torch.searchsorted(points, inner, right=True) - 1).clamp(0, count - 2)
    h = gap[part]
    b = (inner - points[part]) / h
    a = 1 - b
    value = torch.eye(count, dtype=torch.float64)
    low, high = value[part], value[part + 1]
    bend_low, bend_high = curvature[part], curvature[part + 1]
    weights = a[:, None] * low + b[:, None] * high
    weights += ((a**3 - a) * h**2 / 6)[:, None] * bend_low + ((b**3 - b) * h**2 / 6)[:, None] * bend_high
    slope = (high - low) / h[:, None]
    slope += ((1 - 3 * a**2) * h / 6)[:, None] * bend_low + ((3 * b**2 - 1) * h / 6)[:, None] * bend_high
    return weights + (voxel - inner)[:, None] * slope


def linear_weights(points: Tensor, size: int) -> Tensor:
    """What voxels 0 .. size - 1 weigh in the values at `points` (n,) between them, linearly: (n, size), float64."""
    return (1 - (points.double()[:, None] - torch.arange(size, dtype=torch.float64)).abs()).clamp(min=0)


def _quadratic_fit(like: Tensor) -> Tensor:
    """(27, 9): values on 3 x 3 x 3 points -> coefficients of z, y, x, zz, yy, xx, zy, zx, yx of the best quadratic."""
    step = torch.arange(-1, 2, dtype=torch.float64)
    z, y, x = (axis.flatten() for axis in torch.meshgrid(step, step, step, indexing="ij"))
    terms = torch.stack((torch.ones_like(z), z, y, x, z * z, y * y, x * x, z * y, z * x, y * x), dim=1)
    return torch.linalg.pinv(terms)[1:].T.to(like)


def _correlated(
    reference: Tensor, moved: Tensor, window: Sequence[int], starts: Sequence[Tensor], *, coarse: bool
) -> Tensor:
    """Displacement of every window: (1, z, y, x) twice -> (1, 3, windows along z, along y, along x)."""
    grid = [len(begin) for begin in starts]
    voxels = window[0] * window[1] * window[2]
    rows = max(CHUNK_VOXELS // (voxels * grid[1] * grid[2]), 1)
    found = []
    share = _common_share(window).to(reference) if coarse else 1.0
    for first in range(0, grid[0], rows):
        chosen = [starts[0][first : first + rows], starts[1], starts[2]]
        pair = [_windows(volume[0], window, chosen) for volume in (reference, moved)]
        pair = [part - part.mean(dim=(1, 2, 3), keepdim=True) for part in pair]
        one, other = (torch.fft.rfftn(part, dim=(1, 2, 3)) for part in pair)
        correlation = torch.fft.irfftn(one.conj() * other, s=list(window), dim=(1, 2, 3))
        correlation = torch.fft.fftshift(correlation, dim=(1, 2, 3))
        correlation = correlation / share
        empty = (correlation.flatten(1).amax(dim=1) <= 0)[:, None]
        found.append(torch.where(empty, 0, peak(correlation)))
    return torch.cat(found).T.reshape(1, 3, *grid)


def _common_share(window: Sequence[int]) -> Tensor:
    """Share of a window that overlaps with itself at each centred shift, (z, y, x): without it the peak is drawn to 0.

    At least one half: larger shifts are not to be found in so small a window.
    """
    z, y, x = (1 - (torch.arange(side) - side // 2).abs() / side for side in window)
    return (z[:, None, None] * y[:, None] * x).clamp(min=0.5)


def _windows(volume: Tensor, window: Sequence[int], starts: Sequence[Tensor]) -> Tensor:
    """Copies of the windows (windows, z, y, x) of a volume (z, y, x)."""
    views = volume.unfold(0, window[0], 1).unfold(1, window[1], 1).unfold(2, window[2], 1)
    z, y, x = (begin.to(volume.device) for begin in starts)
    return views[z[:, None, None], y[None, :, None], x[None, None, :]].flatten(0, 2)


def _starts(size: int, window: int, overlap: float) -> Tensor:
    """First voxels of windows, evenly from one face to the other."""
    step = max(round(window * (1 - overlap)), 1)
    count = -(-(size - window) // step) + 1
    return torch.linspace(0, size - window, count).round().long()
