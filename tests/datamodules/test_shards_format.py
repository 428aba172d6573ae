"""FORMAT.md suffices: a writer and a reader made from its words alone, without a line of ours, fit ours.

The quotes are the sentences of FORMAT.md that the code below them follows; a test checks that they still stand there.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from datamodules.batches import Sample
from datamodules.shards.lists import padded, trimmed
from datamodules.shards.reader import ShardDataset
from datamodules.shards.verify import verify_dataset
from datamodules.shards.writer import write_dataset

FORMAT = Path(__file__).resolve().parents[2] / "datamodules" / "shards" / "FORMAT.md"
CODES = {"train": 0, "val": 1, "test": 2, "unused": -1}
FIELDS: dict[str, dict[str, Any]] = {
    "image": {"shape": [1, 9, 8], "dtype": "uint16", "unit": "photon", "axes": "cyx"},
    "displacement_um": {"shape": [2, 5, 6], "dtype": "float32", "unit": "um", "axes": "cyx"},
    "beads": {"shape": [2, 3, 4, 5], "dtype": "uint8", "unit": "grey level", "axes": "czyx"},
    "cell_mask": {"shape": [9, 8], "dtype": "uint8", "unit": "mask", "axes": "yx"},
    "angle_rad": {"shape": [], "dtype": "float64", "unit": "rad", "axes": ""},
    "outline_px": {"shape": [7, 2], "dtype": "float32", "unit": "px", "axes": "nc"},
    "outline_px_length": {"shape": [], "dtype": "int32", "unit": "1", "axes": ""},
}
GROUPS = ["Zelle ä", "Zelle ä", "b", "b", "b", "c", "d", "d", "e"]
SPLITS = {"default": [0, 0, 1, 1, 1, 2, 0, 0, -1], "by_sample": [0, 2, 0, 2, 0, 2, 0, 2, 0]}
UNITS = {"default": "group", "by_sample": "sample"}
SHARDS = [4, 5]


def values(row: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(row)
    outline = np.zeros((7, 2), np.float32)
    outline[: row % 8] = rng.uniform(0, 8, (row % 8, 2))
    return {
        "image": rng.integers(0, 2**16, (1, 9, 8), dtype=np.uint16),
        "displacement_um": rng.normal(size=(2, 5, 6)).astype(np.float32),
        "beads": rng.integers(0, 256, (2, 3, 4, 5), dtype=np.uint8),
        "cell_mask": rng.integers(0, 2, (9, 8), dtype=np.uint8),
        "angle_rad": np.array(rng.uniform(0, 2 * np.pi)),
        "outline_px": outline,
        "outline_px_length": np.array(row % 8, np.int32),
    }


# -- a writer that knows FORMAT.md only --------------------------------------------------------------------------------


def write_text(holder: Any, name: str, text: str) -> None:
    # "Text is fixed-length UTF-8 of 1 to 4096 bytes, padded with NUL (an empty text is one NUL)"
    content = text.encode()
    holder.attrs.create(name, content, dtype=h5py.string_dtype("utf-8", max(1, len(content))))


def write_root(file: h5py.File, folder: Path, identity: str, **numbers: int) -> None:
    # "Root attributes of every file: `format` = `mechanolab-shards`, `schema_version`, `stem`, `dataset`, `identity`"
    texts = {"format": "mechanolab-shards", "stem": "dl_tfm", "dataset": folder.name, "identity": identity}
    for name, text in texts.items():
        write_text(file, name, text)
    for name, number in {"schema_version": 1, **numbers}.items():
        file.attrs[name] = number


def fingerprint(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_shards(folder: Path, identity: str) -> list[dict[str, Any]]:
    entries, first = [], 0
    for number, rows in enumerate(SHARDS):
        # "names are `00000.h5`, `00001.h5`, ... without a gap"
        path = folder / f"{number:05d}.h5"
        # "HDF5 1.10 layout or newer (h5py: `libver=("v110", "v110")`)"
        with h5py.File(path, "w", libver=("v110", "v110")) as file:
            # "of a shard also `shard` (its number from 0) and `samples`"
            write_root(file, folder, identity, shard=number, samples=rows)
            for name, field in FIELDS.items():
                # "one dataset per field at the root, nothing else"
                data = np.stack([values(row)[name] for row in range(first, first + rows)])
                # "Shape (samples, *shape), chunks (1, *shape), attributes `unit` and `axes`"
                chunks = (1, *field["shape"])
                # "`fletcher32` on every dataset, and optionally `lzf` on the fields"
                squeeze = "lzf" if name == "beads" else None
                dataset = file.create_dataset(name, data=data, chunks=chunks, fletcher32=True, compression=squeeze)
                write_text(dataset, "unit", field["unit"])
                write_text(dataset, "axes", field["axes"])
        # "list of {`name`, `samples`, `bytes`, `sha256`}, in order"
        entries.append({"name": path.name, "samples": rows, **fingerprint(path)})
        first += rows
    return entries


def write_index(folder: Path, identity: str) -> dict[str, Any]:
    names = list(dict.fromkeys(GROUPS))
    text = h5py.string_dtype("utf-8", 12)
    arrays = {
        "sample_id": np.array([f"bild-{row}".encode() for row in range(len(GROUPS))], text),
        "group": np.array([names.index(group) for group in GROUPS], np.int32),
        "group_name": np.array([name.encode() for name in names], text),
        "shard": np.repeat(np.arange(len(SHARDS), dtype=np.int32), SHARDS),
        "row": np.concatenate([np.arange(rows, dtype=np.int32) for rows in SHARDS]),
        # "0 train, 1 val, 2 test, -1 unused; for every scheme of the manifest"
        **{f"splits/{scheme}": np.array(codes, np.int8) for scheme, codes in SPLITS.items()},
    }
    with h5py.File(folder / "index.h5", "w", libver=("v110", "v110")) as file:
        write_root(file, folder, identity)
        for name, array in arrays.items():
            # "one-dimensional datasets, chunked as you like"
            file.create_dataset(name, data=array, chunks=(2,), fletcher32=True)
    return fingerprint(folder / "index.h5")


def write_by_the_book(folder: Path) -> None:
    folder.mkdir()
    # "32 hexadecimal digits, different for every data set; all its HDF5 files repeat them"
    identity = hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    splits: dict[str, Any] = {}
    for scheme, codes in SPLITS.items():
        held = {split: [g for g, c in zip(GROUPS, codes, strict=True) if c == code] for split, code in CODES.items()}
        # "{`train`, `val`, `test`, `unused`}, `groups`: the same, a group in two splits counts in both"
        splits[scheme] = {
            "unit": UNITS[scheme],
            "train": 0.5,
            "test": 0.25,
            "seed": 0,
            "samples": {split: len(groups) for split, groups in held.items()},
            "groups": {split: len(set(groups)) for split, groups in held.items()},
        }
    document = {
        "schema_version": 1,
        "stem": "dl_tfm",
        "dataset": folder.name,
        "identity": identity,
        "fields": FIELDS,
        "group_key": "cell",
        "counts": {"samples": len(GROUPS), "groups": len(set(GROUPS)), "shards": len(SHARDS)},
        "splits": splits,
        "index": write_index(folder, identity),
        "shards": write_shards(folder, identity),
        "provenance": {"made_by": "converter", "source": "a test", "licence": "CC0-1.0", "layout": "none"},
        # "`"checksum": "<64 hex digits>"`: sha256 of this file with these 64 digits replaced by zeros"
        "checksum": "0" * 64,
    }
    blank = json.dumps(document, ensure_ascii=False).encode()
    digest = hashlib.sha256(blank).hexdigest()
    content = blank.replace(b'"checksum": "' + b"0" * 64, b'"checksum": "' + digest.encode())
    (folder / "manifest.json").write_bytes(content)


# -- a reader that knows FORMAT.md only --------------------------------------------------------------------------------


def read_by_the_book(folder: Path) -> list[tuple[str, str, dict[str, np.ndarray]]]:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    with h5py.File(folder / "index.h5") as index:
        ids, group, names = index["sample_id"][:], index["group"][:], index["group_name"][:]
        places = zip(index["shard"][:], index["row"][:], strict=True)
        found = []
        for number, (shard, row) in enumerate(places):
            with h5py.File(folder / manifest["shards"][shard]["name"]) as file:
                fields = {name: np.asarray(file[name][row]) for name in manifest["fields"]}
            found.append((ids[number].decode(), names[group[number]].decode(), fields))
    return found


def test_every_sentence_quoted_here_stands_in_format_md() -> None:
    words = " ".join(FORMAT.read_text(encoding="utf-8").split())
    quotes = re.findall(r'^ +# "(.*)"$', inspect.getsource(sys.modules[write_text.__module__]), re.MULTILINE)
    assert len(quotes) == 14
    for quote in quotes:
        assert quote in words, quote


def test_format_md_stays_one_page() -> None:
    assert len(FORMAT.read_text(encoding="utf-8").splitlines()) <= 72


def test_a_data_set_written_from_format_md_alone_has_no_fault_and_reads_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "by_the_book"
    write_by_the_book(folder)
    (note,) = verify_dataset(folder)
    assert note.startswith("note: split scheme 'by_sample' is by sample and leaks by design")
    dataset = ShardDataset(folder)
    assert len(dataset) == len(GROUPS)
    for row, found in enumerate(dataset):
        assert (found.sample_id, found.group) == (f"bild-{row}", GROUPS[row])
        for name, expected in values(row).items():
            assert found.fields[name].dtype == expected.dtype
            assert np.array_equal(found.fields[name], expected)
        assert len(trimmed(found, "outline_px")) == row % 8
    for scheme, codes in SPLITS.items():
        for split in ("train", "test"):
            chosen = ShardDataset(folder, scheme=scheme, split=split)
            assert chosen.indices.tolist() == [row for row, code in enumerate(codes) if code == CODES[split]]


def test_a_data_set_of_ours_is_read_from_format_md_alone(tmp_path: Path) -> None:
    samples = [Sample(f"bild-{row}", GROUPS[row], values(row)) for row in range(len(GROUPS))]
    write_dataset(
        tmp_path / "ours",
        samples,
        stem="dl_tfm",
        fields={name: {"unit": field["unit"], "axes": field["axes"]} for name, field in FIELDS.items()},
        splits={"default": {"unit": "group", "train": 0.5, "test": 0.5}},
        seed=0,
        provenance={},
        shard_bytes=2500,
    )
    assert verify_dataset(tmp_path / "ours") == []
    found = read_by_the_book(tmp_path / "ours")
    assert [entry[:2] for entry in found] == [(sample.sample_id, sample.group) for sample in samples]
    for sample, (_, _, fields) in zip(samples, found, strict=True):
        assert fields.keys() == sample.fields.keys()
        for name, expected in sample.fields.items():
            assert fields[name].dtype == expected.dtype
            assert np.array_equal(fields[name], expected)


# -- any fields --------------------------------------------------------------------------------------------------------

DTYPES = [f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)] + ["float16", "float32", "float64"]


@st.composite
def sample_streams(draw: st.DrawFn) -> list[dict[str, np.ndarray]]:
    """Up to 4 samples with the same 1 to 4 fields of rank 0 to 4 and any type, any bits that are finite."""
    kinds = {}
    for name in draw(
        st.lists(st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True), min_size=1, max_size=4, unique=True)
    ):
        shape = draw(st_numpy.array_shapes(min_dims=0, max_dims=4, max_side=3))
        kinds[name] = (np.dtype(draw(st.sampled_from(DTYPES))), shape)
    finite = {"allow_nan": False, "allow_infinity": False}
    elements = {dtype: finite if dtype.kind == "f" else None for dtype, _ in kinds.values()}
    return [
        {name: draw(st_numpy.arrays(dtype, shape, elements=elements[dtype])) for name, (dtype, shape) in kinds.items()}
        for _ in range(draw(st.integers(1, 4)))
    ]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stream=sample_streams(), compression=st.sampled_from([None, "lzf"]), shard_bytes=st.sampled_from([1, 2**20]))
def test_any_fields_survive_a_round_trip_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, stream: list[dict[str, np.ndarray]], compression: Any, shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("any") / "twin"
    write_dataset(
        folder,
        [Sample(f"s{number}", f"g{number}", fields) for number, fields in enumerate(stream)],
        stem="any",
        fields={name: {"unit": "1", "axes": "nzyx"[: value.ndim]} for name, value in stream[0].items()},
        splits={},
        seed=0,
        provenance={},
        compression=compression,
        shard_bytes=shard_bytes,
    )
    assert verify_dataset(folder) == []
    for found, (_, _, plain), expected in zip(ShardDataset(folder), read_by_the_book(folder), stream, strict=True):
        for name, value in expected.items():
            for stored in (found.fields[name], plain[name]):
                assert (stored.dtype, stored.shape) == (value.dtype, value.shape)
                assert stored.tobytes() == value.tobytes()


@settings(max_examples=50, deadline=None)
@given(corners=st_numpy.arrays(np.float32, st.tuples(st.integers(0, 6), st.just(2)), elements={"allow_nan": False}))
def test_a_list_of_any_length_comes_back_as_it_was(corners: np.ndarray) -> None:
    entries, length = padded(corners, 6)
    sample = Sample("s", "g", {"outline": entries, "outline_length": length})
    assert np.array_equal(trimmed(sample, "outline"), corners)
