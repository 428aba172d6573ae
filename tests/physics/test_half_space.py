"""Forward elasticity against closed forms, numerical integration, the equations of elasticity and convolution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, ndimage, signal

from physics import half_space
from physics.half_space import displacement_from_traction, green_eigenvalues, green_tensor_fourier, green_tensor_space
from physics.vector_fields import flip, rotate

NU = 0.45
SUBSTRATE = {"pixel_size_um": 1.925, "youngs_modulus_pa": 10670.0, "poisson_ratio": NU}
UNIT = {"pixel_size_um": 1.0, "youngs_modulus_pa": 1.0, "poisson_ratio": NU}
ROUNDING = 1e-12  # float64 transforms
REPEATABLE = settings(deadline=None, derandomize=True, max_examples=25)
SEEDS = st.integers(0, 2**31)
OPTIONS = st.sampled_from(
    [
        {},
        {"centre_element": "published", "reach": "published"},
        {"boundary": "periodic"},
        {"thickness_um": 8.0},
        {"boundary": "periodic", "thickness_um": 8.0},
        {"transfer_function": torch.tensor([0.25, 0.5, 0.25])},
    ]
)


def random_field(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(a, b):
    return float((a - b).detach().norm() / b.detach().norm())


def boussinesq(x, y, nu=NU):
    """G_xx for E = 1, from the textbook."""
    r = math.hypot(x, y)
    return (1 + nu) / math.pi * ((1 - nu) / r + nu * x * x / r**3)


def test_a_unit_traction_in_a_corner_gives_the_analytic_kernel_ninety_pixels_away():
    traction = torch.zeros(2, 104, 104, dtype=torch.float64)
    traction[0, 0, 0] = 1.0
    u = displacement_from_traction(traction, **UNIT)
    a = (1 + NU) / math.pi
    assert u[0, 0, 90] == pytest.approx(a / 90, rel=ROUNDING)  # along x: (1 - nu + nu) / r
    assert u[0, 90, 0] == pytest.approx(a * (1 - NU) / 90, rel=ROUNDING)
    assert u[0, 72, 54] == pytest.approx(a * (1 - NU + NU * 0.36) / 90, rel=ROUNDING)
    assert u[1, 72, 54] == pytest.approx(a * NU * 0.48 / 90, rel=ROUNDING)
    assert u[0, 103, 103] == pytest.approx(boussinesq(103, 103), rel=ROUNDING)


@pytest.mark.parametrize("nu", [0.2, 0.45, 0.5])
def test_the_exact_centre_element_is_the_mean_over_the_pixel(nu):
    quarter, _ = integrate.dblquad(
        lambda phi, r: boussinesq(r * math.cos(phi), r * math.sin(phi), nu) * r, 0, 0.5, 0, math.pi / 2
    )  # disc of radius 1/2; the rest of the pixel in slices of constant x
    corner, _ = integrate.dblquad(
        lambda y, x: boussinesq(x, y, nu), 0, 0.5, lambda x: math.sqrt(max(0.25 - x * x, 0)), 0.5, epsabs=1e-11
    )
    kernel = green_tensor_space(1, 1, **{**UNIT, "poisson_ratio": nu})
    assert kernel[0, 1, 1] == pytest.approx(4 * (quarter + corner), rel=1e-8)
    assert kernel[1, 1, 1] == 0
    assert kernel[2, 1, 1] == kernel[0, 1, 1]


def test_the_centre_elements_by_hand():
    assert green_tensor_space(1, 1, **UNIT)[0, 1, 1] == pytest.approx(1.2611, abs=5e-5)
    assert green_tensor_space(1, 1, **UNIT, centre_element="published")[0, 1, 1] == pytest.approx(1.17, rel=ROUNDING)


def test_the_kernel_in_space_has_the_symmetries_of_cerruti():
    xx, xy, yy = green_tensor_space(6, 6, **UNIT)
    for kernel in (xx, xy, yy):
        assert torch.equal(kernel, kernel.flip(0, 1))  # reciprocity of two points
    assert torch.equal(xx, xx.flip(0))
    torch.testing.assert_close(xx, yy.T, rtol=ROUNDING, atol=0)
    assert torch.equal(xy, -xy.flip(0))
    torch.testing.assert_close(xy, xy.T, rtol=ROUNDING, atol=0)


@REPEATABLE
@given(SEEDS, OPTIONS)
def test_reciprocity(seed, options):
    one, other = random_field(seed, 2, 2, 12, 12)
    work = [
        float((displacement_from_traction(a, **SUBSTRATE, **options) * b).sum())
        for a, b in ((one, other), (other, one))
    ]
    assert work[0] == pytest.approx(work[1], rel=1e-9, abs=1e-9 * float(one.norm() * other.norm()) * 1e-4)


@REPEATABLE
@given(SEEDS, OPTIONS, st.floats(-3, 3))
def test_linearity(seed, options, factor):
    one, other = random_field(seed, 2, 2, 10, 10)
    u = displacement_from_traction(torch.stack((one, other, one + factor * other)), **SUBSTRATE, **options)
    assert (u[0] + factor * u[1] - u[2]).norm() < ROUNDING * u.norm()


@REPEATABLE
@given(SEEDS, OPTIONS, st.integers(1, 3))
def test_turning_the_traction_turns_the_displacement(seed, options, quarters):
    traction, angle = random_field(seed, 2, 12, 12), quarters * math.pi / 2
    turned = displacement_from_traction(rotate(traction, angle), **SUBSTRATE, **options)
    assert relative(turned, rotate(displacement_from_traction(traction, **SUBSTRATE, **options), angle)) < ROUNDING


@REPEATABLE
@given(SEEDS, OPTIONS, st.sampled_from("xy"))
def test_mirroring_the_traction_mirrors_the_displacement(seed, options, axis):
    traction = random_field(seed, 2, 12, 12)
    mirrored = displacement_from_traction(flip(traction, axis), **SUBSTRATE, **options)
    assert relative(mirrored, flip(displacement_from_traction(traction, **SUBSTRATE, **options), axis)) < ROUNDING


@REPEATABLE
@given(SEEDS, OPTIONS, st.floats(0.1, 10), st.floats(0.1, 10))
def test_displacement_grows_with_all_lengths_and_falls_with_stiffness(seed, options, length, stiffness):
    traction = random_field(seed, 2, 8, 8)
    larger = {"pixel_size_um": 1.925 * length, "youngs_modulus_pa": 10670.0 * stiffness, "poisson_ratio": NU}
    scaled = {**options, "thickness_um": options["thickness_um"] * length} if "thickness_um" in options else options
    u = displacement_from_traction(traction, **larger, **scaled)
    reference = displacement_from_traction(traction, **SUBSTRATE, **options) * (length / stiffness)
    assert relative(u, reference) < 1e-9


@pytest.mark.parametrize("shape", [(12, 12), (7, 10), (11, 5)])
def test_the_open_boundary_is_a_linear_convolution(shape):
    height, width = shape
    traction = random_field(3, 2, *shape).numpy()
    y, x = np.mgrid[-height + 1 : height, -width + 1 : width].astype(float)
    r = np.hypot(x, y)
    r[height - 1, width - 1] = 1.0
    a = (1 + NU) / math.pi
    xx, xy, yy = a * ((1 - NU) / r + NU * x**2 / r**3), a * NU * x * y / r**3, a * ((1 - NU) / r + NU * y**2 / r**3)
    xx[height - 1, width - 1] = yy[height - 1, width - 1] = a * 2 * (2 - NU) * math.asinh(1)

    def conv(field, kernel):
        return signal.convolve2d(field, kernel)[height - 1 : 2 * height - 1, width - 1 : 2 * width - 1]

    tx, ty = traction
    expected = np.stack((conv(tx, xx) + conv(ty, xy), conv(tx, xy) + conv(ty, yy)))
    assert relative(displacement_from_traction(torch.tensor(traction), **UNIT), torch.tensor(expected)) < ROUNDING


def test_the_published_reach_is_an_odd_kernel_under_conv2_same():
    size = 8
    traction = random_field(4, 2, size, size).numpy()
    offsets = np.arange(1, size) - size / 2  # 1-based centre at S/2 of S-1 rows
    y, x = np.meshgrid(offsets, offsets, indexing="ij")
    r = np.where(x**2 + y**2 > 0, np.hypot(x, y), 1.0)
    a = (1 + NU) / math.pi
    centre = (x == 0) & (y == 0)
    xx = np.where(centre, 1.17, a * ((1 - NU) / r + NU * x**2 / r**3))
    yy = np.where(centre, 1.17, a * ((1 - NU) / r + NU * y**2 / r**3))
    xy = a * NU * x * y / r**3

    def same(field, kernel):
        return signal.convolve2d(field, kernel, mode="same")

    tx, ty = traction
    expected = torch.tensor(np.stack((same(tx, xx) + same(ty, xy), same(tx, xy) + same(ty, yy))))
    u = displacement_from_traction(torch.tensor(traction), **UNIT, centre_element="published", reach="published")
    assert relative(u, expected) < ROUNDING


def test_a_source_beyond_the_published_reach_moves_nothing():
    traction = torch.zeros(2, 16, 16, dtype=torch.float64)
    traction[0, 0, 0] = 1.0
    u = displacement_from_traction(traction, **UNIT, reach="published")[0]
    assert u[0, 7] == pytest.approx(boussinesq(7, 0), rel=1e-10)
    assert u[7, 7] == pytest.approx(boussinesq(7, 7), rel=1e-10)
    assert u[:, 8:].abs().max() < ROUNDING
    assert u[8:].abs().max() < ROUNDING


@pytest.mark.parametrize("shape", [(16, 20), (15, 9)])
@pytest.mark.parametrize("thickness_um", [None, 4.0])
def test_a_periodic_wave_is_answered_by_its_eigenvalue(shape, thickness_um):
    height, width = shape
    y, x = np.mgrid[:height, :width] * 1.925
    k_x, k_y = 2 * math.pi * 2 / (width * 1.925), 2 * math.pi * 3 / (height * 1.925)
    k = math.hypot(k_x, k_y)
    wave = torch.tensor(np.cos(k_x * x + k_y * y))
    mu, shrink = 10670.0 / (2 * (1 + NU)), 1.0 if thickness_um is None else math.tanh(k * thickness_um)
    across = torch.stack((-k_y / k * wave, k_x / k * wave))
    u = displacement_from_traction(across, **SUBSTRATE, boundary="periodic", thickness_um=thickness_um)
    assert relative(u, across * shrink / (mu * k)) < ROUNDING
    along = torch.stack((k_x / k * wave, k_y / k * wave))
    u = displacement_from_traction(along, **SUBSTRATE, boundary="periodic", thickness_um=thickness_um)
    g_l = float(green_eigenvalues(torch.tensor(k, dtype=torch.float64), 10670.0, NU, thickness_um)[0])
    assert relative(u, along * g_l) < ROUNDING
    if thickness_um is None:
        assert g_l == pytest.approx((1 - NU) / (mu * k), rel=ROUNDING)


def test_a_uniform_traction_has_no_periodic_displacement():
    assert displacement_from_traction(torch.ones(2, 8, 9), **UNIT, boundary="periodic").abs().max() < 1e-6
    tensor = green_tensor_fourier(8, 8, **UNIT)
    assert (tensor[:, 0, 0] == 0).all()
    assert (tensor[1, 4] == 0).all()
    assert (tensor[1, :, 4] == 0).all()


@pytest.mark.parametrize("kernel", [[0.08, 0.84, 0.08], [0.25, 0.5, 0.25]])
def test_the_transfer_function_blurs_the_displacement_beyond_the_frame_too(kernel):
    traction = random_field(6, 2, 9, 14)
    wide = torch.nn.functional.pad(traction, (3, 3, 3, 3))
    sharp = displacement_from_traction(wide, **SUBSTRATE).numpy()
    separable = np.outer(kernel, kernel)
    expected = np.stack([ndimage.convolve(component, separable)[3:-3, 3:-3] for component in sharp])
    blurred = displacement_from_traction(
        traction, **SUBSTRATE, transfer_function=torch.tensor(kernel, dtype=torch.float64)
    )
    assert relative(blurred, torch.tensor(expected)) < ROUNDING
    full = displacement_from_traction(traction, **SUBSTRATE, transfer_function=torch.tensor(separable))
    assert relative(full, blurred) < ROUNDING
    periodic = displacement_from_traction(traction, **SUBSTRATE, boundary="periodic").numpy()
    expected = np.stack([ndimage.convolve(component, separable, mode="wrap") for component in periodic])
    u = displacement_from_traction(
        traction, **SUBSTRATE, boundary="periodic", transfer_function=torch.tensor(kernel, dtype=torch.float64)
    )
    assert relative(u, torch.tensor(expected)) < ROUNDING


def test_batches_and_precision():
    traction = random_field(7, 3, 2, 2, 9, 12)
    u = displacement_from_traction(traction, **SUBSTRATE)
    assert u.shape == traction.shape
    assert u.is_contiguous()
    assert relative(displacement_from_traction(traction[1, 0], **SUBSTRATE), u[1, 0]) < ROUNDING
    single = displacement_from_traction(traction.float(), **SUBSTRATE)
    assert single.dtype == torch.float32
    assert relative(single.double(), u) < 1e-6


def test_blocks_of_a_large_batch_do_not_change_it(monkeypatch):
    traction = random_field(8, 5, 2, 9, 12).requires_grad_()
    whole = displacement_from_traction(traction, **SUBSTRATE)
    monkeypatch.setattr(half_space, "CPU_BLOCK", 1000)
    blocks = displacement_from_traction(traction, **SUBSTRATE)
    assert relative(blocks, whole) < ROUNDING
    gradients = [torch.autograd.grad(u.square().sum(), traction)[0] for u in (whole, blocks)]
    assert relative(*gradients) < ROUNDING


@pytest.mark.parametrize(
    "options",
    [{}, {"boundary": "periodic"}, {"thickness_um": 3.0}, {"centre_element": "published", "reach": "published"}],
)
def test_gradients(options):
    traction = random_field(9, 2, 4, 4).requires_grad_()
    kernel = torch.tensor([[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]], dtype=torch.float64, requires_grad=True)

    def forward(traction, kernel):
        return displacement_from_traction(
            traction, **UNIT, **options, transfer_function=(kernel + kernel.flip(0, 1)) / 2
        )

    assert torch.autograd.gradcheck(forward, (traction, kernel))


def test_a_first_call_in_inference_mode_leaves_later_gradients_alone():
    numbers = {"pixel_size_um": 1.0, "youngs_modulus_pa": 1.0, "poisson_ratio": 0.3217}  # not in any cache yet
    traction = random_field(10, 2, 6, 6)
    with torch.inference_mode():
        displacement_from_traction(traction, **numbers, thickness_um=2.0)
        displacement_from_traction(traction, **numbers, boundary="periodic")
    traction.requires_grad_()
    for options in ({"thickness_um": 2.0}, {"boundary": "periodic"}):
        displacement_from_traction(traction, **numbers, **options).sum().backward()
    assert torch.isfinite(traction.grad).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"thickness_um": 5.0}, {"boundary": "periodic"}])
def test_a_gpu_gives_the_same(options):
    traction = random_field(11, 4, 2, 20, 20)
    on_gpu = displacement_from_traction(traction.cuda(), **SUBSTRATE, **options)
    assert on_gpu.is_cuda
    assert relative(on_gpu.cpu(), displacement_from_traction(traction, **SUBSTRATE, **options)) < ROUNDING


@pytest.mark.parametrize(
    ("field", "changes", "name"),
    [
        (torch.zeros(2, 8), {}, "traction_pa"),
        (torch.zeros(3, 8, 8), {}, "traction_pa"),
        (torch.zeros(2, 1, 8), {}, "traction_pa"),
        (torch.zeros(2, 8, 8, dtype=torch.int64), {}, "traction_pa"),
        (torch.full((2, 8, 8), torch.nan), {}, "traction_pa"),
        (torch.tensor([torch.inf, -torch.inf] * 64).reshape(2, 8, 8), {}, "traction_pa"),
        (torch.zeros(2, 8, 8), {"pixel_size_um": 0.0}, "pixel_size_um"),
        (torch.zeros(2, 8, 8), {"youngs_modulus_pa": None}, "youngs_modulus_pa must be a positive"),
        (
            torch.zeros(2, 8, 8),
            {"transfer_function": [0.1, 0.8, 0.1]},
            "transfer_function must be a tensor, got a",
        ),
        (torch.zeros(2, 8, 8), {"youngs_modulus_pa": -1.0}, "youngs_modulus_pa"),
        (torch.zeros(2, 8, 8), {"poisson_ratio": 0.0}, "poisson_ratio"),
        (torch.zeros(2, 8, 8), {"poisson_ratio": 0.51}, "poisson_ratio"),
        (torch.zeros(2, 8, 8), {"thickness_um": 0.0}, "thickness_um"),
        (torch.zeros(2, 8, 8), {"boundary": "closed"}, "boundary"),
        (torch.zeros(2, 8, 8), {"centre_element": "zero"}, "centre_element"),
        (torch.zeros(2, 8, 8), {"reach": "far"}, "reach"),
        (torch.zeros(2, 8, 8), {"reach": "published", "boundary": "periodic"}, "reach"),
        (torch.zeros(2, 8, 10), {"reach": "published"}, "reach"),
        (torch.zeros(2, 9, 9), {"reach": "published"}, "reach"),
        (torch.zeros(2, 8, 8), {"transfer_function": torch.ones(2)}, "transfer_function"),
        (torch.zeros(2, 8, 8), {"transfer_function": torch.tensor([0.0, 0.5, 0.5])}, "transfer_function"),
        (torch.zeros(2, 8, 8), {"transfer_function": torch.tensor([0.0, torch.nan, 0.0])}, "transfer_function"),
        (torch.zeros(2, 8, 8), {"transfer_function": torch.ones(9), "boundary": "periodic"}, "transfer_function"),
    ],
)
def test_bad_input_is_named(field, changes, name):
    with pytest.raises(ValueError, match=f"^{name} "):
        displacement_from_traction(field, **{**SUBSTRATE, **changes})
    if name == "centre_element":
        with pytest.raises(ValueError, match=f"^{name} "):
            green_tensor_space(2, 2, **SUBSTRATE, **changes)
