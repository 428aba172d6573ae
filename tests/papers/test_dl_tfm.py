"""Paper `dl_tfm`: units, losses, learning, checkpoints, and what elasticity demands of every method."""

import copy
import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from datamodules.batches import TractionBatch
from datamodules.simulators.dl_tfm import Parameters, simulate_group
from lightning_modules.dl_tfm import (
    FourierTractionCytometry,
    PhysicsInformedRegression,
    SparseTractionCytometry,
    TractionRegression,
)
from mechanolab.config import compose
from physics.half_space import displacement_from_traction
from physics.vector_fields import rotate

CLASSES = {
    "dl_tfm": TractionRegression,
    "dl_tfm_symmetric": TractionRegression,
    "dl_tfm_kratz": TractionRegression,
    "dl_tfm_ours": PhysicsInformedRegression,
    "dl_tfm_unet": PhysicsInformedRegression,
    "dl_tfm_fttc": FourierTractionCytometry,
    "dl_tfm_sparse": SparseTractionCytometry,
}
TRAINED = [name for name, kind in CLASSES.items() if not kind.training_free]
UNTRAINED = [name for name in CLASSES if name not in TRAINED]
MODULUS_PA, POISSON_RATIO, PIXEL_UM = 10670.0, 0.45, 1.925
SIZE = 16
FLOAT32 = 1e-4  # relative to the largest traction: a network of twenty layers in single precision
SOLVER = 2e-3  # of the sparse solver: 40 steps in single precision, which choose their own sparsity


@pytest.fixture(autouse=True)
def _same_start():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def build(name, **changes):
    """The module of a shipped experiment; the networks of ours in a small size."""
    numbers = {key: value for key, value in compose(name)["module"].items() if key != "class_path"}
    small = {"width": 4, "depth": 2} if CLASSES[name] is PhysicsInformedRegression else {}
    return CLASSES[name](**{**numbers, **small, **changes})


def trainer(**arguments):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return Trainer(accelerator="cpu", **{**quiet, "enable_checkpointing": False, **arguments})


class Batches(tuple):
    """One loader of these batches; a list would be several loaders to Lightning."""

    __slots__ = ()


def batch_of(displacement_px, traction_pa, mask=None, modulus_pa=MODULUS_PA, published=True):
    count, size = len(displacement_px), displacement_px.shape[-1]
    mask = torch.ones(count, size, size, dtype=torch.bool) if mask is None else mask
    numbers = [torch.full((count,), value) for value in (modulus_pa, POISSON_RATIO, PIXEL_UM)]
    codes = [*[torch.full((count,), int(published))] * 2, torch.full((count,), torch.inf)]
    names = [f"cell{number:02d}_000" for number in range(count)]
    fields = (displacement_px.float(), traction_pa.float(), mask)
    return TractionBatch(*fields, *numbers, *codes, names, [n[:6] for n in names])


def displaced_px(traction_pa, *, modulus_pa=MODULUS_PA, **options):
    """Displacement in pixels of a traction in Pa, by the operator that made the published data."""
    given = {"centre_element": "published", "reach": "published", **options}
    substrate = {"pixel_size_um": 1.0, "youngs_modulus_pa": modulus_pa, "poisson_ratio": POISSON_RATIO}
    return displacement_from_traction(traction_pa, **substrate, **given)


def pulling_batch(count=4, size=SIZE, seed=0):
    """A few balanced pulls in each field."""
    generator = torch.Generator().manual_seed(seed)
    traction = torch.zeros(count, 2, size, size)
    mask = torch.zeros(count, size, size, dtype=torch.bool)
    mask[:, 3:-3, 3:-3] = True
    for field in traction:
        for _ in range(2):
            pull = 2000 * torch.randn(2, generator=generator)
            for sign in (1, -1):
                x, y = torch.randint(4, size - 4, (2,), generator=generator).tolist()
                field[:, y, x] += sign * pull
    return batch_of(displaced_px(traction), traction, mask)


def cells_batch(noise_px=0.0, count=3):
    """Simulated cells of the published grid."""
    cells = [simulate_group(0, group, 1, Parameters())[0].fields for group in range(count)]
    displacement, traction, mask = (
        torch.stack([torch.from_numpy(cell[name]) for cell in cells])
        for name in ("displacement_um", "traction_pa", "cell_mask")
    )
    noise = torch.randn(displacement.shape, generator=torch.Generator().manual_seed(0)) * noise_px / math.sqrt(2)
    return batch_of(displacement / PIXEL_UM + noise, traction, mask[:, 0] > 0)


def answer(module, batch):
    """Traction in Pa as it is predicted."""
    module.eval()
    with torch.no_grad():
        return module.predict_step(batch, 0).traction_pa


def close(one, other, tolerance):
    assert (one - other).abs().max() <= tolerance * other.abs().max()


class Constant(nn.Module):
    """Answers every field with one number."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, displacement):
        return self.value.expand_as(displacement)


# -- numbers of the papers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"), [("dl_tfm", 4_025_892), ("dl_tfm_symmetric", 5_649_924), ("dl_tfm_kratz", 223_972)]
)
def test_the_experiments_name_networks_of_the_published_size(name, parameters):
    assert sum(parameter.numel() for parameter in build(name).parameters()) == parameters


@pytest.mark.parametrize(("size", "modulus_pa"), [(104, 10670.0), (160, 10670.0), (256, 2500.0)])
def test_the_published_units_are_stress_on_a_substrate_of_ten(size, modulus_pa):
    """T = net(u) E/10 S/104, main/predictTrac.m of the authors."""
    module = build("dl_tfm")
    module.network = Constant(3.0)
    traction = module(torch.zeros(2, 2, size, size), torch.full((2,), modulus_pa))
    torch.testing.assert_close(traction, torch.full((2, 2, size, size), 3.0 * modulus_pa / 10 * size / 104))


def test_the_published_loss_by_hand():
    """Half the squared error summed over pixels and components, in the network's units, mean over the batch."""
    module, batch = build("dl_tfm"), pulling_batch(count=2)
    module.network = Constant(0.25)
    loss, traction = module.loss_and_traction(batch)
    units = batch.traction_pa * 10 / MODULUS_PA * 104 / SIZE
    assert loss.item() == pytest.approx((0.5 * (0.25 - units).square().sum(dim=(1, 2, 3))).mean().item(), rel=1e-5)
    assert traction[0, 0, 0, 0].item() == pytest.approx(0.25 * MODULUS_PA / 10 * SIZE / 104, rel=1e-5)


def test_our_loss_by_hand():
    """An untrained unrolled network answers nothing, which is an error of 1 for each of its estimates."""
    batch = pulling_batch()
    loss, traction = build("dl_tfm_ours", steps=2, step_weight=0.25, vary_operator=False).loss_and_traction(batch)
    assert loss.item() == pytest.approx(1 + 2 * 0.25, rel=1e-5)
    assert traction.abs().max() == 0
    module = build("dl_tfm_unet")
    loss, traction = module.loss_and_traction(batch)
    ratios = [(t - t0).norm() / t0.norm() for t, t0 in zip(traction, batch.traction_pa, strict=True)]
    assert loss.item() == pytest.approx(torch.stack(ratios).mean().item(), rel=1e-5)


def test_the_learning_rate_falls_as_in_matlab():
    module = build("dl_tfm")
    module.network = nn.Conv2d(2, 2, 1)
    rates = []
    module.on_train_epoch_start = lambda: rates.append(module.optimizers().param_groups[0]["lr"])
    batches = Batches([pulling_batch(count=1)])
    trainer(max_epochs=21).fit(module, batches, batches)
    assert rates == pytest.approx([6e-4 * 10 ** (-0.1 * (epoch // 10)) for epoch in range(21)], rel=1e-4)


def test_decay_is_on_weights_and_momentum_is_matlabs():
    (optimizer,), _ = build("dl_tfm").configure_optimizers()
    for group in optimizer.param_groups:
        assert group["momentum"] == 0.9
        for parameter in group["params"]:
            assert group["weight_decay"] == (5e-4 if parameter.ndim > 1 else 0)


def one_step(module, batch):
    """Gradients before a training step, and how far it moved each parameter, by name."""
    reference = copy.deepcopy(module).train()
    reference.loss_and_traction(batch)[0].backward()
    gradients = {name: parameter.grad.clone() for name, parameter in reference.named_parameters()}
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    trainer(max_steps=1).fit(module, Batches([batch]), Batches([batch]))
    return gradients, {name: parameter.detach() - before[name] for name, parameter in module.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("clip", [1.0, None])
def test_a_training_step_clips_each_tensor_by_its_own_norm(clip):
    module = build("dl_tfm", momentum=0.0, weight_decay=0.0, learning_rate=0.1, clip_each_tensor=clip)
    for layer in module.network.modules():  # as narrow as published, some layers get no gradient worth the name
        if isinstance(layer, nn.ConvTranspose2d) or getattr(layer, "weight", torch.zeros(1)).ndim == 5:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    gradients, steps = one_step(module, pulling_batch())
    norms = {name: gradient.norm().item() for name, gradient in gradients.items()}
    assert min(norms.values()) < 1 < max(norms.values())
    for name, gradient in gradients.items():
        shrink = 1.0 if clip is None else min(1.0, clip / norms[name])
        torch.testing.assert_close(steps[name], -0.1 * shrink * gradient, rtol=1e-3, atol=1e-4 * 0.1 * shrink)


def test_a_step_of_adagrad_is_blind_to_the_scale_of_the_loss():
    """Why the summed loss serves where Kratz et al. train with a mean."""
    batch, moved = pulling_batch(), []
    for factor in (1.0, 1 / (2 * SIZE * SIZE)):
        with torch.random.fork_rng(devices=[]):
            module = build("dl_tfm_kratz")
            module.network.dropout = 0.0
            optimizer = module.configure_optimizers()
            module.eval()
            start = [parameter.detach().clone() for parameter in module.parameters()]
            for _ in range(3):
                optimizer.zero_grad()
                (factor * module.loss_and_traction(batch)[0]).backward()
                optimizer.step()
            moved.append([p.detach() - s for p, s in zip(module.parameters(), start, strict=True)])
    assert isinstance(optimizer, torch.optim.Adagrad)
    assert any(step.abs().max() > 5e-3 for step in moved[0])
    alike = [one.isclose(other, rtol=0.01, atol=1e-5).flatten() for one, other in zip(*moved, strict=True)]
    assert torch.cat(alike).float().mean() > 0.99  # rounding decides the sign of a gradient of nearly 0


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dl_tfm", {"network": "unet"}, "network must be one of tracnet_faithful, tracnet_symmetric, kratz_unet, got"),
        ("dl_tfm", {"optimizer": "adam"}, "optimizer must be one of sgdm, adagrad, got 'adam'"),
        ("dl_tfm", {"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ("dl_tfm", {"clip_each_tensor": -1.0}, "clip_each_tensor must be positive, got -1.0"),
        ("dl_tfm", {"decay_epochs": 0}, "decay_epochs must be positive, got 0"),
        ("dl_tfm_ours", {"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ("dl_tfm_ours", {"step_weight": 1.5}, r"step_weight must lie in \[0, 1\], got 1.5"),
        ("dl_tfm_ours", {"warm_up_share": -0.1}, r"warm_up_share must lie in \[0, 1\], got -0.1"),
        ("dl_tfm_ours", {"steps": -1}, "steps must be at least 0, got -1"),
        ("dl_tfm_fttc", {"cutoff_percentile": 101.0}, r"cutoff_percentile must lie in \[0, 100\], got 101.0"),
        ("dl_tfm_fttc", {"frame_border_px": -1}, r"frame_border_px must lie in \[0, 1e\+09\], got -1"),
        ("dl_tfm_fttc", {"transfer_function": [0.5, 0.5]}, "transfer_function must be a real kernel"),
        ("dl_tfm_sparse", {"transfer_function": [0.1, 0.5, 0.3]}, "transfer_function must be equal to itself"),
        ("dl_tfm", {"weight_decay": -1.0}, r"weight_decay must lie in \[0, 1e\+09\], got -1.0"),
        ("dl_tfm_ours", {"poisson_ratio": 0.7}, r"poisson_ratio must lie in \(0, 0.5\], got 0.7"),
        ("dl_tfm_unet", {"vary_operator": True}, "vary_operator must be false for the plain U-Net"),
        ("dl_tfm_fttc", {"centre_element": "mean"}, "centre_element must be one of exact, published, got 'mean'"),
        ("dl_tfm_sparse", {"reach": "far"}, "reach must be one of full, published, got 'far'"),
    ],
)
def test_bad_arguments_are_refused_by_name(name, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build(name, **changes)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "steps"),
    [
        ("dl_tfm_ours", {"vary_operator": False, "learning_rate": 4e-3}, 60),
        ("dl_tfm_unet", {"width": 16, "learning_rate": 4e-3}, 60),
        ("dl_tfm", {}, 60),
        ("dl_tfm_kratz", {}, 30),
    ],
)
def test_four_fields_are_learned(name, changes, steps):
    """By the loss in training: the moving statistics of batch normalisation take longer than that."""
    module, fields = build(name, **changes), Batches([pulling_batch()])
    losses = []
    module.on_train_batch_end = lambda outputs, *_: losses.append(outputs["loss"].item())
    trainer(max_epochs=1).fit(module, Batches(fields * steps), fields)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("name", ["dl_tfm", "dl_tfm_kratz", "dl_tfm_ours", "dl_tfm_unet"])
def test_a_checkpoint_alone_gives_the_same_answers(name, tmp_path):
    module, batch = build(name), pulling_batch()
    fit = trainer(max_epochs=2)
    fit.fit(module, Batches([batch]), Batches([batch]))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    restored = type(module).load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert restored.hparams == module.hparams
    assert torch.equal(answer(restored, batch), answer(module, batch))


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "dl_tfm_symmetric"])
def test_the_metrics_that_are_logged_are_those_of_the_predictions(name):
    module, batches = build(name), Batches([pulling_batch(3, seed=1), pulling_batch(1, seed=2)])
    if name in TRAINED:
        fit = trainer(max_epochs=1)
        fit.fit(module, batches, batches)
        logged = {metric for metric in fit.callback_metrics if "/" in metric}
        epochs = {f"{stage}/{quantity}" for stage in ("train", "val") for quantity in ("loss", "traction_nrmse")}
        assert logged == epochs | {"train/loss_step"}
    tested = trainer().test(module, batches, verbose=False)[0]
    module.eval()
    predicted = [module.predict_step(batch, 0) for batch in batches]
    for quantity in ("traction_nrmse", "forward_residual"):
        values = torch.cat([getattr(prediction, quantity) for prediction in predicted])
        assert tested[f"test/{quantity}"] == pytest.approx(values.mean().item(), rel=1e-4)
    if name in TRAINED:
        assert fit.callback_metrics["val/traction_nrmse"] == pytest.approx(tested["test/traction_nrmse"], rel=1e-4)


# -- what elasticity demands ------------------------------------------------------------------------------------------


def test_fourier_cytometry_gives_back_the_traction_that_made_a_periodic_displacement():
    generator = torch.Generator().manual_seed(0)
    traction = 1000 * torch.randn(2, 2, 32, 32, generator=generator, dtype=torch.float64)
    spectrum = torch.fft.fft2(traction)
    spectrum[..., 0, 0] = 0  # no net force
    spectrum[..., 16, :] = spectrum[..., :, 16] = 0  # the Nyquist waves have no direction
    traction = torch.fft.ifft2(spectrum).real
    displacement = displaced_px(traction, boundary="periodic", centre_element="exact", reach="full")
    module = build("dl_tfm_fttc", regularization=0.0)
    close(answer(module, batch_of(displacement, traction, published=False)).double(), traction, FLOAT32)


def test_the_sparse_method_gives_back_the_few_tractions_that_made_a_displacement():
    batch = pulling_batch(size=32)
    close(answer(build("dl_tfm_sparse"), batch), batch.traction_pa, 0.02)


@pytest.mark.parametrize(("name", "blind"), [("dl_tfm", True), ("dl_tfm_symmetric", False), ("dl_tfm_kratz", False)])
def test_the_y_traction_of_the_published_network_is_blind_to_the_x_displacement(name, blind):
    module = build(name).eval()
    displacement = pulling_batch(1).displacement_px.requires_grad_()
    (slope,) = torch.autograd.grad(module(displacement, torch.tensor([MODULUS_PA]))[:, 1].sum(), displacement)
    assert slope[:, 1].abs().max() > 0
    assert (slope[:, 0].abs().max() == 0).item() is blind


def of_modulus(batch, factor):
    return batch._replace(youngs_modulus_pa=factor * batch.youngs_modulus_pa, traction_pa=factor * batch.traction_pa)


@pytest.mark.parametrize("name", CLASSES)
def test_traction_is_proportional_to_youngs_modulus(name):
    """The displacement being the same; Fourier cytometry's lambda is in (px/Pa)^2."""
    batch = pulling_batch()
    module = build(name)
    wake(module)
    stiff = copy.deepcopy(module)
    if name == "dl_tfm_fttc":
        stiff = build(name, regularization=module.hparams["regularization"] / 16)
    close(answer(stiff, of_modulus(batch, 4.0)), 4 * answer(module, batch), FLOAT32)


def wake(module):
    """Give the layers that start at zero a value, so that the untrained unrolled network answers something."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and parameter.abs().max() == 0:
            nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize("name", ["dl_tfm_ours", "dl_tfm_unet", *UNTRAINED])
@pytest.mark.parametrize("factor", [1e-3, 30.0])
def test_traction_is_proportional_to_displacement(name, factor):
    batch = pulling_batch()
    batch = batch._replace(displacement_px=batch.displacement_px + 0.01 * torch.randn(batch.displacement_px.shape))
    module = build(name)
    wake(module)
    stronger = batch._replace(displacement_px=factor * batch.displacement_px)
    tolerance = SOLVER if name == "dl_tfm_sparse" else FLOAT32
    close(answer(module, stronger), factor * answer(module, batch), tolerance)


@pytest.mark.parametrize(("name", "tolerance"), [("dl_tfm_fttc", FLOAT32), ("dl_tfm_sparse", SOLVER)])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_the_displacement_turns_the_traction(name, tolerance, turns):
    batch, module = pulling_batch(size=32), build(name, centre_element="exact", reach="full")
    noisy = batch.displacement_px + 0.01 * torch.randn(batch.displacement_px.shape)
    angle = turns * math.pi / 2
    turned = answer(module, batch._replace(displacement_px=rotate(noisy, angle)))
    close(turned, rotate(answer(module, batch._replace(displacement_px=noisy)), angle), tolerance)


@pytest.mark.slow
def test_the_cutoff_lowers_the_error_of_fourier_cytometry_and_sparsity_lowers_it_further():
    """The preprint's noise of .0188 px; its cutoff takes 43 % off the error."""
    batch = Batches([cells_batch(0.0188)])

    def error(name, **changes):
        return trainer().test(build(name, **changes), batch, verbose=False)[0]["test/traction_nrmse"]

    plain = error("dl_tfm_fttc")
    cut = error("dl_tfm_fttc", cutoff_percentile=98.0, frame_border_px=8)
    assert error("dl_tfm_sparse") < cut / 2
    assert cut < 0.75 * plain
