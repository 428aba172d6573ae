"""Verification of what is consistent on disk but against the rules: leakage, double ids, contradictions."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.shards.resplit import add_splits
from datamodules.shards.schema import Manifest, ShardError
from datamodules.shards.splits import split_counts
from datamodules.shards.verify import verify_dataset
from datamodules.shards.writer import write_dataset

GROUP = {"unit": "group", "train": 0.5, "val": 0.25, "test": 0.25}
SAMPLE = {"unit": "sample", "train": 0.5, "val": 0.0, "test": 0.5}


def write(folder: Path, splits: Mapping[str, Mapping[str, Any]]) -> Path:
    samples = (Sample(f"cell{n:02d}", f"track{n // 3}", {"frame": np.float32(n)}) for n in range(24))
    fields = {"frame": {"axes": "", "unit": "1"}}
    write_dataset(folder, samples, stem="circular", fields=fields, splits=splits, seed=0, provenance={}, shard_bytes=24)
    return folder


def edit_index(folder: Path, name: str, place: int, value: Any, *, counts: bool = True) -> None:
    """Change one entry of the index, and the manifest with it."""
    path = folder / "index.h5"
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        file[name][place] = value
        group = file["group"][:]
        codes = {scheme: file[f"splits/{scheme}"][:] for scheme in file["splits"]}
    manifest = Manifest.read(folder)
    splits = {
        scheme: entry | (split_counts(codes[scheme], group) if counts else {})
        for scheme, entry in manifest.splits.items()
    }
    reseal_index(folder, splits=splits)


def reseal_index(folder: Path, **changes: Any) -> None:
    """Give the manifest the size and checksum that the index has now."""
    content = (folder / "index.h5").read_bytes()
    index = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    dataclasses.replace(Manifest.read(folder), index=index, **changes).write(folder)


def test_a_group_in_two_splits_of_a_scheme_by_group_is_a_fault(tmp_path: Path) -> None:
    folder = write(tmp_path / "twin", {"default": GROUP})
    assert verify_dataset(folder) == []
    with h5py.File(folder / "index.h5") as file:
        train = int(np.flatnonzero(file["splits/default"][:] == 0)[0])
        group = file["group_name"][file["group"][train]].decode()
    edit_index(folder, "splits/default", train, 2)
    (line,) = verify_dataset(folder)
    assert "split scheme 'default' is by group but 1 groups lie in more than one split" in line
    assert group in line
    assert str(folder / "index.h5") in line


def test_unused_samples_of_a_group_are_no_leak(tmp_path: Path) -> None:
    folder = write(tmp_path / "twin", {"default": GROUP})
    edit_index(folder, "splits/default", 0, -1)
    assert verify_dataset(folder) == []


def test_a_scheme_by_sample_is_noted_as_leaking_by_design(tmp_path: Path) -> None:
    folder = write(tmp_path / "twin", {"default": GROUP, "patch_fold0": SAMPLE})
    (line,) = verify_dataset(folder)
    assert line.startswith("note: split scheme 'patch_fold0' is by sample and leaks by design")


@pytest.mark.parametrize(
    ("name", "place", "value", "complaint"),
    [
        ("sample_id", 3, "cell00", "sample id 'cell00' occurs twice"),
        ("group_name", 1, "track0", "two groups have the same name"),
        ("group", 0, 5, "the samples of a group do not follow each other"),
        ("row", 0, 1, "not stored in the order of the shards and rows"),
        ("splits/default", 0, 9, "has a code that is no split"),
    ],
)
def test_an_index_against_the_rules_is_a_fault(
    tmp_path: Path, name: str, place: int, value: Any, complaint: str
) -> None:
    folder = write(tmp_path / "twin", {"default": GROUP})
    edit_index(folder, name, place, value, counts="splits" not in name)
    lines = verify_dataset(folder)
    assert any(complaint in line and "index.h5" in line for line in lines), lines


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("sample_id", b"\xff\xfe", "entry 0 of dataset 'sample_id' is not UTF-8"),
        ("group_name", b"\xff\xfe", "entry 0 of dataset 'group_name' is not UTF-8"),
        ("sample_id", b"", "entry 0 of dataset 'sample_id' is empty"),
        ("group_name", b"", "entry 0 of dataset 'group_name' is empty"),
    ],
)
def test_a_text_of_the_index_that_is_none_is_a_fault(tmp_path: Path, name: str, value: bytes, complaint: str) -> None:
    folder = write(tmp_path / "twin", {"default": GROUP})
    edit_index(folder, name, 0, value)
    (line,) = verify_dataset(folder)
    assert complaint in line
    assert str(folder / "index.h5") in line
    if value:
        dataset = ShardDataset(folder)
        for read in (lambda: dataset[0], lambda: dataset.sample_ids if name == "sample_id" else dataset.groups):
            with pytest.raises(ShardError, match=rf"index\.h5: dataset '{name}' holds a text that is not UTF-8"):
                read()


def test_links_and_foreign_objects_in_the_index_are_faults(tmp_path: Path) -> None:
    folder = write(tmp_path / "twin", {"default": GROUP})
    with h5py.File(folder / "index.h5", "r+", libver=("v110", "v110")) as file:
        file["more"] = h5py.ExternalLink("/etc/passwd", "/")
        file["splits/gone"] = h5py.SoftLink("/nowhere")
    reseal_index(folder)
    path = folder / "index.h5"
    assert verify_dataset(folder) == [
        f"{path} holds 'more', which the manifest does not name",
        f"{path} holds 'splits/gone', which the manifest does not name",
    ]


def test_a_link_in_place_of_the_splits_is_a_fault(tmp_path: Path) -> None:
    folder = write(tmp_path / "twin", {})
    with h5py.File(folder / "index.h5", "r+", libver=("v110", "v110")) as file:
        file["splits"] = h5py.SoftLink("/nowhere")
    reseal_index(folder)
    assert verify_dataset(folder) == [f"{folder / 'index.h5'}: 'splits' is a link, which is refused"]


@pytest.mark.parametrize("late", [False, True], ids=["before the index is read", "after"])
def test_a_split_added_while_a_data_set_is_verified_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    folder = write(tmp_path / "twin", {"default": GROUP})
    more = {"more": {"unit": "group", "train": 0.5, "test": 0.5}}
    if late:
        heard: list[int] = []

        def add_once(number: int) -> None:
            if not heard:
                add_splits(folder, more, seed=0)
            heard.append(number)

        assert verify_dataset(folder, on_shard=add_once) == []
        assert len(heard) == 4
    else:
        stale, read = [Manifest.read(folder)], Manifest.read
        add_splits(folder, more, seed=0)
        monkeypatch.setattr(Manifest, "read", lambda place: stale.pop() if stale else read(place))
        assert verify_dataset(folder) == []
        assert not stale
    assert not (folder / "index.h5").exists()
    (folder / "index-7.h5").touch()
    (line,) = verify_dataset(folder)
    assert line.startswith("note: ")
    assert "index-7.h5 is not listed in the manifest" in line


def test_counts_of_a_split_that_differ_from_the_manifest_are_a_fault(tmp_path: Path) -> None:
    folder = write(tmp_path / "twin", {"default": GROUP})
    edit_index(folder, "splits/default", 0, -1, counts=False)
    assert any("does not have the counts of the manifest" in line for line in verify_dataset(folder))


@pytest.mark.slow
def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    folder = write(tmp_path / "twin", {"default": GROUP})
    (folder / "00001.h5").write_bytes(b"not an HDF5 file")
    (folder / "00003.h5").unlink()
    heard: list[int] = []
    lines = verify_dataset(folder, workers=2, on_shard=heard.append)
    assert lines == verify_dataset(folder)
    assert [name in line for name, line in zip(("00001.h5", "00001.h5", "00003.h5"), lines, strict=True)] == [True] * 3
    assert heard == [1, 2, 3, 4]


def test_a_folder_without_data_set_is_no_fault_but_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data set at"):
        verify_dataset(tmp_path)
    with pytest.raises(ValueError, match="workers"):
        verify_dataset(tmp_path, workers=0)
