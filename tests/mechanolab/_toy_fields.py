"""A method that needs no training, a network and fields of displacement, small enough to be launched in a moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from lightning import LightningDataModule, LightningModule
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from mechanolab import config, launch

OWN_DATA = {"dataset": "twin", "split": "default", "youngs_modulus_pa": 10.0}
EXPERIMENTS: dict[str, Any] = {
    "_defaults": {
        "seed": 0,
        "data": {"data_root": "data"},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0},
    },
    "toy": {
        "module": {"class_path": "lightning_modules.toy.Method", "gain": 2.0},
        "data": {"class_path": "datamodules.toy.Fields", **OWN_DATA},
        "monitor": {"metric": "test/traction_error", "mode": "min"},
    },
    "toy_net": {
        "module": {"class_path": "lightning_modules.toy.Network", "gain": 2.0},
        "data": {"class_path": "datamodules.toy.Fields", **OWN_DATA},
        "monitor": {"metric": "val/traction_error", "mode": "min"},
    },
}


class FieldBatch(NamedTuple):
    """Displacements with the tractions that made them."""

    displacement_px: Tensor
    youngs_modulus_pa: Tensor
    note: list[str] | None
    sample_id: list[str]
    group: list[str]


class TractionPrediction(NamedTuple):
    """One number, two images and a vector per sample."""

    strength_pa: Tensor
    traction_pa: Tensor
    inside: Tensor
    force_n: Tensor
    uncertainty_pa: Tensor | None


class Method(LightningModule):
    """Traction = gain x displacement x Young's modulus."""

    training_free = True
    needs_find_unused_parameters = False
    interrupt: str | None = None
    """What goes wrong in the second batch: nothing, `stop`, or `fail`."""

    def __init__(self, *, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def traction(self, batch: FieldBatch) -> Tensor:
        return self.gain * batch.displacement_px * batch.youngs_modulus_pa[:, None, None, None]

    def test_step(self, batch: FieldBatch, batch_idx: int) -> None:
        self._trip(batch_idx)
        error = (self.traction(batch) / batch.youngs_modulus_pa[:, None, None, None] - 3 * batch.displacement_px).abs()
        error = error.sum() / batch.displacement_px.abs().sum()
        self.log_dict({"test/traction_error": error, "test/loss": error**2}, batch_size=len(batch.sample_id))

    def predict_step(self, batch: FieldBatch, batch_idx: int) -> TractionPrediction:
        self._trip(batch_idx)
        traction = self.traction(batch)
        return TractionPrediction(
            strength_pa=traction.amax(dim=(1, 2, 3)),
            traction_pa=traction,
            inside=traction[:, 0] > 0,
            force_n=traction.sum(dim=(2, 3)),
            uncertainty_pa=None,
        )

    def figures(self, batch: FieldBatch) -> dict[str, Figure]:
        figure = Figure(figsize=(1, 1))
        figure.subplots().imshow(batch.displacement_px[0, 0].numpy())
        return {"field": figure}

    def _trip(self, batch_idx: int) -> None:
        if batch_idx == 1 and Method.interrupt == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        if batch_idx == 1 and Method.interrupt == "fail":
            raise RuntimeError("the fields are gone")


class Network(Method):
    """The same with a trained factor beside the gain."""

    training_free = False

    def __init__(self, *, gain: float) -> None:
        super().__init__(gain=gain)
        self.factor = torch.nn.Parameter(torch.ones(()))

    def traction(self, batch: FieldBatch) -> Tensor:
        return self.factor * super().traction(batch)


class Fields(LightningDataModule):
    """Five stored fields of two sizes in the test split, or the user's own as .npy files."""

    stem = "toy"
    smoke: Mapping[str, Any] = {}
    input_suffixes = (".npy", ".field.txt")
    data_folder = None
    sizes = ((6, 8),) * 5

    def __init__(
        self, *, data_root: str, seed: int, split: str, youngs_modulus_pa: float, dataset: str = "twin"
    ) -> None:
        super().__init__()
        if youngs_modulus_pa <= 0:
            raise ValueError(f"youngs_modulus_pa must be positive, got {youngs_modulus_pa}")
        self.youngs_modulus_pa = youngs_modulus_pa
        generator = np.random.default_rng(0)
        self.fields = {f"cell {4 - i}/a": generator.normal(size=(2, *size)) for i, size in enumerate(self.sizes)}

    def has_split(self, name: str) -> bool:
        return True

    def predict_on(
        self, *, split: str = "test", files: Sequence[Path] | None = None, pixel_size_um: float | None = None
    ) -> None:
        if files is not None:
            if pixel_size_um is None:
                raise ValueError("pixel_size_um is missing: give the distance between the points of the fields")
            self.fields = {path.name: np.load(path) / pixel_size_um for path in files}

    def test_dataloader(self) -> DataLoader[FieldBatch]:
        return DataLoader(list(self.fields.items()), batch_size=1, collate_fn=self._collate)  # type: ignore[arg-type]

    train_dataloader = predict_dataloader = test_dataloader

    def _collate(self, samples: list[tuple[str, np.ndarray]]) -> FieldBatch:
        names = [name for name, _ in samples]
        fields = torch.stack([torch.tensor(field, dtype=torch.float32) for _, field in samples])
        return FieldBatch(fields, torch.full((len(samples),), self.youngs_modulus_pa), None, names, names)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the experiments into `folder`, make it the checkout, and let class paths name the classes above."""
    classes = {"Method": Method, "Network": Network, "Fields": Fields}

    def import_class(class_path: str, *, package: str, key: str) -> Any:
        return classes[class_path.rsplit(".", 1)[-1]]

    (folder / "experiments").mkdir()
    for name, content in EXPERIMENTS.items():
        (folder / "experiments" / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setattr(config, "import_class", import_class)
    monkeypatch.setattr(launch, "import_class", import_class)
    monkeypatch.setattr(config, "checkout", lambda: folder)
    monkeypatch.setenv("MECHANOLAB_RUNS", str(folder / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("MECHANOLAB_DATA", "WANDB_RUN_ID", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)


def write_trained_run(runs: Path, run_id: str, *, factor: float, batches_seen: int) -> Path:
    """A run of `toy_net` as training would leave it, its only weight set to `factor`."""
    folder = runs / "toy_net" / run_id
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump({**EXPERIMENTS["_defaults"], **EXPERIMENTS["toy_net"], "trainer": {"max_epochs": 1},
                        "data": {**EXPERIMENTS["_defaults"]["data"], **EXPERIMENTS["toy_net"]["data"]}}),
        encoding="utf-8",
    )  # fmt: skip
    state = {"state_dict": {"factor": torch.tensor(factor)}, "batches_seen": batches_seen}
    torch.save(state, folder / "checkpoints" / "best.ckpt")
    (folder / "status.json").write_text('{"state": "finished", "started": 1.0, "updated": 2.0}', encoding="utf-8")
    lines = (
        f'{{"step": {batches_seen}, "epoch": 0, "time": 1.5, "val/traction_error": 0.5, "train/loss": 1.0}}\n'
        f'{{"step": {batches_seen}, "epoch": 1, "time": 2.0, "test/traction_error": 0.6}}\n'
    )
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return folder
