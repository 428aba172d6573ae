"""Images per second of `mechanolab data simulate circular`, written to shards, on all cores."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

IMAGES = 3000


def run() -> list[dict[str, object]]:
    from mechanolab import data

    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        data.simulate("circular", out=Path(scratch) / "circular" / "twin", count=IMAGES, seed=0, workers=None)
        seconds = time.perf_counter() - began
    return [{"images": IMAGES, "cores": os.cpu_count(), "images/s": IMAGES / seconds, "goal": 300}]
