"""What a value may be, given its unit and its name: the meaning of the numbers, which a checksum cannot guard.

The conventions are FORMAT.md's. A displacement may have either sign, a photon count may not; an angle of 7 rad is an
angle in degrees or one that nobody wrapped. Only fields with a rule are looked at, and those only as far as their
type leaves a doubt: unsigned integers cannot be negative.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.shards.schema import Field


class Range(NamedTuple):
    """An interval of legal values."""

    low: float
    high: float
    holds_low: bool
    """Whether `low` itself is legal; an infinite bound excludes nothing."""
    holds_high: bool
    words: str
    """The interval and what it is about, for messages."""

    def admits(self, values: Any) -> Any:
        """Whether a number lies in the range; elementwise for an array."""
        above = values >= self.low if self.holds_low else values > self.low
        return above & (values <= self.high if self.holds_high else values < self.high)


_ANGLE = Range(0.0, 2 * math.pi, True, False, "angles in rad lie in [0, 2 pi)")
_SHARE = Range(0.0, 1.0, True, True, "shares and probabilities lie in [0, 1]")
_AMOUNT = Range(0.0, math.inf, True, True, "intensities and counts are at least 0")
_MASK = Range(0.0, 1.0, True, True, "masks are 0 or 1")
_SIZE = Range(0.0, math.inf, False, True, "sizes and moduli are positive")
_POISSON = Range(0.0, 0.5, False, True, "Poisson's ratio lies in (0, 0.5]")

UNIT_RANGES: dict[str, Range] = {
    # a direction has one number: wrapped values compare, average and histogram alike in every program
    "rad": _ANGLE,
    "fraction": _SHARE,
    "probability": _SHARE,
    # what a camera or a counter gives; standardised images, which go below 0, are pure numbers (unit 1)
    "grey level": _AMOUNT,
    "count": _AMOUNT,
    "counts": _AMOUNT,
    "photon": _AMOUNT,
    "photons": _AMOUNT,
    # 255 instead of 1 would weigh a loss 255 times
    "mask": _MASK,
}
"""Unit to legal values. Units that are not here are free: um and px are displacements, Pa stresses, of either sign."""

NAME_RANGES: dict[str, Range] = {
    # they are divided by
    "youngs_modulus_pa": _SIZE,
    "pixel_size_um": _SIZE,
    "voxel_size_um": _SIZE,
    # rubber is at 0.5; 0 and below are no gel or cell
    "poisson_ratio": _POISSON,
}
"""Last words of a field's name to legal values; they go before the unit's."""

SUFFIX_UNITS: dict[str, str] = {
    "um": "um",
    "nm": "nm",
    "px": "px",
    "pa": "Pa",
    "kpa": "kPa",
    "rad": "rad",
    "deg": "deg",
    "n": "N",
    "nn": "nN",
    "s": "s",
}
"""Last word of a field's name to the unit that it promises; after `per` it promises none."""


def unit_fault(name: str, field: Field) -> str | None:
    """Say what contradicts the unit in a field's name or type, None when nothing does."""
    words = name.split("_")
    promised = SUFFIX_UNITS.get(words[-1]) if len(words) > 1 and words[-2] != "per" else None
    if promised is not None and field.unit != promised:
        return f"field {name!r} has unit {field.unit!r}, its name says {promised!r}; rename it or convert the values"
    if field.unit == "mask" and field.dtype != "uint8":
        return f"field {name!r} is a mask of dtype {field.dtype}; store a mask as uint8"
    return None


def value_fault(name: str, field: Field, values: NDArray[Any], *, first_row: int | None = None) -> str | None:
    """Say which value of a field its unit or name does not allow, None when all are legal.

    Args:
        name: Of the field; its last words may have a rule (`pixel_size_um`).
        field: Its description; the unit may have a rule.
        values: Finite numbers: one sample of shape `field.shape`, or rows of them when `first_row` is given.
        first_row: Number of the first row of `values`, so that the message names the row.
    """
    legal = _range_to_check(name, field.unit, field.dtype)
    if legal is None or not values.size:
        return None
    # bounds are compared in float64: 2 pi in float32 is larger than 2 pi
    low, high = values.min(), values.max()
    if legal.admits(float(low)) and legal.admits(float(high)):
        return None
    if first_row is None:
        return f"field {name!r} has the value {high if legal.admits(float(low)) else low}; {legal.words}"
    rows = values.reshape(len(values), -1)
    illegal = ~legal.admits(rows.astype(np.float64))
    row = int(np.argmax(illegal.any(axis=1)))
    return f"field {name!r} of row {first_row + row} has the value {rows[row][illegal[row]][0]}; {legal.words}"


@lru_cache(maxsize=1024)
def _range_to_check(name: str, unit: str, dtype: str) -> Range | None:
    """The range of a field's values, None where it has none or its type cannot leave it."""
    named = [legal for words, legal in NAME_RANGES.items() if name == words or name.endswith(f"_{words}")]
    legal = named[0] if named else UNIT_RANGES.get(unit)
    return None if legal is _AMOUNT and dtype.startswith("uint") else legal
