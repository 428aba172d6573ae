"""The order of batches: a function of seed and epoch alone, shared out among ranks, and resumed anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from datamodules.shards.sampler import EpochBatchSampler, ResumableLoader

LENGTH, BATCH, SEED = 23, 4, 7
BATCHES = 6
NUMBERS = {"batch_size": BATCH, "world_size": 1, "seed": SEED, "length": LENGTH}

Batch = list[tuple[int, int]]


class Echo(Dataset[tuple[int, int]]):
    """Gives back the (epoch, index) it was asked for, and counts how often."""

    def __init__(self) -> None:
        self.asked = 0

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        self.asked += len(keys)
        return list(keys)


def identity(items: Batch) -> Batch:
    return items


def sampler(**changes: Any) -> EpochBatchSampler:
    return EpochBatchSampler(**({"length": LENGTH, "batch_size": BATCH, "seed": SEED, "shuffle": True} | changes))


def loader(**changes: Any) -> ResumableLoader:
    return ResumableLoader(Echo(), batch_sampler=sampler(), collate_fn=identity, **changes)


def epoch_of(source: Any, epoch: int) -> list[Batch]:
    order = source.batch_sampler if isinstance(source, ResumableLoader) else source
    order.set_epoch(epoch)
    return [list(batch) for batch in source]


def indices(batches: list[Batch]) -> list[int]:
    return [index for batch in batches for _, index in batch]


# -- order ------------------------------------------------------------------------------------------------------------


def test_an_epoch_visits_every_sample_once_and_says_which_epoch_it_is() -> None:
    batches = epoch_of(sampler(), 3)
    assert sorted(indices(batches)) == list(range(LENGTH))
    assert {epoch for batch in batches for epoch, _ in batch} == {3}
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]
    assert len(sampler()) == len(batches)


def test_order_depends_on_seed_and_epoch_only() -> None:
    used = sampler()
    for epoch in (0, 5, 1):
        assert epoch_of(used, epoch) == epoch_of(sampler(), epoch)
    assert indices(epoch_of(sampler(), 0)) != indices(epoch_of(sampler(), 1))
    assert indices(epoch_of(sampler(), 0)) != indices(epoch_of(sampler(seed=SEED + 1), 0))
    np.random.default_rng(0)
    torch.manual_seed(99)
    assert epoch_of(sampler(), 2) == epoch_of(used, 2)


def test_without_shuffle_the_order_is_the_stored_one_in_every_epoch() -> None:
    assert indices(epoch_of(sampler(shuffle=False), 4)) == list(range(LENGTH))


def test_drop_last_leaves_out_the_batch_that_is_not_full() -> None:
    batches = epoch_of(sampler(drop_last=True), 0)
    assert [len(batch) for batch in batches] == [4] * 5
    assert len(sampler(drop_last=True)) == 5


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_evaluation_ranks_share_the_samples_without_repeating_or_dropping_one(world_size: int) -> None:
    shares = [
        indices(epoch_of(sampler(shuffle=False, rank=rank, world_size=world_size), 0)) for rank in range(world_size)
    ]
    assert shares[1] == list(range(LENGTH))[1::world_size]
    assert sorted(index for share in shares for index in share) == list(range(LENGTH))


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_training_ranks_get_equally_many_batches_and_no_sample_twice(world_size: int) -> None:
    shares = [epoch_of(sampler(rank=rank, world_size=world_size), 1) for rank in range(world_size)]
    assert len({tuple(len(batch) for batch in share) for share in shares}) == 1
    everything = [index for share in shares for index in indices(share)]
    assert len(set(everything)) == len(everything) == LENGTH // world_size * world_size


def test_a_step_of_two_ranks_sees_what_one_process_with_twice_the_batch_sees() -> None:
    one = epoch_of(sampler(length=24, batch_size=8), 2)
    two = [epoch_of(sampler(length=24, batch_size=4, rank=rank, world_size=2), 2) for rank in (0, 1)]
    assert [set(batch) for batch in one] == [set(a) | set(b) for a, b in zip(*two, strict=True)]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"length": 0}, "length"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"world_size": 0}, "world_size"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"length": 3, "drop_last": True}, "batch_size"),
        ({"length": 1, "world_size": 2}, "batch_size"),
    ],
)
def test_an_argument_out_of_range_is_named(changes: dict[str, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        sampler(**changes)


# -- resuming ---------------------------------------------------------------------------------------------------------

WORKERS = [
    pytest.param({}, id="no workers"),
    pytest.param({"num_workers": 2}, id="2 workers"),
    pytest.param({"num_workers": 2, "persistent_workers": True}, id="2 persistent workers"),
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", WORKERS)
def test_a_loader_stopped_in_an_epoch_continues_with_the_batches_that_were_left(changes: dict[str, Any]) -> None:
    whole = [epoch_of(sampler(), epoch) for epoch in range(4)]
    first = loader(**changes)
    assert epoch_of(first, 0) == whole[0]
    first.batch_sampler.set_epoch(1)
    iterator = iter(first)
    seen = [next(iterator) for _ in range(2)]
    state = first.state_dict()
    assert state == {"epoch": 1, "batch": 2, **NUMBERS}  # however many the workers have prefetched by now
    del iterator

    second = loader(**changes)
    second.load_state_dict(state)
    assert len(second) == BATCHES
    second.batch_sampler.set_epoch(1)  # Lightning says so once more; the skip stays
    assert seen + [list(batch) for batch in second] == whole[1]
    assert epoch_of(second, 2) == whole[2]
    assert epoch_of(second, 3) == whole[3]


@pytest.mark.parametrize("changes", WORKERS)
def test_a_loader_stopped_at_the_end_of_an_epoch_continues_with_the_next(changes: dict[str, Any]) -> None:
    first = loader(**changes)
    epoch_of(first, 0)
    state = first.state_dict()
    assert state == {"epoch": 0, "batch": BATCHES, **NUMBERS}
    second = loader(**changes)
    second.load_state_dict(state)
    assert second.state_dict() == {"epoch": 1, "batch": 0, **NUMBERS}
    assert [list(batch) for batch in second] == epoch_of(sampler(), 1)


def test_an_iteration_made_before_the_state_is_loaded_still_obeys_it() -> None:
    resumed = loader()
    iterator = iter(resumed)
    resumed.load_state_dict({"epoch": 2, "batch": 4})
    assert [list(batch) for batch in iterator] == epoch_of(sampler(), 2)[4:]


def test_the_skip_is_used_once_and_dropped_for_another_epoch() -> None:
    resumed = loader()
    resumed.load_state_dict({"epoch": 1, "batch": 3})
    assert len(list(resumed)) == BATCHES - 3
    assert len(list(resumed)) == BATCHES
    resumed.load_state_dict({"epoch": 1, "batch": 3})
    assert epoch_of(resumed, 2) == epoch_of(sampler(), 2)


def test_skipped_batches_are_not_read() -> None:
    resumed = loader()
    resumed.load_state_dict({"epoch": 0, "batch": 5})
    list(resumed)
    assert resumed.dataset.asked == 3


def test_an_iteration_left_early_does_not_disturb_the_position_of_the_next() -> None:
    source = loader()
    abandoned = iter(source)
    next(abandoned)
    current = iter(source)
    next(current)
    next(current)
    next(abandoned)
    assert source.state_dict() == {"epoch": 0, "batch": 2, **NUMBERS}


def test_the_position_of_an_untouched_loader_is_the_beginning() -> None:
    assert loader().state_dict() == {"epoch": 0, "batch": 0, **NUMBERS}


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, {"epoch": "x", "batch": 0}, {"epoch": -1, "batch": 0}])
def test_a_state_without_epoch_and_batch_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="epoch and batch"):
        loader().load_state_dict(state)


@pytest.mark.parametrize(("name", "other"), [("batch_size", 3), ("world_size", 2), ("seed", 8), ("length", 24)])
def test_a_state_of_another_order_is_refused_by_the_number_that_differs(name: str, other: int) -> None:
    resumed = loader()
    state = ResumableLoader(Echo(), batch_sampler=sampler(**{name: other})).state_dict()
    with pytest.raises(ValueError, match=f"with {name} {other}, this loader has {NUMBERS[name]}: .* the same {name}$"):
        resumed.load_state_dict(state | {"epoch": 3})
    assert resumed.state_dict() == {"epoch": 0, "batch": 0, **NUMBERS}  # untouched


def test_iterating_leaves_the_global_random_stream_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(loader())
    assert torch.equal(torch.rand(3), expected)
