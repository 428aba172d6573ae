"""What a network that normalises by the moments of its batch asks of training, checked when a run is composed.

Both functions answer `<key> <reason and mend>`, or None where nothing stands in the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def trainer_fault(options: Mapping[str, Any]) -> str | None:
    """Why these options of Lightning's Trainer cannot be."""
    if not options.get("sync_batchnorm"):
        return None
    apart = "because the dense blocks take their moments themselves, each device its own"
    return f"sync_batchnorm must be false, {apart}: raise data.batch_size instead"


def data_fault(module: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    """Why crops of these data cannot be halved so often (`blocks`), or would leave one value to normalise."""
    step, side = 2 ** module["blocks"], data["crop_px"]
    if side % step:
        return f"crop_px must be a multiple of {step} px, or training crops are filled up with black, got {side}"
    alone = data["batch_size"] == 1 or data["steps_per_epoch"] is None  # an epoch's last batch may be one crop
    if not 0 < side <= step or not alone:
        return None
    return f"crop_px must be above {step} px where a crop comes alone, or one value is left to normalise, got {side}"
