"""Direction of cell migration from one image by circular regression, and the four-quadrant classifier before it.

Bruns, Lamparter, Galic, Jiang, "Single Image Estimation of Cell Migration Direction by Deep Circular Regression",
arXiv 2406.19162 (2024), doi 10.48550/arXiv.2406.19162: Table 3 (nine output configurations on the probing CNN), Table 4
(three backbones), Table 5 (test-time augmentation). Baseline: Nishimoto et al. 2019, doi 10.1371/journal.pone.0221245.

A network maps an image (batch, 1, 128, 128), grey / 255, to an angle or to a point in the plane; the angle, or the
point's direction, is the answer: (batch,) radians in [0, 2 pi), counter-clockwise as displayed, 0 = right.

Deviations from the papers, and why:
- phi_sigmoid is tanh(x / 2), as eq. 2 defines it; targets on the circle are reached only in the limit, so a point is
  projected to the circle before it is read. The authors then round to whole degrees; here nothing is rounded.
- The mod 2 pi outputs have gradient 1 across the jump of the loss; ending near a constant (87 to 98 degrees, chance is
  90) is the published result for them.
- The authors' code differs from their text in two losses (a cosine of degrees; plain mean squares for eq. 8). The
  text's formulas are the nine configurations, the code's are "angle-cyclic-cosine_degrees" and "circle-sigmoid-mse".
- Table 4's protocol (the whole network for 10 epochs, then the head for 50) is followed as written: a fresh network for
  every run and a backbone that really freezes, its BatchNorm statistics and stochastic depth included. In the authors'
  code one backbone is carried from fold to fold, the freeze has no effect in fold 1, images are divided by 255 twice
  and the last epoch is evaluated. Numbers above the printed 17 degrees are to be read with this in mind.
- Test-time rotations leave zero-filled corners, as the training augmentation does; each prediction is turned back by
  its own rotation before the fusion, and the rotations depend on the sample alone.
- The paper's bound for the baseline's largest error is miscalculated (52.28 and 55.89 degrees for 57.7 and 64.1), and
  U373's accuracy appears as 81.76 % and 81.86 %; only the mean errors, 33.41 and 38.84 degrees, are used here.
- Adam's epsilon is Keras' 1e-7, not torch's 1e-8. Learning rate and epochs of the probing CNN are from the code.
Ranges of the augmentation and the choice of the displacement threshold belong to the data half.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, NamedTuple

import torch
import torch.nn.functional as nnf
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from datamodules.batches import DirectionBatch
from lightning_modules.figures.circular import direction_panel, polar_error
from lightning_modules.losses.direction import configuration_named
from lightning_modules.metrics.direction import (
    AngularError,
    angular_error_deg,
    fuse_by_largest_gap,
    quadrant_centre,
    quadrant_of,
)
from lightning_modules.metrics.epoch_means import log_mean, log_step, named_metrics, reset_training_metrics
from lightning_modules.metrics.mean_loss import MeanLoss
from lightning_modules.networks.evaluation_mode import evaluation_mode
from lightning_modules.networks.fine_tuning_net import BACKBONES, FineTuningNet
from lightning_modules.networks.probing_cnn import ProbingCNN
from lightning_modules.networks.quadrant_cnn import QUADRANTS, QuadrantCNN
from physics.angles import wrap
from physics.vector_fields import rotate_pixels

STAGES = ("train", "val", "test")


class DirectionPrediction(NamedTuple):
    """One row per image."""

    angle_rad: Tensor
    """(batch,) radians in [0, 2 pi), counter-clockwise as displayed."""
    angle_deg: Tensor
    """(batch,) the same in degrees."""
    confidence: Tensor
    """(batch,) length of the predicted point before its projection to the circle, or the probability of the predicted
    quadrant; NaN for an angle output, which carries none."""
    target_rad: Tensor
    """(batch,) radians, NaN where the direction is unknown."""
    error_deg: Tensor
    """(batch,) shorter arc to the target in degrees, NaN where it is unknown."""


class CircularRegression(LightningModule):
    """Regress the migration direction with one of the paper's networks and output configurations.

    Args:
        configuration: encoding-activation-loss, a name in `losses.direction.CONFIGURATIONS` (Table 3) or `AS_CODED`.
        backbone: "probing_cnn" (Table 1), or "efficientnet_v2_s", "resnet50", "yolov8_n" under the head of Table 2.
        pretrained_weights: null, "cache" (torchvision's file in torch's cache folder) or the path of a state dict.
        standardize: whether every image is brought to mean 0 and standard deviation 1 first. The paper does not; but on
            a small data set all ReLUs of the probing CNN may die at its learning rate, for the background is a large
            constant and the cell a faint pattern on it.
        learning_rate: Adam's step size.
        whole_epochs: epochs that train the whole network; from then on the backbone is frozen. Null never freezes.
        test_views: numbers of views (n) to report for the test split; n views are the image and n - 1 rotations of it.
            `test/angular_error_deg` is always the image alone.

    """

    training_free: bool = False
    needs_find_unused_parameters: bool = False

    def __init__(
        self,
        *,
        configuration: str,
        backbone: str,
        pretrained_weights: str | None,
        standardize: bool,
        learning_rate: float,
        whole_epochs: int | None,
        test_views: list[int],
    ) -> None:
        super().__init__()
        _require_positive("learning_rate", learning_rate)
        if min(test_views, default=1) < 1 or len(set(test_views)) != len(test_views):
            raise ValueError(f"test_views must be different numbers of at least 1, got {test_views}")
        self.configuration = configuration_named(configuration)
        self.network = _network(backbone, self.configuration.outputs, pretrained_weights, whole_epochs)
        self.save_hyperparameters()
        self.needs_find_unused_parameters = whole_epochs is not None
        metrics: dict[str, Metric] = {f"{stage}/loss": MeanLoss() for stage in STAGES}
        metrics |= {f"{stage}/angular_error_deg": AngularError() for stage in STAGES}
        metrics |= {_views_metric(views): AngularError() for views in test_views if views > 1}
        self.metrics = named_metrics(metrics)

    def forward(self, image: Tensor) -> Tensor:
        """Image (batch, 1, 128, 128), grey / 255 -> direction (batch,) in radians in [0, 2 pi)."""
        return self.configuration.decode(self._activated(image))

    def training_step(self, batch: DirectionBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        if batch_idx == 0:
            reset_training_metrics(self)
        return log_step(self, self._evaluate(batch, "train")[0], batch_size=len(batch.angle_rad))

    def validation_step(self, batch: DirectionBatch, batch_idx: int) -> None:
        """Loss and angular error of one batch."""
        self._evaluate(batch, "val")

    def test_step(self, batch: DirectionBatch, batch_idx: int) -> None:
        """Loss and angular error of one batch, and the error of every number of views in `test_views`."""
        _, angle_rad = self._evaluate(batch, "test")
        numbers = [views for views in self.hparams["test_views"] if views > 1]
        angles_rad = self._views(batch, angle_rad, max(numbers, default=1))
        for views in numbers:
            fused = fuse_by_largest_gap(angles_rad[:, :views])
            log_mean(self, _views_metric(views), fused, batch.angle_rad, batch_size=len(fused))

    def predict_step(self, batch: DirectionBatch, batch_idx: int) -> DirectionPrediction:
        """Direction of every image from the image alone, unrounded, with its error where the target is known."""
        activated = self._activated(batch.image)
        angle_rad = self.configuration.decode(activated)
        if self.configuration.outputs == 2:
            confidence = torch.linalg.vector_norm(activated, dim=-1)
        else:
            confidence = torch.full_like(angle_rad, torch.nan)
        return _prediction(angle_rad, confidence, batch.angle_rad)

    def figures(self, batch: DirectionBatch) -> dict[str, Any]:
        """Predicted and true directions of a batch: arrows on the images, and the error against the direction."""
        return _figures(self, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam as Keras has it (section 2.4 and the authors' code)."""
        rate = self.hparams["learning_rate"]
        return torch.optim.Adam(self.parameters(), lr=rate, betas=(0.9, 0.999), eps=1e-7, fused=True)

    @property
    def backbone_frozen(self) -> bool:
        """Whether the epoch lies past the `whole_epochs`; a function of the epoch alone, so a resumed run agrees."""
        whole_epochs = self.hparams["whole_epochs"]
        return whole_epochs is not None and self.current_epoch >= whole_epochs

    def train(self, mode: bool = True) -> CircularRegression:
        """Set the mode of all layers but a frozen backbone's, whose BatchNorm statistics must not move."""
        super().train(mode)
        if self.backbone_frozen:
            self.network.backbone.eval()
        return self

    def on_train_start(self) -> None:
        """Freeze at once when the run is resumed past the first phase, in the middle of an epoch too."""
        self._freeze_or_release()

    def on_train_epoch_start(self) -> None:
        """Freeze when the second phase begins."""
        self._freeze_or_release()

    def _freeze_or_release(self) -> None:
        if self.hparams["whole_epochs"] is None:
            return
        for parameter in self.network.backbone.parameters():
            parameter.requires_grad_(not self.backbone_frozen)
            if self.backbone_frozen:
                parameter.grad = None  # a kept gradient would go on feeding Adam's moments
        if self.backbone_frozen:
            self.network.backbone.eval()

    def _activated(self, image: Tensor) -> Tensor:
        """Network output after its activation: (batch,) radians, or (batch, 2) points in the plane."""
        if self.hparams["standardize"]:
            image = _standardized(image)
        raw = self.network(image).to(image.dtype)  # under mixed precision a bfloat16 angle would be off by a degree
        return self.configuration.activate(raw)

    def _evaluate(self, batch: DirectionBatch, stage: str) -> tuple[Tensor, Tensor]:
        """Log loss and error; returns the loss and the predicted angles (batch,) in radians."""
        activated = self._activated(batch.image)
        loss = self.configuration.loss(activated, self.configuration.encode(batch.angle_rad))
        angle_rad = self.configuration.decode(activated.detach())
        log_mean(self, f"{stage}/loss", loss.detach(), len(angle_rad), batch_size=len(angle_rad))
        log_mean(self, f"{stage}/angular_error_deg", angle_rad, batch.angle_rad, batch_size=len(angle_rad))
        return loss, angle_rad

    def _views(self, batch: DirectionBatch, angle_rad: Tensor, views: int) -> Tensor:
        """Predictions from the image and from `views` - 1 rotations of it, each turned back: (batch, views)."""
        angles_rad = [angle_rad]
        for view in range(1, views):
            turns = [_view_rotation_rad(sample_id, view) for sample_id in batch.sample_id]
            turn_rad = torch.tensor(turns, dtype=angle_rad.dtype, device=angle_rad.device)
            rotated = rotate_pixels(batch.image, turn_rad[:, None])
            angles_rad.append(wrap(self(rotated) - turn_rad))
        return torch.stack(angles_rad, dim=-1)


class QuadrantClassifier(LightningModule):
    """Classify the direction into four quadrants and read the centre of the quadrant as the angle (Nishimoto 2019).

    Per-image stretching to [0, 1] belongs to the method. The authors choose the model on the test fold; here the
    monitored validation metric chooses. Their class weights are sum(n) / (4 n_c) over the training set's class counts
    n_c; a loader cannot be asked for them before training, so they are given as numbers with the experiment.

    Args:
        learning_rate: step size of SGD; multiplied by 0.9 after every epoch without a new best mean class accuracy.
        momentum: momentum of SGD.
        weight_decay: L2 penalty of SGD.
        class_weights: weights of the loss of upper right, upper left, lower left, lower right; null weighs all by 1.

    """

    training_free: bool = False
    needs_find_unused_parameters: bool = False

    def __init__(
        self, *, learning_rate: float, momentum: float, weight_decay: float, class_weights: list[float] | None
    ) -> None:
        super().__init__()
        _require_positive("learning_rate", learning_rate)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        if weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
        weights = [1.0] * QUADRANTS if class_weights is None else class_weights
        if len(weights) != QUADRANTS or min(weights) <= 0:
            raise ValueError(f"class_weights must be four positive numbers, got {class_weights}")
        self.save_hyperparameters()
        self.network = QuadrantCNN()
        self.register_buffer("class_weights", torch.tensor(weights), persistent=False)
        metrics: dict[str, Metric] = {f"{stage}/loss": MeanLoss() for stage in STAGES}
        metrics |= {f"{stage}/mean_class_accuracy": MulticlassAccuracy(QUADRANTS, average="macro") for stage in STAGES}
        metrics |= {f"{stage}/angular_error_deg": AngularError() for stage in STAGES}
        self.metrics = named_metrics(metrics)

    def forward(self, image: Tensor) -> Tensor:
        """Image (batch, 1, 128, 128) in any grey scale -> probabilities (batch, 4) of the quadrants I to IV (y up)."""
        return self._logits(image).softmax(dim=-1)

    def training_step(self, batch: DirectionBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        if batch_idx == 0:
            reset_training_metrics(self)
        return log_step(self, self._evaluate(batch, "train"), batch_size=len(batch.angle_rad))

    def validation_step(self, batch: DirectionBatch, batch_idx: int) -> None:
        """Loss, accuracy and angular error of one batch."""
        self._evaluate(batch, "val")

    def test_step(self, batch: DirectionBatch, batch_idx: int) -> None:
        """Loss, accuracy and angular error of one batch."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: DirectionBatch, batch_idx: int) -> DirectionPrediction:
        """Centre of the most probable quadrant, with its error where the target is known."""
        confidence, quadrant = self(batch.image).max(dim=-1)
        return _prediction(quadrant_centre(quadrant), confidence, batch.angle_rad)

    def figures(self, batch: DirectionBatch) -> dict[str, Any]:
        """Predicted and true directions of a batch: arrows on the images, and the error against the direction."""
        return _figures(self, batch)

    def configure_optimizers(self) -> dict[str, Any]:
        """SGD with momentum and L2 penalty; x 0.9 whenever the mean class accuracy sets no new record."""
        optimizer = torch.optim.SGD(
            self.parameters(),
            lr=self.hparams["learning_rate"],
            momentum=self.hparams["momentum"],
            weight_decay=self.hparams["weight_decay"],
        )
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.9, patience=0, threshold=0.0
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "val/mean_class_accuracy", "interval": "epoch"},
        }

    def _logits(self, image: Tensor) -> Tensor:
        """Stretch every image to [0, 1] and classify it: (batch, 4)."""
        low, high = image.amin(dim=(1, 2, 3), keepdim=True), image.amax(dim=(1, 2, 3), keepdim=True)
        return self.network((image - low) / (high - low).clamp(min=torch.finfo(image.dtype).tiny))

    def _evaluate(self, batch: DirectionBatch, stage: str) -> Tensor:
        """Class-weighted cross entropy, divided by the number of images and not by the sum of their weights."""
        logits, target = self._logits(batch.image), quadrant_of(batch.angle_rad)
        loss = (nnf.cross_entropy(logits, target, reduction="none") * self.class_weights[target]).mean()
        quadrant, size = logits.detach().argmax(dim=-1), len(target)
        log_mean(self, f"{stage}/loss", loss.detach(), size, batch_size=size)
        log_mean(self, f"{stage}/mean_class_accuracy", quadrant, target, batch_size=size)
        log_mean(self, f"{stage}/angular_error_deg", quadrant_centre(quadrant), batch.angle_rad, batch_size=size)
        return loss


def _network(backbone: str, outputs: int, pretrained_weights: str | None, whole_epochs: int | None) -> nn.Module:
    """The network of Table 1 or Table 2."""
    if whole_epochs is not None and whole_epochs < 0:
        raise ValueError(f"whole_epochs must not be negative, got {whole_epochs}")
    if backbone != "probing_cnn":
        if backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of probing_cnn, {', '.join(BACKBONES)}, got {backbone!r}")
        return FineTuningNet(backbone, outputs, pretrained_weights)
    if pretrained_weights is not None:
        raise ValueError(f"pretrained_weights must be null for probing_cnn, got {pretrained_weights!r}")
    if whole_epochs is not None:
        raise ValueError(f"whole_epochs must be null for probing_cnn, which has no backbone, got {whole_epochs}")
    return ProbingCNN(outputs)


def _standardized(image: Tensor) -> Tensor:
    """Every image with mean 0 and standard deviation 1; one without any contrast becomes 0."""
    mean, deviation = image.mean(dim=(1, 2, 3), keepdim=True), image.std(dim=(1, 2, 3), keepdim=True)
    return (image - mean) / deviation.clamp(min=1e-6)


def _require_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive, got {value}")


def _views_metric(views: int) -> str:
    return f"test/angular_error_deg_tta{views}"


def _view_rotation_rad(sample_id: str, view: int) -> float:
    """Rotation of one view of one sample, uniform in [0, 2 pi): the same in every batch, process and run."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{sample_id}/{view}".encode()))
    return 2 * math.pi * torch.rand((), generator=generator, dtype=torch.float64).item()


def _prediction(angle_rad: Tensor, confidence: Tensor, target_rad: Tensor) -> DirectionPrediction:
    error_deg = angular_error_deg(angle_rad, target_rad)
    return DirectionPrediction(angle_rad, torch.rad2deg(angle_rad), confidence, target_rad, error_deg)


def _figures(module: CircularRegression | QuadrantClassifier, batch: DirectionBatch) -> dict[str, Any]:
    with evaluation_mode(module):
        prediction = module.predict_step(batch, 0).angle_rad.float().cpu().numpy()
    image, target = batch.image[:, 0].float().cpu().numpy(), batch.angle_rad.float().cpu().numpy()
    return {
        "directions": direction_panel(image, target, prediction, sample_ids=batch.sample_id),
        "polar_error": polar_error(target, prediction),
    }
