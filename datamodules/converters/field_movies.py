"""Movies of cells with traction vectors on a coarser grid, one .npz file a cell, as tools for bead images save them.

A file holds the frames `image` (t, y, x) and the components of the traction (t, rows, columns) in Pa, under names that
begin with `tx` and `ty` (or as conditions.json says); the grid is that of particle image velocimetry with windows of
`window_px` that overlap by `overlap_px`, the first vector in the middle of the first window. `pixelsize1_um` or
conditions.json gives the side of an image's pixel. The components are interpolated linearly to the pixels, and what
lies beyond the outermost vectors gets theirs; the sample holds the magnitude.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.converters.force_conditions import ForceConditions
from datamodules.converters.stored_arrays import array_names, read_arrays

PIXEL_SIZES = ("pixel_size_um", "pixelsize1_um")
GRID = ("window_px", "overlap_px")


class FieldMovie(NamedTuple):
    """What one file holds."""

    images: NDArray[np.generic]
    """(t, y, x), uint16 or float32."""
    traction_pa: NDArray[np.float64]
    """(t, 2, rows, columns), components (x, y)."""
    step_px: float
    """Distance of the vectors, in pixels of the image."""
    first_px: float
    """Place of the first one, the same along x and y; pixel 0 has its centre at 0."""
    pixel_size_um: float

    def magnitude(self, frame: int) -> NDArray[np.float32]:
        """Traction magnitude of one frame at the pixels of its image, (y, x), Pa."""
        height, width = self.images.shape[1:]
        column, row = np.meshgrid(*((np.arange(n) - self.first_px) / self.step_px for n in (width, height)))
        components = [
            cv2.remap(
                field.astype(np.float32),
                column.astype(np.float32),
                row.astype(np.float32),
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            for field in self.traction_pa[frame]
        ]
        return np.hypot(*components)


def field_files(source: Path) -> list[Path]:
    """The .npz files in `source` that hold traction components, sorted."""
    return [
        path
        for path in sorted(source.glob("*.npz"))
        if not path.name.startswith(".") and _named(array_names(path), "tx") and _named(array_names(path), "ty")
    ]


def read_field_movie(path: Path, conditions: ForceConditions) -> FieldMovie:
    """Read one file.

    Raises:
        ValueError: It is damaged, lacks something or holds more than one candidate for it, or its shapes do not belong
            together; the message says what to write into conditions.json.
    """
    held = array_names(path)
    names = {
        "traction_x": _chosen(path, _named(held, "tx"), conditions.traction_x, held, "traction_x"),
        "traction_y": _chosen(path, _named(held, "ty"), conditions.traction_y, held, "traction_y"),
    }
    shapes = _stacks(path, held)
    traction = read_arrays(path, list(names.values()))
    grid = traction[names["traction_x"]].shape
    candidates = [name for name, shape in shapes.items() if len(grid) == 3 and shape[0] == grid[0]]
    image = _chosen(
        path,
        [name for name in candidates if shapes[name][1] > grid[1] and shapes[name][2] > grid[2]],
        conditions.image,
        held,
        "image",
    )
    pixels = read_arrays(path, [image])[image]
    components = [traction[name] for name in names.values()]
    if pixels.ndim != 3 or any(part.shape != grid or len(part) != len(pixels) for part in components):
        raise ValueError(
            f"{path}: {image} is {pixels.shape}, {names['traction_x']} {grid}, {names['traction_y']} "
            f"{components[1].shape}: they must be (t, y, x) and twice (t, rows, columns), save them like that"
        )
    step, first = _grid(path, held, pixels.shape, grid)
    whole = pixels.min() >= 0 and pixels.max() <= np.iinfo(np.uint16).max and (pixels == np.rint(pixels)).all()
    stored = pixels.astype(np.uint16 if whole else np.float32)
    return FieldMovie(stored, np.stack(components, axis=1), step, first, _pixel_size(path, held, conditions))


def _named(held: set[str], start: str) -> list[str]:
    return sorted(name for name in held if name == start or name.lower().startswith(f"{start}_"))


def _chosen(path: Path, candidates: list[str], wanted: str | None, held: set[str], entry: str) -> str:
    if wanted is not None:
        if wanted not in held:
            listed = ", ".join(sorted(held))
            raise ValueError(f"{path} has no {wanted}, which conditions.json names as {entry}: it holds {listed}")
        return wanted
    if len(candidates) != 1:
        listed = ", ".join(candidates) if candidates else f"none of {', '.join(sorted(held))}"
        raise ValueError(
            f"{path}: which array is the {entry} ({listed})? Say it in conditions.json, for example "
            f'{{"{entry}": "NAME"}}'
        )
    return candidates[0]


def _stacks(path: Path, held: set[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the three-dimensional arrays of numbers in a file, whatever their values."""
    with np.load(path, allow_pickle=False) as arrays:
        shapes = {}
        for name in sorted(held):
            try:
                shapes[name] = arrays[name].shape
            except ValueError:
                continue  # objects, which are nothing to choose from
    return {name: shape for name, shape in shapes.items() if len(shape) == 3}


def _grid(path: Path, held: set[str], image: tuple[int, ...], grid: tuple[int, ...]) -> tuple[float, float]:
    """Step of the vectors and place of the first, in px."""
    if not set(GRID) <= held:
        raise ValueError(f"{path} lacks {' and '.join(GRID)}: add the windows of the velocimetry, in pixels")
    window, overlap = (float(value) for value in read_arrays(path, GRID).values())
    step, first = window - overlap, 0.5 * (window - 1)
    last = first + step * (np.array(grid[1:]) - 1)
    if step <= 0 or min(grid[1:]) < 2 or (last > np.array(image[1:]) - 1).any():
        raise ValueError(
            f"{path}: {grid[1]} x {grid[2]} vectors of windows of {window:g} px that overlap by {overlap:g} px do not "
            f"fit into images of {image[2]} x {image[1]} px: correct window_px and overlap_px"
        )
    return step, first


def _pixel_size(path: Path, held: set[str], conditions: ForceConditions) -> float:
    if conditions.pixel_size_um is not None:
        return conditions.pixel_size_um
    for name in PIXEL_SIZES:
        if name in held:
            size = float(read_arrays(path, [name])[name])
            if size > 0:
                return size
    raise ValueError(f'{path} does not say its pixel size: add {{"pixel_size_um": ...}} to conditions.json beside it')
