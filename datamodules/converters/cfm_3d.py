"""Pairs of bead volumes (paper `cfm_3d`), from the files that microscopes and trackers leave behind.

A source folder holds pairs, directly or in folders (`volume_pairs`: NAME_reference and NAME_deformed as TIFF stacks,
.npy or folders of slices, or NAME.npz), and beside the volumes a conditions.json (`volume_conditions`). What tracked
beads and a volume of the cell add, and how drift is removed, is said in `measured_volumes`. All pairs of a source have
one size, and beads and cell for all pairs or for none; force is known for none. Data sets hold no NaN: where no bead
was tracked `displacement_um` is 0 and `displacement_known` says so.

A group is one cell: pairs in one sub-folder show the same cell, pairs directly in the source one each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.batches import Sample
from datamodules.converters.measured_volumes import CELL_MARGIN_UM, pair_values
from datamodules.converters.volume_conditions import VolumeConditions, read_volume_conditions
from datamodules.converters.volume_pairs import VolumePair, Volumes, find_pairs, read_pair

FIELDS: dict[str, dict[str, str]] = {
    "reference": {"axes": "czyx", "unit": "grey level"},
    "deformed": {"axes": "czyx", "unit": "grey level"},
    "displacement_um": {"axes": "czyx", "unit": "um"},
    "displacement_known": {"axes": "czyx", "unit": "mask"},
    "cell_mask": {"axes": "czyx", "unit": "mask"},
    "drift_um": {"axes": "cz", "unit": "um"},
    "voxel_size_um": {"axes": "a", "unit": "um"},
    "youngs_modulus_pa": {"axes": "", "unit": "Pa"},
    "poisson_ratio": {"axes": "", "unit": "1"},
}
"""Without the two of the displacement where the source has no beads, without `cell_mask` where it has no cells."""
GROUP_KEY = "cell"
SPLITS: dict[str, dict[str, Any]] = {"default": {"unit": "group", "train": 0.8, "val": 0.1, "test": 0.1}}
TEST_ONLY: dict[str, dict[str, Any]] = {"default": {"unit": "group", "test": 1.0}}
"""Where there is nothing to train on: no beads, or fewer cells than splits."""
OPTIONAL = {"beads": ("displacement_um", "displacement_known"), "cell": ("cell_mask",)}


class _Archive(NamedTuple):
    source: Path
    pairs: list[VolumePair]
    conditions: dict[Path, VolumeConditions]
    """By folder."""
    holds: set[str]
    """Of beads and cell."""

    def group(self, pair: VolumePair) -> str:
        inside = pair.folder.relative_to(self.source)
        return pair.name if inside == Path() else inside.as_posix().replace("/", "_")

    def sample_id(self, pair: VolumePair) -> str:
        inside = pair.folder.relative_to(self.source)
        return pair.name if inside == Path() else f"{self.group(pair)}_{pair.name}"


def convert(source: Path) -> Iterator[Sample]:
    """Yield the samples of the pairs in `source`, groups contiguous and in a fixed order.

    Raises FileNotFoundError or ValueError, naming the file and the mend, where the source does not exist, holds no
    pair, says nothing of its conditions, or a file is damaged or does not fit to its partner or the first pair.
    """
    return _samples(_archive(Path(source)))


def fields(source: Path) -> dict[str, dict[str, str]]:
    """Return the fields of the samples of `convert`."""
    holds = _archive(Path(source)).holds
    left_out = {name for role, names in OPTIONAL.items() if role not in holds for name in names}
    return {name: dict(entry) for name, entry in FIELDS.items() if name not in left_out}


def splits(source: Path) -> dict[str, dict[str, Any]]:
    """Return the split schemes that the source allows: for testing only without beads or with few cells."""
    archive = _archive(Path(source))
    cells = len({archive.group(pair) for pair in archive.pairs})
    return SPLITS if "beads" in archive.holds and cells >= 3 else TEST_ONLY


def provenance(source: Path) -> dict[str, Any]:
    """Return where the samples of `convert` come from and by which rule."""
    archive = _archive(Path(source))
    given = {
        folder.relative_to(archive.source).as_posix(): {k: v for k, v in stated._asdict().items() if v is not None}
        for folder, stated in archive.conditions.items()
    }
    return {
        "source": archive.source.resolve().name,
        "licence": "that of the recordings' owner; not ours to grant",
        "conditions": given,
        "rule": "displacement known in the voxels of tracked beads, 0 elsewhere; drift by depth removed as "
        f"conditions.json says; cell mask and {CELL_MARGIN_UM:g} um around it",
    }


def _archive(source: Path) -> _Archive:
    pairs = find_pairs(source)
    if not pairs:
        raise ValueError(
            f"{source} holds no pair of bead volumes: name the two stacks NAME_reference.tif and NAME_deformed.tif, or "
            "save both as arrays reference and deformed in NAME.npz"
        )
    pairs = sorted(pairs, key=lambda pair: (pair.folder.relative_to(source).as_posix(), pair.name))
    holds = set()
    for role in OPTIONAL:
        without = [pair for pair in pairs if role not in pair.files]
        if len(without) == len(pairs):
            continue
        if without:
            raise ValueError(
                f"{without[0].folder / without[0].name}_{role} is missing, other pairs of {source} have theirs: add "
                "it, or convert the pairs without from a folder of their own"
            )
        holds.add(role)
    conditions = {pair.folder: read_volume_conditions(pair.folder) for pair in pairs}
    return _Archive(source, pairs, conditions, holds)


# -- from files to samples --------------------------------------------------------------------------------------------


def _samples(archive: _Archive) -> Iterator[Sample]:
    first: Volumes | None = None
    for pair in archive.pairs:
        conditions = archive.conditions[pair.folder]
        volumes = read_pair(pair, conditions)
        first = first or volumes
        for name, found, wanted in (
            ("voxels (z, y, x)", volumes.reference.shape, first.reference.shape),
            ("voxels of dtype", volumes.reference.dtype, first.reference.dtype),
        ):
            if found != wanted:
                raise ValueError(
                    f"{pair.files['reference']} has {name} {found}, but {archive.pairs[0].files['reference']} has "
                    f"{wanted}: convert each kind from a folder of its own"
                )
        values = pair_values(pair, volumes, conditions)
        if "displacement_um" in values:
            known = np.isfinite(values["displacement_um"]).all(axis=0, keepdims=True)
            values["displacement_known"] = known.astype(np.uint8)
            values["displacement_um"] = np.where(known, values["displacement_um"], np.float32(0))
        yield Sample(
            archive.sample_id(pair), archive.group(pair), {name: values[name] for name in FIELDS if name in values}
        )
