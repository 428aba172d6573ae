"""The stored split schemes of an open data set, as one code per sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datamodules.shards.index import read_index
from datamodules.shards.reader import ShardDataset
from datamodules.shards.schema import Manifest


def stored_codes(dataset: ShardDataset, schemes: Sequence[str]) -> dict[str, NDArray[np.int8]]:
    """Read split schemes of a data set, all from one look into its index; nothing is downloaded.

    Args:
        dataset: Any selection of it.
        schemes: Names of stored schemes.

    Returns:
        Scheme name to (samples,) 0 train, 1 val, 2 test, -1 unused, of all samples of the data set in stored order.

    Raises:
        ShardError: The index is damaged, foreign, contradicts the manifest, or lacks a scheme.
    """
    # read anew: split schemes may have been added since the data set was opened, which replaces the index
    manifest = Manifest.read(dataset.local_folder)
    return read_index(dataset.local_folder, manifest, schemes=schemes).splits
