"""Metrics under the names they are logged by: what every paper's module does with them.

They live in a module's `metrics`, an `nn.ModuleDict`, are updated batch by batch and logged once per epoch over all
processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric


def named_metrics(metrics: Mapping[str, Metric]) -> nn.ModuleDict:
    """Metrics by name (`train/loss`); those of the training epoch travel with a checkpoint taken inside it.

    A resumed epoch thus reports the mean over all its batches (with several processes, over the first one's so far).
    """
    for name, metric in metrics.items():
        metric.persistent(name.startswith("train/"))
    return nn.ModuleDict(metrics)


def reset_training_metrics(module: Any) -> None:
    """Begin a training epoch's means anew; a checkpoint from the end of an epoch still holds the last one's."""
    for name, metric in module.metrics.items():
        if name.startswith("train/"):
            metric.reset()


def log_step(module: Any, loss: Tensor, *, batch_size: int) -> Tensor:
    """Log the loss of one batch beside the epoch's mean, so that a curve is there before the first epoch ends."""
    module.log("train/loss_step", loss.detach(), on_step=True, on_epoch=False, batch_size=batch_size)
    return loss


def log_mean(module: Any, name: str, *values: Any, batch_size: int) -> None:
    """Add a batch to a metric and have it logged once per epoch, over all processes."""
    metric = module.metrics[name]
    metric.update(*values)
    module.log(name, metric, on_step=False, on_epoch=True, batch_size=batch_size, prog_bar=name.startswith("val/"))
