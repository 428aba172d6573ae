"""Keeps status.json current, says on a plain terminal how far a run is, and stops a run whose loss is not finite."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mechanolab import runs
from mechanolab.callbacks.exact_resume import batches_seen
from mechanolab.config import RunFailedError

WRITE_EVERY_S = 2.0


class RunRecord(Callback):
    """Writes epoch, step, the monitored metric and the time left to status.json, at most every two seconds."""

    def __init__(self, folder: Path, metric: str) -> None:
        self.folder, self.metric = folder, metric
        self._began = self._written = time.monotonic()
        self._began_at_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began, self._began_at_step = time.monotonic(), batches_seen(trainer)
        self._write(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss as often as it is logged; write if it is time to."""
        if (batch_idx + 1) % cast(Any, trainer).log_every_n_steps == 0 or trainer.is_last_batch:
            loss = outputs["loss"] if isinstance(outputs, dict) and "loss" in outputs else None
            if loss is not None and not bool(torch.isfinite(loss)):
                raise RunFailedError(
                    f"train/loss is {float(loss)} at step {batches_seen(trainer)}: lower module.learning_rate "
                    "or look for NaN with `mechanolab data verify`"
                )
        if time.monotonic() - self._written > WRITE_EVERY_S:
            self._write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, and where there is no progress bar say one line."""
        if trainer.sanity_checking or not trainer.fit_loop._data_source.is_defined():
            return
        self._write(trainer)
        if trainer.is_global_zero and not sys.stderr.isatty():
            shown = {k: float(v) for k, v in trainer.callback_metrics.items() if k in ("train/loss", self.metric)}
            text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            left = self._eta_s(trainer)
            left_text = f"  about {left:.0f} s left" if left is not None else ""
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}{left_text}", file=sys.stderr)

    def _eta_s(self, trainer: Trainer) -> float | None:
        done = batches_seen(trainer) - self._began_at_step
        total = trainer.estimated_stepping_batches
        if done <= 0 or total == float("inf"):
            return None
        left = total * trainer.accumulate_grad_batches - batches_seen(trainer)
        return max(0.0, left * (time.monotonic() - self._began) / done)

    def _write(self, trainer: Trainer) -> None:
        self._written = time.monotonic()
        if not trainer.is_global_zero:
            return
        value = trainer.callback_metrics.get(self.metric)
        runs.write_status(
            self.folder,
            "running",
            step=batches_seen(trainer),
            epoch=trainer.current_epoch,
            max_epochs=trainer.max_epochs,
            metric=self.metric,
            value=None if value is None else float(value),
            eta_s=self._eta_s(trainer),
        )
