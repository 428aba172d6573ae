"""FTTC against plane waves, a 2 x 2 solve per wave vector in numpy, and the forward model; the cutoff filter."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from physics.half_space import displacement_from_traction
from physics.traction_cytometry import choose_regularization, cutoff_filter, traction_from_displacement
from physics.vector_fields import flip, rotate

NU = 0.45
SUBSTRATE = {"pixel_size_um": 1.925, "youngs_modulus_pa": 10670.0, "poisson_ratio": NU}
ROUNDING = 1e-12  # float64 transforms
REPEATABLE = settings(deadline=None, derandomize=True, max_examples=25)
MILD_BLUR, STRONG_BLUR = [0.08, 0.84, 0.08], [0.25, 0.5, 0.25]


def random_field(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_field(seed, *shape):
    """Random, without mean and without Nyquist waves, whose direction a real grid does not show."""
    spectrum = torch.fft.rfft2(random_field(seed, *shape))
    height, width = shape[-2:]
    spectrum[..., 0, 0] = 0
    if height % 2 == 0:
        spectrum[..., height // 2, :] = 0
    if width % 2 == 0:
        spectrum[..., width // 2] = 0
    return torch.fft.irfft2(spectrum, s=(height, width))


def relative(a, b):
    return float((a - b).detach().norm() / b.detach().norm())


def solved_per_wave(displacement, regularization):
    """Tikhonov's normal equations for every wave vector, on the padded even square, in numpy's full transforms."""
    height, width = displacement.shape[-2:]
    side = max(height, width) + max(height, width) % 2
    centred = displacement - displacement.mean((-2, -1), keepdims=True)
    u = np.fft.fft2(np.pad(centred, ((0, 0), (0, side - height), (0, side - width))))
    waves = 2 * np.pi * np.fft.fftfreq(side, SUBSTRATE["pixel_size_um"])
    traction = np.zeros_like(u)
    compliance = 2 * (1 + NU) / SUBSTRATE["youngs_modulus_pa"]
    for row, k_y in enumerate(waves):
        for column, k_x in enumerate(waves):
            k = math.hypot(k_x, k_y)
            if k == 0:
                continue
            G = (
                compliance
                / k**3
                * np.array(
                    [[(1 - NU) * k**2 + NU * k_y**2, -NU * k_x * k_y], [-NU * k_x * k_y, (1 - NU) * k**2 + NU * k_x**2]]
                )
            )
            inverse = np.linalg.solve(G.T @ G + regularization * np.eye(2), G.T)
            if side // 2 in (row, column):
                inverse[0, 1] = inverse[1, 0] = 0
            traction[:, row, column] = inverse @ u[:, row, column]
    return np.fft.ifft2(traction).real[:, :height, :width]


@pytest.mark.parametrize("shape", [(8, 8), (9, 9), (7, 12), (11, 6)])
@pytest.mark.parametrize("regularization", [0.0, 3e-9, 1e-6])
def test_the_inverse_is_tikhonovs_for_every_wave_vector(shape, regularization):
    u = random_field(1, 2, *shape)
    expected = torch.tensor(solved_per_wave(u.numpy(), regularization))
    assert relative(traction_from_displacement(u, **SUBSTRATE, regularization=regularization), expected) < ROUNDING
    as_tensor = torch.tensor(regularization, dtype=torch.float64)
    assert relative(traction_from_displacement(u, **SUBSTRATE, regularization=as_tensor), expected) < ROUNDING


@pytest.mark.parametrize("direction", ["along", "across"])
def test_a_plane_wave_is_multiplied_by_its_damped_inverse_eigenvalue(direction):
    y, x = np.mgrid[:16, :16]
    wave = torch.tensor(np.cos(2 * math.pi * (3 * x + 4 * y) / 16))
    k, mu = 2 * math.pi * 5 / (16 * 1.925), 10670.0 / (2 * (1 + NU))
    vector, g = ((0.6, 0.8), (1 - NU) / (mu * k)) if direction == "along" else ((-0.8, 0.6), 1 / (mu * k))
    u = torch.stack((vector[0] * wave, vector[1] * wave))
    strengths = torch.tensor([[0.0, 1e-9, 1e-7]], dtype=torch.float64)
    traction = traction_from_displacement(u.expand(2, 3, -1, -1, -1), **SUBSTRATE, regularization=strengths)
    for column, strength in enumerate(strengths[0].tolist()):
        for row in range(2):
            assert relative(traction[row, column], u * (g / (g * g + strength))) < 1e-10


@pytest.mark.parametrize("shape", [(16, 16), (64, 64)])
@pytest.mark.parametrize("options", [{}, {"thickness_um": 6.0}, {"transfer_function": torch.tensor(MILD_BLUR)}])
def test_it_inverts_the_periodic_forward_model(shape, options):
    traction = 100 * smooth_field(2, 3, 2, *shape)
    u = displacement_from_traction(traction, **SUBSTRATE, boundary="periodic", **options)
    assert relative(traction_from_displacement(u, **SUBSTRATE, **options), traction) < 1e-10


def test_a_thin_layer_answers_in_place():
    u = smooth_field(3, 2, 16, 16)
    mu = 10670.0 / (2 * (1 + NU))
    assert relative(traction_from_displacement(u, **SUBSTRATE, thickness_um=1e-3), u * (mu / 1e-3)) < 1e-5


def test_waves_that_the_measurement_removed_get_no_traction():
    u = random_field(4, 2, 16, 16)
    traction = traction_from_displacement(u, **SUBSTRATE, transfer_function=torch.tensor(STRONG_BLUR))
    spectrum = torch.fft.rfft2(traction)
    assert spectrum[:, 8].abs().max() < 1e-8 * spectrum.abs().max()
    assert spectrum[:, :, 8].abs().max() < 1e-8 * spectrum.abs().max()
    blurred = displacement_from_traction(
        traction, **SUBSTRATE, boundary="periodic", transfer_function=torch.tensor(STRONG_BLUR)
    )
    seen = torch.fft.rfft2(u)
    seen[:, 8], seen[:, :, 8], seen[:, 0, 0] = 0, 0, 0
    assert relative(torch.fft.rfft2(blurred), seen) < 1e-9


def test_what_rounding_leaves_of_a_removed_wave_is_no_traction():
    kernel = torch.tensor([0.05, 0.25, 0.4, 0.25, 0.05])  # 1e-9 at the Nyquist wave instead of 0, in single precision
    u = random_field(4, 2, 16, 16)
    single = traction_from_displacement(u, **SUBSTRATE, transfer_function=kernel)
    exact = torch.tensor([1, 5, 8, 5, 1], dtype=torch.float64) / 20
    assert relative(single, traction_from_displacement(u, **SUBSTRATE, transfer_function=exact)) < 1e-5


def test_drift_makes_no_force_unless_asked():
    u = random_field(5, 2, 9, 12)
    shifted = u + torch.tensor([3.0, -1.0], dtype=torch.float64)[:, None, None]
    traction = traction_from_displacement(u, **SUBSTRATE)
    assert relative(traction_from_displacement(shifted, **SUBSTRATE), traction) < 1e-10
    square = traction_from_displacement(shifted[..., :9, :9][..., :8, :8], **SUBSTRATE)
    assert square.mean((-2, -1)).abs().max() < 1e-10 * square.abs().max()


@pytest.mark.parametrize("thickness_um", [None, 500.0])
def test_a_uniform_displacement_on_a_finite_domain(thickness_um):
    u = torch.tensor([2.0, -1.0], dtype=torch.float64)[:, None, None].expand(2, 10, 10)
    options = {"mean_force": "finite_domain", "thickness_um": thickness_um}
    traction = traction_from_displacement(u, **SUBSTRATE, **options)
    half = 10 * 1.925 / 2
    a = (1 + NU) / (math.pi * 10670.0)
    # response at the centre of the square in polar coordinates: the radius cancels 1 / r
    g0, _ = integrate.quad(
        lambda phi: a * (1 - NU + NU * math.cos(phi) ** 2) * half / max(abs(math.cos(phi)), abs(math.sin(phi))),
        0,
        2 * math.pi,
        points=[math.pi / 4 * i for i in range(1, 8)],
    )
    assert relative(traction, u / g0) < (1e-10 if thickness_um is None else 0.05)
    assert (thickness_um is None) or float(traction[0].mean()) > 2.0 / g0  # glass below makes it stiffer
    batch = traction_from_displacement(
        torch.stack((u, 2 * u)), **SUBSTRATE, **options, regularization=torch.tensor([0.0, 1e-3])
    )
    assert relative(batch[1], 2 * traction) < 1e-10  # not regularised


@pytest.mark.parametrize("size", [(10, 10), (11, 11), (8, 16), (16, 33)])
@pytest.mark.parametrize("kernel", [None, [0.2, 0.9, 0.2]])
def test_a_finite_domain_of_any_shape_adds_what_the_mean_needs(size, kernel):
    """A field's mean changes nothing else, and is explained as on a square of the same area."""
    u = random_field(6, 2, *size)
    u = u - u.mean((-2, -1), keepdim=True)
    shift = torch.tensor([2.0, -1.0], dtype=torch.float64)[:, None, None]
    options = {**SUBSTRATE, "mean_force": "finite_domain"}
    blur = {} if kernel is None else {"transfer_function": torch.tensor(kernel, dtype=torch.float64)}
    added = traction_from_displacement(u + shift, **options, **blur) - traction_from_displacement(u, **options, **blur)
    side = math.sqrt(size[0] * size[1]) * SUBSTRATE["pixel_size_um"]
    a = (1 + NU) / (math.pi * SUBSTRATE["youngs_modulus_pa"])
    g0 = 2 * a * side * (2 - NU) * math.asinh(1)
    assert relative(added, (shift / g0 / (1 if kernel is None else 1.3)).expand_as(added)) < 1e-9


@REPEATABLE
@given(st.integers(0, 2**31), st.integers(1, 3), st.sampled_from("xy"), st.sampled_from([0.0, 1e-9]))
def test_turning_and_mirroring(seed, quarters, axis, regularization):
    u, angle = random_field(seed, 2, 10, 10), quarters * math.pi / 2
    traction = traction_from_displacement(u, **SUBSTRATE, regularization=regularization)
    turned = traction_from_displacement(rotate(u, angle), **SUBSTRATE, regularization=regularization)
    assert relative(turned, rotate(traction, angle)) < 1e-11
    mirrored = traction_from_displacement(flip(u, axis), **SUBSTRATE, regularization=regularization)
    assert relative(mirrored, flip(traction, axis)) < 1e-11


@REPEATABLE
@given(st.integers(0, 2**31), st.floats(0.1, 10), st.floats(0.1, 10))
def test_units(seed, length, stiffness):
    u = random_field(seed, 2, 8, 8)
    other = {"pixel_size_um": 1.925 * length, "youngs_modulus_pa": 10670.0 * stiffness, "poisson_ratio": NU}
    scaled = traction_from_displacement(length * u, **other, regularization=1e-9 * (length / stiffness) ** 2)
    assert relative(scaled, stiffness * traction_from_displacement(u, **SUBSTRATE, regularization=1e-9)) < 1e-9


def test_more_regularisation_means_less_traction():
    u = random_field(6, 2, 12, 12).expand(6, -1, -1, -1)
    strengths = torch.tensor([0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1.0], dtype=torch.float64)
    sizes = traction_from_displacement(u, **SUBSTRATE, regularization=strengths).flatten(1).norm(dim=1)
    assert (sizes.diff() < 0).all()


def test_batches_and_precision():
    u = random_field(7, 2, 3, 2, 9, 12)
    traction = traction_from_displacement(u, **SUBSTRATE, regularization=1e-9)
    assert traction.shape == u.shape
    assert traction.is_contiguous()
    assert relative(traction_from_displacement(u[1, 2], **SUBSTRATE, regularization=1e-9), traction[1, 2]) < ROUNDING
    single = traction_from_displacement(u.float(), **SUBSTRATE, regularization=1e-9)
    assert single.dtype == torch.float32
    assert relative(single.double(), traction) < 1e-6


def test_gradients():
    u = random_field(8, 2, 2, 4, 5).requires_grad_()
    strength = torch.tensor([1e-9, 3e-8], dtype=torch.float64)
    kernel = torch.tensor([0.1, 0.7, 0.1], dtype=torch.float64, requires_grad=True)
    modest = {"pixel_size_um": 1.0, "youngs_modulus_pa": 3.0, "poisson_ratio": NU}
    weights = torch.tensor([0.1, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: traction_from_displacement(u, **modest, regularization=0.1), (u,))

    def blurred(u, kernel, weights):
        symmetric = (kernel + kernel.flip(0)) / 2
        return traction_from_displacement(
            u, **modest, regularization=weights, transfer_function=symmetric, mean_force="finite_domain"
        )

    assert torch.autograd.gradcheck(blurred, (u, kernel, weights))
    traction_from_displacement(u, **SUBSTRATE, regularization=strength).sum().backward()
    assert torch.isfinite(u.grad).all()


def test_a_first_call_in_inference_mode_leaves_later_gradients_alone():
    numbers = {"pixel_size_um": 1.0, "youngs_modulus_pa": 10.0, "poisson_ratio": 0.3219}  # not in any cache yet
    u = random_field(9, 2, 6, 6)
    strength = torch.tensor(0.1, dtype=torch.float64)
    with torch.inference_mode():
        traction_from_displacement(u, **numbers)
        traction_from_displacement(u, **numbers, regularization=strength)
    u.requires_grad_()
    for regularization in (0.0, strength):
        traction_from_displacement(u, **numbers, regularization=regularization).square().sum().backward()
    assert torch.isfinite(u.grad).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same():
    u = random_field(10, 3, 2, 20, 21)
    for regularization in (1e-9, torch.tensor([0.0, 1e-9, 1e-8], dtype=torch.float64)):
        traction = traction_from_displacement(u.cuda(), **SUBSTRATE, regularization=regularization)
        assert traction.is_cuda
        expected = traction_from_displacement(u, **SUBSTRATE, regularization=regularization)
        assert relative(traction.cpu(), expected) < 1e-10
    assert choose_regularization(u.cuda(), **SUBSTRATE).is_cuda


@pytest.mark.parametrize("percentile", [0.0, 50.0, 98.0, 100.0])
@pytest.mark.parametrize("border", [0, 2])
def test_the_cutoff_is_a_percentile_of_the_background(percentile, border):
    traction = random_field(11, 3, 2, 12, 15)
    mask = random_field(12, 3, 12, 15) > 0.5
    filtered = cutoff_filter(traction, mask, percentile=percentile, frame_border_px=border)
    for field, inside, result in zip(traction.numpy(), mask.numpy(), filtered.numpy(), strict=True):
        length = np.hypot(*field)
        background = ~inside
        background[:border], background[12 - border :], background[:, :border] = False, False, False
        background[:, 15 - border :] = False
        threshold = np.percentile(length[background], percentile)
        np.testing.assert_array_equal(result, np.where(length >= threshold - 1e-12, field, 0))


def test_one_mask_serves_a_batch_and_the_survivors_keep_their_gradient():
    traction = random_field(13, 2, 3, 2, 8, 8).requires_grad_()
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 2:6] = True
    filtered = cutoff_filter(traction, mask)
    assert torch.equal(filtered[1, 2], cutoff_filter(traction[1, 2], mask))
    filtered.sum().backward()
    assert torch.equal(traction.grad, (filtered != 0).double())
    assert 0 < float(traction.grad.mean()) < 1


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"mask": torch.ones(8, 8, dtype=torch.bool)}, "cell_mask"),
        ({"mask": torch.zeros(8, 8)}, "cell_mask"),
        ({"mask": torch.zeros(8, 9, dtype=torch.bool)}, "cell_mask"),
        ({"mask": torch.zeros(5, 8, 8, dtype=torch.bool)}, "cell_mask"),
        ({"frame_border_px": 4}, r"frame_border_px must leave something of a field .* got 4: lower"),
        ({"frame_border_px": -1}, "frame_border_px"),
        ({"percentile": 101.0}, "percentile"),
        ({"traction": torch.full((2, 8, 8), torch.inf)}, "traction_pa"),
        ({"traction": torch.zeros(8, 8)}, "traction_pa"),
    ],
)
def test_bad_input_of_the_cutoff_is_named(changes, name):
    arguments = {"traction": torch.zeros(3, 2, 8, 8), "mask": torch.zeros(8, 8, dtype=torch.bool), **changes}
    traction, mask = arguments.pop("traction"), arguments.pop("mask")
    with pytest.raises(ValueError, match=f"^{name} "):
        cutoff_filter(traction, mask, **arguments)


@pytest.mark.parametrize(
    ("field", "changes", "name"),
    [
        (torch.zeros(2, 8), {}, "displacement_um"),
        (torch.zeros(3, 8, 8), {}, "displacement_um"),
        (torch.zeros(2, 8, 1), {}, "displacement_um"),
        (torch.zeros(2, 8, 8, dtype=torch.float16), {}, "displacement_um"),
        (torch.full((2, 8, 8), torch.nan), {}, "displacement_um"),
        (torch.zeros(2, 8, 8), {"pixel_size_um": -1.0}, "pixel_size_um"),
        (torch.zeros(2, 8, 8), {"youngs_modulus_pa": math.inf}, "youngs_modulus_pa"),
        (torch.zeros(2, 8, 8), {"poisson_ratio": 0.6}, "poisson_ratio"),
        (torch.zeros(2, 8, 8), {"thickness_um": -3.0}, "thickness_um"),
        (torch.zeros(2, 8, 8), {"mean_force": "free"}, "mean_force"),
        (torch.zeros(2, 8, 8), {"regularization": -1e-9}, "regularization"),
        (torch.zeros(2, 8, 8), {"regularization": math.nan}, "regularization"),
        (torch.zeros(3, 2, 8, 8), {"regularization": torch.tensor([0.0, 0.0, -1.0])}, "regularization"),
        (torch.zeros(3, 2, 8, 8), {"regularization": torch.zeros(2)}, "regularization"),
        (torch.zeros(2, 8, 8), {"transfer_function": torch.ones(4)}, "transfer_function"),
        (torch.zeros(2, 8, 8), {"transfer_function": torch.ones(9)}, "transfer_function"),
    ],
)
def test_bad_input_is_named(field, changes, name):
    with pytest.raises(ValueError, match=f"^{name} "):
        traction_from_displacement(field, **{**SUBSTRATE, **changes})
