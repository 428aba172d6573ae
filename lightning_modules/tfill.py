"""Nuclei from actin: TFill-Coarse with its discriminator, and the peers pix2pix and CycleGAN as they come.

Vasudevan, Zheng et al., "From qualitative data to correlation using deep generative networks", PLOS ONE 0271056 (2022),
figs. 2 and 3; the network is that of Zheng et al., CVPR 2022 (TFill). Peers: Isola et al., CVPR 2017 (pix2pix); Zhu et
al., ICCV 2017 (CycleGAN).

All take actin (batch, 1, y, x) in [-1, 1] and return nuclei of the same shape in [-1, 1]. Inside, a grey image is
repeated to `image_channels` colours, 3 as published; the answer is the colours' mean. Two optimizers take turns in
every batch (Lightning's manual optimization), each over its own parameters alone; a step of the run is a batch, so the
discriminator's step is not counted.

Deviations from the papers, and why:
- The text names two losses, mask-weighted L1 and adversarial; the authors' code adds LPIPS on VGG-16 times 10. Its
  weights are never downloaded: `pretrained_weights` null leaves that term out, of which a fit warns. It is
  taken without the dropout that the authors' code leaves on in it.
- The best checkpoint is chosen by a validation metric; the authors took the last one.
- pix2pix at test: every image normalised by its own statistics, as in the authors' code, but without dropout, so that
  an answer is a function of the image alone.
- CycleGAN's nuclei in a batch are those of its actin; no term of its loss looks at the pairing. After a step in several
  processes each has its own pool of past images; a checkpoint holds the first one's.
- Step sizes fall batch by batch where the peers' authors let them fall epoch by epoch.
- Half precision with loss scaling (16-mixed) is refused, bf16-mixed is not: the scaler would be shared by two losses.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from datamodules.batches import TranslationBatch
from lightning_modules.figures.nuclei_overlays import overlay_rgb, side_by_side
from lightning_modules.figures.tfill import translation_panel
from lightning_modules.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from lightning_modules.losses.translation import FORMS, mask_weighted_l1, over_scales
from lightning_modules.losses.turns import adam_for_both_sides, check_turns, end_turns, trainer_fault, turn
from lightning_modules.metrics import translation_scores as scores
from lightning_modules.networks.cyclegan import ImagePool, ResNetGenerator
from lightning_modules.networks.evaluation_mode import evaluation_mode
from lightning_modules.networks.pix2pix import PatchDiscriminator, Pix2PixUNet
from lightning_modules.networks.stylegan2_discriminator import StyleGAN2Discriminator
from lightning_modules.networks.tfill_generator import TFillGenerator

LEAST_JUDGED_PX = 24
"""Smaller pictures leave CycleGAN's discriminators a map of one number, which cannot be normalised."""

# -- what all three do alike; each class takes these functions as its methods -----------------------------------------


def _predict_step(self: Any, batch: TranslationBatch, batch_idx: int) -> scores.TranslationPrediction:
    """Nuclei of every image, as a picture and as a table."""
    generated = self(batch.actin)
    found = scores.nuclei_of(batch, generated, minimum_area_um2=self.hparams["minimum_area_um2"])
    pictures = [scores.unit_range(part[:, 0]).numpy(force=True) for part in (batch.actin, batch.nucleus, generated)]
    pixel_um = batch.pixel_size_um.tolist()
    overlays = [
        overlay_rgb(actin, image.generated, image.real, pixel_size_um=size_um)
        for actin, image, size_um in zip(pictures[0], found, pixel_um, strict=True)
    ]
    return scores.TranslationPrediction(
        nucleus=scores.unit_range(generated),
        overlay=overlays,
        side_by_side=[side_by_side(*parts) for parts in zip(*pictures, strict=True)],
        nuclei=[image.table for image in found],
        **scores.image_scores(batch, generated),
        **{name: [image.counts[name] for image in found] for name in found[0].counts},
    )


def _figures(self: Any, batch: TranslationBatch) -> dict[str, Any]:
    """Actin, real and generated nuclei, and their outlines, of the first images of a batch."""
    with evaluation_mode(self):
        first = TranslationBatch(*(None if part is None else part[:4] for part in batch))  # type: ignore[arg-type]
        prediction = _predict_step(self, first, 0)
    actin, real = (scores.unit_range(part[:, 0]).numpy(force=True) for part in (first.actin, first.nucleus))
    arrays = (actin, real, prediction.nucleus[:, 0].numpy(force=True), prediction.overlay)
    pixel_um = first.pixel_size_um.tolist()
    return {"nuclei": translation_panel(*arrays, pixel_size_um=pixel_um, sample_ids=first.sample_id)}


def _data_fault(module: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    """Why a network of these settings cannot take these tiles: `<key of data> <reason and mend>`; None where it can."""
    side, wanted = data.get("crop_px"), module.get("image_size_px", data.get("crop_px"))
    if side != wanted:
        return f"crop_px must be module.image_size_px = {wanted}, got {side}: set both alike"
    if "blocks" in module and side < LEAST_JUDGED_PX:
        return f"crop_px must be at least {LEAST_JUDGED_PX}, below which nothing is left to judge, got {side}: raise it"
    step, mend = (2 ** module["levels"], ", or lower module.levels") if "levels" in module else (4, "")
    return f"crop_px must be a multiple of {step}, got {side}: change it{mend}" if side and side % step else None


def _sides(self: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of the generator, and of the discriminator."""
    return list(self.generator.parameters()), list(self.discriminator.parameters())


class TFillTranslation(LightningModule):
    """TFill-Coarse against a StyleGAN2 discriminator.

    Args:
        width: channels at full resolution of generator and discriminator; all others scale with it, 32 as published.
        layers: of the transformer, 12 as published.
        decoder_attention: attention within the decoder (attn_G).
        noise: noise injected into the decoder (add_noise).
        image_channels: colours that a grey image is repeated to, 3 as published.
        image_size_px: side of the training images, `data.crop_px`; the discriminator is built for it.
        alpha: weight of nuclei in the L1 loss.
        form: of the L1 loss, "text" (alpha : 1) or "code" (alpha + 1 : 1), see `losses.translation`.
        every_scale: take the L1 loss over every image of the generator's pyramid instead of the last one.
        reconstruction_weight: of the L1 loss.
        adversarial_weight: of the generator's adversarial loss; with 0 the discriminator is not trained.
        perceptual_weight: of LPIPS on VGG-16.
        pretrained_weights: path of torchvision's VGG-16 or "cache"; null leaves LPIPS out of the loss.
        r1_gamma: weight of the R1 penalty on the discriminator; 0 as published.
        r1_every: batches from one R1 penalty to the next, which counts as many times.
        ema_decay: per batch, of the average of the generator's weights that answers in evaluation; null for none.
        learning_rate, discriminator_learning_rate, betas: of Adam, the latter of both sides.
        decay_share: share of the run, at its end, over which step sizes fall linearly to 0; 0 as published.
        clip_gradient_norm: largest L2 norm of the gradient of each side; null does not clip.
        minimum_area_um2: least area of a nucleus that counts; the paper's 50 pixels at 159.41 um / 384 are 8.6 um^2.
        lpips_weights: path of torchvision's AlexNet or "cache" for test/lpips; null for none.
        fid_weights: path of torch-fidelity's Inception or "cache" for test/fid; null for none.
    """

    training_free: bool = False
    needs_find_unused_parameters: bool = True
    automatic_optimization: bool = False
    smoke: Mapping[str, Any] = MappingProxyType(
        {"image_size_px": 64, "width": 4, "layers": 1, "perceptual_weight": 0.0}
    )

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        decoder_attention: bool,
        noise: bool,
        image_channels: int,
        image_size_px: int,
        alpha: float,
        form: str,
        every_scale: bool,
        reconstruction_weight: float,
        adversarial_weight: float,
        perceptual_weight: float,
        pretrained_weights: str | None,
        r1_gamma: float,
        r1_every: int,
        ema_decay: float | None,
        learning_rate: float,
        discriminator_learning_rate: float,
        betas: list[float],
        decay_share: float,
        clip_gradient_norm: float | None,
        minimum_area_um2: float,
        lpips_weights: str | None,
        fid_weights: str | None,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        if r1_every < 1:
            raise ValueError(f"r1_every must be at least 1, got {r1_every}")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must be null or lie in [0, 1), got {ema_decay}")
        step = max(16, 2 ** max(image_size_px.bit_length() - 3, 0))  # the generator's patches, the discriminator's maps
        if image_size_px % step or not 16 <= image_size_px <= 512:
            raise ValueError(f"image_size_px must be a multiple of {step} from 16 to 512, got {image_size_px}")
        self.save_hyperparameters()
        names = ("alpha", "reconstruction_weight", "adversarial_weight", "perceptual_weight", "r1_gamma")
        check_turns(self.hparams, names)
        self.generator = TFillGenerator(
            image_channels,
            width=width,
            layers=layers,
            feed_forward=64 * width,
            decoder_attention=decoder_attention,
            noise=noise,
        )
        sizes = {"image_channels": image_channels, "width": width, "coarse_channels": 16 * width}
        self.discriminator = StyleGAN2Discriminator(image_size_px, **sizes)
        self.averaged = None if ema_decay is None else copy.deepcopy(self.generator).requires_grad_(False)
        scores.set_up(self, ("loss", "discriminator_loss", "reconstruction", "adversarial", "perceptual"))

    trainer_fault, data_fault = staticmethod(trainer_fault), staticmethod(_data_fault)
    prediction_summary = staticmethod(scores.prediction_summary)
    validation_step, test_step = scores.validation_step, scores.test_step
    predict_step, figures = _predict_step, _figures
    on_validation_epoch_end, on_test_epoch_end = scores.on_validation_epoch_end, scores.on_test_epoch_end
    on_fit_start, on_test_start, on_train_batch_end = scores.on_start, scores.on_start, end_turns
    sides, configure_optimizers = _sides, adam_for_both_sides

    def forward(self, actin: Tensor) -> Tensor:
        """Actin (batch, 1, y, x) in [-1, 1] -> nuclei (batch, 1, y, x) in [-1, 1]; sides of 16 n <= 512 pixels."""
        answers = self.generator if self.averaged is None or self.training else self.averaged
        return answers(scores.colours(self, actin)).float().mean(dim=1, keepdim=True)

    def training_step(self, batch: TranslationBatch, batch_idx: int) -> Tensor:
        """One step of the discriminator, then one of the generator."""
        numbers, (actin, real) = self.hparams, scores.begin(self, batch, batch_idx)
        pyramid = [image.float() for image in self.generator.pyramid(actin)]
        terms: dict[str, Tensor] = {}
        if numbers["adversarial_weight"]:
            with turn(self, 1, counted=False) as descend:
                logits = self.discriminator(real), self.discriminator(pyramid[-1].detach())
                loss = discriminator_loss(*logits, game="nonsaturating")
                if numbers["r1_gamma"] and self.global_step % numbers["r1_every"] == 0:
                    loss = loss + numbers["r1_gamma"] * numbers["r1_every"] * r1_penalty(self.discriminator, real)
                terms["discriminator_loss"] = descend(loss)
        with turn(self, 0, counted=True) as descend:
            images = pyramid if numbers["every_scale"] else pyramid[-1:]
            compared = {"alpha": numbers["alpha"], "form": numbers["form"]}
            terms["reconstruction"] = over_scales(images, real, batch.nucleus_mask, **compared)
            loss = numbers["reconstruction_weight"] * terms["reconstruction"]
            if numbers["adversarial_weight"]:
                terms["adversarial"] = generator_loss(self.discriminator(pyramid[-1]), game="nonsaturating")
                loss = loss + numbers["adversarial_weight"] * terms["adversarial"]
            if self.pretrained["loss"] is not None:
                terms["perceptual"] = self.pretrained["loss"](pyramid[-1], real).mean()
                loss = loss + numbers["perceptual_weight"] * terms["perceptual"]
            terms["loss"] = descend(loss)
        if self.averaged is not None:
            for mean, new in zip(self.averaged.parameters(), self.generator.parameters(), strict=True):
                mean.detach().lerp_(new.detach(), 1 - numbers["ema_decay"])
        return scores.log_terms(self, terms, batch)


class Pix2PixTranslation(LightningModule):
    """pix2pix: U-Net against a 70 x 70 PatchGAN that sees the actin too.

    Args:
        levels: halvings of the U-Net; 8 for 256 pixels, 7 for 128 and 384.
        width: channels of both networks after their first convolution, 64 as published.
        image_channels, learning_rate, discriminator_learning_rate, betas: as for `TFillTranslation`; 3, 0.0002 twice
            and [0.5, 0.999] as published.
        l1_weight: of the L1 loss, 100 as published.
        decay_share: as for `TFillTranslation`; 0.5 as published.
        clip_gradient_norm, minimum_area_um2, lpips_weights, fid_weights: as for `TFillTranslation`.
    """

    training_free: bool = False
    needs_find_unused_parameters: bool = True
    automatic_optimization: bool = False
    smoke: Mapping[str, Any] = MappingProxyType({"levels": 5, "width": 4})

    def __init__(
        self,
        *,
        levels: int,
        width: int,
        image_channels: int,
        l1_weight: float,
        learning_rate: float,
        discriminator_learning_rate: float,
        betas: list[float],
        decay_share: float,
        clip_gradient_norm: float | None,
        minimum_area_um2: float,
        lpips_weights: str | None,
        fid_weights: str | None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_turns(self.hparams, ("l1_weight",))
        self.generator = Pix2PixUNet(image_channels, levels=levels, width=width)
        for layer in self.generator.modules():
            if isinstance(layer, nn.BatchNorm2d):  # an image's own statistics, at test too
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        self.discriminator = PatchDiscriminator(2 * image_channels, width=width)
        scores.set_up(self, ("loss", "discriminator_loss", "reconstruction", "adversarial"))

    trainer_fault, data_fault = staticmethod(trainer_fault), staticmethod(_data_fault)
    prediction_summary = staticmethod(scores.prediction_summary)
    validation_step, test_step = scores.validation_step, scores.test_step
    predict_step, figures = _predict_step, _figures
    on_validation_epoch_end, on_test_epoch_end = scores.on_validation_epoch_end, scores.on_test_epoch_end
    on_fit_start, on_test_start, on_train_batch_end = scores.on_start, scores.on_start, end_turns
    sides, configure_optimizers = _sides, adam_for_both_sides

    def forward(self, actin: Tensor) -> Tensor:
        """Actin (batch, 1, y, x) in [-1, 1] -> nuclei (batch, 1, y, x) in [-1, 1]; sides of n 2^levels pixels."""
        images = scores.colours(self, actin).split(len(actin) if self.training else 1)
        return torch.cat([self.generator(image) for image in images]).float().mean(dim=1, keepdim=True)

    def training_step(self, batch: TranslationBatch, batch_idx: int) -> Tensor:
        """One step of the discriminator, then one of the generator."""
        actin, real = scores.begin(self, batch, batch_idx)
        fake = self.generator(actin).float()
        terms: dict[str, Tensor] = {}
        with turn(self, 1, counted=False) as descend:
            pairs = [torch.cat([actin, image], dim=1) for image in (real, fake.detach())]
            logits = [self.discriminator(pair) for pair in pairs]
            terms["discriminator_loss"] = descend(0.5 * discriminator_loss(*logits, game="nonsaturating"))
        with turn(self, 0, counted=True) as descend:
            judged = self.discriminator(torch.cat([actin, fake], dim=1))
            terms["adversarial"] = generator_loss(judged, game="nonsaturating")
            terms["reconstruction"] = mask_weighted_l1(fake, real, batch.nucleus_mask, alpha=1.0, form="text")
            terms["loss"] = descend(terms["adversarial"] + self.hparams["l1_weight"] * terms["reconstruction"])
        return scores.log_terms(self, terms, batch)


class CycleGANTranslation(LightningModule):
    """CycleGAN: two generators, actin to nuclei and back, each against a PatchGAN of its own.

    Args:
        blocks: residual blocks of a generator; 9 from 256 pixels on, 6 for 128.
        width: channels of all networks after their first convolution, 64 as published.
        image_channels, learning_rate, discriminator_learning_rate, betas: as for `Pix2PixTranslation`.
        cycle_weight: of the L1 distance between an image and its way there and back, 10 as published.
        identity_share: weight of what an image of the other side changes, relative to `cycle_weight`; 0.5.
        pool_size: past images from which a discriminator is shown some; 50.
        decay_share, clip_gradient_norm, minimum_area_um2, lpips_weights, fid_weights: as for `Pix2PixTranslation`.
    """

    training_free: bool = False
    needs_find_unused_parameters: bool = True
    automatic_optimization: bool = False
    smoke: Mapping[str, Any] = MappingProxyType({"blocks": 1, "width": 4})

    def __init__(
        self,
        *,
        blocks: int,
        width: int,
        image_channels: int,
        cycle_weight: float,
        identity_share: float,
        pool_size: int,
        learning_rate: float,
        discriminator_learning_rate: float,
        betas: list[float],
        decay_share: float,
        clip_gradient_norm: float | None,
        minimum_area_um2: float,
        lpips_weights: str | None,
        fid_weights: str | None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_turns(self.hparams, ("cycle_weight", "identity_share", "pool_size"))
        kind = {"image_channels": image_channels, "width": width}
        self.generator = ResNetGenerator(**kind, blocks=blocks)
        self.back = ResNetGenerator(**kind, blocks=blocks)
        self.discriminator = PatchDiscriminator(**kind, normalization="instance")
        self.actin_discriminator = PatchDiscriminator(**kind, normalization="instance")
        self.pool, self.actin_pool = ImagePool(pool_size), ImagePool(pool_size)
        scores.set_up(self, ("loss", "discriminator_loss", "adversarial", "cycle", "identity"))

    trainer_fault, data_fault = staticmethod(trainer_fault), staticmethod(_data_fault)
    prediction_summary = staticmethod(scores.prediction_summary)
    validation_step, test_step = scores.validation_step, scores.test_step
    predict_step, figures = _predict_step, _figures
    on_validation_epoch_end, on_test_epoch_end = scores.on_validation_epoch_end, scores.on_test_epoch_end
    on_fit_start, on_test_start, on_train_batch_end = scores.on_start, scores.on_start, end_turns
    configure_optimizers = adam_for_both_sides

    def forward(self, actin: Tensor) -> Tensor:
        """Actin (batch, 1, y, x) in [-1, 1] -> nuclei (batch, 1, y, x) in [-1, 1]; sides of 4 n pixels."""
        return self.generator(scores.colours(self, actin)).float().mean(dim=1, keepdim=True)

    def sides(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of both generators, and of both discriminators."""
        generators, discriminators = (self.generator, self.back), (self.discriminator, self.actin_discriminator)
        return [p for n in generators for p in n.parameters()], [p for n in discriminators for p in n.parameters()]

    def training_step(self, batch: TranslationBatch, batch_idx: int) -> Tensor:
        """One step of both generators, then one of both discriminators."""
        (actin, nucleus), terms = scores.begin(self, batch, batch_idx), {}
        weight = self.hparams["cycle_weight"]
        with turn(self, 0, counted=True) as descend:
            fake, fake_actin = self.generator(actin), self.back(nucleus)
            judged = self.discriminator(fake), self.actin_discriminator(fake_actin)
            terms["adversarial"] = sum(generator_loss(logits, game="least_squares") for logits in judged)
            terms["cycle"] = (self.back(fake) - actin).abs().mean() + (
                self.generator(fake_actin) - nucleus
            ).abs().mean()
            loss = terms["adversarial"] + weight * terms["cycle"]
            if self.hparams["identity_share"]:
                same = (self.generator(nucleus) - nucleus).abs().mean() + (self.back(actin) - actin).abs().mean()
                terms["identity"] = same
                loss = loss + weight * self.hparams["identity_share"] * same
            terms["loss"] = descend(loss)
        shown, shown_actin = self.pool(fake), self.actin_pool(fake_actin)
        with turn(self, 1, counted=False) as descend:
            one = discriminator_loss(self.discriminator(nucleus), self.discriminator(shown), game="least_squares")
            judged = self.actin_discriminator(actin), self.actin_discriminator(shown_actin)
            other = discriminator_loss(*judged, game="least_squares")
            terms["discriminator_loss"] = descend(0.5 * (one + other))
        return scores.log_terms(self, terms, batch)
