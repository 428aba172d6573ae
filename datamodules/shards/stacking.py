"""From samples to one array per field: without a copy where the reader has filled one array already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.batches import Sample


def stack(samples: Sequence[Sample], name: str) -> NDArray[Any]:
    """Return the field `name` of all samples, (samples, *shape).

    The samples of one `ShardDataset.__getitems__` are slices of one array per field, and that array is returned; it
    shares its memory with them. Other samples are copied.

    Raises:
        ValueError: `samples` is empty, or shapes differ.
    """
    if not samples:
        raise ValueError("samples must hold at least one sample")
    arrays = [sample.fields[name] for sample in samples]
    whole = arrays[0].base
    if isinstance(whole, np.ndarray) and whole.shape == (len(arrays), *arrays[0].shape):
        start, step = whole.__array_interface__["data"][0], whole.strides[0]
        if whole.dtype == arrays[0].dtype and all(
            array.base is whole
            and array.strides == whole.strides[1:]
            and array.__array_interface__["data"][0] == start + slot * step
            for slot, array in enumerate(arrays)
        ):
            return whole
    return np.stack(arrays)
