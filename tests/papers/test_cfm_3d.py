"""Paper `cfm_3d`: losses, learning, checkpoints, the metrics that are logged, and what elasticity demands."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from datamodules.batches import BeadVolumeBatch
from lightning_modules.cfm_3d import DigitalVolumeCorrelation, VolumetricForceRegression, ZeroDisplacement
from mechanolab.config import compose
from physics.point_forces import kelvin_body_force_n_per_m3, kelvin_displacement
from physics.solid import voxel_positions_um

CLASSES = {
    "cfm_3d": VolumetricForceRegression,
    "cfm_3d_small": VolumetricForceRegression,
    "cfm_3d_dvc": DigitalVolumeCorrelation,
    "cfm_3d_zero": ZeroDisplacement,
}
TRAINED = ["cfm_3d", "cfm_3d_small"]
VOXEL_UM = (0.8, 0.4, 0.4)
SIZE = 24


@pytest.fixture(autouse=True)
def _same_start():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def build(name, **changes):
    """The module of a shipped experiment, its network small."""
    numbers = {key: value for key, value in compose(name)["module"].items() if key != "class_path"}
    small = {"width": 8} if name in TRAINED else {}
    if name == "cfm_3d_dvc":
        small = {"window_voxels": [12], "passes": 2}
    return CLASSES[name](**{**numbers, **small, **changes})


def trainer(**arguments):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return Trainer(accelerator="cpu", **{**quiet, "enable_checkpointing": False, **arguments})


class Batches(tuple):
    """One loader of these batches; a list would be several loaders to Lightning."""

    __slots__ = ()


def beads(centres):
    """Gaussian beads at centres (n, 3) in voxels, components (x, y, z)."""
    axis = torch.arange(SIZE)
    x, y, z = (torch.exp(-0.5 * (axis - centres[:, k, None]) ** 2 / sd**2) for k, sd in enumerate((1.0, 1.0, 1.5)))
    return torch.einsum("nz,ny,nx->zyx", z, y, x).clamp(max=1)


def pulled_batch(count=2, seed=0, strength=1.0):
    """Two opposite pulls in the middle of each volume, beads drawn where they go."""
    generator = torch.Generator().manual_seed(seed)
    gel = {"youngs_modulus_pa": 1000.0, "poisson_ratio": 0.4, "regularization_um": 2.5}
    step = torch.tensor(VOXEL_UM).flip(0)
    middle = step * (SIZE - 1) / 2
    arm = torch.tensor([2.0, 0.5, 1.0])
    sources = torch.stack((middle - arm, middle + arm))
    parts = []
    for _ in range(count):
        force = arm * (4 + 8 * torch.rand((), generator=generator)) * strength
        forces = torch.stack((force, -force))
        points = voxel_positions_um((SIZE, SIZE, SIZE), VOXEL_UM, dtype=torch.float32)
        displacement = kelvin_displacement(points, sources, forces, **gel).movedim(-1, 0)
        density = kelvin_body_force_n_per_m3(points, sources, forces, regularization_um=2.5).movedim(-1, 0)
        centres = torch.rand(int(0.02 * (SIZE + 8) ** 3), 3, generator=generator) * (SIZE + 8) - 4
        moved = centres + kelvin_displacement(centres * step, sources, forces, **gel) / step
        mask = density.square().sum(dim=0) > 0.01 * density.square().sum(dim=0).max()
        parts.append((beads(centres)[None], beads(moved)[None], displacement, density, mask))
    fields = [torch.stack(field) for field in zip(*parts, strict=True)]
    numbers = [torch.tensor(VOXEL_UM).expand(count, 3), torch.full((count,), 1000.0), torch.full((count,), 0.4)]
    names = [f"cell{number:02d}_000" for number in range(count)]
    return BeadVolumeBatch(*fields, *numbers, names, [name[:6] for name in names])


def unknown(batch):
    """The same volumes as a measurement."""
    lost = torch.full_like(batch.displacement_um, torch.nan)
    return batch._replace(displacement_um=lost, body_force_n_per_m3=lost)


def answer(module, batch):
    """What is predicted."""
    module.eval()
    with torch.no_grad():
        return module.predict_step(batch, 0)


class Known(nn.Module):
    """Answers with the displacement that it is given, in voxels."""

    def __init__(self, displacement):
        super().__init__()
        self.displacement = displacement

    def forward(self, volumes):
        return self.displacement


def knowing(batch, factor=1.0, **changes):
    """A module whose network answers with a multiple of the truth."""
    module = build("cfm_3d", **changes)
    step = torch.tensor(VOXEL_UM).flip(0)[None, :, None, None, None]
    module.network = Known(factor * batch.displacement_um / step)
    return module


# -- losses and scores ------------------------------------------------------------------------------------------------


def test_the_default_network_has_the_size_of_the_facts():
    numbers = {key: value for key, value in compose("cfm_3d")["module"].items() if key != "class_path"}
    module = VolumetricForceRegression(**numbers)
    assert sum(parameter.numel() for parameter in module.parameters()) == 1_402_435


def test_the_truth_has_no_error_and_force_within_the_layers_own():
    batch = pulled_batch()
    prediction = answer(knowing(batch, smoothing_voxels=0.0), batch)
    assert prediction.displacement_median_error_vx.max() < 1e-5
    assert prediction.body_force_relative_l2.max() < 0.25  # differences over voxels of .8 um for a force 2.5 um wide
    assert (prediction.net_force_nn / prediction.total_force_nn).max() < 0.01


def test_the_losses_by_hand():
    """Of half the true displacement: half of its mean length, and half of the truth's own size in force and stress."""
    batch = pulled_batch()
    weights = {"displacement_weight": 2.0, "force_weight": 0.5, "stress_weight": 0.25, "equilibrium_weight": 0.0}
    module = knowing(batch, 0.5, physics_from_epoch=0, **weights)
    module.eval()
    half, mechanics = module.solve(batch)
    _, true = knowing(batch, 1.0).solve(batch)
    losses = module.losses(batch, [half], mechanics)
    length = half.square().sum(dim=1).sqrt().mean()
    assert losses["displacement_loss_vx"].item() == pytest.approx(length.item(), rel=0.02)
    for name, field in (("force_loss", true.body_force_n_per_m3), ("stress_loss", true.stress_pa)):
        flat = field.flatten(1)
        expected = (0.5 * flat.abs().mean(dim=1) / flat.std(dim=1, correction=0)).mean()
        assert losses[name].item() == pytest.approx(expected.item(), rel=1e-3)
    by_hand = 2 * losses["displacement_loss_vx"] + 0.5 * losses["force_loss"] + 0.25 * losses["stress_loss"]
    assert losses["loss"].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_the_physics_waits_for_its_epoch():
    batch = pulled_batch()
    module = knowing(batch, 0.5, physics_from_epoch=3, force_weight=1.0)
    half, mechanics = module.solve(batch)
    losses = module.losses(batch, [half], mechanics)
    assert losses["loss"].item() == losses["displacement_loss_vx"].item()
    assert losses["force_loss"] > 0


def test_what_is_judged_does_not_depend_on_the_epoch():
    """The same weights have one loss in every validation and test, also those of a later command."""
    batch = pulled_batch()
    module = knowing(batch, 0.5, physics_from_epoch=3, force_weight=1.0).eval()
    half, mechanics = module.solve(batch)
    losses = module.losses(batch, [half], mechanics)
    assert losses["loss"] > losses["displacement_loss_vx"] + 0.9 * losses["force_loss"]


def test_earlier_estimates_count_with_their_weight():
    batch = pulled_batch()
    module = knowing(batch, 1.0, earlier_weight=0.25)
    last, mechanics = module.solve(batch)
    zero = torch.zeros_like(last)
    one = module.losses(batch, [last], mechanics)["loss"]
    two = module.losses(batch, [zero, last], mechanics)["loss"]
    assert (two - one).item() == pytest.approx(0.25 * last.square().sum(dim=1).sqrt().mean().item(), rel=0.01)


@pytest.mark.parametrize("name", CLASSES)
def test_the_metrics_that_are_logged_are_those_of_the_predictions(name):
    module, batches = build(name), Batches([pulled_batch(2, seed=1), pulled_batch(1, seed=2), unknown(pulled_batch(1))])
    tested = trainer().test(module, batches, verbose=False)[0]
    predicted = [answer(module, batch) for batch in batches]
    for quantity in ("displacement_median_error_vx", "body_force_relative_l2", "zero_displacement_median_error_vx"):
        values = torch.cat([getattr(prediction, quantity) for prediction in predicted])
        assert tested[f"test/{quantity}"] == pytest.approx(values.nanmean().item(), rel=1e-3)
    assert tested["test/seconds_per_volume"] > 0
    if name == "cfm_3d_zero":
        assert tested["test/displacement_relative_l2"] == pytest.approx(1.0)
        assert tested["test/displacement_median_error_vx"] == tested["test/zero_displacement_median_error_vx"]


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_two_volumes_are_learned(name):
    changes = {"optimizer": "adam", "learning_rate": 5e-3, "warm_up_share": 0.1, "equilibrium_weight": 0.0}
    module, fields = build(name, **changes), Batches([pulled_batch(strength=3.0)])
    losses = []
    module.on_train_batch_end = lambda outputs, *_: losses.append(outputs["loss"].item())
    trainer(max_epochs=1).fit(module, Batches(fields * 40), fields)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_checkpoint_alone_gives_the_same_answers(name, tmp_path):
    module, batch = build(name), pulled_batch(1)
    fit = trainer(max_epochs=1)
    fit.fit(module, Batches([batch]), Batches([batch]))
    logged = {metric for metric in fit.callback_metrics if "/" in metric}
    terms = ("loss", "displacement_loss_vx", "force_loss", "stress_loss", "equilibrium_loss")
    scores = {"val/displacement_median_error_vx", "val/body_force_relative_l2"}
    expected = {f"{stage}/{term}" for stage in ("train", "val") for term in terms} | scores
    assert logged == expected | {"train/loss_step", "train/physics_weight"}
    fit.save_checkpoint(tmp_path / "last.ckpt")
    restored = type(module).load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(answer(restored, batch).displacement_um, answer(module, batch).displacement_um)


# -- predictions ------------------------------------------------------------------------------------------------------


def test_predictions_hold_what_is_asked_for():
    batch = pulled_batch()
    plain = answer(knowing(batch), batch)
    assert plain.stress_pa is None
    assert plain.traction_pa is None
    full = answer(knowing(batch, write_stress=True, traction_surface="cell"), batch)
    assert full.stress_pa.shape == (2, 3, 3, SIZE, SIZE, SIZE)
    assert full.traction_pa.abs().max() > 0
    assert full.traction_pa[batch.cell_mask[:, None].expand_as(full.traction_pa)].abs().max() == 0
    top = answer(knowing(batch, write_stress=True, traction_surface="top"), batch)
    torch.testing.assert_close(top.traction_pa[:, :, 0], -top.stress_pa[:, :, 2, 0])


def test_the_traction_on_a_cell_that_nobody_showed_is_refused():
    """An own volume without a cell may hold it anywhere: zeros would look like an answer."""
    batch = pulled_batch()
    unseen = batch._replace(cell_mask=torch.stack((batch.cell_mask[0], torch.ones_like(batch.cell_mask[1]))))
    with pytest.raises(ValueError, match=r"^traction_surface 'cell' needs .* cell01_000 comes without one: add"):
        answer(build("cfm_3d_zero", traction_surface="cell"), unseen)
    assert answer(build("cfm_3d_zero", traction_surface="top"), unseen).traction_pa.abs().max() == 0


def test_large_volumes_are_predicted_in_patches():
    batch = pulled_batch(1)
    whole, cut = build("cfm_3d_small"), build("cfm_3d_small", patch_voxels=16)
    cut.load_state_dict(whole.state_dict())
    difference = answer(whole, batch).displacement_um - answer(cut, batch).displacement_um
    assert difference.isfinite().all()
    assert difference.abs().max() < 0.5  # um: patches see less of what is around them
    assert difference.abs().max() > 0


@pytest.mark.parametrize("name", CLASSES)
def test_force_is_proportional_to_youngs_modulus(name):
    batch = pulled_batch(1)
    module = build(name)
    stiff = batch._replace(youngs_modulus_pa=4 * batch.youngs_modulus_pa)
    torch.testing.assert_close(
        answer(module, stiff).body_force_n_per_m3, 4 * answer(module, batch).body_force_n_per_m3, rtol=1e-4, atol=1.0
    )


def test_mirrored_volumes_have_the_mirrored_displacement():
    """Of correlation, which knows no direction."""
    batch, module = pulled_batch(1), build("cfm_3d_dvc")
    mirrored = batch._replace(reference=batch.reference.flip(-1), deformed=batch.deformed.flip(-1))
    found = answer(module, mirrored).displacement_um.flip(-1)
    expected = answer(module, batch).displacement_um
    expected[:, 0] *= -1
    assert (found - expected).abs().median() < 0.01 * expected.abs().max()


@pytest.mark.slow
def test_figures_are_drawn_with_and_without_truth():
    module, batch = build("cfm_3d_zero"), pulled_batch()
    assert set(module.figures(batch)) == {"slices", "forces"}
    assert set(module.figures(unknown(batch))) == {"slices", "forces"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cfm_3d", {"network": "unet"}, "network must be one of stacked_unet, siamese, got 'unet'"),
        ("cfm_3d", {"optimizer": "rprop"}, "optimizer must be one of sgd, adam, got 'rprop'"),
        ("cfm_3d", {"width": 12}, "width must be a multiple of 8, got 12"),
        ("cfm_3d", {"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ("cfm_3d", {"clip_norm": 0.0}, "clip_norm must be positive, got 0.0"),
        ("cfm_3d", {"patch_voxels": 20}, "patch_voxels must be a multiple of 8, got 20"),
        ("cfm_3d", {"physics_from_epoch": -1}, "physics_from_epoch must be at least 0, got -1"),
        ("cfm_3d", {"force_weight": -0.1}, "force_weight must be 0 or positive, got -0.1"),
        ("cfm_3d", {"momentum": 1.5}, r"momentum must lie in \[0, 1\], got 1.5"),
        ("cfm_3d_dvc", {"passes": 0}, "passes must be at least 1, got 0"),
        ("cfm_3d_zero", {"traction_surface": "side"}, "traction_surface must be one of top, cell, got 'side'"),
        ("cfm_3d_zero", {"material": "wood"}, "material must be one of linear, neo_hookean, got 'wood'"),
        ("cfm_3d_zero", {"smoothing_voxels": -1.0}, "smoothing_voxels must be 0 or a positive number, got -1.0"),
    ],
)
def test_bad_arguments_are_refused_by_name(name, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build(name, **changes)
