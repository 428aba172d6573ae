"""Reading a data set: `ShardDataset`, a torch data set over one folder of shards.

Files are opened on first use in each process and at most `max_open_files` stay open, so a data set can be pickled,
forked and spawned. Samples are read chunk by chunk into arrays allocated once per batch; every read checks the
chunk's fletcher32 checksum. Opening hashes nothing; `verify.verify_dataset` does.
"""

from __future__ import annotations

import operator
import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.batches import Sample
from datamodules.shards.index import read_index
from datamodules.shards.opening import check_root, checked_dataset, open_file
from datamodules.shards.schema import SPLIT_CODES, Field, Manifest, ShardError


class OpenShard:
    """One open shard file: reads runs of consecutive rows of its fields into arrays."""

    def __init__(self, folder: Path, manifest: Manifest, number: int, fields: dict[str, Field]) -> None:
        entry = manifest.shards[number]
        self.path = folder / entry["name"]
        self._file = open_file(self.path, nbytes=entry["bytes"])
        try:
            check_root(self._file, self.path, manifest, shard=number)
            self._datasets = {
                name: checked_dataset(
                    self._file,
                    self.path,
                    name,
                    shape=(entry["samples"], *field.shape),
                    dtype=field.dtype,
                    chunks=(1, *field.shape),
                ).id
                for name, field in fields.items()
            }
            # spaces and types are cheap to use and dear to make: made once per field
            self._spaces = {name: dataset.get_space() for name, dataset in self._datasets.items()}
            self._types = {name: h5py.h5t.py_create(np.dtype(field.dtype)) for name, field in fields.items()}
            self._targets: dict[tuple[int, ...], h5py.h5s.SpaceID] = {}
        except BaseException:
            self.close()
            raise

    def read(self, name: str, row: int, out: NDArray[Any]) -> None:
        """Fill `out`, (rows, *shape) and contiguous, from row `row` on.

        Raises:
            ShardError: A checksum does not match or the file is damaged.
        """
        shape = out.shape
        target = self._targets.get(shape)
        if target is None:
            target = self._targets[shape] = h5py.h5s.create_simple(shape)
        space = self._spaces[name]
        space.select_hyperslab((row, *(0,) * (len(shape) - 1)), shape)
        try:
            self._datasets[name].read(target, space, out, self._types[name])
        except (OSError, RuntimeError) as error:
            raise ShardError(
                f"{self.path}: field {name!r} of row {row} cannot be read, its checksum does not match or the file is "
                f"damaged ({error}); `mechanolab data verify` lists every fault"
            ) from error

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        self._datasets, self._spaces, self._types, self._targets = {}, {}, {}, {}
        self._file.close()


class ShardDataset(Dataset[Sample]):
    """The samples of one data set, or of one split of it, in stored order.

    Args:
        folder: The data set's own folder, the one that holds `manifest.json`.
        scheme: Name of a stored split scheme, together with `split`; without both, every sample.
        split: `train`, `val` or `test`.
        fields: Names of the fields to read; all when None.
        max_open_files: How many shard files one process keeps open.

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
    ) -> None:
        if max_open_files < 1:
            raise ValueError(f"max_open_files must be at least 1, got {max_open_files}")
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.fields = self._choose_fields(fields)
        self._check_split(scheme, split)
        index = read_index(self.folder, self.manifest, schemes=[scheme] if scheme is not None else [])
        if scheme is not None and split is not None:
            self.indices: NDArray[np.int64] = np.flatnonzero(index.splits[scheme] == SPLIT_CODES[split])
            if not len(self.indices):
                raise ValueError(f"split {split!r} of scheme {scheme!r} in {self.folder} is empty")
        else:
            self.indices = np.arange(self.manifest.counts["samples"])
        self._sample_id = index.sample_id[self.indices]
        self._group = index.group[self.indices]
        self._group_name = index.group_name
        self._shard = index.shard[self.indices]
        self._row = index.row[self.indices]
        self._max_open_files = max_open_files
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._process = os.getpid()

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
            ShardError: A file is missing, damaged, foreign, or a checksum does not match.
        """
        positions = [self._position(index) for index in indices]
        places = [(int(self._shard[i]), int(self._row[i])) for i in positions]
        runs = self._runs(places)
        # opened first: a file that only claims its size is refused before memory is asked for
        for shard in sorted({places[slot][0] for slot, _ in runs})[: self._max_open_files]:
            self._shard_file(shard)
        arrays = {name: np.empty((len(positions), *field.shape), field.dtype) for name, field in self.fields.items()}
        for slot, rows in runs:
            shard, row = places[slot]
            file = self._shard_file(shard)
            for name, array in arrays.items():
                file.read(name, row, array[slot : slot + rows])
        return [
            Sample(
                sample_id=self._sample_id[position].decode(),
                group=self._group_name[self._group[position]].decode(),
                fields={name: array[slot, ...] for name, array in arrays.items()},
            )
            for slot, position in enumerate(positions)
        ]

    def _position(self, index: int) -> int:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"sample {position} is out of range: the data set has {len(self)} samples")
        return position % len(self)

    @staticmethod
    def _runs(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """(slot, rows): stretches of slots whose rows follow one another in a shard, ordered by shard and row."""
        runs: list[tuple[int, int]] = []
        for slot, (shard, row) in enumerate(places):
            if slot and places[slot - 1] == (shard, row - 1):
                start, rows = runs[-1]
                runs[-1] = (start, rows + 1)
            else:
                runs.append((slot, 1))
        runs.sort(key=lambda run: places[run[0]])
        return runs

    def _shard_file(self, number: int) -> OpenShard:
        if self._process != os.getpid():
            # a handle that came through a fork shares its file offset and caches with the parent: never use it
            self._open, self._process = OrderedDict(), os.getpid()
        shard = self._open.get(number)
        if shard is None:
            while len(self._open) >= self._max_open_files:
                self._open.popitem(last=False)[1].close()
            shard = OpenShard(self.folder, self.manifest, number, self.fields)
            self._open[number] = shard
        else:
            self._open.move_to_end(number)
        return shard

    @cached_property
    def sample_ids(self) -> NDArray[np.str_]:
        """(len,) id of every sample of this selection."""
        return np.char.decode(self._sample_id, "utf-8")

    @cached_property
    def groups(self) -> NDArray[np.str_]:
        """(len,) group of every sample of this selection."""
        return np.char.decode(self._group_name, "utf-8")[self._group]

    def close(self) -> None:
        """Close this process's files; the next read opens what it needs again."""
        for shard in self._open.values():
            shard.close()
        self._open = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_open"] = OrderedDict()
        for name in ("sample_ids", "groups"):
            state.pop(name, None)
        return state
