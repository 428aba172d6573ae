"""Paper `tfill`: the two optimizers' turns, the losses of each method, what a step counts, and what is refused."""

import copy
import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from datamodules.batches import TranslationBatch
from lightning_modules.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from lightning_modules.losses.translation import mask_weighted_l1
from lightning_modules.tfill import CycleGANTranslation, Pix2PixTranslation, TFillTranslation
from mechanolab.config import RequestError, compose

CLASSES = {
    "tfill_small": TFillTranslation,
    "tfill_pix2pix": Pix2PixTranslation,
    "tfill_cyclegan": CycleGANTranslation,
}
SMALL = {
    "tfill_small": {"width": 2, "layers": 1, "image_size_px": 32, "every_scale": False, "decay_share": 0.0},
    "tfill_pix2pix": {"levels": 5, "width": 2},
    "tfill_cyclegan": {"blocks": 1, "width": 2, "pool_size": 2},
}
SIZE = 32
FLOAT32 = 1e-5


@pytest.fixture(autouse=True)
def _same_start():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def build(name, **changes):
    """The module of a shipped experiment in a small size."""
    numbers = {key: value for key, value in compose(name)["module"].items() if key != "class_path"}
    return CLASSES[name](**{**numbers, **SMALL[name], **changes})


def trainer(**arguments):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return Trainer(accelerator="cpu", **{**quiet, "enable_checkpointing": False, **arguments})


class Batches(tuple):
    """One loader of these batches; a list would be several loaders to Lightning."""

    __slots__ = ()


def cells(count=4, size=SIZE, seed=0):
    """Bright nuclei of 4 pixels' radius; the actin is dark where they are."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask = torch.zeros(count, 1, size, size, dtype=torch.bool)
    for image in mask:
        for _ in range(2):
            centre = torch.randint(5, size - 5, (2,), generator=generator)
            image[0] |= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= 16
    nucleus = torch.where(mask, 0.6, -0.9)
    actin = torch.where(mask, -0.6, 0.2) + 0.05 * torch.randn(mask.shape, generator=generator)
    inside = torch.ones(count, size, size, dtype=torch.bool)
    names = [f"tile{i}" for i in range(count)]
    return TranslationBatch(actin, nucleus, mask, inside, torch.ones(count), names, ["slide0"] * count)


def fit(module, batches, **arguments):
    options = {"max_epochs": 1, "limit_val_batches": 0, **arguments}
    run = trainer(**options)
    run.fit(module, Batches(batches), Batches(batches[:1]))
    return run


# -- what is built ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "sides"),
    [
        ("tfill", TFillTranslation, (3_328_576 + 38_374_912 + 22_475_775, 24_291_873)),
        ("tfill_256", TFillTranslation, (3_328_576 + 38_374_912 + 22_475_783, 19_048_993)),
        ("tfill_pix2pix", Pix2PixTranslation, (54_413_955, 2_768_705)),
        ("tfill_cyclegan", CycleGANTranslation, (2 * 11_378_179, 2 * 2_764_737)),
    ],
)
def test_the_experiments_name_networks_of_the_published_size(name, kind, sides):
    numbers = {key: value for key, value in compose(name)["module"].items() if key != "class_path"}
    module = kind(**numbers)
    assert tuple(sum(parameter.numel() for parameter in side) for side in module.sides()) == sides


def test_the_small_one_differs_by_width_and_layers_alone():
    module = build("tfill_small", width=4, layers=2, image_channels=3)
    assert len(module.generator.transformer.layers) == 2
    assert module.generator.encoder.first.out_channels == 4
    assert module.generator.transformer.layers[0].feed_forward[1].out_channels == 4 * 16 * 4
    assert build("tfill_small", width=32, layers=1).generator.transformer.layers[0].feed_forward[1].out_channels == 2048


@pytest.mark.parametrize("name", CLASSES)
def test_rates_are_those_of_each_paper(name):
    one, other = build(name).configure_optimizers() if name == "tfill_small" else _optimizers(name)
    rates = {"tfill_small": (1e-4, 4e-4), "tfill_pix2pix": (2e-4, 2e-4), "tfill_cyclegan": (2e-4, 2e-4)}[name]
    betas = (0.5, 0.9) if name == "tfill_small" else (0.5, 0.999)
    assert (one.param_groups[0]["lr"], other.param_groups[0]["lr"]) == rates
    assert one.param_groups[0]["betas"] == other.param_groups[0]["betas"] == betas


def _optimizers(name):
    return build(name, decay_share=0.0).configure_optimizers()


# -- turns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_a_step_of_one_side_leaves_the_other_bit_for_bit(name):
    module, seen = build(name, decay_share=0.0), []
    configure = module.configure_optimizers

    def watched():
        optimizers = configure()
        for place, optimizer in enumerate(optimizers):
            before = {}

            def start(*_, before=before):
                before["sides"] = [[p.detach().clone() for p in side] for side in module.sides()]

            def end(*_, before=before, place=place):
                for side, (old, new) in enumerate(zip(before["sides"], module.sides(), strict=True)):
                    same = [torch.equal(a, b) for a, b in zip(old, new, strict=True)]
                    seen.append((place, side, all(same), any(same)))

            optimizer.register_step_pre_hook(start)
            optimizer.register_step_post_hook(end)
        return optimizers

    module.configure_optimizers = watched
    fit(module, [cells()] * 2)
    assert len(seen) == 8  # two batches, two steps, two sides
    for place, side, all_same, _ in seen:
        assert all_same is (place != side)
    assert all(parameter.requires_grad for side in module.sides() for parameter in side)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_the_step_of_the_run_is_the_batch(name):
    module = build(name)
    run = fit(module, [cells()] * 5)
    assert run.global_step == 5
    assert run.fit_loop.epoch_loop.batch_progress.total.processed == 5
    assert fit(build(name), [cells()] * 5, max_steps=3).fit_loop.epoch_loop.batch_progress.total.processed == 3


def test_three_steps_are_those_of_a_bare_loop_bit_for_bit():
    """The published game written out once more, without Lightning and without toggling."""
    batches = [cells(seed=seed) for seed in range(3)]
    module = build("tfill_small", form="text", r1_gamma=2.0, r1_every=2)
    bare = copy.deepcopy(module)
    fit(module, batches)
    generator, discriminator = bare.generator, bare.discriminator
    betas = {"betas": (0.5, 0.9)}
    ours = torch.optim.Adam(generator.parameters(), lr=1e-4, **betas)
    theirs = torch.optim.Adam(discriminator.parameters(), lr=4e-4, **betas)
    for step, batch in enumerate(batches):
        fake = generator(batch.actin)
        logits = discriminator(batch.nucleus), discriminator(fake.detach())
        loss = discriminator_loss(*logits, game="nonsaturating")
        if step % 2 == 0:
            loss = loss + 2.0 * 2 * r1_penalty(discriminator, batch.nucleus)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        l1 = mask_weighted_l1(fake, batch.nucleus, batch.nucleus_mask, alpha=10.0, form="text")
        loss = 10 * l1 + generator_loss(discriminator(fake), game="nonsaturating")
        ours.zero_grad()
        loss.backward()
        ours.step()
    for one, other in zip(module.parameters(), bare.parameters(), strict=True):
        assert torch.equal(one, other)


def test_without_the_adversarial_loss_the_discriminator_is_left_alone():
    module = build("tfill_small", adversarial_weight=0.0)
    before = copy.deepcopy(module.state_dict())
    run = fit(module, [cells()] * 2)
    after = module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("discriminator."))
    assert not all(torch.equal(after[name], before[name]) for name in after if name.startswith("generator."))
    assert run.global_step == 2
    assert run.callback_metrics["train/loss"] == pytest.approx(10 * run.callback_metrics["train/reconstruction"].item())


def test_the_average_of_the_weights_answers_in_evaluation():
    module = build("tfill_small", ema_decay=0.75)
    start = [p.detach().clone() for p in module.generator.parameters()]
    fit(module, [cells()])
    for mean, first, last in zip(module.averaged.parameters(), start, module.generator.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.75 * first + 0.25 * last)
    batch = cells()
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(batch.actin), module.averaged(batch.actin))
        torch.testing.assert_close(module.train()(batch.actin), module.generator(batch.actin))


def test_every_side_is_clipped_by_its_own_norm():
    module, norms = build("tfill_small", clip_gradient_norm=0.01), []
    module.on_before_optimizer_step = lambda optimizer: norms.append(
        torch.stack([p.grad.norm() for group in optimizer.param_groups for p in group["params"]]).norm().item()
    )
    fit(module, [cells()] * 2)
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)


def test_step_sizes_fall_over_the_last_part_of_the_run():
    module, rates = build("tfill_pix2pix"), []
    module.on_train_batch_start = lambda *_: rates.append([o.param_groups[0]["lr"] for o in module.optimizers()])
    fit(module, [cells()] * 2, max_epochs=4)
    expected = [2e-4 * factor for factor in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)]
    for rate in zip(*rates, strict=True):
        assert list(rate) == pytest.approx(expected)


@pytest.mark.parametrize("name", CLASSES)
def test_bf16_trains(name):
    run = fit(build(name), [cells()] * 2, precision="bf16-mixed")
    assert all(math.isfinite(value) for value in run.callback_metrics.values())


# -- what each method computes ----------------------------------------------------------------------------------------


def test_pix2pix_answers_for_each_image_alone_and_shows_its_judge_the_actin():
    module, batch = build("tfill_pix2pix").eval(), cells()
    with torch.no_grad():
        together = module(batch.actin)
        alone = torch.cat([module(one[None]) for one in batch.actin])
    assert torch.equal(together, alone)
    assert not any("running" in name for name in module.generator.state_dict())
    assert module.discriminator.image_channels == 2 * module.generator.image_channels


def test_cyclegans_losses_by_hand():
    """One number for every network: what goes there and back, and what is left alone."""

    class Shifted(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = nn.Parameter(torch.tensor(by))

        def forward(self, image):
            return image + self.by

    class Verdict(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

        def forward(self, image):
            return self.value + 0 * image.mean(dim=(1, 2, 3), keepdim=True)

    module = build("tfill_cyclegan")
    module.generator, module.back = Shifted(0.25), Shifted(0.5)
    module.discriminator, module.actin_discriminator = Verdict(0.75), Verdict(0.25)
    found = fit(module, [cells()]).callback_metrics
    assert found["train/cycle"] == pytest.approx(2 * 0.75, abs=FLOAT32)
    assert found["train/identity"] == pytest.approx(0.25 + 0.5, abs=FLOAT32)
    adversarial = (0.75 - 1) ** 2 + (0.25 - 1) ** 2
    assert found["train/adversarial"] == pytest.approx(adversarial, abs=FLOAT32)
    assert found["train/loss"] == pytest.approx(adversarial + 10 * 1.5 + 5 * 0.75, abs=1e-4)
    judged = 0.5 * ((0.75 - 1) ** 2 + 0.75**2 + (0.25 - 1) ** 2 + 0.25**2)
    assert found["train/discriminator_loss"] == pytest.approx(judged, abs=FLOAT32)


@pytest.mark.parametrize("every_scale", [False, True])
def test_the_loss_is_over_the_last_image_or_over_all_of_the_pyramid(every_scale):
    module, batch = build("tfill_small", every_scale=every_scale, adversarial_weight=0.0), cells()
    with torch.no_grad():
        pyramid = module.generator.pyramid(batch.actin)
    expected = []
    for image in pyramid if every_scale else pyramid[-1:]:
        factor = SIZE // image.shape[-1]
        real, share = (nn.functional.avg_pool2d(p.float(), factor) for p in (batch.nucleus, batch.nucleus_mask))
        expected.append(((1 + 9 * share) * (image - real).abs()).mean().item())
    found = fit(module, [batch]).callback_metrics["train/reconstruction"].item()
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.slow
def test_four_images_are_learned_and_the_metrics_are_those_of_the_predictions(tmp_path):
    module, batch = build("tfill_small", learning_rate=1e-3, width=4), cells()
    losses = []
    module.on_train_batch_start = lambda *_: losses.append(
        mask_weighted_l1(module(batch.actin), batch.nucleus, batch.nucleus_mask, alpha=10.0, form="text").item()
    )
    run = fit(module, [batch] * 30, limit_val_batches=1)
    assert losses[-1] < losses[0] / 2
    tested = trainer().test(module, Batches([batch]), verbose=False)[0]
    prediction = module.eval().predict_step(batch, 0)
    assert tested["test/l1"] == pytest.approx(prediction.l1.mean().item(), rel=1e-4)
    assert tested["test/l1"] == pytest.approx(run.callback_metrics["val/l1"].item(), rel=1e-4)
    generated, real = sum(prediction.nuclei_generated), sum(prediction.nuclei_real)
    assert tested["test/detection_rate"] == pytest.approx(generated / real)
    assert tested["test/f1"] == pytest.approx(2 * sum(prediction.paired_4um) / (generated + real))
    summary = module.prediction_summary([dict(zip(prediction._fields, row, strict=True)) for row in rows(prediction)])
    assert summary["f1"] == pytest.approx(tested["test/f1"])
    assert summary["images"] == 4
    run.save_checkpoint(tmp_path / "last.ckpt")
    restored = TFillTranslation.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True).eval()
    assert torch.equal(restored(batch.actin), module(batch.actin))


def rows(prediction):
    return [[entry[i] for entry in prediction] for i in range(len(prediction.l1))]


@pytest.mark.slow
def test_images_without_truth_are_predicted_and_not_scored():
    module, batch = build("tfill_small").eval(), cells()
    blind = batch._replace(nucleus=torch.full_like(batch.nucleus, torch.nan))
    with torch.no_grad():
        prediction = module.predict_step(blind, 0)
    assert prediction.nucleus.isfinite().all()
    assert prediction.l1.isnan().all()
    assert all(math.isnan(value) for value in prediction.nuclei_real)
    assert set(module.figures(blind)) == {"nuclei"}
    summary = module.prediction_summary([dict(zip(prediction._fields, row, strict=True)) for row in rows(prediction)])
    assert summary["images_with_real_nuclei"] == 0
    assert "f1" not in summary


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tfill_small", {"form": "paper"}, "form must be one of text, code, got 'paper'"),
        ("tfill_small", {"alpha": -1.0}, "alpha must not be negative, got -1.0"),
        ("tfill_small", {"r1_gamma": math.nan}, "r1_gamma must not be negative, got nan"),
        ("tfill_small", {"r1_every": 0}, "r1_every must be at least 1, got 0"),
        ("tfill_small", {"ema_decay": 1.0}, r"ema_decay must be null or lie in \[0, 1\), got 1.0"),
        ("tfill_small", {"image_size_px": 40}, "image_size_px must be a multiple of 16 from 16 to 512, got 40"),
        ("tfill_small", {"image_size_px": 144}, "image_size_px must be a multiple of 32 from 16 to 512, got 144"),
        ("tfill_small", {"betas": [0.5]}, r"betas must be two numbers in \[0, 1\), got \[0.5\]"),
        ("tfill_small", {"minimum_area_um2": 0.0}, "minimum_area_um2 must be positive, got 0.0"),
        ("tfill_pix2pix", {"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ("tfill_pix2pix", {"levels": 4}, "levels must be at least 5, got 4"),
        ("tfill_pix2pix", {"decay_share": 1.5}, r"decay_share must lie in \[0, 1\], got 1.5"),
        ("tfill_cyclegan", {"cycle_weight": -1.0}, "cycle_weight must not be negative, got -1.0"),
        ("tfill_cyclegan", {"clip_gradient_norm": 0.0}, "clip_gradient_norm must be positive, got 0.0"),
        ("tfill_cyclegan", {"pool_size": -1}, "pool_size must not be negative, got -1"),
    ],
)
def test_bad_arguments_are_refused_by_name(name, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build(name, **changes)


@pytest.mark.parametrize("name", [*CLASSES, "tfill"])
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.gradient_clip_val=1.0", "trainer.gradient_clip_val must be null, .*: set module.clip_gradient_norm"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches must be 1, .*: raise data.batch_size"),
        ("trainer.precision=16-mixed", "trainer.precision must be 32-true or bf16-mixed, .* one loss scaler"),
        ("trainer.precision=bf16-true", "trainer.precision must be 32-true or bf16-mixed, .* in single precision"),
        ("trainer.precision=64-true", "trainer.precision must be 32-true or bf16-mixed, .* in single precision"),
        ("trainer.strategy=fsdp", "trainer.strategy must be auto or ddp, not fsdp, because two optimizers take turns"),
        ("trainer.strategy=ddp_spawn", "trainer.strategy must be auto or ddp, not ddp_spawn, because two optimizers"),
    ],
)
def test_options_that_two_optimizers_rule_out_are_refused_when_composing(name, word, message):
    with pytest.raises(RequestError, match=f"^{message}"):
        compose(name, overrides=[word])


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("tfill", "data.crop_px=256", "data.crop_px must be module.image_size_px = 384, got 256: set both alike"),
        ("tfill_pix2pix", "data.crop_px=128", "data.crop_px must be a multiple of 256, got 128: .* module.levels"),
        ("tfill_cyclegan", "data.crop_px=20", "data.crop_px must be at least 24, .* got 20: raise it"),
        ("tfill_cyclegan", "data.crop_px=130", "data.crop_px must be a multiple of 4, got 130: change it"),
    ],
)
def test_tiles_that_a_network_cannot_take_are_refused_when_composing(name, word, message):
    with pytest.raises(RequestError, match=f"^{message}"):
        compose(name, overrides=[word])


@pytest.mark.parametrize("word", ["precision=bf16-mixed", "precision=auto", "strategy=ddp", "max_steps=7"])
def test_what_works_is_let_through(word):
    compose("tfill", overrides=[f"trainer.{word}"])
