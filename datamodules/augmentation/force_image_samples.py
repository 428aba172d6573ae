"""Samples of paper `insilico_tfm` by (epoch, index): augmented crops around the cell for training, whole frames else.

Both take stored samples with `image` (1, y, x) in grey levels and `traction_pa` (1, y, x), and give `image` and
`log_traction` (1, y, x) float32 with `pixel_size_um` and `time_s`, NaN where the source has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.augmentation.force_images import ForceAugmentation, cell_patch, clipped_log, taper
from datamodules.batches import Sample

_DRAWS = 0x64726177
"""Keeps the draws of frames apart from others that start from the same seed."""


class CellCrops(Dataset[Sample]):
    """Augmented crops; an epoch shows every frame once, or where `draws` is set as many, drawn with replacement.

    Args:
        source: stored samples, read by `__getitems__`.
        kept: (n,) positions in the source of the frames that are large enough.
        boxes: of each of them around its cell, (x, y, width, height) in px.
        augmentation: what is drawn for a sample.
        seed: frame and augmentation are functions of (seed, epoch, index).
        margin_px: around the box.
        taper_fraction: share of the length at each end over which the force fades out.
    """

    def __init__(
        self,
        source: Any,
        kept: NDArray[np.int64],
        boxes: Sequence[tuple[int, int, int, int]],
        augmentation: ForceAugmentation,
        *,
        seed: int,
        margin_px: int,
        taper_fraction: float,
    ) -> None:
        self.source = source
        self.kept = kept
        self.boxes = boxes
        self.augmentation = augmentation
        self.seed = seed
        self.margin_px = margin_px
        self.taper_fraction = taper_fraction
        self.draws: int | None = None

    def __len__(self) -> int:
        return len(self.kept) if self.draws is None else self.draws

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        chosen = [self._frame(*key) for key in keys]
        samples = self.source.__getitems__([self.kept[number] for number in chosen])
        return [self._cut(*args) for args in zip(samples, chosen, keys, strict=True)]

    def _frame(self, epoch: int, index: int) -> int:
        if self.draws is None:
            return index
        return int(np.random.default_rng((_DRAWS, self.seed, epoch, index)).integers(len(self.kept)))

    def _cut(self, sample: Sample, number: int, key: tuple[int, int]) -> Sample:
        image, force = cell_patch(
            sample.fields["image"][0],
            sample.fields["traction_pa"][0],
            self.boxes[number],
            margin_px=self.margin_px,
            taper_fraction=self.taper_fraction,
        )
        image, force = self.augmentation.apply(image, force, seed=self.seed, epoch=key[0], index=key[1])
        return _with_logarithms(sample, image, force)


class WholeFrames(Dataset[Sample]):
    """Frames without augmentation, the same in every epoch.

    Args:
        source: stored samples, read by `__getitems__`.
        taper_fraction: share of the length at each end over which the force fades out.
        frame_px: side of the square in the middle that is kept of larger frames, after the taper; None keeps all.
        every: takes every so many-th sample of the source.
    """

    def __init__(
        self,
        source: Any,
        *,
        taper_fraction: float,
        frame_px: int | None,
        every: int = 1,
    ) -> None:
        self.source = source
        self.taper_fraction = taper_fraction
        self.frame_px = frame_px
        self.every = every

    def __len__(self) -> int:
        return -(-len(self.source) // self.every)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        return [self._whole(sample) for sample in self.source.__getitems__([self.every * index for _, index in keys])]

    def _whole(self, sample: Sample) -> Sample:
        image = sample.fields["image"][0].astype(np.float32)
        force = sample.fields.get("traction_pa")
        if force is None:
            tapered = np.full(image.shape, np.nan, np.float32)
        else:
            tapered = taper(force[0], fraction=self.taper_fraction)
        kept = tuple(_middle(length, self.frame_px) for length in image.shape)
        return _with_logarithms(sample, clipped_log(image[kept]), clipped_log(tapered[kept]))


def _middle(length: int, kept: int | None) -> slice:
    if kept is None or kept >= length:
        return slice(None)
    start = (length - kept) // 2
    return slice(start, start + kept)


def _with_logarithms(sample: Sample, image: NDArray[np.floating], force: NDArray[np.floating]) -> Sample:
    fields = {"image": image[np.newaxis], "log_traction": force[np.newaxis]}
    fields |= {name: sample.fields.get(name, np.array(np.nan)) for name in ("pixel_size_um", "time_s")}
    return sample._replace(fields=fields)
