"""Tables of tracked beads: where each bead was in the undeformed gel and how far it moved.

Text (.csv, .txt): a header with the columns x_um, y_um, z_um and u_um, v_um, w_um in any order, further columns are
ignored; separated by comma, semicolon, tab or blanks. Arrays (.npz, .mat): `position_um` and `displacement_um`, (n, 3)
each, components (x, y, z). Lengths are in um; x runs along the rows of the volume, y down the rows, z along the slices,
and the centre of the first voxel is at (0, 0, 0).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.converters.stored_arrays import read_arrays

TEXT_SUFFIXES = (".csv", ".txt")
SUFFIXES = (*TEXT_SUFFIXES, ".npz", ".mat")
COLUMNS = ("x_um", "y_um", "z_um", "u_um", "v_um", "w_um")
ARRAYS = ("position_um", "displacement_um")
FEWEST_INSIDE = 0.5
"""Share of the beads that must lie in the volume: with fewer, unit or origin are taken to be wrong."""


class Beads(NamedTuple):
    """Tracked beads."""

    position_um: NDArray[np.float64]
    """(n, 3), components (x, y, z), in the undeformed volume."""
    displacement_um: NDArray[np.float64]
    """(n, 3), components (x, y, z)."""


def read_beads(path: Path) -> Beads:
    """Read a table.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, lacks a column or an array, is in other units, or holds what is no finite number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no table of beads {path}")
    if path.suffix.lower() in TEXT_SUFFIXES:
        rows = _read_text(path)
        return Beads(rows[:, :3], rows[:, 3:])
    arrays = read_arrays(path, ARRAYS)
    for name in ARRAYS:
        if name not in arrays:
            raise ValueError(f"{path} lacks {name}: save position_um and displacement_um, (n, 3) each, in um")
        if arrays[name].ndim != 2 or arrays[name].shape[1] != 3 or arrays[name].shape != arrays[ARRAYS[0]].shape:
            raise ValueError(f"{name} in {path} has the shape {arrays[name].shape}, (n, 3) for n beads was expected")
    return Beads(arrays[ARRAYS[0]], arrays[ARRAYS[1]])


def displacement_at_voxels(
    beads: Beads, shape_zyx: tuple[int, int, int], voxel_size_um: tuple[float, float, float], *, where: str
) -> NDArray[np.float32]:
    """The beads' displacement in the voxels they lie in, (3, z, y, x) in um, NaN everywhere else.

    Of several beads in a voxel the mean is kept; beads outside the volume are left out.

    Raises:
        ValueError: Less than half of the beads lie in the volume; `where` names the table.
    """
    voxel = np.rint(beads.position_um / np.array(voxel_size_um[::-1])).astype(np.int64)
    inside = ((voxel >= 0) & (voxel < np.array(shape_zyx[::-1]))).all(axis=1)
    if inside.sum() < FEWEST_INSIDE * len(inside) or not inside.any():
        raise ValueError(
            f"{where}: {inside.sum()} of {len(inside)} beads lie in the volume of {list(shape_zyx)} voxels (z, y, x) "
            f"of {list(voxel_size_um)} um: give positions in um from the centre of the volume's first voxel"
        )
    x, y, z = voxel[inside].T
    count = np.zeros(shape_zyx, np.float32)
    np.add.at(count, (z, y, x), 1)
    field = np.zeros((3, *shape_zyx), np.float32)
    for component, values in zip(field, beads.displacement_um[inside].T, strict=True):
        np.add.at(component, (z, y, x), values.astype(np.float32))
    field /= np.where(count > 0, count, np.nan)
    return field


def _read_text(path: Path) -> NDArray[np.float64]:
    """(n, 6) in the order of COLUMNS."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    header = next((number for number, line in enumerate(lines) if line.strip()), None)
    names = [cell.strip('"# ').lower() for cell in _cells(lines[header])] if header is not None else []
    for column in COLUMNS:
        if column in names:
            continue
        other = next((name for name in names if re.match(rf"{column[0]}([_ (\[]|$)", name)), None)
        if other is not None:
            raise ValueError(f"{path}: column {other} must be {column}: give it in micrometres and name it so")
        raise ValueError(f"{path} lacks the column {column}: a table of beads has {', '.join(COLUMNS)}")
    places = [names.index(column) for column in COLUMNS]
    rows = []
    for number, line in enumerate(lines[header + 1 :], start=header + 2):  # type: ignore[operator]
        if line.strip():
            cells = _cells(line)
            rows.append([_value(path, number, cells, place, names) for place in places])
    if not rows:
        raise ValueError(f"{path} holds no bead below its header: export it again")
    return np.array(rows)


def _cells(line: str) -> list[str]:
    for separator in (";", ",", "\t"):
        if separator in line:
            return [cell.strip() for cell in line.strip().split(separator)]
    return line.split()


def _value(path: Path, line: int, cells: list[str], place: int, names: list[str]) -> float:
    text = cells[place] if place < len(cells) else ""
    try:
        value = float(text or "nan")
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"{path}, line {line}: {names[place]} is {text!r}, no finite number: leave that bead out")
    return value
