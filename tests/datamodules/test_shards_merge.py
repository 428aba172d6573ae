"""Merging: every sample comes over bit for bit with its split, and nothing can leak from training to test."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batches import Sample
from datamodules.shards.merge import plan_merge, write_merge
from datamodules.shards.reader import ShardDataset
from datamodules.shards.resplit import Folds, add_splits
from datamodules.shards.schema import Manifest, ShardError
from datamodules.shards.stored_codes import stored_codes
from datamodules.shards.verify import NOTE, verify_dataset
from datamodules.shards.writer import write_dataset

pytestmark = pytest.mark.slow

FIELDS = {"image": {"axes": "cyx", "unit": "grey level"}, "angle_rad": {"axes": "", "unit": "rad"}}
GROUP = {"unit": "group", "train": 0.5, "val": 0.25, "test": 0.25}
SAMPLE = {"unit": "sample", "train": 0.5, "test": 0.5}


def sample(number: int, label: str, *, size_px: int = 5, dtype: str = "uint8") -> Sample:
    rng = np.random.default_rng([number, *label.encode()])
    image = rng.integers(0, 255, (1, size_px, size_px)).astype(dtype)
    fields = {"image": image, "angle_rad": np.float32(rng.uniform(0, 6))}
    return Sample(f"{label}cell{number:03d}", f"{label}track{number // 3}", fields)


def write(folder: Path, label: str, *, count: int = 24, **changes: Any) -> Path:
    picture = {key: changes.pop(key) for key in ("size_px", "dtype") if key in changes}
    arguments: dict[str, Any] = {
        "stem": "circular",
        "fields": FIELDS,
        "splits": {"default": GROUP},
        "seed": 0,
        "provenance": {"made_by": "test", "licence": "CC0-1.0", "irreducible_error": {"metric": "m", "value": 1.0}},
        "shard_bytes": 200,
        "group_key": "cell track",
    }
    write_dataset(folder, (sample(n, label, **picture) for n in range(count)), **arguments | changes)
    return folder


def merged(folders: list[Path], out: Path, **options: Any) -> tuple[Manifest, list[str]]:
    plan = plan_merge(folders, **options)
    return write_merge(plan, out), plan.notes


def split_of(folder: Path, scheme: str) -> dict[str, int]:
    dataset = ShardDataset(folder)
    return dict(zip(dataset.sample_ids.tolist(), stored_codes(dataset, [scheme])[scheme].tolist(), strict=True))


def test_stored_codes_are_the_splits_of_the_reader(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "a", splits={"part": {"unit": "group", "train": 0.5, "test": 0.25}})
    codes = stored_codes(ShardDataset(folder, scheme="part", split="test"), ["part"])["part"]
    assert set(codes) == {0, 2, -1}
    for split, code in (("train", 0), ("test", 2)):
        assert np.array_equal(ShardDataset(folder, scheme="part", split=split).indices, np.flatnonzero(codes == code))


def test_schemes_added_after_a_data_set_was_opened_do_not_disturb_its_codes(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "a")
    dataset = ShardDataset(folder)
    before = stored_codes(dataset, ["default"])["default"]
    add_splits(folder, {"patch": SAMPLE}, seed=1)
    after = stored_codes(dataset, ["default", "patch"])
    assert np.array_equal(after["default"], before)
    assert set(after["patch"]) == {0, 2}
    with pytest.raises(ShardError, match="'splits/nowhere' is missing"):
        stored_codes(dataset, ["nowhere"])


def test_every_sample_comes_over_and_keeps_its_split(tmp_path: Path) -> None:
    splits = {"default": GROUP, "patch": SAMPLE}
    first = write(tmp_path / "a", "a", splits=splits)
    second = write(tmp_path / "b", "b", count=30, splits=splits, seed=1)
    manifest, notes = merged([first, second], tmp_path / "out")
    assert notes == []
    assert manifest == Manifest.read(tmp_path / "out")
    assert manifest.counts["samples"] == 54
    assert manifest.counts["groups"] == 18
    expected = [sample(n, "a") for n in range(24)] + [sample(n, "b") for n in range(30)]
    for found, wanted in zip(ShardDataset(tmp_path / "out"), expected, strict=True):
        assert (found.sample_id, found.group) == (wanted.sample_id, wanted.group)
        for name, value in wanted.fields.items():
            assert np.array_equal(found.fields[name], value)
            assert found.fields[name].dtype == value.dtype
    for scheme in splits:
        assert split_of(tmp_path / "out", scheme) == split_of(first, scheme) | split_of(second, scheme)
    assert manifest.splits["default"] | {"samples": 0, "groups": 0} == GROUP | {"seed": None, "samples": 0, "groups": 0}
    assert (manifest.stem, manifest.group_key) == ("circular", "cell track")
    assert [line for line in verify_dataset(tmp_path / "out") if not line.startswith(NOTE)] == []


def test_splits_that_were_added_later_are_kept_too(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, name) for name in "abc"]
    for folder in folders:
        add_splits(folder, Folds(3), seed=5)
    manifest, notes = merged(folders, tmp_path / "out")
    assert list(manifest.splits) == ["default", "fold0", "fold1", "fold2"]
    assert notes == []
    assert verify_dataset(tmp_path / "out") == []


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(3, 20), min_size=2, max_size=4),
    st.lists(st.sampled_from(["", "same"]), min_size=2, max_size=4),
    st.integers(0, 100),
)
def test_no_group_is_ever_in_two_splits_and_no_trained_sample_is_tested(
    tmp_path_factory: pytest.TempPathFactory, groups: list[int], schemes: list[str], seed: int
) -> None:
    root = tmp_path_factory.mktemp("merge")
    folders = []
    for number, (count, scheme) in enumerate(zip(groups, schemes, strict=False)):
        splits = {scheme or f"own{number}": GROUP}
        # equal names everywhere: only the prefix tells the groups apart
        folders.append(write(root / str(number), "x", count=3 * count, splits=splits, seed=seed))
    with pytest.raises(ValueError, match="occurs in"):
        plan_merge(folders)
    manifest, _ = merged(folders, root / "out", prefix=True)
    assert verify_dataset(root / "out") == []
    everything = ShardDataset(root / "out")
    for scheme in manifest.splits:
        codes = stored_codes(everything, [scheme])[scheme]
        trained, tested = set(everything.groups[codes == 0]), set(everything.groups[codes == 2])
        assert trained
        assert tested
        assert not trained & tested
    if all(scheme == "same" for scheme in schemes[: len(folders)]):
        after = split_of(root / "out", "same")
        for folder in folders:
            assert all(after[f"{folder.name}_{name}"] == code for name, code in split_of(folder, "same").items())


def test_schemes_that_not_all_have_alike_are_dropped_with_a_line(tmp_path: Path) -> None:
    first = write(tmp_path / "a", "a", splits={"default": GROUP, "fold0": GROUP, "patch": SAMPLE})
    second = write(tmp_path / "b", "b", splits={"default": GROUP, "patch": GROUP})
    manifest, notes = merged([first, second], tmp_path / "out")
    assert list(manifest.splits) == ["default"]
    assert notes == [
        f"split scheme 'fold0' is not kept: {second} has none of that name",
        "split scheme 'patch' is not kept: it is by group in one data set and by sample in another",
    ]


def test_without_a_shared_scheme_the_default_is_drawn_by_group(tmp_path: Path) -> None:
    first = write(tmp_path / "a", "a", splits={"one": GROUP})
    second = write(tmp_path / "b", "b", splits={}, count=36)
    manifest, notes = merged([first, second], tmp_path / "out")
    assert "'default' is drawn by group" in notes[-1]
    assert list(manifest.splits) == ["default"]
    assert manifest.splits["default"]["groups"] == {"train": 16, "val": 2, "test": 2, "unused": 0}
    assert verify_dataset(tmp_path / "out") == []


def test_two_single_recordings_can_be_merged_without_a_split(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, name, count=2, splits={}) for name in "ab"]
    manifest, notes = merged(folders, tmp_path / "out")
    assert manifest.splits == {}
    assert "2 groups are too few" in notes[0]


def test_shares_that_differ_become_the_shares_there_are(tmp_path: Path) -> None:
    first = write(tmp_path / "a", "a", splits={"default": {"unit": "group", "train": 1.0}})
    second = write(tmp_path / "b", "b", splits={"default": {"unit": "group", "test": 0.5}})
    manifest, _ = merged([first, second], tmp_path / "out")
    assert [manifest.splits["default"][split] for split in ("train", "val", "test")] == [0.5, 0.0, 0.25]


def test_the_prefix_is_the_data_sets_name_and_a_number_where_names_repeat(tmp_path: Path) -> None:
    folders = [tmp_path / "1" / "twin", tmp_path / "2" / "twin", tmp_path / "u373"]
    for seed, folder in enumerate(folders):
        write(folder, "x", seed=seed)
    merged(folders, tmp_path / "out", prefix=True)
    ids = ShardDataset(tmp_path / "out").sample_ids
    assert [ids[0], ids[24], ids[48]] == ["twin-1_xcell000", "twin-2_xcell000", "u373_xcell000"]
    assert ShardDataset(tmp_path / "out").groups[48] == "u373_xtrack0"


def test_prefixes_that_run_into_the_ids_are_seen_through(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", "b_x"), write(tmp_path / "a_b", "x")
    with pytest.raises(ValueError, match=r"sample id 'a_b_xcell000' occurs in .*; make one of them again"):
        plan_merge([first, second], prefix=True)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"stem": "dl_tfm"}, "stem is 'circular' in the first and 'dl_tfm' in the second"),
        ({"group_key": "slide"}, "group_key is 'cell track' in the first and 'slide' in the second"),
        ({"size_px": 6}, r"field 'image' has shape \(1, 5, 5\) in the first and \(1, 6, 6\) in the second"),
        ({"dtype": "uint16"}, "field 'image' has dtype 'uint8' in the first and 'uint16' in the second"),
        (
            {"fields": FIELDS | {"image": {"axes": "cyx", "unit": "1"}}},
            "field 'image' has unit 'grey level' in the first and '1' in the second",
        ),
        (
            {"fields": FIELDS | {"image": {"axes": "zyx", "unit": "grey level"}}},
            "field 'image' has axes 'cyx' in the first and 'zyx' in the second",
        ),
    ],
)
def test_data_sets_that_differ_are_refused_by_the_first_difference(
    tmp_path: Path, changes: Mapping[str, Any], complaint: str
) -> None:
    first, second = write(tmp_path / "a", "a"), write(tmp_path / "b", "b", **changes)
    with pytest.raises(ValueError, match=f"{first} and {second} cannot be merged: {complaint}"):
        plan_merge([first, second])


def test_a_field_that_one_lacks_is_named(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", "a"), tmp_path / "b"
    only = (Sample(f"b{n}", f"b{n}", {"image": np.zeros((1, 5, 5), np.uint8)}) for n in range(8))
    arguments: dict[str, Any] = {"stem": "circular", "splits": {}, "seed": 0, "provenance": {}}
    write_dataset(second, only, fields={"image": FIELDS["image"]}, group_key="cell track", **arguments)
    with pytest.raises(ValueError, match="the second has no field 'angle_rad'"):
        plan_merge([first, second])
    with pytest.raises(ValueError, match="the first has no field 'angle_rad'"):
        plan_merge([second, first])


def test_shared_ids_and_groups_are_refused_with_the_way_out(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", "x"), write(tmp_path / "b", "x", count=12)
    with pytest.raises(ValueError, match=r"sample id 'xcell000' occurs in .*/a and in .*/b; use --prefix to put"):
        plan_merge([first, second])
    third = tmp_path / "c"
    samples = (sample(n, "x")._replace(sample_id=f"other{n}") for n in range(12))
    arguments: dict[str, Any] = {"stem": "circular", "splits": {}, "seed": 0, "provenance": {}, "fields": FIELDS}
    write_dataset(third, samples, group_key="cell track", **arguments)
    with pytest.raises(ValueError, match=r"group 'xtrack0' occurs in .*/a and in .*/c; use --prefix to put"):
        plan_merge([first, third])


def test_the_same_data_are_never_merged_twice(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", "a"), write(tmp_path / "b", "b")
    merged([first, second], tmp_path / "both")
    for folders in ([first, first], [tmp_path / "both", second], [second, tmp_path / "both"]):
        with pytest.raises(ValueError, match="hold the same data set; merge each only once"):
            plan_merge(folders, prefix=True)
    with pytest.raises(ValueError, match="at least two data sets, got 1"):
        plan_merge([first])


def test_the_provenance_tells_of_every_source(tmp_path: Path) -> None:
    first = write(tmp_path / "a", "a")
    second = write(tmp_path / "b", "b", provenance={"made_by": "converter", "licence": "CC-BY-4.0"})
    third = write(tmp_path / "c", "c", provenance={"made_by": "converter"})
    manifest, _ = merged([first, second], tmp_path / "out")
    provenance = manifest.provenance
    assert provenance["made_by"] == "merge"
    assert [source["dataset"] for source in provenance["sources"]] == ["a", "b"]
    for source, folder in zip(provenance["sources"], (first, second), strict=True):
        assert source["identity"] == Manifest.read(folder).identity
        assert source["provenance"] == Manifest.read(folder).provenance
    assert provenance["licence"] == "CC0-1.0; CC-BY-4.0"
    assert "irreducible_error" not in provenance
    again, _ = merged([tmp_path / "out", third], tmp_path / "again")
    assert again.provenance["licence"] == "CC0-1.0; CC-BY-4.0; not stated"
    same, _ = merged([first, write(tmp_path / "d", "d")], tmp_path / "same")
    assert same.provenance["licence"] == "CC0-1.0"
    assert same.provenance["irreducible_error"] == {"metric": "m", "value": 1.0}


def test_a_damaged_source_leaves_nothing(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", "a"), write(tmp_path / "b", "b")
    shard = second / "00002.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ShardError, match=r"00002\.h5 is truncated"):
        merged([first, second], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        folders = [write(tmp_path / f"{name}{count}", name, count=count, size_px=128) for name in "ab"]
        tracemalloc.start()
        merged(folders, tmp_path / f"out{count}")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = 2 * 24 * 128**2, 2 * 240 * 128**2
    assert peak(240) - peak(24) < (large - small) / 3


def test_codes_can_be_given_to_the_writer_and_are_checked(tmp_path: Path) -> None:
    codes = np.repeat(np.array([0, 1, 2, -1] * 2, np.int8), 3)
    folder = write(tmp_path / "a", "a", splits={"default": GROUP, "mine": GROUP}, codes={"mine": codes})
    assert np.array_equal(stored_codes(ShardDataset(folder), ["mine"])["mine"], codes)
    entry = Manifest.read(folder).splits["mine"]
    assert entry["seed"] is None
    assert entry["samples"] == {"train": 6, "val": 6, "test": 6, "unused": 6}
    assert Manifest.read(folder).splits["default"]["seed"] == 0
    assert verify_dataset(folder) == []
    leaking = codes.copy()
    leaking[0] = 2
    for given_codes, complaint in (
        ({"mine": leaking}, "is by group but 1 groups lie in more than one split"),
        ({"mine": codes[:-1]}, r"codes of split scheme 'mine' are int8 \(23,\)"),
        ({"other": codes}, "codes are given for split scheme 'other', which splits does not name"),
    ):
        with pytest.raises(ValueError, match=complaint):
            write(tmp_path / "b", "b", splits={"mine": GROUP}, codes=given_codes)
    assert not (tmp_path / "b").exists()
