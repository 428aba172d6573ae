"""Adding split schemes to a data set that stands: a new index file, and one step that makes it count.

The new index is written beside the old one and waits until it is on the disk; then the manifest is replaced, which is
the moment of change; then the old index goes. A process that is killed leaves the old data set or the new one whole,
perhaps with an index that no manifest lists, which the next call removes. Shards are never touched. A lock in the
folder keeps a second call out while one is at work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.shards.index import Index, read_index, write_index
from datamodules.shards.schema import FORMAT_NAME, MANIFEST_NAME, Manifest, ShardError, is_index_name
from datamodules.shards.splits import draw_folds, draw_splits, fold_scheme, split_counts
from datamodules.shards.workspace import clear_disk_errors, settle, sync

LOCK_NAME = ".split.lock"
_TEMPORARY_MANIFEST = re.compile(rf"\.{re.escape(MANIFEST_NAME)}\.[0-9]+")


class Folds(NamedTuple):
    """A cross-validation to be drawn by `splits.draw_folds`: the schemes <name>0, <name>1, ..."""

    folds: int
    name: str = "fold"
    unit: str = "group"


def add_splits(folder: Path | str, schemes: Mapping[str, Mapping[str, Any]] | Folds, *, seed: int) -> Manifest:
    """Draw split schemes and add them to a data set.

    Args:
        folder: The data set's own folder.
        schemes: Scheme name to {`unit`: group|sample, `train`, `val`, `test`} as in `splits.draw_splits`, or folds.
        seed: Of the draws, at least 0.

    Returns:
        The new manifest.

    Raises:
        FileNotFoundError: There is no data set in `folder`.
        ValueError: A scheme is malformed, cannot be drawn, or its name is taken; it is named.
        ShardError: The manifest or the index is damaged, another process adds splits, or the disk refuses.
    """
    folder = Path(folder)
    # first of all, so that nothing is written where no data set is
    Manifest.read(folder)
    with clear_disk_errors(folder), _only_one(folder):
        manifest = Manifest.read(folder)
        index = _sound_index(folder, manifest)
        entries, codes = _draw(index, schemes, seed)
        for name in entries:
            if name in manifest.splits:
                raise ValueError(
                    f"{folder} has a split scheme {name!r} already, and schemes never change; choose another --name"
                )
        _remove_unlisted(folder, manifest)
        return _replace_index(folder, manifest, index._replace(splits=index.splits | codes), manifest.splits | entries)


def _sound_index(folder: Path, manifest: Manifest) -> Index:
    """The index with all its schemes; it will be copied, so every byte of it must be what was written."""
    path = folder / manifest.index_name
    index = read_index(folder, manifest, schemes=list(manifest.splits))
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != manifest.index["sha256"]:
        raise ShardError(f"{path} has changed since it was written: its sha256 differs; restore it")
    return index


def _draw(
    index: Index, schemes: Mapping[str, Mapping[str, Any]] | Folds, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, NDArray[np.int8]]]:
    """The manifest's entries and the codes of the new schemes."""
    groups = index.group_name[index.group]
    if isinstance(schemes, Folds):
        drawn = draw_folds(groups, schemes.folds, unit=schemes.unit, seed=seed, name=schemes.name)
        codes = {f"{schemes.name}{number}": fold for number, fold in enumerate(drawn)}
        asked: Mapping[str, Mapping[str, Any]] = dict.fromkeys(codes, fold_scheme(schemes.folds, schemes.unit))
    else:
        codes = {name: draw_splits(groups, scheme, seed=seed, name=name) for name, scheme in schemes.items()}
        asked = schemes
    entries = {name: {**asked[name], "seed": seed, **split_counts(codes[name], index.group)} for name in codes}
    return entries, codes


def _replace_index(folder: Path, manifest: Manifest, index: Index, splits: dict[str, dict[str, Any]]) -> Manifest:
    number = re.sub(r"[^0-9]", "", manifest.index_name.removesuffix(".h5"))
    name = f"index-{int(number or 0) + 1}.h5"
    root = {
        "format": FORMAT_NAME,
        "schema_version": manifest.schema_version,
        "stem": manifest.stem,
        "dataset": manifest.dataset,
        "identity": manifest.identity,
    }
    try:
        write_index(folder / name, index, root=root)
        entry = {"name": name, **settle(folder / name)}
        # the index must be in the folder for good before the manifest names it
        sync(folder)
        changed = dataclasses.replace(manifest, index=entry, splits=splits)
        changed.write(folder)
        sync(folder)
    finally:
        # whichever index the manifest now names is kept: an interruption may come before or after the change
        with contextlib.suppress(OSError, ValueError):
            _remove_unlisted(folder, Manifest.read(folder))
    return changed


def _remove_unlisted(folder: Path, manifest: Manifest) -> None:
    """Remove the indices that `manifest` does not name and manifests that were never finished."""
    for path in sorted(folder.iterdir()):
        stale = is_index_name(path.name) and path.name != manifest.index_name
        if stale or _TEMPORARY_MANIFEST.fullmatch(path.name):
            path.unlink()


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; it ends with the process that holds it, whatever happens to that."""
    path = folder / LOCK_NAME
    descriptor = _locked(path)
    # whoever held the lock removes the file: one that was opened before and locked after is no lock
    while not _is_file(path, descriptor):
        os.close(descriptor)
        descriptor = _locked(path)
    try:
        yield
    finally:
        try:
            with contextlib.suppress(OSError):
                path.unlink()
        finally:
            os.close(descriptor)


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ShardError(f"another process is adding splits to {path.parent}; wait for it or stop it") from error
        raise ShardError(
            f"{path.parent} lies on a file system without locks ({error.strerror}); copy it to another one to split it"
        ) from error
    return descriptor


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
