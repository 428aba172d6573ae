"""Checkpoints from which a run goes on bit for bit, wherever it was stopped.

Stock Lightning resumes with another batch order and another random stream. Here the order of batches is a function of
(seed, epoch) kept by the sampler, randomness in a step is reseeded from (seed, epoch, batch, rank), and checkpoints
are taken only where everything of the past has been logged and stepped: before the first batch of an epoch, between
two batches, and at the end. What Lightning has by then counted of the future is taken back in the saved progress.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


class Preempted(SystemExit):
    """The run was asked to stop, and has saved where it stands."""


@contextlib.contextmanager
def stop_on_request() -> Iterator[None]:
    """SIGTERM and Ctrl-C raise Preempted where nothing better is done about them; Lightning would exit with 0."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Preempted("stopped on request")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from numbers and words; independent for different parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class ExactResume(Checkpoint):
    """Seeds every step, keeps `last.ckpt` and `best.ckpt`, and stops on SIGTERM or Ctrl-C with both in order.

    Args:
        folder: where the checkpoints go; None keeps none.
        seed: the run's seed.
        metric: the monitored metric, as logged.
        mode: "min" or "max".
        missing_metric: called with the names that were logged when the monitored one is not among them; it raises.
    """

    save_every_s = 300.0
    """Seconds between checkpoints within an epoch."""

    def __init__(
        self,
        folder: Path | None,
        *,
        seed: int,
        metric: str,
        mode: str,
        missing_metric: Callable[[list[str]], None],
    ) -> None:
        super().__init__()
        self.folder, self.seed, self.metric, self.mode = folder, seed, metric, mode
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self._missing_metric = missing_metric
        self._saved_at = time.monotonic()
        self._saved_batches = -1
        self._stop_requested = False
        self._handlers: dict[int, Any] = {}
        self._within_epoch: bool | None = False
        self._validated = False

    # -- randomness ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save and stop if it is time to, then seed the step."""
        stepped = batch_idx % trainer.accumulate_grad_batches == 0  # a checkpoint holds no gradients
        due = self._stop_requested or time.monotonic() - self._saved_at > self.save_every_s
        if stepped and self._decide(trainer, due):
            self._save(trainer, within_epoch=True)
            if self._decide(trainer, self._stop_requested):
                raise Preempted("stopped on request")
        torch.manual_seed(derive_seed(self.seed, "train", trainer.current_epoch, batch_idx, trainer.global_rank))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Seed the step; a validation pass that is asked to stop is repeated from the checkpoint before it."""
        if self._decide(trainer, self._stop_requested):
            raise Preempted("stopped on request")
        torch.manual_seed(derive_seed(self.seed, "validate", trainer.current_epoch, batch_idx, trainer.global_rank))

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Seed the step."""
        torch.manual_seed(derive_seed(self.seed, "test", batch_idx, trainer.global_rank))

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Seed the step."""
        torch.manual_seed(derive_seed(self.seed, "predict", batch_idx, trainer.global_rank))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the monitored metric must be there; a run may end before its first validation."""
        self._validated = self._validated or not trainer.sanity_checking

    # -- when to save -------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Point the training loader at the batch after the last one done, and listen for the request to stop."""
        loops: Any = trainer.fit_loop
        within = loops.epoch_progress.current.ready != loops.epoch_progress.current.processed
        done = loops.epoch_loop.batch_progress.current.completed if within else 0
        loader: Any = trainer.train_dataloader
        if hasattr(loader, "load_state_dict"):
            loader.load_state_dict({"epoch": trainer.current_epoch, "batch": done})
        self._saved_batches = batches_seen(trainer)
        self._saved_at = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._request_stop)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the epoch before: only here are its schedulers stepped and its metrics written."""
        if batches_seen(trainer) > self._saved_batches:
            self._save(trainer, within_epoch=False)
            if self._decide(trainer, self._stop_requested):
                raise Preempted("stopped on request")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the last epoch."""
        if batches_seen(trainer) > self._saved_batches:
            self._save(trainer, within_epoch=None)
        self._restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore_handlers()

    # -- what is saved ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take back what Lightning has counted of the epoch or batch that begins after this checkpoint."""
        loops = checkpoint["loops"]["fit_loop"]
        progress = loops["epoch_loop.batch_progress"]
        epoch, batch = trainer.current_epoch, 0
        if self._within_epoch is None:
            pass
        elif self._within_epoch:
            for count in (progress["total"], progress["current"]):
                count["ready"] = count["completed"]
            batch = progress["current"]["completed"]
        else:
            for count in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
                count["ready"] = count["processed"]
        loops["state_dict"]["combined_loader"] = [{"epoch": epoch, "batch": batch}]
        checkpoint["batches_seen"] = progress["total"]["completed"]
        order: Any = getattr(trainer.train_dataloader, "batch_sampler", None)
        if batch > 0 and hasattr(order, "numbers"):
            checkpoint["order"] = order.numbers

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score so far."""
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]

    def _save(self, trainer: Trainer, *, within_epoch: bool | None) -> None:
        if self.folder is None:
            return
        improved = within_epoch is not True and self._improved(trainer)
        self._within_epoch = within_epoch
        partial = self.folder / "last.ckpt.partial"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            if improved:
                # best before last: a run killed between the two repeats the epoch and finds the same best again
                shutil.copyfile(partial, self.folder / "best.ckpt.partial")
                _settle(self.folder / "best.ckpt.partial", self.folder / "best.ckpt")
            _settle(partial, self.folder / "last.ckpt")
        self._saved_batches = batches_seen(trainer)
        self._saved_at = time.monotonic()
        if within_epoch is not True and self._validated and self.metric not in trainer.callback_metrics:
            self._missing_metric(sorted(trainer.callback_metrics))

    def _improved(self, trainer: Trainer) -> bool:
        if self.metric not in trainer.callback_metrics:
            return False
        score = float(trainer.callback_metrics[self.metric])
        better = self.best_score is None or (score < self.best_score if self.mode == "min" else score > self.best_score)
        if better and score == score:
            self.best_score, self.best_epoch = score, trainer.current_epoch - 1
            return True
        return False

    def _decide(self, trainer: Trainer, wish: bool) -> bool:
        return bool(trainer.strategy.reduce_boolean_decision(wish, all=False)) if trainer.world_size > 1 else wish

    # -- stopping -----------------------------------------------------------------------------------------------------

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop_requested = True

    def _restore_handlers(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)


def batches_seen(trainer: Trainer) -> int:
    """Training batches processed since the beginning of the run, over all its sittings."""
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(total.processed)


def _settle(partial: Path, final: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(final)
