"""What an archive of force movies does not say: scale, time, threshold, unit of the force, and which arrays to take.

They are read from `conditions.json` in the source folder, an object of which every entry is optional as long as the
archive does without:

- `pixel_size_um`: side of a pixel of the images; `frame_interval_s`: time between two frames;
- `threshold_grey`: above which an image shows the cell, 100 as in Pielawski et al. 2020 where it is not given;
- `force_unit`: of force pictures that do not say it themselves: Pa (where it is not given), kPa, pN/um^2 or nN/um^2;
- `image`, `traction_x`, `traction_y`: names of arrays in .npz files, where a file holds more than one candidate.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from datamodules.converters.cell_boxes import THRESHOLD_GREY
from datamodules.converters.conditions_file import NAME, is_number, read_entries, refuse_unknown
from datamodules.converters.force_frames import UNITS_PA, known_unit

_NUMBERS = ("pixel_size_um", "frame_interval_s", "threshold_grey")


class ForceConditions(NamedTuple):
    """What `conditions.json` gives, None where it does not."""

    pixel_size_um: float | None = None
    frame_interval_s: float | None = None
    threshold_grey: float = THRESHOLD_GREY
    force_unit: str = "Pa"
    image: str | None = None
    traction_x: str | None = None
    traction_y: str | None = None


def read_force_conditions(source: Path) -> ForceConditions:
    """Return the conditions of the archive in `source`; ValueError names an entry that is not known or out of range."""
    path = source / NAME
    if not path.is_file():
        return ForceConditions()
    stored = read_entries(path, example='{"pixel_size_um": 0.2, "frame_interval_s": 30}')
    for name, value in stored.items():
        refuse_unknown(path, name, ForceConditions._fields)
        if name in _NUMBERS:
            if not is_number(value) or value < 0 or (value == 0 and name != "threshold_grey"):
                raise ValueError(f"{path}: {name} must be a positive number, got {json.dumps(value)}: correct it")
        elif not isinstance(value, str) or not value:
            raise ValueError(f"{path}: {name} must be a text, got {json.dumps(value)}: correct it")
    if "force_unit" in stored:
        unit = known_unit(stored["force_unit"])
        if unit is None:
            raise ValueError(
                f"{path}: force_unit must be one of {', '.join(UNITS_PA)}, got {json.dumps(stored['force_unit'])}: "
                "correct it"
            )
        stored["force_unit"] = unit
    return ForceConditions(**{name: float(value) if name in _NUMBERS else value for name, value in stored.items()})
