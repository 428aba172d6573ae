"""Fluorescence images of cells with the magnitude of the traction below them: the data of paper `insilico_tfm`.

Pielawski et al., "In Silico Prediction of Cell Traction Forces", ISBI 2020, arXiv 1910.07380. One sample is one frame
of a movie and its traction magnitude; 24 HT1080 cells of 0.2 um per pixel, 181 frames each. Simulated twin:
`mechanolab data simulate insilico_tfm`; the authors' archive (Zenodo 3484797) and movies with stored tractions:
`mechanolab data convert insilico_tfm`. A group is one cell.

Names are swapped between paper and code: 12 cells train; the paper calls the other 11 validation and the last one the
test cell, the authors' code calls the 11 testing and the last one validation. The scheme `default` follows the code:
what is reported rests on 11 unseen cells, and one unseen cell is enough to pick a checkpoint. `paper` has it the other
way round.

Training samples are crops as `augmentation.force_images` makes them, in the paper's order: box around the cell with a
margin, force tapered, flips, rotation, crop, salt, logarithm. Validation, test and prediction see whole frames, the
force tapered over the whole frame. Frames whose patch is smaller than the crop are left out of training. Which frames
an epoch shows, their order and what is drawn for each depend on (seed, epoch, index) only.

Deviations: the authors validate on augmented crops, here on whole frames. Yields `batches.ForceImageBatch`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from datamodules.augmentation.force_image_samples import CellCrops, WholeFrames
from datamodules.augmentation.force_images import ForceAugmentation, patch_side
from datamodules.batches import ForceImageBatch, Sample
from datamodules.converters import force_frames
from datamodules.converters.cell_boxes import Box, cell_box
from datamodules.shards.reader import ShardDataset
from datamodules.shards.stacking import stack
from datamodules.shards.stored_splits import InMemory, StoredSplits, loader

SAME_SCALE = 0.05
"""By how much the pixel sizes of training and prediction may differ without a word."""
_FIELDS = ("image", "traction_pa", "pixel_size_um", "time_s")


class ForceImageData(LightningDataModule):
    """Training, validation, test and prediction batches of cell images with the traction magnitude below them.

    Args:
        data_root: folder or URL that holds `insilico_tfm/<dataset>`.
        dataset: name of the data set, for example `twin`.
        split: name of a split scheme stored in the data set: `default` (11 test cells) or `paper` (11 validation
            cells).
        batch_size: crops per device and training step.
        num_workers: processes that read and augment; 0 does so in the process that trains.
        memory_gib: splits of at most this size are held in memory, all others are read as they are needed.
        seed: frames, their order and augmentation are functions of (seed, epoch, index).
        steps_per_epoch: training batches of an epoch, their frames drawn with replacement (50 in the paper's code);
            null shows every frame once.
        crop_px: side of a training crop (256 in the paper).
        margin_px: margin around the cell's box from which the crop is taken (128).
        taper_fraction: share of the length at each end over which the force fades out (0.1).
        mirror: flip training crops left-right and top-bottom at random.
        rotation_deg: training crops are turned by up to this in either direction (180).
        salt_image_probability: share of the training crops that get salt noise (0.5).
        salt_pixel_probability: share of their pixels that are replaced (0.01).
        salt_maximum_grey: the new values are uniform between 0 and this, in raw grey levels (2000).
        frames_at_once: whole frames in a batch of validation, test and prediction.
        frame_px: side of the square in the middle that is kept of larger frames in validation, test and prediction,
            after the taper (the authors' 1024); null keeps frames whole. The user's own images are always whole.
        validation_every: every how many-th frame of the validation split is validated on; 1 for all of them.
        test_every: every how many-th frame of the test split is tested on; 1 for all of them.

    Raises:
        ValueError: an argument is out of its range; the message starts with its name.
    """

    stem = "insilico_tfm"
    smoke: Mapping[str, Any] = MappingProxyType(
        {
            **{"batch_size": 1, "num_workers": 0, "dataset": "twin", "split": "default", "memory_gib": 0.0},
            **{"steps_per_epoch": 1, "crop_px": 128, "frames_at_once": 1, "frame_px": 64, "validation_every": 1},
            "test_every": 1,
        }
    )
    """What a smoke run on a simulated fixture sets."""
    input_suffixes = force_frames.SUFFIXES
    """What `predict_on` reads."""

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
        steps_per_epoch: int | None,
        crop_px: int,
        margin_px: int,
        taper_fraction: float,
        mirror: bool,
        rotation_deg: float,
        salt_image_probability: float,
        salt_pixel_probability: float,
        salt_maximum_grey: float,
        frames_at_once: int,
        frame_px: int | None,
        validation_every: int,
        test_every: int,
    ) -> None:
        super().__init__()
        lowest = (
            *(("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)),
            *(("steps_per_epoch", 1 if steps_per_epoch is None else steps_per_epoch, 1), ("margin_px", margin_px, 0)),
            *(("frames_at_once", frames_at_once, 1), ("validation_every", validation_every, 1)),
            ("test_every", test_every, 1),
            ("frame_px", 1 if frame_px is None else frame_px, 1),
        )
        for name, value, least in lowest:
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= taper_fraction <= 0.5:
            raise ValueError(f"taper_fraction must lie in [0, 0.5], got {taper_fraction}")
        self._augmentation = ForceAugmentation(
            crop_px=crop_px,
            mirror=mirror,
            rotation_deg=rotation_deg,
            salt_image_probability=salt_image_probability,
            salt_pixel_probability=salt_pixel_probability,
            salt_maximum_grey=salt_maximum_grey,
        )
        self.splits = StoredSplits(
            data_root=data_root, stem=self.stem, dataset=dataset, scheme=split, memory_gib=memory_gib
        )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch
        self.frames_at_once = frames_at_once
        self.validation_every = validation_every
        self.test_every = test_every
        self._margin_px = margin_px
        self._taper_fraction = taper_fraction
        self._frame_px = frame_px
        self._own: InMemory | None = None
        self._placed: tuple[NDArray[np.int64], list[Box]] | None = None

    @property
    def data_folder(self) -> Path | None:
        """The folder of the data set in use, of a remote one its mirror; None where the user's own images are."""
        return self.splits.local_folder if self._own is None else None

    @property
    def irreducible_error(self) -> dict[str, Any] | None:
        """What an oracle reaches on this data set, where its simulator knows it."""
        return self.splits.irreducible_error if self._own is None else None

    def has_split(self, name: str) -> bool:
        """Whether the split scheme in use puts any sample into `name` (train, val or test)."""
        return self.splits.has(name)

    def predict_on(
        self, *, split: str = "test", files: Sequence[Path] | None = None, pixel_size_um: float | None = None
    ) -> None:
        """Choose what `predict_dataloader` yields: a split of the data set, or the images in `files`.

        Images are grey TIFF, PNG, JPEG or BMP of 8 or 16 bits or float, of any size; grey levels are taken as they
        are, and nothing is resized: they should have the pixel size that was trained on, and are told of where
        `pixel_size_um` (NaN where it is not given) is another. All are read here, so that a bad one is told before
        anything is predicted: FileNotFoundError or ValueError with its name. Their traction and time are NaN, their id
        and group the file name.
        """
        if files is None:
            self.splits.predict_on(split, pixel_size_um=pixel_size_um)
            self._own = None
        else:
            self._own = InMemory(force_frames.read_own_frames(files, pixel_size_um=pixel_size_um))
            self._tell_pixel_size(pixel_size_um)

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
        if stage == "fit":
            self._train_crops()

    def train_dataloader(self) -> DataLoader[ForceImageBatch]:
        """Augmented crops, resumable in the middle of an epoch."""
        crops = self._train_crops()
        if self.steps_per_epoch is not None:
            world_size = self.trainer.world_size if self.trainer is not None else 1
            crops.draws = self.steps_per_epoch * self.batch_size * world_size
        return self._loader(crops, self.batch_size, training=True)

    def val_dataloader(self) -> DataLoader[ForceImageBatch]:
        """Whole frames of the validation split, every `validation_every`-th in its stored order."""
        return self._frames("val", every=self.validation_every)

    def test_dataloader(self) -> DataLoader[ForceImageBatch]:
        """Whole frames of the test split, every `test_every`-th in its stored order."""
        return self._frames("test", every=self.test_every)

    def predict_dataloader(self) -> DataLoader[ForceImageBatch]:
        """Whole frames of what `predict_on` chose, in its order; the test split where it was not called.

        Own images that differ in size come one by one.
        """
        if self._own is None:
            return self._frames(self.splits.predicted)
        frames = WholeFrames(self._own, taper_fraction=0.0, frame_px=None)
        alike = len({sample.fields["image"].shape for sample in self._own.samples}) == 1
        return self._loader(frames, self.frames_at_once if alike else 1, training=False)

    def _frames(self, split: str, *, every: int = 1) -> DataLoader[ForceImageBatch]:
        frames = WholeFrames(
            self._open(split), taper_fraction=self._taper_fraction, frame_px=self._frame_px, every=every
        )
        return self._loader(frames, self.frames_at_once, training=False)

    def _open(self, split: str) -> ShardDataset:
        known = self.splits.manifest.fields
        image = known.get("image")
        if image is None or len(image.shape) != 3 or image.shape[0] != 1:
            found = "none" if image is None else str(image.shape)
            raise ValueError(f"{self.splits.folder} must hold image (1, y, x), its image is {found}")
        for name in ("pixel_size_um", *(["traction_pa"] if split == "train" else [])):
            if name not in known:
                raise ValueError(f"{self.splits.folder} must hold {name}, it holds {', '.join(known)}")
        if "traction_pa" in known and known["traction_pa"].shape != image.shape:
            raise ValueError(
                f"{self.splits.folder} holds image {image.shape} but traction_pa {known['traction_pa'].shape}: both "
                "must be (1, y, x) of one size"
            )
        return self.splits.open(split, [name for name in _FIELDS if name in known])

    def _train_crops(self) -> CellCrops:
        """The training frames whose patch is at least as large as the crop; says once how many are not."""
        source = self._open("train")
        if self._placed is None:
            boxes = self._boxes(source)
            shape_px = self.splits.manifest.fields["image"].shape[1:]
            sides = [patch_side(box, shape_px, margin_px=self._margin_px) for box in boxes]
            kept = np.flatnonzero(np.array(sides) >= self._augmentation.crop_px)
            if not len(kept):
                raise ValueError(
                    f"crop_px must be at most {max(sides)}, the largest side of a square in the cells' boxes with a "
                    f"margin of {self._margin_px} px, got {self._augmentation.crop_px}"
                )
            self._tell_left_out(len(boxes), len(boxes) - len(kept))
            self._placed = kept, [boxes[index] for index in kept]
        kept, boxes = self._placed
        return CellCrops(
            source,
            kept,
            boxes,
            self._augmentation,
            seed=self.seed,
            margin_px=self._margin_px,
            taper_fraction=self._taper_fraction,
        )

    def _boxes(self, source: ShardDataset) -> list[Box]:
        """Box of every training frame, as stored, else found in the image."""
        if "box_px" in self.splits.manifest.fields:
            stored = self.splits.open("train", ["box_px"])
            return [Box(*sample.fields["box_px"].tolist()) for sample in stored.__getitems__(range(len(stored)))]
        images = self.splits.open("train", ["image"])
        boxes = []
        for index in range(len(images)):
            sample = images[index]
            try:
                boxes.append(cell_box(sample.fields["image"][0]))
            except ValueError as error:
                raise ValueError(f"sample {sample.sample_id} of {self.splits.folder}: {error}") from None
        return boxes

    def _tell_left_out(self, frames: int, left_out: int) -> None:
        if left_out and (self.trainer is None or self.trainer.is_global_zero):
            print(
                f"{left_out} of {frames} training frames are left out: the cell's box with its margin is smaller than "
                f"{self._augmentation.crop_px} px",
                file=sys.stderr,
            )

    def _tell_pixel_size(self, pixel_size_um: float | None) -> None:
        """Say once where own images are of another scale than those that were trained on, as far as these are here."""
        if pixel_size_um is None:
            return
        try:
            trained_um = float(self.splits.open("train", ["pixel_size_um"])[0].fields["pixel_size_um"])
        except (ValueError, OSError, IndexError):
            return
        if abs(pixel_size_um - trained_um) > SAME_SCALE * trained_um:
            print(
                f"the network was trained on {trained_um:g} um per pixel, these images have {pixel_size_um:g}: nothing "
                f"is resized, so resize them to {trained_um:g} um for a prediction that can be trusted",
                file=sys.stderr,
            )

    def _loader(
        self, dataset: CellCrops | WholeFrames, batch_size: int, *, training: bool
    ) -> DataLoader[ForceImageBatch]:
        return loader(
            dataset,
            batch_size=batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            training=training,
            trainer=self.trainer,
            collate=_collate,
        )


def _collate(samples: Sequence[Sample]) -> ForceImageBatch:
    return ForceImageBatch(
        **{
            name: torch.from_numpy(stack(samples, name).astype(np.float32, copy=False))
            for name in ("image", "log_traction", "pixel_size_um", "time_s")
        },
        sample_id=[sample.sample_id for sample in samples],
        group=[sample.group for sample in samples],
    )
