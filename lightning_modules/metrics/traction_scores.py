"""The scores that every module of traction force microscopy logs, and when.

Of all stages the loss and the error inside the cell; of the test also, by name after `test/`:
    traction_nrmse          |t - t0| / |t0| inside the outline (the authors' errorTrac)
    traction_nrmse_sd       its standard deviation over the fields
    traction_nrmse_full     the same over the whole frame          traction_nrmse_squared   its square
    dtma, dma, dtmb, snr    at true adhesions and in the background (`metrics.traction`)
    angle_error_deg         of vectors above 5 % of the largest true one
    strain_energy_error     relative, inside the outline           net_force_share          |sum t| / sum |t|
    outside_share           share of sum |t| more than 10 px outside the outline
    forward_residual        |G t - u| / |u|; with net_force_share and outside_share what is left where no truth exists
Fields whose truth is unknown (NaN) take part in those three only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_modules.metrics import traction as scores
from lightning_modules.metrics.epoch_means import log_mean, named_metrics
from lightning_modules.metrics.mean_loss import MeanLoss
from physics.half_space import displacement_from_traction
from physics.vector_fields import magnitude, net_force_nn, strain_energy_fj

STRONG_SHARE = 0.05
"""Of the largest true vector: the direction of weaker ones is not judged."""
OUTLINE_BUFFER_PX = 10.0
"""By which Wang & Lin grow the outline where they look outside the cell."""


def _strong_angle_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    strength = magnitude(target)
    strong = mask & (strength > STRONG_SHARE * strength.amax(dim=(-2, -1), keepdim=True))
    return scores.angle_error_deg(prediction, target, strong)


AGAINST_TRUTH: dict[str, Callable[..., Tensor]] = {
    "traction_nrmse": scores.nrmse,
    "traction_nrmse_squared": scores.nrmse_squared,
    "angle_error_deg": _strong_angle_error,
}
"""Take prediction, target and the cell's mask."""
OVER_THE_FRAME: dict[str, Callable[..., Tensor]] = {
    "traction_nrmse_full": scores.nrmse_full,
    "dtma": scores.dtma,
    "dma": scores.dma,
    "dtmb": scores.dtmb,
    "snr": scores.snr,
}
"""Take prediction and target."""


def traction_metrics() -> nn.ModuleDict:
    """One metric per name."""
    metrics: dict[str, Metric] = {f"{stage}/loss": MeanLoss() for stage in ("train", "val", "test")}
    metrics |= {f"{stage}/traction_nrmse": scores.FieldMean(scores.nrmse) for stage in ("train", "val")}
    metrics |= {f"test/{name}": scores.FieldMean(score) for name, score in (AGAINST_TRUTH | OVER_THE_FRAME).items()}
    metrics["test/traction_nrmse_sd"] = scores.FieldSd(scores.nrmse)
    metrics["test/strain_energy_error"] = scores.FieldMean(scores.strain_energy_error)
    metrics["test/net_force_share"] = scores.FieldMean(scores.net_force_share)
    metrics["test/outside_share"] = scores.FieldMean(scores.share_outside)
    metrics["test/forward_residual"] = scores.FieldMean(nn.Identity())
    return named_metrics(metrics)


def log_scores(
    module: Any, batch: Any, stage: str, *, loss: Tensor | None, traction_pa: Tensor, operator: Any = None
) -> None:
    """Add a batch to the metrics of a stage.

    Args:
        module: owns `metrics` as `traction_metrics` makes them.
        batch: a `TractionBatch`.
        stage: "train", "val" or "test".
        loss: () of the batch; None for a method that has none.
        traction_pa: (batch, 2, y, x).
        operator: centre_element, reach and transfer_function of the measurement; needed in the test.

    """
    traction_pa = traction_pa.detach()
    known = batch.traction_pa.isfinite().flatten(1).all(dim=1)
    size = int(known.sum())
    if size:
        if loss is not None:
            log_mean(module, f"{stage}/loss", loss.detach(), size, batch_size=size)
        prediction, target, mask = traction_pa[known], batch.traction_pa[known], batch.cell_mask[known]
        for name in AGAINST_TRUTH if stage == "test" else ("traction_nrmse",):
            log_mean(module, f"{stage}/{name}", prediction, target, mask, batch_size=size)
        if stage == "test":
            log_mean(module, "test/traction_nrmse_sd", prediction, target, mask, batch_size=size)
            for name in OVER_THE_FRAME:
                log_mean(module, f"test/{name}", prediction, target, batch_size=size)
            # of the true traction: noise would add to both energies and hide what is missing
            displacement = displacement_px(batch, torch.nan_to_num(batch.traction_pa), **operator)[known]
            log_mean(module, "test/strain_energy_error", prediction, target, displacement, mask, batch_size=size)
    if stage == "test":
        everything = len(known)
        log_mean(module, "test/net_force_share", traction_pa, batch_size=everything)
        near = scores.grown(batch.cell_mask, radius_px=OUTLINE_BUFFER_PX)
        log_mean(module, "test/outside_share", traction_pa, near, batch_size=everything)
        residual = forward_residual(batch, traction_pa, **operator)
        log_mean(module, "test/forward_residual", residual, batch_size=everything)


def summary(batch: Any, traction_pa: Tensor, **operator: Any) -> dict[str, Tensor]:
    """What can be said of a predicted traction (batch, 2, y, x) in Pa, one number per field (batch,).

    largest_traction_pa; strain_energy_fj, half the work on the measured displacement; net_force_nn, 0 for a cell at
    rest; forward_residual; traction_nrmse, NaN where the truth is unknown. `operator`: centre_element, reach and
    transfer_function of `physics.half_space.displacement_from_traction`.
    """
    pixel_um = batch.pixel_size_um[:, None, None, None]
    area_um2 = batch.pixel_size_um.square()
    energy = strain_energy_fj(traction_pa, batch.displacement_px * pixel_um, pixel_size_um=1.0)
    force = torch.linalg.vector_norm(net_force_nn(traction_pa, pixel_size_um=1.0), dim=-1)
    return {
        "largest_traction_pa": magnitude(traction_pa).amax(dim=(-2, -1)),
        "strain_energy_fj": energy * area_um2,
        "net_force_nn": force * area_um2,
        "forward_residual": forward_residual(batch, traction_pa, **operator),
        "traction_nrmse": scores.nrmse(traction_pa, batch.traction_pa, batch.cell_mask),
    }


def forward_residual(batch: Any, traction_pa: Tensor, **operator: Any) -> Tensor:
    """|G t - u| / |u| of every field over the whole frame, (batch,), arguments as in `summary`.

    Both are taken relative to their means: a drift of the whole field is no traction. NaN for a traction that is not
    finite, and where nothing was displaced.
    """
    usable = traction_pa.isfinite().flatten(1).all(dim=1)
    explained = displacement_px(batch, torch.nan_to_num(traction_pa, posinf=0.0, neginf=0.0), **operator)
    measured = batch.displacement_px - batch.displacement_px.mean(dim=(2, 3), keepdim=True)
    rest = explained - explained.mean(dim=(2, 3), keepdim=True) - measured
    residual = torch.linalg.vector_norm(rest, dim=(1, 2, 3)) / torch.linalg.vector_norm(measured, dim=(1, 2, 3))
    return torch.where(usable & residual.isfinite(), residual, torch.nan)


def displacement_px(batch: Any, traction_pa: Tensor, **operator: Any) -> Tensor:
    """The displacement (batch, 2, y, x) in px that a traction would cause; every field has its own substrate."""
    return torch.stack(
        [
            displacement_from_traction(
                field / modulus,
                pixel_size_um=1.0,
                youngs_modulus_pa=1.0,
                poisson_ratio=round(ratio, 6),  # .45 as float32 is .4499999
                **operator,
            )
            for field, modulus, ratio in zip(
                traction_pa, batch.youngs_modulus_pa, batch.poisson_ratio.tolist(), strict=True
            )
        ]
    )
