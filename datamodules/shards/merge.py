"""Merging: several data sets of one paper become one, with the splits that they share.

A sample keeps its split: what a network was trained on before the merge is never tested after it. So that no group is
shared by training and test, ids and groups must differ between the sources, by themselves or by a prefix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.shards.schema import SPLIT_CODES, Field, Manifest
from datamodules.shards.stored_codes import stored_codes
from datamodules.shards.writer import write_dataset

MADE_BY = "merge"
DEFAULT_SPLITS = {"default": {"unit": "group", "train": 0.8, "val": 0.1, "test": 0.1}}
"""Drawn when the sources share no split scheme and there are groups enough."""
_BLOCK_BYTES = 2**20


class Merge(NamedTuple):
    """What a merge will write; every check of the sources has been passed."""

    sources: list[ShardDataset]
    prefixes: list[str]
    """What goes before the ids and groups of each source."""
    splits: dict[str, dict[str, Any]]
    """Scheme name to {unit, train, val, test}: shared by all sources, or else DEFAULT_SPLITS."""
    codes: dict[str, NDArray[np.int8]]
    """Scheme name to (samples,): the sources' own codes, one source after the other."""
    notes: list[str]
    """One line per split scheme that is not kept, and one when none is left."""
    provenance: dict[str, Any]

    @property
    def samples(self) -> int:
        """How many there will be."""
        return sum(len(source) for source in self.sources)


def plan_merge(folders: Sequence[Path | str], *, prefix: bool = False) -> Merge:
    """Check that data sets can be merged and say what will come of it; writes nothing.

    Args:
        folders: The data sets' own folders, two or more, in the order in which their samples will stand.
        prefix: Put `<dataset>_` before ids and groups, `<dataset>-1_`, `<dataset>-2_` where data sets share a name.

    Raises:
        FileNotFoundError: A folder holds no data set.
        ShardError: A manifest or an index is damaged.
        ValueError: Fewer than two data sets, the same one twice, another stem, group key or field, or an id or a group
            that occurs in two of them; both folders are named.
    """
    if len(folders) < 2:
        raise ValueError(f"a merge needs at least two data sets, got {len(folders)}")
    sources = [ShardDataset(folder) for folder in folders]
    for first, second in combinations(sources, 2):
        if not _identities(first.manifest).isdisjoint(_identities(second.manifest)):
            raise ValueError(f"{first.folder} and {second.folder} hold the same data set; merge each only once")
    for other in sources[1:]:
        difference = _difference(sources[0].manifest, other.manifest)
        if difference is not None:
            raise ValueError(f"{sources[0].folder} and {other.folder} cannot be merged: {difference}")
    prefixes = _prefixes(sources) if prefix else [""] * len(sources)
    _refuse_shared("sample id", [source.sample_ids for source in sources], sources, prefixes)
    _refuse_shared("group", [np.unique(source.groups) for source in sources], sources, prefixes)
    splits, codes, notes = _shared_splits(sources)
    return Merge(sources, prefixes, splits, codes, notes, _provenance(sources, prefixes))


def write_merge(
    merge: Merge,
    folder: Path | str,
    *,
    provenance: Mapping[str, Any] | None = None,
    on_sample: Callable[[int], None] | None = None,
) -> Manifest:
    """Write the merged data set and return its manifest; memory holds one shard and the ids.

    Args:
        merge: From `plan_merge`.
        folder: The new data set's own folder; it must not exist yet, or be empty.
        provenance: Entries to add to the merge's own.
        on_sample: Called with the number of samples written so far, after each.

    Raises:
        ShardError: `folder` holds something already, the disk refuses, or a source is damaged.
        ValueError: A sample is unfit for format v1 (see `writer.write_dataset`).
    """
    first = merge.sources[0].manifest
    return write_dataset(
        folder,
        _samples(merge),
        stem=first.stem,
        fields={name: {"unit": field.unit, "axes": field.axes} for name, field in first.fields.items()},
        splits=merge.splits,
        seed=0,
        provenance={**merge.provenance, **(provenance or {})},
        group_key=first.group_key,
        codes=merge.codes,
        on_sample=on_sample,
    )


def _samples(merge: Merge) -> Iterator[Sample]:
    for source, prefix in zip(merge.sources, merge.prefixes, strict=True):
        rows = max(1, _BLOCK_BYTES // sum(field.nbytes for field in source.fields.values()))
        for start in range(0, len(source), rows):
            for sample in source.__getitems__(range(start, min(start + rows, len(source)))):
                yield sample._replace(sample_id=prefix + sample.sample_id, group=prefix + sample.group)
        source.close()


def _identities(manifest: Manifest) -> set[str]:
    """Of the data set and of all that were merged into it."""
    found, waiting = {manifest.identity}, [manifest.provenance]
    while waiting:
        provenance = waiting.pop()
        for source in provenance.get("sources", []) if provenance.get("made_by") == MADE_BY else []:
            found.add(source["identity"])
            waiting.append(source["provenance"])
    return found


def _difference(one: Manifest, other: Manifest) -> str | None:
    """The first thing in which two data sets differ that must be equal, None when there is none."""
    for what in ("stem", "group_key"):
        left, right = getattr(one, what), getattr(other, what)
        if left != right:
            return f"{what} is {left!r} in the first and {right!r} in the second"
    for name in {**one.fields, **other.fields}:
        for manifest, which in ((one, "first"), (other, "second")):
            if name not in manifest.fields:
                return f"the {which} has no field {name!r}"
        for what in Field._fields:
            left, right = getattr(one.fields[name], what), getattr(other.fields[name], what)
            if left != right:
                return f"field {name!r} has {what} {left!r} in the first and {right!r} in the second"
    return None


def _prefixes(sources: Sequence[ShardDataset]) -> list[str]:
    names = [source.manifest.dataset for source in sources]
    seen: Counter[str] = Counter()
    prefixes = []
    for name in names:
        seen[name] += 1
        prefixes.append(f"{name}_" if names.count(name) == 1 else f"{name}-{seen[name]}_")
    return prefixes


def _refuse_shared(
    what: str, names: Sequence[NDArray[np.str_]], sources: Sequence[ShardDataset], prefixes: Sequence[str]
) -> None:
    """Raise ValueError when a name, with its prefix, occurs in two sources."""
    for i, j in combinations(range(len(sources)), 2):
        longer, shorter = sorted((i, j), key=lambda number: len(prefixes[number]), reverse=True)
        if not prefixes[longer].startswith(prefixes[shorter]):
            continue
        # the shorter prefix is the beginning of the longer one, so only the rest can still tell names apart
        rest = prefixes[longer].removeprefix(prefixes[shorter])
        shared = set(np.char.add(rest, names[longer]).tolist()).intersection(names[shorter].tolist())
        if shared:
            name = prefixes[shorter] + min(shared)
            mend = (
                "make one of them again under another name"
                if any(prefixes)
                else "use --prefix to put each data set's name before its ids and groups, if they are different things"
            )
            raise ValueError(f"{what} {name!r} occurs in {sources[i].folder} and in {sources[j].folder}; {mend}")


def _shared_splits(
    sources: Sequence[ShardDataset],
) -> tuple[dict[str, dict[str, Any]], dict[str, NDArray[np.int8]], list[str]]:
    """The schemes that all sources have with one unit, their codes, and a line for each that is not kept."""
    splits: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for name in {name: None for source in sources for name in source.manifest.splits}:
        entries = [source.manifest.splits.get(name) for source in sources]
        held = [entry for entry in entries if entry is not None]
        if len(held) < len(sources):
            without = sources[entries.index(None)].folder
            notes.append(f"split scheme {name!r} is not kept: {without} has none of that name")
        elif len({entry["unit"] for entry in held}) > 1:
            notes.append(f"split scheme {name!r} is not kept: it is by group in one data set and by sample in another")
        else:
            splits[name] = {"unit": held[0]["unit"], **_shares(held)}
    stored = [stored_codes(source, list(splits)) for source in sources] if splits else []
    codes = {name: np.concatenate([columns[name] for columns in stored]) for name in splits}
    groups = sum(source.manifest.counts["groups"] for source in sources)
    if not splits and groups < len(SPLIT_CODES):
        notes.append(f"the data sets share no split scheme, and {groups} groups are too few to draw one: there is none")
    elif not splits:
        splits = {name: dict(scheme) for name, scheme in DEFAULT_SPLITS.items()}
        notes.append("the data sets share no split scheme: 'default' is drawn by group, 0.8 train, 0.1 val, 0.1 test")
    return splits, codes, notes


def _shares(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The shares that all sources asked for, or else the shares that came of it."""
    asked = [{split: float(entry.get(split, 0.0)) for split in SPLIT_CODES} for entry in entries]
    if all(shares == asked[0] for shares in asked):
        return asked[0]
    total = sum(sum(entry["samples"].values()) for entry in entries)
    return {split: sum(entry["samples"][split] for entry in entries) / total for split in SPLIT_CODES}


def _provenance(sources: Sequence[ShardDataset], prefixes: Sequence[str]) -> dict[str, Any]:
    manifests = [source.manifest for source in sources]
    licences = [str(manifest.provenance.get("licence", "not stated")) for manifest in manifests]
    provenance: dict[str, Any] = {
        "made_by": MADE_BY,
        "sources": [
            {"dataset": manifest.dataset, "identity": manifest.identity, "provenance": manifest.provenance}
            for manifest in manifests
        ],
        "prefixes": list(prefixes),
        # a merge of merges has several in one already
        "licence": "; ".join(dict.fromkeys(part for licence in licences for part in licence.split("; "))),
    }
    errors = [manifest.provenance.get("irreducible_error") for manifest in manifests]
    if errors[0] is not None and all(error == errors[0] for error in errors):
        provenance["irreducible_error"] = errors[0]
    return provenance
