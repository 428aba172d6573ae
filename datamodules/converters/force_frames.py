"""One frame of a cell, or of the traction below it, in a grey picture file: TIFF, PNG, JPEG or BMP.

Grey levels are kept as they are stored: 8 and 16 bits become uint16, everything else float32. A force picture holds
magnitudes; its unit is what ImageJ wrote into the TIFF file (`vunit`, with a straight calibration line), else what the
caller declares.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from datamodules.batches import Sample
from datamodules.converters.grey_images import grey_plane, read_stored
from datamodules.converters.own_files import images_by_name

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")
UNITS_PA = {"Pa": 1.0, "kPa": 1000.0, "pN/um^2": 1.0, "nN/um^2": 1000.0}
"""Accepted units of traction, in Pa."""
ROUNDING = 1e-5
"""Of the largest magnitude: so far below zero is zero."""
_SPELLINGS = {"pn/um2": "pN/um^2", "nn/um2": "nN/um^2", "pa": "Pa", "kpa": "kPa", "n/m2": "Pa"}
_CALIBRATION = re.compile(r"^(cf|c0|c1|vunit)=(.*)$", re.MULTILINE)


def read_frame(path: Path) -> NDArray[np.uint16] | NDArray[np.float32]:
    """Return the picture (y, x) in `path` in its own grey levels.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, coloured, of several pages, or holds NaN or infinite values; it is named.
    """
    plane = grey_plane(read_stored(path), path)
    if plane.dtype in (np.uint8, np.uint16):
        return plane.astype(np.uint16)
    with np.errstate(over="ignore"):
        single = plane.astype(np.float32)
    if not np.isfinite(single).all():
        bad = int(np.count_nonzero(~np.isfinite(single)))
        raise ValueError(
            f"{path} has {bad} pixels that are NaN, infinite or beyond single precision: fill them in or leave the "
            "frame out"
        )
    return single


def read_force(path: Path, *, unit: str) -> NDArray[np.float32]:
    """Return the traction magnitude (y, x) in `path`, Pa.

    Args:
        path: Of the picture.
        unit: One of `UNITS_PA`, of its grey levels where the file does not say it itself.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As `read_frame`, or it holds negative values, or a unit or calibration that is not known.
    """
    force = read_frame(path).astype(np.float64)
    slope, start, written = _calibration(path)
    force = (start + slope * force) * UNITS_PA[written or unit]
    if force.min(initial=0.0) < -ROUNDING * force.max(initial=0.0):
        raise ValueError(
            f"{path} has the traction {force.min():g} Pa, but magnitudes are not negative: save the vectors' lengths"
        )
    return force.clip(min=0.0).astype(np.float32)


def read_own_frames(files: Sequence[Path], *, pixel_size_um: float | None) -> list[Sample]:
    """Read images to predict on.

    Args:
        files: Pictures of any size.
        pixel_size_um: Passed on, NaN where it is None.

    Returns:
        Samples in the order of the files with `image` (1, y, x) and `pixel_size_um`; id and group are the file name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file cannot be read or holds no grey levels but numbers up to 1, two have one name, or
            `pixel_size_um` is not positive.
    """
    named = images_by_name(files, pixel_size_um=pixel_size_um)
    scale = np.array(np.nan if pixel_size_um is None else pixel_size_um)
    return [
        Sample(name, name, {"image": grey_levels(read_frame(path), path)[np.newaxis], "pixel_size_um": scale})
        for name, path in named.items()
    ]


def grey_levels(image: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return the frame of `path` unless it was scaled: the logarithm of the network's image is 0 from 1 downwards.

    Raises:
        ValueError: None of its values is above 1, and it is not black.
    """
    if image.any() and image.max() <= 1:
        raise ValueError(
            f"{path} has no value above {image.max():.3g}, as if scaled to 1 or a mask: save it with its grey levels "
            "as they were recorded"
        )
    return image


def known_unit(text: str) -> str | None:
    """The unit of `UNITS_PA` that a spelling stands for, None where it stands for none.

    >>> known_unit("nN/µm²")
    'nN/um^2'
    """
    plain = text.strip().replace("\\u00B5", "u").replace("µ", "u").replace("μ", "u").replace("²", "2").replace("^", "")
    return _SPELLINGS.get(plain.lower())


def _calibration(path: Path) -> tuple[float, float, str | None]:
    """Slope, start and unit of the values that ImageJ calibrated; 1, 0 and None where it did not."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return 1.0, 0.0, None
    try:
        with tifffile.TiffFile(path) as file:
            description = file.pages[0].tags.valueof("ImageDescription") or ""  # type: ignore[union-attr]
    except (OSError, ValueError, IndexError, tifffile.TiffFileError):
        return 1.0, 0.0, None  # what OpenCV could read has no description that tifffile can
    said = dict(_CALIBRATION.findall(str(description))) if str(description).startswith("ImageJ=") else {}
    if "vunit" not in said:
        return 1.0, 0.0, None
    unit = known_unit(said["vunit"])
    try:
        slope, start = float(said.get("c1", 1.0)), float(said.get("c0", 0.0))
        straight = int(said.get("cf", 0)) == 0
    except ValueError:
        straight = False
    if unit is None or not straight:
        raise ValueError(
            f"{path} is calibrated by ImageJ in {said['vunit'].strip()!r}: calibrate it with a straight line in one of "
            f"{', '.join(UNITS_PA)}, or remove the calibration"
        )
    return slope, start, unit
