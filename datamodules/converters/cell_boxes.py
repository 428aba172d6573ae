"""Boxes around the cell of a frame: found as Pielawski et al. 2020 do, or read from the table that their script writes.

arXiv 1910.07380, the authors' generate_bbox.py: above a threshold of 100 grey levels, closed and opened with a box of
5 x 5 px, the contour with the largest bounding box. The table has the columns filename, x, y, w, h.

Deviation: a frame without anything above the threshold crashes the original; here it is refused by name.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

THRESHOLD_GREY = 100.0
MORPHOLOGY_PX = 5
COLUMNS = ("filename", "x", "y", "w", "h")


class Box(NamedTuple):
    """A rectangle of pixels."""

    x: int
    """First column."""
    y: int
    """First row."""
    width: int
    height: int


def cell_box(image: NDArray[np.generic], *, threshold_grey: float = THRESHOLD_GREY) -> Box:
    """Box around the brightest object: above the threshold, closed, opened (5 x 5 px), the largest box of a contour.

    The largest is the one with the largest width times height, not the one with the most pixels.

    Raises:
        ValueError: the picture is not (y, x), or nothing is left above the threshold.
    """
    if image.ndim != 2:
        raise ValueError(f"image must have shape (y, x), got {image.shape}")
    kernel = np.ones((MORPHOLOGY_PX, MORPHOLOGY_PX), np.uint8)
    bright = (image > threshold_grey).astype(np.uint8)
    closed = cv2.morphologyEx(bright, cv2.MORPH_CLOSE, kernel)
    opened = cv2.morphologyEx(closed, cv2.MORPH_OPEN, kernel)
    contours, _ = cv2.findContours(opened, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        raise ValueError(
            f"image must hold a cell: no {MORPHOLOGY_PX} x {MORPHOLOGY_PX} px brighter than {threshold_grey:g}"
        )
    return max((Box(*cv2.boundingRect(contour)) for contour in contours), key=lambda box: box.width * box.height)


def read_boxes(path: Path) -> dict[str, Box]:
    """Return file name to box of a table with the columns filename, x, y, w, h (px).

    Raises:
        ValueError: a column is missing, a number is none, or a box is empty; the file and line are named.
    """
    boxes: dict[str, Box] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise ValueError(f"{path} lacks the column {missing[0]}: it needs {', '.join(COLUMNS)}")
            for row in rows:
                try:
                    numbers = [float(row[name]) for name in COLUMNS[1:]]
                except (TypeError, ValueError):
                    numbers = []
                whole = bool(numbers) and all(np.isfinite(number) and number == int(number) for number in numbers)
                if not row["filename"] or not whole or min(numbers[:2]) < 0 or min(numbers[2:]) < 1:
                    raise ValueError(
                        f"{path}, line {rows.line_num} must have a file name and x, y, w, h in whole pixels of a box "
                        "that is not empty: correct the line, or remove the file and the boxes are found anew"
                    )
                boxes[Path(row["filename"].replace("\\", "/")).name] = Box(*map(int, numbers))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table ({error}): save it as UTF-8 text") from error
    return boxes
