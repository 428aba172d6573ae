"""The index, `index.h5` or after new splits `index-<n>.h5`: id, group, shard, row and splits of every sample.

They are arrays, not JSON, so that a million samples open in an instant. The text arrays are fixed-length UTF-8 (`S`
in NumPy); groups are numbers into a table of names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from datamodules.shards.attributes import write_attributes
from datamodules.shards.opening import check_root, checked_dataset, open_file
from datamodules.shards.schema import SPLIT_CODES, UNUSED_CODE, Manifest, ShardError

CHUNK_ENTRIES = 65536
LIBRARY_VERSIONS = ("v110", "v110")
"""Files are written for HDF5 >= 1.10, whose metadata carry checksums; older layouts would hide a flipped bit."""


class Index(NamedTuple):
    """The per-sample arrays of a data set, in the order of the samples."""

    sample_id: NDArray[np.bytes_]
    """(samples,) UTF-8."""
    group: NDArray[np.int32]
    """(samples,) number of the group in `group_name`."""
    group_name: NDArray[np.bytes_]
    """(groups,) UTF-8."""
    shard: NDArray[np.int32]
    """(samples,) number of the shard file."""
    row: NDArray[np.int32]
    """(samples,) row in that file."""
    splits: dict[str, NDArray[np.int8]]
    """Scheme name to (samples,): 0 train, 1 val, 2 test, -1 unused."""


def write_index(path: Path, index: Index, *, root: Mapping[str, Any]) -> None:
    """Write an index to a path where no file is yet.

    Args:
        path: Of the new file.
        index: The arrays; their lengths agree.
        root: Attributes of the file: format, schema_version, stem, dataset, identity.
    """
    with h5py.File(path, "x", libver=LIBRARY_VERSIONS, locking=False) as file:
        write_attributes(file, root)
        arrays: dict[str, NDArray[Any]] = {
            "sample_id": index.sample_id,
            "group": index.group,
            "group_name": index.group_name,
            "shard": index.shard,
            "row": index.row,
        }
        arrays.update({f"splits/{name}": codes for name, codes in index.splits.items()})
        for name, array in arrays.items():
            if array.dtype.kind == "S":
                array = array.astype(h5py.string_dtype("utf-8", array.dtype.itemsize))
            chunks = (min(len(array), CHUNK_ENTRIES),)
            file.create_dataset(name, data=array, chunks=chunks, fletcher32=True)


def read_index(folder: Path, manifest: Manifest, *, schemes: Sequence[str] = ()) -> Index:
    """Read the index that the manifest names and check that it fits the manifest.

    Args:
        folder: Of the data set.
        manifest: Of the data set.
        schemes: Names of the split schemes to read.

    Raises:
        ShardError: The file is damaged, foreign, or contradicts the manifest.
    """
    path = folder / manifest.index_name
    samples, groups = manifest.counts["samples"], manifest.counts["groups"]
    with open_file(path, nbytes=manifest.index["bytes"]) as file:
        check_root(file, path, manifest)

        def read(name: str, length: int, dtype: str | None) -> NDArray[Any]:
            dataset = checked_dataset(file, path, name, shape=(length,), dtype=dtype)
            try:
                return np.asarray(dataset[:])
            except (OSError, RuntimeError) as error:
                raise ShardError(f"{path}: dataset {name!r} is damaged ({error})") from error

        index = Index(
            sample_id=read("sample_id", samples, None),
            group=read("group", samples, "int32"),
            group_name=read("group_name", groups, None),
            shard=read("shard", samples, "int32"),
            row=read("row", samples, "int32"),
            splits={name: read(f"splits/{name}", samples, "int8") for name in schemes},
        )
    _check_ranges(path, manifest, index)
    return index


def _check_ranges(path: Path, manifest: Manifest, index: Index) -> None:
    if index.group.min() < 0 or index.group.max() >= manifest.counts["groups"]:
        raise ShardError(f"{path}: a sample names a group that does not exist")
    if index.shard.min() < 0 or index.shard.max() >= manifest.counts["shards"]:
        raise ShardError(f"{path}: a sample names a shard that does not exist")
    rows = np.array([shard["samples"] for shard in manifest.shards])
    if index.row.min() < 0 or np.any(index.row >= rows[index.shard]):
        raise ShardError(f"{path}: a sample names a row beyond the end of its shard")
    for name, codes in index.splits.items():
        if codes.min() < UNUSED_CODE or codes.max() > max(SPLIT_CODES.values()):
            raise ShardError(f"{path}: split scheme {name!r} has a code that is no split")
