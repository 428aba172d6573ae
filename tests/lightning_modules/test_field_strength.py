"""The strength of a field does not depend on how much of the frame lies at rest."""

from __future__ import annotations

import pytest
import torch

from lightning_modules.networks.field_strength import WINDOW_PX, strength
from lightning_modules.networks.planar_unet import PlanarUNet


def blob(side: int, centre: tuple[int, int]) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    bump = torch.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * 12.0**2))
    return torch.stack([bump, -0.5 * bump])[None]


def test_a_field_of_trainings_size_has_its_root_mean_square() -> None:
    fields = torch.randn(3, 2, WINDOW_PX, WINDOW_PX, generator=torch.Generator().manual_seed(0)) * 0.3
    expected = fields.square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(strength(fields).flatten(), expected)
    assert strength(fields).shape == (3, 1, 1, 1)
    narrow = fields[..., :40]
    torch.testing.assert_close(strength(narrow).flatten(), narrow.square().mean(dim=(1, 2, 3)).sqrt())


@pytest.mark.parametrize("side", [105, 208, 300, 511])
@pytest.mark.parametrize("place", [0.0, 0.37, 1.0])
def test_a_cell_is_as_strong_on_a_larger_frame(side: int, place: float) -> None:
    alone = strength(blob(WINDOW_PX, (WINDOW_PX // 2,) * 2))
    at = round(52 + place * (side - 104))
    larger = strength(blob(side, (at, at)))
    assert larger.item() == pytest.approx(alone.item(), rel=0.03)


def test_a_field_at_rest_has_no_gradient_and_a_network_keeps_its_scale() -> None:
    still = torch.zeros(1, 2, 104, 104, requires_grad=True)
    strength(still).sum().backward()
    assert still.grad is not None
    assert still.grad.abs().max() == 0
    network, field = PlanarUNet(width=2, depth=1).double().eval(), blob(160, (80, 90)).double()
    torch.testing.assert_close(network(7 * field), 7 * network(field), rtol=1e-9, atol=1e-12)
