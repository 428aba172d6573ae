"""Displacements measured by particle image velocimetry, as the tables that such programs write.

A table has a row per vector and the columns x, y, u, v: where the vector stands and how far the substrate moved, both
in pixels of the camera, x along a row, y and v in the same direction (down the rows, as ImageJ and PIVlab count; where
both point up the field comes out mirrored, which is as good). The header may say `x_px` or `x [px]`, be commented out
with `#`, and follow lines of text; further columns are ignored. A table that begins with its numbers must be that of
ImageJ's PIV plugin: its first four columns are x, y, u, v. Columns are separated by comma, semicolon, tab or blanks.
The vectors form a regular grid of square cells; the rows may come in any order.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".csv", ".txt", ".dat")
COLUMNS = ("x", "y", "u", "v")
_NAME = re.compile(
    r'"?(?P<name>[a-z]+)(?:[_ ](?P<suffix>px|pix|pixels?|[mnuµμ]?m|microns?))?\s*(?:[\[(]\s*(?P<unit>[^\])]*)[\])])?"?'
)
_OFF_GRID = 0.2
"""Share of the spacing by which a vector may miss its place: programs round positions to whole pixels."""
_ROUNDING = 1e-3
"""Share of the largest gap below which two positions are one and the same."""
_UNEQUAL = 0.01
"""Share by which the spacings along x and y may differ, beside the rounding of positions to whole pixels."""
_USUAL = 0.3
"""Share by which a gap may differ from the median to be one step of the grid."""


class Grid(NamedTuple):
    """One measured field."""

    displacement_px: NDArray[np.float64]
    """(2, y, x), components (x, y), in pixels of the camera."""
    spacing_px: float
    """Distance between neighbouring vectors in pixels of the camera."""


def read_table(path: Path) -> Grid:
    """Return the field in a table, see the module's docstring.

    Raises ValueError, with the file and where possible the line, for a table without the four columns or in other
    units than pixels, a value that is no finite number, vectors that are missing or stand twice, and an uneven grid.
    """
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    start, columns = _header(path, lines)
    rows: list[list[float]] = []
    numbers: list[int] = []
    for line, text in enumerate(lines[start:], start=start + 1):
        if text.strip() and not text.lstrip().startswith("#"):
            rows.append(_vector(path, line, _cells(text), columns))
            numbers.append(line)
    if not rows:
        raise ValueError(f"{path} has no vector below its header: export the measurement again")
    x, y, u, v = np.array(rows).T
    spacing = _spacing(path, x, y)
    column, row = _place(path, "x", x, spacing, numbers), _place(path, "y", y, spacing, numbers)
    field = np.full((2, int(row.max()) + 1, int(column.max()) + 1), np.nan)
    for index, line in enumerate(numbers):
        if not np.isnan(field[0, row[index], column[index]]):
            raise ValueError(f"{path}, line {line}: the vector at x = {x[index]:g}, y = {y[index]:g} stands twice")
        field[:, row[index], column[index]] = u[index], v[index]
    missing = np.argwhere(np.isnan(field[0]))
    if len(missing):
        at_x, at_y = x.min() + spacing * missing[0][1], y.min() + spacing * missing[0][0]
        raise ValueError(
            f"{path} lacks {len(missing)} of {field[0].size} vectors of its grid, the first at x = {at_x:g}, "
            f"y = {at_y:g}: interpolate them where the measurement was made and export it again"
        )
    return Grid(field, spacing)


def _header(path: Path, lines: list[str]) -> tuple[int, list[int]]:
    """Index of the first line below the header, and where x, y, u and v stand."""
    for index, text in enumerate(lines):
        matches = [_NAME.fullmatch(cell.strip().lower()) for cell in _cells(text.lstrip("# \t"))]
        names = [match["name"] if match else "" for match in matches]
        if set(COLUMNS) <= set(names):
            for name in COLUMNS:
                if names.count(name) > 1:
                    raise ValueError(f"{path}, line {index + 1}: column {name} stands twice: keep one of them")
            places = [names.index(name) for name in COLUMNS]
            for place in places:
                match = matches[place]
                unit = (match["unit"] or match["suffix"]) if match else None
                if unit is not None and not re.match(r"(px|pix|pixel)", unit):
                    raise ValueError(
                        f"{path}, line {index + 1}: column {names[place]} is in {unit}, pixels are expected: export "
                        "the table without calibration"
                    )
            return index + 1, places
        if _is_vector(_cells(text)):
            if any(line.strip() for line in lines[:index]):
                raise ValueError(
                    f"{path}: no line above its numbers (line {index + 1}) names the columns x, y, u and v: write them "
                    "there, x and u along a row, y and v down the rows, in pixels of the camera"
                )
            return index, [0, 1, 2, 3]
    raise ValueError(f"{path} is no table of displacements: it needs a header with the columns x, y, u and v")


def _cells(text: str) -> list[str]:
    for separator in (";", ",", "\t"):
        if separator in text:
            return [cell.strip() for cell in text.strip().split(separator)]
    # `x [px]` is one cell
    return re.findall(r"[^\s\[(]+(?:\s*[\[(][^\])]*[\])])?", text)


def _is_vector(cells: list[str]) -> bool:
    try:
        return len([float(cell) for cell in cells[:4]]) == 4
    except ValueError:
        return False


def _vector(path: Path, line: int, cells: list[str], columns: list[int]) -> list[float]:
    values = []
    for name, place in zip(COLUMNS, columns, strict=True):
        text = cells[place] if place < len(cells) else ""
        try:
            value = float(text or "nan")
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            mend = "interpolate the vectors that could not be measured and export the table again"
            if re.fullmatch(r"[+-]?\d+,\d+", text):
                mend = "write numbers with a point, not with a comma"
            raise ValueError(f"{path}, line {line}: {name} is {text!r}, no finite number: {mend}")
        values.append(value)
    return values


def _spacing(path: Path, x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    steps = []
    for name, values in (("x", x), ("y", y)):
        gaps = np.diff(_levels(values))
        if not gaps.size:
            raise ValueError(f"{path} holds a single {name}: a field needs several rows and columns of vectors")
        # missing columns and vectors off the grid make other gaps, which are judged later
        usual = gaps[np.abs(gaps - np.median(gaps)) <= _USUAL * np.median(gaps)]
        whole = bool((values == np.round(values)).all())
        steps.append((len(usual), float(usual.mean()), 1.0 / len(usual) if whole else 0.0))
    (_, along_x, rounding_x), (_, along_y, rounding_y) = steps
    if abs(along_x - along_y) > _UNEQUAL * min(along_x, along_y) + rounding_x + rounding_y:
        raise ValueError(
            f"{path}: the vectors are {along_x:g} px apart along x and {along_y:g} px along y: measure on a grid of "
            "squares"
        )
    return max(steps)[1]


def _levels(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values, those that rounding alone tells apart taken as one."""
    found = np.unique(values)
    gaps = np.diff(found)
    if not gaps.size:
        return found
    starts = np.flatnonzero(np.concatenate(([True], gaps > _ROUNDING * gaps.max())))
    return np.add.reduceat(found, starts) / np.diff(np.append(starts, len(found)))


def _place(path: Path, name: str, values: NDArray[np.float64], spacing: float, lines: list[int]) -> NDArray[np.intp]:
    steps = (values - values.min()) / spacing
    place = np.round(steps)
    off = np.abs(steps - place) > _OFF_GRID
    if off.any():
        first = int(np.argmax(off))
        raise ValueError(
            f"{path}, line {lines[first]}: {name} = {values[first]:g} lies off the grid that starts at "
            f"{values.min():g} with {spacing:g} px between the vectors: export the vectors on their regular grid"
        )
    return place.astype(np.intp)
