"""The stored split schemes of an open data set, as one code per sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datamodules.shards.reader import ShardDataset
from datamodules.shards.schema import SPLIT_CODES, UNUSED_CODE


def stored_codes(dataset: ShardDataset, scheme: str) -> NDArray[np.int8]:
    """Read one split scheme of a data set.

    Args:
        dataset: Any selection of it.
        scheme: Name of a stored scheme.

    Returns:
        (samples,) 0 train, 1 val, 2 test, -1 unused, of all samples of the data set in stored order.

    Raises:
        ShardError: The index is damaged, foreign or contradicts the manifest.
    """
    codes = np.full(dataset.manifest.counts["samples"], UNUSED_CODE, dtype=np.int8)
    for split, code in SPLIT_CODES.items():
        if dataset.manifest.splits[scheme]["samples"][split]:
            codes[ShardDataset(dataset.folder, scheme=scheme, split=split).indices] = code
    return codes
