"""One shard file: checked through HDF5 when it is first opened, then copied from a map of the file.

A chunk whose only filter is fletcher32 is the sample's bytes followed by four bytes of checksum. So once HDF5 has said
where the chunks lie, they are copied from there to where they are wanted; the first time a process reads a chunk it
compares the checksum, later the bytes are trusted. A file that is changed or cut off meanwhile is noticed before the
map is touched. Fields of a few bytes a sample are read whole, and files with compressed fields go through HDF5, which
checks every read.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from datamodules.shards.fletcher32 import matches
from datamodules.shards.opening import CHECKSUM_BYTES, check_root, checked_dataset, is_compressed, open_file
from datamodules.shards.schema import Field, Manifest, ShardError

SMALL_BYTES = 16
"""Fields of at most so many bytes per sample are read whole: copied one by one they would cost more than their data."""
SMALL_COLUMN_BYTES = 2**20

_NOTHING: NDArray[np.uint8] = np.empty(0, np.uint8)
_Status = tuple[int, int, int, int]


class ShardFile:
    """The chosen fields of one shard.

    The constructor opens the file; `close` gives its descriptor back and keeps what is known about it, `reopen` takes
    it up again at a hundredth of the cost.

    Args:
        path: The file.
        manifest: Of the data set.
        number: Of the shard.
        fields: The fields to read.

    Raises:
        ShardError: The file is missing, damaged, foreign, or differs from the manifest.
    """

    def __init__(self, path: Path, manifest: Manifest, number: int, fields: dict[str, Field]) -> None:
        self.path = path
        entry = manifest.shards[number]
        self._descriptor: int | None = None
        self._content = _NOTHING
        self._hdf5: h5py.File | None = open_file(path, nbytes=entry["bytes"])
        try:
            self._status = _status(os.lstat(path))
            check_root(self._hdf5, path, manifest, shard=number)
            samples = entry["samples"]
            datasets = {
                name: checked_dataset(
                    self._hdf5,
                    path,
                    name,
                    shape=(samples, *field.shape),
                    dtype=field.dtype,
                    chunks=(1, *field.shape),
                )
                for name, field in fields.items()
            }
            self._compressed = any(is_compressed(dataset) for dataset in datasets.values())
            self._columns: dict[str, _Table | _Chunks | _Filtered] = {}
            for name, dataset in datasets.items():
                self._columns[name] = self._column(dataset, name, fields[name])
            if not self._compressed:
                self._hdf5.close()
                self._hdf5 = None
                if not self.reopen():
                    raise ShardError(f"{path} was changed while it was opened; a data set is written once")
        except BaseException:
            self.close()
            raise

    def _column(self, dataset: h5py.Dataset, name: str, field: Field) -> _Table | _Chunks | _Filtered:
        if field.nbytes <= SMALL_BYTES and len(dataset) * field.nbytes <= SMALL_COLUMN_BYTES:
            try:
                return _Table(np.asarray(dataset[()]))
            except (OSError, RuntimeError):
                pass  # one row is damaged: its neighbours stay readable row by row
        return (
            _Filtered(dataset, field) if self._compressed else _Chunks(dataset, field, self.path, name, self._status[2])
        )

    def reopen(self) -> bool:
        """Take the file up again after `close`; False when it has changed or must be checked anew.

        Raises:
            ShardError: The file is gone.
        """
        if self._compressed:
            return False
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            if _status(os.fstat(self._descriptor)) == self._status:
                self._content = np.frombuffer(mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ), np.uint8)
                return True
        except OSError as error:
            raise ShardError(f"{self.path} cannot be opened: {error.strerror}") from error
        self.close()
        return False

    def read(self, rows: Sequence[int], slots: Sequence[int], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Copy the rows `rows` of every field to the places `slots` of its array, (n, *shape) and contiguous.

        Raises:
            ShardError: A checksum does not match, or the file is damaged or was changed since it was opened.
        """
        name = ""
        try:
            # touching a map beyond the end of its file would end the process
            if self._descriptor is not None and _status(os.fstat(self._descriptor)) != self._status:
                raise _RowError(rows[0], "the file was changed or cut off while it was in use")
            for name, array in arrays.items():
                column = self._columns[name]
                if isinstance(column, _Chunks):
                    column.read(self._content, rows, slots, array)
                else:
                    column.read(rows, slots, array)
        except (OSError, RuntimeError) as error:
            row = error.row if isinstance(error, _RowError) else rows[0]
            field = f"field {name!r} of row {row}" if name else f"row {row}"
            raise ShardError(
                f"{self.path}: {field} cannot be read, its checksum does not match or the file is damaged ({error}); "
                "`mechanolab data verify` lists every fault"
            ) from error

    def close(self) -> None:
        """Give the descriptor back; what was verified stays known, as long as the file stays the same."""
        if self._hdf5 is not None:
            self._columns = {}
            self._hdf5.close()
            self._hdf5 = None
        self._content = _NOTHING  # the map ends with the last array that looks into it
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()


class _RowError(OSError):
    """What is wrong with one row."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


class _Table:
    """A field of a few bytes a sample, in memory; HDF5 has checked every chunk."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values

    def read(self, rows: Sequence[int], slots: Sequence[int], out: NDArray[Any]) -> None:
        out[slots] = self._values[rows]


class _Chunks:
    """A field whose chunks are copied from their place in the file."""

    def __init__(self, dataset: h5py.Dataset, field: Field, path: Path, name: str, nbytes: int) -> None:
        self._nbytes = field.nbytes
        self._place = np.zeros(len(dataset), np.int64)
        self._verified = bytearray(len(dataset))
        wanted = field.nbytes + CHECKSUM_BYTES

        unfit: list[int] = []

        def note(chunk: Any) -> None:
            row = chunk.chunk_offset[0]
            if chunk.filter_mask or chunk.size != wanted or chunk.byte_offset + wanted > nbytes:
                unfit.append(row)
            self._place[row] = chunk.byte_offset

        try:
            dataset.id.chunk_iter(note)
        except (OSError, RuntimeError) as error:
            raise ShardError(f"{path}: the chunks of field {name!r} cannot be found ({error})") from error
        if unfit:
            raise ShardError(
                f"{path}: field {name!r} of row {unfit[0]} is stored without its checksum or not in the file"
            )

    def read(self, content: NDArray[np.uint8], rows: Sequence[int], slots: Sequence[int], out: NDArray[Any]) -> None:
        places, nbytes, verified = out.reshape(len(out), -1).view(np.uint8), self._nbytes, self._verified
        for row, slot, start in zip(rows, slots, self._place[rows].tolist(), strict=True):
            places[slot] = content[start : start + nbytes]
            if not verified[row]:
                stored = content[start + nbytes : start + nbytes + CHECKSUM_BYTES].tobytes()
                # of the copy: what is handed out is what was compared
                if not matches(places[slot], int.from_bytes(stored, "little")):
                    raise _RowError(row, "fletcher32 differs")
                verified[row] = 1


class _Filtered:
    """A field that HDF5 decompresses and checks at every read."""

    def __init__(self, dataset: h5py.Dataset, field: Field) -> None:
        # spaces and types are cheap to use and dear to make
        self._dataset = dataset.id
        self._space = dataset.id.get_space()
        self._type = h5py.h5t.py_create(np.dtype(field.dtype).newbyteorder("<"))
        self._shape = (1, *field.shape)
        self._target = h5py.h5s.create_simple(self._shape)

    def read(self, rows: Sequence[int], slots: Sequence[int], out: NDArray[Any]) -> None:
        for row, slot in zip(rows, slots, strict=True):
            self._space.select_hyperslab((row, *(0,) * (len(self._shape) - 1)), self._shape)
            try:
                self._dataset.read(self._target, self._space, out[slot : slot + 1], self._type)
            except (OSError, RuntimeError) as error:
                raise _RowError(row, str(error)) from error


def _status(status: os.stat_result) -> _Status:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
