"""Training throughput of the probing CNN: the whole path from shards against a bare loop over tensors in memory.

Both take turns in one process on the same images, batch 32, two threads; the ratio is taken round by round.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

ROUNDS = 5
STEPS = 40
SKIPPED = 5
IMAGES = 1600
BATCH = 32


class StepClock(Callback):
    """Time from the end of step SKIPPED to the end of the last one."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0
        self.steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1
        if self.steps == SKIPPED:
            self.began = time.perf_counter()
        self.ended = time.perf_counter()

    def images_per_s(self) -> float:
        return (self.steps - SKIPPED) * BATCH / (self.ended - self.began)


def run() -> list[dict[str, object]]:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from datamodules.shards.reader import ShardDataset
    from mechanolab import data

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "circular" / "twin"
        data.simulate("circular", out=folder, count=IMAGES, seed=0, workers=2)
        samples = list(ShardDataset(folder))
        images = torch.stack([torch.from_numpy(s.fields["image"]) for s in samples]).float() / 255
        angles = torch.tensor([float(s.fields["angle_rad"]) for s in samples])
        rates: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            bare = _bare(images, angles)
            rates.setdefault("bare loop over tensors in memory", []).append(bare)
            for augment, workers in ((False, 0), (True, 0), (True, 2)):
                name = f"mechanolab, augmentation {'on' if augment else 'off'}, {workers} workers"
                rates.setdefault(name, []).append(_ours(scratch, augment, workers))
    bare_rates = rates["bare loop over tensors in memory"]
    return [
        {
            "path": name,
            "images/s": statistics.median(values),
            "of bare loop": statistics.median(v / b for v, b in zip(values, bare_rates, strict=True)),
        }
        for name, values in rates.items()
    ]


def _bare(images: torch.Tensor, angles: torch.Tensor) -> float:
    from lightning_modules.networks.probing_cnn import ProbingCNN

    torch.manual_seed(0)
    network = ProbingCNN(outputs=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, eps=1e-7, fused=True)
    target = torch.stack([angles.cos(), angles.sin()], dim=-1)
    order = torch.randperm(len(images))
    began = 0.0
    for step in range(STEPS):
        chosen = order[step * BATCH : (step + 1) * BATCH]
        loss = ((torch.tanh(network(images[chosen]) / 2) - target[chosen]).abs().sum(-1) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 == SKIPPED:
            began = time.perf_counter()
    return (STEPS - SKIPPED) * BATCH / (time.perf_counter() - began)


def _ours(scratch: str, augment: bool, workers: int) -> float:
    from mechanolab.config import compose
    from mechanolab.launch import construct, make_trainer

    words = [f"data.augment={augment}".lower(), f"data.num_workers={workers}", f"data.batch_size={BATCH}"]
    words.append("module.standardize=false")
    config = compose(
        "circular_twin",
        values={"data.data_root": scratch, "module.configuration": "circle-sigmoid-distance_squared"},
        overrides=[
            *words,
            "trainer.max_epochs=1",
            f"trainer.limit_train_batches={STEPS}",
            "trainer.limit_val_batches=0",
        ],
    )
    parts = construct(config)
    clock = StepClock()
    trainer, _ = make_trainer(parts, None, extra=[clock])
    trainer.fit(parts.module, datamodule=parts.data)
    return clock.images_per_s()
