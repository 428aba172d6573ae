"""What an archive of displacement fields does not say: the substrate and the size of a pixel.

They are read from `conditions.json` in the source folder, an object with

- `youngs_modulus_pa`: of the substrate, > 0; `poisson_ratio`: of the substrate, in (0, 0.5];
- `pixel_size_um`: distance between two points of the field, in um;
- `image_pixel_size_um`: side of a camera pixel in um, where displacements are counted in those;
- `gel_thickness_um` (optional): of a gel bonded to rigid glass; one much thicker than the field is wide is a half
  space, as is one whose thickness is not given;
- `traction_modulus_pa` (optional): Young's modulus for which the tractions are stored, where it is not that of the
  substrate; they are multiplied by youngs_modulus_pa / traction_modulus_pa. Wang & Lin's training data: 10;
- `files_per_cell` (optional): how many files in a row show the same cell, where their names do not tell;
- `axes`, `displacement_unit`: of a displacement stored as one array without a name that tells (`.npy`): "cyx" is
  (2, y, x), "yxc" (y, x, 2) and "xyc" (x, y, 2), components (x, y) in all of them; "px" counts pixels of the field,
  "image_px" those of the camera, "um" micrometres. Where an array's own name tells, they must not say otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.converters.conditions_file import NAME, is_number, read_entries, refuse_unknown

_EXAMPLE: dict[str, Any] = {
    "youngs_modulus_pa": 10670,
    "poisson_ratio": 0.45,
    "pixel_size_um": 1.925,
    "image_pixel_size_um": 0.275,
    "axes": "cyx",
    "displacement_unit": "px",
}
"""Wang & Lin, bioRxiv 2020.05.20.107128: 104 points of 7 camera pixels each."""
_ACCEPTED = (*_EXAMPLE, "gel_thickness_um", "traction_modulus_pa", "files_per_cell")
_CHOICES = {"axes": ("cyx", "yxc", "xyc"), "displacement_unit": ("px", "image_px", "um")}


class Conditions(NamedTuple):
    """What `conditions.json` gives, None where it does not."""

    youngs_modulus_pa: float
    poisson_ratio: float
    pixel_size_um: float | None = None
    image_pixel_size_um: float | None = None
    gel_thickness_um: float | None = None
    traction_modulus_pa: float | None = None
    files_per_cell: int | None = None
    axes: str | None = None
    displacement_unit: str | None = None

    @property
    def stored_modulus_pa(self) -> float:
        """Young's modulus for which the tractions are stored."""
        return self.youngs_modulus_pa if self.traction_modulus_pa is None else self.traction_modulus_pa


def read_conditions(source: Path, *, needed: Collection[str]) -> Conditions:
    """Return the conditions of the archive in `source`.

    Args:
        source: Folder with `conditions.json`.
        needed: Names, beside the substrate's two, without which this archive cannot be read.

    Raises:
        FileNotFoundError: There is no such file; the message says what to write.
        ValueError: It is no JSON object, lacks a name, has one that is not known, or a value out of range.
    """
    path = source / NAME
    names = ("youngs_modulus_pa", "poisson_ratio", *needed)
    example = json.dumps({name: _EXAMPLE[name] for name in names})
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}: the files do not say on which substrate and at which scale they were made, so write that "
            f"file with your numbers for {example}"
        )
    stored = read_entries(path, example=example)
    for name in names:
        if name not in stored:
            raise ValueError(f"{path} lacks {name}: add it, for example {json.dumps({name: _EXAMPLE[name]})}")
    for name, value in stored.items():
        refuse_unknown(path, name, _ACCEPTED)
        if name in _CHOICES:
            if value not in _CHOICES[name]:
                accepted = ", ".join(_CHOICES[name])
                raise ValueError(f"{path}: {name} must be one of {accepted}, got {json.dumps(value)}: correct it")
            continue
        if not is_number(value) or value <= 0:
            raise ValueError(f"{path}: {name} must be a positive number, got {json.dumps(value)}: correct it")
        if name == "poisson_ratio" and value > 0.5:
            raise ValueError(f"{path}: poisson_ratio must be in (0, 0.5], got {value:g}: correct it")
        if name == "files_per_cell" and value != int(value):
            raise ValueError(f"{path}: files_per_cell must be a whole number, got {value:g}: correct it")
    types: dict[str, type] = {"files_per_cell": int, **dict.fromkeys(_CHOICES, str)}
    return Conditions(**{name: types.get(name, float)(value) for name, value in stored.items()})
