"""Stacking: the right values always, and no copy where one array holds them already."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.shards.stacking import stack
from datamodules.shards.writer import write_dataset

COUNT = 9


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    folder = tmp_path_factory.mktemp("data") / "twin"
    samples = (
        Sample(f"s{n}", f"g{n}", {"field": np.full((2, 3, 4), n, np.float32), "frame": np.array(n, np.int16)})
        for n in range(COUNT)
    )
    fields = {"field": {"axes": "cyx", "unit": "1"}, "frame": {"axes": "", "unit": "1"}}
    write_dataset(folder, samples, stem="x", fields=fields, splits={}, seed=0, provenance={}, shard_bytes=300)
    return ShardDataset(folder)


@given(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=12), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_equals_numpy_for_samples_in_any_order(dataset: ShardDataset, indices: list[int], random: object) -> None:
    samples = dataset.__getitems__(indices)
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for some in (samples, shuffled, samples[1:] or samples, samples[::-1]):
        for name in ("field", "frame"):
            expected = np.stack([sample.fields[name] for sample in some])
            found = stack(some, name)
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected)


def test_one_read_is_not_copied(dataset: ShardDataset) -> None:
    samples = dataset.__getitems__([4, 0, 7])
    assert np.shares_memory(stack(samples, "field"), samples[0].fields["field"])
    assert not np.shares_memory(stack(samples[:2], "field"), samples[0].fields["field"])


def test_samples_from_elsewhere_are_copied() -> None:
    table = np.arange(12.0).reshape(2, 6)
    halves = [Sample("a", "g", {"x": table[0, :3]}), Sample("b", "g", {"x": table[1, :3]})]
    assert np.array_equal(stack(halves, "x"), table[:, :3])
    views = [Sample("a", "g", {"x": table[0].view(np.int64)}), Sample("b", "g", {"x": table[1].view(np.int64)})]
    assert np.array_equal(stack(views, "x"), table.view(np.int64))


def test_nothing_to_stack_is_refused() -> None:
    with pytest.raises(ValueError, match="samples must hold at least one"):
        stack([], "x")
