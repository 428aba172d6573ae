"""What is logged of a traction, when, and its numbers by hand."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from datamodules.batches import TractionBatch
from lightning_modules.metrics.traction_scores import (
    forward_residual,
    log_scores,
    predicted,
    summary,
    traction_metrics,
    without_truth,
)
from physics.half_space import displacement_from_traction
from physics.traction_cytometry import traction_from_displacement

SIZE, PIXEL_UM, MODULUS_PA = 40, 1.5, 5000.0
AT_EVERY_STAGE = {"loss", "traction_nrmse"}
WITHOUT_TRUTH = {
    "net_force_share", "outside_share", "forward_residual", "displacement_nrmse", "fttc_correlation",
    "strain_energy_fj", "net_force_nn", "mean_displacement_px",
}  # fmt: skip
OF_A_TEST = AT_EVERY_STAGE | WITHOUT_TRUTH | {
    "traction_nrmse_sd", "traction_nrmse_squared", "traction_nrmse_full", "angle_error_deg",
    "dtma", "dma", "dtmb", "snr", "strain_energy_error",
}  # fmt: skip
RATIOS = (0.45, 0.3, 0.5)


class Logging(nn.Module):
    """Stands for a LightningModule: keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.metrics = traction_metrics()
        self.logged = set()

    def log(self, name, value, **options):
        self.logged.add(name)

    def value(self, name):
        return self.metrics[name].compute().item()


def displaced_px(traction_pa, **operator):
    return displaced_per_modulus(traction_pa / MODULUS_PA, **operator)


def displaced_per_modulus(traction, **operator):
    """Each field with a Poisson's ratio of its own."""
    fields = [
        displacement_from_traction(field, pixel_size_um=1.0, youngs_modulus_pa=1.0, poisson_ratio=ratio, **operator)
        for field, ratio in zip(traction, RATIOS, strict=True)
    ]
    return torch.stack(fields)


@pytest.fixture
def batch():
    """Three cells, each with two strong adhesions that balance and a weak one."""
    traction = torch.zeros(3, 2, SIZE, SIZE)
    for cell in range(3):
        traction[cell, 0, 18, 16:18] = 1000.0 * (cell + 1)
        traction[cell, 0, 18, 24:26] = -1000.0 * (cell + 1)
        traction[cell, 1, 22, 20] = 10.0
    mask = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    mask[:, 14:27, 14:27] = True
    numbers = torch.full((3,), MODULUS_PA), torch.tensor(RATIOS), torch.full((3,), PIXEL_UM)
    names = ["a_0", "b_0", "c_0"]
    codes = [*[torch.zeros(3, dtype=torch.long)] * 2, torch.full((3,), torch.inf)]
    return TractionBatch(displaced_px(traction), traction, mask, *numbers, *codes, names, ["a", "b", "c"])


def logged(batch, traction_pa, stage="test"):
    module = Logging()
    operator = displaced_per_modulus if stage == "test" else None
    log_scores(module, batch, stage, loss=torch.tensor(2.0), traction_pa=traction_pa, operator=operator)
    return module


@pytest.mark.parametrize(("stage", "names"), [("train", AT_EVERY_STAGE), ("val", AT_EVERY_STAGE), ("test", OF_A_TEST)])
def test_each_stage_logs_its_scores_and_no_other(batch, stage, names):
    assert logged(batch, batch.traction_pa, stage).logged == {f"{stage}/{name}" for name in names}


def test_the_scores_of_a_tenth_too_much_by_hand(batch):
    module = logged(batch, 1.1 * batch.traction_pa)
    expected = {
        "loss": 2.0, "traction_nrmse": 0.1, "traction_nrmse_sd": 0.0, "traction_nrmse_squared": 0.01,
        "traction_nrmse_full": 0.1, "dtma": 0.1, "dma": 0.1, "dtmb": 0.0, "angle_error_deg": 0.0,
        "strain_energy_error": 0.1, "outside_share": 0.0, "forward_residual": 0.1, "displacement_nrmse": 0.1,
    }  # fmt: skip
    for name, value in expected.items():
        assert module.value(f"test/{name}") == pytest.approx(value, abs=1e-3 if name == "traction_nrmse_sd" else 1e-5)
    shares = [10 / (10 + 4 * 1000 * (cell + 1)) for cell in range(3)]
    assert module.value("test/net_force_share") == pytest.approx(sum(shares) / 3, rel=1e-4)


def test_the_spread_over_the_fields_is_logged(batch):
    factors = torch.tensor([1.1, 1.3, 1.5]).reshape(3, 1, 1, 1)
    module = logged(batch, factors * batch.traction_pa)
    assert module.value("test/traction_nrmse") == pytest.approx(0.3, rel=1e-4)
    assert module.value("test/traction_nrmse_sd") == pytest.approx(math.sqrt(2 * 0.2**2 / 3), rel=1e-3)


def test_the_direction_of_weak_vectors_is_not_judged(batch):
    wrong = batch.traction_pa.clone()
    wrong[:, 1, 22, 20] *= -1  # 1 % of the largest and less
    assert logged(batch, wrong).value("test/angle_error_deg") == pytest.approx(0, abs=1e-3)
    wrong[:, :, 18, 16] = torch.tensor([0.0, 1000.0])  # one of four strong ones
    assert logged(batch, wrong).value("test/angle_error_deg") == pytest.approx(90 / 4, rel=1e-4)


def test_traction_counts_as_outside_from_ten_pixels_on(batch):
    near, far = torch.zeros_like(batch.traction_pa), torch.zeros_like(batch.traction_pa)
    near[:, 0, 20, 4] = far[:, 0, 20, 3] = 1.0  # the outline begins at 14
    assert logged(batch, near).value("test/outside_share") == 0
    assert logged(batch, far).value("test/outside_share") == 1


def test_of_an_unknown_truth_only_what_needs_none_is_logged(batch):
    unknown = batch._replace(traction_pa=torch.full_like(batch.traction_pa, torch.nan))
    assert logged(unknown, batch.traction_pa).logged == {f"test/{name}" for name in WITHOUT_TRUTH}
    assert logged(unknown, batch.traction_pa, "val").logged == set()
    truth = batch.traction_pa.clone()
    truth[1] = torch.nan
    factors = torch.tensor([1.1, 9.0, 1.3]).reshape(3, 1, 1, 1)
    module = logged(batch._replace(traction_pa=truth), factors * batch.traction_pa)
    assert module.value("test/traction_nrmse") == pytest.approx(0.2, rel=1e-4)  # of the two known
    assert module.metrics["test/forward_residual"].fields == 3


@pytest.mark.parametrize(
    "operator",
    [
        {},
        {"centre_element": "published", "reach": "published"},
        {"transfer_function": torch.tensor([0.25, 0.5, 0.25])},
    ],
)
def test_the_residual_of_the_operator_that_made_the_displacement_is_nothing(batch, operator):
    """Each field with its own Poisson's ratio; a drift of the whole field is no traction."""
    drift = torch.tensor([0.3, -0.2]).reshape(1, 2, 1, 1)
    measured = batch._replace(displacement_px=displaced_px(batch.traction_pa, **operator) + drift)
    explained = partial(displaced_per_modulus, **operator)
    assert forward_residual(measured, batch.traction_pa, explained).max() < 1e-5
    rest = forward_residual(measured, 0.75 * batch.traction_pa, explained)
    torch.testing.assert_close(rest, torch.full((3,), 0.25), rtol=1e-4, atol=0)
    torch.testing.assert_close(forward_residual(measured, 0 * batch.traction_pa, explained), torch.ones(3))


def test_the_summary_by_hand(batch):
    """1 Pa on 1 um^2 is 1e-3 nN; on a way of 1 um that is 1e-3 fJ, half of which is stored."""
    uniform = torch.zeros_like(batch.traction_pa)
    uniform[:, 0] = 3.0
    uniform[:, 1] = 4.0
    mask = torch.zeros_like(batch.cell_mask)
    mask[:, :8] = True
    moved = batch._replace(displacement_px=torch.full_like(uniform, 0.2), cell_mask=mask)
    found = summary(moved, uniform, displaced_per_modulus)
    area_um2 = (SIZE * PIXEL_UM) ** 2
    inside_um2 = 8 * SIZE * PIXEL_UM**2
    torch.testing.assert_close(found["largest_traction_pa"], torch.full((3,), 5.0))
    torch.testing.assert_close(found["net_force_nn"], torch.full((3,), 5.0 * area_um2 * 1e-3))
    torch.testing.assert_close(
        found["strain_energy_fj"], torch.full((3,), 0.5 * 7.0 * 0.2 * PIXEL_UM * inside_um2 * 1e-3)
    )
    assert found["forward_residual"].isnan().all()  # displaced alike everywhere: that is drift
    of_test = logged(moved, uniform)
    assert of_test.value("test/mean_displacement_px") == pytest.approx(math.hypot(0.2, 0.2))
    assert of_test.value("test/strain_energy_fj") == pytest.approx(found["strain_energy_fj"].mean().item())
    assert of_test.value("test/net_force_nn") == pytest.approx(found["net_force_nn"].mean().item())
    unknown = batch._replace(traction_pa=torch.full_like(batch.traction_pa, torch.nan))
    found = summary(unknown, batch.traction_pa, displaced_per_modulus)
    assert found["traction_nrmse"].isnan().all()
    assert found["forward_residual"].max() < 1e-5


def test_the_error_of_the_displacement_counts_what_lies_within_ten_pixels_of_the_outline(batch):
    """The authors' errorDspl: no mean is taken off, and what happens far away does not matter."""
    traction = 0.8 * batch.traction_pa
    far = batch.displacement_px.clone()
    far[:, :, :4] += 3.0  # the outline begins at 14
    near = batch.displacement_px.clone()
    near[:, :, 4] += 3.0
    scores = [
        without_truth(batch._replace(displacement_px=field), traction, displaced_per_modulus)["displacement_nrmse"]
        for field in (batch.displacement_px, far, near)
    ]
    torch.testing.assert_close(scores[0], torch.full((3,), 0.2), rtol=1e-4, atol=0)
    torch.testing.assert_close(scores[1], scores[0])
    assert (scores[2] > 2 * scores[0]).all()


def test_the_correlation_is_with_fourier_cytometry_on_the_samples_own_substrate(batch):
    """With lambda 6e-10 (px/Pa)^2 at the paper's modulus, and the same give and take on softer and stiffer ones."""
    own = torch.stack(
        [
            traction_from_displacement(
                field,
                pixel_size_um=1.0,
                youngs_modulus_pa=10670.0,
                poisson_ratio=ratio,
                regularization=6e-10,
            )
            for field, ratio in zip(batch.displacement_px, RATIOS, strict=True)
        ]
    )

    def correlation(traction, measured=batch):
        return without_truth(measured, traction, displaced_per_modulus)["fttc_correlation"]

    torch.testing.assert_close(correlation(7 * own), torch.ones(3), rtol=1e-5, atol=0)
    torch.testing.assert_close(correlation(-own), -torch.ones(3), rtol=1e-5, atol=0)
    turned = torch.stack((-own[:, 1], own[:, 0]), dim=1)
    assert correlation(turned).abs().max() < 1e-5
    stiffer = batch._replace(youngs_modulus_pa=4 * batch.youngs_modulus_pa)
    torch.testing.assert_close(correlation(own, stiffer), torch.ones(3), rtol=1e-5, atol=0)


def test_fields_that_can_have_no_score_hide_no_other_and_a_broken_prediction_shows(batch):
    mask = batch.cell_mask.clone()
    mask[1] = True  # no outline is known
    still = batch.displacement_px.clone()
    still[2] = 0
    found = logged(batch._replace(cell_mask=mask, displacement_px=still), batch.traction_pa)
    assert found.metrics["test/outside_share"].fields == 2
    assert found.metrics["test/displacement_nrmse"].fields == 2
    assert found.value("test/displacement_nrmse") < 1e-5
    everywhere = batch._replace(cell_mask=torch.ones_like(mask))
    assert "test/outside_share" not in logged(everywhere, batch.traction_pa).logged
    broken = batch.traction_pa.clone()
    broken[0, 0, 0, 0] = torch.inf
    for name in ("outside_share", "forward_residual", "displacement_nrmse", "fttc_correlation"):
        assert math.isnan(logged(batch, broken).value(f"test/{name}"))


def test_a_prediction_holds_one_number_of_each_kind_per_field(batch):
    mask = batch.cell_mask.clone()
    mask[0] = True
    unknown = batch._replace(traction_pa=torch.full_like(batch.traction_pa, torch.nan), cell_mask=mask)
    found = predicted(unknown, batch.traction_pa, displaced_per_modulus)
    torch.testing.assert_close(found.traction_pa, batch.traction_pa)
    assert {tuple(numbers.shape) for numbers in found[1:-1]} == {(3,)}
    assert found.maps is None  # pictures are the module's
    assert found.outside_share.isnan().tolist() == [True, False, False]
    assert found.traction_nrmse.isnan().all()
    for numbers in (found.displacement_nrmse, found.fttc_correlation, found.forward_residual):
        assert numbers.isfinite().all()
