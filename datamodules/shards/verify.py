"""Verification: everything that can be wrong with a data set on disk, one line per fault.

Reading checks what it touches; this checks everything: sha256 of every file, links, external and virtual storage,
shapes, dtypes, chunks and filters, units and axes, every value's checksum, NaN and infinity, values against their
units, lists against their lengths, the index against the shards, and that no group lies in two splits of a scheme by
group.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from datamodules.shards.attributes import read_attribute
from datamodules.shards.index import Index, read_index
from datamodules.shards.lists import declaration_faults, length_fault, list_fields
from datamodules.shards.opening import check_root, checked_dataset, open_file
from datamodules.shards.processes import worker_pool
from datamodules.shards.ranges import unit_fault, value_fault
from datamodules.shards.remote import fetch_shard, is_remote, open_mirror
from datamodules.shards.schema import MANIFEST_NAME, Field, Manifest, ShardError, is_index_name
from datamodules.shards.splits import shared_groups, split_counts

NOTE = "note: "
"""Lines that start so are worth knowing but no fault."""
_BLOCK_BYTES = 16 * 2**20
_INDEX_DATASETS = ("sample_id", "group", "group_name", "shard", "row")


def verify_dataset(folder: Path | str, *, workers: int = 1, on_shard: Callable[[int], None] | None = None) -> list[str]:
    """Check a data set completely.

    Args:
        folder: The data set's own folder, or its URL: then every file is fetched anew and removed when it was checked.
        workers: Processes that read shards at the same time.
        on_shard: Called with the number of shards checked so far, after each.

    Returns:
        One line per fault, each naming the file; lines that start with `note: ` are not faults. No fault and no note
        is an empty list.

    Raises:
        FileNotFoundError: There is no data set in `folder`.
        ValueError: `workers` is not positive.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if is_remote(folder):
        return _verify_remote(str(folder).rstrip("/"), workers, on_shard)
    folder = Path(folder)
    try:
        manifest = Manifest.read(folder)
    except ShardError as error:
        return [str(error)]
    lines = _verify_files(folder, manifest, workers, on_shard, partial(verify_shard, folder, manifest))
    found = sorted(folder.glob("*.h5"))
    # a split that was added meanwhile has another index and removes the old one
    newer = _newer_manifest(folder, manifest) or manifest
    known = {manifest.index_name, newer.index_name, *(shard["name"] for shard in manifest.shards)}
    return lines + [_unlisted(path) for path in found if path.name not in known and os.path.lexists(path)]


def _newer_manifest(folder: Path, manifest: Manifest) -> Manifest | None:
    """The manifest that splits added since `manifest` was read have left, or None."""
    try:
        newer = Manifest.read(folder)
    except (ShardError, FileNotFoundError):
        return None
    return newer if newer.index_name != manifest.index_name else None


def _verify_remote(url: str, workers: int, on_shard: Callable[[int], None] | None) -> list[str]:
    """Check what lies at a URL, not what a mirror of it holds."""
    try:
        mirror = open_mirror(url)
        manifest = Manifest.read(mirror)
    except ShardError as error:
        return [str(error)]
    with tempfile.TemporaryDirectory(prefix=".verify-", dir=mirror.parent) as scratch:
        folder = Path(scratch)
        try:
            fetch_shard(url, folder, {**manifest.index, "name": manifest.index_name})
        except ShardError as error:
            return [str(error)]
        # files in memory exist in this process only
        workers = 1 if url.startswith("memory://") else workers
        check = partial(_verify_fetched, url, folder, manifest)
        lines = _verify_files(folder, manifest, workers, on_shard, check)
    return [line.replace(scratch, url) for line in lines]


def _verify_fetched(url: str, folder: Path, manifest: Manifest, number: int) -> list[str]:
    try:
        path = fetch_shard(url, folder, manifest.shards[number])
    except ShardError as error:
        return [str(error)]
    lines = verify_shard(folder, manifest, number)
    path.unlink()
    return lines


def _verify_files(
    folder: Path,
    manifest: Manifest,
    workers: int,
    on_shard: Callable[[int], None] | None,
    check: Callable[[int], list[str]],
) -> list[str]:
    """Check manifest, index and, by `check`, shards."""
    declared = [fault for name, field in manifest.fields.items() if (fault := unit_fault(name, field))]
    declared += declaration_faults(manifest.fields)
    lines = [f"{folder / MANIFEST_NAME}: {fault}" for fault in declared]
    lines += verify_index(folder, manifest)
    by_shard: dict[int, list[str]] = {}
    for number, found in _each_shard(len(manifest.shards), workers, check):
        by_shard[number] = found
        if on_shard is not None:
            on_shard(len(by_shard))
    for number in sorted(by_shard):
        lines += by_shard[number]
    return lines


def _unlisted(path: Path) -> str:
    if is_index_name(path.name):
        return f"{NOTE}{path} is not listed in the manifest: left by a split that was interrupted, it can be removed"
    return f"{path} is not listed in the manifest"


def _each_shard(count: int, workers: int, check: Callable[[int], list[str]]) -> Iterator[tuple[int, list[str]]]:
    if min(workers, count) == 1:
        for number in range(count):
            yield number, check(number)
        return
    with worker_pool(min(workers, count), __name__) as pool:
        futures = {pool.submit(check, number): number for number in range(count)}
        for future in as_completed(futures):
            yield futures[future], future.result()


def verify_shard(folder: Path, manifest: Manifest, number: int) -> list[str]:
    """Check one shard file; one line per fault.

    Args:
        folder: The data set's own folder.
        manifest: Of the data set.
        number: Of the shard.
    """
    entry = manifest.shards[number]
    path = folder / entry["name"]
    lines = _check_digest(path, entry["sha256"])
    try:
        with open_file(path, nbytes=entry["bytes"]) as file:
            lines += _faults(check_root, file, path, manifest, shard=number)
            lines += _foreign_objects(file, path, set(manifest.fields))
            sound = set()
            for name, field in manifest.fields.items():
                found = _faults(_check_values, file, path, name, field, entry["samples"])
                lines += found
                if not found:
                    sound.add(name)
            if not declaration_faults(manifest.fields):
                for name, length in list_fields(manifest.fields).items():
                    if {name, length} <= sound:
                        lines += _faults(_check_list, file, path, name, length, manifest.fields[name])
    except ShardError as error:
        lines.append(str(error))
    return lines


def _check_digest(path: Path, expected: str) -> list[str]:
    try:
        if path.is_symlink():
            return []  # opening refuses it with a better sentence
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return []
    return [] if found == expected else [f"{path} has changed since it was written: its sha256 differs"]


def _faults(check: Callable[..., None], *arguments: object, **named: object) -> list[str]:
    try:
        check(*arguments, **named)
    except ShardError as error:
        return [str(error)]
    return []


def _foreign_objects(group: h5py.Group, path: Path, known: set[str], prefix: str = "") -> list[str]:
    try:
        names = [prefix + name for name in group]
    except (OSError, RuntimeError, KeyError) as error:
        return [f"{path} is damaged: its contents cannot be listed ({error})"]
    return [f"{path} holds {name!r}, which the manifest does not name" for name in names if name not in known]


def _check_values(file: h5py.File, path: Path, name: str, field: Field, samples: int) -> None:
    dataset = checked_dataset(
        file, path, name, shape=(samples, *field.shape), dtype=field.dtype, chunks=(1, *field.shape)
    )
    for key, expected in (("unit", field.unit), ("axes", field.axes)):
        found = read_attribute(dataset, path, key)
        if found != expected:
            raise ShardError(f"{path}: field {name!r} has {key} {found!r}, the manifest says {expected!r}")
    rows = max(1, _BLOCK_BYTES // max(1, field.nbytes))
    for start in range(0, samples, rows):
        stop = min(start + rows, samples)
        try:
            values = dataset[start:stop]
        except (OSError, RuntimeError) as error:
            raise ShardError(
                f"{path}: field {name!r} is damaged in rows {start} to {stop - 1}: a checksum does not match ({error})"
            ) from error
        if values.dtype.kind == "f":
            bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
            if bad.any():
                row = start + int(np.argmax(bad))
                raise ShardError(f"{path}: field {name!r} of row {row} has NaN or infinite values")
        fault = value_fault(name, field, values, first_row=start)
        if fault is not None:
            raise ShardError(f"{path}: {fault}")


def _check_list(file: h5py.File, path: Path, name: str, length: str, field: Field) -> None:
    """Check a list against its lengths; both datasets were found sound."""
    rows = max(1, _BLOCK_BYTES // max(1, field.nbytes))
    for start in range(0, len(file[name]), rows):
        lengths = file[length][start : start + rows]
        fault = length_fault(name, file[name][start : start + rows], lengths, first_row=start)
        if fault is not None:
            raise ShardError(f"{path}: {fault}")


def verify_index(folder: Path, manifest: Manifest) -> list[str]:
    """Check the index against the manifest and the rules of the format; one line per fault or note.

    When it cannot be read because splits were added since the manifest was read, the new index is checked.
    """
    path = folder / manifest.index_name
    lines = _check_digest(path, manifest.index["sha256"])
    try:
        index = read_index(folder, manifest, schemes=list(manifest.splits))
        with open_file(path, nbytes=manifest.index["bytes"]) as file:
            lines += _foreign_in_index(file, path, manifest)
    except ShardError as error:
        newer = _newer_manifest(folder, manifest)
        return [*lines, str(error)] if newer is None else verify_index(folder, newer)
    lines += [f"{path}: {fault}" for fault in _index_faults(manifest, index)]
    for name, scheme in manifest.splits.items():
        lines += _split_lines(path, name, scheme, index)
    return lines


def _foreign_in_index(file: h5py.File, path: Path, manifest: Manifest) -> list[str]:
    """Objects and links of the index that the format does not know; none is followed."""
    lines = _foreign_objects(file, path, {*_INDEX_DATASETS, "splits"})
    try:
        if not file.id.links.exists(b"splits"):
            return lines
        if file.id.links.get_info(b"splits").type != h5py.h5l.TYPE_HARD:
            return [*lines, f"{path}: 'splits' is a link, which is refused"]
        splits = file["splits"]
    except (OSError, RuntimeError, KeyError) as error:
        return [*lines, f"{path}: 'splits' is damaged ({error})"]
    if not isinstance(splits, h5py.Group):
        return [*lines, f"{path}: 'splits' is not a group"]
    return lines + _foreign_objects(splits, path, {f"splits/{name}" for name in manifest.splits}, "splits/")


def _index_faults(manifest: Manifest, index: Index) -> Iterator[str]:
    sizes = [shard["samples"] for shard in manifest.shards]
    if not np.array_equal(index.shard, np.repeat(np.arange(len(sizes)), sizes)) or not np.array_equal(
        index.row, np.concatenate([np.arange(size) for size in sizes])
    ):
        yield "the samples are not stored in the order of the shards and rows"
    yield from _text_faults("sample_id", index.sample_id)
    yield from _text_faults("group_name", index.group_name)
    names, counts = np.unique(index.sample_id, return_counts=True)
    if len(names) != len(index.sample_id):
        yield f"sample id {names[np.argmax(counts)].decode('utf-8', 'replace')!r} occurs twice"
    if len(np.unique(index.group_name)) != len(index.group_name):
        yield "two groups have the same name"
    used = np.unique(index.group)
    if len(used) != len(index.group_name):
        yield f"{len(index.group_name) - len(used)} groups have no sample"
    if 1 + np.count_nonzero(np.diff(index.group)) != len(used):
        yield "the samples of a group do not follow each other"


def _text_faults(name: str, texts: NDArray[np.bytes_]) -> Iterator[str]:
    if (texts == b"").any():
        yield f"entry {int(np.argmax(texts == b''))} of dataset {name!r} is empty"
    for number, text in enumerate(texts.tolist()):
        try:
            text.decode()
        except UnicodeDecodeError:
            yield f"entry {number} of dataset {name!r} is not UTF-8: {text!r}"
            return


def _split_lines(path: Path, name: str, scheme: dict[str, object], index: Index) -> Iterator[str]:
    codes = index.splits[name]
    if any(scheme.get(key) != value for key, value in split_counts(codes, index.group).items()):
        yield f"{path}: split scheme {name!r} does not have the counts of the manifest"
    shared = shared_groups(codes, index.group)
    if not len(shared):
        return
    if scheme["unit"] == "group":
        group = index.group_name[shared[0]].decode("utf-8", "replace")
        yield (
            f"{path}: split scheme {name!r} is by group but {len(shared)} groups lie in more than one split, "
            f"for example {group!r}: test samples leak into training"
        )
    else:
        yield (
            f"{NOTE}split scheme {name!r} is by sample and leaks by design: {len(shared)} of {len(index.group_name)} "
            "groups lie in more than one split"
        )
