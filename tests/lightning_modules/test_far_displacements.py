"""Displacements beyond those of the training set: found with a look at half the resolution, which spares all others."""

import pytest
import torch

from lightning_modules.cfm_3d import VolumetricForceRegression
from lightning_modules.networks.far_displacements import reaching_far
from lightning_modules.networks.siamese_force_net import SiameseForceNet
from mechanolab.config import compose

SIZE = 40
FAR, NEAR = (9.2, -0.6, 0.4), (1.3, -0.6, 0.4)  # voxels, x y z


def beads(shift=(0.0, 0.0, 0.0), size=SIZE):
    """A volume of Gaussian beads, all moved by one vector."""
    generator = torch.Generator().manual_seed(0)
    wide = size + 24
    centres = torch.rand(int(0.012 * wide**3), 3, generator=generator) * wide - 12 + torch.tensor(shift)
    axis = torch.arange(size)
    x, y, z = (torch.exp(-0.5 * (axis - centres[:, k, None]) ** 2 / sd**2) for k, sd in enumerate((1.0, 1.0, 1.5)))
    return torch.einsum("nz,ny,nx->zyx", z, y, x).clamp(max=2) / 2


def pairs(*shifts, size=SIZE):
    return torch.stack([torch.stack((beads(size=size), beads(shift, size))) for shift in shifts])


def error(found, shift):
    """Median over the middle of a field (3, z, y, x)."""
    inner = slice(10, -10)
    return (found - torch.tensor(shift)[:, None, None, None])[:, inner, inner, inner].square().sum(0).sqrt().median()


@pytest.fixture
def network():
    """Untrained: a least-squares registration of small displacements."""
    return SiameseForceNet(8, 8).eval()


@torch.no_grad()
def test_far_is_found_and_near_is_as_if_there_had_been_no_look(network):
    volumes = pairs(FAR, NEAR)
    alone, found = network(volumes), reaching_far(network, volumes)
    assert error(alone[0], FAR) > 3
    assert error(found[0], FAR) < 0.2
    assert torch.equal(found[1], alone[1])
    assert torch.equal(reaching_far(network, volumes[1:]), network(volumes[1:]))


@torch.no_grad()
@pytest.mark.parametrize("size", [12, 33])
def test_volumes_of_any_size_are_answered(network, size):
    volumes = pairs(NEAR, size=size)
    assert torch.equal(reaching_far(network, volumes), network(volumes))
    assert reaching_far(network, pairs(FAR, size=size)).shape == (1, 3, size, size, size)


@torch.no_grad()
def test_an_answer_that_explains_the_volumes_worse_is_not_taken():
    """Of a network that always answers nonsense beside what it is told to be far, its first answer stays."""
    volumes = pairs(FAR)
    exact = torch.tensor(FAR)[None, :, None, None, None].expand(1, 3, SIZE, SIZE, SIZE)
    assert torch.equal(reaching_far(lambda pair: exact, volumes), exact)


@torch.no_grad()
def test_the_module_reaches_as_far():
    numbers = {key: value for key, value in compose("cfm_3d_small")["module"].items() if key != "class_path"}
    module = VolumetricForceRegression(**{**numbers, "width": 8}).eval()
    assert error(module(pairs(FAR))[0], FAR) < 0.2
