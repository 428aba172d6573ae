"""Reading a data set: `ShardDataset`, a torch data set over one folder of shards, here or elsewhere.

Files are opened on first use in each process and at most `max_open_files` stay open, so a data set can be pickled,
forked and spawned. Samples are read chunk by chunk into arrays allocated once per batch; the first time a process reads
a chunk it checks the chunk's fletcher32 checksum. Opening hashes nothing; `verify.verify_dataset` does.
"""

from __future__ import annotations

import operator
import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.batches import Sample
from datamodules.shards.index import read_index
from datamodules.shards.remote import fetch_shard, is_remote, open_mirror
from datamodules.shards.schema import SPLIT_CODES, Field, Manifest, ShardError
from datamodules.shards.shard_file import ShardFile


class ShardDataset(Dataset[Sample]):
    """The samples of one data set, or of one split of it, in stored order.

    Args:
        folder: The data set's own folder, the one that holds `manifest.json`, or its URL: then each shard is fetched
            into the cache when it is first needed (see `remote`).
        scheme: Name of a stored split scheme, together with `split`; without both, every sample.
        split: `train`, `val` or `test`.
        fields: Names of the fields to read; all when None.
        max_open_files: How many shard files one process keeps open; each takes two descriptors.
        memory_bytes: A selection of at most so many bytes is read into memory at once, here; worker processes that are
            forked share it. 0: never.

    Raises:
        FileNotFoundError: There is no data set in `folder`.
        ShardError: The manifest or the index is damaged, foreign or of another version; shards are opened only when
            they are read, and raise the same error then.
        ValueError: The scheme, split or field does not exist (the message names those that do), or the split is empty.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        scheme: str | None = None,
        split: str | None = None,
        fields: Sequence[str] | None = None,
        max_open_files: int = 64,
        memory_bytes: int = 0,
    ) -> None:
        if max_open_files < 1:
            raise ValueError(f"max_open_files must be at least 1, got {max_open_files}")
        if memory_bytes < 0:
            raise ValueError(f"memory_bytes must be at least 0, got {memory_bytes}")
        self.folder: Path | str = str(folder) if is_remote(folder) else Path(folder)
        self.local_folder: Path = open_mirror(self.folder) if isinstance(self.folder, str) else self.folder
        """The folder itself, or the local mirror of a URL."""
        self.manifest = Manifest.read(self.local_folder)
        self.fields = self._choose_fields(fields)
        self._check_split(scheme, split)
        schemes = [scheme] if scheme is not None else []
        try:
            index = read_index(self.local_folder, self.manifest, schemes=schemes)
        except ShardError:
            # split schemes may have been added since the manifest was read: then there is a new index
            newer = Manifest.read(self.local_folder)
            if newer.index_name == self.manifest.index_name:
                raise
            self.manifest = newer
            index = read_index(self.local_folder, self.manifest, schemes=schemes)
        if scheme is not None and split is not None:
            self.indices: NDArray[np.int64] = np.flatnonzero(index.splits[scheme] == SPLIT_CODES[split])
            if not len(self.indices):
                raise ValueError(
                    f"split {split!r} of scheme {scheme!r} in {self.folder} is empty: choose another scheme, or share "
                    "the groups out anew with: mechanolab data split"
                )
        else:
            self.indices = np.arange(self.manifest.counts["samples"])
        self._sample_id = index.sample_id[self.indices]
        self._group = index.group[self.indices]
        self._group_name = index.group_name
        self._shard = index.shard[self.indices]
        self._row = index.row[self.indices]
        self._max_open_files = max_open_files
        self._files: dict[int, ShardFile] = {}
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._process = os.getpid()
        nbytes = len(self) * sum(field.nbytes for field in self.fields.values())
        self.in_memory = nbytes <= memory_bytes
        self._memory = self._read(np.arange(len(self))) if self.in_memory else None

    def _choose_fields(self, names: Sequence[str] | None) -> dict[str, Field]:
        stored = self.manifest.fields
        if names is None:
            return dict(stored)
        for name in names:
            if name not in stored:
                raise ValueError(f"field {name!r} is not in {self.folder}; it holds {', '.join(stored)}")
        if not names:
            raise ValueError("fields must name at least one field, or be None for all")
        return {name: stored[name] for name in names}

    def _check_split(self, scheme: str | None, split: str | None) -> None:
        schemes = ", ".join(self.manifest.splits) or "none"
        if (scheme is None) != (split is None):
            raise ValueError(f"scheme and split belong together; {self.folder} has the schemes {schemes}")
        if scheme is not None and scheme not in self.manifest.splits:
            raise ValueError(f"split scheme {scheme!r} is not in {self.folder}; it has {schemes}")
        if split is not None and split not in SPLIT_CODES:
            raise ValueError(f"split must be train, val or test, got {split!r}")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Read several samples, each shard's in the order of its rows.

        Args:
            indices: Positions in this data set (not in the file), in [-len, len).

        Returns:
            The samples in the order asked for; their arrays are slices of one array per field.

        Raises:
            IndexError: A position is out of range.
            ShardError: A file is missing, damaged, foreign, a checksum does not match, or a text is not UTF-8.
        """
        positions = self._positions(indices)
        if self.in_memory:
            if self._memory is None:  # in a process that was not forked from the one that read it
                self._memory = self._read(np.arange(len(self)))
            arrays = {name: array[positions] for name, array in self._memory.items()}
        else:
            arrays = self._read(positions)
        return [
            Sample(
                sample_id=self._text("sample_id", self._sample_id[position]),
                group=self._text("group_name", self._group_name[self._group[position]]),
                fields={name: array[slot, ...] for name, array in arrays.items()},
            )
            for slot, position in enumerate(positions.tolist())
        ]

    def _positions(self, indices: Sequence[int]) -> NDArray[np.int64]:
        positions = np.array([operator.index(index) for index in indices], np.int64)
        outside = (positions < -len(self)) | (positions >= len(self))
        if outside.any():
            raise IndexError(f"sample {positions[outside][0]} is out of range: the data set has {len(self)} samples")
        return positions % len(self)

    def _read(self, positions: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Field name to (positions, *shape), read shard by shard in the order of the rows."""
        shards, rows = self._shard[positions], self._row[positions]
        order = np.lexsort((rows, shards))
        slots, rows, shards = order.tolist(), rows[order].tolist(), shards[order].tolist()
        starts = [slot for slot, shard in enumerate(shards) if not slot or shard != shards[slot - 1]]
        # opened first: a file that only claims its size is refused before memory is asked for
        for start in starts[: self._max_open_files]:
            self._shard_file(shards[start])
        arrays = {
            name: np.empty((len(positions), *field.shape), np.dtype(field.dtype).newbyteorder("<"))
            for name, field in self.fields.items()
        }
        for start, stop in pairwise([*starts, len(shards)]):
            self._shard_file(shards[start]).read(rows[start:stop], slots[start:stop], arrays)
        return arrays

    def _shard_file(self, number: int) -> ShardFile:
        if self._process != os.getpid():
            # what came through a fork belongs to the parent: HDF5 handles share its offsets and caches
            self._files, self._open, self._process = {}, OrderedDict(), os.getpid()
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= self._max_open_files:
            self._open.popitem(last=False)[1].close()
        entry = self.manifest.shards[number]
        if isinstance(self.folder, str):
            # also a shard known from before: once closed, it may have left a bounded cache
            path = fetch_shard(self.folder, self.local_folder, entry)
        else:
            path = self.folder / entry["name"]
        known = self._files.get(number)
        if known is None or not known.reopen():
            self._files[number] = ShardFile(path, self.manifest, number, self.fields)
        self._open[number] = self._files[number]
        return self._open[number]

    @cached_property
    def sample_ids(self) -> NDArray[np.str_]:
        """(len,) id of every sample of this selection."""
        return self._texts("sample_id", self._sample_id)

    @cached_property
    def groups(self) -> NDArray[np.str_]:
        """(len,) group of every sample of this selection."""
        return self._texts("group_name", self._group_name)[self._group]

    def _text(self, name: str, content: bytes) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self._not_utf8(name, error) from error

    def _texts(self, name: str, contents: NDArray[np.bytes_]) -> NDArray[np.str_]:
        try:
            return np.char.decode(contents, "utf-8")
        except UnicodeDecodeError as error:
            raise self._not_utf8(name, error) from error

    def _not_utf8(self, name: str, error: UnicodeDecodeError) -> ShardError:
        path = self.local_folder / self.manifest.index_name
        return ShardError(f"{path}: dataset {name!r} holds a text that is not UTF-8 ({error}); restore the file")

    def close(self) -> None:
        """Close this process's files; the next read opens what it needs again."""
        for file in self._files.values():
            file.close()
        self._files, self._open = {}, OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy() | {"_files": {}, "_open": OrderedDict(), "_memory": None}
        for name in ("sample_ids", "groups"):
            state.pop(name, None)
        return state
