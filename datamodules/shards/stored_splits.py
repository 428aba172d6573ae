"""What the data halves of all papers share: the splits of a stored data set, and loaders in a resumable order.

`StoredSplits` knows where a data set lies (here or at a URL), how to make it when it is missing, and what its manifest
says; splits are opened when they are asked for. `InMemory` holds the user's own files in their place. `loader` puts a
data set over (epoch, index) behind the rank-aware order, resumable in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.shards.remote import folder_in, is_remote, open_mirror
from datamodules.shards.sampler import EpochBatchSampler, ResumableLoader
from datamodules.shards.schema import MANIFEST_NAME, SPLIT_CODES, Manifest


class StoredSplits:
    """Where a data set of a paper lies, and its splits.

    Args:
        data_root: folder or URL that holds `<stem>/<dataset>`.
        stem: of the paper.
        dataset: name of the data set's folder; `twin` is what the paper's simulator makes.
        scheme: name of a stored split scheme.
        memory_gib: splits of at most this size are held in memory.

    Raises:
        ValueError: an argument is out of its range; the message starts with its name.
    """

    def __init__(self, *, data_root: str, stem: str, dataset: str, scheme: str, memory_gib: float) -> None:
        if dataset in ("", "..") or Path(dataset).name != dataset:
            raise ValueError(f"dataset must be the name of one folder, got {dataset!r}")
        if not scheme:
            raise ValueError("split must name a split scheme of the data set, got an empty string")
        if not memory_gib >= 0:
            raise ValueError(f"memory_gib must be at least 0, got {memory_gib}")
        self.folder = folder_in(data_root, stem, dataset)
        self.scheme = scheme
        self._stem = stem
        self._dataset = dataset
        self._memory_bytes = round(memory_gib * 2**30)
        self._opened: dict[tuple[str, tuple[str, ...]], ShardDataset] = {}
        self.predicted = "test"
        """The split that a prediction is made of."""

    @cached_property
    def local_folder(self) -> Path:
        """The folder itself, or the local mirror of a URL."""
        return open_mirror(str(self.folder)) if is_remote(self.folder) else Path(self.folder)

    @cached_property
    def manifest(self) -> Manifest:
        """What the data set says of itself.

        Raises:
            FileNotFoundError: there is none; the message says how to make it.
            ShardError: it is damaged.
            ValueError: it belongs to another paper.
        """
        self.require()
        manifest = Manifest.read(self.local_folder)
        if manifest.stem != self._stem:
            raise ValueError(f"{self.folder} is a data set of {manifest.stem}, not of {self._stem}")
        return manifest

    @property
    def irreducible_error(self) -> dict[str, Any] | None:
        """What its simulator says that an oracle reaches on the data set; None where it knows nothing of that."""
        return self.manifest.provenance.get("irreducible_error")

    def require(self) -> None:
        """Raise FileNotFoundError, saying how to make it, when the data set does not exist."""
        if is_remote(self.folder) or (self.local_folder / MANIFEST_NAME).is_file():
            return
        command = f"mechanolab data simulate {self._stem}"
        if self._dataset != "twin":
            convert = f"mechanolab data convert {self._stem} --source ARCHIVE --out {self.folder}"
            command = f"{convert}, or simulate it as the experiment's header says"
        raise FileNotFoundError(f"no data set at {self.folder}; make it with: {command}")

    def has(self, split: str) -> bool:
        """Whether the scheme puts any sample into `train`, `val` or `test`.

        Raises:
            ValueError: the data set lacks the scheme; the message names those that there are.
        """
        schemes = self.manifest.splits
        if self.scheme not in schemes:
            known = ", ".join(schemes) or "none"
            raise ValueError(f"split scheme {self.scheme!r} is not in {self.folder}; it has {known}")
        return split in SPLIT_CODES and schemes[self.scheme]["samples"][split] > 0

    def predict_on(self, split: str, *, pixel_size_um: float | None) -> None:
        """Choose the split that a prediction is made of.

        Raises:
            ValueError: there is no such split, or a pixel size is given, which is for the user's own files alone.
        """
        if pixel_size_um is not None:
            raise ValueError("pixel_size_um needs files: a data set knows its own pixel size")
        if split not in SPLIT_CODES:
            raise ValueError(f"split must be 'train', 'val' or 'test', got {split!r}")
        self.predicted = split

    def needed(self, stage: str) -> list[str]:
        """The splits that Lightning's `stage` (fit, validate, test, predict) reads."""
        return {"fit": ["train", "val"], "validate": ["val"], "test": ["test"], "predict": [self.predicted]}[stage]

    def open(self, split: str, fields: Sequence[str]) -> ShardDataset:
        """The samples of one split; opened once for the same fields.

        Raises:
            ValueError: the data set lacks the scheme, the split or a field; the message names what there is.
        """
        if split not in SPLIT_CODES:
            raise ValueError(f"split must be 'train', 'val' or 'test', got {split!r}")
        key = (split, tuple(fields))
        if key not in self._opened:
            self.require()
            self._opened[key] = ShardDataset(
                self.folder, scheme=self.scheme, split=split, fields=fields, memory_bytes=self._memory_bytes
            )
        return self._opened[key]


class InMemory(Dataset[Sample]):
    """Samples that are held in memory: the user's own files."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        return [self.samples[index] for index in indices]


def loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
    training: bool,
    trainer: Any,
    collate: Callable[[Any], Any],
) -> DataLoader[Any]:
    """Batches of a data set whose `__getitems__` takes (epoch, index) pairs.

    Args:
        dataset: of known length.
        batch_size: samples per device and step.
        num_workers: processes that read; 0 reads in the calling process.
        seed: of the order.
        training: shuffled anew every epoch, without the samples that do not fill all ranks' last batch, and resumable
            in the middle; otherwise in stored order, every sample once.
        trainer: Lightning's, which knows rank and world size; None for a single process.
        collate: samples of one batch -> batch.
    """
    rank, world_size = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
    sampler = EpochBatchSampler(
        len(dataset),  # type: ignore[arg-type]
        batch_size=batch_size,
        seed=seed,
        shuffle=training,
        rank=rank,
        world_size=world_size,
    )
    arguments: dict[str, Any] = {
        "batch_sampler": sampler,
        "collate_fn": collate,
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _one_thread,
        # drawing the workers' seeds must not advance the global stream that dropout uses
        "generator": torch.Generator(),
    }
    return ResumableLoader(dataset, **arguments) if training else DataLoader(dataset, **arguments)


def _one_thread(worker: int) -> None:
    """Keep a worker to one thread: several of them share the cores already."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
