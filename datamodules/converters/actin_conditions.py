"""What pictures of actin and nuclei do not say: how large they are, and which of them is what.

They are read from `conditions.json` in the source folder, an object with exactly one of

- `field_um`: width of every picture in um; `pixel_size_um`: side of a pixel in um (the paper prints 159.41 and 210 um
  for its tiles, so neither is a default),

and where they are needed

- `actin_files`, `nucleus_files`: names of the two files of a pair with one `*` for what they share; the authors' are
  `Actin_*.tif` and `Nucleus_*.tif`;
- `actin_channel`, `nucleus_channel`: numbers from 0, of files that hold both;
- `pages`: "z" or "channel", what the pages of a TIFF are that does not say so;
- `tile_px`: side of the tiles that large pictures are cut into;
- `white_level`: the grey level of 16-bit pictures that counts as full, for example 4095;
- `slides`: "folder" or "name", what tells the slides apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datamodules.converters.conditions_file import NAME, is_number, read_entries, refuse_unknown

PATTERNS = ("Actin_*.tif", "Nucleus_*.tif")
"""The authors'."""
SCALES = ("field_um", "pixel_size_um")
_EXAMPLE = '{"field_um": 159.41}'
_CHOICES = {"pages": ("z", "channel"), "slides": ("folder", "name")}
_TOGETHER = (("actin_files", "nucleus_files"), ("actin_channel", "nucleus_channel"))
_LEAST = {"actin_channel": 0, "nucleus_channel": 0, "tile_px": 16, "white_level": 1}


class Conditions(NamedTuple):
    """What `conditions.json` gives, None where it does not."""

    field_um: float | None = None
    pixel_size_um: float | None = None
    actin_files: str | None = None
    nucleus_files: str | None = None
    actin_channel: int | None = None
    nucleus_channel: int | None = None
    pages: Literal["z", "channel"] | None = None
    tile_px: int | None = None
    white_level: int | None = None
    slides: Literal["folder", "name"] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Only what was given."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    @property
    def patterns(self) -> tuple[str, str]:
        """Names of the files of actin and of nuclei."""
        return (self.actin_files, self.nucleus_files) if self.actin_files and self.nucleus_files else PATTERNS

    def pixel_size(self, width_px: int) -> float:
        """Side of a pixel (um) of a picture of this width."""
        return self.pixel_size_um if self.field_um is None else self.field_um / width_px  # type: ignore[return-value]


def read_conditions(source: Path) -> Conditions:
    """Return the conditions of the archive in `source`.

    Raises:
        FileNotFoundError: There is no such folder, or no such file in it; the message says what to write.
        ValueError: It is no JSON object, gives no scale or two, has an entry that is not known, lacks the partner of
            one, or holds a value out of range; the message says how to mend it.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"no source folder at {source}")
    path = source / NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}: the pictures do not say how large they are, so write that file with your width in um, for "
            f'example {_EXAMPLE}, or with the side of a pixel, {{"pixel_size_um": 0.4151}}'
        )
    stored = read_entries(path, example=_EXAMPLE)
    for name, value in stored.items():
        refuse_unknown(path, name, Conditions._fields)
        fault = _fault(name, value)
        if fault:
            raise ValueError(f"{path}: {name} must be {fault}, got {json.dumps(value)}: correct it")
    if len([name for name in SCALES if name in stored]) != 1:
        raise ValueError(f"{path} must give the scale once, as field_um or pixel_size_um, for example {_EXAMPLE}")
    for pair in _TOGETHER:
        present = [name for name in pair if name in stored]
        if len(present) == 1:
            (missing,) = set(pair) - set(present)
            raise ValueError(f"{path} gives {present[0]} without {missing}: add it")
    if "actin_files" in stored and "actin_channel" in stored:
        raise ValueError(f"{path} gives both files and channels: remove one of the two pairs")
    for first, second in _TOGETHER:
        if first in stored and stored[first] == stored[second]:
            raise ValueError(f"{path} gives {first} and {second} the same value {stored[first]!r}: correct one")
    return Conditions(**stored)


def _fault(name: str, value: Any) -> str | None:
    """What a value should have been."""
    if name in _CHOICES:
        return None if value in _CHOICES[name] else f"one of {', '.join(_CHOICES[name])}"
    if name.endswith("_files"):
        named = isinstance(value, str) and value.count("*") == 1 and "/" not in value
        return None if named else "a file name with one *"
    number = is_number(value)
    if name in _LEAST:
        whole = number and value == int(value) and value >= _LEAST[name]
        return None if whole else f"a whole number from {_LEAST[name]} on"
    return None if number and value > 0 else "a positive number"
