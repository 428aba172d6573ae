"""Mean of a loss over samples, whatever the sizes of the batches it was averaged in.

torchmetrics 1.9's MeanMetric ignores the weights when it may not look for NaN (nan_strategy="disable"), and a NaN loss
must be seen, not dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Sum of batch means times batch sizes, over the number of samples.

    >>> mean = MeanLoss()
    >>> mean.update(torch.tensor(1.0), 3)
    >>> mean.update(torch.tensor(5.0), 1)
    >>> mean.compute()
    tensor(2.)
    """

    higher_is_better = False
    full_state_update = False
    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, samples: int) -> None:
        """Add the mean `loss` () of a batch of `samples`."""
        self.total += loss.to(self.total.dtype) * samples
        self.samples += samples

    def compute(self) -> Tensor:
        """Mean () over all samples; NaN before the first."""
        return self.total / self.samples
