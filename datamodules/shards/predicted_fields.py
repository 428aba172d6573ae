"""Predictions that are arrays: streamed to disk sample by sample, then merged into one HDF5 file beside one TIFF each.

    predictions.h5               a dataset per field, first axis the sample; where samples differ in size a group per
                                 field with a dataset per sample, named as its TIFF file begins
    <sample id>_<field>.tif      the same numbers as a 32-bit float ImageJ hyperstack

`predictions.h5` also holds `sample_id` and `group` as UTF-8 of fixed length; the samples stand in the order in which
they are given to `write_fields`. The unit is part of a field's name. An array of a sample is read as (y, x), (c, y, x),
(c, z, y, x) or (t, c, z, y, x); what has fewer or more axes gets no TIFF file. ImageJ wants t, z, c, y, x, and so they
are stored there. Ids are percent-encoded in names (`urllib.parse.unquote` gives them back).

Several processes may stage samples into one folder; whatever the number of samples, memory holds one at a time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote

import h5py
import numpy as np
from numpy.typing import NDArray

from datamodules.shards.attributes import write_attributes
from datamodules.shards.tiff_files import IMAGEJ_AXES, write_tiff
from datamodules.shards.workspace import Workspace, clear_disk_errors

FIELDS_NAME = "predictions.h5"
AXES = {2: "yx", 3: "cyx", 4: "czyx", 5: "tczyx"}
"""What the axes of a sample's array are, by their number."""


class StagedField(NamedTuple):
    """Where one field of one sample lies until it is merged."""

    part: str
    offset: int
    shape: tuple[int, ...]
    dtype: str


class PredictionFolder:
    """Context manager: a temporary folder in which predictions grow, and which then takes the place of an earlier one.

    Args:
        folder: Where the predictions will stand. What stands there is left alone until `publish`.

    Raises:
        ShardError: On entry, when another process is predicting into `folder`, or the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._complete = self.folder.with_name(f".{self.folder.name}.complete")
        self._workspace = Workspace(self._complete)

    @property
    def path(self) -> Path:
        """The temporary folder."""
        return self._workspace.path

    def __enter__(self) -> PredictionFolder:
        # left by a process that was killed within `publish`
        shutil.rmtree(self._complete, ignore_errors=True)
        self._workspace.__enter__()
        return self

    def publish(self) -> None:
        """Put the finished folder in the place of the earlier one.

        Raises:
            ShardError: The disk refuses.
        """
        self._workspace.publish()
        earlier = self.folder.with_name(f".{self.folder.name}.replaced-{os.getpid()}")
        with clear_disk_errors(self.folder):
            with contextlib.suppress(FileNotFoundError):
                self.folder.rename(earlier)
            self._complete.rename(self.folder)
        shutil.rmtree(earlier, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._workspace.__exit__(kind, error, traceback)


class FieldStage:
    """Context manager: one process's arrays on their way to disk.

    Args:
        folder: The temporary folder that all processes share.
        rank: Of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self._part = folder / f".fields-{rank}.part"
        self._stream = self._part.open("xb")

    def __enter__(self) -> FieldStage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add(self, sample_id: str, name: str, values: NDArray[Any]) -> StagedField:
        """Write one field of one sample, and its TIFF file where it is an image.

        Args:
            sample_id: Of the sample.
            name: Of the field, with its unit: `traction_pa`.
            values: Numbers; truth values become 0 and 1.

        Raises:
            ShardError: The disk refuses.
            ValueError: The field holds no real numbers, or two samples would share a file; both are named.
        """
        if values.dtype.kind not in "buif":
            raise ValueError(f"prediction {name} must hold real numbers, got {values.dtype}")
        values = np.ascontiguousarray(values.astype(np.uint8) if values.dtype.kind == "b" else values)
        with clear_disk_errors(self.folder):
            staged = StagedField(self._part.name, self._stream.tell(), values.shape, values.dtype.str)
            self._stream.write(values.tobytes())
            if values.ndim in AXES and values.size:
                _write_tiff(self.folder / f"{file_stem(sample_id)}_{name}.tif", values, sample_id)
        return staged

    def close(self) -> None:
        """Nothing more is added; may be called twice."""
        with clear_disk_errors(self.folder):
            empty = not self._stream.closed and self._stream.tell() == 0
            self._stream.close()
            if empty:
                self._part.unlink(missing_ok=True)


def write_fields(
    folder: Path, sample_ids: Sequence[str], groups: Sequence[str], fields: Mapping[str, Sequence[StagedField]]
) -> None:
    """Merge what all processes have staged in `folder` into `predictions.h5`, and remove the staged parts.

    Args:
        folder: The temporary folder.
        sample_ids: Of all samples, in the order of the file.
        groups: One per sample.
        fields: Field -> where it lies, one entry per sample.

    Raises:
        ShardError: The disk refuses.
        ValueError: Two samples have one id, or a field is not there for every sample; it is named.
    """
    _check(sample_ids, groups, fields)
    with clear_disk_errors(folder), h5py.File(folder / FIELDS_NAME, "x") as file:
        _write_texts(file, "sample_id", sample_ids)
        _write_texts(file, "group", groups)
        for name, staged in fields.items():
            first = staged[0]
            if all((one.shape, one.dtype) == (first.shape, first.dtype) for one in staged):
                # one chunk per sample, as in a shard: a reader of one sample decodes nothing else
                chunks = (1, *first.shape) if all(first.shape) else None
                dataset = file.create_dataset(
                    name, (len(staged), *first.shape), first.dtype, chunks=chunks, fletcher32=chunks is not None
                )
                for row, values in enumerate(_values(folder, staged)):
                    dataset[row] = values
                _write_axes(dataset, len(first.shape))
            else:
                holder = file.create_group(name)
                for sample_id, values in zip(sample_ids, _values(folder, staged), strict=True):
                    _write_axes(holder.create_dataset(file_stem(sample_id), data=values), values.ndim)
    for part in folder.glob(".fields-*.part"):
        part.unlink()


def file_stem(sample_id: str) -> str:
    """A sample's id as it stands at the beginning of its files' names.

    >>> file_stem("plate 1/cell.mat"), file_stem("..")
    ('plate%201%2Fcell.mat', '%2E.')
    """
    stem = quote(sample_id, safe="")
    return f"%2E{stem[1:]}" if stem.startswith(".") else stem


def _check(sample_ids: Sequence[str], groups: Sequence[str], fields: Mapping[str, Sequence[StagedField]]) -> None:
    seen: set[str] = set()
    for sample_id in sample_ids:
        if sample_id in seen:
            raise ValueError(f"sample id {sample_id!r} occurs twice: rename one of the two")
        seen.add(sample_id)
    for name in {"sample_id", "group"} & set(fields):
        raise ValueError(f"prediction {name} has the name of what tells samples apart: rename it")
    for name, entries in {"group": groups, **fields}.items():
        if len(entries) != len(sample_ids):
            raise ValueError(f"{name} is there for {len(entries)} of {len(sample_ids)} samples")


def _values(folder: Path, staged: Sequence[StagedField]) -> Iterator[NDArray[Any]]:
    """The arrays in the order of `staged`, one in memory at a time."""
    with contextlib.ExitStack() as held:
        streams = {part: held.enter_context((folder / part).open("rb")) for part in {one.part for one in staged}}
        for one in staged:
            stream = streams[one.part]
            stream.seek(one.offset)
            dtype = np.dtype(one.dtype)
            content = stream.read(int(np.prod(one.shape, dtype=np.int64)) * dtype.itemsize)
            yield np.frombuffer(content, dtype).reshape(one.shape)


def _write_axes(dataset: h5py.Dataset, axes: int) -> None:
    """As in a shard, without the axis of the samples."""
    if axes in AXES:
        write_attributes(dataset, {"axes": AXES[axes]})


def _write_texts(file: h5py.File, name: str, texts: Sequence[str]) -> None:
    encoded = [text.encode() for text in texts]
    dtype = h5py.string_dtype("utf-8", max(1, *map(len, encoded)))
    file.create_dataset(name, data=np.array(encoded, dtype=dtype), dtype=dtype)


def _write_tiff(path: Path, values: NDArray[Any], sample_id: str) -> None:
    axes = AXES[values.ndim]
    order = sorted(range(values.ndim), key=lambda axis: IMAGEJ_AXES.index(axes[axis]))
    with np.errstate(over="ignore"):  # what is too large for 32 bits is infinite in the picture, and itself in the file
        single = values.transpose(order).astype(np.float32)
    try:
        write_tiff(path, single, "".join(axes[axis] for axis in order), imagej=True)
    except FileExistsError:
        raise ValueError(f"two predictions would share the file {path.name}: rename sample {sample_id!r}") from None
