"""One volume (z, y, x) from a TIFF stack, a folder of z slices or a .npy file, as it was stored.

A TIFF file may hold the slices as pages, or an ImageJ hyperstack with channels and one time point. A folder holds one
file per slice, ordered by the last number in their names. Where there are several channels, one has to be chosen. What
ImageJ says of the voxel's size is read along. Nothing here knows what the volumes are for.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

TIFF_SUFFIXES = (".tif", ".tiff")
SUFFIXES = (*TIFF_SUFFIXES, ".npy")
SMALLEST_SIZE = 8
DTYPES = ("uint8", "uint16", "float32")
"""As stored; others become the smallest of these that holds their values."""
UM_PER_UNIT = {"micron": 1.0, "microns": 1.0, "um": 1.0, "µm": 1.0, "μm": 1.0, "\\u00b5m": 1.0, "nm": 1e-3, "mm": 1e3}
_PLANES = "ZIQ"
"""Letters by which tifffile calls pages in a row."""


class Volume(NamedTuple):
    """A volume as it was stored."""

    voxels: NDArray[Any]
    """(z, y, x), uint8, uint16 or float32."""
    voxel_size_um: tuple[float, float, float] | None
    """(z, y, x) where the file tells it."""


def slice_files(folder: Path) -> list[Path]:
    """The z slices in a folder in the order of the last number in their names; ValueError where it does not order."""
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in TIFF_SUFFIXES or path.name.startswith("."):
            continue
        numbers = re.findall(r"\d+", path.stem)
        if not numbers:
            raise ValueError(f"{path} has no number in its name, which would place it among the slices: rename it")
        number = int(numbers[-1])
        if number in numbered:
            raise ValueError(f"{numbered[number]} and {path} are both slice {number}: keep one of them")
        numbered[number] = path
    order = sorted(numbered)
    if not order:
        raise FileNotFoundError(f"{folder} holds no slice (.tif)")
    if order != list(range(order[0], order[0] + len(order))):
        missing = next(number for number in range(order[0], order[-1]) if number not in numbered)
        raise ValueError(f"{folder} lacks slice {missing} between {order[0]} and {order[-1]}: add it")
    return [numbered[number] for number in order]


def read_volume(path: Path, *, channel: int | None = None) -> Volume:
    """Read a stack, a folder of slices or a .npy array.

    Args:
        path: File or folder.
        channel: Which channel, counted from 0; needed where there are several.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: It is damaged, has other axes, lacks the channel, is flat, too small or not finite; it is named.
    """
    if path.is_dir():
        slices = [_read_tiff(name, channel) for name in slice_files(path)]
        first = slices[0].voxels.shape
        for name, found in zip(slice_files(path), slices, strict=True):
            if found.voxels.shape != first or len(found.voxels) != 1:
                raise ValueError(f"{name} holds {_size(found.voxels)} voxels, one slice like the first was expected")
        found = Volume(np.concatenate([found.voxels for found in slices]), None)
    elif not path.is_file():
        raise FileNotFoundError(f"there is no volume {path}")
    elif path.suffix.lower() == ".npy":
        try:
            with path.open("rb") as file:
                found = Volume(np.load(file, allow_pickle=False), None)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path} cannot be read, it is damaged or no .npy file: save it again") from error
    else:
        found = _read_tiff(path, channel)
    return found._replace(voxels=checked_volume(str(path), found.voxels))


def checked_volume(what: str, voxels: NDArray[Any]) -> NDArray[Any]:
    """Return a volume as uint8, uint16 or float32; ValueError, naming `what`, where it is none."""
    if voxels.ndim != 3 or min(voxels.shape) < SMALLEST_SIZE:
        raise ValueError(
            f"{what} has the shape {voxels.shape}, a volume (z, y, x) of at least {SMALLEST_SIZE} voxels along each "
            "axis was expected: save one channel of one time point"
        )
    if voxels.dtype.kind not in "fiub":
        raise ValueError(f"{what} must hold real numbers, it is {voxels.dtype}: save grey levels")
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        bad = np.argwhere(~np.isfinite(voxels))
        where = tuple(int(i) for i in bad[0])
        raise ValueError(
            f"{what} has {len(bad)} voxels that are NaN or infinite, the first at {where} (z, y, x) counted from 0: "
            "replace them by the background"
        )
    if voxels.min() == voxels.max():
        raise ValueError(f"{what} is flat, all its voxels are {voxels.flat[0]}: it shows no beads, choose another")
    if voxels.dtype.name in DTYPES:
        return np.ascontiguousarray(voxels)
    whole = voxels.dtype.kind in "iub" and voxels.min() >= 0 and voxels.max() <= np.iinfo(np.uint16).max
    return voxels.astype(np.uint16 if whole else np.float32)


def _read_tiff(path: Path, channel: int | None) -> Volume:
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            voxels, axes = series.asarray(), series.axes.upper()
            voxel_size_um = _calibration(file)
    except Exception as error:  # tifffile raises many kinds, and codecs their own
        if not path.is_file():
            raise FileNotFoundError(f"there is no volume {path}") from error
        raise ValueError(
            f"{path} cannot be read, it is damaged or no TIFF ({error}): save it anew without compression"
        ) from error
    return Volume(_arranged(path, voxels, axes, channel), voxel_size_um)


def _arranged(path: Path, voxels: NDArray[Any], axes: str, channel: int | None) -> NDArray[Any]:
    """The chosen channel as (z, y, x); one page has one slice."""
    channels = next((letter for letter in "CS" if letter in axes), None)
    count = voxels.shape[axes.index(channels)] if channels else 1
    if channel is None and count > 1:
        raise ValueError(
            f"{path} has {count} channels: say in conditions.json which of them shows the beads, for example "
            '"channel": 0'
        )
    if channel is not None and not 0 <= channel < count:
        raise ValueError(f"{path} has {count} channels, counted from 0: there is no channel {channel}")
    if channels:
        voxels = voxels.take(channel or 0, axis=axes.index(channels))
        axes = axes.replace(channels, "")
    for letter in axes:
        if letter not in "YX" and voxels.shape[axes.index(letter)] == 1:
            voxels = voxels.take(0, axis=axes.index(letter))
            axes = axes.replace(letter, "")
    if axes == "YX":
        return voxels[None]
    # a stack that says its slices were time points is a common slip, and harmless where there is nothing else
    if len(axes) != 3 or axes[1:] != "YX" or axes[0] not in _PLANES + "T":
        raise ValueError(f"{path} has the axes {axes} with {voxels.shape} entries: save one channel as (z, y, x)")
    return voxels


def _calibration(file: tifffile.TiffFile) -> tuple[float, float, float] | None:
    """Voxel size (z, y, x) in um as ImageJ stores it; None where it is not said in full."""
    said = file.imagej_metadata or {}
    factor = UM_PER_UNIT.get(str(said.get("unit", "")).lower())
    tags = file.pages[0].tags  # type: ignore[union-attr]
    if factor is None or "spacing" not in said or "XResolution" not in tags or "YResolution" not in tags:
        return None
    per_unit = [tags[name].value for name in ("YResolution", "XResolution")]
    if not all(number and count for number, count in per_unit):
        return None
    y, x = (factor * count / number for number, count in per_unit)
    z = factor * abs(float(said["spacing"]))
    return (z, y, x) if z > 0 else None


def _size(voxels: NDArray[Any]) -> str:
    return " x ".join(map(str, voxels.shape))
