"""Paper `circular`: learning, checkpoints, freezing, resuming, and what must hold when an image is turned."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from matplotlib.figure import Figure
from torch import nn

from datamodules.batches import DirectionBatch
from datamodules.shards.sampler import EpochBatchSampler, ResumableLoader
from datamodules.simulators.circular import Parameters, simulate_group
from lightning_modules.circular import CircularRegression, QuadrantClassifier
from lightning_modules.losses.direction import AS_CODED, CONFIGURATIONS
from lightning_modules.networks.fine_tuning_net import BACKBONES
from physics.angles import angular_difference, direction_of
from physics.vector_fields import rotate_pixels

TAU = 2 * math.pi
CHOSEN = "circle-sigmoid-distance_squared"
BILINEAR_DEG = 0.5  # turning a smooth blob by interpolation moves its centroid by a fraction of a pixel


def regression(**changes):
    published = {"configuration": CHOSEN, "backbone": "probing_cnn", "pretrained_weights": None, "standardize": False}
    return CircularRegression(
        **{**published, "learning_rate": 1e-3, "whole_epochs": None, "test_views": [1], **changes}
    )


def classifier(**changes):
    published = {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "class_weights": None}
    return QuadrantClassifier(**{**published, **changes})


def trainer(**arguments):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return Trainer(accelerator="cpu", **{**quiet, "enable_checkpointing": False, **arguments})


def batch_of(images, angles, names=None):
    names = names or [f"cell{i:04d}_000" for i in range(len(images))]
    angle_rad = torch.as_tensor(angles, dtype=torch.float32)
    return DirectionBatch(images, angle_rad, names, [name[:8] for name in names])


class Batches(tuple):
    """One loader of these batches; a list would be several loaders to Lightning."""

    __slots__ = ()


def random_batch(count=4, size=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, size, size, generator=generator)
    return batch_of(images, torch.rand(count, generator=generator) * TAU)


def simulated_batch():
    """Four simulated cells, one for each quadrant."""
    samples = [simulate_group(0, group, 1, Parameters())[0] for group in range(12)]
    chosen = {int(sample.fields["angle_rad"] // (math.pi / 2)): sample for sample in samples}
    images = torch.stack([torch.from_numpy(chosen[quadrant].fields["image"]) for quadrant in range(4)])
    return batch_of(images.float() / 255, np.stack([chosen[quadrant].fields["angle_rad"] for quadrant in range(4)]))


class BrightnessDirection(nn.Module):
    """Direction of the bright centroid from the image's centre: an estimator that turns with its image exactly."""

    def forward(self, image):
        position = torch.arange(image.shape[-1], dtype=image.dtype) - (image.shape[-1] - 1) / 2
        right = (image * position).sum(dim=(1, 2, 3))
        up = -(image * position[:, None]).sum(dim=(1, 2, 3))
        return torch.stack((right, up), dim=-1) / image.sum(dim=(1, 2, 3))[:, None]


def blobs(angles):
    """Smooth spots, 20 px from the centre in these directions."""
    y, x = np.mgrid[:128, :128] - 63.5
    images = [np.exp(-((x - 20 * np.cos(a)) ** 2 + (y + 20 * np.sin(a)) ** 2) / 50) for a in angles]
    return torch.tensor(np.stack(images)[:, None], dtype=torch.float32)


@pytest.mark.parametrize("configuration", [*CONFIGURATIONS, *AS_CODED])
def test_circular_every_configuration_answers_an_angle_and_has_a_finite_gradient(configuration):
    module = regression(configuration=configuration)
    batch = random_batch()
    angle = module(batch.image)
    assert angle.shape == (4,)
    assert ((angle >= 0) & (angle < TAU)).all()
    activated = module.configuration.activate(module.network(batch.image))
    loss = module.configuration.loss(activated, module.configuration.encode(batch.angle_rad))
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (regression, {"configuration": "circle"}, "configuration must be one of angle-cyclic-linear, .*got 'circle'"),
        (regression, {"backbone": "vgg"}, "backbone must be one of probing_cnn, efficientnet_v2_s, .*got 'vgg'"),
        (regression, {"learning_rate": -1.0}, "learning_rate must be positive, got -1.0"),
        (regression, {"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        (regression, {"whole_epochs": 10}, "whole_epochs must be null for probing_cnn"),
        (regression, {"whole_epochs": -1}, "whole_epochs must not be negative, got -1"),
        (regression, {"pretrained_weights": "cache"}, "pretrained_weights must be null for probing_cnn"),
        (regression, {"test_views": [0, 2]}, "test_views must be different numbers of at least 1"),
        (regression, {"test_views": [2, 2]}, "test_views must be different numbers of at least 1"),
        (classifier, {"learning_rate": 0.0}, "learning_rate must be positive"),
        (classifier, {"momentum": 1.0}, "momentum must lie"),
        (classifier, {"weight_decay": -0.1}, "weight_decay must not be negative"),
        (classifier, {"class_weights": [1.0, 2.0]}, "class_weights must be four positive numbers"),
        (classifier, {"class_weights": [1.0, 1.0, 0.0, 1.0]}, "class_weights must be four positive numbers"),
    ],
)
def test_circular_bad_arguments_are_refused_by_name(build, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build(**changes)


def test_circular_missing_pretrained_weights_name_the_file_and_the_option(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"resnet50 at .*none\.pth.*pretrained_weights"):
        regression(backbone="resnet50", pretrained_weights=str(tmp_path / "none.pth"))


@pytest.mark.parametrize(
    ("build", "steps"),
    [
        (regression, 30),
        # four images a step need a smaller learning rate than the published 32, and a deep plain network starts slowly
        pytest.param(lambda: classifier(learning_rate=0.003), 200, marks=pytest.mark.slow),
    ],
    ids=["regression", "quadrants"],
)
def test_circular_learns_four_simulated_cells(build, steps):
    torch.manual_seed(1)
    module, cells = build(), Batches([simulated_batch()])
    before = trainer().test(module, cells, verbose=False)[0]
    trainer(max_epochs=2).fit(module, Batches(cells * (steps // 2)), cells)
    after = trainer().test(module, cells, verbose=False)[0]
    assert after["test/loss"] < before["test/loss"] / 2
    assert after["test/angular_error_deg"] < 45  # the right quadrant everywhere costs no more


@pytest.mark.parametrize("build", [regression, classifier], ids=["regression", "quadrants"])
def test_circular_logs_its_metrics_and_they_are_those_of_the_predictions(build):
    torch.manual_seed(0)
    module, batches = build(), Batches([random_batch(4, seed=1), random_batch(2, seed=2)])
    fit = trainer(max_epochs=1)
    fit.fit(module, batches, batches)
    logged = {name for name in fit.callback_metrics if "/" in name}
    quantities = {"loss", "angular_error_deg"} | ({"mean_class_accuracy"} if build is classifier else set())
    epochs = {f"{stage}/{quantity}" for stage in ("train", "val") for quantity in quantities}
    assert logged == epochs | {"train/loss_step"}
    module.eval()
    predictions = [module.predict_step(batch, 0) for batch in batches]
    error = torch.cat([prediction.error_deg for prediction in predictions]).mean()
    torch.testing.assert_close(fit.callback_metrics["val/angular_error_deg"], error, atol=1e-3, rtol=0)
    assert trainer().test(module, batches, verbose=False)[0]["test/angular_error_deg"] == pytest.approx(
        error.item(), abs=1e-3
    )


def test_circular_prediction_leaves_unknown_directions_unknown():
    batch = random_batch()
    batch = batch._replace(angle_rad=torch.tensor([math.nan, 1.0, 2.0, 3.0]))
    for module in (regression(), regression(configuration="angle-cyclic-cosine"), classifier()):
        prediction = module.predict_step(batch, 0)
        assert all(field.shape == (4,) for field in prediction)
        assert prediction.angle_rad.isfinite().all()
        torch.testing.assert_close(prediction.angle_deg, prediction.angle_rad * 180 / math.pi)
        assert prediction.error_deg.isnan().tolist() == [True, False, False, False]
        assert prediction.target_rad.isnan().tolist() == [True, False, False, False]
    assert regression(configuration="angle-cyclic-cosine").predict_step(batch, 0).confidence.isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [regression, lambda: regression(configuration="angle-cyclic-cosine", test_views=[1, 2, 6]), classifier],
    ids=["circle", "angle", "quadrants"],
)
def test_circular_checkpoint_alone_gives_the_same_answers(build, tmp_path):
    module, batch = build(), random_batch()
    fit = trainer(max_epochs=1)
    fit.fit(module, Batches([batch]), Batches([batch]))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    restored = type(module).load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    module.eval()
    restored.eval()
    assert restored.hparams == module.hparams
    assert torch.equal(restored(batch.image), module(batch.image))


def backbone_state(module):
    return {name: tensor.clone() for name, tensor in module.network.backbone.state_dict().items()}


@pytest.mark.slow
def test_circular_freezing_leaves_the_backbone_bit_identical_and_the_head_learning():
    torch.manual_seed(0)
    module = regression(backbone="resnet50", whole_epochs=1)
    batches = Batches([random_batch(4, size=32, seed=1), random_batch(4, size=32, seed=2)])
    states, heads = [backbone_state(module)], []
    module.on_train_epoch_end = lambda: (
        states.append(backbone_state(module)),
        heads.append(module.network.head[0].weight.detach().clone()),
    )
    trainer(max_epochs=3).fit(module, batches, batches)
    names = states[0].keys()
    assert any("running_mean" in name for name in names)
    assert all(not torch.equal(states[0][name], states[1][name]) for name in names if name.endswith("weight"))
    assert all(not torch.equal(states[0][name], states[1][name]) for name in names if name.endswith("running_mean"))
    assert all(torch.equal(states[1][name], states[3][name]) for name in names)
    assert not torch.equal(heads[0], heads[2])
    assert module.needs_find_unused_parameters
    assert not regression().needs_find_unused_parameters


def test_circular_frozen_backbone_stays_in_evaluation_mode_and_has_no_gradient():
    torch.manual_seed(0)
    module = regression(backbone="resnet50", whole_epochs=0)
    seen = []
    module.on_after_backward = lambda: seen.append(
        (
            any(layer.training for layer in module.network.backbone.modules()),
            any(parameter.grad is not None for parameter in module.network.backbone.parameters()),
            module.network.head[0].weight.grad is not None,
        )
    )
    batch = random_batch(2, size=32)
    trainer(max_epochs=2).fit(module, Batches([batch]), Batches([batch]))
    assert seen == [(False, False, True)] * 2


class Pictures(torch.utils.data.Dataset):
    """Twelve random pictures, taken by (epoch, index)."""

    def __init__(self, size):
        self.batch = random_batch(12, size=size, seed=3)

    def __getitem__(self, place):
        _, index = place
        return self.batch.image[index], self.batch.angle_rad[index], self.batch.sample_id[index]


def collate(items):
    images, angles, names = zip(*items, strict=True)
    return batch_of(torch.stack(images), torch.stack(angles), list(names))


def loader(size):
    order = EpochBatchSampler(12, batch_size=3, seed=0, shuffle=True)
    return ResumableLoader(Pictures(size), batch_sampler=order, collate_fn=collate)


def small_backbone():
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("saved_at", ["batch2", "batch6", "batch10", "epoch0", "epoch1"])
def test_circular_a_resumed_run_freezes_like_the_uninterrupted_one(saved_at, tmp_path, monkeypatch):
    """Four batches an epoch, three epochs; the backbone freezes after the first."""
    kind = BACKBONES["resnet50"]._replace(build=small_backbone, channels=8)
    monkeypatch.setitem(BACKBONES, "small", kind)

    def run(resume):
        torch.manual_seed(0)
        module = regression(backbone="small", whole_epochs=1)
        keep = {"save_top_k": -1, "auto_insert_metric_name": False, "dirpath": tmp_path}
        saves = [
            ModelCheckpoint(filename="batch{step}", every_n_train_steps=2, **keep),
            ModelCheckpoint(filename="epoch{epoch}", every_n_epochs=1, save_on_train_epoch_end=False, **keep),
        ]
        fit = trainer(max_epochs=3, enable_checkpointing=True, callbacks=saves)
        validation = Batches([random_batch(4, size=32, seed=7)])
        fit.fit(module, loader(32), validation, ckpt_path=resume, weights_only=True)
        metrics = {name: value.item() for name, value in fit.callback_metrics.items()}
        return module.state_dict(), metrics

    whole_state, whole_metrics = run(None)
    state, metrics = run(str(tmp_path / f"{saved_at}.ckpt"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole_state.items())
    assert metrics == whole_metrics


def test_circular_views_are_turned_back_by_their_own_rotation():
    angles = np.array([0.0, 1.0, 2.5, 6.0])
    module = regression(configuration="circle-identity-distance", test_views=[1, 6, 14])
    module.network = BrightnessDirection()
    batch = batch_of(blobs(angles), angles)
    views = module._views(batch, module(batch.image), 14)
    assert views.shape == (4, 14)
    assert torch.rad2deg(angular_difference(views, batch.angle_rad[:, None]).abs()).max() < BILINEAR_DEG
    result = trainer().test(module, Batches([batch]), verbose=False)[0]
    assert set(result) == {
        f"test/{name}" for name in ("loss", *(f"angular_error_deg{n}" for n in ("", "_tta6", "_tta14")))
    }
    assert all(value < BILINEAR_DEG for name, value in result.items() if name != "test/loss")


def test_circular_views_depend_on_the_sample_alone_and_repeat():
    torch.manual_seed(0)
    module, batch = regression().eval(), random_batch(3)
    with torch.no_grad():
        together = module._views(batch, module(batch.image), 6)
        again = module._views(batch, module(batch.image), 6)
        alone = DirectionBatch(batch.image[2:], batch.angle_rad[2:], batch.sample_id[2:], batch.group[2:])
        single = module._views(alone, module(alone.image), 6)
    assert torch.equal(together, again)
    torch.testing.assert_close(single[0], together[2], atol=1e-4, rtol=0)  # batched products differ in the last bits
    turns = angular_difference(together[0], together[1])
    assert turns.unique().numel() == 6  # two samples do not share their rotations


def test_circular_more_views_contain_the_fewer():
    module = regression().eval()
    batch = random_batch(2)
    with torch.no_grad():
        few, many = (module._views(batch, module(batch.image), views) for views in (3, 5))
    assert torch.equal(few, many[:, :3])


def test_circular_turning_the_image_turns_the_answer_of_a_turning_network():
    module = regression(configuration="circle-identity-distance")
    module.network = BrightnessDirection()
    angles = torch.tensor([0.2, 1.7, 4.0])
    turned = module(rotate_pixels(blobs(angles.numpy()), math.pi / 2))
    torch.testing.assert_close(angular_difference(turned, angles), torch.full((3,), math.pi / 2), atol=1e-4, rtol=0)
    assert direction_of(torch.tensor([0.0, 1.0])).item() == pytest.approx(math.pi / 2)


def test_circular_baseline_does_not_see_the_grey_scale():
    module, image = classifier().eval(), random_batch().image
    torch.testing.assert_close(module(image * 37 + 5), module(image), atol=1e-4, rtol=0)
    torch.testing.assert_close(module(image).sum(dim=1), torch.ones(4))
    assert module(torch.full((1, 1, 128, 128), 0.3)).isfinite().all()


def test_circular_baseline_weighs_classes_by_hand():
    weights = [1.0, 2.0, 3.0, 4.0]
    module, batch = (
        classifier(class_weights=weights).eval(),
        random_batch()._replace(angle_rad=torch.tensor([0.1, 2.0, 4.0, 6.0])),
    )
    probabilities = module(batch.image).diagonal()
    expected = -(torch.tensor(weights) * probabilities.log()).mean()
    result = trainer().test(module, Batches([batch]), verbose=False)[0]
    assert result["test/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_circular_baseline_slows_down_after_every_epoch_without_a_record():
    torch.manual_seed(0)
    module, batch = classifier(learning_rate=1e-6, weight_decay=0.0), random_batch()
    rates = []
    fit = trainer(max_epochs=4)
    module.on_train_epoch_start = lambda: rates.append(fit.optimizers[0].param_groups[0]["lr"])
    fit.fit(module, Batches([batch]), Batches([batch]))  # so slow that nothing improves after the first epoch
    np.testing.assert_allclose(rates, [1e-6, 1e-6, 0.9e-6, 0.81e-6], rtol=1e-6)


@pytest.mark.parametrize("build", [regression, classifier], ids=["regression", "quadrants"])
def test_circular_figures_show_a_batch_and_leave_the_mode_alone(build):
    module = build()
    figures = module.figures(random_batch())
    assert set(figures) == {"directions", "polar_error"}
    assert all(isinstance(figure, Figure) for figure in figures.values())
    assert module.training
    assert all(layer.training for layer in module.network.modules())


def test_circular_standardised_images_hide_brightness_and_contrast():
    torch.manual_seed(0)
    module, batch = regression(standardize=True).eval(), random_batch()
    with torch.no_grad():
        answer, brighter = module(batch.image), module(0.3 + 0.2 * batch.image)
    assert angular_difference(answer, brighter).abs().max() < 1e-3
    assert module(torch.full((1, 1, 128, 128), 0.4)).isfinite().all()
