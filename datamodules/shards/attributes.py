"""Attributes of shard files: whole numbers and text of fixed length.

Text of variable length is neither written nor read: HDF5 keeps it in a heap that has no checksum, and one flipped bit
there can send the library into an endless loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from datamodules.shards.schema import ShardError

MAX_TEXT_BYTES = 4096


def write_attributes(holder: h5py.File | h5py.Dataset, values: Mapping[str, str | int]) -> None:
    """Write texts as fixed-length UTF-8 and whole numbers as int64.

    Raises:
        ValueError: A text has more than 4096 bytes.
    """
    for name, value in values.items():
        if isinstance(value, str):
            text = value.encode()
            if len(text) > MAX_TEXT_BYTES:
                raise ValueError(f"{name} has {len(text)} bytes; a text in a shard may have {MAX_TEXT_BYTES}")
            dtype = h5py.string_dtype("utf-8", max(1, len(text)))
            holder.attrs.create(name, np.array(text, dtype=dtype), dtype=dtype)
        else:
            holder.attrs.create(name, value, dtype="int64")


def read_attribute(holder: h5py.File | h5py.Dataset, path: Path, name: str) -> str | int | None:
    """Return a text or whole number, None when there is none or it is of any other kind.

    Raises:
        ShardError: The attribute of the file at `path` is damaged.
    """
    try:
        if not h5py.h5a.exists(holder.id, name.encode()):
            return None
        attribute = h5py.h5a.open(holder.id, name.encode())
        kind = attribute.get_type()
        if attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR or kind.get_size() > MAX_TEXT_BYTES:
            return None
        if isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str():
            value = holder.attrs[name]
            return value.decode() if isinstance(value, bytes) else str(value)
        return int(holder.attrs[name]) if isinstance(kind, h5py.h5t.TypeIntegerID) else None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ShardError(f"{path} is damaged: attribute {name} cannot be read ({error})") from error
