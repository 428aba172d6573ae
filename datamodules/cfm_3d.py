"""Pairs of bead volumes (Duan et al. 2022, doi 10.1016/j.bpj.2022.04.028) as batches.

One sample is a gel full of beads, imaged before and after a cell deforms it, with the displacement of the gel and the
force that the cell exerts where they are known, NaN where they are not. Simulated twin: `mechanolab data simulate
cfm_3d`, 64 x 64 x 64 voxels of 0.8 um, grouped by simulated cell. TIFF stacks with tracked beads: `mechanolab data
convert cfm_3d`. The user's own pairs, of any size, are predicted on whole and without conversion
(`converters.own_volumes`); a module that cannot hold them cuts them into tiles.

Volumes are stored as they were counted. Each is scaled to [0, 1] by two percentiles of its own grey levels, taken over
the whole volume before a patch is cut, so that offset, gain and bleaching drop out. Batch order, patches and symmetries
are functions of (seed, epoch, index). Yields `batches.BeadVolumeBatch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.augmentation.volume_symmetries import VolumeSymmetry, draw_patch
from datamodules.batches import BeadVolumeBatch, Sample
from datamodules.converters import own_volumes, volume_pairs
from datamodules.shards.reader import ShardDataset
from datamodules.shards.stacking import stack
from datamodules.shards.stored_splits import InMemory, StoredSplits, loader

VOLUMES = ("reference", "deformed")
SCALARS = ("voxel_size_um", "youngs_modulus_pa", "poisson_ratio")
NEEDED = (*VOLUMES, *SCALARS)
VECTORS = ("displacement_um", "body_force_n_per_m3")
OPTIONAL = (*VECTORS, "cell_mask")
"""What a data set may lack: unknown vectors become NaN, without a mask the cell may be anywhere."""
KNOWN = "displacement_known"
"""Mask of the voxels whose displacement is known, those of tracked beads; without it all are."""
SMALLEST_PATCH = 8
LARGE_VOXELS = 128**3
"""From this size on own volumes are predicted on one by one."""


class BeadVolumeData(LightningDataModule):
    """Training, validation, test and prediction batches of pairs of bead volumes.

    Args:
        data_root: folder or URL that holds `cfm_3d/<dataset>`.
        dataset: name of the data set, for example `twin`.
        split: name of a split scheme stored in the data set, for example `default`.
        batch_size: samples per device and step.
        num_workers: processes that read, cut and scale; 0 does so in the process that trains.
        memory_gib: splits of at most this size are held in memory, all others are read as they are needed.
        seed: order of the batches, patches and symmetries are functions of (seed, epoch, index).
        patch_zyx: size in voxels of the patch that training cuts at random from each volume; null takes the whole.
            Validation, test and prediction always see whole volumes.
        symmetries: whether training pairs are mirrored along x, y and z and turned by quarter turns about z at random,
            vectors included.
        intensity_percentiles: the two percentiles of a volume's grey levels that become 0 and 1, for example
            [10.0, 99.9]; what lies beyond is clipped. Where the two are equal, in a volume with very few beads, its
            largest grey level becomes 1.

    Raises:
        ValueError: an argument is out of its range; the message starts with its name.
    """

    stem = "cfm_3d"
    smoke: Mapping[str, Any] = MappingProxyType(
        {
            "batch_size": 1,
            "num_workers": 0,
            "dataset": "twin",
            "split": "default",
            "memory_gib": 0.0,
            "patch_zyx": [32, 32, 32],
        }
    )
    """What a smoke run on a simulated fixture sets."""
    input_suffixes = volume_pairs.SUFFIXES
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
        patch_zyx: list[int] | None,
        symmetries: bool,
        intensity_percentiles: list[float],
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if patch_zyx is not None and (len(patch_zyx) != 3 or min(patch_zyx) < SMALLEST_PATCH):
            raise ValueError(f"patch_zyx must be null or three sizes of at least {SMALLEST_PATCH}, got {patch_zyx}")
        if len(intensity_percentiles) != 2 or not 0 <= intensity_percentiles[0] < intensity_percentiles[1] <= 100:
            raise ValueError(
                f"intensity_percentiles must be two numbers in [0, 100], the smaller first, got {intensity_percentiles}"
            )
        self.splits = StoredSplits(
            data_root=data_root, stem=self.stem, dataset=dataset, scheme=split, memory_gib=memory_gib
        )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.patch_zyx = patch_zyx
        self.symmetries = symmetries
        self._percentiles = (intensity_percentiles[0], intensity_percentiles[1])
        self._own: InMemory | None = None

    @property
    def data_folder(self) -> Path | None:
        """The folder of the data set in use, of a remote one its mirror; None where the user's own volumes are."""
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
        """Choose what `predict_dataloader` yields: a split of the data set, or the pairs of volumes in `files`.

        Files are paired and read as `converters.own_volumes` says, the gel and the voxel size from the
        conditions.json beside them; `pixel_size_um` takes the place of the voxel's edges along y and x. All are read
        here, so that a bad one is told before anything is predicted: FileNotFoundError or ValueError with its name.
        """
        if files is None:
            self.splits.predict_on(split, pixel_size_um=pixel_size_um)
            self._own = None
        else:
            self._own = InMemory(own_volumes.read_own_pairs(files, pixel_size_um=pixel_size_um))

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

    def train_dataloader(self) -> DataLoader[BeadVolumeBatch]:
        """Shuffled batches of fresh patches, resumable in the middle of an epoch."""
        pairs = _Pairs(
            self._open("train"),
            self._percentiles,
            seed=self.seed,
            patch_zyx=self.patch_zyx,
            symmetries=self.symmetries,
        )
        return self._loader(pairs, training=True)

    def val_dataloader(self) -> DataLoader[BeadVolumeBatch]:
        """Batches of the validation split, whole volumes in their stored order."""
        return self._loader(_Pairs(self._open("val"), self._percentiles))

    def test_dataloader(self) -> DataLoader[BeadVolumeBatch]:
        """Batches of the test split, whole volumes in their stored order."""
        return self._loader(_Pairs(self._open("test"), self._percentiles))

    def predict_dataloader(self) -> DataLoader[BeadVolumeBatch]:
        """Batches of what `predict_on` chose, in its order; the test split where it was not called.

        Own volumes that differ in size, or are large, come one by one.
        """
        if self._own is None:
            return self._loader(_Pairs(self._open(self.splits.predicted), self._percentiles))
        volumes = [sample.fields["reference"] for sample in self._own.samples]
        kinds = {(volume.shape, *sample.fields) for volume, sample in zip(volumes, self._own.samples, strict=True)}
        batch_size = self.batch_size if len(kinds) == 1 and volumes[0].size < LARGE_VOXELS else 1
        return self._loader(_Pairs(self._own, self._percentiles), batch_size=batch_size)

    def _open(self, split: str) -> ShardDataset:
        known = self.splits.manifest.fields
        missing = [name for name in NEEDED if name not in known]
        if missing:
            raise ValueError(f"{self.splits.folder} must hold {missing[0]}, it holds {', '.join(known)}")
        if split == "train":
            if "displacement_um" not in known:
                raise ValueError(f"{self.splits.folder} holds volumes without displacement: it cannot be trained on")
            size = known["reference"].shape[-3:]
            if self.patch_zyx is not None and any(p > s for p, s in zip(self.patch_zyx, size, strict=True)):
                raise ValueError(
                    f"patch_zyx {self.patch_zyx} must fit into the volumes of {list(size)} voxels in "
                    f"{self.splits.folder}; null takes them whole"
                )
        return self.splits.open(split, [*NEEDED, *(name for name in (*OPTIONAL, KNOWN) if name in known)])

    def _loader(
        self, dataset: _Pairs, *, training: bool = False, batch_size: int | None = None
    ) -> DataLoader[BeadVolumeBatch]:
        return loader(
            dataset,
            batch_size=self.batch_size if batch_size is None else batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            training=training,
            trainer=self.trainer,
            collate=_collate,
        )


def scaled_volume(volume: NDArray[Any], percentiles: tuple[float, float]) -> NDArray[np.float32]:
    """A volume of any shape with its two percentiles at 0 and 1, float32, clipped there; all 0 where it is flat."""
    if np.issubdtype(volume.dtype, np.unsignedinteger) and volume.dtype.itemsize <= 2:
        low, high = _counted_percentiles(volume, percentiles)
    else:
        low, high = (float(value) for value in np.percentile(volume, percentiles))
    if high <= low:
        high = float(volume.max())
    if high <= low:
        return np.zeros(volume.shape, np.float32)
    scaled = (volume.astype(np.float32) - np.float32(low)) * np.float32(1 / (high - low))
    return np.clip(scaled, 0, 1, out=scaled)


def _counted_percentiles(volume: NDArray[np.generic], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Percentiles of whole numbers by counting: the smallest grey level that so many voxels do not exceed."""
    below = np.cumsum(np.bincount(volume.ravel()))
    low, high = (int(np.searchsorted(below, p / 100 * volume.size)) for p in percentiles)
    return float(low), float(high)


class _Pairs(Dataset[Sample]):
    """Samples by (epoch, index), scaled; cut and moved where they are trained on."""

    def __init__(
        self,
        source: ShardDataset | InMemory,
        percentiles: tuple[float, float],
        *,
        seed: int = 0,
        patch_zyx: Sequence[int] | None = None,
        symmetries: bool = False,
    ) -> None:
        self.source = source
        self.percentiles = percentiles
        self.seed = seed
        self.patch_zyx = patch_zyx
        self.symmetries = symmetries

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        samples = self.source.__getitems__([index for _, index in keys])
        return [self._seen(sample, *key) for sample, key in zip(samples, keys, strict=True)]

    def _seen(self, sample: Sample, epoch: int, index: int) -> Sample:
        fields = dict(sample.fields)
        if KNOWN in fields:
            fields["displacement_um"] = np.where(fields.pop(KNOWN) > 0, fields["displacement_um"], np.float32(np.nan))
        for name in VOLUMES:
            fields[name] = scaled_volume(fields[name], self.percentiles)
        draw = {"seed": self.seed, "epoch": epoch, "index": index}
        grids = [name for name in (*VOLUMES, *OPTIONAL) if name in fields]
        if self.patch_zyx is not None:
            patch = draw_patch(fields["reference"].shape[-3:], self.patch_zyx, **draw)
            fields |= {name: fields[name][:, *patch] for name in grids}
        if self.symmetries:
            height, width = fields["reference"].shape[-2:]
            voxel = fields["voxel_size_um"]
            # the blur is that of the microscope, so it is alike along x and y only where the voxel is
            symmetry = VolumeSymmetry.draw(**draw, square=height == width and bool(voxel[1] == voxel[2]))
            for name in grids:
                move = symmetry.move_vectors if name in VECTORS else symmetry.move_voxels
                fields[name] = move(fields[name])
            fields["voxel_size_um"] = symmetry.move_voxel_size(voxel)
        return sample._replace(fields=fields)


def _collate(samples: Sequence[Sample]) -> BeadVolumeBatch:
    volumes = {name: torch.from_numpy(stack(samples, name)) for name in VOLUMES}
    batch, _, *shape = volumes["reference"].shape
    scalars = {name: torch.from_numpy(stack(samples, name).astype(np.float32)) for name in SCALARS}
    given = samples[0].fields

    def vectors(name: str) -> Tensor:
        if name in given:
            return torch.from_numpy(stack(samples, name))
        return torch.full((1,), torch.nan).expand(batch, 3, *shape)  # one number in memory, however large the volume

    mask = torch.ones(1, dtype=torch.bool).expand(batch, *shape)
    if "cell_mask" in given:
        mask = torch.from_numpy(stack(samples, "cell_mask"))[:, 0] > 0
    return BeadVolumeBatch(
        displacement_um=vectors("displacement_um"),
        body_force_n_per_m3=vectors("body_force_n_per_m3"),
        cell_mask=mask,
        sample_id=[sample.sample_id for sample in samples],
        group=[sample.group for sample in samples],
        **volumes,
        **scalars,
    )
