"""How the step size of an optimizer changes in the course of a training."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def rise_and_fall(optimizer: Optimizer, *, steps: int, warm_up_share: float) -> Any:
    """Rise linearly to the optimizer's own step size, then fall to 0 along a half cosine, batch by batch.

    Args:
        optimizer: whose step sizes are the largest.
        steps: of the whole training, `trainer.estimated_stepping_batches`.
        warm_up_share: share of the steps in which the step size rises, in [0, 1].

    Returns:
        What `configure_optimizers` returns.

    """
    steps = max(int(steps), 1)
    rising = max(warm_up_share * steps, 1)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 + 0.5 * math.cos(math.pi * min((step - rising) / max(steps - rising, 1), 1.0))

    return [optimizer], [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]
