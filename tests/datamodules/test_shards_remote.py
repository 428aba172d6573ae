"""Remote data sets: what is fetched and when, that nothing damaged or stale is read, one sentence for every failure."""

from __future__ import annotations

import errno
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datamodules.shards.reader import ShardDataset
from datamodules.shards.remote import folder_in, is_remote, open_mirror
from datamodules.shards.resplit import add_splits
from datamodules.shards.schema import SPLIT_CODES, Manifest, ShardError
from datamodules.shards.stored_codes import stored_codes
from datamodules.shards.verify import verify_dataset

pytestmark = pytest.mark.usefixtures("remote_cache")
Put = Callable[[Path, str], None]
Write = Callable[..., Path]
NAMES = [f"{number:05d}.h5" for number in range(4)]


def check_all(dataset: ShardDataset, truth: Path) -> None:
    """Every sample is that of the local data set `truth`."""
    expected = ShardDataset(truth)
    assert len(dataset) == len(expected) == 12
    for found, wanted in zip(dataset, expected, strict=True):
        assert found.sample_id == wanted.sample_id
        assert np.array_equal(found.fields["image"], wanted.fields["image"])


def shards_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*/*.h5") if path.name != "index.h5")


def refusal(url: str) -> str:
    """The sentence with which reading all of a data set is refused."""
    with pytest.raises(ShardError) as caught:
        list(ShardDataset(url))
    text = str(caught.value)
    assert url.split("://")[1] in text
    assert "\n" not in text
    return text


def spoil(url: str, name: str, content: bytes | None) -> None:
    """Replace or remove a file in memory."""
    memory = fsspec.filesystem("memory")
    if content is None:
        memory.rm(f"{url}/{name}")
    else:
        memory.pipe_file(f"{url}/{name}", content)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("s3://bucket/data", "s3://bucket/data/circular/twin"),
        ("s3://bucket/data/", "s3://bucket/data/circular/twin"),
        ("memory://", "memory://circular/twin"),
        ("file:///", "file:///circular/twin"),
    ],
)
def test_folders_are_joined_to_a_url(root: str, expected: str) -> None:
    assert is_remote(root)
    assert folder_in(root, "circular", "twin") == expected


def test_local_folders_stay_paths() -> None:
    assert not is_remote("data/circular")
    assert not is_remote(Path("/data"))
    assert folder_in("/data", "circular", "twin") == Path("/data/circular/twin")


# -- fetching ---------------------------------------------------------------------------------------------------------


def test_a_shard_is_fetched_when_it_is_first_needed(memory_url: str, remote_cache: Path, original: Path) -> None:
    dataset = ShardDataset(memory_url)
    assert shards_in(remote_cache) == []
    assert dataset[4].fields["frame"] == 4
    assert shards_in(remote_cache) == [NAMES[1]]
    check_all(dataset, original)
    (mirror,) = remote_cache.iterdir()
    for name in (*NAMES, "index.h5", "manifest.json"):
        assert (mirror / name).read_bytes() == (original / name).read_bytes()
    assert not list(mirror.glob("*.partial"))


def test_a_file_url_and_a_trailing_slash_are_the_same_data(original: Path, remote_cache: Path) -> None:
    check_all(ShardDataset(f"file://{original}"), original)
    check_all(ShardDataset(f"file://{original}/"), original)
    assert len(list(remote_cache.iterdir())) == 1


def test_what_is_there_is_asked_for_once(original: Path, server: Any) -> None:
    for _ in range(3):
        check_all(ShardDataset(server.url), original)
    assert server.asked == {"manifest.json": 3, "index.h5": 1, **dict.fromkeys(NAMES, 1)}


def test_a_mirror_works_without_the_shards_at_the_url(original: Path, memory_url: str) -> None:
    check_all(ShardDataset(memory_url), original)
    for name in NAMES:
        fsspec.filesystem("memory").rm(f"{memory_url}/{name}")
    check_all(ShardDataset(memory_url), original)


def test_a_truncated_file_of_the_mirror_is_fetched_again(original: Path, memory_url: str, remote_cache: Path) -> None:
    check_all(ShardDataset(memory_url), original)
    (shard,) = remote_cache.glob(f"*/{NAMES[2]}")
    shard.write_bytes(shard.read_bytes()[:-1])
    (index,) = remote_cache.glob("*/index.h5")
    index.write_bytes(b"")
    check_all(ShardDataset(memory_url), original)


def test_a_read_only_mirror_is_read(original: Path, memory_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_all(ShardDataset(memory_url), original)

    def refuse(*arguments: Any, **named: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name in ("utime", "replace", "rename"):
        monkeypatch.setattr(os, name, refuse)
    check_all(ShardDataset(memory_url), original)


# -- changes at the URL -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed_from", [0, 3])
def test_a_changed_data_set_is_read_anew(
    original: Path, memory_url: str, put: Put, write_twin: Write, tmp_path: Path, changed_from: int
) -> None:
    check_all(ShardDataset(memory_url), original)
    changed = write_twin(tmp_path / "twin", changed_from=changed_from)
    # two data sets that differ behind the first shard only have one identity
    assert (Manifest.read(changed).identity == Manifest.read(original).identity) is (changed_from == 3)
    put(changed, memory_url)
    check_all(ShardDataset(memory_url), changed)


def test_who_reads_the_old_data_set_is_told_that_it_was_replaced(
    memory_url: str, put: Put, write_twin: Write, tmp_path: Path
) -> None:
    dataset = ShardDataset(memory_url)
    before = dataset[0].fields["image"].copy()
    put(write_twin(tmp_path / "twin", changed_from=0), memory_url)
    assert np.array_equal(dataset[0].fields["image"], before)
    with pytest.raises(ShardError, match=r"00003\.h5 is not what the manifest says .*open the data set anew"):
        dataset[11]


def test_the_codes_of_all_schemes_come_from_the_mirror(original: Path, server: Any) -> None:
    dataset = ShardDataset(server.url)
    before = dict(server.asked)
    codes = stored_codes(dataset, ["default"])["default"]
    assert server.asked == before
    for split, code in SPLIT_CODES.items():
        selected = ShardDataset(original, scheme="default", split=split)
        assert np.array_equal(selected.indices, np.flatnonzero(codes == code))


def test_added_splits_bring_a_new_index_and_no_shard(original: Path, server: Any, tmp_path: Path) -> None:
    check_all(ShardDataset(server.url), original)
    halves = {"unit": "group", "train": 0.5, "val": 0.5}
    add_splits(tmp_path / "served" / "twin", {"halves": halves}, seed=1)
    train, val = (ShardDataset(server.url, scheme="halves", split=split) for split in ("train", "val"))
    assert len(train) + len(val) == 12
    check_all(ShardDataset(server.url), original)
    assert all(server.asked[name] == 1 for name in NAMES)
    assert verify_dataset(server.url) == []


def test_another_index_of_the_same_name_and_size_replaces_the_old_one(memory_url: str) -> None:
    mirror = open_mirror(memory_url)
    index = mirror / "index.h5"
    good = index.read_bytes()
    index.write_bytes(bytes(len(good)))
    (mirror / "manifest.json").write_bytes((mirror / "manifest.json").read_bytes() + b"\n")
    assert open_mirror(memory_url) == mirror
    assert index.read_bytes() == good


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["00001.h5", "index.h5"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_file_is_refused_and_not_kept(
    memory_url: str, original: Path, remote_cache: Path, name: str, damage: str
) -> None:
    content = (original / name).read_bytes()
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    spoil(memory_url, name, {"flipped": flipped, "truncated": content[:-7], "missing": None}[damage])
    found = refusal(memory_url)
    expected = {
        "flipped": "(its sha256 differs)",
        "truncated": f"({len(content) - 7} bytes, not {len(content)})",
        "missing": "is missing; copy the data set there again",
    }
    assert f"{memory_url}/{name}" in found
    assert expected[damage] in found
    assert not list(remote_cache.glob(f"*/*{name}*[!k]"))
    assert [line for line in verify_dataset(memory_url) if name in line] == verify_dataset(memory_url) == [found]


def test_a_url_without_data_set_is_an_error_of_its_own(server: Any, remote_cache: Path) -> None:
    for url in (f"memory://{uuid.uuid4().hex}", f"{server.url}/nowhere"):
        with pytest.raises(FileNotFoundError, match=rf"^no data set at {url}: it holds no manifest\.json$"):
            open_mirror(url)
    assert not remote_cache.exists()


def test_a_damaged_manifest_names_the_url_and_makes_no_mirror(memory_url: str, remote_cache: Path) -> None:
    spoil(memory_url, "manifest.json", b"<html>please log in</html>")
    assert f"{memory_url}/manifest.json is not valid JSON" in refusal(memory_url)
    assert verify_dataset(memory_url) == [refusal(memory_url)]
    assert not remote_cache.exists()


def test_a_failure_that_passes_is_tried_again(original: Path, server: Any) -> None:
    server.failures = {"manifest.json": [503], NAMES[0]: [500, 429]}
    check_all(ShardDataset(server.url), original)
    assert (server.asked["manifest.json"], server.asked[NAMES[0]]) == (2, 3)


def test_a_failure_that_stays_is_told(server: Any) -> None:
    server.failures = {NAMES[0]: [503, 503, 503, 503]}
    assert "cannot be fetched: 503" in refusal(server.url)
    assert server.asked[NAMES[0]] == 3
    server.failures = {"manifest.json": [403, 403]}
    assert "check the credentials in fsspec's configuration" in refusal(server.url)
    assert server.asked["manifest.json"] == 2


def test_a_server_that_is_down_is_told(server: Any) -> None:
    dataset = ShardDataset(server.url)
    server.shutdown()
    server.server_close()
    with pytest.raises(ShardError, match=r"00000\.h5 cannot be fetched: .*check the address and the network"):
        dataset[0]


@pytest.mark.parametrize(
    ("url", "package", "complaint"),
    [
        ("s3://bucket/twin", "s3fs", r"^s3:// needs s3fs: pip install 'mechanolab\[remote\]'$"),
        ("gs://bucket/twin", "gcsfs", r"^gs:// needs gcsfs: pip install gcsfs$"),
        ("s4://bucket/twin", None, "s4"),
        ("zip://twin::http://host/a.zip", None, "URLs that contain :: are not supported"),
    ],
)
def test_a_protocol_that_cannot_be_used_is_told(
    url: str, package: str | None, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package is not None:
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ShardError, match=complaint):
        open_mirror(url)


def test_a_disk_that_refuses_is_told(memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ShardDataset(memory_url)

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MemoryFileSystem, "get_file", full)
    with pytest.raises(ShardError, match=r"the disk is full: cannot write .*00000\.h5; free space or choose"):
        dataset[0]
    monkeypatch.undo()
    (tmp_path / "file").touch()
    monkeypatch.setenv("MECHANOLAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ShardError, match=r"file/cache.* cannot be written"):
        open_mirror(memory_url)
