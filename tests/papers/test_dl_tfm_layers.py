"""Paper `dl_tfm` on a gel of finite thickness: what every method does when it is told how thick the gel is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from datamodules.batches import TractionBatch
from lightning_modules.networks.elastic_operator import ElasticOperator
from mechanolab.config import RequestError, compose, import_class
from physics.half_space import displacement_from_traction
from physics.traction_cytometry import traction_from_displacement

PIXEL_UM, MODULUS_PA, POISSON_RATIO, THICKNESS_UM = 2.0, 8000.0, 0.45, 5.0
SUBSTRATE = {"pixel_size_um": PIXEL_UM, "youngs_modulus_pa": MODULUS_PA, "poisson_ratio": POISSON_RATIO}


def build(name: str, **changes: Any) -> Any:
    numbers = {**compose(name)["module"], **changes}
    cls = import_class(numbers.pop("class_path"), package="lightning_modules", key="module")
    torch.manual_seed(0)
    return cls(**numbers).eval()


@pytest.fixture
def pulled() -> TractionBatch:
    """Two dipoles on a thin gel, seen without noise."""
    traction_pa = torch.zeros(2, 2, 32, 32, dtype=torch.float64)
    traction_pa[0, 0, 16, 9], traction_pa[0, 0, 16, 22] = 1500.0, -1500.0
    traction_pa[1, 1, 10, 16], traction_pa[1, 1, 23, 16] = 900.0, -900.0
    displacement_um = displacement_from_traction(traction_pa, thickness_um=THICKNESS_UM, **SUBSTRATE)
    numbers = [torch.full((2,), value) for value in (MODULUS_PA, POISSON_RATIO, PIXEL_UM)]
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[:, 6:26, 6:26] = True
    fields = ((displacement_um / PIXEL_UM).float(), traction_pa.float(), mask)
    exact = torch.zeros(2, dtype=torch.int64)
    return TractionBatch(*fields, *numbers, exact, exact, torch.full((2,), torch.inf), ["a_000", "b_000"], ["a", "b"])


def test_fourier_cytometry_told_of_the_layer_is_that_of_the_physics(pulled: TractionBatch) -> None:
    got = build("dl_tfm_fttc", gel_thickness_um=THICKNESS_UM).predict_step(pulled, 0).traction_pa
    expected = traction_from_displacement(
        pulled.displacement_px * PIXEL_UM, thickness_um=THICKNESS_UM, regularization=6e-10 * PIXEL_UM**2, **SUBSTRATE
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-2)


def test_the_sparse_solver_told_of_the_layer_finds_the_dipoles_that_a_half_space_distorts(
    pulled: TractionBatch,
) -> None:
    errors = {}
    for thickness_um in (THICKNESS_UM, None):
        prediction = build("dl_tfm_sparse", gel_thickness_um=thickness_um).predict_step(pulled, 0)
        difference = (prediction.traction_pa - pulled.traction_pa).flatten(1).norm(dim=1)
        errors[thickness_um] = float((difference / pulled.traction_pa.flatten(1).norm(dim=1)).max())
        assert prediction.forward_residual.max() < 0.01, "also a wrong traction explains it"
    assert errors[None] > 0.05 > 100 * errors[THICKNESS_UM]


@pytest.mark.parametrize("name", ["dl_tfm_ours", "dl_tfm_kratz", "dl_tfm_unet"])
def test_every_forward_residual_is_that_of_the_layer(name: str, pulled: TractionBatch) -> None:
    prediction = build(name, gel_thickness_um=THICKNESS_UM).predict_step(pulled, 0)
    seen = displacement_from_traction(prediction.traction_pa, thickness_um=THICKNESS_UM, **SUBSTRATE) / PIXEL_UM
    rest, measured = (
        (field - field.mean((-2, -1), keepdim=True)).flatten(1).norm(dim=1)
        for field in (seen - pulled.displacement_px, pulled.displacement_px)
    )
    torch.testing.assert_close(prediction.forward_residual.float(), rest / measured, rtol=1e-3, atol=1e-5)


def test_our_network_works_with_the_layer(pulled: TractionBatch) -> None:
    told, untold = (build("dl_tfm_ours", gel_thickness_um=thickness) for thickness in (THICKNESS_UM, None))
    for network in (told, untold):
        torch.manual_seed(1)
        for unet in (network.network.first, *network.network.corrections):
            torch.nn.init.normal_(unet.last.weight, std=0.1)
    told_pa, untold_pa = (network.predict_step(pulled, 0).traction_pa for network in (told, untold))
    assert (told_pa - untold_pa).norm() > 0.01 * untold_pa.norm()


@pytest.mark.parametrize("name", ["dl_tfm_fttc", "dl_tfm_sparse", "dl_tfm_ours"])
def test_what_the_samples_say_of_their_layers_is_believed_unless_the_method_is_told(
    name: str, pulled: TractionBatch
) -> None:
    said = pulled._replace(gel_thickness_um=torch.tensor([THICKNESS_UM, torch.inf]))
    believed = build(name).predict_step(said, 0)
    layer, half_space = (
        build(name, gel_thickness_um=thickness).predict_step(said, 0) for thickness in (THICKNESS_UM, torch.inf)
    )
    expected = torch.stack([layer.traction_pa[0], half_space.traction_pa[1]])
    torch.testing.assert_close(believed.traction_pa, expected, rtol=1e-4, atol=1e-2)
    if name == "dl_tfm_fttc":
        # compared with Fourier cytometry on the same layer, at the regularisation of another modulus
        assert believed.fttc_correlation[0] > max(0.999, half_space.fttc_correlation[0] + 0.001)


def test_fields_on_layers_of_their_own_are_computed_each_with_its_own() -> None:
    traction = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    layers = ElasticOperator([0.45] * 3, ["exact"] * 3, ["full"] * 3, thickness_px=[4.0, torch.inf, 4.0])
    got = layers.displacement(traction)
    for number, thickness in enumerate((4.0, None, 4.0)):
        alone = displacement_from_traction(
            traction[number], thickness_um=thickness, pixel_size_um=1.0, youngs_modulus_pa=1.0, poisson_ratio=0.45
        )
        torch.testing.assert_close(got[number], alone)
    assert layers.drawn((16, 16)).thickness_px == [4.0, torch.inf, 4.0]


@pytest.mark.parametrize("value", ["0.0", "-3.0", ".nan"])
def test_a_thickness_that_is_none_is_refused(value: str) -> None:
    with pytest.raises((ValueError, RequestError), match="gel_thickness_um must be positive"):
        build("dl_tfm_fttc", **compose("dl_tfm_fttc", overrides=[f"module.gel_thickness_um={value}"])["module"])
