"""Reading one grey picture exactly as it was stored, and refusing what cannot be told without a guess.

OpenCV reads TIFF with LZW and zlib compression, PNG and JPEG without further packages. A picture counts as 8-bit
grey when turning it into that loses nothing: three equal colour channels, an opaque alpha channel and a deep integer
picture whose values end at 255 are accepted, everything else is refused by name.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


def read_stored(path: Path) -> np.ndarray:
    """Return the picture in `path` as stored: (y, x) or (y, x, channel), any dtype, channels in OpenCV's order.

    Raises FileNotFoundError where there is no file, ValueError where it is no picture or holds several pages.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}")
    loud = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the error says it, once
    try:
        pages = cv2.imcount(str(path), cv2.IMREAD_UNCHANGED) if path.suffix.lower() in (".tif", ".tiff") else 1
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"{path} cannot be read as an image ({error.err})") from error
    finally:
        cv2.utils.logging.setLogLevel(loud)
    if image is None:
        raise ValueError(
            f"{path} cannot be read as an image: it is damaged or no TIFF, PNG or JPEG of whole numbers or of floats "
            "of 32 or 64 bits"
        )
    if pages > 1:
        raise ValueError(f"{path} holds {pages} pages, one was expected: save every page as its own file")
    return image


def grey_plane(image: np.ndarray, path: Path) -> np.ndarray:
    """Return the one grey plane (y, x) of a stored picture, dtype kept; ValueError where its colours differ."""
    if image.ndim == 2:
        return image
    colours = image[..., :3] if image.shape[2] == 4 else image
    full = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1.0
    opaque = image.shape[2] != 4 or bool((image[..., 3] == full).all())
    if not opaque or not (colours == colours[..., :1]).all():
        raise ValueError(f"{path} is a colour or transparent image, grey was expected: save its grey channel alone")
    return np.ascontiguousarray(colours[..., 0])


def read_grey(path: Path) -> np.ndarray:
    """Return the picture in `path` as (y, x) uint8 grey levels.

    Raises FileNotFoundError where there is no file and ValueError, with the file's name, where the picture is not
    8-bit grey and cannot be turned into it without loss.
    """
    plane = grey_plane(read_stored(path), path)
    if plane.dtype == np.uint8:
        return plane
    lossless = np.issubdtype(plane.dtype, np.integer) and plane.min() >= 0 and plane.max() <= 255
    if not lossless:
        raise ValueError(
            f"{path} is {plane.dtype} with values {plane.min()} to {plane.max()}, 8-bit grey was expected: "
            "choose how its grey levels map to 0..255 and save it as uint8"
        )
    return plane.astype(np.uint8)
