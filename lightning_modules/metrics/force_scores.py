"""The scores that every module of force from volumes logs, and when.

Of all stages the loss, where there is one, and its terms; of validation and test also displacement_median_error_vx and
body_force_relative_l2; of the test alone, by name after `test/`:
    displacement_mean_error_vx, displacement_relative_l2, body_force_cosine, net_force_relative_error
    zero_displacement_median_error_vx    what the prediction "no displacement" gets on the same volumes
    net_force_share                      |sum f| / sum |f| of the prediction, also where no truth is known
    seconds_per_volume                   from the pair to displacement, stress and force, by the clock
Each is the mean over the volumes; volumes whose truth is unknown take part in the last two only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_modules.metrics import force as scores
from lightning_modules.metrics.epoch_means import log_mean, named_metrics
from lightning_modules.metrics.mean_loss import MeanLoss
from physics.solid import NANONEWTON_PER_N_PER_M3_UM3, total_force_nn

OF_DISPLACEMENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "displacement_median_error_vx": scores.median_error_vx,
    "displacement_mean_error_vx": scores.mean_error_vx,
    "displacement_relative_l2": scores.relative_l2,
}
OF_FORCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "body_force_relative_l2": scores.relative_l2,
    "body_force_cosine": scores.cosine,
    "net_force_relative_error": scores.net_force_relative_error,
}
IN_VALIDATION = ("displacement_median_error_vx", "body_force_relative_l2")


class VolumeMean(Metric):
    """Mean over all volumes seen, in every process, of a number per volume; numbers that are NaN are left out."""

    full_state_update = False
    total: Tensor
    volumes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("volumes", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add the numbers (batch,) of a batch."""
        known = ~values.isnan()
        self.total = self.total + torch.where(known, values, 0).sum().to(self.total.dtype)
        self.volumes = self.volumes + known.sum()

    def compute(self) -> Tensor:
        """Mean () over the volumes; NaN without any."""
        return self.total / self.volumes


def force_metrics(terms: tuple[str, ...]) -> nn.ModuleDict:
    """One metric per name; `terms` are the parts of the loss."""
    metrics: dict[str, Metric] = {
        f"{stage}/{name}": MeanLoss() for stage in ("train", "val", "test") for name in ("loss", *terms)
    }
    metrics |= {f"val/{name}": VolumeMean() for name in IN_VALIDATION}
    of_test = (*OF_DISPLACEMENT, *OF_FORCE, "zero_displacement_median_error_vx", "net_force_share")
    return named_metrics(metrics | {f"test/{name}": VolumeMean() for name in (*of_test, "seconds_per_volume")})


def log_losses(module: Any, stage: str, losses: Mapping[str, Tensor], *, batch_size: int) -> None:
    """Add the loss of a batch and its terms, () each, to the metrics of a stage."""
    for name, value in losses.items():
        log_mean(module, f"{stage}/{name}", value.detach(), batch_size, batch_size=batch_size)


def log_scores(
    module: Any,
    stage: str,
    *,
    displacement_voxels: tuple[Tensor, Tensor],
    body_force: tuple[Tensor, Tensor],
    seconds_per_volume: float,
) -> None:
    """Add a batch to the scores of validation ("val") or test.

    Args:
        module: owns `metrics` as `force_metrics` makes them.
        stage: "val" or "test".
        displacement_voxels: predicted and true, (batch, 3, z, y, x) each.
        body_force: predicted and true, (batch, 3, z, y, x) each, in one unit.
        seconds_per_volume: that the prediction took.

    """
    for family, pair in ((OF_DISPLACEMENT, displacement_voxels), (OF_FORCE, body_force)):
        for name, score in family.items():
            if stage == "test" or name in IN_VALIDATION:
                _log(module, f"{stage}/{name}", score(*pair))
    if stage == "test":
        truth = displacement_voxels[1]
        _log(module, "test/zero_displacement_median_error_vx", scores.median_error_vx(torch.zeros_like(truth), truth))
        _log(module, "test/net_force_share", scores.net_force_share(body_force[0]))
        _log(module, "test/seconds_per_volume", torch.full((len(truth),), seconds_per_volume, device=truth.device))


def summary(
    batch: Any,
    *,
    displacement_um: Tensor,
    displacement_voxels: tuple[Tensor, Tensor],
    body_force_n_per_m3: Tensor,
) -> dict[str, Tensor]:
    """What can be said of a prediction, one number per volume (batch,).

    net_force_nn: length of the sum of all forces, 0 for a cell at rest; total_force_nn: sum of their lengths;
    largest_displacement_um; and, NaN where the truth is unknown, displacement_median_error_vx, body_force_relative_l2
    and zero_displacement_median_error_vx.

    Args:
        batch: a `BeadVolumeBatch`.
        displacement_um: predicted, (batch, 3, z, y, x).
        displacement_voxels: predicted and true, (batch, 3, z, y, x) each.
        body_force_n_per_m3: predicted, (batch, 3, z, y, x).

    """
    force, truth = body_force_n_per_m3, displacement_voxels[1]
    voxel_um3 = batch.voxel_size_um.prod(dim=1)
    return {
        "net_force_nn": torch.linalg.vector_norm(total_force_nn(force, batch.voxel_size_um), dim=-1),
        "total_force_nn": scores.total_size(force) * voxel_um3 * NANONEWTON_PER_N_PER_M3_UM3,
        "largest_displacement_um": displacement_um.square().sum(dim=1).flatten(1).amax(dim=1).sqrt(),
        "displacement_median_error_vx": scores.median_error_vx(*displacement_voxels),
        "body_force_relative_l2": scores.relative_l2(force, batch.body_force_n_per_m3),
        "zero_displacement_median_error_vx": scores.median_error_vx(torch.zeros_like(truth), truth),
    }


def _log(module: Any, name: str, values: Tensor) -> None:
    log_mean(module, name, values, batch_size=len(values))
