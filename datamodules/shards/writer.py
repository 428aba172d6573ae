"""Writing a data set: `write_dataset` turns a stream of samples into a folder of shards, all or nothing.

Memory holds one shard and the ids, however long the stream. A shard is filled in memory and written in one go, so
its datasets have their final shape; equal streams give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from datamodules.batches import Sample
from datamodules.shards.attributes import write_attributes
from datamodules.shards.index import LIBRARY_VERSIONS, Index, write_index
from datamodules.shards.lists import declaration_faults, length_fault, list_fields
from datamodules.shards.ranges import unit_fault, value_fault
from datamodules.shards.schema import (
    FORMAT_NAME,
    INDEX_NAME,
    SCHEMA_VERSION,
    Field,
    Manifest,
    check_field,
    check_scheme,
    check_stem,
    shard_name,
)
from datamodules.shards.splits import check_codes, draw_splits, split_counts
from datamodules.shards.workspace import Workspace, clear_disk_errors, settle

SHARD_BYTES = 64 * 2**20


def write_dataset(
    folder: Path | str,
    samples: Iterable[Sample],
    *,
    stem: str,
    fields: Mapping[str, Mapping[str, str]],
    splits: Mapping[str, Mapping[str, Any]],
    seed: int,
    provenance: Mapping[str, Any],
    group_key: str = "group",
    codes: Mapping[str, NDArray[np.int8]] | None = None,
    shard_bytes: int = SHARD_BYTES,
    compression: Literal["lzf"] | None = None,
    on_sample: Callable[[int], None] | None = None,
) -> Manifest:
    """Write a data set in format v1 and return its manifest.

    The samples go to a temporary folder beside `folder`, which is renamed at the end: `folder` never holds half a
    data set. Shapes and dtypes are those of the first sample.

    Args:
        folder: The data set's own folder; it must not exist yet, or be empty. Its name becomes the data set's.
        samples: Samples in an order in which those of one group follow each other.
        stem: The paper whose data these are, for example `circular`.
        fields: Field name to {`unit`, `axes`}: exactly the fields that every sample has.
        splits: Scheme name to {`unit`: group|sample, `train`, `val`, `test`}, see `splits.draw_splits`.
        seed: Of the split draws.
        provenance: How the data were made; must be representable as JSON.
        group_key: What a group is, for example `cell track`.
        codes: Scheme name to (samples,) int8, 0 train, 1 val, 2 test, -1 unused, in the order of the samples: schemes
            of `splits` that are given and not drawn. Their seed in the manifest is null.
        shard_bytes: Size at which a shard is full; a sample larger than this gets a shard of its own.
        compression: None, or `lzf` for half the size and a tenth of the reading rate.
        on_sample: Called with the number of samples taken so far, after each.

    Raises:
        ValueError: An argument or a sample is unfit: other fields, shape or dtype, NaN or infinity, a value that its
            unit does not allow, a list that does not fit its length, an id used twice, a group that comes back; the
            sample is named; `codes` of no scheme, of another length, or that break their scheme's unit.
        ShardError: `folder` holds something already, another process is writing it, or the disk refuses.
    """
    folder = Path(folder).absolute()
    check_stem(stem)
    for name, entry in fields.items():
        if set(entry) != {"unit", "axes"}:
            raise ValueError(f"field {name!r} must be described by unit and axes, got {', '.join(sorted(entry))}")
    for name, scheme in splits.items():
        check_scheme(name, scheme)
    codes = {name: np.asarray(given) for name, given in (codes or {}).items()}
    for name in codes:
        if name not in splits:
            raise ValueError(f"codes are given for split scheme {name!r}, which splits does not name")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be positive, got {shard_bytes}")
    if compression not in (None, "lzf"):
        raise ValueError(f"compression must be None or 'lzf', got {compression!r}")
    header = {
        "stem": stem,
        "dataset": folder.name,
        "fields": {name: dict(entry) for name, entry in fields.items()},
        "splits": {name: dict(scheme) for name, scheme in splits.items()},
        "seed": seed,
        "provenance": dict(provenance),
    }
    if codes:
        header["codes"] = {name: hashlib.sha256(given.tobytes()).hexdigest() for name, given in codes.items()}
    try:
        # the copy keeps what JSON keeps: tuples become lists before the manifest is returned, not only on disk
        header = json.loads(json.dumps(header, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance cannot be written as JSON: {error}") from error

    with Workspace(folder) as workspace, closing(_Stream(workspace, header, shard_bytes, compression)) as stream:
        for count, sample in enumerate(samples, start=1):
            stream.add(sample)
            if on_sample is not None:
                on_sample(count)
        manifest = stream.finish(group_key, codes)
        with clear_disk_errors(folder):
            manifest.write(workspace.path)
        workspace.publish()
    return manifest


class _Stream:
    """Checks samples, collects them into shards, and keeps what the index needs."""

    def __init__(self, workspace: Workspace, header: dict[str, Any], shard_bytes: int, compression: str | None) -> None:
        self._path = workspace.path
        self._folder = workspace.folder
        self._header = header
        self._shard_bytes = shard_bytes
        self._compression = compression
        self._fields: dict[str, Field] = {}
        self._lists: dict[str, str] = {}
        self._buffers: dict[str, NDArray[Any]] = {}
        self._filled = 0
        self._identity = ""
        self._shards: list[dict[str, Any]] = []
        self._settling = ThreadPoolExecutor(1)
        self._settled: Future[dict[str, Any]] | None = None
        self._ids: dict[bytes, None] = {}
        self._groups: dict[bytes, int] = {}
        self._group = array("i")

    def add(self, sample: Sample) -> None:
        """Take one sample; raises ValueError, naming it, when it does not fit."""
        arrays = {name: np.asarray(value) for name, value in sample.fields.items()}
        wanted: dict[str, Any] = self._header["fields"]
        if arrays.keys() != wanted.keys():
            raise ValueError(f"sample {sample.sample_id!r} has the fields {sorted(arrays)}, not {sorted(wanted)}")
        if not self._fields:
            self._begin(arrays)
        for name, value in arrays.items():
            field = self._fields[name]
            if value.shape != field.shape or value.dtype.name != field.dtype:
                raise ValueError(
                    f"sample {sample.sample_id!r}: field {name!r} is {value.dtype} {value.shape}, "
                    f"the first sample's was {field.dtype} {field.shape}"
                )
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ValueError(f"sample {sample.sample_id!r}: field {name!r} has NaN or infinite values")
            fault = value_fault(name, field, value)
            if fault is not None:
                raise ValueError(f"sample {sample.sample_id!r}: {fault}")
        for name, length in self._lists.items():
            fault = length_fault(name, arrays[name][None], arrays[length][None])
            if fault is not None:
                raise ValueError(f"sample {sample.sample_id!r}: {fault}")
        self._register(sample)
        for name, value in arrays.items():
            self._buffers[name][self._filled] = value
        self._filled += 1
        if self._filled == len(next(iter(self._buffers.values()))):
            self._flush()

    def _begin(self, arrays: dict[str, NDArray[Any]]) -> None:
        for name, value in arrays.items():
            entry = self._header["fields"][name]
            field = Field(value.shape, value.dtype.name, entry["unit"], entry["axes"])
            check_field(name, field)
            fault = unit_fault(name, field)
            if fault is not None:
                raise ValueError(fault)
            self._fields[name] = field
        for fault in declaration_faults(self._fields):
            raise ValueError(fault)
        self._lists = list_fields(self._fields)
        rows = max(1, self._shard_bytes // sum(field.nbytes for field in self._fields.values()))
        self._buffers = {
            name: np.empty((rows, *field.shape), np.dtype(field.dtype).newbyteorder("<"))
            for name, field in self._fields.items()
        }

    def _register(self, sample: Sample) -> None:
        identifier, group = _text("sample_id", sample.sample_id), _text("group", sample.group)
        if identifier in self._ids:
            raise ValueError(f"sample id {sample.sample_id!r} occurs twice; ids are unique in a data set")
        number = self._groups.setdefault(group, len(self._groups))
        if number != len(self._groups) - 1:
            raise ValueError(
                f"sample {sample.sample_id!r} goes back to group {sample.group!r}; the samples of a group must follow "
                "each other"
            )
        self._ids[identifier] = None
        self._group.append(number)

    def _flush(self) -> None:
        """Write the collected samples as one shard."""
        number, rows = len(self._shards), self._filled
        if number == 0:
            self._identity = self._name_the_data_set(rows)
        path = self._path / shard_name(number)
        with clear_disk_errors(self._folder):
            with h5py.File(path, "x", libver=LIBRARY_VERSIONS, locking=False) as file:
                write_attributes(file, self._root() | {"shard": number, "samples": rows})
                for name, field in self._fields.items():
                    dataset = file.create_dataset(
                        name,
                        data=self._buffers[name][:rows],
                        chunks=(1, *field.shape),
                        compression=self._compression,
                        fletcher32=True,
                    )
                    write_attributes(dataset, {"unit": field.unit, "axes": field.axes})
            self._collect()
            # the disk and the checksum of one shard are waited for while the next one fills
            self._settled = self._settling.submit(settle, path)
        self._shards.append({"name": path.name, "samples": rows})
        self._filled = 0

    def _collect(self) -> None:
        """Complete the entry of the last shard: wait until it is on the disk."""
        if self._settled is not None:
            self._shards[-1] |= self._settled.result()

    def close(self) -> None:
        """Wait for what runs in the background."""
        self._settling.shutdown()

    def _name_the_data_set(self, rows: int) -> str:
        """A digest of the description and of the first shard: what another data set is most unlikely to share."""
        digest = hashlib.sha256(json.dumps(self._header, sort_keys=True).encode())
        for identifier in self._ids:
            digest.update(identifier + b"\0")
        for name in sorted(self._buffers):
            digest.update(self._buffers[name][:rows].data)
        return digest.hexdigest()[:32]

    def _root(self) -> dict[str, Any]:
        return {
            "format": FORMAT_NAME,
            "schema_version": SCHEMA_VERSION,
            "stem": self._header["stem"],
            "dataset": self._header["dataset"],
            "identity": self._identity,
        }

    def finish(self, group_key: str, given: Mapping[str, NDArray[np.int8]]) -> Manifest:
        """Write the last shard and the index; raises ValueError when there was no sample or a split is unfit."""
        if not self._ids:
            raise ValueError("there are no samples to write")
        group_name = np.array(list(self._groups))
        group = np.array(self._group, dtype=np.int32)
        seed: int = self._header["seed"]
        codes: dict[str, NDArray[np.int8]] = {}
        splits: dict[str, dict[str, Any]] = {}
        for name, scheme in self._header["splits"].items():
            if name in given:
                check_codes(given[name], group, unit=scheme["unit"], name=name)
                codes[name] = given[name]
            else:
                codes[name] = draw_splits(group_name[group], scheme, seed=seed, name=name)
            splits[name] = scheme | {"seed": None if name in given else seed} | split_counts(codes[name], group)
        if self._filled:
            self._flush()
        with clear_disk_errors(self._folder):
            self._collect()
        sizes = [shard["samples"] for shard in self._shards]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        index = Index(
            sample_id=np.array(list(self._ids)),
            group=group,
            group_name=group_name,
            shard=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
            row=np.concatenate([np.arange(stop - start, dtype=np.int32) for start, stop in pairwise(starts)]),
            splits=codes,
        )
        path = self._path / INDEX_NAME
        with clear_disk_errors(self._folder):
            write_index(path, index, root=self._root())
            fingerprint = settle(path)
        return Manifest(
            schema_version=SCHEMA_VERSION,
            stem=self._header["stem"],
            dataset=self._header["dataset"],
            identity=self._identity,
            fields=self._fields,
            group_key=group_key,
            counts={"samples": len(group), "groups": len(group_name), "shards": len(sizes)},
            splits=splits,
            index=fingerprint,
            shards=self._shards,
            provenance=self._header["provenance"],
        )


def _text(name: str, value: str) -> bytes:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{name} must be a text that is not empty and holds no NUL, got {value!r}")
    return value.encode()
