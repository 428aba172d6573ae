"""A gel bonded to glass: the equations of elasticity, both limits, its kernel in space, and a published fit of it."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, special

from physics.half_space import displacement_from_traction, green_eigenvalues, green_tensor_space

NU = 0.45
SUBSTRATE = {"pixel_size_um": 1.925, "youngs_modulus_pa": 10670.0, "poisson_ratio": NU}


def random_field(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("nu", [0.1, 0.45, 0.5])
@pytest.mark.parametrize("k_h", [0.01, 0.5, 2.0, 6.0])
def test_the_layer_solves_the_equations_of_elasticity(nu, k_h):
    k, h, mu = 1.3, k_h / 1.3, 2.0  # plane strain along k: state (u, w, shear stress, normal stress) through the depth
    ratio, plane = nu / (1 - nu), 2 * mu / (1 - nu)
    compliance = (1 - 2 * nu) / (2 * mu * (1 - nu))
    rate = [[0, k, 1 / mu, 0], [-ratio * k, 0, 0, compliance], [plane * k * k, 0, 0, ratio * k], [0, 0, -k, 0]]
    from_stress = linalg.expm(np.array(rate) * h)[:, 2:]  # u = w = 0 on the glass
    bottom = np.linalg.solve(from_stress[2:], [1.0, 0.0])  # unit shear and no normal stress on top
    wave = torch.tensor(k, dtype=torch.float64)
    along, across = green_eigenvalues(wave, 2 * mu * (1 + nu), nu, h)
    assert float(along) == pytest.approx((from_stress[:2] @ bottom)[0], rel=1e-9)
    assert float(across) == pytest.approx(math.tanh(k * h) / (mu * k), rel=1e-12)


def test_a_thick_layer_is_a_half_space_and_a_thin_one_a_sheared_sheet():
    k = torch.tensor([0.0, 0.2, 1.0, 3.0], dtype=torch.float64)
    mu = 10670.0 / (2 * (1 + NU))
    for thick, half in zip(
        green_eigenvalues(k[1:], 10670.0, NU, 500.0), green_eigenvalues(k[1:], 10670.0, NU), strict=True
    ):
        torch.testing.assert_close(thick, half, rtol=1e-12, atol=0)
    for thin in green_eigenvalues(k, 10670.0, NU, 1e-4):
        torch.testing.assert_close(thin, torch.full_like(k, 1e-4 / mu), rtol=1e-6, atol=0)
    traction = random_field(5, 2, 12, 12)
    u = displacement_from_traction(traction, **SUBSTRATE, thickness_um=0.02)  # a hundredth of a pixel
    assert relative(u, traction * (0.02 / mu)) < 1e-3
    u = displacement_from_traction(traction, **SUBSTRATE, thickness_um=1e7)
    assert relative(u, displacement_from_traction(traction, **SUBSTRATE)) < 1e-5


@pytest.mark.parametrize("nu", [0.3, 0.5])
def test_the_layer_in_space_is_the_inverse_hankel_transform(nu):
    h, r = 2.0, np.array([1.0, 3.0, 7.0])
    # both eigenvalues against the half space's: the difference has left the integral by k h = 24
    k = np.linspace(0, 12, 40001)[1:]
    thick, half = (green_eigenvalues(torch.tensor(k), 1.0, nu, thickness) for thickness in (h, None))
    along, across = (np.r_[0.0, ((t - f) * torch.tensor(k)).numpy()] for t, f in zip(thick, half, strict=True))
    along[0], across[0] = -2 * (1 - nu**2), -2 * (1 + nu)  # at k = 0 the layer's part vanishes
    phase = np.outer(r, np.r_[0.0, k])
    even = integrate.simpson(special.jv(0, phase) * (along + across) / 2, np.r_[0.0, k]) / (2 * math.pi)
    odd = integrate.simpson(special.jv(2, phase) * (along - across) / 2, np.r_[0.0, k]) / (2 * math.pi)
    substrate = {"pixel_size_um": 1.0, "youngs_modulus_pa": 1.0, "poisson_ratio": nu}
    difference = green_tensor_space(7, 7, **substrate, thickness_um=h) - green_tensor_space(7, 7, **substrate)
    row = difference[:, 7, 7 + r.astype(int)].numpy()  # along x
    np.testing.assert_allclose(row[0], even - odd, rtol=0, atol=1e-8)
    np.testing.assert_allclose(row[2], even + odd, rtol=0, atol=1e-8)
    np.testing.assert_allclose(row[1], 0, atol=1e-15)


def test_the_layer_in_space_follows_the_fit_of_merkel_and_others():
    # Merkel et al. 2007 fit their kernel for nu = 0.5; the fit, not the theory, is what a few per cent are left to
    kernel = green_tensor_space(1, 40, pixel_size_um=1.0, youngs_modulus_pa=1.0, poisson_ratio=0.5, thickness_um=10.0)
    r = np.arange(1, 41)
    s = r / 10.0
    mean = 1.5 * 1.5 / (2 * math.pi * r) * (0.12 * np.exp(-0.43 * s) + 0.88 * np.exp(-0.83 * s))
    half_difference = 1.5 * 0.5 / (2 * math.pi * r) * (1 + 1.22 * s + 1.31 * s**2.23) * np.exp(-1.25 * s)
    along, across = kernel[0, 1, 41:].numpy(), kernel[2, 1, 41:].numpy()
    np.testing.assert_allclose((along + across) / 2, mean, rtol=0.03)
    np.testing.assert_allclose((along - across) / 2, half_difference, rtol=0.04)


def test_the_open_layer_agrees_with_a_wide_periodic_one():
    # a smooth traction far from the frame: both ways of sampling the kernel must give the same displacement
    y, x = np.mgrid[:96, :96] - 47.5
    bump = torch.tensor(np.exp(-(x**2 + y**2) / (2 * 4.0**2)))
    traction = torch.stack((bump, -0.3 * bump))
    options = {**SUBSTRATE, "thickness_um": 12.0}
    u = displacement_from_traction(traction, **options)
    wide = displacement_from_traction(traction, **options, boundary="periodic")
    mu = 10670.0 / (2 * (1 + NU))
    wide = wide + traction.mean((-2, -1), keepdim=True) * 12.0 / mu  # the mean that k = 0 leaves out
    assert relative(u, wide) < 1.5e-2  # midpoint rule of the open kernel
