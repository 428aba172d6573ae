"""Images of single migrating cells with their direction: the data of paper `circular`.

Bruns, Lamparter, Galic, Jiang 2024, "Single image estimation of cell migration direction by deep circular regression"
(arXiv 2406.19162), on the patches of Nishimoto et al. 2019 (PLOS ONE, 10.1371/journal.pone.0221245). One sample is a
128 x 128 grey picture of one cell and the direction in which it moves next. The paper counts 830 patches of NIH 3T3
and 1011 of U373 cells (170 px of 0.65 um resized to 128), drawn four times into 40/10/50 % train/val/test. Its draws
are over patches, which puts pictures of one cell on both sides; here the schemes `fold0..3` draw whole cells and
`patch_fold0..3` keep the paper's way for parity.

Training pictures are turned, shifted, zoomed and mirrored on the fly, label and pixels together, from
(seed, epoch, index); the authors stored a fixed set of such copies instead, about 17.5 of each picture. Batches are
`DirectionBatch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.augmentation.geometry import MotionRange
from datamodules.batches import DirectionBatch, Sample
from datamodules.converters.grey_images import read_grey
from datamodules.converters.own_files import images_by_name
from datamodules.shards.reader import ShardDataset
from datamodules.shards.stacking import stack
from datamodules.shards.stored_splits import InMemory, StoredSplits, loader

IMAGE_SIZE_PX = 128
WINDOW_UM = 110.5
"""Side of the picture the network sees: 170 px of 0.65 um (Nishimoto et al. 2019, U373)."""


class CircularData(LightningDataModule):
    """Training, validation, test and prediction batches of cell pictures with their direction.

    Args:
        data_root: folder or URL that holds `circular/<dataset>`.
        dataset: name of the data set, for example `twin`.
        split: name of a split scheme stored in the data set, for example `default` or `fold0`.
        batch_size: samples per device and step.
        num_workers: processes that read and augment; 0 reads in the process that trains.
        memory_gib: splits of at most this size are held in memory, all others are read as they are needed.
        seed: order of the batches and augmentation are functions of (seed, epoch, index).
        augment: whether training pictures are moved at all; validation, test and prediction never are.
        copies: how often an epoch shows every training picture, each time moved anew.
        rotation_step_deg: rotations are multiples of this; null for any angle (the paper), 90 for right angles
            (the quadrant baseline).
        shift_fraction: largest shift along x and y as a fraction of the picture's side (0.2 in the paper).
        zoom_fraction: zoom in 1 +- this (0.1 in the paper).
        mirror: whether pictures are mirrored left-right and top-bottom at random.
        motion_probability: probability of each of rotation, shift and zoom (4/9 in the authors' stored copies).

    Raises:
        ValueError: an argument is out of its range; the message starts with its name.
    """

    stem = "circular"
    smoke: Mapping[str, Any] = MappingProxyType(
        {"batch_size": 1, "num_workers": 0, "dataset": "twin", "split": "default", "copies": 1}
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
        augment: bool,
        copies: int,
        rotation_step_deg: float | None,
        shift_fraction: float,
        zoom_fraction: float,
        mirror: bool,
        motion_probability: float,
    ) -> None:
        super().__init__()
        lowest = (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
            ("copies", copies, 1),
        )
        for name, value, least in lowest:
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        motions = MotionRange(rotation_step_deg, shift_fraction, zoom_fraction, mirror, motion_probability)
        self.splits = StoredSplits(
            data_root=data_root, stem=self.stem, dataset=dataset, scheme=split, memory_gib=memory_gib
        )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.copies = copies
        self._motions = motions if augment else None
        self._own: InMemory | None = None

    @property
    def data_folder(self) -> Path | None:
        """The folder of the data set in use, of a remote one its mirror; None where the user's own pictures are."""
        return self.splits.local_folder if self._own is None else None

    @property
    def irreducible_error(self) -> dict[str, Any] | None:
        """The best score that any method could reach on this data set, where its simulator knows it."""
        return self.splits.irreducible_error if self._own is None else None

    def has_split(self, name: str) -> bool:
        """Whether the split scheme in use puts any sample into `name` (train, val or test)."""
        return self.splits.has(name)

    def predict_on(
        self, *, split: str = "test", files: Sequence[Path] | None = None, pixel_size_um: float | None = None
    ) -> None:
        """Choose what `predict_dataloader` yields: a split of the data set, or the pictures in `files`.

        Without `pixel_size_um` the files must be 128 x 128 px; with it, the paper's window of 110.5 um is cut about
        the centre of each and resized to 128 x 128 by area. All files are read here, so that a bad one is told before
        anything is predicted: FileNotFoundError or ValueError with its name. Their direction is NaN, their id and
        group are the file name.
        """
        if files is None:
            self.splits.predict_on(split, pixel_size_um=pixel_size_um)
            self._own = None
        else:
            self._own = InMemory(_own_pictures(files, pixel_size_um))

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

    def train_dataloader(self) -> DataLoader[DirectionBatch]:
        """Shuffled and augmented batches, resumable in the middle of an epoch."""
        return self._loader(_Directions(self._open("train"), self._motions, self.seed, self.copies), training=True)

    def val_dataloader(self) -> DataLoader[DirectionBatch]:
        """Batches of the validation split, in its stored order."""
        return self._loader(_Directions(self._open("val")), training=False)

    def test_dataloader(self) -> DataLoader[DirectionBatch]:
        """Batches of the test split, in its stored order."""
        return self._loader(_Directions(self._open("test")), training=False)

    def predict_dataloader(self) -> DataLoader[DirectionBatch]:
        """Batches of what `predict_on` chose, in its order; the test split where it was not called."""
        source = self._open(self.splits.predicted) if self._own is None else self._own
        return self._loader(_Directions(source), training=False)

    def _open(self, split: str) -> ShardDataset:
        fields = self.splits.manifest.fields
        image = fields.get("image")
        found = "none" if image is None else f"{image.shape} {image.dtype}"
        if found != f"{(1, IMAGE_SIZE_PX, IMAGE_SIZE_PX)} uint8" or "angle_rad" not in fields:
            raise ValueError(
                f"{self.splits.folder} must hold image (1, {IMAGE_SIZE_PX}, {IMAGE_SIZE_PX}) uint8 and angle_rad, "
                f"its image is {found}, its fields are {', '.join(fields)}"
            )
        return self.splits.open(split, ["image", "angle_rad"])

    def _loader(self, dataset: _Directions, *, training: bool) -> DataLoader[DirectionBatch]:
        return loader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            training=training,
            trainer=self.trainer,
            collate=_collate,
        )


class _Directions(Dataset[Sample]):
    """Samples by (epoch, index), moved where a range of motions is given; index runs through the copies in turn."""

    def __init__(
        self, source: ShardDataset | InMemory, motions: MotionRange | None = None, seed: int = 0, copies: int = 1
    ) -> None:
        self.source = source
        self.motions = motions
        self.seed = seed
        self.copies = copies

    def __len__(self) -> int:
        return self.copies * len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        samples = self.source.__getitems__([index % len(self.source) for _, index in keys])
        return [self._move(sample, *key) for sample, key in zip(samples, keys, strict=True)]

    def _move(self, sample: Sample, epoch: int, index: int) -> Sample:
        if self.motions is None:
            return sample
        motion = self.motions.draw(seed=self.seed, epoch=epoch, index=index)
        image = motion.move_image(sample.fields["image"][0])[np.newaxis]
        angle_rad = motion.move_angle(float(sample.fields["angle_rad"]))
        return sample._replace(fields={"image": image, "angle_rad": np.array(angle_rad)})


def _own_pictures(files: Sequence[Path], pixel_size_um: float | None) -> list[Sample]:
    """The user's own pictures, read and cut to the network's window."""
    return [
        Sample(name, name, {"image": _cut(path, pixel_size_um)[np.newaxis], "angle_rad": np.array(np.nan)})
        for name, path in images_by_name(files, pixel_size_um=pixel_size_um).items()
    ]


def _cut(path: Path, pixel_size_um: float | None) -> np.ndarray:
    """Return the (128, 128) uint8 picture that the network sees of the one in `path`."""
    image = read_grey(path)
    height, width = image.shape
    if pixel_size_um is None:
        if image.shape != (IMAGE_SIZE_PX, IMAGE_SIZE_PX):
            raise ValueError(
                f"{path} is {width} x {height} px, without a pixel size {IMAGE_SIZE_PX} x {IMAGE_SIZE_PX} px are "
                f"needed: give pixel_size_um to cut the window of {WINDOW_UM:g} um about its centre"
            )
        return image
    side = max(round(WINDOW_UM / pixel_size_um), 1)
    if min(height, width) < side:
        raise ValueError(
            f"{path} is {width} x {height} px, too small for the window of {WINDOW_UM:g} um, which is "
            f"{side} x {side} px at {pixel_size_um:g} um per pixel"
        )
    top, left = (height - side) // 2, (width - side) // 2
    window = np.ascontiguousarray(image[top : top + side, left : left + side])
    return cv2.resize(window, (IMAGE_SIZE_PX, IMAGE_SIZE_PX), interpolation=cv2.INTER_AREA)


def _collate(samples: Sequence[Sample]) -> DirectionBatch:
    image = torch.from_numpy(stack(samples, "image"))
    angle_rad = stack(samples, "angle_rad").astype(np.float32)
    # In float32 an angle just below 2 pi rounds to a value above it.
    angle_rad[angle_rad >= np.float32(2 * np.pi)] = 0
    return DirectionBatch(
        image=image.float().div_(255),
        angle_rad=torch.from_numpy(angle_rad),
        sample_id=[sample.sample_id for sample in samples],
        group=[sample.group for sample in samples],
    )
