"""Pairs of displacement and traction (Wang & Lin 2021, doi 10.1016/j.bpj.2021.06.011) as batches.

One sample is one field: the displacement of the substrate without noise, the traction that made it, the cell's interior
and the numbers of substrate and operator. Simulated twin: `mechanolab data simulate dl_tfm`, 104 x 104 px of 1.925 um,
grouped by simulated cell (the 16 rotations of one cell stay together). The authors' .mat folders, pyTFM arrays and PIV
tables: `mechanolab data convert dl_tfm`; real measurements have no traction, theirs is NaN. The user's own files, of
any size, are predicted on without conversion (`converters.own_fields`).

Noise is added when a sample is used: anew in every epoch of training, always the same in validation and test. Batch
order, noise and symmetries are functions of (seed, epoch, index). Yields `batches.TractionBatch`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from datamodules.augmentation.displacement_noise import DisplacementNoise
from datamodules.augmentation.grid_symmetries import GridSymmetry
from datamodules.batches import OPERATOR_CODES, Sample, TractionBatch
from datamodules.converters import own_fields
from datamodules.shards.reader import ShardDataset
from datamodules.shards.stacking import stack
from datamodules.shards.stored_splits import InMemory, StoredSplits, loader
from physics.half_space import check_reach, displacement_from_traction, kernel_shape

SCALARS = ("youngs_modulus_pa", "poisson_ratio", "pixel_size_um")
MEASURED = ("displacement_um", "cell_mask", *SCALARS, *OPERATOR_CODES)
OPTIONAL = ("traction_pa", "gel_thickness_um")
"""Unknown without, and a half space."""
LARGE_PX = 256
"""Side from which own fields are predicted on one by one."""
_MAGNITUDES = 0x6D61676E
"""Keeps the draws of noise magnitudes apart from others that start from the same seed."""


class TractionData(LightningDataModule):
    """Training, validation, test and prediction batches of displacement fields with their traction.

    Args:
        data_root: folder or URL that holds `dl_tfm/<dataset>`.
        dataset: name of the data set, for example `twin`.
        split: name of a split scheme stored in the data set, for example `default`.
        batch_size: samples per device and step.
        num_workers: processes that read and add noise; 0 does so in the process that trains.
        memory_gib: splits of at most this size are held in memory, all others are read as they are needed.
        seed: order of the batches, noise and symmetries are functions of (seed, epoch, index).
        noise_px: magnitude of the white noise vector in validation, test and prediction, in pixels of the field's grid;
            each component has the standard deviation noise / sqrt(2) (the paper's convention). The user's own files
            get none.
        train_noise_px: smallest and largest magnitude of the white noise in training, drawn log-uniformly for each
            sample; null trains without noise.
        noise_free_share: share of training samples that get no noise of any kind.
        correlated_px: largest magnitude of noise correlated over `correlation_length_px` in training; each sample
            draws its own between 0 and this, as for drift and tilt.
        correlation_length_px: distance at which its autocorrelation has fallen to 1/e.
        drift_px: largest magnitude of a displacement of the whole field in training.
        tilt_px: largest magnitude of a displacement that grows linearly across the field in training.
        symmetries: whether training fields are turned by quarter turns and mirrored at random, vectors included.
        centre_element, reach, poisson_ratio: make the displacement anew with this operator of `physics.half_space`,
            and tell so; null keeps what is stored.
        transfer_function: kernel (n,) of the displacement measurement, for example [0.08, 0.84, 0.08]: makes the
            displacement anew as such a measurement would see it; null for a perfect one.

    Raises:
        ValueError: an argument is out of its range; the message starts with its name.
    """

    stem = "dl_tfm"
    smoke: Mapping[str, Any] = MappingProxyType(
        {"batch_size": 1, "num_workers": 0, "dataset": "twin", "split": "default", "memory_gib": 0.0}
    )
    """What a smoke run on a simulated fixture sets."""
    input_suffixes = own_fields.SUFFIXES
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
        noise_px: float,
        train_noise_px: list[float] | None,
        noise_free_share: float,
        correlated_px: float,
        correlation_length_px: float,
        drift_px: float,
        tilt_px: float,
        symmetries: bool,
        centre_element: str | None,
        reach: str | None,
        poisson_ratio: float | None,
        transfer_function: list[float] | None,
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        where = {"data_root": data_root, "stem": self.stem, "dataset": dataset}
        self.splits = StoredSplits(**where, scheme=split, memory_gib=memory_gib)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._test_noise = NoiseRange.constant(noise_px)
        self._train_noise = NoiseRange(
            white_px=train_noise_px,
            noise_free_share=noise_free_share,
            correlated_px=correlated_px,
            correlation_length_px=correlation_length_px,
            drift_px=drift_px,
            tilt_px=tilt_px,
        )
        self._symmetries = symmetries
        self._operator = _operator(centre_element, reach, poisson_ratio, transfer_function)
        self._own: InMemory | None = None

    @property
    def data_folder(self) -> Path | None:
        """The folder of the data set in use, of a remote one its mirror; None where the user's own fields are."""
        return self.splits.local_folder if self._own is None else None

    @property
    def irreducible_error(self) -> dict[str, Any] | None:
        """What an oracle reaches on this data set as it is stored, where its simulator knows it."""
        as_stored = self._own is None and self._operator is None
        return self.splits.irreducible_error if as_stored else None

    def has_split(self, name: str) -> bool:
        """Whether the split scheme in use puts any sample into `name` (train, val or test)."""
        return self.splits.has(name)

    def predict_on(
        self, *, split: str = "test", files: Sequence[Path] | None = None, pixel_size_um: float | None = None
    ) -> None:
        """Choose what `predict_dataloader` yields: a split of the data set, or the displacement fields in `files`.

        Files are read as `converters.own_fields` says, substrate and scale from the conditions.json beside them;
        `pixel_size_um`, the distance between the points of the fields, takes the place of its entry. Nothing is added
        to the fields and nothing made anew. All are read here: a bad one is told before anything is predicted, by a
        FileNotFoundError or ValueError with its name.
        """
        if files is None:
            self.splits.predict_on(split, pixel_size_um=pixel_size_um)
            self._own = None
        else:
            self._own = InMemory(own_fields.read_own_fields(files, pixel_size_um=pixel_size_um))

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

    def train_dataloader(self) -> DataLoader[TractionBatch]:
        """Shuffled batches with fresh noise, resumable in the middle of an epoch."""
        source = self._open("train")
        return self._loader(
            _Fields(source, self._train_noise, self._symmetries, self.seed, self._operator, fresh=True), True
        )

    def val_dataloader(self) -> DataLoader[TractionBatch]:
        """Batches of the validation split, in its stored order, with the same noise every time."""
        return self._loader(self._measured("val"), False)

    def test_dataloader(self) -> DataLoader[TractionBatch]:
        """Batches of the test split, in its stored order, with the same noise every time."""
        return self._loader(self._measured("test"), False)

    def predict_dataloader(self) -> DataLoader[TractionBatch]:
        """Batches of what `predict_on` chose, in its order; the test split where it was not called.

        Own fields that differ in size, or are large, come one by one.
        """
        if self._own is None:
            return self._loader(self._measured(self.splits.predicted), False)
        fields = _Fields(self._own, NoiseRange.constant(0.0), False, self.seed, None)
        shapes = {sample.fields["displacement_um"].shape for sample in self._own.samples}
        alike_and_small = len(shapes) == 1 and max(shapes.pop()) <= LARGE_PX
        return self._loader(fields, False, batch_size=self.batch_size if alike_and_small else 1)

    def _measured(self, split: str) -> _Fields:
        return _Fields(self._open(split), self._test_noise, False, self.seed, self._operator)

    def _open(self, split: str) -> ShardDataset:
        known = self.splits.manifest.fields
        missing = [name for name in MEASURED if name not in known]
        if missing:
            raise ValueError(
                f"{self.splits.folder} must hold {missing[0]}, it holds {', '.join(known)}: simulate or convert it anew"
            )
        if "traction_pa" not in known and split == "train":
            raise ValueError(f"{self.splits.folder} holds displacements without tractions: it cannot be trained on")
        if self._operator is not None:
            changed = ", ".join(self._operator)
            if "traction_pa" not in known:
                raise ValueError(f"{changed} cannot be changed in {self.splits.folder}, which holds no traction_pa")
            check_reach(self._operator.get("reach", "full"), known["traction_pa"].shape[-2:])
        return self.splits.open(split, [*MEASURED, *(name for name in OPTIONAL if name in known)])

    def _loader(self, dataset: _Fields, training: bool, *, batch_size: int | None = None) -> DataLoader[TractionBatch]:
        return loader(
            dataset,
            batch_size=batch_size or self.batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            training=training,
            trainer=self.trainer,
            collate=_collate,
        )


class NoiseRange:
    """Which noise a sample may get; each draws its own magnitudes. Arguments as those of `TractionData`."""

    def __init__(
        self,
        *,
        white_px: Sequence[float] | None,
        noise_free_share: float,
        correlated_px: float,
        correlation_length_px: float,
        drift_px: float,
        tilt_px: float,
    ) -> None:
        if white_px is not None and not (len(white_px) == 2 and 0 < white_px[0] <= white_px[1] < math.inf):
            raise ValueError(f"train_noise_px must be two positive numbers, the smaller one first, got {white_px}")
        if not 0 <= noise_free_share <= 1:
            raise ValueError(f"noise_free_share must lie in [0, 1], got {noise_free_share}")
        self._white_px = white_px
        self._noise_free_share = noise_free_share
        # checks the numbers
        self._largest = DisplacementNoise(
            correlated_px=correlated_px,
            correlation_length_px=correlation_length_px,
            drift_px=drift_px,
            tilt_px=tilt_px,
        )

    @classmethod
    def constant(cls, noise_px: float) -> NoiseRange:
        """White noise of one magnitude, or none."""
        if not 0 <= noise_px < math.inf:
            raise ValueError(f"noise_px must be finite and not negative, got {noise_px}")
        white = [noise_px, noise_px] if noise_px > 0 else None
        no_other = dict.fromkeys(("noise_free_share", "correlated_px", "drift_px", "tilt_px"), 0.0)
        return cls(white_px=white, correlation_length_px=1.0, **no_other)

    def draw(self, shape_px: tuple[int, int], *, seed: int, epoch: int, index: int) -> NDArray[np.float32] | None:
        """The noise of one sample, (2, y, x) in px; None for none."""
        generator = np.random.default_rng((_MAGNITUDES, seed, epoch, index))
        share, white, correlated, drift, tilt = generator.random(5)
        if share < self._noise_free_share:
            return None
        low, high = self._white_px or (1.0, 1.0)
        noise = DisplacementNoise(
            white_px=low * (high / low) ** white if self._white_px else 0.0,
            correlated_px=self._largest.correlated_px * correlated,
            correlation_length_px=self._largest.correlation_length_px,
            drift_px=self._largest.drift_px * drift,
            tilt_px=self._largest.tilt_px * tilt,
        )
        return noise.draw(height_px=shape_px[0], width_px=shape_px[1], seed=seed, epoch=epoch, index=index)


class _Fields(Dataset[Sample]):
    """Samples by (epoch, index) as they were measured: displacement in px, with noise."""

    def __init__(
        self,
        source: ShardDataset | InMemory,
        noise: NoiseRange,
        symmetries: bool,
        seed: int,
        operator: dict[str, Any] | None,
        *,
        fresh: bool = False,
    ) -> None:
        self.source = source
        self.noise = noise
        self.symmetries = symmetries
        self.seed = seed
        self.operator = operator
        self.fresh = fresh

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        samples = self.source.__getitems__([index for _, index in keys])
        return [self._measure(sample, *key) for sample, key in zip(samples, keys, strict=True)]

    def _measure(self, sample: Sample, epoch: int, index: int) -> Sample:
        fields = dict(sample.fields)
        if self.operator is not None:
            fields |= _made_anew(fields, self.operator)
        displacement_um = fields.pop("displacement_um")
        fields["displacement_px"] = displacement_um / np.float32(fields["pixel_size_um"])
        fields["cell_mask"] = fields["cell_mask"][0]
        fields.setdefault("traction_pa", np.full_like(displacement_um, np.nan))
        fields.setdefault("gel_thickness_um", np.array(np.inf))
        # Lightning counts the epochs of validation, too, while it fits
        draw = {"seed": self.seed, "epoch": epoch if self.fresh else 0, "index": index}
        if self.symmetries:
            height, width = fields["cell_mask"].shape
            symmetry = GridSymmetry.draw(square=height == width, **draw)
            for name in ("displacement_px", "traction_pa"):
                fields[name] = symmetry.move_vectors(fields[name])
            fields["cell_mask"] = symmetry.move_pixels(fields["cell_mask"])
        noise = self.noise.draw(fields["cell_mask"].shape, **draw)
        if noise is not None:
            fields["displacement_px"] = fields["displacement_px"] + noise
        return sample._replace(fields=fields)


def _operator(
    centre_element: str | None, reach: str | None, poisson_ratio: float | None, transfer_function: list[float] | None
) -> dict[str, Any] | None:
    """What of the operator is another than the stored one; None keeps the displacement as it is stored."""
    changed: dict[str, Any] = {"centre_element": centre_element, "reach": reach}
    for name, value in changed.items():
        if value is not None and value not in OPERATOR_CODES[name]:
            raise ValueError(f"{name} must be null, {' or '.join(OPERATOR_CODES[name])}, got {value!r}")
    if poisson_ratio is not None and not 0 < poisson_ratio <= 0.5:
        raise ValueError(f"poisson_ratio must be null or lie in (0, 0.5], got {poisson_ratio}")
    changed["poisson_ratio"] = poisson_ratio
    if transfer_function is not None:
        changed["transfer_function"] = torch.tensor(transfer_function, dtype=torch.float32)
        kernel_shape(changed["transfer_function"])
    return {name: value for name, value in changed.items() if value is not None} or None


def _made_anew(fields: Mapping[str, np.ndarray], changed: dict[str, Any]) -> dict[str, np.ndarray]:
    """The displacement of another operator, and what is then to be told of it.

    The difference between both operators is added to the stored displacement, which may be finer than they are.
    """
    traction_pa = torch.from_numpy(fields["traction_pa"])
    stored: dict[str, Any] = {name: float(fields[name]) for name in SCALARS}
    stored |= {name: meanings[int(fields[name])] for name, meanings in OPERATOR_CODES.items()}
    stored["thickness_um"] = float(fields["gel_thickness_um"]) if "gel_thickness_um" in fields else None
    difference = displacement_from_traction(traction_pa, **{**stored, **changed})
    difference -= displacement_from_traction(traction_pa, **stored)
    told = {
        name: np.array(OPERATOR_CODES[name].index(value) if name in OPERATOR_CODES else value)
        for name, value in changed.items()
        if name in fields
    }
    return {"displacement_um": fields["displacement_um"] + difference.numpy(), **told}


def _collate(samples: Sequence[Sample]) -> TractionBatch:
    scalars = {
        name: torch.from_numpy(stack(samples, name).astype(np.float32)) for name in (*SCALARS, "gel_thickness_um")
    }
    scalars |= {name: torch.from_numpy(stack(samples, name).astype(np.int64)) for name in OPERATOR_CODES}
    return TractionBatch(
        displacement_px=torch.from_numpy(stack(samples, "displacement_px")),
        traction_pa=torch.from_numpy(stack(samples, "traction_pa")),
        cell_mask=torch.from_numpy(stack(samples, "cell_mask").astype(bool)),
        sample_id=[sample.sample_id for sample in samples],
        group=[sample.group for sample in samples],
        **scalars,
    )
