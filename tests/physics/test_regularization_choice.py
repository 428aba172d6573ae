"""Choice of the regularisation: the model's own data, sharp adhesions, smooth tractions, cells of Wang & Lin's recipe.

What a choice is worth is told by the error of the traction it leads to, against the best error that any lambda reaches.
"""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from physics.half_space import displacement_from_traction
from physics.traction_cytometry import choose_regularization, cutoff_filter, traction_from_displacement

SUBSTRATE = {"pixel_size_um": 1.925, "youngs_modulus_pa": 10670.0, "poisson_ratio": 0.45}
PIXELS = {**SUBSTRATE, "pixel_size_um": 1.0}
SIZE = 64
LAMBDAS = torch.logspace(-11, -4, 71, dtype=torch.float64)


def measured(traction_pa, noise, rng):
    """Displacement of a periodic world with noise, as a fraction of its standard deviation; and that of the noise."""
    u = displacement_from_traction(traction_pa, **SUBSTRATE, boundary="periodic")
    std = noise * u.std(dim=(1, 2, 3))
    return u + torch.tensor(rng.normal(size=u.shape)) * std[:, None, None, None], std


def errors(displacement, traction, strength):
    found = traction_from_displacement(displacement, **SUBSTRATE, regularization=strength)
    return ((found - traction).flatten(1).norm(dim=1) / traction.flatten(1).norm(dim=1)).numpy()


def excess_over_the_best(displacement, traction, **choice):
    count = len(displacement)
    best = np.min([errors(displacement, traction, strength.expand(count)) for strength in LAMBDAS], axis=0)
    return errors(displacement, traction, choose_regularization(displacement, **SUBSTRATE, **choice)) / best


def adhesions(rng, width):
    """Three fields of 30 square adhesions each."""
    traction = np.zeros((3, 2, SIZE, SIZE))
    for field in traction:
        for _ in range(30):
            y, x = rng.integers(4, SIZE - 6, 2)
            angle = rng.uniform(0, 2 * math.pi)
            vector = rng.uniform(200, 2000) * np.array([math.cos(angle), math.sin(angle)])
            field[:, y : y + width, x : x + width] += vector[:, None, None]
    return torch.tensor(traction - traction.mean((-2, -1), keepdims=True))


@pytest.mark.parametrize("known", [False, True])
def test_evidence_finds_the_ratio_of_the_variances_that_made_the_data(known):
    rng = np.random.default_rng(1)
    traction = torch.tensor(rng.normal(scale=100.0, size=(3, 2, SIZE, SIZE)))
    u, noise_std = measured(traction, torch.tensor([0.1, 0.3, 1.0]), rng)
    strength = choose_regularization(u, **SUBSTRATE, noise_std_um=noise_std if known else None)
    assert strength.shape == (3,)
    np.testing.assert_allclose(strength, noise_std**2 / 100.0**2, rtol=0.3)  # 8192 coefficients


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.1])
@pytest.mark.parametrize(("method", "limit"), [("known", 1.05), ("gcv", 1.3), ("l_curve", 1.1)])
def test_sharp_adhesions_are_found_almost_as_well_as_possible(method, limit, noise):
    rng = np.random.default_rng(2)
    traction = adhesions(rng, 1)
    u, noise_std = measured(traction, noise, rng)
    choice = {"noise_std_um": noise_std} if method == "known" else {"method": method}
    assert (excess_over_the_best(u, traction, **choice) < limit).all()


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_evidence_without_a_known_noise_needs_some(noise):
    rng = np.random.default_rng(2)
    traction = adhesions(rng, 1)
    u, _ = measured(traction, noise, rng)
    assert (excess_over_the_best(u, traction) < 1.1).all()


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3])
def test_known_noise_helps_where_the_traction_is_not_white(noise):
    rng = np.random.default_rng(3)
    traction = adhesions(rng, 2)
    u, noise_std = measured(traction, noise, rng)
    assert (excess_over_the_best(u, traction, noise_std_um=noise_std) < 1.2).all()


def test_the_l_curve_has_its_corner_where_noise_dominates_a_smooth_traction():
    rng = np.random.default_rng(4)
    smooth = ndimage.gaussian_filter(rng.normal(scale=5000.0, size=(3, 2, SIZE, SIZE)), (0, 0, 4, 4), mode="wrap")
    traction = torch.tensor(smooth - smooth.mean((-2, -1), keepdims=True))
    u, _ = measured(traction, 0.3, rng)
    assert (excess_over_the_best(u, traction, method="l_curve") < 1.25).all()


@pytest.mark.parametrize("method", ["evidence", "gcv", "l_curve"])
@pytest.mark.parametrize("shape", [(12, 12), (9, 13)])
def test_each_field_of_a_batch_gets_its_own_and_units_scale(method, shape):
    u = torch.tensor(np.random.default_rng(5).normal(size=(2, 3, 2, *shape)))
    options = {"method": method, "thickness_um": 9.0, "transfer_function": torch.tensor([0.1, 0.8, 0.1])}
    strengths = choose_regularization(u, **SUBSTRATE, **options)
    assert strengths.shape == (2, 3)
    assert strengths.dtype == torch.float64
    torch.testing.assert_close(strengths[1, 2], choose_regularization(u[1, 2], **SUBSTRATE, **options))
    assert choose_regularization(u.float(), **SUBSTRATE, **options).dtype == torch.float32
    softer = {**SUBSTRATE, "youngs_modulus_pa": 1067.0}
    torch.testing.assert_close(choose_regularization(u, **softer, **options), 100 * strengths)
    torch.testing.assert_close(choose_regularization(7 * u + 1, **SUBSTRATE, **options), strengths, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["evidence", "gcv", "l_curve"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_field_at_rest_gets_the_strongest_and_the_others_of_its_batch_theirs(method, dtype):
    moved = torch.tensor(np.random.default_rng(6).normal(size=(2, 9, 12)), dtype=dtype)
    alike = torch.ones(2, 1, 1, dtype=dtype) * torch.tensor([0.1, -300.7], dtype=dtype).reshape(2, 1, 1)
    u = torch.stack((torch.zeros_like(moved), alike.expand_as(moved), moved))
    strengths = choose_regularization(u, **SUBSTRATE, method=method)
    # evidence at a known noise, of a field far below that noise, needs no rule of its own to say the same
    strongest = choose_regularization(1e-6 * moved, **SUBSTRATE, noise_std_um=1.0)
    torch.testing.assert_close(strengths[:2], strongest.expand(2))
    torch.testing.assert_close(strengths[2], choose_regularization(moved, **SUBSTRATE, method=method))
    found = traction_from_displacement(u, **SUBSTRATE, regularization=strengths)
    assert found[:2].abs().max() < 1e-5 * found[2].abs().max()  # float32 rounds 300 um


@pytest.mark.parametrize(
    ("field", "changes", "name"),
    [
        (torch.full((2, 8, 8), torch.inf), {}, "displacement_um"),
        (torch.zeros(2, 8), {}, "displacement_um"),
        (torch.eye(8).repeat(2, 1, 1), {"method": "guess"}, "method"),
        (torch.eye(8).repeat(2, 1, 1), {"noise_std_um": 0.0}, "noise_std_um"),
        (torch.eye(8).repeat(2, 1, 1), {"noise_std_um": -1.0}, "noise_std_um"),
        (torch.eye(8).repeat(2, 1, 1), {"noise_std_um": 0.1, "method": "gcv"}, "noise_std_um"),
        (torch.eye(8).repeat(3, 2, 1, 1), {"noise_std_um": torch.ones(2)}, "noise_std_um"),
        (torch.eye(8).repeat(2, 1, 1), {"poisson_ratio": 0.7}, "poisson_ratio"),
    ],
)
def test_bad_input_is_named(field, changes, name):
    with pytest.raises(ValueError, match=f"^{name} "):
        choose_regularization(field, **{**SUBSTRATE, **changes})


def recipe_cell(rng, size=104):
    """Traction (2, y, x) in Pa and the cell's mask: a Fourier outline, point stresses pulling inward from its edge."""
    angles = np.deg2rad(np.arange(360))
    orders, phases = np.arange(2, 7)[:, None], rng.uniform(0, 2 * math.pi, (5, 1))
    radius = 1 + (rng.uniform(0, 0.3, (5, 1)) / (orders - 1) * np.cos(orders * angles + phases)).sum(0)
    x, y = radius * np.cos(angles), radius * np.sin(angles)
    radius *= 64 / max(np.ptp(x), np.ptp(y))
    pull = np.abs(np.interp(np.arange(360), np.arange(0, 361, 20), np.append(p := rng.exponential(size=18), p[0])))
    mean = (pull[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)).sum(0) / pull.sum()
    pull = np.clip(pull * (1 - 2 * mean[0] * np.cos(angles) - 2 * mean[1] * np.sin(angles)), 0, None)  # balance
    traction = np.zeros((2, size, size))
    for step, depth, smooth in ((2, 1, False), (6, 2, False), (10, 6, True)):
        layer = np.zeros_like(traction)
        for degree in range(0, 360, step):
            r = max(radius[degree] - 3 - rng.poisson(depth), 0)
            inward = -np.array([math.cos(angles[degree]), math.sin(angles[degree])])
            column, row = (round(size / 2 - r * c) for c in inward)
            layer[:, row, column] += pull[degree] * inward
        weights = np.array([[0.4, 0.6, 0.4], [0.6, 1.0, 0.6], [0.4, 0.6, 0.4]])
        traction += np.stack([ndimage.convolve(c, weights, mode="constant") for c in layer]) if smooth else layer
    y, x = np.mgrid[:size, :size] - size / 2
    edge = np.interp(np.rad2deg(np.arctan2(y, x)) % 360, np.arange(361), np.append(radius, radius[0]))
    return torch.tensor(traction), torch.tensor(np.hypot(x, y) <= edge)


def test_synthetic_cells_give_the_errors_of_an_independent_implementation():
    # interior NRMSE at lambda 0, 6e-10, 1e-9, 3e-9 (px/Pa)^2 of twelve cells of this recipe with other random outlines
    expected = {
        0.0: [0.14, 0.16, 0.19, 0.32],
        0.0188: [0.31, 0.28, 0.28, 0.35],
        0.0375: [0.56, 0.48, 0.46, 0.44],
    }
    rng = np.random.default_rng(6)
    cells = [recipe_cell(rng) for _ in range(12)]
    traction, mask = (torch.stack(parts) for parts in zip(*cells, strict=True))
    u = displacement_from_traction(traction, **PIXELS, centre_element="published", reach="published")
    inside = mask[:, None]
    mean = (u.norm(dim=1) * mask).sum((1, 2)) / mask.sum((1, 2))
    scale = (0.4277 / mean)[:, None, None, None]  # mean interior displacement of the recipe, in px
    traction, u = traction * scale, u * scale
    for noise, row in expected.items():
        noisy = u + torch.tensor(rng.normal(scale=noise / math.sqrt(2), size=u.shape))
        found = []
        for strength in (0.0, 6e-10, 1e-9, 3e-9):
            result = traction_from_displacement(noisy, **PIXELS, regularization=strength)
            if noise > 0 and strength == 1e-9:
                cut = ((cutoff_filter(result, mask, frame_border_px=8) - traction) * inside).flatten(1).norm(dim=1)
                assert (cut < ((result - traction) * inside).flatten(1).norm(dim=1)).all()  # the cutoff pays
            error = ((result - traction) * inside).flatten(1).norm(dim=1)
            found.append(float((error / (traction * inside).flatten(1).norm(dim=1)).mean()))
        np.testing.assert_allclose(found, row, rtol=0.2)


@pytest.mark.parametrize("method", ["evidence", "gcv", "l_curve"])
def test_a_field_without_a_wave_is_refused_and_the_smallest_with_one_is_not(method):
    with pytest.raises(ValueError, match=r"at least 3 pixels along x or y, got \(y, x\) = \(2, 2\)"):
        choose_regularization(torch.ones(2, 2, 2), **SUBSTRATE, method=method)
    u = torch.tensor(np.random.default_rng(7).normal(size=(2, 2, 3)))
    assert choose_regularization(u, **SUBSTRATE, method=method) > 0
