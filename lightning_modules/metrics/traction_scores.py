"""The scores that every module of traction force microscopy logs, and when.

Of all stages the loss and the error inside the cell; of the test also, by name after `test/`:
    traction_nrmse          |t - t0| / |t0| inside the outline (the authors' errorTrac)
    traction_nrmse_sd       its standard deviation over the fields
    traction_nrmse_full     the same over the whole frame          traction_nrmse_squared   its square
    dtma, dma, dtmb, snr    at true adhesions and in the background (`metrics.traction`)
    angle_error_deg         of vectors above 5 % of the largest true one
    strain_energy_error     relative, inside the outline           net_force_share          |sum t| / sum |t|
    strain_energy_fj        inside the outline                     net_force_nn             of the whole frame
    mean_displacement_px    mean |u| inside the outline, by which noise is to be judged
    outside_share           share of sum |t| more than 10 px outside the outline, where an outline is known
    forward_residual        |G t - u| / |u| over the whole frame, drift left out
    displacement_nrmse      |G t - u| / |u| up to 10 px outside the outline (the authors' errorDspl)
    fttc_correlation        of the vectors up to 10 px outside the outline with those of Fourier cytometry
u is the displacement as it was measured, with its noise. Fields whose truth is unknown (NaN) take part in all from
net_force_share on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_modules.metrics import traction as scores
from lightning_modules.metrics.epoch_means import log_mean, named_metrics
from lightning_modules.metrics.mean_loss import MeanLoss
from physics.traction_cytometry import traction_from_displacement
from physics.vector_fields import magnitude, net_force_nn, strain_energy_fj

Operator = Callable[[Tensor], Tensor]

STRONG_SHARE = 0.05
"""Of the largest true vector: the direction of weaker ones is not judged."""
OUTLINE_BUFFER_PX = 10.0
"""By which Wang & Lin grow the outline where they look outside the cell."""
REFERENCE_REGULARIZATION = 6e-10 * 10670.0**2
"""Of the Fourier cytometry that others are compared with, in (px E)^2: Wang & Lin's 6e-10 (px/Pa)^2 on 10,670 Pa."""


class TractionPrediction(NamedTuple):
    """Traction (batch, 2, y, x), one number per sample (batch,) as `summary` and `without_truth` explain, and maps."""

    traction_pa: Tensor
    largest_traction_pa: Tensor
    strain_energy_fj: Tensor
    net_force_nn: Tensor
    outside_share: Tensor
    forward_residual: Tensor
    displacement_nrmse: Tensor
    fttc_correlation: Tensor
    traction_nrmse: Tensor
    maps: list[np.ndarray] | None = None
    """Pictures (y, x, 3) of measured fields, 8-bit; None where the truth is known, of which figures show a few."""


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
MEASURED = ("strain_energy_fj", "net_force_nn")
"""Are told of one field by `work_and_force`."""
ROUNDING = 1e-6
"""Of a displacement in single precision: what varies by a smaller share of it does not vary."""
WITHOUT_TRUTH = ("outside_share", "forward_residual", "displacement_nrmse", "fttc_correlation")
"""Are told of one field by `without_truth`."""


def traction_metrics() -> nn.ModuleDict:
    """One metric per name."""
    metrics: dict[str, Metric] = {f"{stage}/loss": MeanLoss() for stage in ("train", "val", "test")}
    metrics |= {f"{stage}/traction_nrmse": scores.FieldMean(scores.nrmse) for stage in ("train", "val")}
    metrics |= {f"test/{name}": scores.FieldMean(score) for name, score in (AGAINST_TRUTH | OVER_THE_FRAME).items()}
    metrics["test/traction_nrmse_sd"] = scores.FieldSd(scores.nrmse)
    metrics["test/strain_energy_error"] = scores.FieldMean(scores.strain_energy_error)
    metrics["test/net_force_share"] = scores.FieldMean(scores.net_force_share)
    for name in (*WITHOUT_TRUTH, *MEASURED, "mean_displacement_px"):
        metrics[f"test/{name}"] = scores.FieldMean(nn.Identity())
    return named_metrics(metrics)


def log_scores(
    module: Any, batch: Any, stage: str, *, loss: Tensor | None, traction_pa: Tensor, operator: Operator | None = None
) -> None:
    """Add a batch to the metrics of a stage.

    Args:
        module: owns `metrics` as `traction_metrics` makes them.
        batch: a `TractionBatch`.
        stage: "train", "val" or "test".
        loss: () of the batch; None for a method that has none.
        traction_pa: (batch, 2, y, x).
        operator: gives the displacement in px that a traction / E would cause, (batch, 2, y, x) both; needed in the
            test.

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
        if operator is not None and stage == "test":
            log_mean(module, "test/traction_nrmse_sd", prediction, target, mask, batch_size=size)
            for name in OVER_THE_FRAME:
                log_mean(module, f"test/{name}", prediction, target, batch_size=size)
            # of the true traction: noise would add to both energies and hide what is missing
            displacement = displacement_px(batch, torch.nan_to_num(batch.traction_pa), operator)[known]
            log_mean(module, "test/strain_energy_error", prediction, target, displacement, mask, batch_size=size)
    if operator is not None and stage == "test":
        everything = len(known)
        log_mean(module, "test/net_force_share", traction_pa, batch_size=everything)
        broken = ~traction_pa.isfinite().flatten(1).all(dim=1)
        told = work_and_force(batch, traction_pa)
        told["mean_displacement_px"] = mean_inside(batch.displacement_px, batch.cell_mask)
        for name, values in (without_truth(batch, traction_pa, operator) | told).items():
            counted = values[values.isfinite() | broken]  # a field that cannot have a value does not hide the others'
            if len(counted):
                log_mean(module, f"test/{name}", counted, batch_size=len(counted))


def predicted(batch: Any, traction_pa: Tensor, operator: Operator) -> TractionPrediction:
    """A predicted traction (batch, 2, y, x) in Pa with all that `summary` and `without_truth` say of it."""
    numbers = summary(batch, traction_pa, operator) | without_truth(batch, traction_pa, operator)
    return TractionPrediction(traction_pa, **numbers)


def summary(batch: Any, traction_pa: Tensor, operator: Operator) -> dict[str, Tensor]:
    """What can be said of a predicted traction (batch, 2, y, x) in Pa, one number per field (batch,).

    largest_traction_pa; strain_energy_fj, half the work on the measured displacement inside the outline, outside
    which methods without a cutoff work on noise; net_force_nn of the whole frame, 0 for a cell at rest;
    forward_residual; traction_nrmse, NaN where the truth is unknown. `operator` as in `log_scores`.
    """
    return work_and_force(batch, traction_pa) | {
        "largest_traction_pa": magnitude(traction_pa).amax(dim=(-2, -1)),
        "forward_residual": forward_residual(batch, traction_pa, operator),
        "traction_nrmse": scores.nrmse(traction_pa, batch.traction_pa, batch.cell_mask),
    }


def work_and_force(batch: Any, traction_pa: Tensor) -> dict[str, Tensor]:
    """strain_energy_fj and net_force_nn of `summary`, (batch,) each."""
    pixel_um = batch.pixel_size_um[:, None, None, None]
    area_um2 = batch.pixel_size_um.square()
    inside_pa = torch.where(batch.cell_mask[:, None], traction_pa, 0)
    energy = strain_energy_fj(inside_pa, batch.displacement_px * pixel_um, pixel_size_um=1.0)
    force = torch.linalg.vector_norm(net_force_nn(traction_pa, pixel_size_um=1.0), dim=-1)
    return {"strain_energy_fj": energy * area_um2, "net_force_nn": force * area_um2}


def without_truth(batch: Any, traction_pa: Tensor, operator: Operator) -> dict[str, Tensor]:
    """The scores that need no true traction, (batch,) each, by the names of `WITHOUT_TRUTH`.

    Arguments as in `summary`. NaN for a traction that is not finite or zero everywhere, where nothing was displaced,
    and outside_share also where the mask covers the whole frame: no outline is known.
    """
    near = scores.grown(batch.cell_mask, radius_px=OUTLINE_BUFFER_PX)
    outlined = ~batch.cell_mask.flatten(1).all(dim=1)
    usable = traction_pa.isfinite().flatten(1).all(dim=1)
    finite_pa = torch.where(usable[:, None, None, None], traction_pa, 0)
    rest = displacement_px(batch, finite_pa, operator) - batch.displacement_px
    missed, all_of_it = (torch.where(near[:, None], u, 0).flatten(1).norm(dim=1) for u in (rest, batch.displacement_px))
    correlation = scores.vector_correlation(finite_pa, fourier_traction(batch), near)
    values = {
        "outside_share": torch.where(outlined, scores.share_outside(finite_pa, near), torch.nan),
        "forward_residual": forward_residual(batch, traction_pa, operator),
        "displacement_nrmse": missed / all_of_it,
        "fttc_correlation": correlation,
    }
    return {name: torch.where(usable & value.isfinite(), value, torch.nan) for name, value in values.items()}


def mean_inside(displacement_px: Tensor, cell_mask: Tensor) -> Tensor:
    """Mean length (batch,) of the vectors (batch, 2, y, x) where the mask (batch, y, x) is true."""
    inside = cell_mask.flatten(1)
    return (magnitude(displacement_px).flatten(1) * inside).sum(dim=1) / inside.sum(dim=1)


def fourier_traction(batch: Any) -> Tensor:
    """Traction / E (batch, 2, y, x) by Fourier cytometry at `REFERENCE_REGULARIZATION`, each on its own substrate."""
    layers_px = (batch.gel_thickness_um / batch.pixel_size_um).tolist()
    return torch.stack(
        [
            traction_from_displacement(
                field,
                pixel_size_um=1.0,
                youngs_modulus_pa=1.0,
                poisson_ratio=round(ratio, 6),  # .45 as float32 is .4499999
                thickness_um=layer_px if math.isfinite(layer_px) else None,
                regularization=REFERENCE_REGULARIZATION,
            )
            for field, ratio, layer_px in zip(
                batch.displacement_px, batch.poisson_ratio.tolist(), layers_px, strict=True
            )
        ]
    )


def forward_residual(batch: Any, traction_pa: Tensor, operator: Operator) -> Tensor:
    """|G t - u| / |u| of every field over the whole frame, (batch,), arguments as in `summary`.

    Both are taken relative to their means: a drift of the whole field is no traction. NaN for a traction that is not
    finite, and where nothing was displaced or everything alike.
    """
    usable = traction_pa.isfinite().flatten(1).all(dim=1)
    explained = displacement_px(batch, torch.nan_to_num(traction_pa, posinf=0.0, neginf=0.0), operator)
    measured = batch.displacement_px - batch.displacement_px.mean(dim=(2, 3), keepdim=True)
    rest = explained - explained.mean(dim=(2, 3), keepdim=True) - measured
    size = torch.linalg.vector_norm(measured, dim=(1, 2, 3))
    moved = size > ROUNDING * torch.linalg.vector_norm(batch.displacement_px, dim=(1, 2, 3))
    residual = torch.linalg.vector_norm(rest, dim=(1, 2, 3)) / size
    return torch.where(usable & moved & residual.isfinite(), residual, torch.nan)


def displacement_px(batch: Any, traction_pa: Tensor, operator: Operator) -> Tensor:
    """The displacement (batch, 2, y, x) in px that a traction would cause; every field has its own substrate."""
    return operator(traction_pa / batch.youngs_modulus_pa[:, None, None, None])
