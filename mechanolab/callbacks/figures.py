"""Decides when a module's figures are drawn, and puts them and the learning curves into figures/ and on W&B."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure

from mechanolab.runs import read_metrics

DRAW_EVERY_S = 60.0
SAMPLES = 256
BYTES = 2**27
"""What is kept for figures is at most so many samples, and nothing is added to so many bytes."""


class FigureWriter(Callback):
    """Draws the learning curves at the end of training, and `module.figures(batch)` after validations and tests.

    A validation is drawn at most once a minute and when it is the last.

    Args:
        folder: where `<stage>_<name>.png` go.
        draw_every_s: seconds between two drawings in training.
    """

    def __init__(self, folder: Path, *, draw_every_s: float = DRAW_EVERY_S) -> None:
        self.folder = folder
        self._draw_every_s = draw_every_s
        self._drawn_at = time.monotonic()
        self._shown = ShownSamples()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep samples of a validation that will be drawn."""
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        if last_epoch or time.monotonic() - self._drawn_at > self._draw_every_s or batch_idx > 0:
            self._keep(trainer, pl_module, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was kept."""
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module, "val")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep samples of a test."""
        self._keep(trainer, pl_module, batch, batch_idx)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was kept."""
        self._draw(trainer, pl_module, "test")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the learning curves from metrics.jsonl."""
        if trainer.is_global_zero:
            history = read_metrics(self.folder.parent / "metrics.jsonl")
            self._publish(trainer, "train", {"learning_curves": learning_curves(history)})

    def _keep(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not trainer.is_global_zero:
            return
        if batch_idx == 0:
            self._shown = ShownSamples(follow_group=follows_group(module))
        elif not self._shown.batches:
            return
        self._shown.add(batch)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self._shown.batches:
            return
        batch = self._shown.joined()
        self._shown, self._drawn_at = ShownSamples(), time.monotonic()
        with torch.inference_mode():
            figures = cast(Any, pl_module).figures(batch)
        self._publish(trainer, stage, figures)

    def _publish(self, trainer: Trainer, stage: str, figures: Mapping[str, Any]) -> None:
        write_figures(self.folder, {f"{stage}_{name}": figure for name, figure in figures.items()})
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                images = {f"{stage}/{name}": wandb.Image(pixels(figure)) for name, figure in figures.items()}
                logger.log_metrics(images)


def learning_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """One panel per quantity, its stages as lines over training batches seen.

    Args:
        history: lines of a metrics.jsonl.
    """
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in history:
        for name, value in line.items():
            stage, _, quantity = name.partition("/")
            if quantity and stage != "test":
                quantity = quantity.removesuffix("_step")
                curves.setdefault(quantity, {}).setdefault(name, []).append((line["step"], value))
    figure = Figure(figsize=(5 * max(1, len(curves)), 3.5), layout="constrained")
    panels = figure.subplots(1, max(1, len(curves)), squeeze=False)[0]
    for axes, (quantity, lines) in zip(panels, curves.items(), strict=False):
        for name, points in sorted(lines.items()):
            few = len(points) < 30
            axes.plot(*zip(*points, strict=True), label=name, marker="o" if few else None, markersize=3)
        axes.set(title=quantity, xlabel="training batches")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


class ShownSamples:
    """Samples of a stage that its figures are drawn from, few and of one size: the first ones, or all along one group.

    Args:
        follow_group: keep samples of the first sample's group only, and when they become too many every second of them
            and of those to come, so that a movie is shown from its first frame to its last.
    """

    def __init__(self, *, follow_group: bool = False) -> None:
        self.batches: list[Any] = []
        self._follow_group = follow_group
        self._every, self._seen = 1, 0

    def add(self, batch: Any) -> None:
        """Keep of a batch what is shown."""
        if self.batches and _sizes(self.batches[0]) != _sizes(batch):
            return
        if not self._follow_group:
            if not self._full():
                self.batches.append(batch)
            return
        for row in range(len(batch[0])):
            sample = type(batch)(*(None if part is None else part[row : row + 1] for part in batch))
            if self.batches and sample.group != self.batches[0].group:
                continue
            if self._seen % self._every == 0 and self._full():
                self.batches, self._every = self.batches[::2], 2 * self._every
            if self._seen % self._every == 0:
                self.batches.append(sample)
            self._seen += 1

    def joined(self) -> Any:
        """One batch: tensors are joined along the first axis, lists are chained, what is None stays so."""
        return type(self.batches[0])(*(_joined(values) for values in zip(*self.batches, strict=True)))

    def _full(self) -> bool:
        return sum(len(kept[0]) for kept in self.batches) >= SAMPLES or sum(map(_nbytes, self.batches)) >= BYTES


def follows_group(module: LightningModule) -> bool:
    """Whether a module's figures are of one group; optional, most are of any samples."""
    return bool(getattr(module, "figures_follow_group", False))


def _joined(values: Sequence[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return torch.cat(list(values))
    return None if values[0] is None else [item for value in values for item in value]


def _nbytes(batch: Any) -> int:
    return sum(value.nbytes for value in batch if isinstance(value, torch.Tensor))


def _sizes(batch: Any) -> list[Any]:
    """The size of one sample in every field."""
    return [value.shape[1:] if isinstance(value, torch.Tensor) else type(value) for value in batch]


def write_figures(folder: Path, figures: dict[str, Any]) -> None:
    """Write each figure as `<name>.png`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        partial = folder / f".{name}.partial"
        figure.savefig(partial, format="png", dpi=120)
        partial.replace(folder / f"{name}.png")


def pixels(figure: Any) -> np.ndarray:
    """A figure as (height, width, 3) uint8; W&B draws float images black."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
