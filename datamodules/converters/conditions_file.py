"""`conditions.json`: what the files of an archive do not say, written beside them by who knows it.

Which entries there are and what they may be is told by the kind of archive: `gel_conditions`, `force_conditions`,
`actin_conditions`, `volume_conditions`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAME = "conditions.json"


def read_entries(path: Path, *, example: str) -> dict[str, Any]:
    """Return the object in `path`, which is there; ValueError, with an example, where it holds something else."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): correct it") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{path} must hold an object like {example}")
    return stored


def refuse_unknown(path: Path, name: str, accepted: Sequence[str]) -> None:
    """Raise ValueError where an entry is none of those accepted."""
    if name not in accepted:
        raise ValueError(f"{path} has an unknown entry {name!r}: remove it; accepted are {', '.join(accepted)}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
