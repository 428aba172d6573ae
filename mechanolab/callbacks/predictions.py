"""Writes predictions: one row of numbers per sample as predictions.csv, the first samples as figures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from mechanolab.callbacks.figures import SAMPLES, join_batches, write_figures
from mechanolab.config import RequestError


class PredictionWriter(BasePredictionWriter):
    """Collects one row per sample and writes predictions.csv, sorted by sample id, when all ranks are done.

    Args:
        folder: where the files go; an earlier prediction there is replaced.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self._rows: list[dict[str, Any]] = []
        self._batches: list[Any] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep the rows of a batch."""
        for name, value in prediction._asdict().items():
            if value.ndim != 1:
                raise RequestError(f"predictions of more than one number per sample cannot be written yet: {name}")
        columns = {name: value.detach().cpu().tolist() for name, value in prediction._asdict().items()}
        for i, (sample_id, group) in enumerate(zip(batch.sample_id, batch.group, strict=True)):
            row = {"sample_id": sample_id, "group": group}
            self._rows.append(row | {name: values[i] for name, values in columns.items()})
        if sum(len(b[0]) for b in self._batches) < SAMPLES:
            self._batches.append(batch)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather, sort and write."""
        rows = self._rows
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if not trainer.is_global_zero or not rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / ".predictions.partial"
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: row["sample_id"]))
        partial.replace(self.folder / "predictions.csv")
        with torch.inference_mode():
            write_figures(self.folder, cast(Any, pl_module).figures(join_batches(self._batches)))
