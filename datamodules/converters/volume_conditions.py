"""What pairs of bead volumes do not say: the gel and the size of a voxel.

They are read from `conditions.json` beside the volumes, an object with

- `youngs_modulus_pa`: of the gel, > 0; `poisson_ratio`: of the gel, in [0, 0.5);
- `voxel_size_um`: edges of a voxel in um, [z, y, x]; may be left out where the TIFF files tell it (ImageJ);
- `channel` (optional): which channel shows the beads, counted from 0; `cell_channel`: the same for volumes of the cell;
- `drift_correction` (optional): "none", "beads" or "correlation", see `converters.cfm_3d`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.converters.conditions_file import NAME, is_number, read_entries, refuse_unknown

_EXAMPLE: dict[str, Any] = {"voxel_size_um": [0.8, 0.3, 0.3], "youngs_modulus_pa": 1000, "poisson_ratio": 0.45}
_OPTIONAL = ("channel", "cell_channel", "drift_correction")
DRIFT_CORRECTIONS = ("none", "beads", "correlation")
SMALLEST_VOXEL_UM, LARGEST_VOXEL_UM = 0.02, 20.0
"""What light microscopes make; a number outside is taken for another unit."""


class VolumeConditions(NamedTuple):
    """What `conditions.json` gives."""

    youngs_modulus_pa: float
    poisson_ratio: float
    voxel_size_um: tuple[float, float, float] | None
    """(z, y, x); None where the file does not give it."""
    channel: int | None = None
    cell_channel: int | None = None
    drift_correction: str = "none"


def read_volume_conditions(folder: Path) -> VolumeConditions:
    """Return the conditions of the volumes in `folder`.

    Raises:
        FileNotFoundError: There is no such file; the message says what to write.
        ValueError: It is no JSON object, lacks an entry, has one that is not known, or a value out of range.
    """
    path = folder / NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}: the volumes do not say in which gel they were made, so write that file with your numbers for "
            f"{json.dumps(_EXAMPLE)}, the voxel in the order z, y, x"
        )
    stored = read_entries(path, example=json.dumps(_EXAMPLE))
    for name in stored:
        refuse_unknown(path, name, (*_EXAMPLE, *_OPTIONAL))
    modulus = _number(path, stored, "youngs_modulus_pa")
    if not modulus > 0:
        raise ValueError(f"{path}: youngs_modulus_pa must be positive, got {modulus:g}: correct it")
    ratio = _number(path, stored, "poisson_ratio")
    if not 0 <= ratio < 0.5:
        raise ValueError(
            f"{path}: poisson_ratio must lie in [0, 0.5), got {ratio:g}: at 0.5 displacements do not tell the stress, "
            "write for example 0.49"
        )
    drift = stored.get("drift_correction", "none")
    if drift not in DRIFT_CORRECTIONS:
        raise ValueError(
            f"{path}: drift_correction must be one of {', '.join(DRIFT_CORRECTIONS)}, got {json.dumps(drift)}"
        )
    channels = {name: _whole(path, stored, name) for name in ("channel", "cell_channel")}
    return VolumeConditions(
        modulus, ratio, _voxel(path, stored.get("voxel_size_um")), drift_correction=drift, **channels
    )


def voxel_size_um(
    folder: Path, conditions: VolumeConditions, told_um: tuple[float, float, float] | None, volume: Path
) -> tuple[float, float, float]:
    """The voxel's edges (z, y, x): what conditions.json says, else what the file tells; ValueError without either."""
    if conditions.voxel_size_um is not None:
        return conditions.voxel_size_um
    if told_um is None:
        raise ValueError(
            f"{folder / NAME} lacks voxel_size_um and {volume} does not tell it: add it in um and the order z, y, x, "
            f"for example {json.dumps(_EXAMPLE['voxel_size_um'])}"
        )
    return _in_range(str(volume), told_um)


def _voxel(path: Path, value: Any) -> tuple[float, float, float] | None:
    if value is None:
        return None
    numbers = isinstance(value, list) and len(value) == 3 and all(is_number(edge) for edge in value)
    if not numbers:
        raise ValueError(f"{path}: voxel_size_um must be three numbers [z, y, x], got {json.dumps(value)}: correct it")
    return _in_range(str(path), (float(value[0]), float(value[1]), float(value[2])))


def _in_range(where: str, edges_um: tuple[float, float, float]) -> tuple[float, float, float]:
    if not all(SMALLEST_VOXEL_UM <= edge <= LARGEST_VOXEL_UM for edge in edges_um):
        raise ValueError(
            f"{where}: voxel_size_um is {list(edges_um)}, edges of {SMALLEST_VOXEL_UM:g} to {LARGEST_VOXEL_UM:g} um "
            "were expected: give micrometres, in the order z, y, x"
        )
    return edges_um


def _number(path: Path, stored: dict[str, Any], name: str) -> float:
    if name not in stored:
        raise ValueError(f"{path} lacks {name}: add it, for example {json.dumps({name: _EXAMPLE[name]})}")
    if not is_number(stored[name]):
        raise ValueError(f"{path}: {name} must be a finite number, got {json.dumps(stored[name])}: correct it")
    return float(stored[name])


def _whole(path: Path, stored: dict[str, Any], name: str) -> int | None:
    value = stored.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"{path}: {name} must be a whole number counted from 0, got {json.dumps(value)}: correct it")
    return value
