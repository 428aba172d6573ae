"""Adding split schemes: folds are a partition, nothing else changes, and a kill leaves the old or the new data set."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.shards.resplit import LOCK_NAME, Folds, add_splits
from datamodules.shards.schema import Manifest, ShardError
from datamodules.shards.splits import check_codes, draw_folds, draw_splits, shared_groups
from datamodules.shards.verify import NOTE, verify_dataset
from datamodules.shards.writer import write_dataset

GROUP = {"unit": "group", "train": 0.5, "val": 0.25, "test": 0.25}
NEW = {"other": {"unit": "group", "train": 0.6, "val": 0.2, "test": 0.2}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 samples in 8 groups and 4 shards."""
    samples = (Sample(f"cell{n:02d}", f"track{n // 3}", {"angle_rad": np.float32(n / 10)}) for n in range(24))
    fields = {"angle_rad": {"axes": "", "unit": "rad"}}
    write_dataset(
        tmp_path / "twin",
        samples,
        stem="circular",
        fields=fields,
        splits={"default": GROUP},
        seed=0,
        provenance={"made_by": "test"},
        shard_bytes=24,
    )
    return tmp_path / "twin"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def faults(folder: Path) -> list[str]:
    return [line for line in verify_dataset(folder) if not line.startswith(NOTE)]


def read_split(folder: Path, scheme: str, split: str) -> list[str]:
    return ShardDataset(folder, scheme=scheme, split=split).sample_ids.tolist()


# -- drawing folds ----------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=7, max_size=40),
    st.integers(3, 7),
    st.sampled_from(["group", "sample"]),
    st.integers(0, 10**6),
)
def test_folds_are_a_partition_without_leaks_and_evenly_filled(
    sizes: list[int], folds: int, unit: str, seed: int
) -> None:
    group = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    drawn = np.stack(draw_folds([f"cell{number}" for number in group], folds, unit=unit, seed=seed, name="fold"))
    assert drawn.shape == (folds, len(group))
    assert np.all((drawn == 2).sum(axis=0) == 1), "every sample is tested in exactly one fold"
    assert np.all((drawn == 1).sum(axis=0) == 1), "every sample is validated in exactly one fold"
    assert np.all((drawn == 0).sum(axis=0) == folds - 2)
    for fold in range(folds):
        assert np.array_equal(drawn[fold] == 1, drawn[(fold + 1) % folds] == 2)
        assert set(drawn[fold]) == {0, 1, 2}
        check_codes(drawn[fold], group, unit=unit, name=f"fold{fold}")
        if unit == "group":
            assert not len(shared_groups(drawn[fold], group))
    tested = (drawn == 2).sum(axis=1)
    assert tested.max() - tested.min() <= (max(sizes) if unit == "group" else 1)


def test_equal_groups_are_dealt_out_to_within_one() -> None:
    drawn = draw_folds([f"cell{number // 4}" for number in range(4 * 22)], 5, seed=0, name="fold")
    assert sorted(int((codes == 2).sum()) for codes in drawn) == [16, 16, 16, 20, 20]


def test_folds_depend_on_seed_and_name_and_not_on_the_order_of_the_samples() -> None:
    groups = np.array([f"cell{number // 3}" for number in range(90)])
    first = draw_folds(groups, 4, seed=1, name="fold")
    assert np.array_equal(first, draw_folds(groups, 4, seed=1, name="fold"))
    assert not np.array_equal(first, draw_folds(groups, 4, seed=2, name="fold"))
    assert not np.array_equal(first, draw_folds(groups, 4, seed=1, name="again"))
    order = np.random.default_rng(0).permutation(90)
    assert np.array_equal(np.array(first)[:, order], draw_folds(groups[order], 4, seed=1, name="fold"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"folds": 2}, "folds must be at least 3, one each to train, validate and test; got 2"),
        ({"folds": 9}, "9 folds need at least 9 groups and there are only 8; use fewer folds"),
        ({"unit": "cell"}, "unit must be 'group' or 'sample'"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"name": "../x"}, "a scheme's name is letters"),
    ],
)
def test_folds_that_cannot_be_drawn_are_refused(changes: dict[str, Any], complaint: str) -> None:
    arguments = {"folds": 4, "unit": "group", "seed": 0, "name": "fold", **changes}
    with pytest.raises(ValueError, match=complaint):
        draw_folds([f"cell{number // 3}" for number in range(24)], **arguments)


def test_codes_that_break_their_scheme_are_refused() -> None:
    group = np.array([0, 0, 1], np.int32)
    check_codes(np.array([0, -1, 1], np.int8), group, unit="group", name="mine")
    check_codes(np.array([0, 2, 1], np.int8), group, unit="sample", name="mine")
    for codes, complaint in (
        (np.array([0, 2, 1], np.int8), "'mine' is by group but 1 groups lie in more than one split"),
        (np.array([0, 0], np.int8), r"'mine' are int8 \(2,\), they must be int8 \(3,\)"),
        (np.array([0, 0, 1]), r"'mine' are int64"),
        (np.array([0, 0, 3], np.int8), "'mine' hold a number that is no split"),
    ):
        with pytest.raises(ValueError, match=complaint):
            check_codes(codes, group, unit="group", name="mine")


# -- adding them ------------------------------------------------------------------------------------------------------


def test_a_scheme_is_added_and_nothing_else_changes(folder: Path) -> None:
    before, old = contents(folder), Manifest.read(folder)
    train = read_split(folder, "default", "train")
    manifest = add_splits(folder, NEW, seed=3)
    assert manifest == Manifest.read(folder)
    after = contents(folder)
    assert set(after) == set(before) - {"index.h5"} | {"index-1.h5"}
    assert all(after[name] == before[name] for name in after if name not in ("index-1.h5", "manifest.json"))
    assert manifest.splits["default"] == old.splits["default"]
    assert (manifest.identity, manifest.shards, manifest.fields) == (old.identity, old.shards, old.fields)
    assert read_split(folder, "default", "train") == train
    groups = ShardDataset(folder).groups
    expected = draw_splits(groups, NEW["other"], seed=3, name="other")
    for split, code in (("train", 0), ("val", 1), ("test", 2)):
        assert read_split(folder, "other", split) == ShardDataset(folder).sample_ids[expected == code].tolist()
    assert manifest.splits["other"] == {
        **NEW["other"],
        "seed": 3,
        "samples": manifest.splits["other"]["samples"],
        "groups": manifest.splits["other"]["groups"],
    }
    assert verify_dataset(folder) == []


def test_schemes_are_added_again_and_again(folder: Path) -> None:
    add_splits(folder, NEW, seed=0)
    manifest = add_splits(folder, Folds(4), seed=0)
    assert manifest.index_name == "index-2.h5"
    assert list(manifest.splits) == ["default", "other", "fold0", "fold1", "fold2", "fold3"]
    assert manifest.splits["fold2"]["unit"] == "group"
    assert [manifest.splits["fold2"][split] for split in ("train", "val", "test")] == [0.5, 0.25, 0.25]
    tested = [one for fold in range(4) for one in read_split(folder, f"fold{fold}", "test")]
    assert sorted(tested) == sorted(ShardDataset(folder).sample_ids)
    assert read_split(folder, "fold3", "val") == read_split(folder, "fold0", "test")
    assert sorted(path.name for path in folder.glob("*index*")) == ["index-2.h5"]
    assert verify_dataset(folder) == []


def test_a_scheme_by_sample_is_noted_as_leaking(folder: Path) -> None:
    add_splits(folder, Folds(3, "patch", "sample"), seed=0)
    lines = verify_dataset(folder)
    assert len(lines) == 3
    assert all(line.startswith(f"{NOTE}split scheme 'patch") for line in lines)


@pytest.mark.parametrize(
    ("schemes", "complaint"),
    [
        ({"default": GROUP}, "has a split scheme 'default' already, and schemes never change; choose another --name"),
        ({"odd": {"unit": "group", "train": 0.9, "test": 0.2}}, "'odd': the shares must sum to more than 0"),
        ({"a/b": GROUP}, "a scheme's name is letters"),
        (Folds(9), "9 folds need at least 9 groups and there are only 8"),
        (Folds(-1), "folds must be at least 3"),
    ],
)
def test_a_wrong_request_changes_nothing(folder: Path, schemes: Any, complaint: str) -> None:
    before = contents(folder)
    with pytest.raises(ValueError, match=complaint):
        add_splits(folder, schemes, seed=0)
    assert contents(folder) == before


def test_where_no_data_set_is_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data set at"):
        add_splits(tmp_path, NEW, seed=0)
    assert not list(tmp_path.iterdir())


def test_a_changed_index_is_not_copied(folder: Path) -> None:
    with h5py.File(folder / "index.h5", "r+", libver=("v110", "v110")) as file:
        file["splits/default"][0] = 2 if file["splits/default"][0] == 0 else 0
    before = contents(folder)
    with pytest.raises(ShardError, match=r"index\.h5 has changed since it was written"):
        add_splits(folder, NEW, seed=0)
    assert contents(folder) == before


def test_a_manifest_may_only_name_an_index(folder: Path) -> None:
    manifest = Manifest.read(folder)
    for name in ("../index.h5", "index-.h5", "index-1.h5\n", "00000.h5"):
        with pytest.raises(ValueError, match="the index is called"):
            Manifest(**{**vars(manifest), "index": manifest.index | {"name": name}}).write(folder)


def test_of_two_at_a_time_the_second_is_refused(folder: Path) -> None:
    before = contents(folder)
    with (folder / LOCK_NAME).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(ShardError, match=r"another process is adding splits to .*twin; wait for it or stop it"):
            add_splits(folder, NEW, seed=0)
    # the lock ended with its holder, though its file is still there
    assert contents(folder) == before | {LOCK_NAME: b""}
    add_splits(folder, NEW, seed=0)
    assert not (folder / LOCK_NAME).exists()


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (folder / LOCK_NAME).unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    add_splits(folder, NEW, seed=0)
    assert len(calls) == 2
    assert verify_dataset(folder) == []


# -- interruptions ----------------------------------------------------------------------------------------------------


class Power:
    """Cuts the power at one of the file operations: it and all later ones raise, as if the process were no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cut: int, error: BaseException, *, for_good: bool) -> None:
        self.operations: list[str] = []
        for owner, name in (
            (os, "fsync"),
            (os, "unlink"),
            (os, "replace"),
            (os, "rename"),
            (h5py.Group, "create_dataset"),
            (h5py.File, "close"),
        ):
            monkeypatch.setattr(owner, name, self.guarded(name, getattr(owner, name), cut, error, for_good=for_good))

    def guarded(self, name: str, real: Callable[..., Any], cut: int, error: BaseException, *, for_good: bool) -> Any:
        def operation(*arguments: Any, **named: Any) -> Any:
            self.operations.append(name)
            if len(self.operations) == cut or (for_good and len(self.operations) > cut):
                raise error
            return real(*arguments, **named)

        return operation


class Killed(BaseException):
    pass


def interrupted(folder: Path, cut: int, error: BaseException, *, for_good: bool) -> str | None:
    """Add a scheme, interrupted at file operation `cut`; return the operation's name, None when there are fewer."""
    with pytest.MonkeyPatch.context() as patch:
        power = Power(patch, cut, error, for_good=for_good)
        with contextlib.suppress(Killed, ShardError):
            add_splits(folder, NEW, seed=0)
    return power.operations[cut - 1] if len(power.operations) >= cut else None


def check_whole(folder: Path, before: Manifest) -> bool:
    """Check that the old or the new data set is there, and say whether it is the new one."""
    assert faults(folder) == []
    manifest = Manifest.read(folder)
    if manifest != before:
        assert list(manifest.splits) == ["default", "other"]
    assert len(read_split(folder, "default", "train")) == before.splits["default"]["samples"]["train"]
    return manifest != before


@pytest.mark.slow
def test_a_kill_at_any_file_operation_leaves_the_old_or_the_new_data_set(folder: Path, tmp_path: Path) -> None:
    outcomes, before = [], Manifest.read(folder)
    for cut in range(1, 100):
        copy = tmp_path / f"copy{cut}"
        shutil.copytree(folder, copy)
        if interrupted(copy, cut, Killed(), for_good=True) is None:
            break
        outcomes.append(check_whole(copy, before))
        unlisted = [line for line in verify_dataset(copy) if "not listed in the manifest" in line]
        assert all("it can be removed" in line for line in unlisted)
        # the next call finds its way and leaves no litter
        add_splits(copy, {"later": GROUP}, seed=0)
        assert verify_dataset(copy) == []
        assert len(list(copy.iterdir())) == 4 + 2
    assert len(outcomes) > 10
    assert set(outcomes) == {False, True}
    assert outcomes == sorted(outcomes), "there is one moment of change"


def test_an_error_at_any_file_operation_leaves_no_litter(folder: Path, tmp_path: Path) -> None:
    before, seen = Manifest.read(folder), 0
    for cut in range(1, 100):
        copy = tmp_path / f"copy{cut}"
        shutil.copytree(folder, copy)
        operation = interrupted(copy, cut, OSError(28, "No space left on device"), for_good=False)
        if operation is None:
            break
        seen += 1
        check_whole(copy, before)
        assert len(list(copy.glob("index*.h5"))) == 1 or operation == "unlink"
    assert seen > 10
