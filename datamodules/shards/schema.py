"""The shard format, version 1, as Python types: fields, manifest, names and codes. FORMAT.md says it in words.

A data set is one folder: `manifest.json` says what it holds, `index.h5` says for every sample its id, group, place
and split, and `00000.h5`, `00001.h5`, ... hold the fields. Nothing here imports h5py: reading a manifest is cheap.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SCHEMA_VERSION = 1
FORMAT_NAME = "mechanolab-shards"
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.h5"
SPLIT_CODES = {"train": 0, "val": 1, "test": 2}
UNUSED_CODE = -1
SPLIT_UNITS = ("group", "sample")
MAX_FIELD_BYTES = 2**32 - 1
"""One field of one sample is one HDF5 chunk, and HDF5 addresses at most this many bytes in a chunk."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SCHEME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SHARD_NAME = re.compile(r"[0-9]{5,}\.h5")
_INDEX_NAME = re.compile(r"index(-[0-9]+)?\.h5")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHECKSUM_LINE = re.compile(rb'"checksum": "([0-9a-f]{64})"')
_NO_CHECKSUM = "0" * 64
_DTYPES = frozenset(
    ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
)


class ShardError(ValueError):
    """A data set is missing a part, damaged, foreign or contradicts its manifest; the message names the file."""


class Field(NamedTuple):
    """What one field of every sample looks like."""

    shape: tuple[int, ...]
    """Shape of one sample; () for a scalar."""
    dtype: str
    """NumPy name, little-endian on disk: uint8 ... int64, float16 ... float64. Raw counts stay integers."""
    unit: str
    """For example `grey level`, `rad`, `um`, `Pa`; `1` for a pure number."""
    axes: str
    """One lower-case letter per axis, for example `cyx`; empty for a scalar."""

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def check_field(name: str, field: Field) -> None:
    """Raise ValueError, naming the field, when format v1 cannot hold it."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"field {name!r}: a field's name is lower-case letters, digits and underscores")
    if field.dtype not in _DTYPES:
        mend = (
            "; store a mask as uint8" if field.dtype == "bool" else f"; it must be one of {', '.join(sorted(_DTYPES))}"
        )
        raise ValueError(f"field {name!r} has dtype {field.dtype}{mend}")
    if not isinstance(field.unit, str) or not field.unit:
        raise ValueError(f"field {name!r} has no unit; use '1' for a pure number")
    letters = set(field.axes)
    if len(letters) != len(field.axes) or not all("a" <= letter <= "z" for letter in letters):
        raise ValueError(f"field {name!r} has axes {field.axes!r}; use one different lower-case letter per axis")
    if len(field.axes) != len(field.shape):
        raise ValueError(f"field {name!r} has axes {field.axes!r} but shape {field.shape}: one letter per axis")
    if any(extent < 1 for extent in field.shape):
        raise ValueError(f"field {name!r} has an empty axis in shape {field.shape}; pad it and store the length")
    if field.nbytes > MAX_FIELD_BYTES:
        raise ValueError(f"field {name!r} needs {field.nbytes} bytes per sample, more than {MAX_FIELD_BYTES}")


def check_stem(stem: str) -> None:
    """Raise ValueError when `stem` cannot name a paper's files."""
    if not _NAME.fullmatch(stem):
        raise ValueError(f"stem must be lower-case letters, digits and underscores, got {stem!r}")


def check_scheme(name: str, scheme: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the scheme, when it is not {unit: group|sample, train, val, test}.

    Args:
        name: The scheme's name, for example `default` or `fold0`.
        scheme: `unit` and the shares of `train`, `val` and `test` (a missing one is 0); they sum to at most 1,
            and what is left stays unused.
    """
    if not _SCHEME_NAME.fullmatch(name):
        raise ValueError(f"split scheme {name!r}: a scheme's name is letters, digits, '_' and '-'")
    unknown = sorted(set(scheme) - {"unit", *SPLIT_CODES})
    if unknown:
        raise ValueError(f"split scheme {name!r} has the unknown key {unknown[0]!r}; it takes unit, train, val, test")
    if scheme.get("unit") not in SPLIT_UNITS:
        raise ValueError(f"split scheme {name!r}: unit must be 'group' or 'sample', got {scheme.get('unit')!r}")
    for split in SPLIT_CODES:
        share = scheme.get(split, 0.0)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0.0 <= share <= 1.0:
            raise ValueError(f"split scheme {name!r}: {split} must be a share between 0 and 1, got {share!r}")
    total = sum(float(scheme.get(split, 0.0)) for split in SPLIT_CODES)
    if total == 0.0 or total > 1.0 + 1e-9:
        raise ValueError(f"split scheme {name!r}: the shares must sum to more than 0 and at most 1, got {total:g}")


def shard_name(number: int) -> str:
    """File name of shard `number`: `00000.h5`, `00001.h5`, ..."""
    return f"{number:05d}.h5"


def is_index_name(name: str) -> bool:
    """Whether a file of this name could be an index: `index.h5`, `index-1.h5`, `index-2.h5`, ..."""
    return _INDEX_NAME.fullmatch(name) is not None


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either the old bytes or all of the new ones, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says about a data set."""

    schema_version: int
    stem: str
    """The paper whose data these are."""
    dataset: str
    """Name of the data set, the name of its folder when it was written."""
    identity: str
    """32 hexadecimal digits that every file of this data set repeats, so that a foreign shard is noticed."""
    fields: dict[str, Field]
    group_key: str
    """What a group is, for example `cell track`: samples of one group must not be in both train and test."""
    counts: dict[str, int]
    """`samples`, `groups` and `shards`."""
    splits: dict[str, dict[str, Any]]
    """Scheme name to {unit, train, val, test, seed, samples: {...}, groups: {...}}: the shares asked for, and the
    numbers drawn, with what is in no split under `unused`."""
    index: dict[str, Any]
    """{name, bytes, sha256} of the index file; without a name it is index.h5."""
    shards: list[dict[str, Any]]
    """One {name, samples, bytes, sha256} per shard file, in order."""
    provenance: dict[str, Any]
    """How the data were made: simulator, parameters, seed and irreducible error, or converter, source and licence."""

    @property
    def index_name(self) -> str:
        """File name of the index."""
        return str(self.index.get("name", INDEX_NAME))

    @classmethod
    def read(cls, folder: Path | str) -> Manifest:
        """Read and check `manifest.json`; no other file is touched.

        Raises:
            FileNotFoundError: There is no data set in `folder`.
            ShardError: The manifest is damaged, was edited, has another schema version or contradicts itself.
        """
        path = Path(folder) / MANIFEST_NAME
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(f"no data set at {folder}: it holds no {MANIFEST_NAME}") from None
        except OSError as error:
            raise ShardError(f"{path} cannot be read: {error.strerror}") from error
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ShardError(f"{path} is not valid JSON ({error}); restore it or make the data set again") from error
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise ShardError(f"{path} has schema version {version!r}; this program reads version {SCHEMA_VERSION}")
        lines = list(_CHECKSUM_LINE.finditer(content))
        if not lines:
            raise ShardError(f"{path} has no checksum; restore it or make the data set again")
        start, stop = lines[-1].span(1)
        blank = content[:start] + _NO_CHECKSUM.encode() + content[stop:]
        if hashlib.sha256(blank).hexdigest() != document.get("checksum"):
            raise ShardError(f"{path} was edited or damaged after it was written: its checksum differs; restore it")
        try:
            manifest = cls._from_document(document)
            manifest._check()
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise ShardError(f"{path} is not a valid manifest: {reason}") from error
        return manifest

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> Manifest:
        fields = {
            name: Field(
                shape=tuple(int(extent) for extent in entry["shape"]),
                dtype=str(entry["dtype"]),
                unit=str(entry["unit"]),
                axes=str(entry["axes"]),
            )
            for name, entry in document["fields"].items()
        }
        shards = [
            {
                "name": str(entry["name"]),
                "samples": int(entry["samples"]),
                "bytes": int(entry["bytes"]),
                "sha256": str(entry["sha256"]),
            }
            for entry in document["shards"]
        ]
        name = {"name": str(document["index"]["name"])} if "name" in document["index"] else {}
        return cls(
            schema_version=int(document["schema_version"]),
            stem=str(document["stem"]),
            dataset=str(document["dataset"]),
            identity=str(document["identity"]),
            fields=fields,
            group_key=str(document["group_key"]),
            counts={name: int(document["counts"][name]) for name in ("samples", "groups", "shards")},
            splits={str(name): dict(entry) for name, entry in document["splits"].items()},
            index={**name, "bytes": int(document["index"]["bytes"]), "sha256": str(document["index"]["sha256"])},
            shards=shards,
            provenance=dict(document["provenance"]),
        )

    def _check(self) -> None:
        """Raise ValueError where the parts of the manifest contradict each other."""
        check_stem(self.stem)
        if not self.fields:
            raise ValueError("it names no field")
        for name, field in self.fields.items():
            check_field(name, field)
        for name, scheme in self.splits.items():
            check_scheme(name, {key: scheme[key] for key in ("unit", *SPLIT_CODES) if key in scheme})
            for counted in ("samples", "groups"):
                if set(scheme[counted]) != {*SPLIT_CODES, "unused"}:
                    raise ValueError(f"split scheme {name!r} must count the {counted} of train, val, test and unused")
            if sum(scheme["samples"].values()) != self.counts["samples"]:
                raise ValueError(f"split scheme {name!r} does not count {self.counts['samples']} samples")
        for number, shard in enumerate(self.shards):
            # the name goes into a path: nothing but a number may get there
            if not _SHARD_NAME.fullmatch(shard["name"]) or shard["name"] != shard_name(number):
                raise ValueError(f"shard {number} is called {shard['name']!r} instead of {shard_name(number)!r}")
            if shard["samples"] < 1 or shard["bytes"] < 1 or not _SHA256.fullmatch(shard["sha256"]):
                raise ValueError(f"the entry of shard {shard['name']} is damaged")
        if not is_index_name(self.index_name):
            raise ValueError(f"the index is called {self.index_name!r} instead of {INDEX_NAME!r} or 'index-1.h5'")
        if not _SHA256.fullmatch(self.index["sha256"]):
            raise ValueError(f"the sha256 of {self.index_name} is not one")
        if self.counts["shards"] != len(self.shards):
            raise ValueError(f"it counts {self.counts['shards']} shards and lists {len(self.shards)}")
        listed = sum(shard["samples"] for shard in self.shards)
        if self.counts["samples"] != listed or listed < 1:
            raise ValueError(f"it counts {self.counts['samples']} samples and its shards hold {listed}")
        if not 1 <= self.counts["groups"] <= listed:
            raise ValueError(f"it counts {self.counts['groups']} groups for {listed} samples")

    def write(self, folder: Path | str) -> None:
        """Write `manifest.json` into `folder` in one step, with its own checksum as the last entry.

        Raises:
            ValueError: A part contradicts another, or the provenance cannot be written as JSON.
        """
        self._check()
        document: dict[str, Any] = asdict(self)
        document["fields"] = {
            name: {"shape": list(field.shape), "dtype": field.dtype, "unit": field.unit, "axes": field.axes}
            for name, field in self.fields.items()
        }
        document["checksum"] = _NO_CHECKSUM
        try:
            text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ValueError(f"provenance cannot be written as JSON: {error}") from error
        blank = text.encode()
        digest = hashlib.sha256(blank).hexdigest()
        start, stop = list(_CHECKSUM_LINE.finditer(blank))[-1].span(1)
        replace_file(Path(folder) / MANIFEST_NAME, blank[:start] + digest.encode() + blank[stop:])
