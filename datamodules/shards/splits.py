"""Split schemes: which sample is for training, validation or testing. Drawn once and stored, never drawn at load.

A scheme is {unit, train, val, test}. With unit `group` all samples of a group (a tracked cell, a slide) land in the
same split; unit `sample` splits sample by sample, leaks groups from train to test by design, and exists only for
parity with papers that did so.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.shards.schema import SPLIT_CODES, SPLIT_UNITS, UNUSED_CODE, check_scheme

DRAWS = 5
LEAST_FOLDS = 3


def draw_splits(
    groups: Sequence[str] | NDArray[Any], scheme: Mapping[str, Any], *, seed: int, name: str
) -> NDArray[np.int8]:
    """Draw one split scheme.

    The groups (or the samples) are put in random order and cut where the cumulative number of samples is nearest to
    the shares asked for; every split with a positive share gets at least one group. Of five such draws the one nearest
    to the shares is taken: one large group must not fill a small split. The draw depends on the seed, the
    scheme's name and the set of groups, so several schemes of one data set are independent of each other.

    Args:
        groups: Group of every sample, (samples,).
        scheme: {unit: `group` or `sample`, train, val, test}: shares of the samples that sum to at most 1.
        seed: Of the draw, at least 0.
        name: Of the scheme, for example `default` or `fold0`.

    Returns:
        (samples,) int8: 0 train, 1 val, 2 test, -1 unused.

    Raises:
        ValueError: The scheme is malformed, or there are fewer groups than splits; the scheme is named.
    """
    check_scheme(name, scheme)
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    unit_of_sample, sizes = _units(groups, scheme["unit"])
    wanted = [(code, float(scheme.get(split, 0.0))) for split, code in SPLIT_CODES.items()]
    wanted = [(code, share) for code, share in wanted if share > 0.0]
    if len(sizes) < len(wanted):
        raise ValueError(
            f"split scheme {name!r} names {len(wanted)} splits but there are only {len(sizes)} {scheme['unit']}s; "
            f"make more {scheme['unit']}s or set a share to 0"
        )

    order, cuts = _nearest_draw(
        sizes, [share for _, share in wanted], np.random.default_rng([seed, zlib.crc32(name.encode())])
    )
    codes_of_units = np.full(len(sizes), UNUSED_CODE, dtype=np.int8)
    start = 0
    for (code, _), stop in zip(wanted, cuts, strict=True):
        codes_of_units[order[start:stop]] = code
        start = stop
    return codes_of_units[unit_of_sample]


def draw_folds(
    groups: Sequence[str] | NDArray[Any], folds: int, *, unit: str = "group", seed: int, name: str
) -> list[NDArray[np.int8]]:
    """Draw the schemes of a cross-validation.

    The groups (or the samples) are dealt out in random order, each to the part with the fewest samples so far; of five
    such deals the most even one is taken. No two parts then differ by more samples than the largest group has. Fold i
    is tested on part i, validated on part i + 1 (the last one on part 0) and trained on the others, so every sample is
    tested in exactly one fold and validated in exactly one. The deal depends on the seed, the name and the groups.

    Args:
        groups: Group of every sample, (samples,).
        folds: How many, at least 3.
        unit: `group` or `sample`.
        seed: Of the draw, at least 0.
        name: What the folds are called before their number, for example `fold`.

    Returns:
        One (samples,) int8 array per fold: 0 train, 1 val, 2 test.

    Raises:
        ValueError: Fewer than 3 folds, fewer groups than folds, or an unfit name, unit or seed.
    """
    if folds < LEAST_FOLDS:
        raise ValueError(f"folds must be at least {LEAST_FOLDS}, one each to train, validate and test; got {folds}")
    check_scheme(f"{name}0", fold_scheme(folds, unit))
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    unit_of_sample, sizes = _units(groups, unit)
    if len(sizes) < folds:
        raise ValueError(
            f"{folds} folds need at least {folds} {unit}s and there are only {len(sizes)}; use fewer folds"
        )
    part = _most_even_deal(sizes, folds, np.random.default_rng([seed, zlib.crc32(name.encode())]))[unit_of_sample]
    train, val, test = (np.int8(SPLIT_CODES[split]) for split in ("train", "val", "test"))
    return [np.where(part == fold, test, np.where(part == (fold + 1) % folds, val, train)) for fold in range(folds)]


def fold_scheme(folds: int, unit: str) -> dict[str, Any]:
    """The scheme {unit, train, val, test} of each of `folds` folds, see `draw_folds`."""
    return {"unit": unit, "train": (folds - 2) / folds, "val": 1 / folds, "test": 1 / folds}


def shared_groups(codes: NDArray[np.int8], group: NDArray[np.int32]) -> NDArray[np.int64]:
    """Find the groups that leak: those with samples in more than one of train, val and test.

    Args:
        codes: (samples,) 0 train, 1 val, 2 test, -1 unused.
        group: (samples,) number of the group.

    Returns:
        Their numbers, increasing.
    """
    used = codes != UNUSED_CODE
    splits_of_group = np.zeros((int(group.max()) + 1, len(SPLIT_CODES)), dtype=bool)
    splits_of_group[group[used], codes[used]] = True
    return np.flatnonzero(splits_of_group.sum(axis=1) > 1)


def check_codes(codes: NDArray[Any], group: NDArray[np.int32], *, unit: str, name: str) -> None:
    """Raise ValueError, naming the scheme, when the codes were not drawn for these samples or break its unit.

    Args:
        codes: (samples,) int8: 0 train, 1 val, 2 test, -1 unused.
        group: (samples,) number of the group.
        unit: `group` or `sample`.
        name: Of the scheme.
    """
    if codes.dtype != np.int8 or codes.shape != group.shape:
        raise ValueError(
            f"codes of split scheme {name!r} are {codes.dtype} {codes.shape}, they must be int8 {group.shape}: one per "
            "sample"
        )
    if codes.min() < UNUSED_CODE or codes.max() > max(SPLIT_CODES.values()):
        raise ValueError(f"codes of split scheme {name!r} hold a number that is no split")
    if unit == "group" and len(shared := shared_groups(codes, group)):
        raise ValueError(f"split scheme {name!r} is by group but {len(shared)} groups lie in more than one split")


def split_counts(codes: NDArray[np.int8], group: NDArray[np.int32]) -> dict[str, dict[str, int]]:
    """Count the samples and groups of every split.

    Args:
        codes: (samples,) 0 train, 1 val, 2 test, -1 unused.
        group: (samples,) number of the group.

    Returns:
        {`samples`: {train, val, test, unused}, `groups`: the same}; a group that lies in two splits counts in both.
    """
    members = {name: codes == code for name, code in {**SPLIT_CODES, "unused": UNUSED_CODE}.items()}
    return {
        "samples": {name: int(member.sum()) for name, member in members.items()},
        "groups": {name: len(np.unique(group[member])) for name, member in members.items()},
    }


def _units(groups: Sequence[str] | NDArray[Any], unit: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What is drawn: the number of the group (or of itself) for every sample, and the samples of each."""
    if unit == SPLIT_UNITS[0]:
        names, unit_of_sample = np.unique(np.asarray(groups), return_inverse=True)
        return unit_of_sample, np.bincount(unit_of_sample, minlength=len(names))
    return np.arange(len(groups)), np.ones(len(groups), dtype=np.int64)


def _most_even_deal(sizes: NDArray[np.int64], parts: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The part of every unit, of the deal whose fullest and emptiest parts differ least."""
    found: list[tuple[int, NDArray[np.int64]]] = []
    for _ in range(DRAWS):
        part = np.empty(len(sizes), dtype=np.int64)
        heap = [(0, number) for number in range(parts)]
        for unit in generator.permutation(len(sizes)).tolist():
            filled, number = heap[0]
            part[unit] = number
            heapq.heapreplace(heap, (filled + int(sizes[unit]), number))
        filled_parts = [filled for filled, _ in heap]
        found.append((max(filled_parts) - min(filled_parts), part))
        if found[-1][0] <= 1:
            break
    return min(found, key=lambda deal: deal[0])[1]


def _nearest_draw(
    sizes: NDArray[np.int64], shares: list[float], generator: np.random.Generator
) -> tuple[NDArray[np.int64], list[int]]:
    """The order of the units and the ends of the splits in it, of the draw whose shares are nearest to `shares`."""
    found: list[tuple[float, NDArray[np.int64], list[int]]] = []
    for _ in range(DRAWS):
        order = generator.permutation(len(sizes))
        cumulative = np.cumsum(sizes[order])
        cuts = _cuts(cumulative, shares)
        achieved = np.diff(np.concatenate([[0], cumulative])[[0, *cuts]]) / cumulative[-1]
        found.append((float(np.abs(achieved - shares).sum()), order, cuts))
    _, order, cuts = min(found, key=lambda draw: draw[0])
    return order, cuts


def _cuts(cumulative: NDArray[np.int64], shares: list[float]) -> list[int]:
    """Numbers of units before the end of each split; increasing, the last at most len(cumulative)."""
    units = len(cumulative)
    edges = np.concatenate([[0], cumulative])
    targets = np.cumsum(shares) * cumulative[-1]
    cuts = [int(np.argmin(np.abs(edges - target))) for target in targets]
    for i in range(len(cuts)):
        cuts[i] = max(cuts[i], cuts[i - 1] + 1 if i else 1)
    limit = units
    for i in reversed(range(len(cuts))):
        cuts[i] = min(cuts[i], limit)
        limit = cuts[i] - 1
    return cuts
