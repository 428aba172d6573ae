"""The files of a user to predict on, as they were named: what every kind of them is asked for before any is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path


def check_request(files: Sequence[Path], *, what: str, pixel_size_um: float | None) -> None:
    """Raise ValueError where there is no file, or a pixel size that is not positive; `what` is what a file shows."""
    if pixel_size_um is not None and not (math.isfinite(pixel_size_um) and pixel_size_um > 0):
        raise ValueError(f"pixel_size_um must be positive, got {pixel_size_um}")
    if not files:
        raise ValueError(f"files must name at least one {what}, got none")


def images_by_name(files: Sequence[Path], *, pixel_size_um: float | None) -> dict[str, Path]:
    """The files by the name under which their predictions are listed, in their order.

    Raises:
        ValueError: There is none, two have one name, or `pixel_size_um` is given and not positive.
    """
    check_request(files, what="image", pixel_size_um=pixel_size_um)
    named: dict[str, Path] = {}
    for path in map(Path, files):
        if path.name in named:
            raise ValueError(f"{named[path.name]} and {path} would be listed under one name: rename one of them")
        named[path.name] = path
    return named
