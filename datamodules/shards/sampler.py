"""Batches in an order that depends on seed and epoch only, and a loader that resumes in the middle of an epoch.

Indices travel as (epoch, index), so that the data set can seed an augmentation by (seed, epoch, index) in whichever
worker process it happens. Both classes fit Lightning 2.6: it calls `set_epoch` on `loader.batch_sampler.sampler` at
the start of every epoch and stores `loader.state_dict()` in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset


class EpochBatchSampler(BatchSampler):
    """Yields lists of (epoch, index), index a position in the data set.

    With `shuffle` the order of an epoch is a random permutation drawn from (seed, epoch); the ranks take every
    `world_size`-th of it, and the last `length % world_size` samples of the permutation sit out the epoch, so that
    every rank has the same number of batches and a step of all ranks sees what one process with `world_size` times
    the batch size would see. Without `shuffle` (evaluation) the ranks take every `world_size`-th sample in stored
    order and nothing is dropped or repeated, so ranks may differ by one batch.

    Args:
        length: Number of samples of the data set.
        batch_size: Samples per batch and rank.
        seed: Of the order, at least 0.
        shuffle: True for training, False for evaluation.
        drop_last: Leave out the last batch of a rank when it is not full.
        rank: Of this process.
        world_size: Number of processes.
        sampler: Ignored; Lightning passes it when it makes the sampler anew for prediction.

    Raises:
        ValueError: An argument is out of range, or no batch would be left.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        sampler: object = None,
    ) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, got {world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        # not called batch_size and drop_last: Lightning rebuilds a sampler that has these by passing nothing else
        self._length = length
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._rank = rank
        self._world_size = world_size
        # `loader.batch_sampler.sampler` is where Lightning looks for set_epoch
        self.sampler = self  # type: ignore[assignment]
        self.epoch = 0
        """The epoch that the next iteration runs through."""
        self.first_batch = 0
        """The batch that the next iteration starts with; back to 0 once it has begun."""
        if shuffle and len(self) == 0:
            raise ValueError(f"batch_size {batch_size} on {world_size} processes leaves no batch of {length} samples")

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; a start within that epoch, if one is set, stays in force."""
        if epoch != self.epoch:
            self.start_at(epoch, 0)

    def start_at(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin with batch `batch` of `epoch`; what lies before is skipped, not read.

        Raises:
            ValueError: A number is negative.
        """
        if epoch < 0 or batch < 0:
            raise ValueError(f"epoch and batch must be at least 0, got {epoch} and {batch}")
        self.epoch = epoch
        self.first_batch = batch

    @property
    def numbers(self) -> dict[str, int]:
        """What a position within an epoch is a position in: `batch_size`, `world_size`, `seed` and `length`."""
        return {
            "batch_size": self._batch_size,
            "world_size": self._world_size,
            "seed": self._seed,
            "length": self._length,
        }

    def _indices(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(samples of this rank,) positions in the order of this epoch."""
        if not self._shuffle:
            return np.arange(self._rank, self._length, self._world_size)
        order = np.random.default_rng([self._seed, epoch]).permutation(self._length)
        return order[: self._samples() * self._world_size][self._rank :: self._world_size]

    def _samples(self) -> int:
        """Samples of this rank in one epoch."""
        if self._shuffle:
            return self._length // self._world_size
        return len(range(self._rank, self._length, self._world_size))

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch, wherever the next iteration starts."""
        full, rest = divmod(self._samples(), self._batch_size)
        return full + (1 if rest and not self._drop_last else 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:  # type: ignore[override]
        epoch, first = self.epoch, self.first_batch
        self.first_batch = 0
        indices = self._indices(epoch)
        for batch in range(first, len(self)):
            chosen = indices[batch * self._batch_size : (batch + 1) * self._batch_size]
            yield [(epoch, index) for index in chosen.tolist()]


class ResumableLoader(DataLoader):
    """A DataLoader over an `EpochBatchSampler` whose position can be stored and restored, with any number of workers.

    The position counts the batches handed to the consumer, not those that workers have prefetched. Workers start
    with the first batch that is asked for, not with `iter()`: Lightning calls `iter()` before it says which epoch a
    resumed run is in.

    Args:
        dataset: Takes (epoch, index), or a list of them in `__getitems__`.
        batch_sampler: The order.
        loader_arguments: Further arguments of `torch.utils.data.DataLoader`, for example `num_workers`.
    """

    def __init__(self, dataset: Dataset[Any], *, batch_sampler: EpochBatchSampler, **loader_arguments: Any) -> None:
        # a generator of its own: drawing the workers' seeds must not advance the global stream that dropout uses
        if loader_arguments.get("generator") is None:
            loader_arguments["generator"] = torch.Generator()
        super().__init__(dataset, batch_sampler=batch_sampler, **loader_arguments)
        self._position: list[int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        order: Any = self.batch_sampler
        # each iteration counts for itself, so one that was left early cannot disturb the next
        position = [order.epoch, order.first_batch]
        self._position = position
        for batch in super().__iter__():
            position[1] += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the `batch`es of it that the consumer has been given, and the `numbers` of the order."""
        order: Any = self.batch_sampler
        if self._position is not None and self._position[0] == order.epoch:
            epoch, batch = self._position
        else:
            epoch, batch = order.epoch, order.first_batch
        return {"epoch": epoch, "batch": batch, **order.numbers}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was taken: the next iteration starts with the batch after the last one given.

        A state from the end of an epoch continues with the first batch of the next. The skip is used once, and is
        dropped when another epoch is set before the iteration starts.

        Raises:
            ValueError: The state holds no epoch and batch, or one of the `numbers` it holds is not this loader's; a
                state without them is accepted.
        """
        try:
            epoch, batch = int(state["epoch"]), int(state["batch"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the loader's state must hold the integers epoch and batch, got {state!r}") from error
        order: Any = self.batch_sampler
        for name, number in order.numbers.items():
            if state.get(name, number) != number:
                raise ValueError(
                    f"the loader's state was taken with {name} {state[name]}, this loader has {number}: its position "
                    f"means nothing here; resume with the same {name}"
                )
        if batch >= len(order):
            epoch, batch = epoch + 1, 0
        order.start_at(epoch, batch)
        self._position = None
