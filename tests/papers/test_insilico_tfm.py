"""Paper `insilico_tfm`: published training, draws that are each sample's own, scores, checkpoints, constants."""

import copy
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from datamodules.batches import ForceImageBatch
from lightning_modules import insilico_tfm
from lightning_modules.insilico_tfm import BayesianTractionRegression, ConstantForce, ZeroForce
from lightning_modules.metrics.lognormal_maps import force_prediction
from lightning_modules.metrics.lognormal_scores import ForceDistribution
from mechanolab.config import compose

CLASSES = {
    "insilico_tfm": BayesianTractionRegression,
    "insilico_tfm_small": BayesianTractionRegression,
    "insilico_tfm_deterministic": BayesianTractionRegression,
    "insilico_tfm_median": ConstantForce,
    "insilico_tfm_cell_mean": ConstantForce,
    "insilico_tfm_zero": ZeroForce,
}
TINY = {"blocks": 2, "layers": 2, "growth": 4, "initial_channels": 6, "dropout_rate": 0.2}
SIZE = 16
FLOAT32 = 1e-4  # sums in another order, through some ten layers


@pytest.fixture(autouse=True)
def _same_start():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def build(name, **changes):
    """The module of a shipped experiment; the network in a small size."""
    numbers = {key: value for key, value in compose(name)["module"].items() if key != "class_path"}
    small = TINY if CLASSES[name] is BayesianTractionRegression else {}
    return CLASSES[name](**{**numbers, **small, **changes})


def trainer(**arguments):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return Trainer(accelerator="cpu", **{**quiet, "enable_checkpointing": False, **arguments})


class Batches(tuple):
    """One loader of these batches; a list would be several loaders to Lightning."""

    __slots__ = ()


def batch_of(count=4, size=SIZE, seed=0, first=0):
    """Cells whose force follows from their brightness, half a frame of background."""
    generator = torch.Generator().manual_seed(seed)
    image, log_force = torch.zeros(2, count, 1, size, size)
    rows = slice(size // 4, None)
    image[:, :, rows] = 5 + torch.rand(count, 1, size - size // 4, size, generator=generator)
    noise = 0.3 * torch.randn(log_force[:, :, rows].shape, generator=generator)
    log_force[:, :, rows] = (2 * image[:, :, rows] - 9 + noise).clamp(min=0)
    numbers = (torch.full((count,), 0.2), 30.0 * torch.arange(first, first + count))
    names = [f"cell_{first + i:03d}" for i in range(count)]
    return ForceImageBatch(image, log_force, *numbers, names, ["cell"] * count)


def shaken(module):
    """The module with its normalisations and heads away from their start, so that every layer counts."""
    for layer in module.network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    nn.init.normal_(module.network.sigma.weight, std=0.05)
    return module.eval()


# -- published training -----------------------------------------------------------------------------------------------


def test_the_experiment_is_the_published_network_and_training():
    config = compose("insilico_tfm")
    module = BayesianTractionRegression(**{k: v for k, v in config["module"].items() if k != "class_path"})
    assert sum(parameter.numel() for parameter in module.parameters()) == 4_324_946
    penalised, others = module.configure_optimizers().param_groups
    assert sum(weight.numel() for weight in penalised["params"]) == 757_936
    assert (penalised["weight_decay"], others["weight_decay"]) == (2e-4, 0)
    assert len(penalised["params"]) == 7
    assert all(group["lr"] == 1e-3 for group in (penalised, others))
    assert len({id(p) for group in (penalised, others) for p in group["params"]}) == len(list(module.parameters()))
    assert (config["data"]["batch_size"], config["data"]["steps_per_epoch"], config["data"]["crop_px"]) == (8, 50, 256)
    assert (config["trainer"]["max_epochs"], config["trainer"]["gradient_clip_val"]) == (200, 1.0)


def test_the_loss_is_equation_1_by_hand():
    module, batch = build("insilico_tfm", sigma_floor=0.0, dropout_rate=0.0), batch_of(2)
    with torch.no_grad():
        mu, sigma = module.train()(batch.image).double().unbind(dim=1)
    target = batch.log_traction[:, 0].double()
    expected = 0.5 * ((target - mu).square() / sigma.square() + sigma.square().log()).mean()
    fit = trainer(max_epochs=1)
    fit.fit(module, Batches([batch]), Batches([batch]))
    metrics = {name: value.item() for name, value in fit.callback_metrics.items()}
    assert metrics["train/loss"] == pytest.approx(expected.item(), rel=1e-4)
    share = (target > 0).double().mean().item()
    apart = share * metrics["train/nll_foreground"] + (1 - share) * metrics["train/nll_background"]
    assert apart == pytest.approx(metrics["train/loss"], rel=1e-4)
    assert metrics["train/nll_foreground"] != pytest.approx(metrics["train/nll_background"], rel=0.01)


def test_beta_1_pulls_on_mu_as_squared_errors_do_and_reports_equation_1():
    changes = {"sigma_floor": 0.5, "dropout_rate": 0.0, "beta": 1.0}
    module, batch = build("insilico_tfm", **changes), batch_of(2)
    other = copy.deepcopy(module)
    mu, sigma = module.train()(batch.image).unbind(dim=1)
    error = (batch.log_traction[:, 0] - mu).square()
    (error / 2).mean().backward()
    expected = module.network.mu.weight.grad
    seen = []
    other.on_after_backward = lambda: seen.append(other.network.mu.weight.grad.clone())
    fit = trainer(max_epochs=1)
    fit.fit(other, Batches([batch]), Batches([batch]))
    torch.testing.assert_close(seen[0], expected, rtol=1e-3, atol=1e-6)
    variance = sigma.square() + 0.25
    equation_1 = 0.5 * (error / variance + variance.log()).mean()
    for name in ("train/loss", "train/loss_step"):
        assert fit.callback_metrics[name].item() == pytest.approx(equation_1.item(), rel=1e-4)


def test_a_single_pass_goes_through_the_compiler_where_it_is_asked_for(monkeypatch):
    called = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda image: called.append(image) or call(image))
    image = batch_of(1).image
    plain, compiled = build("insilico_tfm").eval(), build("insilico_tfm", compile_network=True).eval()
    compiled.load_state_dict(plain.state_dict())
    assert torch.equal(compiled(image), plain(image))
    assert len(called) == 1


def test_the_gradient_is_clipped_by_its_global_norm():
    module = build("insilico_tfm")
    original = module.configure_gradient_clipping

    def clipping(*arguments, **options):
        before.append(global_norm(module))
        original(*arguments, **options)
        after.append(global_norm(module))

    before, after = [], []
    module.configure_gradient_clipping = clipping
    batch = batch_of()._replace(log_traction=50 * batch_of().log_traction)
    clip = compose("insilico_tfm")["trainer"]["gradient_clip_val"]
    trainer(max_epochs=1, gradient_clip_val=clip).fit(module, Batches([batch]), Batches([batch_of()]))
    assert before[0] > 10
    assert after == [pytest.approx(1.0, rel=1e-4)]


def global_norm(module):
    return math.sqrt(sum(p.grad.square().sum().item() for p in module.parameters() if p.grad is not None))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["insilico_tfm_small", "insilico_tfm_deterministic"])
def test_four_frames_are_learned(name):
    module, losses = build(name, learning_rate=0.02), []
    module.on_train_batch_end = lambda outputs, *_: losses.append(outputs["loss"].item())
    batch = Batches([batch_of()])
    trainer(max_epochs=1, gradient_clip_val=1.0).fit(module, Batches([*batch] * 40), batch)
    assert np.mean(losses[-5:]) < losses[0] - 0.5 * abs(losses[0])


# -- draws ------------------------------------------------------------------------------------------------------------


def test_a_sample_gets_the_same_draws_in_every_batch_and_all_at_once():
    module, batch = shaken(build("insilico_tfm", draws=5)), batch_of(3)
    reference = module.predicted(batch, 5).mu
    alone = batch_of(3)
    alone = ForceImageBatch(*(part[2:] for part in alone))
    torch.testing.assert_close(module.predicted(alone, 5).mu, reference[:, 2:], atol=FLOAT32, rtol=FLOAT32)
    together = shaken_copy(module, draws_at_once=2)
    torch.testing.assert_close(together.predicted(batch, 5).mu, reference, atol=FLOAT32, rtol=FLOAT32)
    torch.manual_seed(99)
    assert torch.equal(module.predicted(batch, 5).mu, reference)
    other = shaken_copy(module, draw_seed=1).predicted(batch, 5).mu
    assert (other - reference).abs().max() > 0.01
    renamed = batch._replace(sample_id=["a", "b", "c"])
    assert (module.predicted(renamed, 5).mu - reference).abs().max() > 0.01


def shaken_copy(module, **changes):
    other = BayesianTractionRegression(**{**module.hparams, **changes})
    other.load_state_dict(module.state_dict())
    return other.eval()


def test_sampling_leaves_every_state_and_the_global_stream_alone():
    module, batch = shaken(build("insilico_tfm")), batch_of(2)
    before, stream = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    module.predict_step(batch, 0)
    module.figures(batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize(("rate", "draws", "disagree"), [(0.2, 4, True), (0.0, 4, False), (0.2, None, False)])
def test_only_draws_with_dropout_disagree(rate, draws, disagree):
    module = shaken(build("insilico_tfm", dropout_rate=rate, draws=draws))
    prediction = module.predict_step(batch_of(1), 0)
    assert bool((prediction.epistemic_sd_pa > 0).all()) is disagree
    assert bool((prediction.epistemic_sd_pa == 0).all()) is not disagree
    assert (prediction.aleatoric_sd_pa > 0).all()
    assert (prediction.lower_pa < prediction.median_pa).all()
    assert (prediction.median_pa < prediction.upper_pa).all()


@pytest.mark.parametrize("shape", [(16, 16), (13, 22), (1, 5)])
def test_images_of_any_size_are_predicted_on(shape):
    module = shaken(build("insilico_tfm", draws=2))
    unknown = torch.full((1, 1, *shape), torch.nan)
    image = 5 + torch.rand(1, 1, *shape)
    prediction = module.predict_step(
        ForceImageBatch(image, unknown, torch.tensor([0.2]), torch.tensor([torch.nan]), ["own"], ["own"]), 0
    )
    for name in ("median_pa", "lower_pa", "entropy_bits"):
        assert getattr(prediction, name).shape == (1, *shape)
    assert prediction.mae_median_pa.isnan().all()
    assert prediction.coverage_95_foreground.isnan().all()


def test_tiles_agree_with_the_whole_image(monkeypatch):
    module = shaken(build("insilico_tfm", draws=None))
    image = 5 + torch.rand(1, 1, 70, 55)
    whole = module(image)
    monkeypatch.setattr(insilico_tfm, "WHOLE_PX", 32)
    monkeypatch.setattr(insilico_tfm, "TILE_PX", 24)
    monkeypatch.setattr(insilico_tfm, "HALO_PX", 32)  # three times layers * 2**blocks is all that this network sees
    torch.testing.assert_close(module(image), whole, atol=FLOAT32, rtol=FLOAT32)
    monkeypatch.setattr(insilico_tfm, "HALO_PX", 0)
    assert (module(image) - whole).abs().max() > 100 * FLOAT32


def test_bfloat16_predicts_nearly_the_same():
    module, batch = shaken(build("insilico_tfm", draws=None)), batch_of(2)
    expected = module(batch.image)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = module(batch.image)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, expected, atol=0.05 * expected.std().item(), rtol=0.05)
    halved = [part.bfloat16() if isinstance(part, torch.Tensor) else part for part in batch]
    whole = copy.deepcopy(module).bfloat16()
    assert whole.predict_step(ForceImageBatch(*halved), 0).median_pa.dtype == torch.float32
    assert "uncertainty" in whole.figures(ForceImageBatch(*halved))


# -- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_what_is_logged_is_what_is_predicted(name):
    changes = {"draws": 3} if CLASSES[name] is BayesianTractionRegression and "deterministic" not in name else {}
    module, batches = build(name, **changes), Batches([batch_of(3, seed=1), batch_of(1, seed=2, first=3)])
    if not module.training_free:
        fit = trainer(max_epochs=1)
        fit.fit(module, batches, batches)
        assert compose(name)["monitor"]["metric"] in fit.callback_metrics
    tested = trainer().test(module, batches, verbose=False)[0]
    module.eval()
    with torch.no_grad():
        predicted = [module.predict_step(batch, 0) for batch in batches]
    for quantity in ("mae_median_pa", "mae_mean_pa"):
        values = torch.cat([getattr(prediction, quantity) for prediction in predicted])
        assert tested[f"test/{quantity}"] == pytest.approx(values.mean().item(), rel=1e-3)
        assert tested[f"test/{quantity}_sd"] == pytest.approx(values.std(correction=0).item(), rel=0.01, abs=1e-3)
    truth = torch.cat([batch.log_traction[:, 0] for batch in batches]).exp()
    median, inside = torch.cat([prediction.median_pa for prediction in predicted]), truth >= 5
    expected = (median - truth).abs()[inside].mean().item()
    assert tested["test/mae_median_foreground_pa"] == pytest.approx(expected, rel=1e-3)
    if predicted[0].lower_pa is None:
        assert tested["test/crps_foreground_pa"] == pytest.approx(tested["test/mae_mean_foreground_pa"], rel=1e-3)
        assert not any("coverage" in metric for metric in tested)
    else:
        ends = [torch.cat([getattr(p, end) for p in predicted])[inside] for end in ("lower_pa", "upper_pa")]
        covered = ((truth[inside] >= ends[0]) & (truth[inside] <= ends[1])).float().mean().item()
        assert tested["test/coverage_95_foreground"] == pytest.approx(covered, abs=2 / inside.sum().item())
        assert tested["test/sharpness_95_foreground_pa"] == pytest.approx((ends[1] - ends[0]).mean().item(), rel=1e-3)


def test_a_true_distribution_is_calibrated_and_a_too_narrow_one_is_not():
    """Draw ln F from the very normal distribution that is predicted."""
    module = build("insilico_tfm")
    scores = {}
    for shrink in (1.0, 0.5):
        generator = torch.Generator().manual_seed(3)
        log_force = 4 + 0.5 * torch.randn(4, 1, 64, 64, generator=generator)
        batch = batch_of(4, size=64)._replace(log_traction=log_force)
        answer = torch.stack([torch.full((4, 64, 64), 4.0), torch.full((4, 64, 64), 0.5 * shrink)], dim=1)
        module.forward = lambda image, answer=answer: answer
        module.hparams["draws"] = None
        scores[shrink] = trainer().test(module, Batches([batch]), verbose=False)[0]
    for percent in (50, 68, 90, 95):
        assert scores[1.0][f"test/coverage_{percent}_foreground"] == pytest.approx(percent / 100, abs=0.015)
    assert scores[0.5]["test/coverage_95_foreground"] == pytest.approx(math.erf(0.98 / math.sqrt(2)), abs=0.015)
    assert scores[1.0]["test/calibration_error_foreground"] < 0.01 < scores[0.5]["test/calibration_error_foreground"]
    assert scores[1.0]["test/crps_foreground_pa"] < scores[0.5]["test/crps_foreground_pa"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["insilico_tfm", "insilico_tfm_zero"])
def test_curves_over_time_are_of_all_frames_of_a_stage_however_few_are_drawn(name, monkeypatch):
    monkeypatch.setattr(insilico_tfm, "FIGURE_FRAMES", 2)
    module = build(name, draws=2) if name == "insilico_tfm" else build(name)
    module.training_free or shaken(module)
    batches = Batches([batch_of(3), batch_of(3, first=3)])
    for run in (trainer().test, trainer().predict):
        run(module, batches)
        figures = module.figures(batches[0]._replace(time_s=torch.tensor([0.0, 4290.0, 9000.0])))
        assert figures["uncertainty"].texts[0].get_text() == "cell_001, 4290 s"  # nearest to the paper's, not spread
        errors = figures["error"].axes[0].lines
        np.testing.assert_array_equal(errors[0].get_xdata(), 30 * np.arange(6))
        with torch.no_grad():
            expected = torch.cat([module.eval().predict_step(batch, 0).mae_mean_pa for batch in batches])
        np.testing.assert_allclose(errors[0].get_ydata(), expected, rtol=1e-4)
        assert ("pixel" in figures) is not module.training_free
        if "pixel" in figures:
            np.testing.assert_array_equal(figures["pixel"].axes[1].lines[0].get_xdata(), 30 * np.arange(6))


def test_the_total_force_is_of_what_pulls_not_of_the_floor_of_the_logarithm():
    batch = batch_of(2)
    assert build("insilico_tfm_zero").predict_step(batch, 0).total_force_nn.tolist() == [0, 0]
    log_force = torch.zeros(1, 20, 30)
    log_force[0, 3:7, 5:9] = math.log(50.0)
    found = force_prediction(
        ForceDistribution(log_force[None], None), log_force, pixel_size_um=torch.tensor([0.5]), time_s=torch.zeros(1)
    )
    assert found.total_force_nn.item() == pytest.approx(16 * 0.25 * 50 * 1e-3, rel=1e-5)


def test_frames_without_truth_take_no_part():
    module, batch = shaken(build("insilico_tfm", draws=2)), batch_of(3)
    log_traction = batch.log_traction.clone()
    log_traction[1] = torch.nan
    known = ForceImageBatch(*([part[0], part[2]] if isinstance(part, list) else part[[0, 2]] for part in batch))
    with_unknown = trainer().test(module, Batches([batch._replace(log_traction=log_traction)]), verbose=False)[0]
    assert with_unknown == pytest.approx(trainer().test(module, Batches([known]), verbose=False)[0], rel=1e-4)


def test_constants_are_those_of_the_training_frames():
    batch = batch_of(4, seed=5)
    force, cell = batch.log_traction.double().exp(), batch.image >= math.log(100)
    for name, expected in (
        ("insilico_tfm_median", force.median().item()),
        ("insilico_tfm_cell_mean", force[cell].mean().item()),
    ):
        module = build(name)
        trainer(max_epochs=1).fit(module, Batches([batch]), Batches([batch]))
        assert module.log_force().exp().item() == pytest.approx(expected, rel=2e-3)
    prediction = module.predict_step(batch, 0).median_pa
    torch.testing.assert_close(prediction > 1, cell[:, 0])


@pytest.mark.parametrize("name", [name for name, kind in CLASSES.items() if not kind.training_free])
def test_a_checkpoint_alone_gives_the_same_answers(name, tmp_path):
    module, batch = build(name), batch_of(2)
    fit = trainer(max_epochs=2)
    fit.fit(module, Batches([batch]), Batches([batch]))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    restored = type(module).load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert restored.hparams == module.hparams
    answers = [one.eval().predict_step(batch, 0).median_pa for one in (restored, module)]
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("insilico_tfm", {"loss": "l1"}, "loss must be one of log_normal, squared_error, got 'l1'"),
        ("insilico_tfm", {"draws": 0}, "draws must be at least 1, got 0"),
        ("insilico_tfm", {"validation_draws": 0}, "validation_draws must be at least 1, got 0"),
        ("insilico_tfm", {"draws_at_once": 0}, "draws_at_once must be at least 1, got 0"),
        ("insilico_tfm", {"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ("insilico_tfm", {"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ("insilico_tfm", {"beta": 1.5}, r"beta must lie in \[0, 1\], got 1.5"),
        ("insilico_tfm", {"sigma_floor": math.nan}, "sigma_floor must be at least 0, got nan"),
        ("insilico_tfm", {"dropout_rate": 1.0}, "dropout_rate must lie in"),
        ("insilico_tfm_deterministic", {"draws": 4}, "draws and validation_draws must be null for the squared_error"),
        ("insilico_tfm_median", {"statistic": "mode"}, "statistic must be one of median, mean, got 'mode'"),
        ("insilico_tfm_median", {"cell_grey": 0.0}, "cell_grey must be at least 1, got 0.0"),
    ],
)
def test_bad_arguments_are_refused_by_name(name, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build(name, **changes)
