"""Remote data sets among processes: one fetch for all, no connection across a fork, the bound, verification."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.http import HTTPFileSystem
from torch.utils.data import DataLoader

from datamodules.shards.reader import ShardDataset
from datamodules.shards.remote import fetch_shard, open_mirror
from datamodules.shards.schema import Manifest, ShardError
from datamodules.shards.verify import verify_dataset

pytestmark = [pytest.mark.usefixtures("remote_cache"), pytest.mark.slow]
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


# -- processes and connections ----------------------------------------------------------------------------------------


def read_images(dataset: ShardDataset, truth: Path) -> None:
    check_all(dataset, truth)
    os._exit(0)


def test_processes_that_need_the_same_shard_fetch_it_once(original: Path, server: Any) -> None:
    dataset = ShardDataset(server.url)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=read_images, args=(dataset, original)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert all(server.asked[name] == 1 for name in NAMES)


@pytest.mark.parametrize("kind", ["http", "memory"])
def test_workers_fetch_after_their_parent_did(original: Path, server: Any, memory_url: str, kind: str) -> None:
    dataset = ShardDataset(server.url if kind == "http" else memory_url)
    assert dataset[0].fields["frame"] == 0
    loader = DataLoader(
        dataset, batch_size=2, num_workers=2, collate_fn=list, multiprocessing_context="fork", timeout=60
    )
    frames = [int(sample.fields["frame"]) for batch in loader for sample in batch]
    assert frames == list(range(12))
    check_all(ShardDataset(server.url), original)


def test_no_connection_outlives_a_call(server: Any) -> None:
    def alive() -> list[object]:
        # by type: asking a lazy object for its class may import something
        return [one for one in gc.get_objects() if type(one) is HTTPFileSystem]

    gc.collect()
    gc.disable()
    try:
        mirror = open_mirror(server.url)
        server.failures = {NAMES[0]: [403]}
        with pytest.raises(ShardError) as kept:
            fetch_shard(server.url, mirror, Manifest.read(mirror).shards[0])
        with pytest.raises(FileNotFoundError):
            open_mirror(f"{server.url}/nowhere")
        assert alive() == []
        assert "403" in str(kept.value)
    finally:
        gc.enable()


# -- the bound of the cache -------------------------------------------------------------------------------------------


def test_the_least_recently_used_shards_make_room(
    memory_url: str, original: Path, remote_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (original / NAMES[0]).stat().st_size
    monkeypatch.setenv("MECHANOLAB_CACHE_BYTES", str(3 * size))
    mirror = open_mirror(memory_url)
    entries = Manifest.read(mirror).shards
    for age, entry in zip((300, 200, 100), entries, strict=False):
        path = fetch_shard(memory_url, mirror, entry)
        os.utime(path.with_name(f".{path.name}.lock"), (time.time() - age,) * 2)
    fetch_shard(memory_url, mirror, entries[0])  # now used more recently than the second
    fetch_shard(memory_url, mirror, entries[3])
    assert shards_in(remote_cache) == [NAMES[0], NAMES[2], NAMES[3]]
    # what was asked for a moment ago may be about to be opened: only the third is old enough
    fetch_shard(memory_url, mirror, entries[1])
    assert shards_in(remote_cache) == [NAMES[0], NAMES[1], NAMES[3]]
    fetch_shard(memory_url, mirror, entries[2])
    assert shards_in(remote_cache) == NAMES
    check_all(ShardDataset(memory_url), original)


def test_a_shard_that_is_open_is_read_on_after_it_was_removed(
    original: Path, memory_url: str, remote_cache: Path
) -> None:
    check_all(dataset := ShardDataset(memory_url), original)
    for path in remote_cache.glob("*/0*.h5"):
        path.unlink()
    check_all(dataset, original)


def test_a_shard_that_left_the_cache_after_it_was_closed_is_fetched_again(
    original: Path, server: Any, remote_cache: Path
) -> None:
    dataset = ShardDataset(server.url, max_open_files=1)
    check_all(dataset, original)
    (first,) = remote_cache.glob(f"*/{NAMES[0]}")
    first.unlink()
    check_all(dataset, original)
    assert [server.asked[name] for name in NAMES] == [2, 1, 1, 1]
    lock = first.with_name(f".{first.name}.lock")
    os.utime(lock, (time.time() - 300,) * 2)
    assert dataset[0].fields["frame"] == 0
    assert lock.stat().st_mtime > time.time() - 60  # to be taken up again is to be used


def test_a_bound_that_is_no_number_is_told(memory_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHANOLAB_CACHE_BYTES", "5G")
    with pytest.raises(ShardError, match="MECHANOLAB_CACHE_BYTES must be a whole number of bytes, got '5G'"):
        open_mirror(memory_url)


# -- verification -----------------------------------------------------------------------------------------------------


def test_verification_looks_at_the_url_and_not_at_the_mirror(
    memory_url: str, original: Path, remote_cache: Path
) -> None:
    check_all(ShardDataset(memory_url), original)
    assert verify_dataset(memory_url) == []
    fsspec.filesystem("memory").pipe_file(f"{memory_url}/{NAMES[2]}", (original / NAMES[1]).read_bytes())
    check_all(ShardDataset(memory_url), original)
    (line,) = verify_dataset(memory_url)
    assert line.startswith(f"{memory_url}/{NAMES[2]} is not what the manifest says")
    assert len(list(remote_cache.iterdir())) == 1


def test_several_processes_verify_what_one_does(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "twin"
    shutil.copytree(original, folder)
    (folder / NAMES[3]).unlink()
    lines = verify_dataset(f"file://{folder}", workers=2)
    assert (
        lines
        == verify_dataset(f"file://{folder}")
        == [f"file://{folder}/{NAMES[3]} is missing; copy the data set there again"]
    )
