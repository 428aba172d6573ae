"""Which files are a pair of bead volumes, before and after a cell deforms the gel.

A pair NAME is `NAME_reference` and `NAME_deformed`, each a TIFF stack (.tif, .tiff), a .npy array (z, y, x) or a folder
of z slices (`volume_stacks`); or one file `NAME.npz` with the arrays `reference` and `deformed`. Beside it may lie
`NAME_cell`, a volume of the cell or its mask, and `NAME_beads` (.csv, .txt, .npz, .mat), a table of tracked beads
(`bead_tables`). The reference is the relaxed gel: after the cell has been killed or relaxed, the later recording.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.converters import bead_tables, stored_arrays, volume_stacks
from datamodules.converters.volume_conditions import VolumeConditions, voxel_size_um
from datamodules.converters.volume_stacks import checked_volume, read_volume

SUFFIXES = (*volume_stacks.SUFFIXES, ".npz")
"""Of files that hold volumes."""
STATES = ("reference", "deformed")
VOLUME_ROLES = (*STATES, "cell")
ROLES = (*VOLUME_ROLES, "beads")


class VolumePair(NamedTuple):
    """The files of one pair."""

    name: str
    folder: Path
    files: dict[str, Path]
    """Role to file or folder; both states name the same file where it is .npz."""


class Volumes(NamedTuple):
    """A pair as it was stored; where only one of the two has 16 bits, or fractions, both have."""

    reference: NDArray[Any]
    """(z, y, x)."""
    deformed: NDArray[Any]
    """(z, y, x)."""
    voxel_size_um: tuple[float, float, float]


def find_pairs(folder: Path) -> list[VolumePair]:
    """The pairs in a folder and the folders below it, by name; conditions.json and other files are passed over.

    Raises:
        FileNotFoundError: There is no folder.
        ValueError: A volume has no partner, or two files claim the same place.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no source folder at {folder}")
    return pairs_of(path for path in sorted(folder.rglob("*")) if not path.name.startswith("."))


def pairs_of(paths: Iterable[Path]) -> list[VolumePair]:
    """The pairs among files, folders of slices and single slices; of a pair one of the two volumes is enough.

    Raises:
        ValueError: A volume has no partner, or two files claim the same place.
    """
    pairs: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in paths:
        named = role_of(path)
        if named is None:
            continue
        name, role, path = named
        found = pairs.setdefault((path.parent, name), {})
        for place in STATES if role == "pair" else (role,):
            if found.setdefault(place, path) != path:
                raise ValueError(f"{found[place]} and {path} are both the {place} of {name}: keep one of them")
    complete = []
    for (folder, name), files in pairs.items():
        if not set(files) & set(STATES):
            continue
        for path in sorted(folder.glob(f"{name}_*")):
            beside = role_of(path)
            if beside is not None and beside[0] == name:
                files.setdefault(beside[1], path)
        for state, other in (STATES, STATES[::-1]):
            if state not in files:
                raise ValueError(
                    f"{files[other]} has no partner: a pair is NAME_reference and NAME_deformed, add the {state} volume"
                )
        complete.append(VolumePair(name, folder, files))
    return complete


def read_pair(pair: VolumePair, conditions: VolumeConditions) -> Volumes:
    """Read both volumes of a pair.

    Raises:
        FileNotFoundError, ValueError: A volume cannot be read, or the two differ in size; the file is named.
    """
    told, voxels = None, {}
    if pair.files["reference"].suffix.lower() == ".npz":
        path = pair.files["reference"]
        arrays = stored_arrays.read_arrays(path, STATES)
        for state in STATES:
            if state not in arrays:
                raise ValueError(f"{path} must hold the arrays reference and deformed, it lacks {state}: save it anew")
            voxels[state] = checked_volume(f"{state} in {path}", _as_counted(arrays[state]))
    else:
        for state in STATES:
            found = read_volume(pair.files[state], channel=conditions.channel)
            voxels[state], told = found.voxels, told or found.voxel_size_um
    first, second = (voxels[state].shape for state in STATES)
    if first != second:
        raise ValueError(
            f"{pair.files['deformed']} has {list(second)} voxels (z, y, x), but {pair.files['reference']} has "
            f"{list(first)}: cut both to the same field"
        )
    edges_um = voxel_size_um(pair.folder, conditions, told, pair.files["reference"])
    dtype = np.promote_types(*(voxels[state].dtype for state in STATES))
    return Volumes(*(voxels[state].astype(dtype, copy=False) for state in STATES), edges_um)


def role_of(path: Path) -> tuple[str, str, Path] | None:
    """Name of the pair, role and file (of a single slice its folder); None for what belongs to no pair.

    Of a file that holds both volumes the role is "pair".
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        named = _split(path.name, VOLUME_ROLES)
        return (*named, path) if named else None
    if suffix in SUFFIXES:
        inside = _split(path.parent.name, VOLUME_ROLES) if suffix in volume_stacks.TIFF_SUFFIXES else None
        if inside is not None and _split(path.stem, ROLES) is None:
            return (*inside, path.parent)
        volume = _split(path.stem, VOLUME_ROLES) if suffix != ".npz" else None
        if volume is not None:
            return (*volume, path)
        beads = _split(path.stem, ("beads",))
        if suffix == ".npz":
            return (*beads, path) if beads else (path.stem, "pair", path)
    elif suffix in bead_tables.SUFFIXES:
        beads = _split(path.stem, ("beads",))
        return (*beads, path) if beads else None
    return None


def _split(stem: str, roles: Iterable[str]) -> tuple[str, str] | None:
    name, separator, role = stem.rpartition("_")
    return (name, role) if separator and name and role in roles else None


def _as_counted(array: NDArray[np.float64]) -> NDArray[Any]:
    """Whole grey levels as the integers they were."""
    whole = bool((array == np.rint(array)).all()) and array.min() >= 0 and array.max() <= np.iinfo(np.uint16).max
    if not whole:
        return array.astype(np.float32)
    return array.astype(np.uint16)  # of 8 bits or not, one type for all pairs
