"""Point forces: Kelvin, Boussinesq and Cerruti by hand, Navier's equation, the planar kernel, reciprocity, balance."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch.autograd.functional import hessian, jacobian

from physics.half_space import displacement_from_traction, green_tensor_space
from physics.point_forces import (
    balanced,
    kelvin_body_force_n_per_m3,
    kelvin_displacement,
    moment_nn_um,
    surface_force_displacement,
    surface_force_traction_pa,
)
from physics.solid import body_force_n_per_m3, strain, stress, surface_traction, voxel_positions_um

E_PA, NU = 900.0, 0.37
SOLID = {"youngs_modulus_pa": E_PA, "poisson_ratio": NU}
SHEAR, LAME = E_PA / (2 * (1 + NU)), E_PA * NU / ((1 + NU) * (1 - 2 * NU))
PA_UM2 = 1e3  # per nN
ROUNDING = 1e-12
REPEATABLE = settings(deadline=None, derandomize=True, max_examples=20)
SEEDS = st.integers(0, 2**31)


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vector(*components):
    return torch.tensor(components, dtype=torch.float64)


def below(points):
    """Points with z >= 0."""
    return torch.cat((points[..., :2], points[..., 2:].abs()), dim=-1)


def relative(a, b):
    return float((a - b).detach().norm() / b.detach().norm())


def navier_residual(displacement, point):
    """G lap u + (lambda + G) grad div u at one point, by automatic differentiation."""
    second = torch.stack([hessian(lambda x, i=i: displacement(x)[i], point) for i in range(3)])  # [i, j, k]
    return SHEAR * torch.einsum("ijj->i", second) + (LAME + SHEAR) * torch.einsum("jji->i", second)


def stress_at(displacement, point):
    gradient = jacobian(displacement, point)
    return SHEAR * (gradient + gradient.T) + LAME * torch.trace(gradient) * torch.eye(3, dtype=torch.float64)


def test_kelvin_by_hand():
    points = vector((4, 0, 0), (0, 4, 0), (0, 0, -4)).T.contiguous().T
    u = kelvin_displacement(points, torch.zeros(1, 3), vector((2.0, 0, 0)), **SOLID)
    unit = 2 * PA_UM2 / (16 * math.pi * SHEAR * (1 - NU) * 4)
    assert u[0].tolist() == pytest.approx([unit * 4 * (1 - NU), 0, 0], rel=ROUNDING)
    for across in u[1:]:
        assert across.tolist() == pytest.approx([unit * (3 - 4 * NU), 0, 0], rel=ROUNDING)
    diagonal = kelvin_displacement(vector((3, 4, 0)), torch.zeros(1, 3), vector((2.0, 0, 0)), **SOLID)[0]
    assert diagonal[1].item() == pytest.approx(unit * 4 / 5 * 12 / 25, rel=ROUNDING)


def test_boussinesq_and_cerruti_by_hand():
    """Textbook values straight below a load and beside it."""
    load, beneath, beside = torch.zeros(1, 2), vector((0, 0, 5)), vector((5, 0, 0))
    unit = PA_UM2 / (4 * math.pi * SHEAR * 5)
    down = surface_force_displacement(beneath, load, vector((0, 0, 1)), **SOLID)[0]
    assert down.tolist() == pytest.approx([0, 0, unit * (3 - 2 * NU)], rel=ROUNDING)
    down = surface_force_displacement(beside, load, vector((0, 0, 1)), **SOLID)[0]
    assert down.tolist() == pytest.approx([-unit * (1 - 2 * NU), 0, unit * 2 * (1 - NU)], rel=ROUNDING)  # drawn in
    right = surface_force_displacement(beneath, load, vector((1, 0, 0)), **SOLID)[0]
    assert right.tolist() == pytest.approx([unit * (1 + (1 - 2 * NU) / 2), 0, 0], rel=ROUNDING)
    right = surface_force_displacement(beside, load, vector((1, 0, 0)), **SOLID)[0]
    assert right.tolist() == pytest.approx([unit * 2, 0, unit * (1 - 2 * NU)], rel=ROUNDING)


@REPEATABLE
@given(SEEDS, st.sampled_from([0.0, 0.7]))
def test_kelvin_forces_satisfy_navier_with_their_own_density(seed, eps):
    sources, forces, point = random(seed, 2, 3), random(seed + 1, 2, 3), random(seed + 2, 3)

    def displacement(x):
        return kelvin_displacement(x[None], sources, forces, **SOLID, regularization_um=eps)[0]

    found = navier_residual(displacement, point)  # Pa / um = 1e6 N/m^3
    scale = float(hessian(lambda x: displacement(x).sum(), point).abs().max()) * LAME
    expected = torch.zeros(3, dtype=torch.float64)
    if eps:
        expected = -kelvin_body_force_n_per_m3(point[None], sources, forces, regularization_um=eps)[0] / 1e6
    assert (found - expected).abs().max() < 1e-9 * scale


@pytest.mark.slow
@REPEATABLE
@given(SEEDS, st.sampled_from([0.0, 0.7]), st.booleans())
def test_surface_forces_satisfy_navier_and_carry_their_traction(seed, height, on_surface):
    sources, forces = random(seed, 2, 2), random(seed + 1, 2, 3)
    point = below(random(seed + 2, 3)) * vector(1, 1, 0.0 if on_surface else 1)

    def displacement(x):
        return surface_force_displacement(x[None], sources, forces, **SOLID, regularization_um=height)[0]

    second = hessian(lambda x: displacement(x).sum(), point).abs().max()
    assert navier_residual(displacement, point).abs().max() < 1e-9 * float(second) * LAME
    sigma = stress_at(displacement, point)
    expected = surface_force_traction_pa(point[None], sources, forces, regularization_um=height)[0]
    assert (-sigma[:, 2] - expected).abs().max() < 1e-9 * float(sigma.abs().max())
    if on_surface and height == 0:
        assert expected.abs().max() == 0  # a free surface


def test_densities_and_tractions_integrate_to_the_force():
    force = vector((0.3, -0.5, 0.8))

    def shell(r):
        density = kelvin_body_force_n_per_m3(vector((r, 0, 0)), torch.zeros(1, 3), force, regularization_um=1.7)
        return 4 * math.pi * r**2 * float(density[0, 2])

    radial, _ = integrate.quad(shell, 0, math.inf)
    assert radial * 1e-9 == pytest.approx(0.8, rel=1e-8)  # N/m^3 um^3 = 1e-18 N

    def ring(r, depth):
        """Traction times area of the ring of radius r and unit width: the angle's mean of a trigonometric square."""
        angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        points = torch.stack((r * angle.cos(), r * angle.sin(), torch.full_like(angle, depth)), dim=-1)
        traction = surface_force_traction_pa(points, torch.zeros(1, 2), force, regularization_um=0.4)
        return (traction.mean(dim=0) * 2 * math.pi * r).numpy()

    for depth in (0.0, 1.1):
        total, _ = integrate.quad_vec(lambda r, depth=depth: ring(r, depth), 0, np.inf)
        assert total / PA_UM2 == pytest.approx(force[0].numpy(), rel=1e-6)


def test_cerruti_at_the_surface_is_the_planar_kernel():
    pixel, extent = 0.65, 6
    side = torch.arange(-extent, extent + 1, dtype=torch.float64) * pixel
    y, x = torch.meshgrid(side, side, indexing="ij")
    points = torch.stack((x, y, torch.zeros_like(x)), dim=-1)
    elsewhere = torch.ones_like(x, dtype=torch.bool)
    elsewhere[extent, extent] = False  # the load's own pixel
    points = points[elsewhere]
    force = pixel**2 / PA_UM2  # 1 Pa on a pixel, in nN
    xx, xy, yy = green_tensor_space(extent, extent, pixel_size_um=pixel, **SOLID)[:, elsewhere]
    along_x = surface_force_displacement(points, torch.zeros(1, 2), vector((force, 0, 0)), **SOLID)
    along_y = surface_force_displacement(points, torch.zeros(1, 2), vector((0, force, 0)), **SOLID)
    torch.testing.assert_close(along_x[:, :2], torch.stack((xx, xy), dim=-1), rtol=ROUNDING, atol=1e-15)
    torch.testing.assert_close(along_y[:, :2], torch.stack((xy, yy), dim=-1), rtol=ROUNDING, atol=1e-15)


def test_a_field_of_surface_forces_is_the_planar_forward_model():
    pixel, traction = 0.8, random(1, 2, 6, 7)
    u = displacement_from_traction(traction, pixel_size_um=pixel, **SOLID)
    grid = voxel_positions_um((1, 6, 7), (1.0, pixel, pixel))[0]  # (y, x, 3)
    row, column = 2, 5
    others = torch.ones(6, 7, dtype=torch.bool)
    others[row, column] = False
    forces = torch.nn.functional.pad(traction.movedim(0, -1), (0, 1))[others] * (pixel**2 / PA_UM2)
    found = surface_force_displacement(grid[row, column][None], grid[others][:, :2], forces, **SOLID)[0, :2]
    own = green_tensor_space(0, 0, pixel_size_um=pixel, **SOLID)[0, 0, 0] * traction[:, row, column]
    torch.testing.assert_close(found + own, u[:, row, column], rtol=1e-10, atol=0)


@REPEATABLE
@given(SEEDS, st.floats(0, 2))
def test_reciprocity(seed, eps):
    (a, b), (force_a, force_b) = random(seed, 2, 1, 3), random(seed + 1, 2, 1, 3)
    work = (kelvin_displacement(b, a, force_a, **SOLID, regularization_um=eps) * force_b).sum()
    other = (kelvin_displacement(a, b, force_b, **SOLID, regularization_um=eps) * force_a).sum()
    assert float(work) == pytest.approx(float(other), rel=1e-9, abs=1e-9)
    a, b = a * vector(1, 1, 0), b * vector(1, 1, 0)
    work = (surface_force_displacement(b, a[:, :2], force_a, **SOLID) * force_b).sum()
    other = (surface_force_displacement(a, b[:, :2], force_b, **SOLID) * force_a).sum()
    assert float(work) == pytest.approx(float(other), rel=1e-9, abs=1e-9)


@REPEATABLE
@given(SEEDS, st.integers(0, 3), st.floats(0, 2))
def test_quarter_turns_turn_the_displacement(seed, quarters, eps):
    points, sources, forces = below(random(seed, 5, 3)), random(seed + 1, 2, 3), random(seed + 2, 2, 3)
    c, s = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarters]
    turn = vector((c, s, 0), (-s, c, 0), (0, 0, 1))
    options = {**SOLID, "regularization_um": eps}
    u = surface_force_displacement(points, sources[:, :2], forces, **options)
    turned = surface_force_displacement(points @ turn.T, sources[:, :2] @ turn[:2, :2].T, forces @ turn.T, **options)
    assert relative(turned, u @ turn.T) < ROUNDING
    q, _ = torch.linalg.qr(random(seed + 3, 3, 3))  # any turn or mirror in the infinite solid
    u = kelvin_displacement(points, sources, forces, **options)
    assert relative(kelvin_displacement(points @ q.T, sources @ q.T, forces @ q.T, **options), u @ q.T) < 1e-10


def test_far_away_a_regularised_force_is_a_point():
    points, source, force = random(2, 20, 3), torch.zeros(1, 3), vector((0.2, 0.5, -0.3))
    points = 100 * points / points.norm(dim=-1, keepdim=True)
    for displacement, dims, order in ((kelvin_displacement, 3, 1e-4), (surface_force_displacement, 2, 1e-2)):
        sharp = displacement(below(points), source[:, :dims], force, **SOLID)
        soft = displacement(below(points), source[:, :dims], force, **SOLID, regularization_um=1.0)
        assert relative(soft, sharp) < 2 * order  # (eps / r)^2, and eps / r where the force is lifted


def test_a_gel_gives_back_the_load_on_its_surface_and_is_in_equilibrium_below():
    sources, forces = vector((9, 12), (15, 13)), vector((0.5, 0.1, -0.2), (-0.5, -0.1, 0.2))
    errors = []
    for step in (1.0, 0.5):
        grid, voxel = voxel_positions_um((round(12 / step) + 1, *[round(24 / step) + 1] * 2), (step,) * 3), (step,) * 3
        u = surface_force_displacement(grid, sources, forces, **SOLID, regularization_um=4.0).movedim(-1, 0)
        sigma = stress(strain(u, voxel), E_PA, NU)
        applied = surface_force_traction_pa(grid[0], sources, forces, regularization_um=4.0).movedim(-1, 0)
        errors.append(relative(surface_traction(sigma, (0, 0, -1))[:, 0], applied))
        inside = slice(round(2 / step), round(-2 / step), round(1 / step))  # the same places on both grids
        f, sigma = (a[..., inside, inside, inside] for a in (body_force_n_per_m3(sigma, voxel), sigma))
        errors.append(float(f.norm() * 4e-6 / sigma.norm()))  # over a length of 4 um
    assert errors[2] < 0.02
    assert errors[3] < 0.05
    assert errors[0] / errors[2] > 2.8  # second order: towards a quarter
    assert errors[1] / errors[3] > 3.5


@REPEATABLE
@given(SEEDS, st.integers(1, 6))
def test_balanced_forces_are_the_nearest_without_net_force_and_moment(seed, count):
    sources, forces = 5 * random(seed, 2, count, 3) + 40, random(seed + 1, 2, count, 3)
    result = balanced(sources, forces)
    assert result.sum(dim=-2).abs().max() < 1e-10
    assert moment_nn_um(sources, result).abs().max() < 1e-8
    assert (balanced(sources, result) - result).abs().max() < 1e-9
    taken = forces - result  # orthogonal to every balanced set, so none is nearer
    other = balanced(sources, random(seed + 2, 2, count, 3))
    assert (taken * other).sum(dim=(-2, -1)).abs().max() < 1e-9


def test_two_balanced_forces_pull_along_their_line():
    sources, forces = vector((1, 2, 3), (4, 6, 3)), vector((1.0, 0.5, 2), (-3.0, 0, 1))
    direction = vector(0.6, 0.8, 0)
    along = float(((forces[0] - forces[1]) / 2) @ direction)
    assert (balanced(sources, forces) - along * torch.stack((direction, -direction))).abs().max() < 1e-12
    line = vector((0, 0, 0), (1, 1, 1), (3, 3, 3))  # collinear: no axis to turn about
    assert moment_nn_um(line, balanced(line, random(3, 3, 3))).abs().max() < 1e-12
    assert moment_nn_um(vector((2, 0, 0)), vector((0, 3.0, 0))).tolist() == [0, 0, 6]


def test_batches_grids_and_precision():
    points, sources, forces = below(random(4, 2, 3, 5, 3)), random(5, 2, 1, 4, 3), random(6, 2, 1, 4, 3)
    u = kelvin_displacement(points, sources, forces, **SOLID)
    v = surface_force_displacement(points, sources[..., :2], forces, **SOLID)
    assert u.shape == v.shape == points.shape
    one = points[1, 2], sources[1, 0], forces[1, 0]
    assert relative(kelvin_displacement(*one, **SOLID), u[1, 2]) < ROUNDING
    grid = points[0]  # (3, 5, 3) as a grid of points
    on_grid = kelvin_displacement(grid, sources[0, 0], forces[0, 0], **SOLID)
    in_a_row = kelvin_displacement(grid.reshape(-1, 3), sources[0, 0], forces[0, 0], **SOLID)
    assert torch.equal(on_grid.reshape(-1, 3), in_a_row)
    single = kelvin_displacement(points.float(), sources, forces, **SOLID)
    assert single.dtype == torch.float32
    assert relative(single.double(), u) < 1e-5


def test_gradients():
    points, sources, forces = below(random(7, 3, 3)), random(8, 2, 3), random(9, 2, 3)
    for tensor in (points, sources, forces):
        tensor.requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda *a: kelvin_displacement(*a, **SOLID), (points, sources, forces))
    assert check(lambda *a: kelvin_body_force_n_per_m3(*a, regularization_um=0.5) / 1e9, (points, sources, forces))
    assert check(lambda p, s, f: surface_force_displacement(p, s[:, :2], f, **SOLID), (points, sources, forces))
    assert check(lambda s, f: balanced(s.repeat(2, 1) + torch.eye(4, 3), f.repeat(2, 1) ** 2), (sources, forces))


ONE, PLACE, FORCE = torch.ones(1, 3), torch.zeros(1, 3), torch.ones(1, 3)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: kelvin_displacement(PLACE, PLACE, FORCE, **SOLID), "points_um must not lie at a source"),
        (lambda: surface_force_displacement(PLACE, PLACE[:, :2], FORCE, **SOLID), "points_um must not lie at a source"),
        (lambda: surface_force_displacement(-ONE, PLACE[:, :2], FORCE, **SOLID), "points_um must lie at z >= 0"),
        (lambda: kelvin_displacement(ONE[0], PLACE, FORCE, **SOLID), "points_um must have shape"),
        (lambda: kelvin_displacement(ONE.int(), PLACE, FORCE, **SOLID), "points_um must be float32"),
        (lambda: kelvin_displacement(ONE, PLACE[:, :2], FORCE, **SOLID), "sources_um"),
        (lambda: surface_force_displacement(ONE, PLACE, FORCE, **SOLID), "sources_um"),
        (lambda: kelvin_displacement(ONE, PLACE[:0], FORCE[:0], **SOLID), "sources_um"),
        (lambda: kelvin_displacement(ONE, PLACE, torch.ones(2, 3), **SOLID), "forces_nn"),
        (lambda: kelvin_displacement(ONE, PLACE, FORCE, **SOLID, regularization_um=-1.0), "regularization_um"),
        (lambda: kelvin_body_force_n_per_m3(ONE, PLACE, FORCE, regularization_um=0.0), "regularization_um"),
        (lambda: kelvin_displacement(ONE, PLACE, FORCE, youngs_modulus_pa=1.0, poisson_ratio=0.5), "poisson_ratio"),
        (lambda: surface_force_displacement(ONE, PLACE[:, :2], FORCE, youngs_modulus_pa=0, poisson_ratio=0), "youngs"),
        (lambda: balanced(PLACE, torch.ones(2, 3)), "forces_nn"),
        (lambda: moment_nn_um(PLACE[:, :2], FORCE), "sources_um"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        call()
