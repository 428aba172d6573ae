"""Movies of cells with force pictures, as Pielawski et al. 2020 published them (Zenodo 3484797).

    20160809-002-xy1RAW/     frames of the sensor, what the network sees
    20160809-002-xy1FRET/    optional, not read, but it must have as many frames
    20160809-002-xy1FORCE/   magnitude of the traction, frame by frame
    20160809-002-xy1_bbox.csv    optional, the boxes of `cell_boxes`

in the source folder or one below it; any other name may stand before RAW. Frames are paired in the order of their
names, numbers in them compared as numbers; where one number counts the frames, it must count them alike in all folders
(from 0 in one and from 1 in another is alike too). A number left out is a frame left out: times follow the numbers.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from datamodules.converters.cell_boxes import Box, read_boxes
from datamodules.converters.force_frames import SUFFIXES

CHANNELS = ("RAW", "FRET", "FORCE")
PUBLISHED = frozenset(
    f"{experiment}-xy{position}"
    for experiment in ("20160809-002", "20160809-003", "20160810-001", "20160810-002")
    for position in range(1, 7)
)
"""Names of the published cells."""
_FOLDER = re.compile(r"(?P<cell>.+?)[-_ ]?(?P<channel>RAW|FRET|FORCE)")


class ForceMovie(NamedTuple):
    """The files of one cell."""

    cell: str
    images: list[Path]
    forces: list[Path]
    boxes: dict[str, Box] | None
    """By file name of the image; None without a table."""
    table: Path
    """Where the boxes are or would be."""
    moments: list[int]
    """Which frame of the movie each image is, from 0: a number that its names leave out is left out here too."""


def find_force_movies(source: Path) -> list[ForceMovie]:
    """Return the movies in `source`, sorted by cell; none where it has no folder named `...RAW` or `...FORCE`.

    Raises:
        ValueError: Folders of one cell do not belong together, or a table of boxes cannot be read; they are named.
    """
    folders: dict[str, dict[str, Path]] = {}
    for folder in sorted(path for depth in ("*/", "*/*/") for path in source.glob(depth)):
        match = _FOLDER.fullmatch(folder.name)
        if match is None or folder.name.startswith("."):
            continue
        known = folders.setdefault(match["cell"], {})
        if match["channel"] in known:
            raise ValueError(f"{known[match['channel']]} and {folder} are of one cell: rename or remove one of them")
        known[match["channel"]] = folder
    return [_movie(cell, found) for cell, found in sorted(folders.items(), key=lambda item: in_order(item[0]))]


def in_order(name: str) -> tuple[list[int | str], str]:
    """Sort key of a name, numbers in it by their value.

    >>> sorted(["t10", "t9", "t09"], key=in_order)
    ['t09', 't9', 't10']
    """
    # texts and numbers alternate, so that like is compared with like
    parts = re.split(r"(\d+)", name)
    return [int(part) if odd % 2 else part for odd, part in enumerate(parts)], name


def _movie(cell: str, folders: dict[str, Path]) -> ForceMovie:
    there = next(iter(folders.values()))
    for channel in ("RAW", "FORCE"):
        if channel not in folders:
            raise ValueError(
                f"{there} has no folder {cell}{channel} beside it: add it, or take the cell out of the archive"
            )
    frames = {channel: _frames(folder) for channel, folder in folders.items()}
    counts = {channel: len(files) for channel, files in frames.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{channel} {counts[channel]}" for channel in CHANNELS if channel in counts)
        raise ValueError(
            f"{folders['RAW'].parent / cell}: its folders hold different numbers of frames ({listed}): every frame "
            "needs all of them, add or remove what is missing or too much"
        )
    for channel in sorted(frames.keys() - {"RAW"}):
        pair = _first_unlike(frames["RAW"], frames[channel])
        if pair is not None:
            raise ValueError(
                f"{pair[0]} and {pair[1]} would be a pair, but their numbers differ: add the frame that is missing in "
                "one of the folders, or rename the files so that frames of one moment have one number"
            )
    if not frames["RAW"]:
        raise ValueError(f"{folders['RAW']} holds no frame ({', '.join(SUFFIXES)}): add them or remove the folder")
    table = folders["RAW"].parent / f"{cell}_bbox.csv"
    boxes = read_boxes(table) if table.is_file() else None
    return ForceMovie(cell, frames["RAW"], frames["FORCE"], boxes, table, _moments(frames["RAW"]))


def _frames(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())
    return sorted(found, key=lambda path: in_order(path.name))


def _first_unlike(images: list[Path], others: list[Path]) -> tuple[Path, Path] | None:
    """The first pair whose frame numbers differ; None where they agree or the names do not tell."""
    left, right = _counting(images), _counting(others)
    if any(_alike(a, b) for a in left for b in right):
        return None
    sure = len(left) == len(right) == 1
    for a, b in ((a, b) for a in left for b in right if sure or _steps(a) == _steps(b)):
        pairs = zip(images, others, a, b, strict=True)
        return next((image, other) for image, other, i, j in pairs if i + _shift(a, b) != j)
    return None


def _alike(a: list[int], b: list[int]) -> bool:
    return [number + _shift(a, b) for number in a] == b


def _shift(a: list[int], b: list[int]) -> int:
    return b[0] - a[0] if {a[0], b[0]} == {0, 1} else 0


def _steps(numbers: list[int]) -> list[int]:
    return [after - before for before, after in pairwise(numbers)]


def _counting(files: list[Path]) -> list[list[int]]:
    """Every number of the names that differs between the files, as a course over the files."""
    numbers = [[int(digits) for digits in re.findall(r"\d+", path.stem)] for path in files]
    if len({len(row) for row in numbers}) != 1:
        return []
    return [list(column) for column in zip(*numbers, strict=True) if len(set(column)) > 1]


def _moments(files: list[Path]) -> list[int]:
    """Which frame of the movie each file is, from the one number that counts them, else their place in the list."""
    courses = _counting(files)
    if len(courses) != 1 or min(_steps(courses[0])) < 1:
        return list(range(len(files)))
    step = math.gcd(*_steps(courses[0]))
    return [(number - courses[0][0]) // step for number in courses[0]]
