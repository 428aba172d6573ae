"""Split draws: whole groups, shares met as nearly as groups allow, fixed by seed and name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.shards.splits import draw_splits

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def groups_of(sizes: list[int]) -> list[str]:
    return [f"cell{number:03d}" for number, size in enumerate(sizes) for _ in range(size)]


def draw(groups: list[str], *, seed: int = 0, name: str = "default", **scheme: Any) -> np.ndarray:
    return draw_splits(groups, {"unit": "group", **(scheme or SHARES)}, seed=seed, name=name)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=40), st.integers(0, 1000))
def test_no_group_is_ever_in_two_splits_and_no_split_is_empty(sizes: list[int], seed: int) -> None:
    groups = groups_of(sizes)
    codes = draw(groups, seed=seed)
    assert set(codes) == {0, 1, 2}
    for group in set(groups):
        assert len({code for code, name in zip(codes, groups, strict=True) if name == group}) == 1


def test_equal_groups_are_shared_out_exactly() -> None:
    codes = draw(groups_of([4] * 100))
    assert [int((codes == code).sum()) for code in (0, 1, 2)] == [320, 40, 40]


def test_shares_are_met_to_within_half_a_group() -> None:
    sizes = np.random.default_rng(0).integers(1, 12, 80).tolist()
    codes = draw(groups_of(sizes))
    cumulative = np.cumsum([(codes == code).sum() for code in (0, 1, 2)])
    assert np.all(np.abs(cumulative - np.cumsum([0.8, 0.1, 0.1]) * sum(sizes)) <= max(sizes) / 2)


def test_a_draw_by_sample_ignores_the_groups() -> None:
    codes = draw_splits(["one"] * 100, {"unit": "sample", **SHARES}, seed=0, name="patch_fold0")
    assert [int((codes == code).sum()) for code in (0, 1, 2)] == [80, 10, 10]


def test_a_draw_depends_on_seed_and_name_only() -> None:
    groups = groups_of([2] * 50)
    first = draw(groups, seed=4, name="fold0")
    assert np.array_equal(first, draw(groups, seed=4, name="fold0"))
    assert not np.array_equal(first, draw(groups, seed=5, name="fold0"))
    assert not np.array_equal(first, draw(groups, seed=4, name="fold1"))


def test_a_group_keeps_its_split_wherever_its_samples_stand() -> None:
    groups = groups_of([3] * 20)
    order = np.random.default_rng(1).permutation(len(groups))
    assert np.array_equal(draw([groups[i] for i in order]), draw(groups)[order])


def test_what_the_shares_leave_over_is_unused() -> None:
    codes = draw(groups_of([1] * 10), train=0.5, val=0.2)
    assert [int((codes == code).sum()) for code in (0, 1, 2, -1)] == [5, 2, 0, 3]


def test_a_huge_group_does_not_starve_the_other_splits() -> None:
    assert set(draw(groups_of([1000, 1, 1]))) == {0, 1, 2}


def test_fewer_groups_than_splits_are_refused_with_the_name_of_the_scheme() -> None:
    with pytest.raises(ValueError, match=r"split scheme 'fold3' names 3 splits but there are only 2 groups"):
        draw(groups_of([5, 5]), name="fold3")


@pytest.mark.parametrize(
    ("scheme", "complaint"),
    [
        ({"unit": "cell", "train": 1.0}, "unit must be"),
        ({"train": 1.0}, "unit must be"),
        ({"unit": "group", "train": 0.9, "test": 0.2}, "sum to more than 0 and at most 1"),
        ({"unit": "group"}, "sum to more than 0"),
        ({"unit": "group", "train": -0.1, "test": 0.5}, "train must be a share"),
        ({"unit": "group", "train": float("nan")}, "train must be a share"),
        ({"unit": "group", "train": 0.5, "dev": 0.5}, "unknown key 'dev'"),
    ],
)
def test_a_malformed_scheme_is_refused_by_name(scheme: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"split scheme 'odd'.*{complaint}"):
        draw_splits(["a", "b", "c"], scheme, seed=0, name="odd")


def test_a_scheme_that_cannot_name_a_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="a scheme's name"):
        draw(["a", "b", "c"], name="../etc")
