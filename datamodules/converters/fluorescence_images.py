"""Reading fluorescence pictures: one grey plane of a file that may hold channels, slices and pseudo-colours.

A plane is uint8 or uint16, as stored. Slices of a z-stack are projected to their maximum (as Vasudevan, Zheng et al.,
PLOS ONE 0271056, 2022, did with their confocal stacks), three colours to their value of HSV, which is their maximum:
microscopes save a grey channel in a pseudo-colour. A TIFF says which of its axes are channels and slices (OME, ImageJ);
pages of one that does not are what the caller says.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")
_UNNAMED = "IQ"
"""What tifffile calls an axis of pages that nothing names."""


def read_plane(
    path: Path, *, channel: int | None = None, pages: Literal["z", "channel"] = "z"
) -> NDArray[np.uint8 | np.uint16]:
    """Return one grey plane of a file, (y, x).

    Args:
        path: TIFF, PNG or JPEG.
        channel: number of the channel, from 0; None for a file that has only one.
        pages: what the pages of a TIFF are that does not say so, slices or channels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is neither 8 nor 16-bit, holds values that are not finite, several channels
            and none is chosen, no such channel, several times, or nothing but one grey level; it is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}")
    stored, axes = _read_tiff(path) if path.suffix.lower() in TIFF_SUFFIXES else _read_picture(path)
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise ValueError(f"{path} holds values that are not finite: save it again as 8 or 16-bit grey levels")
    if stored.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path} is {stored.dtype}, 8 or 16-bit grey levels were expected: save it as uint8 or uint16")
    channels = _channels(stored, axes, path, "Z" if pages == "z" else "C")  # (channel, z, y, x)
    if channel is None and len(channels) > 1:
        raise ValueError(f"{path} holds {len(channels)} channels: say which one is meant, or save it alone")
    if channel is not None and not 0 <= channel < len(channels):
        raise ValueError(f"{path} has no channel {channel}: it has {len(channels)}, counted from 0")
    plane = channels[channel or 0].max(axis=0)
    if plane.min() == plane.max():
        raise ValueError(f"{path} shows nothing: all its pixels are {plane.min()}")
    return np.ascontiguousarray(plane)


def tile_corners(shape_px: tuple[int, ...], side_px: int) -> list[tuple[int, int]]:
    """First row and column of the square tiles of a picture (y, x), row by row; no two overlap.

    What is left at the far edges belongs to none. `side_px` is at most the picture's.
    """
    starts = [range(0, length - side_px + 1, side_px) for length in shape_px]
    return [(top, left) for top in starts[0] for left in starts[1]]


class CoveringTile(NamedTuple):
    """One of overlapping tiles that cover a picture, in pixels of the picture."""

    top: int
    left: int
    rows: range
    """Those that this tile owns; every pixel of the picture has one owner."""
    columns: range


def covering_tiles(shape_px: tuple[int, ...], side_px: int, *, overlap_px: int) -> list[CoveringTile]:
    """Square tiles that cover a picture (y, x), row by row, evenly spread.

    Neighbours share at least `overlap_px` and own it up to its middle, so that what lies at a border is seen whole by
    its owner. `side_px` is at most the picture's.
    """
    spans = []
    for length in shape_px:
        room = length - side_px
        count = 1 + -(-room // max(side_px - overlap_px, 1))
        starts = [round(number * room / max(count - 1, 1)) for number in range(count)]
        middles = [(before + side_px + after) // 2 for before, after in itertools.pairwise(starts)]
        spans.append(
            [(start, range(*own)) for start, own in zip(starts, itertools.pairwise([0, *middles, length]), strict=True)]
        )
    return [CoveringTile(top, left, rows, columns) for top, rows in spans[0] for left, columns in spans[1]]


def _read_picture(path: Path) -> tuple[NDArray[np.generic], str]:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"{path} cannot be read as an image: it is damaged or no TIFF, PNG or JPEG")
    return image, "YX" if image.ndim == 2 else "YXS"


def _read_tiff(path: Path) -> tuple[NDArray[np.generic], str]:
    """The first series of a TIFF and the letters of its axes."""
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            axes, shape = series.axes, series.shape
            try:
                return series.asarray(), axes
            except ValueError:  # a compression that needs a package which is not there: OpenCV reads most
                pages = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)[1]
        return np.stack(pages).reshape(shape), axes
    except (ValueError, OSError, IndexError, cv2.error, tifffile.TiffFileError) as error:
        raise ValueError(f"{path} cannot be read as a TIFF: it is damaged or of an unknown kind ({error})") from error


def _channels(stored: NDArray[np.generic], axes: str, path: Path, unnamed: str) -> NDArray[np.generic]:
    """Any axes -> (channel, z, y, x)."""
    for letter in _UNNAMED:
        axes = axes.replace(letter, unnamed)
    colours = stored.shape[axes.index("S")] if "S" in axes else 0
    if colours == 2:
        axes = axes.replace("S", "C")
    elif colours:
        place = axes.index("S")
        # of four the last is opacity
        stored = np.take(stored, range(min(colours, 3)), axis=place).max(axis=place)
        axes = axes.replace("S", "")
    for letter, length in zip(axes, stored.shape, strict=True):
        if letter not in "CZYX" and length > 1:
            raise ValueError(f"{path} holds {length} pictures along its axis {letter}: save each as its own file")
    if len(set(axes)) != len(axes):
        raise ValueError(f"{path} holds its channels or slices along two axes ({axes}): save them along one")
    kept = "".join(letter for letter in axes if letter in "CZYX")
    stored = stored.reshape([length for letter, length in zip(axes, stored.shape, strict=True) if letter in "CZYX"])
    for letter in "ZC":
        if letter not in kept:
            stored, kept = stored[np.newaxis], letter + kept
    return stored.transpose([kept.index(letter) for letter in "CZYX"])
