"""Images of migrating cells with their direction (paper `circular`), from the archives they are published in.

`convert` recognises three layouts of the source folder:

- tracked recordings (U373 of the Cell Tracking Challenge, PhC-C2DH-U373): frames and tracks as described in
  `datamodules.converters.tracks`. The patches and their labels follow the rule of the data source's own script
  (Nishimoto et al. 2019, PLOS ONE, 10.1371/journal.pone.0221245): a window of 170 x 170 px around the position,
  dropped where it leaves the frame, resized to 128 x 128 by area; the direction is that of the net displacement to the
  first later position of the track that lies farther than a threshold away. The script's threshold is 18 um, Bruns et
  al. (2024, arXiv 2406.19162) write "> 5 um": `threshold_um` chooses, 18 is the default.
- folds: Nishimoto's patches, `fold0/train/0_upper_right/<cell>_<frame>.tif` beside a table of the same name whose last
  row holds `angle_net` in degrees, counted with y pointing down. Every patch lies in several folds and is yielded once.
- degrees: one folder per whole degree, `0/` to `359/`, y pointing up, as the code of Bruns et al. reads them.

One sample: `image` (1, 128, 128) uint8; `angle_rad` float64 in radians, counter-clockwise as displayed (y up), 0 =
right, in [0, 2 pi); `frame` int32, -1 where the file name tells none. A group is one tracked cell.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from datamodules.batches import Sample
from datamodules.converters.grey_images import SUFFIXES, grey_plane, read_grey, read_stored
from datamodules.converters.tracks import Recording, Track, TrackSource, find_recordings

FIELDS: dict[str, dict[str, str]] = {
    "image": {"axes": "cyx", "unit": "grey level"},
    "angle_rad": {"axes": "", "unit": "rad"},
    "frame": {"axes": "", "unit": "1"},
}

# Bruns et al.: four independent draws of 40/10/50. Theirs are over patches, which puts frames of one cell on both
# sides: patch_fold0..3 are kept only for parity and leak by design; fold0..3 draw whole cells.
_SHARES = {"train": 0.4, "val": 0.1, "test": 0.5}
GROUP_KEY = "tracked cell"
SPLITS: dict[str, dict] = {
    "default": {"unit": "group", **_SHARES},
    **{f"fold{k}": {"unit": "group", **_SHARES} for k in range(4)},
    **{f"patch_fold{k}": {"unit": "sample", **_SHARES} for k in range(4)},
}

IMAGE_SIZE_PX = 128
WINDOW_PX = 170
PIXEL_SIZE_UM = 0.65
THRESHOLD_UM = 18.0
"""The source script's; the text of Bruns et al. says 5."""

# The source's class folders by the angle at which each quadrant begins, in degrees, y up.
_QUADRANTS = {"0_upper_right": 0.0, "1_upper_left": 90.0, "2_lower_left": 180.0, "3_lower_right": 270.0}
_BORDER_DEG = 1e-6

# `train_` and `fold0_train_` are put before the name by a public script that turns folds into degrees.
_CELL_AND_FRAME = re.compile(r"(?P<cell>.+)_(?P<frame>\d+)")
_FOLD_PREFIX = re.compile(r"^(fold\d+_)?(train|test)_")


class _Patch(NamedTuple):
    """A file that holds one patch, before it is read."""

    group: str
    frame: int
    sample_id: str
    path: Path
    angle_deg: float
    """y up, in [0, 360)."""


def convert(source: Path, *, tracks: TrackSource | None = None, threshold_um: float = THRESHOLD_UM) -> Iterator[Sample]:
    """Yield the samples of the archive in `source`, groups contiguous and in a fixed order.

    `tracks` ("csv" or "labels") and `threshold_um` concern tracked recordings only; without `tracks` the csv is
    preferred to the label images. Raises FileNotFoundError or ValueError, naming the file, where the source does not
    exist, has none of the three layouts, is damaged, or yields nothing.
    """
    _check_arguments(tracks, threshold_um)
    layout = _layout(source)
    if layout == "recordings":
        return _from_recordings(source, find_recordings(source), tracks, threshold_um)
    if tracks is not None:
        raise ValueError(f"tracks={tracks!r} needs frames with tracks, but {source} holds patches in {layout}")
    return _from_patches(source, _fold_patches(source) if layout == "folds" else _degree_patches(source), layout)


def provenance(
    source: Path, *, tracks: TrackSource | None = None, threshold_um: float = THRESHOLD_UM
) -> dict[str, str]:
    """Return where the samples of `convert`, called with the same arguments, come from and by which rule."""
    _check_arguments(tracks, threshold_um)
    layout = _layout(source)
    said = {"source": source.resolve().name, "layout": layout}
    if layout == "recordings":
        chosen = {recording.name: recording.source(tracks) for recording in find_recordings(source)}
        return said | {
            "licence": "Cell Tracking Challenge terms of use, or those of the recording's owner; not ours to grant",
            "tracks": ", ".join(f"{name}: {kind}" for name, kind in chosen.items()),
            "rule": (
                f"window {WINDOW_PX} x {WINDOW_PX} px around (int(x), int(y)), near side >= 0, far side < frame size; "
                f"direction to the first later position farther than {threshold_um:g} um, pixel size "
                f"{PIXEL_SIZE_UM:g} um; resized to {IMAGE_SIZE_PX} x {IMAGE_SIZE_PX} by area"
            ),
        }
    rules = {
        "folds": "angle_net of the last row of each table, degrees with y down, turned to y up; "
        "16-bit patches stretched from their minimum and maximum to 0..255 as the source's own reader does",
        "degrees": "angle = name of the folder in degrees, y up; cell = file name without its last number",
    }
    return said | {"licence": "that of the archive's authors; not ours to grant", "rule": rules[layout]}


def _check_arguments(tracks: str | None, threshold_um: float) -> None:
    if tracks not in (None, "csv", "labels"):
        raise ValueError(f"tracks must be 'csv', 'labels' or None, got {tracks!r}")
    if not (np.isfinite(threshold_um) and threshold_um > 0):
        raise ValueError(f"threshold_um must be positive, got {threshold_um}")


def _layout(source: Path) -> str:
    if not source.is_dir():
        raise FileNotFoundError(f"no source folder at {source}")
    if find_recordings(source):
        return "recordings"
    if _fold_parents(source):
        return "folds"
    if _degree_folders(source):
        return "degrees"
    raise ValueError(
        f"{source} has none of the layouts of paper circular: looked for frames with tracks (02/t000.tif or "
        "frames/t000.tif with 02_GT/TRA/man_track.txt or a csv with the columns track_id, frame, x_px, y_px), for "
        "folds (fold0/train/0_upper_right/<cell>_<frame>.tif), and for one folder of images per degree (0/ to 359/)"
    )


def _from_recordings(
    source: Path, recordings: list[Recording], wanted: TrackSource | None, threshold_um: float
) -> Iterator[Sample]:
    count = 0
    for recording in recordings:
        prefix = f"seq{recording.name}_" if len(recordings) > 1 else ""
        first = next(iter(recording.frames.values()))
        shape = read_grey(first).shape
        for track in recording.tracks(wanted):
            group = f"{prefix}track{track.track_id:02d}"
            for row, angle_rad in _directions(track, shape, threshold_um):
                frame = int(track.frame[row])
                image = read_grey(recording.frames[frame])
                if image.shape != shape:
                    raise ValueError(
                        f"{recording.frames[frame]} is {_size(image.shape)}, but {first} is {_size(shape)}"
                    )
                count += 1
                patch = _window(image, track.xy_px[row])
                yield Sample(f"{group}_t{frame:03d}", group, _fields(patch, angle_rad, frame))
    if not count:
        raise ValueError(
            f"{source} yields no patch: no track moves farther than {threshold_um:g} um from a position that is at "
            f"least {WINDOW_PX // 2} px from the edge of its frame"
        )


def _directions(track: Track, shape: tuple[int, ...], threshold_um: float) -> Iterator[tuple[int, float]]:
    """Yield (row of the track, direction in rad) of every position that gives a patch."""
    half = WINDOW_PX // 2
    for row, (x, y) in enumerate(track.xy_px.astype(np.int64)):
        inside = x - half >= 0 and y - half >= 0 and x + half < shape[1] and y + half < shape[0]
        if not inside:
            continue
        net_px = track.xy_px[row + 1 :] - track.xy_px[row]
        far = np.flatnonzero(PIXEL_SIZE_UM * np.hypot(net_px[:, 0], net_px[:, 1]) > threshold_um)
        if far.size:
            dx, dy = net_px[far[0]]
            yield row, _positive(np.arctan2(-dy, dx), 2 * np.pi)


def _window(frame: np.ndarray, xy_px: np.ndarray) -> np.ndarray:
    half = WINDOW_PX // 2
    x, y = xy_px.astype(np.int64)
    window = frame[y - half : y + half, x - half : x + half]
    return cv2.resize(window, (IMAGE_SIZE_PX, IMAGE_SIZE_PX), interpolation=cv2.INTER_AREA)


def _from_patches(source: Path, patches: Iterable[_Patch], layout: str) -> Iterator[Sample]:
    """Yield every patch once; the copies of one sample must hold the same picture and the same angle."""
    copies: dict[tuple[str, int, str], list[_Patch]] = {}
    for patch in patches:
        copies.setdefault(patch[:3], []).append(patch)
    if not copies:
        raise ValueError(f"{source} holds no patch in its {layout}")
    for (group, frame, sample_id), same in sorted(copies.items()):
        image = _read_patch(same[0].path, layout)
        for other in same[1:]:
            if other.angle_deg != same[0].angle_deg or not np.array_equal(_read_patch(other.path, layout), image):
                raise ValueError(f"{same[0].path} and {other.path} have one name but differ: rename or remove one")
        yield Sample(sample_id, group, _fields(image, np.radians(same[0].angle_deg), frame))


def _read_patch(path: Path, layout: str) -> np.ndarray:
    if layout == "folds":
        image = grey_plane(read_stored(path), path)
        # Part of the published patches are 16 bit; the source's reader stretches each picture, then truncates.
        if image.dtype == np.uint16:
            low, high = int(image.min()), int(image.max())
            if low == high:
                raise ValueError(f"{path} is flat: all its pixels are {low}")
            image = ((image.astype(np.int64) - low) * 255 // (high - low)).astype(np.uint8)
        if image.dtype != np.uint8:
            raise ValueError(f"{path} is {image.dtype}, 8 or 16-bit grey was expected")
    else:
        image = read_grey(path)
    if image.shape != (IMAGE_SIZE_PX, IMAGE_SIZE_PX):
        raise ValueError(f"{path} is {_size(image.shape)}, {IMAGE_SIZE_PX} x {IMAGE_SIZE_PX} px was expected")
    return image


def _fold_parents(source: Path) -> list[Path]:
    """Return the folders, `source` or below it, that hold folds."""
    return sorted({path.parents[2] for depth in ("", "*/") for path in source.glob(f"{depth}fold[0-9]*/t*/[0-3]_*/")})


def _fold_patches(source: Path) -> Iterator[_Patch]:
    parents = _fold_parents(source)
    if len(parents) > 1:
        raise ValueError(f"{source} holds several data sets ({', '.join(p.name for p in parents)}): name one of them")
    for folder in sorted(parents[0].glob("fold[0-9]*/t*/*/")):
        if folder.parent.name not in ("train", "test") or folder.name not in _QUADRANTS:
            raise ValueError(f"{folder} is not fold<k>/train or test/{{{', '.join(_QUADRANTS)}}}")
        for path in sorted(folder.glob("*.tif")):
            match = _CELL_AND_FRAME.fullmatch(path.stem)
            if match is None:
                raise ValueError(f"{path} is not named <cell>_<frame>.tif")
            angle_deg = _angle_of_table(path.with_suffix(".csv"))
            away = _positive(angle_deg - _QUADRANTS[folder.name] + _BORDER_DEG, 360.0)
            if away > 90 + 2 * _BORDER_DEG:
                raise ValueError(f"{path} lies in {folder.name}, but its table says {angle_deg:.3f} degrees (y up)")
            yield _Patch(match["cell"], int(match["frame"]), path.stem, path, angle_deg)


def _angle_of_table(path: Path) -> float:
    if not path.is_file():
        raise FileNotFoundError(f"no table {path} beside its image")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or "angle_net" not in rows[-1]:
        raise ValueError(f"{path} has no row with a column angle_net")
    try:
        angle_deg = -float(rows[-1]["angle_net"])
    except (TypeError, ValueError):
        angle_deg = float("nan")
    if not np.isfinite(angle_deg):
        raise ValueError(f"{path}: angle_net of the last row is {rows[-1]['angle_net']!r}, no finite number")
    return _positive(angle_deg, 360.0)


def _degree_folders(source: Path) -> list[Path]:
    canonical = {str(degree) for degree in range(360)}
    return sorted((p for p in source.iterdir() if p.is_dir() and p.name in canonical), key=lambda p: int(p.name))


def _degree_patches(source: Path) -> Iterator[_Patch]:
    for folder in _degree_folders(source):
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in SUFFIXES:
                continue
            name = _FOLD_PREFIX.sub("", path.stem)
            match = _CELL_AND_FRAME.fullmatch(name)
            group, frame = (match["cell"], int(match["frame"])) if match else (name, -1)
            # Names may start over in every folder, so the degree belongs to the id.
            yield _Patch(group, frame, f"deg{int(folder.name):03d}_{name}", path, float(folder.name))


def _fields(image: np.ndarray, angle_rad: float, frame: int) -> dict[str, np.ndarray]:
    return {
        "image": image[np.newaxis],
        "angle_rad": np.array(angle_rad, np.float64),
        "frame": np.array(frame, np.int32),
    }


def _positive(angle: float, turn: float) -> float:
    """Return the angle in [0, turn); the remainder of a tiny negative angle rounds to a whole turn, which is 0."""
    remainder = float(np.mod(angle, turn))
    return 0.0 if remainder >= turn else remainder


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} px"
