"""Fluorescence images of cells with the traction magnitude below them (paper `insilico_tfm`), from their archives.

`convert` recognises two layouts of the source folder; `conditions.json` in it says what the files do not
(`force_conditions`):

- movies: folders of frames `<cell>RAW` and `<cell>FORCE`, see `force_movies`. The published archive (Zenodo 3484797,
  cells named 20160809-002-xy1 and so on) has 0.2 um per pixel and a frame every 30 s; others need `pixel_size_um`.
- fields: .npz files with a movie and the traction vectors of a coarser grid, see `field_movies`.

One sample is one frame: `image` (1, y, x) uint16, or float32 where grey levels are no whole numbers; `traction_pa`
(1, y, x) float32, the magnitude; `box_px` (4,) int32, x, y, width and height of the box around the cell, as the archive
gives it or as `cell_boxes` finds it; `pixel_size_um`; `time_s` since the first frame, where the interval is known. No
frame is left out here: those whose box is too small for a crop are left out when they are trained on.

A group is one cell. The published cells have the published sets, under the names that the authors' code gives them
(`default`: 20160809 train, 11 cells of 20160810 test, 20160810-002-xy6 validation) and under those of the paper
(`paper`: validation and test exchanged). Other cells are shared out 80/10/10; fewer than three are for testing only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.batches import Sample
from datamodules.converters.cell_boxes import Box, cell_box
from datamodules.converters.field_movies import field_files, read_field_movie
from datamodules.converters.force_conditions import ForceConditions, read_force_conditions
from datamodules.converters.force_frames import grey_levels, read_force, read_frame
from datamodules.converters.force_movies import PUBLISHED, ForceMovie, find_force_movies

FIELDS: dict[str, dict[str, str]] = {
    "image": {"axes": "cyx", "unit": "grey level"},
    "traction_pa": {"axes": "cyx", "unit": "Pa"},
    "box_px": {"axes": "b", "unit": "px"},
    "pixel_size_um": {"axes": "", "unit": "um"},
    "time_s": {"axes": "", "unit": "s"},
}
"""Without `time_s` where the interval between frames is not known."""
GROUP_KEY = "cell"
SPLITS: dict[str, dict[str, Any]] = {"default": {"unit": "group", "train": 0.8, "val": 0.1, "test": 0.1}}
TEST_ONLY: dict[str, dict[str, Any]] = {"default": {"unit": "group", "test": 1.0}}
"""With fewer cells than splits."""
PUBLISHED_PIXEL_UM = 0.2
PUBLISHED_INTERVAL_S = 30.0
TRAIN_DATE = "20160809"
SINGLE_CELL = "20160810-002-xy6"
"""The paper's test cell."""
_TRAIN, _VAL, _TEST = 0, 1, 2


class _Archive(NamedTuple):
    movies: list[ForceMovie]
    files: list[Path]
    conditions: ForceConditions
    published: bool

    @property
    def layout(self) -> str:
        return "movies" if self.movies else "fields"

    @property
    def interval_s(self) -> float | None:
        said = self.conditions.frame_interval_s
        return PUBLISHED_INTERVAL_S if said is None and self.published else said

    @property
    def cells(self) -> list[str]:
        return [movie.cell for movie in self.movies] or [path.stem for path in self.files]


def convert(source: Path) -> Iterator[Sample]:
    """Yield the samples of the archive in `source`, groups contiguous and in a fixed order.

    Raises FileNotFoundError or ValueError, naming the file and the mend, where the source does not exist, has none of
    the layouts, says too little, or a file is damaged, has no cell, or does not belong to the others.
    """
    return _checked(_archive(source))


def fields(source: Path) -> dict[str, dict[str, str]]:
    """Return the fields of the samples of `convert`: without `time_s` where no interval is known."""
    known = _archive(source).interval_s is not None
    return {name: dict(entry) for name, entry in FIELDS.items() if known or name != "time_s"}


def splits(source: Path) -> dict[str, dict[str, Any]]:
    """Return the split schemes: the published sets, or shares of the cells."""
    archive = _archive(source)
    if not archive.published:
        return SPLITS if len(archive.cells) >= 3 else TEST_ONLY
    return {
        name: {
            "unit": "group",
            **{split: float(np.mean(given == code)) for code, split in enumerate(("train", "val", "test"))},
        }
        for name, given in _published_codes(archive).items()
    }


def codes(source: Path) -> dict[str, NDArray[np.int8]] | None:
    """Return the split of every sample of `convert` in the published schemes; None where splits are to be drawn."""
    archive = _archive(source)
    return _published_codes(archive) if archive.published else None


def provenance(source: Path) -> dict[str, Any]:
    """Return where the samples of `convert` come from and by which rule."""
    archive = _archive(source)
    rules = {
        "movies": "frames paired in the order of their names; force in the unit of its file, else force_unit; box of "
        "_bbox.csv, else largest box above threshold_grey",
        "fields": "traction components interpolated linearly from their grid, magnitude; largest box above "
        "threshold_grey",
    }
    given = {name: value for name, value in archive.conditions._asdict().items() if value is not None}
    return {
        "source": source.resolve().name,
        "layout": archive.layout,
        "licence": "that of the archive's authors; not ours to grant",
        "conditions": given,
        "rule": rules[archive.layout],
    }


def _archive(source: Path) -> _Archive:
    if not source.is_dir():
        raise FileNotFoundError(f"no source folder at {source}")
    conditions, movies = read_force_conditions(source), find_force_movies(source)
    files = [] if movies else field_files(source)
    if not movies and not files:
        raise ValueError(
            f"{source} has none of the layouts of paper insilico_tfm: looked for folders of frames <cell>RAW and "
            "<cell>FORCE, and for .npz files with a movie and the tractions tx and ty"
        )
    others = [movie.cell for movie in movies if movie.cell not in PUBLISHED]
    published = bool(movies) and not others
    if others and len(others) < len(movies):
        raise ValueError(
            f"{source} holds cell {others[0]} beside published ones, which have the paper's own pixel size and sets: "
            "convert the two from folders of their own, then use: mechanolab data merge"
        )
    if movies and not published and conditions.pixel_size_um is None:
        raise ValueError(
            f"{source} does not say its pixel size: write conditions.json into it with your number for "
            f'{{"pixel_size_um": {PUBLISHED_PIXEL_UM}}}'
        )
    return _Archive(movies, files, conditions, published)


def _published_codes(archive: _Archive) -> dict[str, NDArray[np.int8]]:
    frames = np.array([len(movie.images) for movie in archive.movies])
    code = {"default": (_VAL, _TEST), "paper": (_TEST, _VAL)}
    return {
        name: np.repeat(np.array([_code(cell, *pair) for cell in archive.cells], np.int8), frames)
        for name, pair in code.items()
    }


def _code(cell: str, single: int, others: int) -> int:
    return _TRAIN if cell.startswith(TRAIN_DATE) else single if cell == SINGLE_CELL else others


# -- from files to samples --------------------------------------------------------------------------------------------


def _checked(archive: _Archive) -> Iterator[Sample]:
    """The samples, all of one size and kind."""
    first: Sample | None = None
    for sample in _movie_samples(archive) if archive.movies else _field_samples(archive):
        first = first or sample
        image, known = sample.fields["image"], first.fields["image"]
        if image.shape != known.shape or image.dtype != known.dtype:
            raise ValueError(
                f"{sample.sample_id} is {_size(image)} {image.dtype}, but {first.sample_id} is {_size(known)} "
                f"{known.dtype}: convert each kind from a folder of its own"
            )
        yield sample


def _movie_samples(archive: _Archive) -> Iterator[Sample]:
    pixel_size = archive.conditions.pixel_size_um or PUBLISHED_PIXEL_UM
    for movie in archive.movies:
        for number, path, force_path in zip(movie.moments, movie.images, movie.forces, strict=True):
            image = grey_levels(read_frame(path), path)
            force = read_force(force_path, unit=archive.conditions.force_unit)
            if image.shape != force.shape:
                raise ValueError(
                    f"{path} is {_size(image)}, but {force_path} is {_size(force)}: they do not belong together, "
                    "replace one"
                )
            box = _box(path, image, archive.conditions) if movie.boxes is None else _listed_box(movie, path, image)
            yield _sample(archive, movie.cell, number, image, force, box, pixel_size)


def _field_samples(archive: _Archive) -> Iterator[Sample]:
    for path in archive.files:
        movie = read_field_movie(path, archive.conditions)
        for number, image in enumerate(movie.images):
            box = _box(path, grey_levels(image, path), archive.conditions)
            yield _sample(archive, path.stem, number, image, movie.magnitude(number), box, movie.pixel_size_um)


def _sample(
    archive: _Archive,
    cell: str,
    number: int,
    image: NDArray[np.generic],
    force: NDArray[np.float32],
    box: Box,
    pixel_size_um: float,
) -> Sample:
    values: dict[str, np.ndarray] = {
        "image": image[np.newaxis],
        "traction_pa": force[np.newaxis],
        "box_px": np.array(box, np.int32),
        "pixel_size_um": np.array(pixel_size_um, np.float64),
    }
    if archive.interval_s is not None:
        values["time_s"] = np.array(number * archive.interval_s, np.float64)
    return Sample(f"{cell}_{number:03d}", cell, values)


def _box(path: Path, image: NDArray[np.generic], conditions: ForceConditions) -> Box:
    try:
        return cell_box(image, threshold_grey=conditions.threshold_grey)
    except ValueError:
        raise ValueError(
            f"{path} shows no cell, nothing of 5 x 5 px is brighter than {conditions.threshold_grey:g}: give a lower "
            "threshold_grey in conditions.json, or take the frame out of all folders"
        ) from None


def _listed_box(movie: ForceMovie, path: Path, image: NDArray[np.generic]) -> Box:
    box = (movie.boxes or {}).get(path.name)
    if box is None:
        raise ValueError(f"{movie.table} lacks {path.name}: add its box, or remove the table and all are found anew")
    height, width = image.shape
    if box.x + box.width > width or box.y + box.height > height:
        raise ValueError(
            f"{movie.table}: the box of {path.name} ends at {box.x + box.width}, {box.y + box.height}, outside the "
            f"frame of {_size(image)}: correct it, or remove the table and all are found anew"
        )
    return box


def _size(image: NDArray[np.generic]) -> str:
    return f"{image.shape[-1]} x {image.shape[-2]} px"
