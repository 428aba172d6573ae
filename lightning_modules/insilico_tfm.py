"""Traction magnitude from one fluorescence image with its uncertainty: the Bayesian Tiramisu, and constants to beat.

Pielawski et al., "In Silico Prediction of Cell Traction Forces", ISBI 2020, arXiv 1910.07380:
`BayesianTractionRegression`, figures 1 to 4. A network maps an image (batch, 1, y, x), ln(max(1, grey)), to mu and
sigma of ln F in every pixel, F the magnitude of the traction in Pa; it is trained with eq. 1 and asked T times with
dropout on, and the T log-normal distributions together are the prediction (eqs. 2 to 5).

Whole images of any size are predicted on: padded with black to what the network's halvings take; above `WHOLE_PX` in
tiles that overlap (a tile's draw is one network, another tile's another one). A draw is a function of (draw_seed,
sample id, number of the draw), whatever is in its batch.

Deviations from the paper, and why:
- T is not stated (the authors' code has 4); coverage and quantiles of a mixture want more, here 20.
- Eq. 5 is printed with a wrong factor and the CV drawn with a wrong one (`metrics.lognormal`); intervals are quantiles
  of the mixture, where the authors' are of a log-normal with other parameters.
- A floor under sigma, without which eq. 1 has no minimum where the clipped logarithm is 0 (`losses.lognormal`).
- The authors keep the last weights; here the monitored metric on the validation cells chooses.
- Baselines, of which the paper has none: no force, one constant, and the same network without sigma or without draws.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from datamodules.batches import ForceImageBatch
from lightning_modules.figures.insilico_tfm import force_figures, published_frame
from lightning_modules.losses.lognormal import balanced, floored_variance, pixel_losses
from lightning_modules.losses.step_sizes import rise_and_fall
from lightning_modules.metrics.epoch_means import log_step, reset_training_metrics
from lightning_modules.metrics.frame_series import FrameSeries
from lightning_modules.metrics.lognormal_maps import ForcePrediction, drawn_arrays, force_prediction
from lightning_modules.metrics.lognormal_scores import ForceDistribution, force_metrics, log_loss, log_scores
from lightning_modules.networks import batch_moments
from lightning_modules.networks.evaluation_mode import evaluation_mode
from lightning_modules.networks.tiling import on_any_size
from lightning_modules.networks.tiramisu import BayesianTiramisu

LOSSES = ("log_normal", "squared_error")
STATISTICS = ("median", "mean")
WHOLE_PX, TILE_PX, HALO_PX = 1024, 512, 256
"""Longest side of an image in one piece; side of a tile of a longer one, and what it sees around itself, of the 960 px
that the published network could see."""
BIN_WIDTH, BINS = 1e-3, 16_000
"""Of ln F, in which the training forces are counted: a tenth of a percent, up to 9 MPa."""
FIGURE_FRAMES = 10
"""Of a cell, spread evenly: as many as figure 1 has."""


def _forget_frames(self: Any) -> None:
    """Begin the curves over a stage's frames anew."""
    self.frames_seen.clear()


class BayesianTractionRegression(LightningModule):
    """The Bayesian Tiramisu with its published training.

    Args:
        blocks: dense blocks on the way down (#).
        layers: layers of a dense block (#).
        growth: maps that a layer adds (#).
        initial_channels: maps of the first convolution (#).
        dropout_rate: in [0, 1).
        loss: "log_normal" (eq. 1), or "squared_error" of ln F, which makes the network deterministic: no sigma.
        beta: in [0, 1], how far pixels of small sigma lose their weight in training; 0 is eq. 1 (`losses.lognormal`).
        sigma_floor: added to sigma in quadrature; 0 is eq. 1 as printed.
        learning_rate: (largest) step size of Adam.
        warm_up_share: share of the steps in which the step size rises; it falls to 0 along a cosine afterwards. null
            keeps it.
        weight_decay: L2 penalty of Adam on the first convolution and the transitions alone; twice Keras's number.
        draws: passes with dropout on in test and prediction (T); null is one pass with dropout off.
        validation_draws: the same in validation.
        draws_at_once: draws of a batch that go through the network together; 1 is fastest on a CPU.
        draw_seed: of the draws.
        compile_network: whether training and single passes run through `torch.compile`.

    """

    training_free: bool = False
    needs_find_unused_parameters: bool = False
    figures_follow_group: bool = True
    trainer_fault, data_fault = staticmethod(batch_moments.trainer_fault), staticmethod(batch_moments.data_fault)
    on_validation_start = on_test_start = on_predict_start = _forget_frames

    def __init__(
        self,
        *,
        blocks: int,
        layers: int,
        growth: int,
        initial_channels: int,
        dropout_rate: float,
        loss: str,
        beta: float,
        sigma_floor: float,
        learning_rate: float,
        warm_up_share: float | None,
        weight_decay: float,
        draws: int | None,
        validation_draws: int | None,
        draws_at_once: int,
        draw_seed: int,
        compile_network: bool,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        counts = {"draws": draws, "validation_draws": validation_draws, "draws_at_once": draws_at_once}
        for name, number in counts.items():
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if loss == "squared_error" and (draws, validation_draws) != (None, None):
            raise ValueError("draws and validation_draws must be null for the squared_error, which has no distribution")
        if not (learning_rate > 0 and math.isfinite(learning_rate)):
            raise ValueError(f"learning_rate must be positive, got {learning_rate}")
        if not 0 <= (warm_up_share or 0) <= 1:
            raise ValueError(f"warm_up_share must lie in [0, 1], got {warm_up_share}")
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must lie in [0, 1], got {beta}")
        for name, value in (("weight_decay", weight_decay), ("sigma_floor", sigma_floor), ("draw_seed", draw_seed)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be at least 0, got {value}")
        shape = {"blocks": blocks, "layers": layers, "growth": growth, "initial_channels": initial_channels}
        self.network = BayesianTiramisu(**shape, dropout_rate=dropout_rate)
        self.save_hyperparameters()
        self.probabilistic = loss == "log_normal"
        self.network.sigma.requires_grad_(self.probabilistic)
        self.metrics = force_metrics(trained=True, spread=self.probabilistic)
        self.frames_seen = FrameSeries()
        self._shown_draws = draws
        if compile_network:
            self.network.compile()

    def forward(self, image: Tensor) -> Tensor:
        """Image (batch, 1, y, x), ln(max(1, grey)), of any size -> mu and sigma of ln F, (batch, 2, y, x): one pass."""
        return self._on_any_size(self.network, image)

    def training_step(self, batch: ForceImageBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        if batch_idx == 0:
            reset_training_metrics(self)
        log_force, frames = batch.log_traction[:, 0], len(batch.group)
        predicted = self._distribution(self(batch.image)[None])
        losses = self._losses(predicted, log_force)
        log_loss(self, "train", losses.detach(), log_force, spread=self.probabilistic)
        loss = log_step(self, losses.mean(), batch_size=frames)
        if predicted.sigma_squared is None:
            return loss
        return balanced(losses, predicted.sigma_squared[0], beta=self.hparams["beta"]).mean()

    def validation_step(self, batch: ForceImageBatch, batch_idx: int) -> None:
        """Loss, errors and coverage of one batch of whole frames."""
        self._evaluate(batch, "val", self.hparams["validation_draws"])

    def test_step(self, batch: ForceImageBatch, batch_idx: int) -> None:
        """All scores of one batch of whole frames."""
        self._evaluate(batch, "test", self.hparams["draws"])

    def predict_step(self, batch: ForceImageBatch, batch_idx: int) -> ForcePrediction:
        """Maps of the force and of every part of its uncertainty."""
        return _prediction(self, batch, self.predicted(batch, self.hparams["draws"]))

    def predicted(self, batch: ForceImageBatch, draws: int | None) -> ForceDistribution:
        """Predict ln F of a batch in this many draws, or for None in one pass in the mode that the module is in."""
        self._shown_draws = draws
        if draws is None:
            return self._distribution(self(batch.image)[None]).bounded()
        at_once, passes = self.hparams["draws_at_once"], []
        for first in range(0, draws, at_once):
            numbers = range(first, min(first + at_once, draws))
            images = batch.image.repeat(len(numbers), 1, 1, 1)
            generators = [self._generator(name, number) for number in numbers for name in batch.sample_id]
            with torch.no_grad(), self.network.sampling(generators):
                # not compiled: each image has a random stream of its own
                outputs = self._on_any_size(self.network.forward, images)
            passes.append(outputs.unflatten(0, (len(numbers), len(batch.image))))
        return self._distribution(torch.cat(passes)).bounded()

    def figures(self, batch: ForceImageBatch) -> dict[str, Any]:
        """Figures of a few frames of a cell, as many draws each as the stage had, and curves of all frames."""
        return _figures(self, batch)

    def configure_optimizers(self) -> Any:
        """Adam as Keras has it, its L2 penalty on the seven convolutions that the authors name.

        Keras clips the penalty's gradient with the loss's, torch adds it to what was clipped.
        """
        penalised = self.network.penalised_weights()
        known = {id(weight) for weight in penalised}
        others = [parameter for parameter in self.network.parameters() if id(parameter) not in known]
        groups = [{"params": penalised, "weight_decay": self.hparams["weight_decay"]}, {"params": others}]
        optimizer = torch.optim.Adam(groups, lr=self.hparams["learning_rate"], betas=(0.9, 0.999), eps=1e-7)
        if self.hparams["warm_up_share"] is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        return rise_and_fall(optimizer, steps=steps, warm_up_share=self.hparams["warm_up_share"])

    def _on_any_size(self, compute: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        sizes = {"whole_px": WHOLE_PX, "tile_px": TILE_PX, "halo_px": HALO_PX}
        return on_any_size(compute, image, step_px=self.network.size_step_px, tiles=not self.training, **sizes)

    def _distribution(self, passes: Tensor) -> ForceDistribution:
        """Outputs (draws, batch, 2, y, x) of the network -> ln F, at least in single precision."""
        mu, sigma = passes.to(torch.promote_types(passes.dtype, torch.float32)).unbind(dim=2)
        if not self.probabilistic:
            return ForceDistribution(mu, None)
        return ForceDistribution(mu, floored_variance(sigma, sigma_floor=self.hparams["sigma_floor"]))

    def _losses(self, predicted: ForceDistribution, log_force: Tensor) -> Tensor:
        """What every pixel loses in the mean over the draws, (batch, y, x)."""
        target = log_force.expand_as(predicted.mu)
        if predicted.sigma_squared is None:
            return (target - predicted.mu).square().mean(dim=0)
        return pixel_losses(predicted.mu, predicted.sigma_squared.sqrt(), target, sigma_floor=0.0).mean(dim=0)

    def _evaluate(self, batch: ForceImageBatch, stage: str, draws: int | None) -> None:
        predicted, batch = _known(self.predicted(batch, draws), batch)
        if batch.group:
            log_force = batch.log_traction[:, 0]
            losses = self._losses(predicted, log_force)
            log_loss(self, stage, losses, log_force, spread=self.probabilistic)
            _see(self, batch, predicted, log_scores(self, stage, predicted, log_force))

    def _generator(self, sample_id: str, draw: int) -> torch.Generator:
        """The random stream of one draw of one image."""
        key = f"{self.hparams['draw_seed']}/{draw}/{sample_id}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
        return torch.Generator(self.device).manual_seed(seed)


# -- constants; each class takes these functions as its methods -------------------------------------------------------


def _validation_step(self: Any, batch: ForceImageBatch, batch_idx: int) -> None:
    """Errors of one batch."""
    _score_constant(self, batch, "val")


def _test_step(self: Any, batch: ForceImageBatch, batch_idx: int) -> None:
    """Errors of one batch."""
    _score_constant(self, batch, "test")


def _predict_step(self: Any, batch: ForceImageBatch, batch_idx: int) -> ForcePrediction:
    """The constant on every image."""
    return _prediction(self, batch, self.predicted(batch, None))


def _predicted(self: Any, batch: ForceImageBatch, draws: int | None) -> ForceDistribution:
    """Predict ln F of a batch, one number a pixel."""
    return ForceDistribution(self(batch.image)[None], None)


class ZeroForce(LightningModule):
    """No force anywhere, without training. In the clipped logarithm no force is 1 Pa, of the truth as well."""

    training_free: bool = True
    needs_find_unused_parameters: bool = False
    figures_follow_group: bool = True

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.metrics = force_metrics(trained=False, spread=False)
        self.frames_seen = FrameSeries()

    validation_step, test_step, predict_step = _validation_step, _test_step, _predict_step
    predicted = _predicted
    on_validation_start = on_test_start = on_predict_start = _forget_frames

    def forward(self, image: Tensor) -> Tensor:
        """Image (batch, 1, y, x) -> ln F, (batch, y, x): 0."""
        return torch.zeros_like(image[:, 0])

    def figures(self, batch: ForceImageBatch) -> dict[str, Any]:
        """Figures of a few frames of a cell, and curves of all frames of the stage."""
        return _figures(self, batch)


class ConstantForce(LightningModule):
    """One force, counted over the pixels of the training crops in a single epoch, on all pixels or on those of cells.

    Args:
        statistic: "median" or "mean" of the force.
        cell_grey: pixels at least this bright are the cell: only there is the force counted, and only there predicted;
            null for all pixels.

    """

    training_free: bool = False
    needs_find_unused_parameters: bool = False
    figures_follow_group: bool = True
    counts: Tensor

    def __init__(self, *, statistic: str, cell_grey: float | None) -> None:
        super().__init__()
        if statistic not in STATISTICS:
            raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, got {statistic!r}")
        if cell_grey is not None and not cell_grey >= 1:
            raise ValueError(f"cell_grey must be at least 1, got {cell_grey}")
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.register_buffer("counts", torch.zeros(BINS, dtype=torch.int64))
        self.metrics = force_metrics(trained=False, spread=False)
        self.frames_seen = FrameSeries()

    validation_step, test_step, predict_step = _validation_step, _test_step, _predict_step
    predicted = _predicted
    on_validation_start = on_test_start = on_predict_start = _forget_frames

    def forward(self, image: Tensor) -> Tensor:
        """Image (batch, 1, y, x), ln(max(1, grey)) -> ln F, (batch, y, x)."""
        return torch.where(self._cell(image), self.log_force(), 0.0)

    def training_step(self, batch: ForceImageBatch, batch_idx: int) -> None:
        """Count the forces of one batch."""
        values = batch.log_traction[:, 0][self._cell(batch.image)]
        bins = (values / BIN_WIDTH).round().long().clamp(max=BINS - 1)
        self.counts += torch.bincount(bins, minlength=BINS)

    def log_force(self) -> Tensor:
        """Logarithm () of the constant; 0 before anything was counted."""
        counts = self.counts.cpu()
        if self.hparams["statistic"] == "median":
            value = BIN_WIDTH * (counts.cumsum(0) * 2 < counts.sum()).sum().double()
        else:
            centres = BIN_WIDTH * torch.arange(BINS, dtype=torch.float64)
            value = ((counts * centres.exp()).sum() / counts.sum().clamp(min=1)).clamp(min=1).log()
        return value.float().to(self.device)

    def figures(self, batch: ForceImageBatch) -> dict[str, Any]:
        """Figures of a few frames of a cell, and curves of all frames of the stage."""
        return _figures(self, batch)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """None: nothing is optimised."""
        return []

    def _cell(self, image: Tensor) -> Tensor:
        grey = self.hparams["cell_grey"]
        return image[:, 0] >= (-math.inf if grey is None else math.log(grey))


def _score_constant(module: Any, batch: ForceImageBatch, stage: str) -> None:
    predicted, batch = _known(module.predicted(batch, None), batch)
    if batch.group:
        _see(module, batch, predicted, log_scores(module, stage, predicted, batch.log_traction[:, 0]))


def _known(predicted: ForceDistribution, batch: ForceImageBatch) -> tuple[ForceDistribution, ForceImageBatch]:
    """The frames whose truth is known: what is predicted of them, and they."""
    rows = batch.log_traction.isfinite().flatten(1).all(dim=1).nonzero()[:, 0].tolist()
    parts = (None if part is None else part[:, rows] for part in predicted)
    return ForceDistribution(*parts), _frames(batch, rows)  # type: ignore[arg-type]


def _frames(batch: ForceImageBatch, rows: list[int]) -> ForceImageBatch:
    return ForceImageBatch(*([part[i] for i in rows] if isinstance(part, list) else part[rows] for part in batch))


def _see(module: Any, batch: ForceImageBatch, predicted: ForceDistribution, errors: dict[str, Tensor]) -> None:
    """Keep of the frames of a batch what curves over time are drawn from."""
    module.frames_seen.add(predicted, batch.log_traction[:, 0], errors, time_s=batch.time_s, groups=batch.group)


def _prediction(module: Any, batch: ForceImageBatch, predicted: ForceDistribution) -> ForcePrediction:
    log_force = batch.log_traction[:, 0]
    prediction = force_prediction(predicted, log_force, pixel_size_um=batch.pixel_size_um, time_s=batch.time_s)
    _see(module, batch, predicted, {name: getattr(prediction, name) for name in ("mae_median_pa", "mae_mean_pa")})
    return prediction


def _figures(module: Any, batch: ForceImageBatch) -> dict[str, Any]:
    """Frames of the first cell, spread evenly and that of figure 2, with the curves of all frames of the stage."""
    own = [row for row, group in enumerate(batch.group) if group == batch.group[0]]
    chosen = torch.linspace(0, len(own) - 1, min(len(own), FIGURE_FRAMES)).round().long().tolist()
    chosen = sorted({*chosen, published_frame(batch.time_s[own].float().numpy(force=True))})
    frames = _frames(batch, [own[place] for place in chosen])
    with evaluation_mode(module):
        predicted = module.predicted(frames, getattr(module, "_shown_draws", None))
        arrays = drawn_arrays(predicted, log_image=frames.image[:, 0], log_force=frames.log_traction[:, 0])
    seen: FrameSeries = module.frames_seen
    calibration = seen.calibration()
    arrays["curves"] |= {} if calibration is None else {"calibration": calibration}
    return force_figures(
        **arrays,
        pixel_size_um=frames.pixel_size_um.float().numpy(force=True),
        time_s=frames.time_s.float().numpy(force=True),
        sample_ids=frames.sample_id,
        groups=frames.group,
        errors=seen.numbers(),
        cells=seen.groups,
        pixel=seen.pixel(frames.group[0]),
    )
