"""Displacement fields, with or without the tractions behind them (paper `dl_tfm`), from the archives they come in.

The folder is recognised by what it holds; `conditions.json` in it says what the files do not (`gel_conditions`):

- arrays: Wang & Lin's .mat files (any MATLAB version) or .npz files with the same names: `dspl` (S, S, 2) in pixels of
  the field, `trac` (S, S, 2), outline `brdx` and `brdy`. Either both fields in one file, or the same file name in the
  folders `dspl` and `trac`, `dsplRadial` and `tracRadial`, and so on. Array axis 0 and component 0 are x, brdx belongs
  to axis 0, and both outlines count from 1. Tractions are in Pa, or those of the training data for a modulus of 10
  (conditions.json: traction_modulus_pa). The authors' y axis points up: turned by transpose(2, 1, 0) the rows of a
  field run from the bottom of their picture to its top, and its y components upwards with them.
- components: what pyTFM saves, `<frame>u.npy`, `v`, `tx`, `ty` (y, x) each, or .npz files with u, v, tx, ty:
  displacement in camera pixels, traction in Pa, y down the rows.
- tables: vectors of particle image velocimetry, see `displacement_tables`.

An archive holds tractions for all its fields or for none: `fields` says which, `splits` how they can be shared out. A
pair whose fields do not belong together is refused (`field_pairs`), an outline whose axes are swapped too.

A group is one cell. arrays: the name of the file up to the end of its first number, so that `MLData0007-03` and
`MLData0007-04`, two rotations of one cell, stay together; where the numbers simply run on, conditions.json says how
many files in a row are one cell (files_per_cell). components and tables: all files of a folder are one recording,
recordings lie in a folder each; files_per_cell: 1 makes every file its own.

One sample: the fields of `FIELDS` as in the simulator; where there is no outline its length is 0 and the mask covers
the whole field.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.batches import Sample
from datamodules.converters.cell_polygons import interior
from datamodules.converters.displacement_tables import read_table
from datamodules.converters.field_archives import Entry, find_entries, in_order, regrouped
from datamodules.converters.field_pairs import check_pair
from datamodules.converters.gel_conditions import Conditions, read_conditions
from datamodules.converters.stored_arrays import read_arrays, read_npy

FIELDS: dict[str, dict[str, str]] = {
    "displacement_um": {"axes": "cyx", "unit": "um"},
    "traction_pa": {"axes": "cyx", "unit": "Pa"},
    "cell_mask": {"axes": "cyx", "unit": "mask"},
    "outline_px": {"axes": "nc", "unit": "px"},
    "outline_px_length": {"axes": "", "unit": "1"},
    "youngs_modulus_pa": {"axes": "", "unit": "Pa"},
    "poisson_ratio": {"axes": "", "unit": "1"},
    "pixel_size_um": {"axes": "", "unit": "um"},
}
"""Without `traction_pa` where the archive has no tractions."""
GROUP_KEY = "cell or recording"
SPLITS: dict[str, dict[str, Any]] = {"default": {"unit": "group", "train": 0.8, "val": 0.1, "test": 0.1}}
TEST_ONLY: dict[str, dict[str, Any]] = {"default": {"unit": "group", "test": 1.0}}
"""Where there is nothing to train on: no tractions, or fewer cells than splits."""
OUTLINE_CORNERS = 360
"""Room for corners, as many as the authors' simulated outlines have; more where an outline has more."""
OUTSIDE_SHARE = 0.1
MUCH_LESS = 0.25
"""More than this share of the traction outside the outline, and that much less outside the swapped one: swapped axes.
The stored cells have none outside, 31 % or more when swapped."""

_NEEDED = {
    "arrays": ("pixel_size_um",),
    "components": ("pixel_size_um", "image_pixel_size_um"),
    "tables": ("image_pixel_size_um",),
}


class _Archive(NamedTuple):
    layout: str
    entries: list[Entry]
    conditions: Conditions
    pairs: bool


class _Read(NamedTuple):
    """One field in float64."""

    displacement_px: NDArray[np.float64]
    """(2, y, x) in pixels of the field."""
    traction: NDArray[np.float64] | None
    """(2, y, x) in Pa for the stored modulus."""
    outline_px: NDArray[np.float64]
    """(corners, 2), counted from 0; no corners where there is no outline."""
    pixel_size_um: float


def convert(source: Path) -> Iterator[Sample]:
    """Yield the samples of the archive in `source`, groups contiguous and in a fixed order.

    Raises FileNotFoundError or ValueError, naming the file and the mend, where the source does not exist, has none of
    the layouts, says nothing of its conditions, or a file is damaged or contradicts its partner or the first file.
    """
    return _samples(_archive(source))


def fields(source: Path) -> dict[str, dict[str, str]]:
    """Return the fields of the samples of `convert`: without `traction_pa` where the archive holds none."""
    pairs = _archive(source).pairs
    return {name: dict(entry) for name, entry in FIELDS.items() if pairs or name != "traction_pa"}


def splits(source: Path) -> dict[str, dict[str, Any]]:
    """Return the split schemes that the archive allows: for testing only without tractions or with few cells."""
    archive = _archive(source)
    cells = len({entry.group for entry in archive.entries})
    return SPLITS if archive.pairs and cells >= 3 else TEST_ONLY


def provenance(source: Path) -> dict[str, Any]:
    """Return where the samples of `convert` come from and by which rule."""
    archive = _archive(source)
    rules = {
        "arrays": "axis 0 and component 0 are x: transpose(2, 1, 0); outline counted from 1; cell = file name up to "
        "its first number, or files_per_cell files in a row",
        "components": "rows are y, y down; displacement times image_pixel_size_um; one recording per folder",
        "tables": "regular grid of vectors, y down; displacement times image_pixel_size_um; one recording per folder",
    }
    given = {name: value for name, value in archive.conditions._asdict().items() if value is not None}
    return {
        "source": source.resolve().name,
        "layout": archive.layout,
        "licence": "that of the archive's authors (MIT for Wang & Lin's); not ours to grant",
        "conditions": given,
        "rule": rules[archive.layout],
    }


def _archive(source: Path) -> _Archive:
    layout, entries = find_entries(source)
    conditions = read_conditions(source, needed=_NEEDED[layout])
    with_traction = [entry for entry in entries if {"trac", "tx"} & entry.files.keys()]
    if with_traction and len(with_traction) < len(entries):
        alone = next(entry for entry in entries if entry not in with_traction)
        raise ValueError(
            f"{alone.where} has no traction, but {with_traction[0].where} has: add the traction, or convert the fields "
            "without any from a folder of their own"
        )
    if conditions.files_per_cell is not None:
        entries = regrouped(entries, conditions.files_per_cell)
    return _Archive(layout, in_order(entries), conditions, bool(with_traction))


# -- from files to samples --------------------------------------------------------------------------------------------


def _samples(archive: _Archive) -> Iterator[Sample]:
    conditions = archive.conditions
    room = max([OUTLINE_CORNERS, *map(_corners, archive.entries)]) if archive.layout == "arrays" else OUTLINE_CORNERS
    shape: tuple[int, ...] | None = None
    for entry in archive.entries:
        found = _read(archive.layout, entry, conditions)
        shape = shape or found.displacement_px.shape
        if found.displacement_px.shape != shape:
            raise ValueError(
                f"{entry.where} is a field of {_size(found.displacement_px.shape)}, but {archive.entries[0].where} is "
                f"one of {_size(shape)}: convert each size from a folder of its own"
            )
        if found.traction is not None:
            check_pair(
                entry.where,
                found.displacement_px,
                found.traction,
                modulus_pa=conditions.stored_modulus_pa,
                poisson_ratio=conditions.poisson_ratio,
                periodic=archive.layout == "components",
            )
        yield Sample(entry.sample_id, entry.group, _fields(entry, found, conditions, room))


def _fields(entry: Entry, found: _Read, conditions: Conditions, room: int) -> dict[str, np.ndarray]:
    corners = found.outline_px
    shape = (found.displacement_px.shape[1], found.displacement_px.shape[2])
    mask = interior(corners, shape) if len(corners) else np.ones(shape, bool)
    if not mask.any():
        raise ValueError(f"{entry.where}: the outline encloses no pixel: correct brdx and brdy")
    if len(corners) and found.traction is not None:
        _check_outline_axes(entry, mask, found.traction)
    outline = np.zeros((room, 2), np.float32)
    outline[: len(corners)] = corners
    values: dict[str, np.ndarray] = {
        "displacement_um": (found.displacement_px * found.pixel_size_um).astype(np.float32)
    }
    if found.traction is not None:
        scale = conditions.youngs_modulus_pa / conditions.stored_modulus_pa
        values["traction_pa"] = (found.traction * scale).astype(np.float32)
    return values | {
        "cell_mask": mask[None].astype(np.uint8),
        "outline_px": outline,
        "outline_px_length": np.array(len(corners), np.int32),
        "youngs_modulus_pa": np.array(conditions.youngs_modulus_pa, np.float64),
        "poisson_ratio": np.array(conditions.poisson_ratio, np.float64),
        "pixel_size_um": np.array(found.pixel_size_um, np.float64),
    }


def _check_outline_axes(entry: Entry, mask: NDArray[np.bool_], traction: NDArray[np.float64]) -> None:
    """Only square fields have an outline, so that the swapped one encloses the transposed mask."""
    strength = np.hypot(*traction)
    total = strength.sum()
    outside, outside_swapped = strength[~mask].sum(), strength[~mask.T].sum()
    if outside > OUTSIDE_SHARE * total and outside_swapped < MUCH_LESS * outside:
        raise ValueError(
            f"{entry.where}: {outside / total:.0%} of the traction lies outside the outline, but "
            f"{outside_swapped / total:.0%} when brdx and brdy are swapped: brdx must belong to array axis 0, swap them"
        )


def _read(layout: str, entry: Entry, conditions: Conditions) -> _Read:
    if layout == "arrays":
        return _read_stored(entry, conditions)
    if layout == "components":
        return _read_components(entry, conditions)
    grid = read_table(entry.files["table"])
    assert conditions.image_pixel_size_um is not None
    pixel_size = grid.spacing_px * conditions.image_pixel_size_um
    said = conditions.pixel_size_um
    if said is not None and abs(said - pixel_size) > 0.01 * pixel_size:
        raise ValueError(
            f"{entry.where}: its vectors are {grid.spacing_px:g} camera pixels apart, {pixel_size:.4g} um, but "
            f"conditions.json says pixel_size_um {said:g}: remove that entry or correct image_pixel_size_um"
        )
    return _Read(grid.displacement_px / grid.spacing_px, None, np.empty((0, 2)), pixel_size)


def _read_stored(entry: Entry, conditions: Conditions) -> _Read:
    """Fields and outline in the authors' convention."""
    assert conditions.pixel_size_um is not None
    stored = {name: read_arrays(path, (name, "brdx", "brdy")) for name, path in entry.files.items()}
    turned: dict[str, NDArray[np.float64]] = {}
    for name, path in entry.files.items():
        if name not in stored[name]:
            raise ValueError(f"{path} holds no {name}: add it or take the file out")
        array = stored[name][name]
        if array.ndim != 3 or array.shape[2] != 2 or array.shape[0] != array.shape[1] or len(array) < 2:
            raise ValueError(f"{name} in {path} is {array.shape}, it must be (S, S, 2) with x first: save it like that")
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
    return _Read(turned["dspl"], turned.get("trac"), known[0] if known else outlines[0], conditions.pixel_size_um)


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


def _corners(entry: Entry) -> int:
    return max(read_arrays(path, ("brdx",)).get("brdx", np.empty(0)).size for path in entry.files.values())


def _read_components(entry: Entry, conditions: Conditions) -> _Read:
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
    scale = conditions.image_pixel_size_um / conditions.pixel_size_um
    return _Read(np.stack([arrays["u"], arrays["v"]]) * scale, traction, np.empty((0, 2)), conditions.pixel_size_um)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} x {shape[1]} px"
