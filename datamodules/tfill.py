"""Images of actin with images of the nuclei of the same cells (paper `tfill`) as batches.

Vasudevan, Zheng et al., PLOS ONE 0271056 (2022): 4900 pairs of NIH 3T3 from 8 samples, 159.41 um wide in the authors'
runs, split 80/20 tile by tile, which puts tiles of one slide on both sides. Simulated twin: `mechanolab data simulate
tfill`, 384 x 384 px of .4151 um, grouped by slide. The authors' folders, two-channel files and z-stacks:
`mechanolab data convert tfill`. The user's own actin files are predicted on without conversion.

Training tiles are resized to `load_px`, cut to `crop_px` and moved by a symmetry, anew for every sample and epoch, from
(seed, epoch, index); the authors' code drew one crop and one flip for a whole run, a bug. Validation, test and
prediction show what `test_view` says; the authors resized the whole tile to `crop_px`, so that cells look
load_px / crop_px = 1.21 times smaller than in training. `pixel_size_um` follows every resize. Yields
`batches.TranslationBatch`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.augmentation import translation_tiles as tiles
from datamodules.augmentation.grid_symmetries import GridSymmetry
from datamodules.batches import Sample, TranslationBatch
from datamodules.converters.fluorescence_images import CoveringTile, covering_tiles, read_plane
from datamodules.converters.own_files import images_by_name
from datamodules.shards.reader import ShardDataset
from datamodules.shards.stacking import stack
from datamodules.shards.stored_splits import StoredSplits, loader

SYMMETRIES = ("none", "left_right", "all")
TEST_VIEWS = ("whole", "centre")
NUCLEUS_MASKS = ("mean_sixth", "otsu", "stored")
LEAST_FIELD_PX = 16
"""Of a picture of the user's own: with fewer pixels in a field of cells its pixel size is a mistake."""
TILE_TOLERANCE = 0.01
"""Relative; 384 px of .4151 um are 159.40 um."""
OVERLAP_UM = 20.0
"""Of neighbouring fields of one picture: more than a nucleus, which its owner then sees whole."""
_CROPS = 0x63726F70
"""Keeps the draws of crops apart from others that start from the same seed."""


class ActinNucleusData(LightningDataModule):
    """Training, validation, test and prediction batches of actin with nuclei.

    Args:
        data_root: folder or URL that holds `tfill/<dataset>`.
        dataset: name of the data set, for example `twin`.
        split: name of a split scheme stored in the data set, `default` (by slide) or `parity` (leaks by design).
        batch_size: samples per device and step.
        num_workers: processes that read and move; 0 does so in the process that trains.
        memory_gib: splits of at most this size are held in memory, all others are read as they are needed.
        seed: order of the batches, crops and symmetries are functions of (seed, epoch, index).
        load_px: side to which training tiles are resized before they are cut (464 in the authors' run).
        crop_px: side of what the network sees (384 in the authors' run); `load_px` itself cuts nothing.
        symmetries: how training tiles are moved at random: none, left_right (the authors) or all eight of the square.
        test_view: what validation, test and prediction show: whole, the tile resized to `crop_px` (the authors), or
            centre, its middle at the scale of training; the same where `load_px` is `crop_px`.
        contrast: what becomes -1 and 1: full_range, 0 and the largest grey level of the stored type (the authors), or
            stretched, the 0.1 and 99.9 percentile of each picture, for recordings that use few of their bits.
        nucleus_mask: where a real image shows a nucleus: mean_sixth, above 1/6 of the range (the authors' code), otsu,
            or stored, the mask that the data set holds.
        tile_um: side of the tiles, 159.41 um in the authors' runs; the user's own files are cut to the same view, and a
            data set with other tiles is refused.

    Raises:
        ValueError: an argument is out of its range; the message starts with its name.
    """

    stem = "tfill"
    smoke: Mapping[str, Any] = MappingProxyType(
        {
            "batch_size": 2,
            "num_workers": 0,
            "dataset": "twin",
            "split": "default",
            "memory_gib": 0.0,
            "tile_um": 159.41,
            "load_px": 72,
            "crop_px": 64,
        }
    )
    """What a smoke run on a simulated fixture sets."""

    def __init__(
        self,
        *,
        data_root: str,
        dataset: str,
        split: str,
        batch_size: int,
        num_workers: int,
        memory_gib: float,
        seed: int,
        load_px: int,
        crop_px: int,
        symmetries: str,
        test_view: str,
        contrast: str,
        nucleus_mask: str,
        tile_um: float,
    ) -> None:
        super().__init__()
        numbers = (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0))
        for name, value, least in (*numbers, ("crop_px", crop_px, 1), ("load_px", load_px, crop_px)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name, chosen, accepted in (
            ("symmetries", symmetries, SYMMETRIES),
            ("test_view", test_view, TEST_VIEWS),
            ("contrast", contrast, tiles.CONTRASTS),
            ("nucleus_mask", nucleus_mask, NUCLEUS_MASKS),
        ):
            if chosen not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {chosen!r}")
        if not 0 < tile_um < math.inf:
            raise ValueError(f"tile_um must be positive and finite, got {tile_um}")
        self.splits = StoredSplits(
            data_root=data_root, stem=self.stem, dataset=dataset, scheme=split, memory_gib=memory_gib
        )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._view = _View(seed, load_px, crop_px, symmetries, test_view, contrast, nucleus_mask)
        self._tile_um = tile_um
        self._own: _OwnTiles | None = None

    @property
    def data_folder(self) -> Path | None:
        """The folder of the data set in use, of a remote one its mirror; None where the user's own pictures are."""
        return self.splits.local_folder if self._own is None else None

    @property
    def irreducible_error(self) -> dict[str, Any] | None:
        """The best that any method could reach on this data set, where its simulator knows it."""
        return self.splits.irreducible_error if self._own is None else None

    def has_split(self, name: str) -> bool:
        """Whether the split scheme in use puts any sample into `name` (train, val or test)."""
        return self.splits.has(name)

    def predict_on(
        self, *, split: str = "test", files: Sequence[Path] | None = None, pixel_size_um: float | None = None
    ) -> None:
        """Choose what `predict_dataloader` yields: a split of the data set, or the pictures of actin in `files`.

        Files are 8 or 16-bit TIFF, PNG or JPEG, grey or in one pseudo-colour; a stack of several pages is projected to
        its maximum. With `pixel_size_um` each is cut into fields as wide as those the network is tested on, which
        overlap, so that no nucleus is cut by all that show it, and of which one owns it; each field becomes a tile
        named `<file>` or, where there are several, `<file>_y<row>_x<column>`. Without it a picture must be one square
        field of `crop_px`. Nuclei are NaN. All are read here, so that a bad one is told before anything is predicted:
        FileNotFoundError or ValueError with its name.
        """
        if files is None:
            self.splits.predict_on(split, pixel_size_um=pixel_size_um)
            self._own = None
        else:
            self._own = _OwnTiles(files, self._view, field_um=self._field_um, pixel_size_um=pixel_size_um)

    def prepare_data(self) -> None:
        """Check that the data set exists; FileNotFoundError says how to make it."""
        if self._own is None:
            self.splits.require()

    def setup(self, stage: str) -> None:
        """Open the splits that `stage` (fit, validate, test, predict) needs; ValueError where they do not fit."""
        if stage == "predict" and self._own is not None:
            return
        for split in self.splits.needed(stage):
            self._open(split)

    def train_dataloader(self) -> DataLoader[TranslationBatch]:
        """Shuffled batches, cut and moved anew in every epoch, resumable in the middle of one."""
        return self._loader(_Tiles(self._open("train"), self._view, training=True), training=True)

    def val_dataloader(self) -> DataLoader[TranslationBatch]:
        """Batches of the validation split, in its stored order."""
        return self._loader(_Tiles(self._open("val"), self._view))

    def test_dataloader(self) -> DataLoader[TranslationBatch]:
        """Batches of the test split, in its stored order."""
        return self._loader(_Tiles(self._open("test"), self._view))

    def predict_dataloader(self) -> DataLoader[TranslationBatch]:
        """Batches of what `predict_on` chose, in its order; the test split where it was not called."""
        if self._own is not None:
            return self._loader(self._own)
        return self._loader(_Tiles(self._open(self.splits.predicted), self._view))

    @property
    def _field_um(self) -> float:
        """Side of the field that the network is tested on."""
        view = self._view
        return self._tile_um * (view.crop_px / view.load_px if view.test_view == "centre" else 1.0)

    def _open(self, split: str) -> ShardDataset:
        folder, known = self.splits.folder, self.splits.manifest.fields
        stored = self._view.nucleus_mask == "stored"
        for name in ("actin", "pixel_size_um", *(["nucleus_mask"] if stored else [])):
            if name not in known:
                raise ValueError(f"{folder} must hold {name}, it holds {', '.join(known)}")
        if "nucleus" not in known and split == "train":
            raise ValueError(f"{folder} holds actin without nuclei: it cannot be trained on")
        if known["actin"].shape != (1, known["actin"].shape[-1], known["actin"].shape[-1]):
            raise ValueError(f"{folder} must hold square tiles (1, side, side), its actin is {known['actin'].shape}")
        wanted = ["actin", "nucleus", "cell_mask", "pixel_size_um", *(["nucleus_mask"] if stored else [])]
        dataset = self.splits.open(split, [name for name in wanted if name in known])
        side_um = known["actin"].shape[-1] * float(dataset[0].fields["pixel_size_um"])
        if not math.isclose(side_um, self._tile_um, rel_tol=TILE_TOLERANCE):
            raise ValueError(
                f"tile_um is {self._tile_um:g}, but the tiles of {folder} are {side_um:g} um wide: set data.tile_um"
            )
        return dataset

    def _loader(self, dataset: _Tiles | _OwnTiles, *, training: bool = False) -> DataLoader[TranslationBatch]:
        return loader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            training=training,
            trainer=self.trainer,
            collate=_collate,
        )


class _View(NamedTuple):
    """How tiles are shown; as the arguments of `ActinNucleusData`."""

    seed: int
    load_px: int
    crop_px: int
    symmetries: str
    test_view: str
    contrast: str
    nucleus_mask: str


class _Tiles(Dataset[Sample]):
    """Samples by (epoch, index) as the network sees them: pictures in [-1, 1], masks, and the size of their pixels."""

    def __init__(self, source: ShardDataset, view: _View, *, training: bool = False) -> None:
        self.source = source
        self.view = view
        self.training = training

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        samples = self.source.__getitems__([index for _, index in keys])
        return [self._show(sample, *key) for sample, key in zip(samples, keys, strict=True)]

    def _show(self, sample: Sample, epoch: int, index: int) -> Sample:
        view, stored = self.view, sample.fields
        cut = self.training or view.test_view == "centre"
        side_px = view.load_px if cut else view.crop_px
        pixel_size_um = float(stored["pixel_size_um"]) * stored["actin"].shape[-1] / side_px
        planes = _planes(stored, view, side_px, pixel_size_um)
        if cut:
            room, top, left = view.load_px - view.crop_px, 0, 0
            if self.training:
                draws = np.random.default_rng((_CROPS, view.seed, epoch, index)).integers(room + 1, size=2)
                top, left = draws.tolist()
            else:
                top = left = room // 2
            planes = {
                name: plane[top : top + view.crop_px, left : left + view.crop_px] for name, plane in planes.items()
            }
        if self.training and view.symmetries != "none":
            symmetry = GridSymmetry.draw(seed=view.seed, epoch=epoch, index=index)
            if view.symmetries == "left_right":
                symmetry = GridSymmetry(False, symmetry.mirrored_x, False)
            planes = {name: symmetry.move_pixels(plane) for name, plane in planes.items()}
        return sample._replace(fields={**planes, "pixel_size_um": np.array(pixel_size_um, np.float32)})


def _planes(stored: Mapping[str, np.ndarray], view: _View, side_px: int, pixel_size_um: float) -> dict[str, np.ndarray]:
    """Pictures and masks (side, side) of one whole tile."""
    actin = tiles.resized(tiles.scaled(stored["actin"][0], view.contrast), side_px)
    if "nucleus" in stored:
        nucleus = tiles.resized(tiles.scaled(stored["nucleus"][0], view.contrast), side_px)
        rule = view.nucleus_mask
        mask = (
            tiles.resized_mask(stored["nucleus_mask"][0], side_px)
            if rule == "stored"
            else tiles.nucleus_region(nucleus, rule)
        )
    else:
        nucleus, mask = np.full_like(actin, np.nan), np.zeros(actin.shape, bool)
    if "cell_mask" in stored:
        cells = tiles.resized_cells(stored["cell_mask"][0], side_px)
    else:
        cells = tiles.cell_region(actin, pixel_size_um=pixel_size_um)
    return {"actin": 2 * actin - 1, "nucleus": 2 * nucleus - 1, "nucleus_mask": mask, "cell_mask": cells}


class _OwnTiles(Dataset[Sample]):
    """The user's own pictures of actin, read and cut to the field that the network sees."""

    def __init__(self, files: Sequence[Path], view: _View, *, field_um: float, pixel_size_um: float | None) -> None:
        paths = images_by_name(files, pixel_size_um=pixel_size_um).values()
        self.samples = [sample for path in paths for sample in _own_tiles(path, view, field_um, pixel_size_um)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        return [self.samples[index] for _, index in keys]


def _own_tiles(path: Path, view: _View, field_um: float, pixel_size_um: float | None) -> list[Sample]:
    """The fields of one picture, as the network sees them."""
    picture = read_plane(path)
    height, width = picture.shape
    side = view.crop_px
    if pixel_size_um is None:
        if picture.shape != (side, side):
            raise ValueError(
                f"{path} is {width} x {height} px, without a pixel size {side} x {side} px are needed: give "
                f"pixel_size_um to cut fields of {field_um:g} um"
            )
        pixel_size_um = field_um / side
    else:
        side = max(round(field_um / pixel_size_um), 1)
        if side < LEAST_FIELD_PX:
            raise ValueError(
                f"{path}: pixel_size_um {pixel_size_um:g} leaves the field of {field_um:g} um only {side} x {side} px, "
                f"{LEAST_FIELD_PX} are the least: correct it"
            )
    if min(height, width) < side:
        raise ValueError(
            f"{path} is {width} x {height} px, too small for the field of {field_um:g} um, which is {side} x {side} px "
            f"at {pixel_size_um:g} um per pixel"
        )
    grey = tiles.scaled(picture, view.contrast)
    samples = []
    for tile in covering_tiles(picture.shape, side, overlap_px=min(round(OVERLAP_UM / pixel_size_um), side // 2)):
        several = picture.shape != (side, side)
        name = f"{path.name}_y{tile.top}_x{tile.left}" if several else path.name
        shown_um = pixel_size_um * side / view.crop_px
        stored = {"actin": grey[np.newaxis, tile.top : tile.top + side, tile.left : tile.left + side]}
        planes = _planes(stored, view, view.crop_px, shown_um)
        planes["owned"] = _owned(tile, side, view.crop_px)
        samples.append(Sample(name, path.name, {**planes, "pixel_size_um": np.array(shown_um, np.float32)}))
    return samples


def _owned(tile: CoveringTile, side_px: int, shown_px: int) -> np.ndarray:
    """Pixels (shown, shown) of a tile, resized, whose middles it owns."""
    middles = (np.arange(shown_px) + 0.5) * side_px / shown_px
    spans = ((tile.top, tile.rows), (tile.left, tile.columns))
    rows, columns = ((own.start <= start + middles) & (start + middles < own.stop) for start, own in spans)
    return rows[:, None] & columns


def _collate(samples: Sequence[Sample]) -> TranslationBatch:
    def planes(name: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(stack(samples, name)))

    return TranslationBatch(
        actin=planes("actin")[:, None],
        nucleus=planes("nucleus")[:, None],
        nucleus_mask=planes("nucleus_mask")[:, None],
        cell_mask=planes("cell_mask"),
        pixel_size_um=planes("pixel_size_um"),
        sample_id=[sample.sample_id for sample in samples],
        group=[sample.group for sample in samples],
        owned=planes("owned") if "owned" in samples[0].fields else None,
    )
