"""Displacements beyond what a network was trained on: correlation at half the resolution, the network for the rest.

Ours. The reference set holds displacements of up to 4 voxels, and its networks know nothing larger: where the gel moved
by 8 voxels, as by a drift of the stage, their answer is wrong by several. One pass of correlation on volumes of half
the resolution is quick and reaches 16 voxels, but is wrong by some tenths of a voxel. So it only looks whether much of
a volume moved further than a network knows. Where it did, the deformed volume is warped back by what it found, the
network finds the rest, twice, and this answer is taken if it explains the volumes better than that of the network
alone. All other volumes are as if there had been no look at them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.networks.volume_correlation import SMALLEST_WINDOW, VolumeCorrelation
from lightning_modules.networks.volume_warping import refined, warped

KNOWN_VOXELS = 4.0  # largest displacement of the reference set
MUCH = 0.1  # of a volume
HALF = 2
WINDOW_VOXELS = 16  # of half the resolution
OUTLIER_THRESHOLD = 2.0  # as in experiments/cfm_3d_dvc.yaml


def reaching_far(network: Callable[[Tensor], Tensor], volumes: Tensor) -> Tensor:
    """Displacement by a network, however far the gel moved: (batch, 2, z, y, x) -> (batch, 3, z, y, x) in voxels.

    In single precision, whatever the network computes in. Volumes of less than 16 voxels along an axis are left to the
    network alone.
    """
    alone = network(volumes).float()
    if min(volumes.shape[2:]) < HALF * SMALLEST_WINDOW:
        return alone
    coarse = _coarse(volumes)
    beyond = coarse.square().sum(dim=1).sqrt() > KNOWN_VOXELS
    far = beyond.flatten(1).double().mean(dim=1) > MUCH
    if not bool(far.any()):
        return alone
    chosen, found = volumes[far], coarse[far]
    reference, deformed = chosen[:, :1], chosen[:, 1:]
    for _ in range(2):
        found = found + network(torch.cat((reference, warped(deformed, found)), dim=1))
    better = _resemblance(reference, warped(deformed, found)) > _resemblance(reference, warped(deformed, alone[far]))
    result = alone.clone()
    result[far] = torch.where(better[:, None, None, None, None], found, alone[far])
    return result


def _coarse(volumes: Tensor) -> Tensor:
    """Displacement (batch, 3, z, y, x) in voxels from one pass of correlation at half the resolution."""
    depth, height, width = volumes.shape[2:]
    even = functional.pad(volumes, (0, width % HALF, 0, height % HALF, 0, depth % HALF), mode="replicate")
    correlation = VolumeCorrelation([WINDOW_VOXELS], overlap=0.5, passes=1, outlier_threshold=OUTLIER_THRESHOLD)
    found = HALF * correlation(functional.avg_pool3d(even, HALF))
    return refined(found, HALF)[..., :depth, :height, :width]


def _resemblance(reference: Tensor, moved: Tensor) -> Tensor:
    """Correlation coefficient of volumes (batch, 1, z, y, x): (batch,)."""
    one, other = (volume.flatten(1) - volume.flatten(1).mean(dim=1, keepdim=True) for volume in (reference, moved))
    return functional.cosine_similarity(one, other, dim=1)
