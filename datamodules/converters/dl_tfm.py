"""Displacement fields, with or without the tractions behind them (paper `dl_tfm`), from the archives they come in.

The folder is recognised by what it holds; `conditions.json` in it says what the files do not (`gel_conditions`):

- arrays: Wang & Lin's .mat files (any MATLAB version) or .npz files with the same names: `dspl` (S, S, 2) in pixels of
  the field, `trac` (S, S, 2), outline `brdx` and `brdy`. Either both fields in one file, or the same file name in the
  folders `dspl` and `trac`, `dsplRadial` and `tracRadial`, and so on. Array axis 0 and component 0 are x, brdx belongs
  to axis 0, and both outlines count from 1. Tractions are in Pa, or those of the training data for a modulus of 10
  (conditions.json: traction_modulus_pa). The authors' y axis points up: turned by transpose(2, 1, 0) the rows of a
  field run from the bottom of their picture to its top, and its y components upwards with them.
- components: what pyTFM saves, `<frame>u.npy`, `v`, `tx`, `ty` (y, x) each, or .npz files with u, v, tx, ty:
  displacement in camera pixels, traction in Pa, y down the rows; a mask of the cell as `<frame>mask.npy` or cell_mask.
- tables: vectors of particle image velocimetry, see `displacement_tables`; a mask of the cell as `<table>_mask.npy`.

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

from datamodules.batches import Sample
from datamodules.converters.field_archives import Entry, find_entries, in_order, regrouped
from datamodules.converters.gel_conditions import Conditions, read_conditions
from datamodules.converters.measured_fields import NEEDED, MeasuredField, read_field, sample_values
from datamodules.converters.stored_arrays import read_arrays

FIELDS: dict[str, dict[str, str]] = {
    "displacement_um": {"axes": "cyx", "unit": "um"},
    "traction_pa": {"axes": "cyx", "unit": "Pa"},
    "cell_mask": {"axes": "cyx", "unit": "mask"},
    "outline_px": {"axes": "nc", "unit": "px"},
    "outline_px_length": {"axes": "", "unit": "1"},
    "youngs_modulus_pa": {"axes": "", "unit": "Pa"},
    "poisson_ratio": {"axes": "", "unit": "1"},
    "pixel_size_um": {"axes": "", "unit": "um"},
    "centre_element": {"axes": "", "unit": "code: 0 exact, 1 published"},
    "reach": {"axes": "", "unit": "code: 0 full, 1 published"},
}
"""Without `traction_pa` where the archive has no tractions."""
THICKNESS: dict[str, dict[str, str]] = {"gel_thickness_um": {"axes": "", "unit": "um"}}
"""One field more where conditions.json gives it."""
GROUP_KEY = "cell or recording"
SPLITS: dict[str, dict[str, Any]] = {"default": {"unit": "group", "train": 0.8, "val": 0.1, "test": 0.1}}
TEST_ONLY: dict[str, dict[str, Any]] = {"default": {"unit": "group", "test": 1.0}}
"""Where there is nothing to train on: no tractions, or fewer cells than splits."""
OUTLINE_CORNERS = 360
"""Room for corners, as many as the authors' simulated outlines have; more where an outline has more."""


class _Archive(NamedTuple):
    layout: str
    entries: list[Entry]
    conditions: Conditions
    pairs: bool


def convert(source: Path) -> Iterator[Sample]:
    """Yield the samples of the archive in `source`, groups contiguous and in a fixed order.

    Raises FileNotFoundError or ValueError, naming the file and the mend, where the source does not exist, has none of
    the layouts, says nothing of its conditions, or a file is damaged or contradicts its partner or the first file.
    """
    return _samples(_archive(source))


def fields(source: Path) -> dict[str, dict[str, str]]:
    """Return the fields of the samples of `convert`: tractions and the gel's thickness where they are known."""
    archive = _archive(source)
    known = FIELDS if archive.conditions.gel_thickness_um is None else FIELDS | THICKNESS
    return {name: dict(entry) for name, entry in known.items() if archive.pairs or name != "traction_pa"}


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
    conditions = read_conditions(source, needed=NEEDED[layout])
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
    first: MeasuredField | None = None
    for entry in archive.entries:
        found = read_field(archive.layout, entry, conditions)
        first = first or found
        if found.displacement_px.shape != first.displacement_px.shape:
            raise ValueError(
                f"{entry.where} is a field of {found.size}, but {archive.entries[0].where} is one of {first.size}: "
                "convert each size from a folder of its own"
            )
        values = sample_values(entry, found, conditions, periodic=archive.layout == "components")
        outline = np.zeros((room, 2), np.float32)
        outline[: len(found.outline_px)] = found.outline_px
        values |= {"outline_px": outline, "outline_px_length": np.array(len(found.outline_px), np.int32)}
        yield Sample(
            entry.sample_id, entry.group, {name: values[name] for name in FIELDS | THICKNESS if name in values}
        )


def _corners(entry: Entry) -> int:
    return max(read_arrays(path, ("brdx",)).get("brdx", np.empty(0)).size for path in entry.files.values())
