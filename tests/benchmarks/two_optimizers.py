"""Two optimizers under Lightning against the same two steps in a bare loop: TFill-Coarse at 256 x 256.

The networks, losses and batches are the same, and the weights at the end are compared bit for bit; the two take turns
in one process and the ratio is taken round by round. Times are of the processor, not of the clock, so that a busy
machine does not count. On a CUDA device the published batch of 24 in bf16 is measured too, by the clock.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from datamodules.batches import TranslationBatch
from tests.benchmarks._memory import peak_mib

ROUNDS = 2
SKIPPED = 1
CASES = {  # experiment -> size, batch, steps of a round
    "tfill_small": (256, 1, 6),
    "tfill_256": (256, 1, 2),
}
GPU_BATCH = 24


class Batches(tuple):
    """One loader of these batches."""

    __slots__ = ()


class StepClock(Callback):
    """Time of the steps after the first ones."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(_now(self.device))

    def ms(self) -> float:
        return 1000 * (self.times[-1] - self.times[SKIPPED - 1]) / (len(self.times) - SKIPPED)


def run() -> list[dict[str, object]]:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    rows = [_row(name, size, batch, steps, "cpu", "32-true") for name, (size, batch, steps) in CASES.items()]
    if torch.cuda.is_available():
        rows.append(_row("tfill_256", 256, GPU_BATCH, 20, "cuda", "bf16-mixed"))
    return rows


def _row(name: str, size: int, count: int, steps: int, device: str, precision: str) -> dict[str, object]:
    torch.manual_seed(0)
    module = _module(name, size)
    batches = [_batch(size, count, seed) for seed in range(steps + SKIPPED)]
    ours: list[float] = []
    bare: list[float] = []
    for number in range(ROUNDS):
        measured = copy.deepcopy(module)
        ours.append(_lightning(measured, batches, device, precision))
        reference = copy.deepcopy(module).to(device)
        bare.append(_bare(reference, batches, device, precision))
        if number == 0 and device == "cpu":
            pairs = zip(measured.parameters(), reference.parameters(), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs), "the two loops do not compute the same"
    peak_gib = peak_mib() / 1024
    if device == "cuda":
        peak_gib = torch.cuda.max_memory_allocated() / 2**30
    return {
        "experiment": name,
        "device": device,
        "precision": precision,
        "size (px)": size,
        "batch": count,
        "parameters (M)": sum(p.numel() for side in module.sides() for p in side) / 1e6,
        "Lightning (ms/step)": statistics.median(ours),
        "bare loop (ms/step)": statistics.median(bare),
        "ratio": statistics.median(a / b for a, b in zip(ours, bare, strict=True)),
        "peak memory (GiB)": peak_gib,
    }


def _module(name: str, size: int) -> Any:
    from lightning_modules.tfill import TFillTranslation
    from mechanolab.config import compose

    numbers = {key: value for key, value in compose(name)["module"].items() if key != "class_path"}
    return TFillTranslation(**{**numbers, "image_size_px": size, "noise": False, "decay_share": 0.0})


def _batch(size: int, count: int, seed: int) -> TranslationBatch:
    generator = torch.Generator().manual_seed(seed)
    actin, nucleus = (2 * torch.rand(count, 1, size, size, generator=generator) - 1 for _ in range(2))
    cells = torch.ones(count, size, size, dtype=torch.bool)
    return TranslationBatch(actin, nucleus, nucleus > 0, cells, torch.ones(count), ["tile"] * count, ["slide"] * count)


def _lightning(module: Any, batches: list[TranslationBatch], device: str, precision: str) -> float:
    clock = StepClock(device)
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=1,
        limit_val_batches=0,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Batches(batches))
    return clock.ms()


def _bare(module: Any, batches: list[TranslationBatch], device: str, precision: str) -> float:
    from lightning_modules.losses.adversarial import discriminator_loss, generator_loss
    from lightning_modules.losses.translation import over_scales

    numbers = module.hparams
    betas = tuple(numbers["betas"])
    generator, discriminator = module.generator, module.discriminator
    ours = torch.optim.Adam(generator.parameters(), lr=numbers["learning_rate"], betas=betas)
    theirs = torch.optim.Adam(discriminator.parameters(), lr=numbers["discriminator_learning_rate"], betas=betas)
    times = []
    for cpu_batch in batches:
        actin, nucleus, mask = (part.to(device) for part in cpu_batch[:3])
        real = nucleus.expand(-1, numbers["image_channels"], -1, -1)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            pyramid = generator.pyramid(actin.expand(-1, numbers["image_channels"], -1, -1))
            images = [image.float() for image in pyramid][0 if numbers["every_scale"] else -1 :]
            fake = images[-1]
            loss = discriminator_loss(discriminator(real), discriminator(fake.detach()), game="nonsaturating")
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        discriminator.requires_grad_(False)  # its gradients in the generator's step would be for nothing
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            l1 = over_scales(images, real, mask, alpha=numbers["alpha"], form=numbers["form"])
            adversarial = generator_loss(discriminator(fake), game="nonsaturating")
        loss = numbers["reconstruction_weight"] * l1 + numbers["adversarial_weight"] * adversarial
        ours.zero_grad()
        loss.backward()
        ours.step()
        discriminator.requires_grad_(True)
        times.append(_now(device))
    return 1000 * (times[-1] - times[SKIPPED - 1]) / (len(times) - SKIPPED)


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()
