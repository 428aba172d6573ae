"""The step size rises linearly and falls along a half cosine."""

import math

import pytest
import torch
from torch import nn

from lightning_modules.losses.step_sizes import rise_and_fall


def sizes(steps: int, warm_up_share: float) -> list[float]:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    _, [entry] = rise_and_fall(optimizer, steps=steps, warm_up_share=warm_up_share)
    assert entry["interval"] == "step"
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        entry["scheduler"].step()
    return found


def test_by_hand() -> None:
    """Four steps up in fifths, sixteen down along the cosine."""
    expected = [0.2, 0.4, 0.6, 0.8] + [0.5 + 0.5 * math.cos(math.pi * step / 16) for step in range(16)]
    assert sizes(20, 0.2) == pytest.approx([2 * factor for factor in expected])


@pytest.mark.parametrize(("steps", "share"), [(1, 0.0), (1, 1.0), (7, 0.0), (7, 1.0), (100, 0.05)])
def test_it_never_leaves_its_range(steps: int, share: float) -> None:
    found = sizes(steps, share)
    assert all(0 < size <= 2.0 for size in found)
    peak = found.index(max(found))
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
