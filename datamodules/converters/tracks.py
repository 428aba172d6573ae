"""Recordings with tracked objects: numbered frames plus positions, as the Cell Tracking Challenge publishes them.

A recording `02` is a folder of frames `02/t000.tif, t001.tif, ...` (or `frames/` where there is only one recording)
and its tracks, from either of two sources:

- `csv`: a table beside the frames with the columns track_id, frame, x_px, y_px (x along a row, y down the rows, 0 at
  the centre of the first pixel); further columns are ignored. With several recordings its name ends in `_02.csv`.
- `labels`: the challenge's `02_GT/TRA/man_track.txt` (one line `label begin end parent` per track) and one label image
  `man_trackNNN.tif` per frame; a position is the centroid of the pixels that carry the label.

Nothing here knows what the tracks are used for.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.converters.grey_images import read_stored

TrackSource = Literal["csv", "labels"]
CSV_COLUMNS = ("track_id", "frame", "x_px", "y_px")


@dataclass(frozen=True)
class Track:
    """One tracked object, in the order of its frames."""

    track_id: int
    frame: np.ndarray
    """(n,) int64, numbers of the frames, increasing."""
    xy_px: np.ndarray
    """(n, 2) float64, position (x, y) in pixels, x along a row, y down the rows."""


@dataclass(frozen=True)
class Recording:
    """One sequence of frames and where its tracks are."""

    name: str
    frames: dict[int, Path]
    """Frame number to file, increasing."""
    csv: Path | None
    labels: Path | None

    def source(self, wanted: TrackSource | None) -> TrackSource:
        """Return where the tracks come from: `wanted`, or the csv where there are both.

        The csv is preferred because it says the positions outright; ValueError where the wanted source is missing.
        """
        if wanted == "csv" and self.csv is None:
            raise ValueError(f"recording {self.name!r} has no csv with the columns {', '.join(CSV_COLUMNS)}")
        if wanted == "labels" and self.labels is None:
            raise ValueError(f"recording {self.name!r} has no label images: no {self.name}_GT/TRA/man_track.txt")
        return wanted or ("csv" if self.csv is not None else "labels")

    def tracks(self, wanted: TrackSource | None = None) -> list[Track]:
        """Return the tracks in the order of their ids; ValueError where they are damaged or name a missing frame."""
        if self.source(wanted) == "csv":
            assert self.csv is not None
            origin, tracks = self.csv, read_csv_tracks(self.csv)
        else:
            assert self.labels is not None
            origin, tracks = self.labels, read_label_tracks(self.labels)
        for track in tracks:
            missing = [int(frame) for frame in track.frame if int(frame) not in self.frames]
            if missing:
                first, last = min(self.frames), max(self.frames)
                raise ValueError(
                    f"{origin} places track {track.track_id} in frame {missing[0]}, which is not among the "
                    f"{len(self.frames)} frames t{first:03d} to t{last:03d} of recording {self.name!r}"
                )
        return tracks


def find_recordings(source: Path) -> list[Recording]:
    """Return the tracked recordings directly in `source`, by name; an empty list where there is no trace of tracks.

    Raises ValueError where two tables claim the same recording and FileNotFoundError where tracks have no frames.
    """
    labels = {
        path.parent.parent.name.removesuffix("_GT"): path.parent for path in source.glob("*_GT/TRA/man_track.txt")
    }
    tables = [path for path in sorted(source.glob("*.csv")) if _holds_positions(path)]
    claims: dict[str, Path | None] = dict.fromkeys(labels)
    for table in tables:
        numbered = re.search(r"_(\d+)$", table.stem)
        name = numbered[1] if numbered else next(iter(labels)) if len(labels) == 1 else table.stem
        if claims.get(name) is not None:
            raise ValueError(f"{claims[name]} and {table} both hold tracks of recording {name!r}: keep one of them")
        claims[name] = table
    return [
        Recording(name, _frames_of(source, name, alone=len(claims) == 1), claims[name], labels.get(name))
        for name in sorted(claims)
    ]


def numbered_images(folder: Path, prefix: str) -> dict[int, Path]:
    """Return number to path of the files `<prefix><digits>.tif` in `folder`, in increasing order."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.tiff?", re.IGNORECASE)
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := pattern.fullmatch(path.name):
            number = int(match[1])
            if number in found:
                raise ValueError(f"{found[number]} and {path.name} are both frame {number}: keep one of them")
            found[number] = path
    return dict(sorted(found.items()))


def read_csv_tracks(path: Path) -> list[Track]:
    """Return the tracks in a table with the columns track_id, frame, x_px, y_px.

    Raises ValueError, with the file and line, for a value that is no finite number, a fractional track or frame
    number, and a track that is in one frame twice.
    """
    rows: dict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
    with path.open(newline="", encoding="utf-8-sig") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            track_id, frame = (_number(row[name], name, path, line, whole=True) for name in ("track_id", "frame"))
            x, y = (_number(row[name], name, path, line) for name in ("x_px", "y_px"))
            if int(frame) in rows[int(track_id)]:
                raise ValueError(f"{path}, line {line}: track {int(track_id)} is in frame {int(frame)} twice")
            rows[int(track_id)][int(frame)] = (x, y)
    if not rows:
        raise ValueError(f"{path} holds no track")
    return _tracks(rows)


def read_label_tracks(folder: Path) -> list[Track]:
    """Return the tracks in a Cell Tracking Challenge folder `TRA`, positions the centroids of the labels.

    Raises ValueError where a label image and man_track.txt do not agree on which labels a frame holds, and
    FileNotFoundError where there is no label image.
    """
    table = folder / "man_track.txt"
    spans = _read_spans(table)
    images = numbered_images(folder, "man_track")
    if not images:
        raise FileNotFoundError(f"no label image {folder / 'man_track000.tif'} beside {table.name}")
    rows: dict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
    for frame, path in images.items():
        found = _centroids(path)
        expected = {label for label, (begin, end) in spans.items() if begin <= frame <= end}
        if set(found) != expected:
            label = min(set(found) ^ expected)
            there, said = ("has", "does not place it") if label in found else ("lacks", "places it")
            raise ValueError(f"{path} {there} label {label}, but {table} {said} in frame {frame}")
        for label, xy in found.items():
            rows[label][frame] = xy
    for label, (_, end) in spans.items():
        if end > max(images):
            raise ValueError(f"{table} follows track {label} to frame {end}, the label images end at {max(images)}")
    return _tracks(rows)


def _tracks(rows: dict[int, dict[int, tuple[float, float]]]) -> list[Track]:
    return [
        Track(track_id, np.array(sorted(rows[track_id])), np.array([rows[track_id][f] for f in sorted(rows[track_id])]))
        for track_id in sorted(rows)
    ]


def _centroids(path: Path) -> dict[int, tuple[float, float]]:
    image = read_stored(path)
    if image.ndim != 2 or not np.issubdtype(image.dtype, np.integer):
        raise ValueError(f"{path} is no label image: one plane of whole numbers was expected, got {image.dtype}")
    y, x = np.nonzero(image)
    labels, which, pixels = np.unique(image[y, x], return_inverse=True, return_counts=True)
    mean_x, mean_y = (np.bincount(which, weights=axis, minlength=len(labels)) / pixels for axis in (x, y))
    return {int(label): (float(mean_x[i]), float(mean_y[i])) for i, label in enumerate(labels)}


def _read_spans(table: Path) -> dict[int, tuple[int, int]]:
    spans: dict[int, tuple[int, int]] = {}
    for line, text in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        parts = text.split()
        if len(parts) != 4 or not all(part.isdigit() for part in parts):
            raise ValueError(f"{table}, line {line}: expected 'label begin end parent', got {text!r}")
        label, begin, end, _ = map(int, parts)
        if label in spans:
            raise ValueError(f"{table}, line {line}: track {label} is listed twice")
        spans[label] = (begin, end)
    if not spans:
        raise ValueError(f"{table} lists no track")
    return spans


def _number(text: str | None, name: str, path: Path, line: int, *, whole: bool = False) -> float:
    try:
        value = float(text or "nan")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or (whole and not value.is_integer()):
        kind = "a whole number" if whole else "a finite number"
        raise ValueError(f"{path}, line {line}: {name} must be {kind}, got {text!r}")
    return value


def _holds_positions(path: Path) -> bool:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return set(CSV_COLUMNS) <= set(next(csv.reader(file), []))


def _frames_of(source: Path, name: str, *, alone: bool) -> dict[int, Path]:
    folders = [source / name] + ([source / "frames"] if alone else [])
    for folder in folders:
        if frames := numbered_images(folder, "t"):
            return frames
    looked = " or ".join(str(folder / "t000.tif") for folder in folders)
    raise FileNotFoundError(f"recording {name!r} has tracks but no frames: looked for {looked}")
