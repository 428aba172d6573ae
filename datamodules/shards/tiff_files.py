"""TIFF files that ImageJ and any other program open, one array each (as written and read by tifffile).

Axes among t, z, c, y, x in the order that ImageJ wants make an ImageJ hyperstack; all others a plain TIFF file with
shape and axes in the image description.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

IMAGEJ_AXES = "tzcyx"
IMAGEJ_DTYPES = ("uint8", "uint16", "float32")


def write_tiff(path: Path, array: NDArray[Any], axes: str, *, imagej: bool) -> None:
    """Write one array as one new TIFF file; every axis is kept, also those of extent 1.

    Args:
        path: Of the new file.
        array: At least two axes; for ImageJ of a dtype in IMAGEJ_DTYPES.
        axes: A letter per axis; for ImageJ among IMAGEJ_AXES and in their order.
        imagej: Whether it becomes an ImageJ hyperstack.

    Raises:
        FileExistsError: There is something at `path`.
    """
    array = np.ascontiguousarray(array)
    if imagej:  # tifffile would take a last axis of extent 1 for the colours, so their axis is said to be another
        array, axes = array[..., np.newaxis], axes + "s"
    with path.open("xb") as stream:
        tifffile.imwrite(stream, array, imagej=imagej, photometric="minisblack", metadata={"axes": axes.upper()})
