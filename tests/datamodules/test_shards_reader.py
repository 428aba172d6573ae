"""Reading: the right sample for every index, in any order, from any process, and a clear error for a foreign file."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.shards.resplit import add_splits
from datamodules.shards.schema import Manifest, ShardError
from datamodules.shards.writer import write_dataset

COUNT = 30
FIELDS = {"image": {"axes": "cyx", "unit": "grey level"}, "frame": {"axes": "", "unit": "1"}}
SPLITS = {"default": {"unit": "group", "train": 0.6, "val": 0.2, "test": 0.2}, "all": {"unit": "group", "train": 1.0}}


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (1, 5, 4), dtype=np.uint8)


def sample(number: int) -> Sample:
    return Sample(f"cell{number:03d}", f"track{number // 3}", {"image": image(number), "frame": np.float32(number)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 samples in 5 shards."""
    folder = tmp_path_factory.mktemp("data") / "twin"
    arguments: dict[str, Any] = {"stem": "circular", "fields": FIELDS, "splits": SPLITS, "seed": 0, "provenance": {}}
    write_dataset(folder, map(sample, range(COUNT)), shard_bytes=6 * 24, **arguments)
    assert Manifest.read(folder).counts["shards"] == 5
    return folder


def check(found: Sample, number: int) -> None:
    assert (found.sample_id, found.group) == (f"cell{number:03d}", f"track{number // 3}")
    assert np.array_equal(found.fields["image"], image(number))
    assert found.fields["frame"] == number
    assert found.fields["frame"].shape == ()


def numbers(samples: list[Sample]) -> list[int]:
    return [int(found.fields["frame"]) for found in samples]


def test_every_index_gives_its_sample(folder: Path) -> None:
    dataset = ShardDataset(folder)
    assert len(dataset) == COUNT
    for number in range(COUNT):
        check(dataset[number], number)
    check(dataset[-1], COUNT - 1)
    check(dataset[np.int64(3)], 3)


@pytest.mark.parametrize(
    "indices",
    [
        list(range(COUNT)),
        list(range(COUNT))[::-1],
        np.random.default_rng(0).permutation(COUNT).tolist(),
        [4, 5, 6, 7, 5, 6, 4, 4, 29, 0],
        [11],
        [],
    ],
)
def test_batches_come_in_the_order_asked_for(folder: Path, indices: list[int]) -> None:
    found = ShardDataset(folder).__getitems__(indices)
    assert len(found) == len(indices)
    for one, number in zip(found, indices, strict=True):
        check(one, number)


def test_samples_may_be_changed_without_changing_the_next_read(folder: Path) -> None:
    dataset = ShardDataset(folder)
    dataset[3].fields["image"][:] = 0
    check(dataset[3], 3)


@pytest.mark.parametrize("index", [COUNT, -COUNT - 1])
def test_an_index_out_of_range_is_an_index_error(folder: Path, index: int) -> None:
    with pytest.raises(IndexError, match="out of range"):
        ShardDataset(folder)[index]


def test_splits_divide_the_samples_by_whole_groups(folder: Path) -> None:
    splits = {split: ShardDataset(folder, scheme="default", split=split) for split in ("train", "val", "test")}
    indices = np.concatenate([dataset.indices for dataset in splits.values()])
    assert sorted(indices) == list(range(COUNT))
    groups = [set(dataset.groups) for dataset in splits.values()]
    assert sum(map(len, groups)) == 10
    for dataset in splits.values():
        assert dataset.indices.dtype == np.int64
        for position, number in enumerate(dataset.indices):
            check(dataset[position], number)
        assert dataset.sample_ids.tolist() == [f"cell{number:03d}" for number in dataset.indices]


def test_only_the_fields_asked_for_are_read(folder: Path) -> None:
    dataset = ShardDataset(folder, fields=["frame"])
    assert dataset[7].fields.keys() == {"frame"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"scheme": "fold0", "split": "train"}, r"split scheme 'fold0' is not in .*; it has default, all"),
        ({"scheme": "default", "split": "dev"}, "split must be train, val or test"),
        ({"scheme": "all", "split": "test"}, "split 'test' of scheme 'all' in .* is empty"),
        ({"scheme": "default"}, "belong together"),
        ({"split": "train"}, "belong together"),
        ({"fields": ["angle"]}, r"field 'angle' is not in .*; it holds image, frame"),
        ({"fields": []}, "at least one field"),
        ({"max_open_files": 0}, "max_open_files"),
    ],
)
def test_a_request_that_cannot_be_met_names_what_there_is(
    folder: Path, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        ShardDataset(folder, **arguments)


def test_a_missing_folder_is_a_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data set at"):
        ShardDataset(tmp_path / "nothing")


def open_files(folder: Path) -> int:
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor of this very listing
            targets.append(str(descriptor.readlink()))
    return sum(str(folder) in target for target in targets)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files through /proc")
def test_files_are_opened_on_first_use_and_no_more_than_allowed(folder: Path) -> None:
    gc.collect()
    before = open_files(folder)
    dataset = ShardDataset(folder, max_open_files=2)
    assert open_files(folder) == before
    dataset.__getitems__(list(range(COUNT)))
    assert open_files(folder) == before + 2 * 2  # a descriptor and a map each
    assert numbers(dataset.__getitems__(list(range(COUNT))[::-1])) == list(range(COUNT))[::-1]
    dataset.close()
    assert open_files(folder) == before
    check(dataset[0], 0)


def test_a_data_set_in_use_can_be_pickled(folder: Path) -> None:
    dataset = ShardDataset(folder, scheme="default", split="train")
    expected = numbers(dataset.__getitems__([0, 1]))
    assert len(dataset.sample_ids) == len(dataset)
    copy = pickle.loads(pickle.dumps(dataset))
    assert numbers(copy.__getitems__([0, 1])) == expected


def as_arrays(samples: list[Sample]) -> list[tuple[str, np.ndarray]]:
    return [(one.sample_id, one.fields["image"]) for one in samples]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_what_the_parent_reads(folder: Path, method: str) -> None:
    dataset = ShardDataset(folder)
    dataset.__getitems__([0, 29])  # handles are open before the workers start
    loader = DataLoader(
        dataset, batch_size=7, num_workers=2 if method == "fork" else 1, collate_fn=as_arrays,
        multiprocessing_context=multiprocessing.get_context(method),
    )  # fmt: skip
    found = [item for batch in loader for item in batch]
    assert [sample_id for sample_id, _ in found] == [f"cell{number:03d}" for number in range(COUNT)]
    for number, (_, array) in enumerate(found):
        assert np.array_equal(array, image(number))
    check(dataset[12], 12)


def test_samples_collate_into_tensors(folder: Path) -> None:
    batch = next(iter(DataLoader(ShardDataset(folder), batch_size=4)))
    assert batch.fields["image"].shape == (4, 1, 5, 4)
    assert torch.equal(batch.fields["frame"], torch.arange(4.0))


def test_opening_reads_no_shard(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "twin"
    copy.mkdir()
    for name in ("manifest.json", "index.h5"):
        (copy / name).write_bytes((folder / name).read_bytes())
    dataset = ShardDataset(copy, scheme="default", split="val")
    assert len(dataset.groups) == len(dataset)
    with pytest.raises(ShardError, match=r"0000\d\.h5 cannot be opened"):
        dataset[0]


# -- in memory, and files that change under the reader ----------------------------------------------------------------


def test_a_selection_that_fits_is_held_in_memory(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "twin"
    shutil.copytree(folder, copy)
    bytes_of_all = COUNT * 24
    assert not ShardDataset(copy, memory_bytes=bytes_of_all - 1).in_memory
    dataset = ShardDataset(copy, memory_bytes=bytes_of_all)
    assert dataset.in_memory
    for path in copy.glob("0*.h5"):
        path.unlink()
    order = np.random.default_rng(1).permutation(COUNT).tolist()
    for number, found in zip(order, dataset.__getitems__(order), strict=True):
        check(found, number)
        found.fields["image"][:] = 0  # a copy: the next read is not changed
    check(dataset[-1], COUNT - 1)
    with pytest.raises(ValueError, match="memory_bytes must be at least 0"):
        ShardDataset(folder, memory_bytes=-1)


def test_what_is_held_in_memory_is_read_again_where_it_is_unpickled(folder: Path) -> None:
    dataset = ShardDataset(folder, scheme="default", split="train", memory_bytes=2**30)
    content = pickle.dumps(dataset)
    assert numbers(list(pickle.loads(content))) == numbers(list(dataset))


def test_forked_workers_share_what_is_held_in_memory(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "twin"
    shutil.copytree(folder, copy)
    dataset = ShardDataset(copy, memory_bytes=2**30)
    for path in copy.glob("0*.h5"):
        path.unlink()
    loader = DataLoader(
        dataset, batch_size=7, num_workers=2, collate_fn=as_arrays,
        multiprocessing_context=multiprocessing.get_context("fork"),
    )  # fmt: skip
    for number, (_, array) in enumerate(item for batch in loader for item in batch):
        assert np.array_equal(array, image(number))


def shard_of(folder: Path, number: int) -> Path:
    return folder / Manifest.read(folder).shards[number]["name"]


def test_a_file_cut_off_after_it_was_read_is_an_error_and_not_a_crash(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "twin"
    shutil.copytree(folder, copy)
    dataset = ShardDataset(copy)
    check(dataset[0], 0)
    with shard_of(copy, 0).open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(ShardError, match=r"00000\.h5: row 0 cannot be read.*changed or cut off while it was in use"):
        dataset[0]


def test_a_file_of_the_same_size_that_changed_while_it_was_open_is_an_error(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "twin"
    shutil.copytree(folder, copy)
    dataset = ShardDataset(copy)
    check(dataset[0], 0)  # its checksum is not compared again
    path = shard_of(copy, 0)
    with path.open("r+b") as stream:
        stream.seek(path.read_bytes().find(image(0).tobytes()))
        stream.write(b"\0\1\2")
    os.utime(path, ns=(0, 0))
    with pytest.raises(ShardError, match=r"00000\.h5: row 0 cannot be read.*changed or cut off while it was in use"):
        dataset[0]


def test_a_file_that_changed_while_it_was_closed_is_checked_anew(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "twin"
    shutil.copytree(folder, copy)
    dataset = ShardDataset(copy, max_open_files=1)
    check(dataset[0], 0)
    check(dataset[COUNT - 1], COUNT - 1)  # closes shard 0
    content = bytearray(shard_of(copy, 0).read_bytes())
    place = content.find(image(0).tobytes())
    content[place + 3] ^= 1
    shard_of(copy, 0).write_bytes(content)
    os.utime(shard_of(copy, 0), (0, 0))
    with pytest.raises(ShardError, match=r"00000\.h5.*checksum does not match"):
        dataset[0]
    dataset.close()
    content[place + 3] ^= 1
    shard_of(copy, 0).write_bytes(content)
    check(dataset[0], 0)
    check(dataset[COUNT - 1], COUNT - 1)
    shard_of(copy, 0).unlink()
    with pytest.raises(ShardError, match=r"00000\.h5 cannot be opened"):
        dataset[0]


def test_compressed_and_plain_files_give_the_same(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"stem": "circular", "fields": FIELDS, "splits": {}, "seed": 0, "provenance": {}}
    write_dataset(tmp_path / "lzf", map(sample, range(COUNT)), shard_bytes=6 * 24, compression="lzf", **arguments)
    dataset = ShardDataset(tmp_path / "lzf", max_open_files=2)
    for order in (list(range(COUNT)), np.random.default_rng(2).permutation(COUNT).tolist()):
        for number, found in zip(order, dataset.__getitems__(order), strict=True):
            check(found, number)


def test_splits_added_while_a_data_set_is_opened_do_no_harm(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "twin"
    shutil.copytree(folder, copy)
    stale = Manifest.read(copy)
    add_splits(copy, {"more": {"unit": "group", "train": 0.5, "test": 0.5}}, seed=0)
    read, answers = Manifest.read, [stale]
    monkeypatch.setattr(Manifest, "read", lambda place: answers.pop() if answers else read(place))
    dataset = ShardDataset(copy)
    assert not answers
    assert "more" in dataset.manifest.splits
    check(dataset[5], 5)
