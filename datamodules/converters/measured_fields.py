"""One displacement field, with or without traction, outline and mask, read from its files into the house's convention.

Four layouts, told apart by names and never by sizes:

- arrays, components and tables, as `datamodules.converters.dl_tfm` describes them; components and tables may have a
  mask (y, x) of the cell;
- vectors: our own. A .npz file with `displacement_px` (pixels of the field) or `displacement_um`, and where they are
  known `traction_pa` and `cell_mask`, has the axes (2, y, x), (2, y, x) and (y, x), components (x, y); where
  conditions.json gives `axes`, it has those. A .npy file with one field says nothing: conditions.json must give `axes`
  and `displacement_unit`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.converters.displacement_tables import read_table
from datamodules.converters.field_archives import MASK, Entry
from datamodules.converters.field_pairs import check_pair
from datamodules.converters.gel_conditions import Conditions
from datamodules.converters.stored_arrays import read_arrays, read_npy
from physics.polygons import polygon_interior

NEEDED = {
    "arrays": ("pixel_size_um",),
    "components": ("pixel_size_um", "image_pixel_size_um"),
    "tables": ("image_pixel_size_um",),
    "vectors": ("pixel_size_um",),
}
"""What conditions.json must give for a layout, beside the substrate."""
UNITS = {"displacement_px": "px", "displacement_um": "um"}
"""Name of an array of vectors -> the unit of its displacement."""
_KNOWN_UNITS = {"dspl": "px", "u": "image_px", "table": "image_px", **UNITS}
_KNOWN_AXES = {"dspl": ("xyc",), "u": ("cyx", "yxc")}
"""What the names of arrays tell already; u and v are (y, x) each, a table says where each vector stands."""
OWN_AXES = "cyx"
OUTSIDE_SHARE = 0.1
MUCH_LESS = 0.25
"""More than this share of the traction outside the outline, and that much less outside the swapped one: swapped axes.
The stored cells have none outside, 31 % or more when swapped."""


LEAST_PX = 1e-4
"""Far below what any measurement of displacement tells from none: a field that stays below is of another unit."""


class MeasuredField(NamedTuple):
    """One field in float64."""

    displacement_px: NDArray[np.float64]
    """(2, y, x) in pixels of the field."""
    traction: NDArray[np.float64] | None
    """(2, y, x) in Pa for the stored modulus."""
    outline_px: NDArray[np.float64]
    """(corners, 2), counted from 0; no corners where there is no outline."""
    pixel_size_um: float
    cell_mask: NDArray[np.bool_] | None = None
    """(y, x), where it is stored and no outline."""

    @property
    def size(self) -> str:
        """Its width and height, for messages."""
        return _size(self.displacement_px.shape)


def read_field(layout: str, entry: Entry, conditions: Conditions) -> MeasuredField:
    """Read one field.

    Args:
        layout: arrays, components, tables or vectors.
        entry: its files.
        conditions: with what `NEEDED` says; of a table, without image_pixel_size_um, pixel_size_um is the distance
            between its vectors.

    Raises:
        ValueError: A file is damaged, or what it holds does not fit the layout or the conditions; it is named.
    """
    _check_declared(entry, conditions)
    if layout == "arrays":
        return _read_stored(entry, conditions)
    if layout == "components":
        return _read_components(entry, conditions)
    if layout == "vectors":
        return _read_vectors(entry, conditions)
    return _read_grid(entry, conditions)


def sample_values(
    entry: Entry, found: MeasuredField, conditions: Conditions, *, periodic: bool
) -> dict[str, NDArray[np.generic]]:
    """Return displacement_um, traction_pa where it is known, cell_mask and the numbers of substrate and operator.

    The mask covers the whole field where neither outline nor mask are known. `periodic`: a traction was computed by
    Fourier transform traction cytometry.

    Raises:
        ValueError: The traction does not belong to the displacement (`field_pairs`), or the outline not to them.
    """
    layer_um = conditions.gel_thickness_um
    if found.traction is not None:
        check_pair(
            entry.where,
            found.displacement_px,
            found.traction,
            modulus_pa=conditions.stored_modulus_pa,
            poisson_ratio=conditions.poisson_ratio,
            thickness_px=None if layer_um is None else layer_um / found.pixel_size_um,
            periodic=periodic,
        )
    shape = (found.displacement_px.shape[1], found.displacement_px.shape[2])
    _check_size(entry, found, shape)
    mask = found.cell_mask if found.cell_mask is not None else np.ones(shape, bool)
    if len(found.outline_px):
        mask = polygon_interior(found.outline_px.T, *shape)
    if not mask.any():
        outline = "the outline encloses no pixel: correct brdx and brdy"
        raise ValueError(f"{entry.where}: {outline if len(found.outline_px) else 'cell_mask holds no pixel: mend it'}")
    if found.traction is not None and shape[0] == shape[1]:
        drawn = "brdx and brdy are swapped: brdx must belong to array axis 0, swap them"
        stored = "the axes of cell_mask are swapped: swap them, y comes first"
        _check_outline_axes(entry, mask, found.traction, drawn if len(found.outline_px) else stored)
    values = {"displacement_um": (found.displacement_px * found.pixel_size_um).astype(np.float32)}
    if found.traction is not None:
        scale = conditions.youngs_modulus_pa / conditions.stored_modulus_pa
        values["traction_pa"] = (found.traction * scale).astype(np.float32)
    # Wang & Lin's pairs were made with their kernel; what was measured or made elsewhere no truncated kernel made
    published = found.traction is not None and "dspl" in entry.files
    even_square = shape[0] == shape[1] and shape[0] % 2 == 0
    values |= {
        "centre_element": np.array(published, np.int8),
        "reach": np.array(published and even_square, np.int8),
    }
    if layer_um is not None:
        values["gel_thickness_um"] = np.array(layer_um, np.float64)
    return values | {
        "cell_mask": mask[None].astype(np.uint8),
        "youngs_modulus_pa": np.array(conditions.youngs_modulus_pa, np.float64),
        "poisson_ratio": np.array(conditions.poisson_ratio, np.float64),
        "pixel_size_um": np.array(found.pixel_size_um, np.float64),
    }


def _check_size(entry: Entry, found: MeasuredField, shape: tuple[int, int]) -> None:
    """Raise ValueError where a displacement is too small or too large to be one in the unit that was said."""
    largest = float(np.hypot(*found.displacement_px).max())
    if 0 < largest < LEAST_PX or largest > max(shape):
        many = "less than any measurement sees" if largest < LEAST_PX else f"more than the {max(shape)} of the field"
        raise ValueError(
            f"{entry.where}: its largest displacement is {largest:.3g} pixels of {found.pixel_size_um:g} um, {many}: "
            "correct its unit, or the pixel sizes in conditions.json"
        )


def _check_declared(entry: Entry, conditions: Conditions) -> None:
    """Raise ValueError where conditions.json declares another unit or other axes than the name of an array tells."""
    name = next((name for name in entry.files if name in _KNOWN_UNITS), None)
    if name is None:
        return
    for key, declared, told in (
        ("displacement_unit", conditions.displacement_unit, (_KNOWN_UNITS[name],)),
        ("axes", conditions.axes, _KNOWN_AXES.get(name)),
    ):
        if told is not None and declared is not None and declared not in told:
            what = "vectors of PIV" if name == "table" else name
            raise ValueError(
                f'{entry.files[name]} holds {what}, of {key} "{told[0]}", but conditions.json beside it declares '
                f'"{declared}": correct that entry or take it out, or save the field as displacement_px or _um'
            )


def _check_outline_axes(entry: Entry, mask: NDArray[np.bool_], traction: NDArray[np.float64], mend: str) -> None:
    """Of a square field, where the swapped outline encloses the transposed mask."""
    strength = np.hypot(*traction)
    total = strength.sum()
    outside, outside_swapped = strength[~mask].sum(), strength[~mask.T].sum()
    if outside > OUTSIDE_SHARE * total and outside_swapped < MUCH_LESS * outside:
        raise ValueError(
            f"{entry.where}: {outside / total:.0%} of the traction lies outside the outline, but "
            f"{outside_swapped / total:.0%} when {mend}"
        )


# -- the layouts ------------------------------------------------------------------------------------------------------


def _read_grid(entry: Entry, conditions: Conditions) -> MeasuredField:
    grid = read_table(entry.files["table"])
    said, mask = conditions.pixel_size_um, None
    if MASK in entry.files:
        mask = read_npy(entry.files[MASK]) != 0
        if mask.shape != grid.displacement_px.shape[1:]:
            raise ValueError(
                f"{entry.files[MASK]} is {mask.shape}, the vectors of the table are {grid.displacement_px.shape[1:]} "
                "(y, x): save a mask with a pixel for each vector"
            )
    if conditions.image_pixel_size_um is None:
        assert said is not None
        return MeasuredField(grid.displacement_px / grid.spacing_px, None, np.empty((0, 2)), said, mask)
    pixel_size = grid.spacing_px * conditions.image_pixel_size_um
    if said is not None and abs(said - pixel_size) > 0.01 * pixel_size:
        raise ValueError(
            f"{entry.where}: its vectors are {grid.spacing_px:g} camera pixels apart, {pixel_size:.4g} um, but "
            f"conditions.json says pixel_size_um {said:g}: remove that entry or correct image_pixel_size_um"
        )
    return MeasuredField(grid.displacement_px / grid.spacing_px, None, np.empty((0, 2)), pixel_size, mask)


def _read_stored(entry: Entry, conditions: Conditions) -> MeasuredField:
    """Fields and outline in the authors' convention."""
    assert conditions.pixel_size_um is not None
    stored = {name: read_arrays(path, (name, "brdx", "brdy")) for name, path in entry.files.items()}
    turned: dict[str, NDArray[np.float64]] = {}
    for name, path in entry.files.items():
        if name not in stored[name]:
            raise ValueError(f"{path} holds no {name}: add it or take the file out")
        array = stored[name][name]
        if array.ndim != 3 or array.shape[2] != 2 or array.shape[0] != array.shape[1] or len(array) < 2:
            raise ValueError(
                f"{name} in {path} is {array.shape}, it must be (S, S, 2) with x first: save it like that, and a field "
                "that is no square as u and v, (y, x) each, or to predict on as displacement_px, (2, y, x)"
            )
        turned[name] = np.ascontiguousarray(array.transpose(2, 1, 0))
    if "trac" in turned and turned["trac"].shape != turned["dspl"].shape:
        raise ValueError(
            f"{entry.where}: dspl is a field of {_size(turned['dspl'].shape)} but trac one of "
            f"{_size(turned['trac'].shape)}: they are no pair, replace one"
        )
    outlines = [_outline(entry.files[name], arrays, len(stored["dspl"]["dspl"])) for name, arrays in stored.items()]
    known = [outline for outline in outlines if len(outline)]
    if len(known) == 2 and not (known[0].shape == known[1].shape and np.allclose(known[0], known[1], atol=1e-6)):
        raise ValueError(f"{entry.where}: their outlines differ: they show different cells, replace one")
    return MeasuredField(
        turned["dspl"], turned.get("trac"), known[0] if known else outlines[0], conditions.pixel_size_um
    )


def _outline(path: Path, arrays: dict[str, NDArray[np.float64]], size_px: int) -> NDArray[np.float64]:
    """Corners (n, 2) counted from 0; none where the file holds no outline."""
    lone = {"brdx", "brdy"} & arrays.keys()
    if not lone:
        return np.empty((0, 2))
    if len(lone) == 1:
        raise ValueError(f"{path} holds {lone.pop()} alone: an outline needs brdx and brdy, add the other")
    x, y = arrays["brdx"].ravel(), arrays["brdy"].ravel()
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(
            f"{path}: brdx has {len(x)} corners and brdy {len(y)}: as many are needed, 3 or more; mend them"
        )
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    if low < 0.5 or high > size_px + 0.5:
        raise ValueError(
            f"{path}: the outline runs from {low:g} to {high:g}, outside the field of {size_px} pixels counted from 1: "
            "give brdx and brdy in pixels of the field"
        )
    return np.stack([x, y], axis=1) - 1.0


def _read_components(entry: Entry, conditions: Conditions) -> MeasuredField:
    assert conditions.pixel_size_um is not None
    assert conditions.image_pixel_size_um is not None
    arrays = {
        name: read_npy(path) if path.suffix.lower() == ".npy" else read_arrays(path, (name,))[name]
        for name, path in entry.files.items()
    }
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape != arrays["u"].shape or min(array.shape) < 2:
            raise ValueError(
                f"{name} in {entry.files[name]} is {array.shape}, u is {arrays['u'].shape}: all must be the same "
                "(y, x), save one frame a file"
            )
    traction = np.stack([arrays["tx"], arrays["ty"]]) if "tx" in arrays else None
    mask = arrays[MASK] != 0 if MASK in arrays else None
    displacement = np.stack([arrays["u"], arrays["v"]]) * (conditions.image_pixel_size_um / conditions.pixel_size_um)
    return MeasuredField(displacement, traction, np.empty((0, 2)), conditions.pixel_size_um, mask)


def _read_vectors(entry: Entry, conditions: Conditions) -> MeasuredField:
    """A field in our own convention, or in the one that the conditions declare."""
    assert conditions.pixel_size_um is not None
    name, path = next(iter(entry.files.items()))
    if name in UNITS:
        unit, axes = UNITS[name], conditions.axes or OWN_AXES
        arrays = read_arrays(path, (name, "traction_pa", "cell_mask"))
    else:
        unit, axes, arrays = str(conditions.displacement_unit), str(conditions.axes), {name: read_npy(path)}
    for field in (name, "traction_pa"):
        array = arrays.get(field)
        if array is None:
            continue
        wanted = tuple("2" if axis == "c" else axis for axis in axes)
        if array.ndim != 3 or array.shape[axes.index("c")] != 2 or min(array.shape) < 2:
            raise ValueError(
                f"{field} in {path} is {array.shape}, it must be ({', '.join(wanted)}): save it like that, or declare "
                'its axes in conditions.json, for example "axes": "yxc"'
            )
        arrays[field] = np.ascontiguousarray(array.transpose([axes.index(axis) for axis in OWN_AXES]))
    displacement, traction, mask = arrays[name], arrays.get("traction_pa"), arrays.get("cell_mask")
    if mask is not None:
        mask = mask.T if axes.index("x") < axes.index("y") else mask
    for field, other, shape in (
        ("traction_pa", traction, displacement.shape),
        ("cell_mask", mask, displacement.shape[1:]),
    ):
        if other is not None and other.shape != shape:
            raise ValueError(
                f"{path}: {name} is a field of {_size(displacement.shape)} but {field} has another size: they do not "
                "belong together, replace one"
            )
    scale = 1.0
    if unit == "um":
        scale = 1 / conditions.pixel_size_um
    elif unit == "image_px":
        assert conditions.image_pixel_size_um is not None
        scale = conditions.image_pixel_size_um / conditions.pixel_size_um
    cell_mask = None if mask is None else mask != 0
    return MeasuredField(displacement * scale, traction, np.empty((0, 2)), conditions.pixel_size_um, cell_mask)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} x {shape[1]} px"
