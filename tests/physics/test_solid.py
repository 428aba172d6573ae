"""Solid mechanics on a voxel grid: polynomials, rigid motions, energies and regularised forces, in closed form."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physics.point_forces import kelvin_body_force_n_per_m3, kelvin_displacement
from physics.solid import (
    body_force_n_per_m3,
    deformation_gradient,
    displacement_gradient,
    divergence,
    green_lagrange,
    lame_parameters_pa,
    neo_hookean_stress,
    strain,
    stress,
    surface_traction,
    total_force_nn,
    total_moment_nn_um,
    voxel_positions_um,
)

VOXEL = (0.8, 0.3, 0.29)  # um, z y x
SHAPE = (5, 6, 7)
E_PA, NU = 1200.0, 0.42
SHEAR, LAME = E_PA / (2 * (1 + NU)), E_PA * NU / ((1 + NU) * (1 - 2 * NU))
ROUNDING = 1e-10  # float64, differences of positions of a few um
REPEATABLE = settings(deadline=None, derandomize=True, max_examples=20)
SEEDS = st.integers(0, 2**31)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random(seed, *shape):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def positions(shape=SHAPE, voxel=VOXEL):
    """Components first: (3, z, y, x)."""
    return voxel_positions_um(shape, voxel).movedim(-1, 0)


def homogeneous(matrix, shape=SHAPE):
    """The same (3, 3) tensor at every voxel."""
    return torch.as_tensor(matrix, dtype=torch.float64)[:, :, None, None, None].expand(3, 3, *shape).clone()


def rotation(seed):
    q, _ = torch.linalg.qr(random(seed, 3, 3))
    return q * torch.linalg.det(q).sign()


def close(a, b, tolerance=ROUNDING):
    torch.testing.assert_close(a, b.expand_as(a), rtol=0, atol=tolerance)


def test_positions_follow_the_axes():
    place = voxel_positions_um(SHAPE, VOXEL)
    assert place.shape == (*SHAPE, 3)
    assert place[2, 3, 4].tolist() == pytest.approx([4 * 0.29, 3 * 0.3, 2 * 0.8])


@REPEATABLE
@given(SEEDS)
def test_a_linear_displacement_has_its_matrix_as_gradient_up_to_the_faces(seed):
    matrix = random(seed, 3, 3)
    u = torch.einsum("ij,jzyx->izyx", matrix, positions()) + random(seed + 1, 3, 1, 1, 1)
    close(displacement_gradient(u, VOXEL), homogeneous(matrix))
    close(deformation_gradient(u, VOXEL), homogeneous(matrix + torch.eye(3)))
    close(strain(u, VOXEL), homogeneous((matrix + matrix.T) / 2))


@REPEATABLE
@given(SEEDS)
def test_a_quadratic_displacement_has_an_exact_divergence_of_stress_up_to_the_faces(seed):
    hessian = random(seed, 3, 3, 3)
    hessian = hessian + hessian.mT  # u_i = x_j H_ijk x_k / 2, so d_j d_k u_i = H_ijk
    x = positions()
    u = torch.einsum("ijk,jzyx,kzyx->izyx", hessian, x, x) / 2
    close(displacement_gradient(u, VOXEL), torch.einsum("ijk,kzyx->ijzyx", hessian, x))
    navier = SHEAR * torch.einsum("ijj->i", hessian) + (LAME + SHEAR) * torch.einsum("jji->i", hessian)
    found = divergence(stress(strain(u, VOXEL), E_PA, NU), VOXEL)
    close(found, navier[:, None, None, None], 1e-12 * E_PA * 1e4)
    close(body_force_n_per_m3(stress(strain(u, VOXEL), E_PA, NU), VOXEL), -1e6 * found, 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_differences_are_of_second_order_inside_and_at_the_faces(axis):
    errors = []
    for size in (21, 41):
        shape, voxel = [4, 4, 4], [1.0, 1.0, 1.0]
        shape[2 - axis], voxel[2 - axis] = size, 2.0 / (size - 1)
        x = positions(shape, voxel)[axis]
        u = torch.stack((torch.sin(x), torch.cos(2 * x), torch.exp(x)))
        exact = torch.stack((torch.cos(x), -2 * torch.sin(2 * x), torch.exp(x)))
        error = (displacement_gradient(u, voxel)[:, axis] - exact).abs().movedim(3 - axis, -1)
        errors.append((error[..., 1:-1].amax(), error[..., [0, -1]].amax()))
    for coarse, fine in zip(*errors, strict=True):
        assert 3.5 < coarse / fine < 4.8  # 4 as the step goes to 0


def test_a_uniaxial_stress_by_hand():
    by_hand = torch.diag(torch.tensor([1.0, -NU, -NU], dtype=torch.float64)) * (60.0 / E_PA)
    close(stress(homogeneous(by_hand), E_PA, NU), homogeneous(torch.diag(torch.tensor([60.0, 0, 0]))))
    shear = homogeneous([[0, 0.01, 0], [0.01, 0, 0], [0, 0, 0]])
    close(stress(shear, E_PA, NU)[0, 1], torch.tensor(2 * SHEAR * 0.01, dtype=torch.float64))
    assert lame_parameters_pa(3.0, 0.25) == pytest.approx((1.2, 1.2))


@REPEATABLE
@given(SEEDS)
def test_a_rigid_rotation_is_no_strain_and_no_neo_hookean_stress(seed):
    turn = rotation(seed)
    u = torch.einsum("ij,jzyx->izyx", turn - torch.eye(3), positions())
    F = deformation_gradient(u, VOXEL)
    close(green_lagrange(F), torch.zeros(3, 3, *SHAPE, dtype=torch.float64))
    assert strain(u, VOXEL).abs().max() > 0.01  # what the small strain makes of it
    for measure in ("cauchy", "first_piola_kirchhoff"):
        assert neo_hookean_stress(F, E_PA, NU, measure=measure).abs().max() < ROUNDING * E_PA


def stretched(seed, scale=0.1):
    """A random deformation gradient that differs from voxel to voxel, its determinant positive."""
    return homogeneous(torch.eye(3)) + scale * random(seed, 3, 3, *SHAPE)


def test_green_lagrange_is_the_matrix_formula():
    F = stretched(1)
    matrices = F.movedim((0, 1), (-2, -1)).numpy()
    expected = (np.swapaxes(matrices, -2, -1) @ matrices - np.eye(3)) / 2
    close(green_lagrange(F), torch.tensor(expected).movedim((-2, -1), (0, 1)), 1e-14)
    assert green_lagrange(homogeneous(torch.eye(3)).float()).abs().max() == 0


def test_the_neo_hookean_stress_is_the_derivative_of_its_energy():
    F = stretched(2).requires_grad_()
    matrices = F.movedim((0, 1), (-2, -1))
    J = torch.linalg.det(matrices)
    first_invariant = F.square().sum(dim=(0, 1))
    energy = SHEAR / 2 * (first_invariant - 3) - SHEAR * J.log() + LAME / 2 * J.log() ** 2
    (expected,) = torch.autograd.grad(energy.sum(), F)
    P = neo_hookean_stress(F, E_PA, NU)
    close(P, expected, ROUNDING * E_PA)
    cauchy = (P.movedim((0, 1), (-2, -1)) @ matrices.mT / J[..., None, None]).movedim((-2, -1), (0, 1))
    close(neo_hookean_stress(F, E_PA, NU, measure="cauchy"), cauchy, ROUNDING * E_PA)
    close(cauchy, cauchy.transpose(0, 1), ROUNDING * E_PA)


def test_neo_hookean_simple_shear_by_hand():
    sheared = homogeneous([[1, 0.5, 0], [0, 1, 0], [0, 0, 1]])
    expected = homogeneous([[0.25, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]) * SHEAR
    close(neo_hookean_stress(sheared, E_PA, NU, measure="cauchy"), expected, ROUNDING * E_PA)


def test_neo_hookean_becomes_linear_for_small_strain():
    direction, errors = random(3, 3, *SHAPE), []
    for size in (1e-3, 1e-4):
        u = size * direction
        linear = stress(strain(u, VOXEL), E_PA, NU)
        for measure in ("cauchy", "first_piola_kirchhoff"):
            F = deformation_gradient(u, VOXEL)
            errors.append((neo_hookean_stress(F, E_PA, NU, measure=measure) - linear).norm() / linear.norm())
    assert max(errors[2:]) < 5e-3  # strains of 1e-4 to 1e-3
    assert errors[0] / errors[2] == pytest.approx(10, rel=0.1)  # the difference is of second order
    assert errors[1] / errors[3] == pytest.approx(10, rel=0.1)


@REPEATABLE
@given(SEEDS, SEEDS)
def test_the_cauchy_stress_turns_with_the_body(seed, turn_seed):
    F, turn = stretched(seed), rotation(turn_seed)
    turned = torch.einsum("ij,jkzyx->ikzyx", turn, F)
    expected = torch.einsum("ia,abzyx,jb->ijzyx", turn, neo_hookean_stress(F, E_PA, NU, measure="cauchy"), turn)
    close(neo_hookean_stress(turned, E_PA, NU, measure="cauchy"), expected, ROUNDING * E_PA * 10)
    close(green_lagrange(turned), green_lagrange(F))


def signed_permutations(proper=True):
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = torch.zeros(3, 3, dtype=torch.float64)
            for row, (column, sign) in enumerate(zip(order, signs, strict=True)):
                matrix[row, column] = sign
            if not proper or torch.linalg.det(matrix) > 0:
                yield matrix


def moved(matrix, field, rank):
    """A field of vectors (rank 1) or tensors (rank 2) under x -> M x, M a signed permutation: voxels and components."""
    source = matrix.abs().argmax(dim=1).tolist()  # new axis i is old axis source[i]
    spatial = field.ndim - 3
    order = [*range(spatial), *(spatial + 2 - source[i] for i in (2, 1, 0))]
    field = field.permute(order).flip([field.ndim - 1 - i for i in range(3) if matrix[i, source[i]] < 0])
    for dim in range(rank):
        field = torch.tensordot(matrix, field, dims=([1], [dim])).movedim(0, dim)
    return field, source


@REPEATABLE
@given(SEEDS, st.sampled_from(list(signed_permutations(proper=False))))
def test_quarter_turns_and_mirrors_of_the_displacement_turn_everything(seed, matrix):
    u = 0.02 * random(seed, 3, *SHAPE)
    turned, source = moved(matrix, u, 1)
    voxel = tuple(VOXEL[2 - source[2 - k]] for k in range(3))  # z y x
    sigma, sigma_turned = (stress(strain(a, h), E_PA, NU) for a, h in ((u, VOXEL), (turned, voxel)))
    close(sigma_turned, moved(matrix, sigma, 2)[0], ROUNDING * E_PA)
    close(divergence(sigma_turned, voxel), moved(matrix, divergence(sigma, VOXEL), 1)[0], ROUNDING * E_PA)
    F, F_turned = deformation_gradient(u, VOXEL), deformation_gradient(turned, voxel)
    close(F_turned, moved(matrix, F, 2)[0])
    first, first_turned = neo_hookean_stress(F, E_PA, NU), neo_hookean_stress(F_turned, E_PA, NU)
    close(first_turned, moved(matrix, first, 2)[0], ROUNDING * E_PA)
    force, force_turned = (-1e6 * divergence(p, h) for p, h in ((first, VOXEL), (first_turned, voxel)))
    scale = float(force.abs().max()) * ROUNDING
    close(total_force_nn(force_turned, voxel), matrix @ total_force_nn(force, VOXEL), scale)
    moment = torch.linalg.det(matrix) * matrix @ total_moment_nn_um(force, VOXEL)  # an axial vector
    close(total_moment_nn_um(force_turned, voxel), moment, scale)


def kelvin_case(size=48, voxel=(1.25, 1.0, 1.0)):
    """A regularised force in the middle of a volume: displacement, density (3, z, y, x) and force."""
    shape = (round(size / voxel[0]), size, size)
    grid = voxel_positions_um(shape, voxel)
    source, force = grid.mean(dim=(0, 1, 2))[None], torch.tensor([[0.9, -0.4, 0.6]], dtype=torch.float64)
    u = kelvin_displacement(
        grid, source, force, youngs_modulus_pa=E_PA, poisson_ratio=NU, regularization_um=4.0
    ).movedim(-1, 0)
    density = kelvin_body_force_n_per_m3(grid, source, force, regularization_um=4.0).movedim(-1, 0)
    return u, density, force[0], voxel


def test_a_regularised_force_comes_back_from_its_displacement():
    u, density, force, voxel = kelvin_case()
    found = body_force_n_per_m3(stress(strain(u, voxel), E_PA, NU), voxel)
    assert (total_force_nn(found, voxel) - force).norm() < 1e-3 * force.norm()
    assert total_moment_nn_um(found, voxel).norm() < 1e-6 * force.norm() * 24  # it acts at the centre
    assert (found - density).norm() < 0.2 * density.norm()  # 4 voxels wide under a second derivative of second order


def test_the_moment_of_a_couple_by_hand():
    force = torch.zeros(3, 5, 5, 5, dtype=torch.float64)
    force[1, 2, 2, 4], force[1, 2, 2, 0] = 1e9, -1e9  # down at the right, up at the left: 1 nN per um^3
    assert total_force_nn(force, (2.0, 1.0, 0.5)).tolist() == [0, 0, 0]
    assert total_moment_nn_um(force, (2.0, 1.0, 0.5)).tolist() == pytest.approx([0, 0, 2.0])  # clockwise as displayed
    force = torch.zeros(3, 5, 5, 5, dtype=torch.float64)
    force[0, 4, 2, 2] = 1e9  # x force, deep: from z towards x, positive about y; times 2 voxels of 2 um, 1 nN
    assert total_moment_nn_um(force, (2.0, 1.0, 0.5)).tolist() == pytest.approx([0, 4.0, 0])


def test_traction_on_a_surface():
    sigma = random(4, 3, 3, *SHAPE)
    close(surface_traction(sigma, (0, 0, -2.0)), -sigma[:, 2], 1e-14)
    assert (surface_traction(homogeneous(-50 * torch.eye(3)), (0, 0, -1))[2] == 50).all()  # pressure pushes into z > 0
    normals = random(5, 3, *SHAPE)
    normals[:, 1, 1, 1] = 0
    expected = torch.einsum("ijzyx,jzyx->izyx", sigma, normals) / normals.norm(dim=0).clamp(min=1e-9)
    close(surface_traction(sigma, normals), expected, 1e-13)
    assert (surface_traction(sigma, normals)[:, 1, 1, 1] == 0).all()


def test_batches_with_constants_of_their_own():
    u = 0.02 * random(6, 2, 3, *SHAPE).reshape(2, 1, 3, *SHAPE).repeat(1, 2, 1, 1, 1, 1)
    modulus = torch.tensor([[500.0, 800.0], [900.0, 1e4]], dtype=torch.float64)
    ratio = torch.tensor([[0.1, 0.3], [0.4, 0.0]], dtype=torch.float64)
    voxel = torch.rand(2, 2, 3, generator=generator(7), dtype=torch.float64) + 0.3
    F = deformation_gradient(u, voxel)
    linear, large = stress(strain(u, voxel), modulus, ratio), neo_hookean_stress(F, modulus, ratio)
    force = body_force_n_per_m3(linear, voxel)
    for i, j in itertools.product(range(2), repeat=2):
        h, constants = voxel[i, j].tolist(), (float(modulus[i, j]), float(ratio[i, j]))
        one = stress(strain(u[i, j], h), *constants)
        close(linear[i, j], one, ROUNDING * 1e4)
        close(large[i, j], neo_hookean_stress(deformation_gradient(u[i, j], h), *constants), ROUNDING * 1e4)
        alone = body_force_n_per_m3(one, h)
        torch.testing.assert_close(force[i, j], alone, rtol=1e-9, atol=1e-9 * float(alone.abs().max()))
        for total in (total_force_nn, total_moment_nn_um):
            torch.testing.assert_close(total(force, voxel)[i, j], total(alone, h), rtol=1e-9, atol=1e-6)
    assert strain(u.float(), voxel).dtype == torch.float32


@pytest.mark.parametrize("law", ["linear", "cauchy", "first_piola_kirchhoff", "green"])
def test_gradients(law):
    u = (0.02 * random(8, 3, 3, 3, 3)).requires_grad_()
    modulus = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    ratio = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def force(u, modulus, ratio):
        F = deformation_gradient(u, VOXEL)
        if law == "linear":
            return divergence(stress(strain(u, VOXEL), modulus, ratio), VOXEL)
        if law == "green":
            return surface_traction(stress(green_lagrange(F), modulus, ratio), (1.0, 2.0, 2.0))
        return divergence(neo_hookean_stress(F, modulus, ratio, measure=law), VOXEL)

    assert torch.autograd.gradcheck(force, (u, modulus, ratio))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same():
    u = 0.02 * random(9, 2, 3, *SHAPE)
    modulus, voxel = torch.tensor([500.0, 800.0]), torch.tensor([VOXEL, VOXEL])
    for law in (stress, neo_hookean_stress):
        here, there = (law(deformation_gradient(a, voxel), modulus, NU) for a in (u, u.cuda()))
        assert there.is_cuda
        close(there.cpu(), here, ROUNDING * E_PA)
        close(divergence(there, voxel).cpu(), divergence(here, voxel), ROUNDING * E_PA)


FLAT = torch.zeros(3, 4, 2, 4)
FIELD = torch.zeros(3, 4, 4, 4)
TENSORS = torch.zeros(3, 3, 4, 4, 4)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: strain(FLAT, VOXEL), "displacement_um must have at least 3 voxels"),
        (lambda: strain(FIELD[:2], VOXEL), "displacement_um must have shape"),
        (lambda: deformation_gradient(FIELD.int(), VOXEL), "displacement_um must be float32 or float64"),
        (lambda: strain(FIELD, (1.0, 1.0)), "voxel_size_um"),
        (lambda: strain(FIELD, (1.0, 0.0, 1.0)), "voxel_size_um"),
        (lambda: strain(FIELD, torch.tensor([1.0, math.nan, 1.0])), "voxel_size_um"),
        (lambda: voxel_positions_um((3, 3), VOXEL), "shape_zyx"),
        (lambda: stress(FIELD, 1.0, 0.3), "strain must have shape"),
        (lambda: stress(TENSORS, 0.0, 0.3), "youngs_modulus_pa"),
        (lambda: stress(TENSORS, math.inf, 0.3), "youngs_modulus_pa"),
        (lambda: stress(TENSORS, torch.ones(2), 0.3), "youngs_modulus_pa"),
        (lambda: stress(TENSORS, 1.0, 0.5), r"poisson_ratio must lie in \[0, 0.5\)"),
        (lambda: stress(TENSORS, 1.0, math.nan), "poisson_ratio"),
        (lambda: stress(TENSORS, 1.0, -0.1), "poisson_ratio"),
        (lambda: neo_hookean_stress(TENSORS, 1.0, 0.3), "F must have a positive determinant"),
        (lambda: neo_hookean_stress(TENSORS + 1, 1.0, 0.3, measure="kirchhoff"), "measure"),
        (lambda: green_lagrange(FIELD), "F must have shape"),
        (lambda: divergence(FIELD, VOXEL), "stress must have shape"),
        (lambda: surface_traction(TENSORS, (0, 0, 0)), "normal must not be zero"),
        (lambda: surface_traction(TENSORS, (0, 1)), "normal must have shape"),
        (lambda: total_force_nn(TENSORS[:2, 0], VOXEL), "body_force_n_per_m3"),
        (lambda: total_moment_nn_um(TENSORS[:2, 0], VOXEL), "body_force_n_per_m3"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        call()
