"""Split schemes: which sample is for training, validation or testing. Drawn once when a data set is written.

A scheme is {unit, train, val, test}. With unit `group` all samples of a group (a tracked cell, a slide) land in the
same split; unit `sample` splits sample by sample, leaks groups from train to test by design, and exists only for
parity with papers that did so.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.shards.schema import SPLIT_CODES, UNUSED_CODE, check_scheme

DRAWS = 5


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
    samples = len(groups)
    if scheme["unit"] == "group":
        names, unit_of_sample = np.unique(np.asarray(groups), return_inverse=True)
        sizes = np.bincount(unit_of_sample, minlength=len(names))
    else:
        unit_of_sample = np.arange(samples)
        sizes = np.ones(samples, dtype=np.int64)

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
