"""Lists whose length varies from sample to sample, for example the corners of a polygon.

A field of a data set has one shape, so a list is padded with zeros to `n` entries along its first axis, whose letter
is `n`, and a second field, a whole number called `<name>_length` of unit `1`, holds how many of them count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodules.batches import Sample
from datamodules.shards.schema import Field

LIST_AXIS = "n"
LENGTH_SUFFIX = "_length"


def padded(values: ArrayLike, n: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Make the two fields of a list.

    Args:
        values: (length, ...) entries of any unit; the length may be 0.
        n: Entries that the field has in every sample of the data set.

    Returns:
        (n, ...) the entries followed by zeros, and the length as a 0-d int32.

    Raises:
        ValueError: `values` has no first axis or more than `n` entries.

    >>> padded([[1, 2], [3, 4]], 3)[0].tolist()
    [[1, 2], [3, 4], [0, 0]]
    """
    entries = np.asarray(values)
    if entries.ndim == 0:
        raise ValueError("values must be a list, got a single number")
    if len(entries) > n:
        raise ValueError(f"values has {len(entries)} entries, n leaves room for {n}; make n larger")
    filled = np.zeros((n, *entries.shape[1:]), entries.dtype)
    filled[: len(entries)] = entries
    return filled, np.array(len(entries), np.int32)


def trimmed(sample: Sample, name: str) -> NDArray[Any]:
    """Return the entries of a list that count, a view of shape (length, ...).

    Args:
        sample: One sample with the fields `name` and `<name>_length`.
        name: The list.

    Raises:
        ValueError: The sample has no such list, or its length does not fit.
    """
    length_name = name + LENGTH_SUFFIX
    for needed in (name, length_name):
        if needed not in sample.fields:
            raise ValueError(f"sample {sample.sample_id!r} has no field {needed!r}; it has {', '.join(sample.fields)}")
    values, length = sample.fields[name], np.asarray(sample.fields[length_name])
    if values.ndim == 0 or length.ndim or length.dtype.kind not in "iu" or not 0 <= length <= len(values):
        raise ValueError(f"sample {sample.sample_id!r}: {length_name} is {length}, {name} has shape {values.shape}")
    return values[: int(length)]


def list_fields(fields: Mapping[str, Field]) -> dict[str, str]:
    """Return list to length: the fields along `n` that have a field `<name>_length` beside them."""
    return {
        name: name + LENGTH_SUFFIX
        for name, field in fields.items()
        if field.axes.startswith(LIST_AXIS) and name + LENGTH_SUFFIX in fields
    }


def declaration_faults(fields: Mapping[str, Field]) -> list[str]:
    """Name every length of a list that is not a whole number per sample of unit `1`."""
    return [
        f"field {length!r} must be a scalar whole number of unit '1', the length of {name!r}; "
        f"it is {fields[length].dtype} {fields[length].shape} of unit {fields[length].unit!r}"
        for name, length in list_fields(fields).items()
        if fields[length].shape or "int" not in fields[length].dtype or fields[length].unit != "1"
    ]


def length_fault(name: str, values: NDArray[Any], lengths: NDArray[Any], *, first_row: int | None = None) -> str | None:
    """Say what is wrong with a list, None when nothing is.

    Args:
        name: Of the list.
        values: (rows, n, ...) the padded entries.
        lengths: (rows,) whole numbers.
        first_row: Number of the first row, so that the message names the row; None for a single sample.
    """
    n = values.shape[1]
    beyond = np.arange(n) >= lengths[:, None]
    filled = (values.reshape(*values.shape[:2], -1) != 0).any(axis=2)
    illegal = (lengths < 0) | (lengths > n)
    bad = illegal | (filled & beyond).any(axis=1)
    if not bad.any():
        return None
    row = int(np.argmax(bad))
    where = "" if first_row is None else f" of row {first_row + row}"
    if illegal[row]:
        return f"field {name + LENGTH_SUFFIX!r}{where} is {lengths[row]}; {name!r} has room for 0 to {n} entries"
    return f"field {name!r}{where} is not zero beyond its length {lengths[row]}"
