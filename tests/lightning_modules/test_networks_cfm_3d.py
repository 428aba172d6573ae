"""Networks of the paper `cfm_3d`: the size of the volumetric net, and the physics layer against `physics.solid`."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn
from torch.nn import functional

from lightning_modules.networks.physics_layer import PhysicsLayer, smoothed, um_from_voxels
from lightning_modules.networks.volumetric_force_net import VolumetricForceNet
from physics.point_forces import kelvin_displacement
from physics.solid import (
    body_force_n_per_m3,
    deformation_gradient,
    green_lagrange,
    neo_hookean_stress,
    strain,
    stress,
    total_force_nn,
    voxel_positions_um,
)

VOXEL = (0.8, 0.3, 0.29)  # um, z y x
SOLID = {"voxel_size_um": VOXEL, "youngs_modulus_pa": 1200.0, "poisson_ratio": 0.42}
ROUNDING = 1e-10
REPEATABLE = settings(deadline=None, derandomize=True, max_examples=15)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(a, b, tolerance=ROUNDING):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture(autouse=True)
def _same_start():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def small_net():
    return VolumetricForceNet((8, 16, 24))


def test_volumetric_force_net_has_its_parameters():
    network = VolumetricForceNet()
    pairs = [(2, 16), (16, 32), (32, 64), (64, 128), (128, 64), (64, 32), (32, 16)]  # a block's two convolutions
    by_hand = sum(27 * (i * o + o * o) + 2 * o + 4 * o for i, o in pairs)  # with biases and normalisations
    by_hand += sum(8 * i * o + o for i, o in [(128, 64), (64, 32), (32, 16)]) + 16 * 3 + 3
    assert count(network) == by_hand == 1_402_435
    assert {layer.negative_slope for layer in network.modules() if isinstance(layer, nn.LeakyReLU)} == {0.1}
    norms = [layer for layer in network.modules() if isinstance(layer, nn.GroupNorm)]
    assert len(norms) == 14
    assert {layer.num_groups for layer in norms} == {8}


def test_volumetric_force_net_starts_near_no_displacement():
    network = VolumetricForceNet()
    u = network(torch.rand(1, 2, 16, 16, 16))
    assert 0 < u.std() < 0.2  # voxels
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            assert layer.bias.abs().max() == 0
        if isinstance(layer, nn.Conv3d) and layer.weight.numel() > 10_000:
            sd = math.sqrt(2 / (1 + 0.1**2) / layer.weight[0].numel())
            assert layer.weight.std().item() == pytest.approx(sd, rel=0.05)


@pytest.mark.parametrize("size", [(16, 8, 24), (13, 9, 22), (5, 1, 3)])
def test_any_size_is_continued_at_the_far_faces_and_cropped_back(size):
    network = small_net().double()
    volumes = random(2, 2, *size)
    u = network(volumes)
    assert u.shape == (2, 3, *size)
    padding = [amount for n in reversed(size) for amount in (0, -n % 4)]
    longer = functional.pad(volumes, padding, mode="replicate")
    close(u, network(longer)[..., : size[0], : size[1], : size[2]], 1e-12)


def test_the_gradient_reaches_every_weight_through_the_physics():
    network, layer = VolumetricForceNet(), PhysicsLayer()
    u = um_from_voxels(network(torch.rand(1, 2, 9, 16, 12)), VOXEL)
    layer(u, **SOLID).body_force_n_per_m3.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.endswith("bias"):  # a uniform displacement makes no force
            assert parameter.grad.abs().max() > 0, name


def test_each_pair_has_its_own_answer_and_the_order_of_the_volumes_matters():
    network = small_net().double()
    volumes = random(3, 2, 8, 8, 8)
    close(network(volumes)[1:2], network(volumes[1:2]), 1e-12)
    assert (network(volumes.flip(1)) - network(volumes)).abs().max() > 1e-3


@pytest.mark.slow
def test_a_shift_is_learnt():
    """Two pairs of random dots moved by whole voxels: the error falls below half of that of no displacement."""
    network = small_net()
    dots = ndimage.gaussian_filter((random(2, 18, 18, 18, seed=3) > 2).float().numpy(), 1, axes=(1, 2, 3))
    volumes = torch.empty(2, 2, 16, 16, 16)
    shifts = [(1, -1, 0), (-1, 0, 1)]  # x, y, z
    for volume, (still, moved), (x, y, z) in zip(torch.tensor(dots / dots.max()), volumes, shifts, strict=True):
        still[:] = volume[1:17, 1:17, 1:17]
        moved[:] = volume[1 - z : 17 - z, 1 - y : 17 - y, 1 - x : 17 - x]
    target = torch.tensor(shifts, dtype=torch.float32)[:, :, None, None, None].expand(2, 3, 16, 16, 16)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = (network(volumes) - target).abs().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * target.abs().mean()


def test_the_layer_without_smoothing_is_the_solid():
    u = 0.02 * random(2, 3, 5, 6, 7)
    layer = PhysicsLayer(smoothing_voxels=0.0)
    found = layer(u, **SOLID)
    epsilon = strain(u, VOXEL)
    sigma = stress(epsilon, 1200.0, 0.42)
    close(found.strain, epsilon, 0)
    close(found.stress_pa, sigma, 0)
    close(found.body_force_n_per_m3, body_force_n_per_m3(sigma, VOXEL), 0)
    assert list(layer.parameters()) == []
    assert layer.state_dict() == {}
    F = deformation_gradient(u, VOXEL)
    large = PhysicsLayer(smoothing_voxels=0.0, material="neo_hookean")(u, **SOLID)
    close(large.strain, green_lagrange(F), 0)
    close(large.stress_pa, neo_hookean_stress(F, 1200.0, 0.42), 0)
    close(large.body_force_n_per_m3, body_force_n_per_m3(large.stress_pa, VOXEL), 0)
    assert "neo_hookean" in repr(PhysicsLayer(material="neo_hookean"))


@pytest.mark.parametrize("sd", [0.4, 1.0, 1.7])
def test_smoothing_is_the_gaussian_of_scipy_inside(sd):
    field, reach = random(2, 20, 18, 19), int(4 * sd + 0.5)
    expected = torch.tensor(ndimage.gaussian_filter(field.numpy(), sd, axes=(1, 2, 3)))
    inside = (slice(None), *[slice(reach, -reach)] * 3)
    close(smoothed(field, sd)[inside], expected[inside], 1e-13)


@REPEATABLE
@given(st.integers(0, 2**31), st.floats(0.05, 2.0), st.sampled_from(["linear", "neo_hookean"]))
def test_a_uniform_strain_passes_unchanged_and_without_force_up_to_the_faces(seed, sd, material):
    matrix = 0.1 * random(3, 3, seed=seed)
    u = torch.einsum("ij,jzyx->izyx", matrix, voxel_positions_um((3, 7, 20), VOXEL).movedim(-1, 0))
    found = PhysicsLayer(smoothing_voxels=sd, material=material)(u, **SOLID)
    first = found.stress_pa[..., :1, :1, :1]
    close(found.stress_pa, first.expand_as(found.stress_pa), 1e-8)
    assert found.body_force_n_per_m3.abs().max() < 0.1  # of 1e9 N/m^3 per unit of strain and um
    if material == "linear":
        close(found.strain[..., 0, 0, 0], (matrix + matrix.T) / 2)


@REPEATABLE
@given(st.integers(0, 2**31), st.floats(0.05, 2.0))
def test_a_strain_that_grows_linearly_passes_unchanged_up_to_the_faces(seed, sd):
    x = voxel_positions_um((5, 7, 20), VOXEL).movedim(-1, 0)
    u = torch.einsum("ijk,jzyx,kzyx->izyx", 0.1 * random(3, 3, 3, seed=seed), x, x)
    smooth, sharp = (PhysicsLayer(smoothing_voxels=width)(u, **SOLID) for width in (sd, 0.0))
    close(smooth.stress_pa, sharp.stress_pa, 1e-7)
    close(smooth.body_force_n_per_m3 / 1e6, sharp.body_force_n_per_m3 / 1e6, 1e-6)


def test_a_force_comes_back_through_the_layer_and_smoothing_quietens_the_noise():
    voxel = (1.25, 1.0, 1.0)
    grid = voxel_positions_um((38, 48, 48), voxel)
    source, force = grid.mean(dim=(0, 1, 2))[None], torch.tensor([[0.9, -0.4, 0.6]], dtype=torch.float64)
    constants = {"youngs_modulus_pa": 1200.0, "poisson_ratio": 0.42}
    u = kelvin_displacement(grid, source, force, **constants, regularization_um=4.0).movedim(-1, 0)
    sharp, layer = PhysicsLayer(smoothing_voxels=0.0), PhysicsLayer()
    found = layer(u, voxel_size_um=voxel, **constants).body_force_n_per_m3
    assert (total_force_nn(found, voxel) - force[0]).norm() < 2e-3 * force.norm()  # 1e-3 without smoothing
    noise = 0.05 * random(3, 20, 20, 20, seed=1)
    loud, quiet = (net(noise, voxel_size_um=voxel, **constants).body_force_n_per_m3 for net in (sharp, layer))
    assert quiet[:, 5:-5, 5:-5, 5:-5].std() < 0.1 * loud.std()
    assert quiet.std() < 0.5 * loud.std()


def test_samples_with_constants_of_their_own():
    u = 0.02 * random(2, 3, 6, 6, 6)
    modulus, ratio = torch.tensor([500.0, 2000.0]), torch.tensor([0.3, 0.45])
    voxel = torch.tensor([[1.0, 0.5, 0.5], [0.8, 0.3, 0.25]])
    both = PhysicsLayer()(u, voxel_size_um=voxel, youngs_modulus_pa=modulus, poisson_ratio=ratio)
    for i in range(2):
        one = PhysicsLayer()(u[i], voxel_size_um=voxel[i], youngs_modulus_pa=modulus[i], poisson_ratio=ratio[i])
        for a, b in zip(both, one, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))
    converted = um_from_voxels(torch.ones(2, 3, 6, 6, 6), voxel)
    assert converted[1, :, 0, 0, 0].tolist() == pytest.approx([0.25, 0.3, 0.8])
    close(um_from_voxels(u, VOXEL)[:, 2], u[:, 2] * 0.8, 0)


def test_the_layer_computes_in_single_precision_under_autocast():
    u = 0.02 * random(1, 3, 6, 6, 6, dtype=torch.float32)
    for material in ("linear", "neo_hookean"):
        layer = PhysicsLayer(material=material)
        expected = layer(u, **SOLID)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = layer(u, **SOLID)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == torch.float32
            assert torch.equal(a, b)
        assert layer(u.bfloat16(), **SOLID).stress_pa.dtype == torch.float32


@pytest.mark.parametrize("material", ["linear", "neo_hookean"])
def test_gradients_through_the_layer(material):
    u = (0.02 * random(3, 4, 4, 4)).requires_grad_()
    layer = PhysicsLayer(smoothing_voxels=0.6, material=material)
    constants = {"voxel_size_um": VOXEL, "youngs_modulus_pa": 1.0, "poisson_ratio": 0.3}
    assert torch.autograd.gradcheck(lambda u: layer(u, **constants).body_force_n_per_m3 / 1e6, u, fast_mode=True)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="smoothing_voxels must be"):
        PhysicsLayer(smoothing_voxels=-1.0)
    with pytest.raises(ValueError, match="material must be one of linear, neo_hookean"):
        PhysicsLayer(material="rubber")
    with pytest.raises(ValueError, match="displacement_um must have at least 3 voxels"):
        PhysicsLayer()(torch.zeros(3, 8, 2, 8), **SOLID)
    with pytest.raises(ValueError, match="field must have at least 3 voxels"):
        smoothed(torch.zeros(8, 2, 8), 1.0)
    with pytest.raises(ValueError, match="poisson_ratio"):
        PhysicsLayer()(torch.zeros(3, 8, 8, 8), **{**SOLID, "poisson_ratio": 0.5})
    with pytest.raises(ValueError, match="positive determinant"):
        PhysicsLayer(smoothing_voxels=0, material="neo_hookean")(random(3, 8, 8, 8), **SOLID)
    with pytest.raises(ValueError, match="displacement_voxels must have shape"):
        um_from_voxels(torch.zeros(2, 8, 8, 8), VOXEL)
    with pytest.raises(ValueError, match="volumes must have shape"):
        small_net()(torch.zeros(1, 3, 8, 8, 8))
    for channels in ((16,), (16, 20)):
        with pytest.raises(ValueError, match="channels must be at least two multiples of 8"):
            VolumetricForceNet(channels)
