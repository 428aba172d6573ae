"""Pairs of pictures of actin and of nuclei (paper `tfill`), from the authors' folders, other pairs, or channels.

- pairs: two files of one picture. The authors' own: `{Actin,Merged,Nucleus}_..._<number>.tif`; others by the patterns
  `actin_files` and `nucleus_files` of `conditions.json` (see `actin_conditions`), in which `*` stands for what the two
  names share. Pairs are sought in each folder at or below the source.
- channels: TIFF files that hold both (`actin_channel`, `nucleus_channel`).

Slices of a z-stack are projected to their maximum; `tile_px` cuts large pictures into tiles that do not overlap, what
is left at the far edges and tiles with nothing but one grey level belong to none. The scale is never guessed: the paper
prints 159.41 um and 210 um for the same tiles, so `field_um` or `pixel_size_um` must say it.

A group is a slide: a folder, where pictures lie in several, else what a name says before its last number. The authors
tested on the pictures whose number divides by five, whatever their slide: the scheme `parity`, which leaks by design;
numbers that leave 1 on division by ten validate there (ours, they had none). `default` draws whole slides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.batches import Sample
from datamodules.converters.actin_conditions import Conditions, read_conditions
from datamodules.converters.fluorescence_images import TIFF_SUFFIXES, read_plane, tile_corners

FIELDS: dict[str, dict[str, str]] = {
    "actin": {"axes": "cyx", "unit": "grey level"},
    "nucleus": {"axes": "cyx", "unit": "grey level"},
    "pixel_size_um": {"axes": "", "unit": "um"},
}
DEFAULT: dict[str, Any] = {"unit": "group", "train": 0.7, "val": 0.1, "test": 0.2}
PARITY: dict[str, Any] = {"unit": "sample", "train": 0.7, "val": 0.1, "test": 0.2}
"""The shares are nominal: the numbers decide, see `codes`."""
TEST_ONLY: dict[str, dict[str, Any]] = {"default": {"unit": "group", "train": 0.0, "val": 0.0, "test": 1.0}}
SPLITS: dict[str, dict[str, Any]] = {"default": DEFAULT, "parity": PARITY}
GROUP_KEY = "slide"
LEAST_SLIDES = 3
TEST_EVERY, VALIDATE_EVERY, VALIDATE_AT = 5, 10, 1
_NUMBERED = re.compile(r"(?P<slide>.*?)[_\-. ]*(?P<number>\d+)$")


class Entry(NamedTuple):
    """One picture of an archive, before it is read."""

    sample_id: str
    group: str
    number: int | None
    """The last one in its name."""
    actin: Path
    nucleus: Path


def convert(source: Path) -> Iterator[Sample]:
    """Yield the samples of the archive in `source`: actin and nucleus (1, y, x) uint8 or uint16, pixel_size_um.

    Groups are contiguous and in a fixed order. Raises FileNotFoundError or ValueError, naming the file and the mend,
    where the source does not exist, says nothing of its scale, holds no pair, a file without partner, or a damaged,
    constant or contradicting one.
    """
    conditions = read_conditions(source)
    return _samples(_entries(source, conditions), conditions)


def splits(source: Path) -> dict[str, dict[str, Any]]:
    """Return the split schemes that the archive allows: whole slides where there are three or more, and `parity`."""
    conditions = read_conditions(source)
    entries = _entries(source, conditions)
    slides = len({entry.group for entry in entries})
    schemes = {"default": DEFAULT} if slides >= LEAST_SLIDES else dict(TEST_ONLY)
    return schemes | ({"parity": PARITY} if _parity(entries, conditions) is not None else {})


def codes(source: Path) -> dict[str, NDArray[np.int8]]:
    """Return what `parity` puts each sample into, in the order of `convert`: 0 train, 1 val, 2 test."""
    conditions = read_conditions(source)
    parity = _parity(_entries(source, conditions), conditions)
    return {} if parity is None else {"parity": parity}


def provenance(source: Path) -> dict[str, Any]:
    """Return where the samples of `convert` come from and by which rule."""
    conditions = read_conditions(source)
    return {
        "source": source.resolve().name,
        "layout": "channels" if conditions.actin_channel is not None else "pairs",
        "licence": "that of the archive's authors; not ours to grant",
        "conditions": conditions.given,
        "rule": "slices projected to their maximum, colours to theirs; parity: test where the number divides by "
        f"{TEST_EVERY}, validation where it leaves {VALIDATE_AT} on division by {VALIDATE_EVERY}",
    }


# -- finding the pictures ---------------------------------------------------------------------------------------------


def _entries(source: Path, conditions: Conditions) -> list[Entry]:
    folders = [source, *sorted(path for path in source.rglob("*") if path.is_dir())]
    find = _pairs if conditions.actin_channel is None else _channels
    found = [(folder, name, files) for folder in folders for name, files in find(folder, conditions)]
    if not found:
        looked = " and ".join(conditions.patterns) if conditions.actin_channel is None else "TIFF files"
        raise ValueError(
            f"{source} holds no pictures: looked for {looked} in it and the folders below; say in conditions.json "
            "what they are called (actin_files, nucleus_files) or which channels they are"
        )
    by_folder = conditions.slides == "folder" or (
        conditions.slides is None and len({folder for folder, _, _ in found}) > 1
    )
    entries = []
    for folder, name, (actin, nucleus) in found:
        place = "_".join(folder.relative_to(source).parts)
        numbered = _NUMBERED.fullmatch(name)
        slide = numbered["slide"] if numbered else name
        number = int(numbered["number"]) if numbered else None
        joined = [part for part in (place, slide) if part]
        group = place or source.resolve().name if by_folder else "_".join(joined) or source.resolve().name
        entries.append(Entry("_".join(part for part in (place, name) if part), group, number, actin, nucleus))
    seen: dict[str, Entry] = {}
    for entry in entries:
        other = seen.setdefault(entry.sample_id, entry)
        if other is not entry:
            raise ValueError(f"{other.actin} and {entry.actin} would be listed under one name: rename one of them")
    return sorted(entries, key=lambda entry: (entry.group, entry.number or 0, entry.sample_id))


def _pairs(folder: Path, conditions: Conditions) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """What the names of two partners share, and the partners."""
    actin, nucleus = (_matching(folder, pattern) for pattern in conditions.patterns)
    for here, there, pattern in (
        (actin, nucleus, conditions.patterns[1]),
        (nucleus, actin, conditions.patterns[0]),
    ):
        for name, path in here.items():
            if name not in there:
                missing = pattern.replace("*", name)
                raise ValueError(
                    f"{path} has no partner {missing} beside it: put both of a pair into one folder, or remove this one"
                )
    yield from ((name, (actin[name], nucleus[name])) for name in sorted(actin))


def _matching(folder: Path, pattern: str) -> dict[str, Path]:
    before, after = pattern.split("*")
    return {
        path.name[len(before) : len(path.name) - len(after)]: path
        for path in sorted(folder.glob(pattern))
        if path.is_file() and len(path.name) > len(before) + len(after)
    }


def _channels(folder: Path, conditions: Conditions) -> Iterator[tuple[str, tuple[Path, Path]]]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in TIFF_SUFFIXES and path.is_file() and not path.name.startswith("."):
            yield path.name.split(".")[0], (path, path)


def _parity(entries: list[Entry], conditions: Conditions) -> NDArray[np.int8] | None:
    """The authors' split; None where a picture has no number or becomes several tiles, or no train or test is left."""
    numbers = [entry.number for entry in entries if entry.number is not None]
    if conditions.tile_px is not None or len(numbers) < len(entries):
        return None
    number = np.array(numbers)
    split = np.where(number % TEST_EVERY == 0, 2, np.where(number % VALIDATE_EVERY == VALIDATE_AT, 1, 0))
    return split.astype(np.int8) if {0, 2} <= set(split.tolist()) else None


# -- from pictures to samples -----------------------------------------------------------------------------------------


def _samples(entries: list[Entry], conditions: Conditions) -> Iterator[Sample]:
    first: tuple[Path, NDArray[np.generic]] | None = None
    count = 0
    for entry in entries:
        planes = {}
        for name, path, channel in (
            ("actin", entry.actin, conditions.actin_channel),
            ("nucleus", entry.nucleus, conditions.nucleus_channel),
        ):
            planes[name] = _levelled(read_plane(path, channel=channel, pages=conditions.pages or "z"), path, conditions)
        actin, nucleus = planes["actin"], planes["nucleus"]
        if actin.shape != nucleus.shape:
            raise ValueError(
                f"{entry.actin} is {_size(actin)}, but its partner {entry.nucleus} is {_size(nucleus)}: "
                "both must show the same field"
            )
        first = first or (entry.actin, actin)
        for path, plane in ((entry.actin, actin), (entry.nucleus, nucleus)):
            if plane.dtype != first[1].dtype:
                raise ValueError(f"{path} is {plane.dtype}, but {first[0]} is {first[1].dtype}: save both alike")
        if conditions.tile_px is None and actin.shape != first[1].shape:
            raise ValueError(
                f"{entry.actin} is {_size(actin)}, but {first[0]} is {_size(first[1])}: convert each size from a "
                "folder of its own, or let tile_px in conditions.json cut both"
            )
        if conditions.field_um is not None and actin.shape[1] != first[1].shape[1]:
            raise ValueError(
                f"{entry.actin} is {_size(actin)}, but {first[0]} is {_size(first[1])}: field_um in conditions.json is "
                "the width of one size only, give pixel_size_um instead"
            )
        for sample in _tiles(entry, planes, conditions):
            count += 1
            yield sample
    if not count:
        raise ValueError(f"{entries[0].actin.parent} yields no tile: all are blank")


def _tiles(entry: Entry, planes: dict[str, NDArray[np.generic]], conditions: Conditions) -> Iterator[Sample]:
    height, width = planes["actin"].shape
    side = conditions.tile_px
    if side is None and height != width:
        raise ValueError(f"{entry.actin} is {_size(planes['actin'])}, no square: let tile_px in conditions.json cut it")
    if side is not None and side > min(height, width):
        raise ValueError(f"{entry.actin} is {_size(planes['actin'])}, too small for tiles of {side} px: lower tile_px")
    pixel_size_um = np.array(conditions.pixel_size(width), np.float32)
    for top, left in tile_corners((height, width), side or height):
        there = slice(top, top + (side or height)), slice(left, left + (side or width))
        cut = {name: np.ascontiguousarray(plane[there])[np.newaxis] for name, plane in planes.items()}
        if any(plane.min() == plane.max() for plane in cut.values()):
            continue
        name = entry.sample_id if side is None else f"{entry.sample_id}_y{top}_x{left}"
        yield Sample(name, entry.group, {**cut, "pixel_size_um": pixel_size_um})


def _levelled(plane: NDArray[Any], path: Path, conditions: Conditions) -> NDArray[Any]:
    """16-bit grey levels stretched from 0 to `white_level` over the whole type; others as they are."""
    white = conditions.white_level
    if white is None or plane.dtype != np.uint16:
        return plane
    if plane.max() > white:
        raise ValueError(f"{path} has grey levels up to {plane.max()}: raise white_level in conditions.json to that")
    return np.rint(plane * (65535 / white)).astype(np.uint16)


def _size(plane: NDArray[np.generic]) -> str:
    return f"{plane.shape[1]} x {plane.shape[0]} px"
