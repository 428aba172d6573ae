"""The scores that every module of image translation logs, and when; what it says of a prediction.

Of validation and test l1, psnr_db, ssim (`image_quality`, images in [0, 1]) and f1, detection_rate, matched_4um,
matched_1um, area_share_generated; of the test lpips and fid too, where their weights are there, and everything else
that `nucleus_scores.statistics` names. Images whose truth is unknown (NaN) take no part.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.metrics import image_quality
from lightning_modules.metrics.epoch_means import log_mean, log_step, named_metrics, reset_training_metrics
from lightning_modules.metrics.mean_loss import MeanLoss
from lightning_modules.metrics.nucleus_scores import COUNTS, ImageNuclei, NucleusSums, added, count_nuclei, statistics

QUALITY = {"l1": image_quality.l1, "psnr_db": image_quality.psnr_db, "ssim": image_quality.ssim}
WATCHED = ("f1", "detection_rate", "matched_4um", "matched_1um", "area_share_generated")
"""Statistics of the nuclei that a validation logs."""


TranslationPrediction = NamedTuple(
    "TranslationPrediction",
    [
        ("nucleus", Tensor),  # (batch, 1, y, x) in [0, 1]
        ("overlay", list),  # per sample a picture (y, x, 3): outlines of generated nuclei red, of real ones blue
        ("side_by_side", list),  # per sample a picture (y, 3 x, 3): actin, real and generated nuclei
        ("nuclei", list),  # per sample the table of `nucleus_scores.count_nuclei`
        *((name, Tensor) for name in QUALITY),  # (batch,)
        *((name, list) for name in COUNTS),  # one number per sample; a share of them is `prediction_summary`'s
    ],
)
"""What every module of image translation predicts: one entry per sample, NaN where the truth is unknown."""


# -- what every module does alike; each takes these functions as its methods ------------------------------------------


def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
    """Scores of one batch."""
    log_scores(self, batch, "val", self(batch.actin))


def test_step(self: Any, batch: Any, batch_idx: int) -> None:
    """All scores of one batch."""
    log_scores(self, batch, "test", self(batch.actin))


def on_validation_epoch_end(self: Any) -> None:
    """Shares over all nuclei."""
    log_sums(self, "val")


def on_test_epoch_end(self: Any) -> None:
    """Shares, intervals and tails over all nuclei."""
    log_sums(self, "test")


def on_start(self: Any) -> None:
    """Bring the pretrained networks, no part of the checkpoint, to the device; warn once of what is left out."""
    for network in self.pretrained.values():
        if network is not None:
            network.to(self.device)
    while self.left_out:
        message = self.left_out.pop()
        if self.trainer.is_global_zero:
            warnings.warn(message, stacklevel=2)
    weight = self.hparams.get("perceptual_weight")
    if weight and self.pretrained["loss"] is None and self.trainer.state.fn == "fit" and self.trainer.is_global_zero:
        warnings.warn(
            f"LPIPS is left out of the loss, though module.perceptual_weight is {weight:g}: module.pretrained_weights "
            "is null, not the path of VGG-16",
            stacklevel=2,
        )


# -- the scores -------------------------------------------------------------------------------------------------------


def set_up(module: Any, terms: Sequence[str]) -> None:
    """Give a module `metrics`, `nuclei`, `pretrained`, and `left_out`, what of the metrics it must do without and why.

    Args:
        module: whose `hparams` hold minimum_area_um2, lpips_weights and fid_weights; where they hold a
            perceptual_weight, pretrained_weights too.
        terms: of its training loss, means of which are logged.

    Raises:
        ValueError: an area that is not positive, colours that LPIPS cannot take, or a file that does not hold the
            weights.
        FileNotFoundError: pretrained_weights, needed for the loss, are not there; metrics without their weights are
            left out instead, of which `on_start` warns.

    """
    settings = module.hparams
    if not 0 < settings["minimum_area_um2"] < math.inf:
        raise ValueError(f"minimum_area_um2 must be positive, got {settings['minimum_area_um2']}")
    names = [f"train/{term}" for term in terms] + [f"{stage}/{name}" for stage in ("val", "test") for name in QUALITY]
    module.metrics = named_metrics({name: MeanLoss() for name in names})
    module.nuclei = nn.ModuleDict({"val": NucleusSums(), "test": NucleusSums()})
    perceptual, trunk = None, settings["pretrained_weights"] if settings.get("perceptual_weight") else None
    if trunk is not None:
        if settings["image_channels"] not in (1, 3):
            raise ValueError(f"image_channels must be 1 or 3 with LPIPS in the loss, got {settings['image_channels']}")
        perceptual = _naming("pretrained_weights", image_quality.PerceptualDistance, "vgg", trunk)
    # a plain dict: what it holds is no part of the module's state
    module.pretrained, module.left_out = {"loss": perceptual}, []
    metrics: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "lpips": (image_quality.PerceptualDistance, ("alex", settings["lpips_weights"])),
        "fid": (image_quality.frechet_distance, (settings["fid_weights"],)),
    }
    for name, (build, arguments) in metrics.items():
        module.pretrained[name] = None
        if arguments[-1] is None:
            continue
        try:
            module.pretrained[name] = _naming(f"{name}_weights", build, *arguments)
        except FileNotFoundError as error:
            module.left_out.append(f"test/{name} is left out: module.{error}")


def _naming(setting: str, build: Callable[..., Any], *arguments: Any) -> Any:
    """What `build` returns; what it says of its `weights` is said of the setting that named them."""
    try:
        return build(*arguments)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(str(error).replace("weights", setting, 1)) from None


def begin(module: Any, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
    """Actin and real nuclei in `colours`; an epoch's first batch begins the means of its losses anew."""
    if batch_idx == 0:
        reset_training_metrics(module)
    return colours(module, batch.actin), colours(module, batch.nucleus)


def log_terms(module: Any, terms: Mapping[str, Tensor], batch: Any) -> Tensor:
    """Add the terms of a batch's losses, without their graphs, to their means; "loss" is handed back."""
    size = len(batch.group)
    for name, value in terms.items():
        log_mean(module, f"train/{name}", value.detach(), size, batch_size=size)
    return log_step(module, terms["loss"], batch_size=size)


def colours(module: Any, image: Tensor) -> Tensor:
    """Grey image (batch, 1, y, x) repeated to the colours that the module's networks take."""
    return image.expand(-1, module.hparams["image_channels"], -1, -1)


def unit_range(image: Tensor) -> Tensor:
    """Image in [-1, 1] -> [0, 1], single precision; NaN stays."""
    return ((image.float() + 1) / 2).clamp(0, 1)


def log_scores(module: Any, batch: Any, stage: str, generated: Tensor) -> None:
    """Add a batch to the scores of a stage.

    Args:
        module: made ready by `set_up`.
        batch: a `TranslationBatch`.
        stage: "val" or "test".
        generated: (batch, 1, y, x) in [-1, 1].

    """
    known = batch.nucleus.isfinite().flatten(1).all(dim=1)
    size = int(known.sum())
    if not size:
        return
    ours, real = unit_range(generated.detach())[known], unit_range(batch.nucleus)[known]
    for name, score in QUALITY.items():
        log_mean(module, f"{stage}/{name}", score(ours, real).mean(), size, batch_size=size)
    minimum_area_um2 = module.hparams["minimum_area_um2"]
    for found in nuclei_of(batch, generated, minimum_area_um2=minimum_area_um2, by_chance=stage == "test"):
        if not math.isnan(found.counts["nuclei_real"]):
            module.nuclei[stage].update(found.counts)
    if stage == "test" and module.pretrained["lpips"] is not None:
        distance = module.pretrained["lpips"](2 * ours - 1, 2 * real - 1)
        module.log("test/lpips", distance.mean(), on_epoch=True, on_step=False, batch_size=size, sync_dist=True)
    if stage == "test" and module.pretrained["fid"] is not None:
        for images, is_real in ((real, True), (ours, False)):
            module.pretrained["fid"].update(images.expand(-1, 3, -1, -1), real=is_real)


def log_sums(module: Any, stage: str) -> None:
    """At the end of an epoch: what follows from the sums over all images of all processes."""
    found = module.nuclei[stage].compute()
    module.nuclei[stage].reset()
    wanted = found if stage == "test" else {name: found[name] for name in WATCHED}
    module.log_dict(
        {f"{stage}/{name}": torch.tensor(value, dtype=torch.float32) for name, value in wanted.items()},
        prog_bar=stage == "val",
        sync_dist=True,
    )
    distance = module.pretrained["fid"] if stage == "test" else None
    if distance is not None:
        if int(distance.real_features_num_samples) > 1:
            module.log("test/fid", distance.compute(), sync_dist=True)
        distance.reset()


def nuclei_of(batch: Any, generated: Tensor, *, minimum_area_um2: float, by_chance: bool = True) -> list[ImageNuclei]:
    """Nuclei of every image of a batch; `generated` (batch, 1, y, x) in [-1, 1]."""
    known = batch.nucleus.isfinite().flatten(1).all(dim=1).tolist()
    ours, real = (unit_range(image[:, 0].detach()).cpu().numpy() for image in (generated, batch.nucleus))
    cells, pixel_um = batch.cell_mask.cpu().numpy(), batch.pixel_size_um.tolist()
    return [
        count_nuclei(
            ours[i],
            real[i] if known[i] else None,
            cells[i] if by_chance else None,
            owned=None if batch.owned is None else batch.owned[i].cpu().numpy(),
            pixel_size_um=pixel_um[i],
            minimum_area_um2=minimum_area_um2,
        )
        for i in range(len(ours))
    ]


def image_scores(batch: Any, generated: Tensor) -> dict[str, Tensor]:
    """l1, psnr_db and ssim of every image, (batch,); NaN where the truth is unknown."""
    ours, real = unit_range(generated.detach()), unit_range(batch.nucleus)
    return {name: score(ours, real) for name, score in QUALITY.items()}


def prediction_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and statistics over the images of a prediction whose nuclei are known; only the counts where none are."""
    sums = added(rows)
    known = [row for row in rows if not math.isnan(float(row["nuclei_real"]))]
    found: dict[str, Any] = {"images": len(rows), "images_with_real_nuclei": len(known)}
    if not known:
        return {**found, "nuclei_generated": sum(float(row["nuclei_generated"]) for row in rows)}
    found |= {name: sum(float(row[name]) for row in known) / len(known) for name in QUALITY}
    found |= {**{f"sum_{name}": value for name, value in sums.items()}, **statistics(sums)}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}  # JSON knows no NaN
