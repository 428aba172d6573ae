"""Lightning's own resume from checkpoints taken at several hooks: the batches are those of the uninterrupted run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from datamodules.shards.sampler import EpochBatchSampler, ResumableLoader

LENGTH, BATCH = 18, 4
BATCHES = 5
EPOCHS = 4
STOPPED_EPOCH, STOPPED_BATCH = 1, 2

# Lightning comments on few workers, few batches and absent loggers
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Keys(Dataset[torch.Tensor]):
    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        return [torch.tensor(key) for key in keys]

    def __len__(self) -> int:
        return LENGTH


class Data(LightningDataModule):
    def __init__(self, workers: dict[str, Any]) -> None:
        super().__init__()
        self.workers = workers

    def _loader(self, shuffle: bool) -> dict[str, Any]:
        order = EpochBatchSampler(LENGTH, batch_size=BATCH, seed=3, shuffle=shuffle)
        return {"dataset": Keys(), "batch_sampler": order, **self.workers}

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(**self._loader(True))

    def val_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(**self._loader(False))

    def predict_dataloader(self) -> ResumableLoader:
        return ResumableLoader(**self._loader(False))


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[list[int]]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.tolist())
        return self.weight * 0.0

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        pass

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


class SaveAt(Callback):
    """Saves one checkpoint in the hook named, in the epoch (and batch) to be stopped at."""

    def __init__(self, hook: str, path: Path) -> None:
        self.path = path
        setattr(self, hook, self._save)

    def _save(self, trainer: Trainer, module: LightningModule, *arguments: Any, **named: Any) -> None:
        in_batch = len(arguments) > 1
        if trainer.sanity_checking or self.path.exists() or trainer.current_epoch != STOPPED_EPOCH:
            return
        if not in_batch or arguments[2 if len(arguments) > 2 else 1] == STOPPED_BATCH:
            trainer.save_checkpoint(self.path)


def run(data: Data, *callbacks: Callback, checkpoint: Path | None = None, **changes: Any) -> list[list[list[int]]]:
    module = Recorder()
    trainer = Trainer(
        **{
            "max_epochs": EPOCHS,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "callbacks": list(callbacks),
            **changes,
        }
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return module.seen


@pytest.mark.parametrize("limit", [None, 4], ids=["whole epochs", "limit_train_batches"])
@pytest.mark.parametrize(
    ("hook", "whole_epochs", "batches"),
    [
        ("on_train_batch_end", STOPPED_EPOCH, STOPPED_BATCH + 1),
        ("on_validation_end", STOPPED_EPOCH + 1, 0),
        ("on_train_epoch_end", STOPPED_EPOCH + 1, 0),
    ],
)
def test_resuming_goes_on_with_the_batch_after_the_last_one_done(
    tmp_path: Path, hook: str, whole_epochs: int, batches: int, limit: int | None
) -> None:
    changes = {"limit_train_batches": limit} if limit else {}
    path = tmp_path / "stopped.ckpt"
    whole = run(Data({}), SaveAt(hook, path), **changes)
    assert len(whole) == EPOCHS * (limit or BATCHES)
    assert run(Data({}), checkpoint=path, **changes) == whole[whole_epochs * (limit or BATCHES) + batches :]


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_resuming_with_other_workers_changes_nothing(tmp_path: Path, persistent: bool) -> None:
    path = tmp_path / "stopped.ckpt"
    workers = {"num_workers": 2, "persistent_workers": persistent}
    whole = run(Data({}), SaveAt("on_train_batch_end", path))
    assert run(Data(workers), SaveAt("on_train_batch_end", tmp_path / "other.ckpt")) == whole
    start = STOPPED_EPOCH * BATCHES + STOPPED_BATCH + 1
    assert run(Data(workers), checkpoint=path) == whole[start:]
    assert run(Data({}), checkpoint=tmp_path / "other.ckpt") == whole[start:]


def test_a_finished_run_is_prolonged_with_the_epochs_that_would_have_followed(tmp_path: Path) -> None:
    class SaveWhenDone(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "done.ckpt")

    whole = run(Data({}))
    first = run(Data({}), SaveWhenDone(), max_epochs=2)
    assert first + run(Data({}), checkpoint=tmp_path / "done.ckpt") == whole


def test_prediction_sees_every_sample_in_stored_order() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*batch sampler.*")
        batches = trainer.predict(Recorder(), datamodule=Data({}))
    assert torch.cat(batches)[:, 1].tolist() == list(range(LENGTH))
