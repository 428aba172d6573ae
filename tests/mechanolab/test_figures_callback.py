"""Which samples of a stage are kept for its figures: the first ones, or a movie from its first frame to its last."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mechanolab.callbacks import figures
from mechanolab.callbacks.figures import ShownSamples


class Frames(NamedTuple):
    image: Tensor
    note: Tensor | None
    group: list[str]


def frames(first: int, count: int, group: str, size: int = 2) -> Frames:
    numbers = torch.arange(first, first + count, dtype=torch.float32)
    return Frames(numbers[:, None, None].expand(-1, size, size).clone(), None, [group] * count)


def shown(kept: ShownSamples) -> list[int]:
    return kept.joined().image[:, 0, 0].int().tolist()


def test_the_first_samples_of_one_size_are_kept_while_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "SAMPLES", 5)
    kept = ShownSamples()
    for batch in (
        frames(0, 2, "a"),
        frames(2, 2, "a", size=3),
        frames(4, 2, "b"),
        frames(6, 2, "b"),
        frames(8, 2, "c"),
    ):
        kept.add(batch)
    assert shown(kept) == [0, 1, 4, 5, 6, 7]  # no batch is cut
    assert kept.joined().group == ["a", "a", "b", "b", "b", "b"]
    assert kept.joined().note is None


@pytest.mark.parametrize("at_once", [1, 3, 7])
@pytest.mark.parametrize(("limit", "value"), [("SAMPLES", 4), ("BYTES", 4 * 16)])
def test_a_movie_is_kept_from_its_first_frame_to_its_last(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int, at_once: int
) -> None:
    monkeypatch.setattr(figures, limit, value)
    for count, expected in ((3, [0, 1, 2]), (4, [0, 1, 2, 3]), (5, [0, 2, 4]), (21, [0, 8, 16])):
        kept = ShownSamples(follow_group=True)
        for first in range(0, count, at_once):
            kept.add(frames(first, min(at_once, count - first), "a"))
        kept.add(frames(100, 5, "b"))
        assert shown(kept) == expected
        assert set(kept.joined().group) == {"a"}
