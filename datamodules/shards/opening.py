"""Opening HDF5 files that somebody else wrote: every check that stands between a foreign file and a wrong number.

HDF5 follows external links, raw storage in any readable file and virtual datasets silently, and returns fill values
for chunks that were never written. Nothing here does: what is not one plain, complete, checksummed dataset per name is
refused with the file named. The cost is well under a millisecond per file; contents are never hashed here.
"""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from datamodules.shards.attributes import read_attribute
from datamodules.shards.schema import FORMAT_NAME, Manifest, ShardError

LZF_LIMIT = 100
"""Upper bound of what lzf can compress: 3 bytes stand for at most 264. More is a file that claims what it lacks."""
_FLETCHER32 = int(h5py.h5z.FILTER_FLETCHER32)
_LZF = int(h5py.h5z.FILTER_LZF)
CHECKSUM_BYTES = 4


def open_file(path: Path, *, nbytes: int) -> h5py.File:
    """Open one HDF5 file of a data set for reading, without chunk cache or lock (the files never change).

    Args:
        path: The file; a symbolic link is refused.
        nbytes: Its size according to the manifest.

    Raises:
        ShardError: Missing, a link, of another size, or not HDF5; the message names the file.
    """
    try:
        status = os.lstat(path)
    except OSError as error:
        raise ShardError(f"{path} cannot be opened: {error.strerror}; restore it or make the data set again") from error
    if not stat.S_ISREG(status.st_mode):
        raise ShardError(f"{path} is not a regular file: links are refused, copy the file itself into the folder")
    if status.st_size != nbytes:
        state = "truncated" if status.st_size < nbytes else "not the file that was written"
        raise ShardError(f"{path} is {state}: it has {status.st_size} bytes, the manifest says {nbytes}")
    try:
        return h5py.File(path, "r", rdcc_nbytes=0, locking=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ShardError(f"{path} is damaged or not an HDF5 file ({error})") from error


def check_root(file: h5py.File, path: Path, manifest: Manifest, *, shard: int | None = None) -> None:
    """Check that an open file belongs to this data set and, for a shard, that it is the one its name says.

    Raises:
        ShardError: An attribute of the file differs from the manifest.
    """
    expected: dict[str, Any] = {
        "format": FORMAT_NAME,
        "schema_version": manifest.schema_version,
        "stem": manifest.stem,
        "dataset": manifest.dataset,
        "identity": manifest.identity,
    }
    if shard is not None:
        expected["shard"] = shard
        expected["samples"] = manifest.shards[shard]["samples"]
    for name, value in expected.items():
        found = read_attribute(file, path, name)
        if found != value:
            raise ShardError(
                f"{path} does not belong here: its attribute {name} is {found!r}, the manifest says {value!r}"
            )


def checked_dataset(
    file: h5py.File,
    path: Path,
    name: str,
    *,
    shape: tuple[int, ...],
    dtype: str | None,
    chunks: tuple[int, ...] | None = None,
) -> h5py.Dataset:
    """Return a dataset after checking that reading it can only give what was written.

    Args:
        file: The open file.
        path: Its path, for messages.
        name: The dataset, `/`-separated below the root.
        shape: Required shape.
        dtype: Required NumPy dtype; None stands for fixed-length text.
        chunks: Required chunk shape; None accepts any chunking.

    Raises:
        ShardError: A link, external or virtual storage, another shape, dtype, chunking or filter, missing chunks, or
            chunks without checksum.
    """
    where = f"{path}: dataset {name!r}"
    try:
        _check_links(file, where, name)
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise ShardError(f"{where} is a group, not a dataset")
        if dataset.is_virtual:
            raise ShardError(f"{where} is virtual: its numbers lie in another file, which is refused")
        if dataset.external:
            raise ShardError(f"{where} has external storage: its numbers lie in another file, which is refused")
        _check_type(dataset, where, shape, dtype)
        _check_storage(dataset, where, chunks)
    except ShardError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ShardError(f"{where} is damaged ({error})") from error
    return dataset


def _check_links(file: h5py.File, where: str, name: str) -> None:
    """Walk the path link by link without following any: `file[name]` would."""
    prefix = ""
    for part in name.split("/"):
        prefix = f"{prefix}/{part}" if prefix else part
        if not file.id.links.exists(prefix.encode()):
            raise ShardError(f"{where} is missing")
        kind = file.id.links.get_info(prefix.encode()).type
        if kind != h5py.h5l.TYPE_HARD:
            label = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "an external link"}.get(kind, "a link")
            raise ShardError(f"{where} is {label}, which is refused")


def _check_type(dataset: h5py.Dataset, where: str, shape: tuple[int, ...], dtype: str | None) -> None:
    if dataset.shape != shape:
        raise ShardError(f"{where} has shape {dataset.shape}, the manifest says {shape}")
    if dtype is None:
        text = h5py.check_string_dtype(dataset.dtype)
        if text is None or text.length is None:
            raise ShardError(f"{where} has dtype {dataset.dtype}, fixed-length text is needed")
    elif dataset.dtype != np.dtype(dtype).newbyteorder("<"):
        raise ShardError(f"{where} has dtype {dataset.dtype.str}, the manifest says {dtype} (little-endian)")


def is_compressed(dataset: h5py.Dataset) -> bool:
    """Whether a dataset that was checked has another filter beside its checksum."""
    return len(_filters(dataset)) > 1


def _filters(dataset: h5py.Dataset) -> list[int]:
    properties = dataset.id.get_create_plist()
    return [int(properties.get_filter(number)[0]) for number in range(properties.get_nfilters())]


def _check_storage(dataset: h5py.Dataset, where: str, chunks: tuple[int, ...] | None) -> None:
    """Check chunking, filters, and that the file really holds as many bytes as the dataset claims."""
    if dataset.chunks is None or (chunks is not None and dataset.chunks != chunks):
        raise ShardError(f"{where} has chunks {dataset.chunks}, format v1 needs {chunks or 'chunks'}")
    filters = _filters(dataset)
    if _FLETCHER32 not in filters:
        raise ShardError(f"{where} has no fletcher32 checksums")
    foreign = set(filters) - {_FLETCHER32, _LZF}
    if foreign:
        raise ShardError(f"{where} has the filter {foreign.pop()}; format v1 knows fletcher32 and lzf")
    expected = math.prod(-(-extent // chunk) for extent, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    if dataset.id.get_num_chunks() != expected:
        raise ShardError(f"{where} holds {dataset.id.get_num_chunks()} of {expected} chunks: it was not fully written")
    claimed = math.prod(dataset.chunks) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    full = expected * (claimed + CHECKSUM_BYTES)
    if stored > full or (stored != full if _LZF not in filters else stored * LZF_LIMIT < full):
        raise ShardError(f"{where} claims {full} bytes and stores {stored}: it is damaged or a decompression bomb")
    _check_masks(dataset, where, filters)


def _check_masks(dataset: h5py.Dataset, where: str, filters: list[int]) -> None:
    """Check that no chunk left its checksum out; lzf leaves itself out where it gains nothing."""
    checksum = sum(1 << place for place, kind in enumerate(filters) if kind == _FLETCHER32)

    def unchecked(chunk: Any) -> bool | None:
        return True if chunk.filter_mask & checksum else None  # anything but None ends the iteration

    if dataset.id.chunk_iter(unchecked):
        raise ShardError(f"{where} has a chunk that is stored without its checksum")
