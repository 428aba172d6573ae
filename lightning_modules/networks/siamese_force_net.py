"""Siamese force net: a correlation volume finds the displacement, least squares between warped volumes refine it.

Ours; Duan et al., Biophys J 121:2180 (2022), 10.1016/j.bpj.2022.04.028, state no layer in the text at hand. Coarse to
fine, as in optical flow networks (Sun et al., PWC-Net, CVPR 2018, arXiv 1709.02371; Teed & Deng, RAFT, ECCV 2020,
arXiv 2003.12039) and the least squares of Lucas & Kanade (IJCAI 1981; inverse compositional: Baker & Matthews, Int J
Comput Vis 56:221 (2004)):
1. A shared encoder turns either volume into features on a grid of every 4th voxel; their products at the 125 offsets
   of up to 2 grid steps (8 voxels) in every direction are the correlation volume, from which convolutions read a
   first displacement.
2. The deformed volume is warped by it. With g the gradient of the reference volume and r what the warped one lacks,
   the correction d minimises sum (r - g.d)^2. Convolutions see the sums over blocks of voxels of g g^T and r g, and the
   solutions d for windows of three widths; they choose among these and add to them. Twice on the grid of every 4th
   voxel, then on that of every 2nd.
3. A cubic B-spline through the control points on the last grid is the displacement, smooth enough to differentiate
   twice.
No estimate reaches further than the grid that it is made on can tell, so that a wrong one does not spoil the next.
All is local (no normalisation looks further than the brightness of the volumes), and untrained the network already is
a least-squares registration of small displacements.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.networks.volume_warping import blur, inside, refined, warped

COMPONENTS = 3
NEGATIVE_SLOPE = 0.1
BLUR_SD_VOXELS = 1.0  # about the image of a bead: the filter that finds it best in noise
WINDOW_SDS_VOXELS = (3.0, 6.0, 12.0)
SINGULAR_SHARE = 0.02  # of the mean trace: where there is no bead the solution is 0
SEARCH_STEPS = 2
COARSE_STEP, FINE_STEP = 4, 2
FEATURES = 16
ANSWER_SCALE = 0.1
"""Of what the convolutions answer, in grid steps or voxels: a step of Adam moves hundreds of weights at once."""


class Equations(NamedTuple):
    """What least squares need of a pair of volumes."""

    gradient: Tensor
    """(batch, 3, z, y, x), of the blurred reference volume, components (x, y, z)."""
    products: Tensor
    """(batch, 6, z, y, x), of the gradient with itself: xx, yy, zz, xy, xz, yz."""
    unit: Tensor
    """(batch, 1, 1, 1, 1), root mean square of the gradient, which the others and the rest are divided by."""


class SiameseForceNet(nn.Module):
    """From a pair of volumes to the displacement that deforms the first into the second.

    Args:
        width: channels on the coarse grid.
        fine_width: channels on the fine grid.
        coarse_refinements: corrections on the coarse grid; the last one on the fine grid comes after them.

    """

    def __init__(self, width: int = 32, fine_width: int = 24, coarse_refinements: int = 2) -> None:
        if width < 4 or fine_width < 4:
            raise ValueError(f"width and fine_width must be at least 4, got {width} and {fine_width}")
        if coarse_refinements < 0:
            raise ValueError(f"coarse_refinements must be at least 0, got {coarse_refinements}")
        super().__init__()
        self.encoder = _Encoder()
        self.search = _Convolutions(FEATURES + (2 * SEARCH_STEPS + 1) ** 3, width, COMPONENTS)
        self.coarse = nn.ModuleList(_Correction(width) for _ in range(coarse_refinements))
        self.fine = _Correction(fine_width)

    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes (batch, 2, z, y, x), undeformed then deformed -> displacement (batch, 3, z, y, x).

        The displacement is in voxels of its own axis, components (x, y, z), at the undeformed positions. Sizes that are
        no multiple of 4 are continued at the far faces. Raises ValueError when the shape is another.
        """
        return self.estimates(volumes)[-1]

    def estimates(self, volumes: Tensor) -> list[Tensor]:
        """The displacement after the search and after every correction, each as in `forward`."""
        if volumes.ndim != 5 or volumes.shape[1] != 2:
            raise ValueError(f"volumes must have shape (batch, 2, z, y, x), got {tuple(volumes.shape)}")
        depth, height, width = volumes.shape[2:]
        step = COARSE_STEP
        padding = (0, -width % step, 0, -height % step, 0, -depth % step)
        volumes = _standardised(functional.pad(volumes, padding, mode="replicate"))
        reference, deformed = volumes[:, :1], volumes[:, 1:]
        features = self.encoder(torch.cat((reference, deformed))).chunk(2)
        searched = self.search(torch.cat((features[0], correlation_volume(*features)), dim=1))
        coarse = _within(searched * COARSE_STEP, (SEARCH_STEPS + 1) * COARSE_STEP)
        results = [refined(coarse, COARSE_STEP)]
        blurred = blur(volumes, BLUR_SD_VOXELS)
        reference, deformed = blurred[:, :1], blurred[:, 1:]
        equations = least_squares(reference)
        for correction in self.coarse:
            coarse = coarse + correction(equations, reference, deformed, coarse, results[-1], COARSE_STEP)
            results.append(refined(coarse, COARSE_STEP))
        fine = refined(coarse, COARSE_STEP // FINE_STEP)
        fine = fine + self.fine(equations, reference, deformed, fine, results[-1], FINE_STEP)
        results.append(refined(fine, FINE_STEP))
        return [result[..., :depth, :height, :width] for result in results]


def correlation_volume(reference: Tensor, deformed: Tensor, steps: int = SEARCH_STEPS) -> Tensor:
    """Mean product of features at all offsets of up to `steps`: (batch, c, z, y, x) twice -> (batch, offsets, z, y, x).

    Entry (k_z, k_y, k_x) of the offsets, x fastest, compares a voxel of the reference with the deformed one that lies k
    - steps further; outside there is 0.
    """
    size = reference.shape[2:]
    padded = functional.pad(deformed, [steps] * 6)
    offsets = product(range(2 * steps + 1), repeat=3)
    return torch.stack(
        [
            (reference * padded[:, :, z : z + size[0], y : y + size[1], x : x + size[2]]).mean(dim=1)
            for z, y, x in offsets
        ],
        dim=1,
    )


def least_squares(reference: Tensor) -> Equations:
    """Gradient of a volume (batch, 1, z, y, x) and its products, in units of their mean."""
    padded = functional.pad(reference, [1] * 6, mode="replicate")
    inner = slice(1, -1)
    x = (padded[..., inner, inner, 2:] - padded[..., inner, inner, :-2]) / 2
    y = (padded[..., inner, 2:, inner] - padded[..., inner, :-2, inner]) / 2
    z = (padded[..., 2:, inner, inner] - padded[..., :-2, inner, inner]) / 2
    gradient = torch.cat((x, y, z), dim=1)
    unit = gradient.square().sum(dim=1, keepdim=True).mean(dim=(2, 3, 4), keepdim=True).clamp(min=1e-12).sqrt()
    gradient = gradient / unit
    x, y, z = gradient.split(1, dim=1)
    return Equations(gradient, torch.cat((x * x, y * y, z * z, x * y, x * z, y * z), dim=1), unit)


def solved(products: Tensor, right: Tensor) -> Tensor:
    """The d that minimise sum (r - g.d)^2: sums (batch, 6, ...) of g g^T and (batch, 3, ...) of r g -> (batch, 3, ...).

    `SINGULAR_SHARE` on the diagonal keeps d small where there is no gradient.
    """
    xx, yy, zz, xy, xz, yz = products.unbind(1)
    xx, yy, zz = xx + SINGULAR_SHARE, yy + SINGULAR_SHARE, zz + SINGULAR_SHARE
    b_x, b_y, b_z = right.unbind(1)
    a_x, a_y, a_z = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy  # cofactors
    determinant = xx * a_x + xy * a_y + xz * a_z
    c_yy, c_zz, c_yz = xx * zz - xz * xz, xx * yy - xy * xy, xy * xz - xx * yz
    solution = torch.stack(
        (a_x * b_x + a_y * b_y + a_z * b_z, a_y * b_x + c_yy * b_y + c_yz * b_z, a_z * b_x + c_yz * b_y + c_zz * b_z), 1
    )
    return solution / determinant[:, None]


class _Correction(nn.Module):
    """One correction of the control points of a grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        seen = 6 + COMPONENTS + COMPONENTS * len(WINDOW_SDS_VOXELS) + COMPONENTS
        self.convolutions = _Convolutions(seen, width, COMPONENTS + len(WINDOW_SDS_VOXELS))

    def forward(
        self, equations: Equations, reference: Tensor, deformed: Tensor, points: Tensor, displacement: Tensor, step: int
    ) -> Tensor:
        """Correction (batch, 3, ...) to `points` on a grid of this step, in voxels, as is the displacement."""
        displacement = displacement.detach()
        rest = (reference - warped(deformed, displacement)) * inside(displacement)
        right = functional.avg_pool3d(rest / equations.unit * equations.gradient, step)
        products = functional.avg_pool3d(equations.products, step)
        both = torch.cat((products, right), dim=1)
        solutions = []
        for sd in WINDOW_SDS_VOXELS:
            window = blur(both, sd / step)
            solutions.append(_within(solved(window[:, :6], window[:, 6:]), COARSE_STEP))
        seen = torch.cat((both, *solutions, points.detach()), dim=1)
        answer = self.convolutions(seen)
        shares = torch.softmax(answer[:, COMPONENTS:], dim=1)
        chosen = sum(shares[:, k : k + 1] * solution for k, solution in enumerate(solutions))
        return _within(answer[:, :COMPONENTS], COARSE_STEP) + chosen


class _Encoder(nn.Module):
    """Features on the coarse grid, the same for either volume."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(8, 16, kernel_size=3, padding=1),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Conv3d(16, 32, kernel_size=4, stride=2, padding=1),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Conv3d(32, FEATURES, kernel_size=3, padding=1),
        )

    def forward(self, volume: Tensor) -> Tensor:
        batch, _, depth, height, width = volume.shape
        blocks = volume.reshape(batch, depth // 2, 2, height // 2, 2, width // 2, 2)
        return self.layers(blocks.permute(0, 2, 4, 6, 1, 3, 5).flatten(1, 3))  # (batch, 8, z / 2, y / 2, x / 2)


class _Convolutions(nn.Module):
    """Convolutions on a grid and, for what lies further away, on one of twice its step; the last layer starts at 0."""

    def __init__(self, seen: int, width: int, answers: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(seen, width, kernel_size=3, padding=1)
        self.down = nn.Conv3d(width, 2 * width, kernel_size=4, stride=2, padding=1)
        self.wide = nn.ModuleList(nn.Conv3d(2 * width, 2 * width, kernel_size=3, padding=1) for _ in range(2))
        self.up = nn.Conv3d(2 * width, width, kernel_size=1)
        self.middle = nn.Conv3d(width, width, kernel_size=3, padding=1)
        self.last = nn.Conv3d(width, answers, kernel_size=3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, seen: Tensor) -> Tensor:
        features = functional.leaky_relu(self.first(seen), NEGATIVE_SLOPE)
        odd = [length % 2 for length in features.shape[2:]]
        even = functional.pad(features, (0, odd[2], 0, odd[1], 0, odd[0]))
        wide = functional.leaky_relu(self.down(even), NEGATIVE_SLOPE)
        for layer in self.wide:
            wide = wide + functional.leaky_relu(layer(wide), NEGATIVE_SLOPE)
        depth, height, width = features.shape[2:]
        features = features + refined(self.up(wide), 2)[..., :depth, :height, :width]
        features = features + functional.leaky_relu(self.middle(features), NEGATIVE_SLOPE)
        return ANSWER_SCALE * self.last(features)


def _within(displacement: Tensor, limit: float) -> Tensor:
    """What is small as it is, and never more than `limit`: a wrong estimate must not make the next one worse."""
    return limit * torch.tanh(displacement / limit)


def _standardised(volumes: Tensor) -> Tensor:
    """Mean 0 and variance 1 over either volume."""
    centred = volumes - volumes.mean(dim=(2, 3, 4), keepdim=True)
    return centred / centred.square().mean(dim=(2, 3, 4), keepdim=True).clamp(min=1e-12).sqrt()
