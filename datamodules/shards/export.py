"""Export: a data set as plain files that any program opens, one NumPy or TIFF file per sample and field.

    <sample id>_<field>.npy or .tif    every field that has axes
    samples.csv                        a row per sample: id, group, every field without axes, the split of every scheme
    fields.json                        field -> shape, dtype, unit, axes, and where it is

Ids are percent-encoded in file names (`urllib.parse.unquote` gives them back). TIFF files of 8 or 16 unsigned bits or
32-bit floats with axes among t, z, c, y, x are ImageJ hyperstacks; ImageJ wants the axes in this order, so a field
(c, z, y, x) is stored (z, c, y, x), as fields.json says. All others are plain TIFF with their shape and axes in the
image description (as written and read by tifffile).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.shards.schema import SPLIT_CODES, UNUSED_CODE, Field
from datamodules.shards.stored_codes import stored_codes
from datamodules.shards.tiff_files import IMAGEJ_AXES, IMAGEJ_DTYPES, write_tiff
from datamodules.shards.workspace import Workspace, clear_disk_errors

FORMATS = ("npy", "tiff")
TABLE_NAME, FIELDS_NAME = "samples.csv", "fields.json"
_BLOCK_BYTES = 2**20
_SPLIT_NAMES = {code: split for split, code in SPLIT_CODES.items()} | {UNUSED_CODE: "unused"}


class _File(NamedTuple):
    """How the files of one field are written."""

    suffix: str
    axes: str
    order: tuple[int, ...]
    imagej: bool


def export_dataset(
    folder: Path | str,
    out: Path | str,
    *,
    file_format: Literal["npy", "tiff"] = "npy",
    fields: Sequence[str] | None = None,
    scheme: str | None = None,
    split: str | None = None,
    on_sample: Callable[[int, int], None] | None = None,
) -> int:
    """Write the samples of a data set, or of one split of it, as plain files.

    The files go to a temporary folder beside `out`, which is renamed at the end: `out` never holds half an export.

    Args:
        folder: The data set's own folder.
        out: The new folder; it must not exist yet, or be empty.
        file_format: `npy` or `tiff`.
        fields: Names of the fields to export; all when None.
        scheme: Name of a stored split scheme, together with `split`; without both, every sample.
        split: `train`, `val` or `test`.
        on_sample: Called with the number of samples written so far and of all, after each.

    Returns:
        The number of samples.

    Raises:
        FileNotFoundError: There is no data set in `folder`.
        ShardError: The data set is damaged, `out` holds something already, or the disk refuses.
        ValueError: The scheme, split, field or format does not exist, or TIFF cannot hold a field; it is named.
    """
    if file_format not in FORMATS:
        raise ValueError(f"file_format must be one of {', '.join(FORMATS)}, got {file_format!r}")
    dataset = ShardDataset(folder, scheme=scheme, split=split, fields=fields)
    files = {name: _file(name, field, file_format) for name, field in dataset.fields.items() if field.shape}
    out = Path(out).absolute()
    with closing(dataset), Workspace(out) as workspace, clear_disk_errors(out):
        _write_fields(workspace.path / FIELDS_NAME, dataset, files)
        with (workspace.path / TABLE_NAME).open("x", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream, lineterminator="\n")
            scalars = {name: field for name, field in dataset.fields.items() if not field.shape}
            schemes = list(dataset.manifest.splits)
            codes = [column[dataset.indices] for column in stored_codes(dataset, schemes).values()]
            table.writerow(
                ["sample_id", "group"]
                + [f"{name} [{field.unit}]" for name, field in scalars.items()]
                + [f"split {name}" for name in schemes]
            )
            for number, sample in enumerate(_samples(dataset)):
                for name, file in files.items():
                    path = workspace.path / f"{quote(sample.sample_id, safe='')}_{name}{file.suffix}"
                    _write_array(path, sample.fields[name], file)
                # a NumPy number's text is the shortest that gives the same number in its own precision
                table.writerow(
                    [sample.sample_id, sample.group]
                    + [str(sample.fields[name][()]) for name in scalars]
                    + [_SPLIT_NAMES[int(column[number])] for column in codes]
                )
                if on_sample is not None:
                    on_sample(number + 1, len(dataset))
        workspace.publish()
    return len(dataset)


def _samples(dataset: ShardDataset) -> Iterator[Sample]:
    rows = max(1, _BLOCK_BYTES // sum(field.nbytes for field in dataset.fields.values()))
    for start in range(0, len(dataset), rows):
        yield from dataset.__getitems__(range(start, min(start + rows, len(dataset))))


def _file(name: str, field: Field, file_format: str) -> _File:
    """How a field becomes a file; ValueError when TIFF cannot hold it."""
    order = tuple(range(len(field.shape)))
    if file_format == "npy":
        return _File(".npy", field.axes, order, imagej=False)
    mend = "export it with --format npy, or name the other fields with --fields"
    if field.dtype in ("int64", "uint64"):
        raise ValueError(f"field {name!r} is {field.dtype}, which hardly any program reads from a TIFF file; {mend}")
    if len(field.shape) < 2:
        raise ValueError(f"field {name!r} has one axis, a TIFF file needs two; {mend}")
    imagej = field.dtype in IMAGEJ_DTYPES and set("yx") <= set(field.axes) <= set(IMAGEJ_AXES)
    if imagej:
        order = tuple(sorted(order, key=lambda axis: IMAGEJ_AXES.index(field.axes[axis])))
    return _File(".tif", "".join(field.axes[axis] for axis in order), order, imagej)


def _write_array(path: Path, array: NDArray[Any], file: _File) -> None:
    try:
        if file.suffix == ".npy":
            with path.open("xb") as stream:
                np.save(stream, array, allow_pickle=False)
        else:
            write_tiff(path, array.transpose(file.order), file.axes, imagej=file.imagej)
    except FileExistsError:
        raise ValueError(
            f"two samples would share the file {path.name}; export fewer fields, or where upper and lower case count"
        ) from None


def _write_fields(path: Path, dataset: ShardDataset, files: dict[str, _File]) -> None:
    entries: dict[str, dict[str, Any]] = {}
    for name, field in dataset.fields.items():
        entries[name] = {"shape": list(field.shape), "dtype": field.dtype, "unit": field.unit, "axes": field.axes}
        if name in files:
            entries[name] |= {"files": f"*_{name}{files[name].suffix}", "axes_in_files": files[name].axes}
        else:
            entries[name] |= {"files": TABLE_NAME}
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
