"""Force from bead volumes: networks with the physics inside, and digital volume correlation without training.

Duan et al., Biophys J 121:2180 (2022), 10.1016/j.bpj.2022.04.028. Only the abstract is at hand: a stack of deep
convolutional networks and specific function layers, which couple the constitutive relation of the matrix into the
network, takes pairs of volumes of a random fluorescent pattern to the three-dimensional force of the cell, trained by
mini-batch gradient descent; at least one to two orders of magnitude faster than traditional 3-D cellular force
microscopy. Architecture, losses and all numbers here are ours.

All modules take volumes (batch, 2, z, y, x), undeformed and deformed, in [0, 1] and estimate the displacement (batch,
3, z, y, x) in voxels of each axis, components (x, y, z), at the undeformed voxels; `networks.physics_layer` makes
displacement in um, stress in Pa and body force in N/m^3 of it.

`VolumetricForceRegression` is a U-Net on the stacked pair (1,402,435 parameters) or a siamese network,
`DigitalVolumeCorrelation` the traditional way, `ZeroDisplacement` what no method must be worse than.
Stress is not stored with the data: its loss, and that of the force, compare the physics layer's result with that of the
same layer for the true displacement. The error in a test is that against the stored force.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from datamodules.batches import BeadVolumeBatch
from lightning_modules.figures.cfm_3d import force_views, volume_slices
from lightning_modules.losses.force import endpoint_error_vx, imbalance, scaled_absolute_error
from lightning_modules.losses.step_sizes import rise_and_fall
from lightning_modules.losses.weight_decay import decay_weights_only
from lightning_modules.metrics.epoch_means import log_step, reset_training_metrics
from lightning_modules.metrics.force_scores import force_metrics, log_losses, log_scores, summary
from lightning_modules.networks.evaluation_mode import evaluation_mode
from lightning_modules.networks.far_displacements import reaching_far
from lightning_modules.networks.force_surfaces import SURFACES, surface_normals
from lightning_modules.networks.physics_layer import KERNEL_REACH, Mechanics, PhysicsLayer, um_from_voxels
from lightning_modules.networks.siamese_force_net import SiameseForceNet
from lightning_modules.networks.volume_correlation import VolumeCorrelation
from lightning_modules.networks.volume_patches import in_patches, in_slabs
from lightning_modules.networks.volumetric_force_net import VolumetricForceNet
from physics.solid import surface_traction

TERMS = ("displacement_loss_vx", "force_loss", "stress_loss", "equilibrium_loss")
PHYSICS = ("force", "stress", "equilibrium")
SLAB_VOXELS = 64
DRAWN = 2  # volumes of a batch


class ForcePrediction(NamedTuple):
    """Fields (batch, 3 or 3 x 3, z, y, x), forces on the gel, and one number per sample (batch,)."""

    displacement_um: Tensor
    body_force_n_per_m3: Tensor
    stress_pa: Tensor | None
    traction_pa: Tensor | None
    """(batch, 3, z, y, x), on the gel, 0 off the surface that was asked for."""
    net_force_nn: Tensor
    """This and the rest as `metrics.force_scores.summary` explains."""
    total_force_nn: Tensor
    largest_displacement_um: Tensor
    displacement_median_error_vx: Tensor
    body_force_relative_l2: Tensor
    zero_displacement_median_error_vx: Tensor


# -- what all modules do alike; each class takes these functions as its methods ---------------------------------------


def _evaluate(self: Any, batch: BeadVolumeBatch, stage: str) -> None:
    """Scores of one batch, by the clock."""
    began = _now(batch.reference)
    displacement_voxels, mechanics = self.solve(batch)
    seconds = (_now(batch.reference) - began) / len(batch.group)
    log_scores(
        self,
        stage,
        displacement_voxels=(displacement_voxels, _in_voxels(batch)),
        body_force=(mechanics.body_force_n_per_m3, batch.body_force_n_per_m3),
        seconds_per_volume=seconds,
    )
    if not self.training_free:
        losses = self.losses(batch, [displacement_voxels], mechanics)
        log_losses(self, stage, losses, batch_size=len(batch.group))


def _validation_step(self: Any, batch: BeadVolumeBatch, batch_idx: int) -> None:
    """Losses and errors of one batch."""
    _evaluate(self, batch, "val")


def _test_step(self: Any, batch: BeadVolumeBatch, batch_idx: int) -> None:
    """Losses and all scores of one batch."""
    _evaluate(self, batch, "test")


def _solve(self: Any, batch: BeadVolumeBatch) -> tuple[Tensor, Mechanics]:
    """Displacement (batch, 3, z, y, x) in voxels of volumes of any size, and what it means in the gel."""
    displacement_voxels = self(torch.cat((batch.reference, batch.deformed), dim=1))
    return displacement_voxels, _mechanics(self, batch, displacement_voxels)


def _predict_step(self: Any, batch: BeadVolumeBatch, batch_idx: int) -> ForcePrediction:
    """Displacement, force, and what can be said of them; ValueError for the traction on a cell that nobody showed."""
    surface, traction_pa = self.hparams["traction_surface"], None
    for sample_id, mask in zip(batch.sample_id, batch.cell_mask, strict=True):
        if surface == "cell" and bool(mask.all()):
            raise ValueError(
                f"traction_surface 'cell' needs to know the cell, {sample_id} comes without one: add {sample_id}_cell "
                "beside its volumes, or choose 'top'"
            )
    displacement_voxels, mechanics = _solve(self, batch)
    displacement_um = um_from_voxels(displacement_voxels, batch.voxel_size_um)
    force = mechanics.body_force_n_per_m3
    if surface is not None:
        normals = surface_normals(surface, batch.cell_mask, batch.voxel_size_um)
        traction_pa = surface_traction(mechanics.stress_pa, normals)
    return ForcePrediction(
        displacement_um,
        force,
        mechanics.stress_pa if self.hparams["write_stress"] else None,
        traction_pa,
        **summary(
            batch,
            displacement_um=displacement_um,
            displacement_voxels=(displacement_voxels, _in_voxels(batch)),
            body_force_n_per_m3=force,
        ),
    )


def _figures(self: Any, batch: BeadVolumeBatch) -> dict[str, Any]:
    """Slices with vectors, and the forces in space, of the first volumes of a batch."""
    first = BeadVolumeBatch(*(part[:DRAWN] for part in batch))
    with evaluation_mode(self):
        displacement_voxels, mechanics = _solve(self, first)
    shown = (
        first.deformed[:, 0],
        um_from_voxels(displacement_voxels, first.voxel_size_um),
        first.displacement_um,
        mechanics.body_force_n_per_m3,
        first.body_force_n_per_m3,
        first.voxel_size_um,
    )
    volume, *fields, voxel_size_um = (part.numpy(force=True) for part in shown)
    return {
        "slices": volume_slices(volume, fields[0], fields[1], voxel_size_um, sample_ids=first.sample_id),
        "forces": force_views(fields[2], fields[3], voxel_size_um, sample_ids=first.sample_id),
    }


class VolumetricForceRegression(LightningModule):
    """A network from bead volumes to displacement, and through the physics layer to stress and force.

    Outside training, displacements beyond those of the reference set are reached as `networks.far_displacements` says.

    Args:
        network: "stacked_unet", a U-Net on both volumes as channels, or "siamese", a correlation volume refined by
            least squares on warped volumes.
        width: channels at full resolution (stacked_unet) or on the coarse grid (siamese), a multiple of 8.
        displacement_weight: weight of the mean error of the displacement in voxels.
        earlier_weight: weight of the same for each earlier estimate of the siamese network, against the last one's.
        force_weight, stress_weight: weights of the mean absolute errors in units of the truth's standard deviation.
        equilibrium_weight: weight of the mean absolute force outside the cell in units of the true force's deviation.
        physics_from_epoch: in training, the last three weights are 0 before this epoch.
        optimizer: "sgd" or "adam".
        learning_rate: largest step size; it falls to 0 along a cosine.
        momentum: of SGD.
        weight_decay: on weights, not on biases.
        warm_up_share: share of the steps in which the step size rises.
        clip_norm: largest norm of the gradient of all parameters together; null does not clip.
        patch_voxels: larger volumes are predicted on in overlapping patches of this side.
        smoothing_voxels: standard deviation of the Gaussian before differentiating, in voxels.
        material: "linear" or "neo_hookean".
        traction_surface: "top" or "cell": predictions hold the traction there; null for none.
        write_stress: whether predictions hold the stress, nine numbers per voxel.
    """

    training_free: bool = False
    needs_find_unused_parameters: bool = False

    def __init__(
        self,
        *,
        network: str,
        width: int,
        displacement_weight: float,
        earlier_weight: float,
        force_weight: float,
        stress_weight: float,
        equilibrium_weight: float,
        physics_from_epoch: int,
        optimizer: str,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        warm_up_share: float,
        clip_norm: float | None,
        patch_voxels: int,
        smoothing_voxels: float,
        material: str,
        traction_surface: str | None,
        write_stress: bool,
    ) -> None:
        super().__init__()
        networks: dict[str, Callable[[], nn.Module]] = {
            "stacked_unet": lambda: VolumetricForceNet((width, 2 * width, 4 * width, 8 * width)),
            "siamese": lambda: SiameseForceNet(width),
        }
        _require_choice("network", network, networks)
        _require_choice("optimizer", optimizer, ("sgd", "adam"))
        if width < 8 or width % 8:
            raise ValueError(f"width must be a multiple of 8, got {width}")
        for name, number in (("learning_rate", learning_rate), ("clip_norm", clip_norm)):
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"{name} must be positive, got {number}")
        if patch_voxels < 8 or patch_voxels % 8:
            raise ValueError(f"patch_voxels must be a multiple of 8, got {patch_voxels}")
        if physics_from_epoch < 0:
            raise ValueError(f"physics_from_epoch must be at least 0, got {physics_from_epoch}")
        self.save_hyperparameters()
        for name in ("momentum", "warm_up_share"):
            if not 0 <= self.hparams[name] <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {self.hparams[name]}")
        for name in ("displacement_weight", "earlier_weight", *(f"{term}_weight" for term in PHYSICS), "weight_decay"):
            if not 0 <= self.hparams[name] < math.inf:
                raise ValueError(f"{name} must be 0 or positive, got {self.hparams[name]}")
        _set_up(self)
        self.network = networks[network]()

    validation_step, test_step, predict_step, figures = _validation_step, _test_step, _predict_step, _figures
    solve = _solve

    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes (batch, 2, z, y, x), undeformed then deformed -> displacement (batch, 3, z, y, x) in voxels."""
        return in_patches(lambda patch: reaching_far(self.network, patch), volumes, self.hparams["patch_voxels"])

    def training_step(self, batch: BeadVolumeBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        if batch_idx == 0:
            reset_training_metrics(self)
        volumes = torch.cat((batch.reference, batch.deformed), dim=1)
        siamese = isinstance(self.network, SiameseForceNet)
        answers = self.network.estimates(volumes) if siamese else [self.network(volumes)]
        estimates = [answer.float() for answer in answers]
        size = len(batch.group)
        losses = self.losses(batch, estimates, _mechanics(self, batch, estimates[-1]))
        log_losses(self, "train", losses, batch_size=size)
        self.log("train/physics_weight", self._physics_weight(), on_step=False, on_epoch=True, batch_size=size)
        return log_step(self, losses["loss"], batch_size=size)

    def losses(self, batch: BeadVolumeBatch, estimates: list[Tensor], mechanics: Mechanics) -> dict[str, Tensor]:
        """The loss () of estimates (batch, 3, z, y, x) in voxels and its terms, unweighted; mechanics of the last."""
        numbers, target = self.hparams, _in_voxels(batch)
        with torch.no_grad():
            true = _mechanics(self, batch, target)
        *earlier, last = (endpoint_error_vx(estimate, target) for estimate in estimates)
        force, true_force = mechanics.body_force_n_per_m3, true.body_force_n_per_m3
        errors = (
            last,
            scaled_absolute_error(force, true_force),
            scaled_absolute_error(mechanics.stress_pa.flatten(1, 2), true.stress_pa.flatten(1, 2)),
            imbalance(force, batch.cell_mask, true_force),
        )
        terms = dict(zip(TERMS, errors, strict=True))
        loss = numbers["displacement_weight"] * last
        for error in earlier:
            loss = loss + numbers["displacement_weight"] * numbers["earlier_weight"] * error
        for name in PHYSICS:
            weight = numbers[f"{name}_weight"] * self._physics_weight()
            if weight:
                loss = loss + weight * terms[f"{name}_loss"]
        return {"loss": loss, **terms}

    def configure_optimizers(self) -> Any:
        """SGD or Adam, the step size rising linearly and falling along a cosine, batch by batch."""
        numbers, groups = self.hparams, decay_weights_only(self.network, self.hparams["weight_decay"])
        if numbers["optimizer"] == "adam":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=numbers["learning_rate"])
        else:
            optimizer = torch.optim.SGD(groups, lr=numbers["learning_rate"], momentum=numbers["momentum"])
        steps = int(self.trainer.estimated_stepping_batches)
        return rise_and_fall(optimizer, steps=steps, warm_up_share=numbers["warm_up_share"])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient of all parameters together."""
        if self.hparams["clip_norm"] is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self.hparams["clip_norm"])

    def _physics_weight(self) -> float:
        return float(not self.training or self.current_epoch >= self.hparams["physics_from_epoch"])


class DigitalVolumeCorrelation(LightningModule):
    """Iterative cross-correlation of windows and the same physics layer, without training.

    Args:
        window_voxels: side of the windows of each pass in voxels, even, or three of them [z, y, x]; the last one serves
            all later passes.
        overlap: share of a window's side that it has in common with the next one.
        passes: number of passes.
        outlier_threshold: of the universal median test; null keeps all vectors.
        smoothing_voxels, material, traction_surface, write_stress: as for `VolumetricForceRegression`.
    """

    training_free: bool = True
    needs_find_unused_parameters: bool = False

    def __init__(
        self,
        *,
        window_voxels: list[int | list[int]],
        overlap: float,
        passes: int,
        outlier_threshold: float | None,
        smoothing_voxels: float,
        material: str,
        traction_surface: str | None,
        write_stress: bool,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        _set_up(self)
        self.network = VolumeCorrelation(
            window_voxels, overlap=overlap, passes=passes, outlier_threshold=outlier_threshold
        )

    validation_step, test_step, predict_step, figures = _validation_step, _test_step, _predict_step, _figures
    solve = _solve

    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes (batch, 2, z, y, x), undeformed then deformed -> displacement (batch, 3, z, y, x) in voxels."""
        displacement_voxels: Tensor = self.network(volumes)
        return displacement_voxels


class ZeroDisplacement(LightningModule):
    """No displacement anywhere: the error that any method must stay below.

    Args:
        smoothing_voxels, material, traction_surface, write_stress: as for `VolumetricForceRegression`.
    """

    training_free: bool = True
    needs_find_unused_parameters: bool = False

    def __init__(
        self, *, smoothing_voxels: float, material: str, traction_surface: str | None, write_stress: bool
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        _set_up(self)

    validation_step, test_step, predict_step, figures = _validation_step, _test_step, _predict_step, _figures
    solve = _solve

    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes (batch, 2, z, y, x) -> displacement (batch, 3, z, y, x) in voxels: 0."""
        return volumes.new_zeros(len(volumes), 3, *volumes.shape[2:])


def _set_up(module: Any) -> None:
    """Check and use the arguments that all modules share; they are stored in `hparams` already."""
    numbers = module.hparams
    if numbers["traction_surface"] is not None:
        _require_choice("traction_surface", numbers["traction_surface"], SURFACES)
    module.physics = PhysicsLayer(smoothing_voxels=numbers["smoothing_voxels"], material=numbers["material"])
    module.metrics = force_metrics(() if module.training_free else TERMS)


def _mechanics(module: Any, batch: BeadVolumeBatch, displacement_voxels: Tensor) -> Mechanics:
    """Strain, stress and body force; of large volumes slab by slab."""
    gel = {name: getattr(batch, name) for name in ("voxel_size_um", "youngs_modulus_pa", "poisson_ratio")}
    displacement_um = um_from_voxels(displacement_voxels, batch.voxel_size_um)
    halo = max(int(KERNEL_REACH * module.hparams["smoothing_voxels"] + 0.5), 2) + 3
    parts = in_slabs(
        lambda slab: module.physics(slab, **gel), displacement_um, slab_voxels=SLAB_VOXELS, halo_voxels=halo
    )
    return Mechanics(*parts)


def _in_voxels(batch: BeadVolumeBatch) -> Tensor:
    """The true displacement (batch, 3, z, y, x) in voxels of each axis."""
    return batch.displacement_um / batch.voxel_size_um.flip(1)[:, :, None, None, None]


def _now(volume: Tensor) -> float:
    """The clock in seconds, when all work on the volume's device is done."""
    if volume.device.type == "cuda":
        torch.cuda.synchronize(volume.device)
    return time.perf_counter()


def _require_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
