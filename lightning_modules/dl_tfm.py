"""Traction from displacement: the published network, two peers, our own, and the two methods without training.

Wang, Lin, "Traction force microscopy by deep learning", Biophys J 120:3079 (2021), doi 10.1016/j.bpj.2021.06.011, and
its preprint bioRxiv 2020.05.20.107128: `TractionRegression` against `FourierTractionCytometry` (figure 3: three noises,
four regularisations, with and without cutoff). Peers: the U-Net of Kratz et al. (Biophys J 122:3489, 2023), another
`network` of the same class, and `SparseTractionCytometry`. Ours: `PhysicsInformedRegression`, which without its
`steps` is a plain 2-D U-Net, the cheap sibling.

All take displacement (batch, 2, y, x) in pixels of the field's own grid and Young's modulus (batch,) in Pa, and return
traction (batch, 2, y, x) in Pa. With lengths in pixels the displacement depends on traction / E alone; the pixel size
enters only where a gel is thin. The published network's units are stress on a substrate of E0 = 10 on a grid of 104:
T = net(u) E/10 S/104, S the side of the training grid. Fields of any size are predicted on, large ones in tiles.

Every sample says what operator of `physics.half_space` made its displacement (centre element, reach, Poisson's ratio,
thickness): methods that can work with it, every module's forward residual and energy use it; told another by
`module.*`, they use that, and those scores are as it sees them. What a measurement does, an argument tells alone.

Deviations from the paper, and why:
- The preprint's error (3.2 %) has no published formula, its cells are not public: here errorTrac of simulated ones.
- The authors train without a validation set; here the monitored metric on held-out cells chooses the checkpoint.
- MATLAB drops an epoch's last, smaller batch (708 fields: 11 steps, here 12) and keeps momentum's step where the step
  size falls (here it shrinks). Whether it clips what decays weights, too, is not documented; here the loss's gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from datamodules.batches import OPERATOR_CODES, TractionBatch
from lightning_modules.figures.dl_tfm import traction_panel
from lightning_modules.figures.vector_maps import rendered
from lightning_modules.losses.step_sizes import rise_and_fall
from lightning_modules.losses.tensor_clipping import clip_each_tensor_
from lightning_modules.losses.traction import grid_side_px, published_units, relative_error, summed_squared_error
from lightning_modules.losses.weight_decay import decay_weights_only
from lightning_modules.metrics.epoch_means import log_step, reset_training_metrics
from lightning_modules.metrics.traction_scores import TractionPrediction, log_scores, predicted, traction_metrics
from lightning_modules.networks.elastic_operator import ElasticOperator
from lightning_modules.networks.evaluation_mode import evaluation_mode
from lightning_modules.networks.kratz_unet import KratzUNet
from lightning_modules.networks.planar_unet import PlanarUNet
from lightning_modules.networks.tiling import on_any_size
from lightning_modules.networks.traction_inversions import FourierInversion, SparseInversion, kernel_of
from lightning_modules.networks.traction_unet import SIZE_STEP_PX, TractionUNet3d
from lightning_modules.networks.unrolled_traction_net import UnrolledTractionNet
from physics.half_space import check_substrate
from physics.traction_cytometry import cutoff_filter

# -- what all modules do alike; each class takes these functions as its methods ---------------------------------------


def _training_step(self: Any, batch: TractionBatch, batch_idx: int) -> Tensor:
    """Loss of one batch."""
    if batch_idx == 0:
        reset_training_metrics(self)
    loss, traction_pa = self.loss_and_traction(batch)
    log_scores(self, batch, "train", loss=loss, traction_pa=traction_pa)
    return log_step(self, loss, batch_size=len(batch.group))


def _validation_step(self: Any, batch: TractionBatch, batch_idx: int) -> None:
    """Loss and error of one batch."""
    loss, traction_pa = self.loss_and_traction(batch)
    log_scores(self, batch, "val", loss=loss, traction_pa=_cut(self, batch, traction_pa))


def _test_step(self: Any, batch: TractionBatch, batch_idx: int) -> None:
    """Loss and all scores of one batch."""
    loss, traction_pa = self.loss_and_traction(batch)
    cut, operator = _cut(self, batch, traction_pa), _operator(self, batch).displacement
    log_scores(self, batch, "test", loss=loss, traction_pa=cut, operator=operator)


def _predict_step(self: Any, batch: TractionBatch, batch_idx: int) -> TractionPrediction:
    """Traction of every field, cut off if asked for, with what can be said of it; maps unless all truths are known."""
    traction_pa = _cut(self, batch, self.loss_and_traction(batch)[1])
    prediction = predicted(batch, traction_pa, _operator(self, batch).displacement)
    if batch.traction_pa.isfinite().all():
        return prediction
    alone = [slice(number, number + 1) for number in range(len(batch.group))]
    panels = [_panel(TractionBatch(*(part[one] for part in batch)), traction_pa[one]) for one in alone]
    return prediction._replace(maps=[rendered(panel) for panel in panels])


def _figures(self: Any, batch: TractionBatch) -> dict[str, Any]:
    """Displacement, true and predicted traction of the first fields of a batch."""
    with evaluation_mode(self):
        first = TractionBatch(*(part[:4] for part in batch))
        traction_pa = _cut(self, first, self.loss_and_traction(first)[1])
    return {"tractions": _panel(first, traction_pa)}


def _panel(batch: TractionBatch, traction_pa: Tensor) -> Any:
    """Displacement, true and predicted traction of the fields of a batch."""
    seen = (batch.pixel_size_um, batch.cell_mask, batch.displacement_px, batch.traction_pa, traction_pa)
    return traction_panel(*(part.numpy(force=True) for part in seen), sample_ids=batch.sample_id)


def _solved(self: Any, displacement_px: Tensor, youngs_modulus_pa: Tensor, operator: ElasticOperator) -> Tensor:
    """Displacement (batch, 2, y, x) in px, modulus (batch,) in Pa and the fields' operators -> traction in Pa."""
    per_modulus: Tensor = self.network(displacement_px, youngs_modulus_pa, operator)
    return per_modulus * youngs_modulus_pa[:, None, None, None]


def _solution(self: Any, batch: TractionBatch) -> tuple[None, Tensor]:
    """No loss, and the traction (batch, 2, y, x) in Pa, of a method without training."""
    return None, self(batch.displacement_px, batch.youngs_modulus_pa, _operator(self, batch))


class TractionRegression(LightningModule):
    """A published network with its published training: TracNet, or the U-Net of Kratz et al.

    Args:
        network: "tracnet_faithful", whose y traction is blind to the x displacement as published, "tracnet_symmetric",
            or "kratz_unet".
        optimizer: "sgdm" (Wang & Lin) or "adagrad" (Kratz).
        learning_rate: first step size.
        momentum: of SGD.
        decay_factor, decay_epochs: the step size is multiplied by the one after every so many epochs; null keeps it.
        weight_decay: L2 penalty on weights, not on biases.
        clip_each_tensor: largest L2 norm of the gradient of each parameter tensor; null does not clip.
        cutoff_percentile: vectors shorter than this percentile of |T| outside the cell become 0; null keeps all.
        frame_border_px: rows and columns along the frame that do not count as outside for the cutoff.
        centre_element, reach, poisson_ratio: what the method is told of the operator in place of what the samples say;
            null tells the truth. Here they matter for the forward residual only, as do the next two.
        gel_thickness_um: likewise; .inf for a gel so thick that it counts as a half space.
        transfer_function: kernel (n,) of the displacement measurement; null for a perfect one.
    """

    training_free: bool = False
    needs_find_unused_parameters: bool = False

    def __init__(
        self,
        *,
        network: str,
        optimizer: str,
        learning_rate: float,
        momentum: float,
        decay_factor: float,
        decay_epochs: int | None,
        weight_decay: float,
        clip_each_tensor: float | None,
        cutoff_percentile: float | None,
        frame_border_px: int,
        centre_element: str | None,
        reach: str | None,
        poisson_ratio: float | None,
        gel_thickness_um: float | None,
        transfer_function: list[float] | None,
    ) -> None:
        super().__init__()
        networks: dict[str, Callable[[], nn.Module]] = {
            "tracnet_faithful": lambda: TractionUNet3d("faithful"),
            "tracnet_symmetric": lambda: TractionUNet3d("symmetric"),
            "kratz_unet": KratzUNet,
        }
        _require_choice("network", network, networks)
        _require_choice("optimizer", optimizer, ("sgdm", "adagrad"))
        _require_positive(learning_rate=learning_rate, decay_factor=decay_factor)
        _require_positive(decay_epochs=decay_epochs, clip_each_tensor=clip_each_tensor)
        self.save_hyperparameters()
        _set_up(self)
        self.network = networks[network]()
        self.register_buffer("trained_grid_px", torch.zeros(()))

    training_step, validation_step, test_step = _training_step, _validation_step, _test_step
    predict_step, figures = _predict_step, _figures

    def forward(self, displacement_px: Tensor, youngs_modulus_pa: Tensor) -> Tensor:
        """Displacement (batch, 2, y, x) in px and modulus (batch,) in Pa -> traction (batch, 2, y, x) in Pa."""
        stress = on_any_size(self.network, displacement_px, step_px=SIZE_STEP_PX, tiles=not self.training).float()
        return stress / published_units(displacement_px, youngs_modulus_pa, self.trained_grid_px)

    def loss_and_traction(self, batch: TractionBatch) -> tuple[Tensor, Tensor]:
        """Summed squared error () in the network's units, and the traction in Pa."""
        if self.training:
            self.trained_grid_px.fill_(grid_side_px(batch.displacement_px))
        traction_pa = self(batch.displacement_px, batch.youngs_modulus_pa)
        units = published_units(batch.displacement_px, batch.youngs_modulus_pa, self.trained_grid_px)
        return summed_squared_error(traction_pa * units, batch.traction_pa * units), traction_pa

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip tensor by tensor, as MATLAB does."""
        if self.hparams["clip_each_tensor"] is not None:
            clip_each_tensor_(self.parameters(), self.hparams["clip_each_tensor"])

    def configure_optimizers(self) -> Any:
        """SGD with momentum or Adagrad, the step size falling by a factor every few epochs."""
        numbers, groups = self.hparams, decay_weights_only(self.network, self.hparams["weight_decay"])
        optimizer: Any = torch.optim.Adagrad(groups, lr=numbers["learning_rate"])
        if numbers["optimizer"] == "sgdm":
            optimizer = torch.optim.SGD(groups, lr=numbers["learning_rate"], momentum=numbers["momentum"])
        if numbers["decay_epochs"] is None:
            return optimizer
        return [optimizer], [StepLR(optimizer, numbers["decay_epochs"], numbers["decay_factor"])]


class PhysicsInformedRegression(LightningModule):
    """Our network: U-Nets around the explicit operator, or without it a plain U-Net; one for every noise.

    Args:
        steps: corrections through the operator after the first estimate; null for the plain U-Net.
        width: channels of each U-Net at full resolution.
        depth: halvings of each U-Net.
        vary_operator: train on measurements by operators drawn by chance, each told to the network.
        step_weight: weight of the loss of each earlier estimate against the last one's.
        learning_rate: largest step size of AdamW.
        weight_decay: of AdamW, on weights, not on biases.
        warm_up_share: share of the steps in which the step size rises; it falls to 0 along a cosine afterwards.
        cutoff_percentile, frame_border_px: as for `TractionRegression`.
        centre_element, reach, poisson_ratio, gel_thickness_um, transfer_function: as above; the network uses them.
    """

    training_free: bool = False
    needs_find_unused_parameters: bool = False

    def __init__(
        self,
        *,
        steps: int | None,
        width: int,
        depth: int,
        vary_operator: bool,
        step_weight: float,
        learning_rate: float,
        weight_decay: float,
        warm_up_share: float,
        cutoff_percentile: float | None,
        frame_border_px: int,
        centre_element: str | None,
        reach: str | None,
        poisson_ratio: float | None,
        gel_thickness_um: float | None,
        transfer_function: list[float] | None,
    ) -> None:
        super().__init__()
        _require_positive(learning_rate=learning_rate)
        for name, share in (("step_weight", step_weight), ("warm_up_share", warm_up_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")
        if vary_operator and steps is None:
            raise ValueError("vary_operator must be false for the plain U-Net (steps: null): it cannot be told which")
        self.save_hyperparameters()
        _set_up(self)
        shape = {"width": width, "depth": depth}
        self.network = PlanarUNet(**shape) if steps is None else UnrolledTractionNet(steps=steps, **shape)

    training_step, validation_step, test_step = _training_step, _validation_step, _test_step
    predict_step, figures = _predict_step, _figures

    def forward(self, displacement_px: Tensor, youngs_modulus_pa: Tensor, operator: ElasticOperator) -> Tensor:
        """Displacement (batch, 2, y, x) in px, modulus (batch,) in Pa and the fields' operators -> traction in Pa."""
        return self._estimates(displacement_px, operator)[-1] * youngs_modulus_pa[:, None, None, None]

    def loss_and_traction(self, batch: TractionBatch) -> tuple[Tensor, Tensor]:
        """Relative error () of the estimates over the whole frame, and the last one in Pa."""
        modulus_pa = batch.youngs_modulus_pa[:, None, None, None]
        target = batch.traction_pa / modulus_pa
        known = _operator(self, batch)
        operator = known.drawn(target.shape[-2:]) if self.training and self.hparams["vary_operator"] else known
        displacement_px = known.measured_by(operator, batch.displacement_px, target)
        *earlier, last = self._estimates(displacement_px, operator)
        loss = sum((self.hparams["step_weight"] * relative_error(x, target) for x in earlier), torch.zeros(()))
        return loss.to(last.device) + relative_error(last, target), last * modulus_pa

    def _estimates(self, displacement_px: Tensor, operator: ElasticOperator) -> list[Tensor]:
        if isinstance(self.network, UnrolledTractionNet):
            return self.network.estimates(displacement_px, operator)
        return [self.network(displacement_px).float()]

    def configure_optimizers(self) -> Any:
        """AdamW, the step size rising linearly and falling along a cosine, batch by batch."""
        groups = decay_weights_only(self.network, self.hparams["weight_decay"])
        optimizer = torch.optim.AdamW(groups, lr=self.hparams["learning_rate"])
        steps = int(self.trainer.estimated_stepping_batches)
        return rise_and_fall(optimizer, steps=steps, warm_up_share=self.hparams["warm_up_share"])


class FourierTractionCytometry(LightningModule):
    """FTTC as a module without training: a test logs the scores that the networks log.

    Args:
        regularization: lambda in (px/Pa)^2, as the paper gives it; null has `choice` find one for each field.
        choice: "evidence", "gcv" or "l_curve"; null where `regularization` is given.
        mean_force: "zero" takes the field's mean displacement for drift, "finite_domain" for that of a net force.
        cutoff_percentile, frame_border_px: as for `TractionRegression`.
        centre_element, reach, poisson_ratio, gel_thickness_um, transfer_function: as above; it uses the last three.
    """

    training_free: bool = True
    needs_find_unused_parameters: bool = False

    def __init__(
        self,
        *,
        regularization: float | None,
        choice: str | None,
        mean_force: str,
        cutoff_percentile: float | None,
        frame_border_px: int,
        centre_element: str | None,
        reach: str | None,
        poisson_ratio: float | None,
        gel_thickness_um: float | None,
        transfer_function: list[float] | None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        _set_up(self)
        self.network = FourierInversion(regularization, choice, mean_force)

    validation_step, test_step, predict_step, figures = _validation_step, _test_step, _predict_step, _figures
    forward, loss_and_traction = _solved, _solution


class SparseTractionCytometry(LightningModule):
    """Group-sparse reconstruction with the exact operator as a module without training.

    Args:
        iterations: largest number of steps of the solver.
        noise_px: magnitude of the noise vector, as for `TractionData`, where it is correlated; null measures it.
        cutoff_percentile, frame_border_px: as for `TractionRegression`.
        centre_element, reach, poisson_ratio, gel_thickness_um, transfer_function: as above; the solver uses them.
    """

    training_free: bool = True
    needs_find_unused_parameters: bool = False

    def __init__(
        self,
        *,
        iterations: int,
        noise_px: float | None,
        cutoff_percentile: float | None,
        frame_border_px: int,
        centre_element: str | None,
        reach: str | None,
        poisson_ratio: float | None,
        gel_thickness_um: float | None,
        transfer_function: list[float] | None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        _set_up(self)
        self.network = SparseInversion(iterations, noise_px)

    validation_step, test_step, predict_step, figures = _validation_step, _test_step, _predict_step, _figures
    forward, loss_and_traction = _solved, _solution


def _set_up(module: Any) -> None:
    """Check and use the arguments that all modules share; they are stored in `hparams` already."""
    for name, most in (("cutoff_percentile", 100), ("frame_border_px", 1e9), ("weight_decay", 1e9), ("momentum", 1)):
        if not 0 <= (module.hparams.get(name) or 0) <= most:
            raise ValueError(f"{name} must lie in [0, {most:g}], got {module.hparams[name]}")
    for name, choices in OPERATOR_CODES.items():
        _require_choice(name, module.hparams[name], choices)
    if module.hparams["poisson_ratio"] is not None:
        check_substrate(1.0, 1.0, module.hparams["poisson_ratio"], None)
    thickness_um = module.hparams["gel_thickness_um"]
    _require_positive(gel_thickness_um=None if thickness_um == math.inf else thickness_um)
    module.register_buffer("transfer_function", kernel_of(module.hparams["transfer_function"]), persistent=False)
    module.metrics = traction_metrics()


def _operator(module: Any, batch: TractionBatch) -> ElasticOperator:
    """What the method is told of the operators behind a batch."""
    told = {name: [words[code] for code in getattr(batch, name).tolist()] for name, words in OPERATOR_CODES.items()}
    told["poisson_ratio"] = batch.poisson_ratio.tolist()
    told |= {name: [module.hparams[name]] * len(batch.group) for name in told if module.hparams[name] is not None}
    thickness_um = module.hparams["gel_thickness_um"]
    layers_px = (batch.gel_thickness_um if thickness_um is None else thickness_um) / batch.pixel_size_um
    return ElasticOperator(**told, thickness_px=layers_px.tolist(), transfer_function=module.transfer_function)


def _cut(module: Any, batch: TractionBatch, traction_pa: Tensor) -> Tensor:
    """Apply the cutoff filter, if there is one."""
    percentile, border_px = module.hparams["cutoff_percentile"], module.hparams["frame_border_px"]
    if percentile is None:
        return traction_pa
    return cutoff_filter(traction_pa.detach(), batch.cell_mask, percentile=percentile, frame_border_px=border_px)


def _require_choice(name: str, value: str | None, choices: Collection[str]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _require_positive(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive, got {value}")
