"""How the samples of a simulated data set are shared among its groups: cells, slides."""

from __future__ import annotations

MINIMUM_GROUPS = 4
"""With fewer a grouped split could leave train, val or test empty."""


def equal_groups(count: int, *, groups: int) -> list[int]:
    """Sizes of the groups, as equal as can be: `groups`, or four where those are fewer, but none of them empty."""
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
    groups = min(count, max(groups, MINIMUM_GROUPS))
    share, rest = divmod(count, groups)
    return [share + (index < rest) for index in range(groups)]
