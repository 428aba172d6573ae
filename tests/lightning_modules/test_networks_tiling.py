"""Networks on fields of any size: padding, tiles, and the scale of the published network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodules.batches import TractionBatch
from lightning_modules.dl_tfm import TractionRegression
from lightning_modules.networks import tiling
from lightning_modules.networks.kratz_unet import KratzUNet
from lightning_modules.networks.planar_unet import PlanarUNet
from lightning_modules.networks.tiling import on_any_size
from lightning_modules.networks.traction_unet import TractionUNet3d

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: PlanarUNet(width=4),
    "plain, 2 halvings": lambda: PlanarUNet(width=4, depth=2),
    "published": TractionUNet3d,
    "Kratz": KratzUNet,
}
ROUNDING = 1e-5
"""Of float32, relative to the largest value: the same sums in another order."""


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 32 px in fields above 64 px."""
    monkeypatch.setattr(tiling, "WHOLE_PX", 64)
    monkeypatch.setattr(tiling, "TILE_PX", 32)


def lively(network: nn.Module) -> nn.Module:
    """Weights and batch statistics with which every layer counts, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim > 1:
                inputs = parameter[0].numel()
                parameter.data.normal_(0, inputs**-0.5, generator=generator)
            else:
                parameter.data.uniform_(0.1, 0.5, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.uniform_(0.3, 0.6, generator=generator)
    return network.eval()


def relative(difference: Tensor, reference: Tensor) -> float:
    return float(difference.abs().max() / reference.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_are_those_of_the_whole_field(name: str, small_tiles: None) -> None:
    network = lively(NETWORKS[name]())
    field = torch.randn(1, 2, 170, 93, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        tiled, whole = (on_any_size(network, field, step_px=8, tiles=tiles) for tiles in (True, False))
        if isinstance(network, PlanarUNet):
            # whose amplitude is that of the whole field, and which cuts by itself
            tiled = network(field)
            network.train()
            whole = network(field)
    assert tiled.shape == whole.shape == field.shape
    assert relative(tiled - whole, whole) < ROUNDING


def test_less_of_the_surroundings_would_show(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    network = lively(PlanarUNet(width=4, scale_equivariant=False))
    field = torch.randn(1, 2, 170, 93, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = network.train()(field)
        monkeypatch.setattr(tiling, "HALO_STEPS", 2)
        assert relative(network.eval()(field) - whole, whole) > 100 * ROUNDING


def test_sizes_are_padded_at_the_far_edges_and_cropped_back() -> None:
    seen: list[Tensor] = []

    def compute(field: Tensor) -> Tensor:
        seen.append(field)
        return field[:, :1] + 1

    field = torch.randn(3, 2, 13, 24, generator=torch.Generator().manual_seed(2))
    result = on_any_size(compute, field, step_px=8, tiles=True)
    torch.testing.assert_close(result, field[:, :1] + 1)
    assert seen[0].shape == (3, 2, 16, 24)
    assert not seen[0][..., 13:, :].any()
    with pytest.raises(ValueError, match=r"^step_px must be at least 1"):
        on_any_size(compute, field, step_px=0, tiles=True)


def test_no_tile_is_computed_in_training(small_tiles: None) -> None:
    network, sizes = published(), []
    network.network.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    field, modulus_pa = torch.randn(1, 2, 72, 20), torch.tensor([10.0])
    network.train()(field, modulus_pa)
    network.eval()(field, modulus_pa)
    assert sizes[0] == (72, 24)
    assert len(sizes) == 4


def published(**changes: Any) -> TractionRegression:
    """The small peer network as a module."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"network": "kratz_unet", "optimizer": "adagrad", "learning_rate": 0.01}
    arguments |= {"momentum": 0.9, "decay_factor": 0.5, "decay_epochs": None, "weight_decay": 0.0}
    arguments |= {"clip_each_tensor": None, "cutoff_percentile": None, "frame_border_px": 0}
    arguments |= {
        "centre_element": None,
        "reach": None,
        "poisson_ratio": None,
        "gel_thickness_um": None,
        "transfer_function": None,
    }
    return TractionRegression(**(arguments | changes))


def batch(displacement_px: Tensor, modulus_pa: float) -> TractionBatch:
    count, _, height, width = displacement_px.shape
    ones = torch.ones(count)
    mask, ids = torch.ones(count, height, width, dtype=torch.bool), ["a"] * count
    numbers, codes = (modulus_pa * ones, 0.45 * ones, ones), [torch.zeros(count, dtype=torch.long)] * 2
    codes.append(torch.inf * ones)
    return TractionBatch(displacement_px, displacement_px, mask, *numbers, *codes, ids, ids)


@pytest.mark.parametrize("size", [(104, 104), (208, 52), (160, 160), (99, 41)])
def test_before_training_the_published_scale_is_that_of_the_field(size: tuple[int, int]) -> None:
    module = published().eval()
    field, side = torch.randn(2, 2, *size), (size[0] * size[1]) ** 0.5
    modulus_pa = torch.tensor([10.0, 25000.0])
    with torch.no_grad():
        padded = nn.functional.pad(field, (0, -size[1] % 8, 0, -size[0] % 8))
        stress = module.network(padded)[..., : size[0], : size[1]]
        expected = stress * modulus_pa[:, None, None, None] / 10 * side / 104  # the authors' predictTrac.m
        torch.testing.assert_close(module(field, modulus_pa), expected, rtol=1e-5, atol=1e-6)


def test_a_trained_network_keeps_the_scale_of_its_grid_in_wider_frames() -> None:
    module = published()
    module.train().loss_and_traction(batch(torch.randn(2, 2, 52, 52), 10.0))
    assert float(module.trained_grid_px) == 52
    again = published()
    again.load_state_dict(module.state_dict())
    again.eval()
    frame = torch.zeros(1, 2, 208, 208)
    frame[..., 80:132, 80:132] = torch.randn(1, 2, 52, 52)
    modulus_pa = torch.tensor([10670.0])
    with torch.no_grad():
        wide, narrow = again(frame, modulus_pa), again(frame[..., 24:184, 24:184], modulus_pa)
        # 36 px is as far as this network sees
        torch.testing.assert_close(wide[..., 80:132, 80:132], narrow[..., 56:108, 56:108], rtol=1e-4, atol=1e-2)
        expected = again.network(frame) * 1067.0 * 52 / 104
        torch.testing.assert_close(wide, expected, rtol=1e-5, atol=1e-3)
