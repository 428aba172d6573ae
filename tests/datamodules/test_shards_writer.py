"""Writing: all or nothing, equal streams give equal bytes, and an unfit sample is named."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.shards.schema import Manifest, ShardError
from datamodules.shards.writer import write_dataset

FIELDS = {
    "counts": {"axes": "cyx", "unit": "photons"},
    "displacement_um": {"axes": "czyx", "unit": "um"},
    "outline": {"axes": "pc", "unit": "px"},
    "corners": {"axes": "", "unit": "1"},
    "angle_rad": {"axes": "", "unit": "rad"},
}
SPLITS = {
    "default": {"unit": "group", "train": 0.6, "val": 0.2, "test": 0.2},
    "patch": {"unit": "sample", "train": 0.5, "test": 0.5},
}


def sample(number: int) -> Sample:
    rng = np.random.default_rng(number)
    return Sample(
        f"zelle-ä{number:03d}",
        f"track{number // 3}",
        {
            "counts": rng.integers(0, 2**16, (1, 6, 7), dtype=np.uint16),
            "displacement_um": rng.normal(size=(3, 2, 3, 4)).astype(np.float32),
            "outline": rng.normal(size=(5, 2)),
            "corners": np.int64(number),
            "angle_rad": np.array(number / 10, np.float32),
        },
    )


def write(folder: Path, samples: Iterable[Sample] | None = None, **changes: Any) -> Manifest:
    arguments: dict[str, Any] = {
        "stem": "circular",
        "fields": FIELDS,
        "splits": SPLITS,
        "seed": 0,
        "provenance": {"made_by": "test"},
        "shard_bytes": 2000,
    }
    return write_dataset(folder, map(sample, range(20)) if samples is None else samples, **arguments | changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("compression", [None, "lzf"])
def test_fields_of_any_rank_and_type_come_back_bit_for_bit(tmp_path: Path, compression: Any) -> None:
    manifest = write(tmp_path / "twin", compression=compression)
    assert manifest == Manifest.read(tmp_path / "twin")
    assert manifest.counts == {"samples": 20, "groups": 7, "shards": 5}
    for number, found in enumerate(ShardDataset(tmp_path / "twin")):
        expected = sample(number)
        assert (found.sample_id, found.group) == (expected.sample_id, expected.group)
        for name, value in expected.fields.items():
            assert found.fields[name].dtype == value.dtype
            assert found.fields[name].shape == value.shape
            assert np.array_equal(found.fields[name], value)


def test_equal_streams_give_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a" / "twin")
    write(tmp_path / "b" / "twin")
    assert contents(tmp_path / "a" / "twin") == contents(tmp_path / "b" / "twin")


def test_shards_describe_themselves_without_the_manifest(tmp_path: Path) -> None:
    manifest = write(tmp_path / "twin")
    with h5py.File(tmp_path / "twin" / "00001.h5") as file:
        assert dict(file.attrs) == {
            "format": b"mechanolab-shards",
            "schema_version": 1,
            "stem": b"circular",
            "dataset": b"twin",
            "identity": manifest.identity.encode(),
            "shard": 1,
            "samples": 4,
        }
        for name, entry in FIELDS.items():
            assert dict(file[name].attrs) == {key: value.encode() for key, value in entry.items()}
            assert file[name].fletcher32
            assert file[name].chunks == (1, *manifest.fields[name].shape)


def test_split_schemes_are_stored_with_their_counts(tmp_path: Path) -> None:
    splits = write(tmp_path / "twin").splits
    drawn = ShardDataset(tmp_path / "twin", scheme="default", split="train")
    assert splits["default"]["samples"]["train"] == len(drawn)
    assert splits["default"]["groups"]["train"] == len(set(drawn.groups))
    assert sum(splits["default"]["samples"].values()) == 20
    assert sum(splits["default"]["groups"].values()) == 7
    assert splits["patch"]["samples"] == {"train": 10, "val": 0, "test": 10, "unused": 0}


def test_a_sample_larger_than_a_shard_gets_one_of_its_own(tmp_path: Path) -> None:
    assert write(tmp_path / "twin", shard_bytes=1).counts["shards"] == 20


def test_the_caller_hears_of_every_sample(tmp_path: Path) -> None:
    heard: list[int] = []
    write(tmp_path / "twin", on_sample=heard.append)
    assert heard == list(range(1, 21))


def changed(number: int, **values: Any) -> Sample:
    original = sample(number)
    return original._replace(fields={**original.fields, **values})


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (changed(4, angle_rad=np.float32("nan")), "field 'angle_rad' has NaN or infinite values"),
        (changed(4, outline=np.full((5, 2), np.inf)), "field 'outline' has NaN or infinite values"),
        (changed(4, counts=np.zeros((1, 6, 8), np.uint16)), r"field 'counts' is uint16 \(1, 6, 8\)"),
        (changed(4, counts=np.zeros((1, 6, 7), np.float32)), "field 'counts' is float32"),
        (changed(4, surprise=np.zeros(())), "has the fields"),
        (sample(4)._replace(sample_id="zelle-ä001"), "occurs twice"),
        (sample(4)._replace(group="track0"), "goes back to group 'track0'"),
        (sample(4)._replace(sample_id=""), "sample_id must be a text"),
    ],
)
def test_an_unfit_sample_is_named_and_nothing_is_left(tmp_path: Path, bad: Sample, complaint: str) -> None:
    samples = [sample(n) for n in range(4)] + [bad]
    with pytest.raises(ValueError, match=complaint) as caught:
        write(tmp_path / "twin", samples)
    assert not bad.sample_id or bad.sample_id in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"stem": "../x"}, "stem"),
        ({"seed": -1}, "seed"),
        ({"shard_bytes": 0}, "shard_bytes"),
        ({"compression": "gzip"}, "compression"),
        ({"splits": {"default": {"unit": "group", "train": 2.0}}}, "split scheme 'default'"),
        ({"fields": {**FIELDS, "counts": {"unit": "photons"}}}, "field 'counts' must be described by unit and axes"),
        ({"fields": {**FIELDS, "counts": {"unit": "photons", "axes": "yx"}}}, "one letter per axis"),
        ({"provenance": {"rng": np.random.default_rng(0)}}, "provenance"),
        ({"samples": []}, "no samples"),
    ],
)
def test_an_unfit_argument_is_named_and_nothing_is_left(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        write(tmp_path / "twin", **changes)
    assert not list(tmp_path.iterdir())


def test_a_stream_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[Sample]:
        yield from map(sample, range(9))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "twin", failing())
    assert not list(tmp_path.iterdir())


def test_an_existing_data_set_is_left_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "twin")
    before = contents(tmp_path / "twin")
    with pytest.raises(ShardError, match="already holds a data set"):
        write(tmp_path / "twin", seed=1)
    assert contents(tmp_path / "twin") == before


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(ShardError, match="not an empty folder"):
        write(tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "twin").mkdir()
    write(tmp_path / "twin")
    assert len(ShardDataset(tmp_path / "twin")) == 20


def test_nothing_is_visible_before_the_last_sample_and_a_second_writer_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "twin"

    def watched() -> Iterator[Sample]:
        yield from map(sample, range(15))
        assert not folder.exists()
        with pytest.raises(ShardError, match="is writing"):
            write(folder)
        yield from map(sample, range(15, 20))

    write(folder, watched())
    assert [path.name for path in tmp_path.iterdir()] == ["twin"]


def test_a_data_set_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "twin"

    def slow() -> Iterator[Sample]:
        yield from map(sample, range(20))
        folder.mkdir()
        (folder / "manifest.json").touch()

    with pytest.raises(ShardError, match="appeared meanwhile"):
        write(folder, slow())
    assert [path.name for path in tmp_path.iterdir()] == ["twin"]


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_readable_and_the_next_one_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = textwrap.dedent(
        f"""
        import sys, time
        import numpy as np
        from datamodules.batches import Sample
        from datamodules.shards.writer import write_dataset
        def samples():
            for number in range(10):
                yield Sample(f"s{{number}}", f"g{{number}}", {{"x": np.float32(number)}})
            print("ready", flush=True)
            time.sleep(60)
        write_dataset({str(tmp_path / "twin")!r}, samples(), stem="circular", splits={{}}, seed=0, provenance={{}},
                      fields={{"x": {{"unit": "1", "axes": ""}}}}, shard_bytes=8)
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        with pytest.raises(ShardError, match=f"process {writer.pid} is writing"):
            write(tmp_path / "twin")
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    stale = tmp_path / f".twin.writing-{writer.pid}"
    assert stale.is_dir()
    with pytest.raises(FileNotFoundError):
        ShardDataset(tmp_path / "twin")
    with caplog.at_level(logging.WARNING):
        write(tmp_path / "twin")
    assert str(stale) in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["twin"]


def test_a_leftover_with_this_process_number_is_removed_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stale = tmp_path / f".twin.writing-{os.getpid()}"
    stale.mkdir()
    (stale / ".lock").touch()
    write(tmp_path / "twin")
    assert "left by a writer that did not finish" in caplog.text
    assert len(ShardDataset(tmp_path / "twin")) == 20


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ShardError, match="no permission to write"):
        write(tmp_path / "twin")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(ShardError, match=r"the disk is full: cannot write .*twin"):
        write(tmp_path / "twin")
    assert not list(tmp_path.iterdir())


def test_the_manifest_names_no_place_on_this_machine(tmp_path: Path) -> None:
    write(tmp_path / "twin")
    assert str(tmp_path) not in json.dumps(json.loads((tmp_path / "twin" / "manifest.json").read_text()))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    image = np.zeros((64, 64), np.float32)

    def peak(count: int) -> int:
        samples = (Sample(f"{n}", f"{n}", {"image": image}) for n in range(count))
        tracemalloc.start()
        write_dataset(
            tmp_path / f"twin{count}", samples, stem="circular", fields={"image": {"unit": "1", "axes": "yx"}},
            splits={}, seed=0, provenance={}, shard_bytes=2**20,
        )  # fmt: skip
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    assert peak(4000) - peak(400) < 4 * 2**20  # 59 MB of images went through; ids and groups are what is kept
