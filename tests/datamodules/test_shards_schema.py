"""The manifest: what is written comes back, and what was edited, damaged or is of another version is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest

from datamodules.shards.schema import Field, Manifest, ShardError, check_field

MANIFEST = Manifest(
    schema_version=1,
    stem="circular",
    dataset="twin",
    identity="0123456789abcdef0123456789abcdef",
    fields={"image": Field((1, 4, 4), "uint8", "grey level", "cyx"), "angle_rad": Field((), "float32", "rad", "")},
    group_key="cell track",
    counts={"samples": 5, "groups": 2, "shards": 2},
    splits={
        "default": {
            "unit": "group",
            "train": 0.5,
            "test": 0.5,
            "seed": 0,
            "samples": {"train": 2, "val": 0, "test": 3, "unused": 0},
            "groups": {"train": 1, "val": 0, "test": 1, "unused": 0},
        }
    },
    index={"bytes": 10, "sha256": "a" * 64},
    shards=[
        {"name": "00000.h5", "samples": 3, "bytes": 10, "sha256": "b" * 64},
        {"name": "00001.h5", "samples": 2, "bytes": 9, "sha256": "c" * 64},
    ],
    provenance={"made_by": "simulator", "note": 'says "checksum": "' + "d" * 64 + '" in words', "unit": "µm"},
)


def edited(folder: Path, old: str, new: str, *, reseal: bool) -> None:
    path = folder / "manifest.json"
    text = path.read_text(encoding="utf-8")
    assert old in text
    text = text.replace(old, new, 1)
    if reseal:
        *_, last = re.finditer(r'"checksum": "([0-9a-f]{64})"', text)
        blank = text[: last.start(1)] + "0" * 64 + text[last.end(1) :]
        digest = hashlib.sha256(blank.encode()).hexdigest()
        text = text[: last.start(1)] + digest + text[last.end(1) :]
    path.write_text(text, encoding="utf-8")


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_the_checksum_is_that_of_the_file_with_zeros_in_its_place(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    content = (tmp_path / "manifest.json").read_bytes()
    checksum = json.loads(content)["checksum"]
    assert hashlib.sha256(content.replace(checksum.encode(), b"0" * 64)).hexdigest() == checksum


def test_a_missing_data_set_is_a_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data set at"):
        Manifest.read(tmp_path / "twin")


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    edited(tmp_path, '"samples": 5', '"samples": 6', reseal=False)
    with pytest.raises(ShardError, match=r"manifest\.json was edited or damaged"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"schema_version": 1', '"schema_version": 2', "schema version 2; this program reads version 1"),
        ('"samples": 5', '"samples": 6', "does not count 6 samples"),
        ('"samples": 3', '"samples": 2', "counts 5 samples and its shards hold 4"),
        ('"shards": 2', '"shards": 3', "counts 3 shards and lists 2"),
        ('"groups": 2', '"groups": 0', "counts 0 groups"),
        ('"00001.h5"', '"../00001.h5"', "is called"),
        ('"float32"', '"object"', "has dtype object"),
        ('"cyx"', '"yx"', "one letter per axis"),
        ('"group"', '"cell"', "unit must be"),
        ('"test": 3', '"test": 4', "split scheme 'default' does not count 5 samples"),
        ('"unused": 0', '"rest": 0', "split scheme 'default' must count the samples of train, val, test and unused"),
        ('"fields"', '"feelds"', "'fields' is missing"),
        ('"bytes": 9', '"bytes": "x"', "invalid literal"),
        ('"circular"', '"../circular"', "stem must be"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_even_with_a_valid_checksum(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    MANIFEST.write(tmp_path)
    edited(tmp_path, old, new, reseal=True)
    with pytest.raises(ShardError, match=complaint) as caught:
        Manifest.read(tmp_path)
    assert "manifest.json" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version": 1}', b"[" * 100_000])
def test_what_is_no_manifest_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ShardError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


def test_provenance_that_json_cannot_hold_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="provenance"):
        dataclasses.replace(MANIFEST, provenance={"value": float("nan")}).write(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "field", "complaint"),
    [
        ("Image", Field((), "uint8", "1", ""), "lower-case"),
        ("mask", Field((2,), "bool", "1", "x"), "store a mask as uint8"),
        ("image", Field((2,), "complex64", "1", "x"), "must be one of"),
        ("image", Field((2, 2), "uint8", "1", "xx"), "different lower-case letter"),
        ("image", Field((2,), "uint8", "", "x"), "has no unit"),
        ("outline", Field((0, 2), "float32", "um", "pc"), "empty axis"),
        ("volume", Field((2**16, 2**16), "uint16", "1", "yx"), "bytes per sample"),
    ],
)
def test_a_field_that_the_format_cannot_hold_is_named(name: str, field: Field, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"field '{name}'.*{complaint}"):
        check_field(name, field)
