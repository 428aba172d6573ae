"""The displacement fields of a user, file by file, to predict tractions on.

What a file holds is told by its names (`measured_fields`): .mat or .npz with `dspl` (Wang & Lin's axes), with `u` and
`v`, or with `displacement_px` or `displacement_um`; pairs `<frame>u.npy` and `<frame>v.npy`; a .npy file with one array
whose axes and unit conditions.json declares; tables of particle image velocimetry. Masks of the cell stand in the .npz
file as `cell_mask`, beside pairs as `<frame>mask.npy`, beside a table as `<table>_mask.npy`. `conditions.json` beside
the files gives the substrate and the scale (`gel_conditions`). Fields may differ in size. A stored traction is kept as
the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.batches import Sample
from datamodules.converters import displacement_tables, stored_arrays
from datamodules.converters.field_archives import (
    BESIDE,
    COMPONENT,
    Entry,
    component_files,
    refuse_unread,
    require_partners,
    table_files,
    table_of_mask,
)
from datamodules.converters.gel_conditions import Conditions, read_conditions
from datamodules.converters.measured_fields import NEEDED, UNITS, read_field, sample_values
from datamodules.converters.own_files import check_request
from datamodules.converters.stored_arrays import array_names

SUFFIXES = (*stored_arrays.SUFFIXES, ".npy", *displacement_tables.SUFFIXES)
_UNNAMED = "displacement"


def read_own_fields(files: Sequence[Path], *, pixel_size_um: float | None = None) -> list[Sample]:
    """Read displacement fields.

    Args:
        files: in any of the layouts; of a pair of .npy files one is enough.
        pixel_size_um: distance between the points of the fields, in place of what conditions.json gives.

    Returns:
        Samples in the order of the files with displacement_um, traction_pa where it is stored, cell_mask (the whole
        field where there is none), youngs_modulus_pa, poisson_ratio, pixel_size_um, gel_thickness_um where it is given
        and the codes centre_element and reach of the operator; their id and group are the file name, of a pair the name
        of u.

    Raises:
        FileNotFoundError: There is no such file, or no conditions.json beside it; the message says what to write.
        ValueError: A file is damaged, has none of the layouts or says too little, or two have one name; it is named.
    """
    check_request(files, what="displacement field", pixel_size_um=pixel_size_um)
    entries: dict[str, tuple[str, Entry]] = {}
    for path in map(Path, files):
        layout, entry = _entry(path)
        _, known = entries.setdefault(entry.sample_id, (layout, entry))
        if known.files != entry.files:
            raise ValueError(f"{known.where} and {entry.where} would be listed under one name: rename one of them")
    return [_sample(layout, entry, pixel_size_um) for layout, entry in entries.values()]


def _entry(path: Path) -> tuple[str, Entry]:
    """The layout of a file, and the files that belong to its field."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    suffix, name = path.suffix.lower(), path.name
    if suffix in displacement_tables.SUFFIXES:
        return "tables", Entry(name, name, table_files(path))
    if suffix == ".npy":
        table = table_of_mask(path)
        if table is not None:
            return _entry(table)
        match = COMPONENT.fullmatch(path.stem)
        if match is None:
            return "vectors", Entry(name, name, {_UNNAMED: path})
        files = component_files(path.parent)[(match["frame"] or "").strip("_-")]
        require_partners(files)
        return "components", Entry(files["u"].name, files["u"].name, files)
    if suffix not in stored_arrays.SUFFIXES:
        raise ValueError(f"{path} is of a kind that cannot be read; it must be one of {', '.join(SUFFIXES)}")
    held = array_names(path)
    found = {"arrays": "dspl" in held, "components": {"u", "v"} <= held}
    found |= {unit_name: unit_name in held for unit_name in UNITS}
    kinds = [kind for kind, there in found.items() if there]
    if not kinds:
        raise ValueError(
            f"{path} holds {', '.join(sorted(held)) or 'nothing'} but no displacement: save it as displacement_px or "
            "displacement_um, (2, y, x) with components (x, y), as u and v, or as Wang & Lin's dspl"
        )
    if len(kinds) > 1:
        raise ValueError(f"{path} holds more than one displacement, {', '.join(sorted(held))}: leave one of them")
    (kind,) = kinds
    first = {"arrays": "dspl", "components": "u"}.get(kind, kind)
    refuse_unread(path, held, first)
    if kind in UNITS:
        return "vectors", Entry(name, name, {kind: path})
    arrays = [array for array in BESIDE[first] if array in held and array not in ("brdx", "brdy")]
    return kind, Entry(name, name, dict.fromkeys(arrays, path))


def _sample(layout: str, entry: Entry, pixel_size_um: float | None) -> Sample:
    conditions = _conditions(layout, entry, pixel_size_um)
    found = read_field(layout, entry, conditions)
    values = sample_values(entry, found, conditions, periodic=layout == "components")
    return Sample(entry.sample_id, entry.group, dict(values))


def _conditions(layout: str, entry: Entry, pixel_size_um: float | None) -> Conditions:
    folder = next(iter(entry.files.values())).parent
    needed = list(NEEDED[layout])
    if _UNNAMED in entry.files:
        needed += ["axes", "displacement_unit"]
    if pixel_size_um is not None:
        # the vectors of a table are counted in its own spacing, so that no other length is needed
        needed = [] if layout == "tables" else [name for name in needed if name != "pixel_size_um"]
    conditions = read_conditions(folder, needed=needed)
    if conditions.displacement_unit == "image_px" and _UNNAMED in entry.files:
        conditions = read_conditions(folder, needed=[*needed, "image_pixel_size_um"])
    if pixel_size_um is None:
        return conditions
    image = None if layout == "tables" else conditions.image_pixel_size_um
    return conditions._replace(pixel_size_um=pixel_size_um, image_pixel_size_um=image)
