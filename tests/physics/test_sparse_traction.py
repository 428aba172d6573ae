"""Group-sparse traction: the optimum's own conditions, an independent optimiser, known fields, symmetries, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from physics.half_space import displacement_from_traction
from physics.sparse_traction import estimate_noise_std, traction_from_displacement_sparse
from physics.traction_cytometry import traction_from_displacement
from physics.vector_fields import flip

GEL = {"pixel_size_um": 1.3, "youngs_modulus_pa": 8000.0, "poisson_ratio": 0.45}
UNIT = {"pixel_size_um": 1.0, "youngs_modulus_pa": 1.0, "poisson_ratio": 0.45}


def adhesions(height=40, width=40, seed=0, share=0.05):
    """Traction in Pa on a few pixels away from the frame, (2, y, x) float64."""
    rng = np.random.default_rng(seed)
    pulling = np.zeros((height, width), bool)
    pulling[8:-8, 8:-8] = rng.random((height - 16, width - 16)) < share
    return torch.tensor(rng.normal(0, 800, (2, height, width)) * pulling)


def with_noise(displacement, std, seed=1):
    return displacement + std * torch.tensor(np.random.default_rng(seed).normal(size=displacement.shape))


def error(estimate, truth):
    return float((estimate - truth).norm() / truth.norm())


def matrix(side):
    """G of the open boundary as a dense matrix over (component, y, x)."""
    units = torch.eye(2 * side * side, dtype=torch.float64).reshape(-1, 2, side, side)
    return displacement_from_traction(units, **UNIT).flatten(1).T


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"drift": "none"},
        {"centre_element": "published", "reach": "published"},
        {"thickness_um": 12.0},
        {"transfer_function": torch.tensor([0.08, 0.84, 0.08], dtype=torch.float64)},
    ],
)
def test_without_noise_the_traction_is_recovered(options):
    truth = adhesions()
    operator = {name: value for name, value in options.items() if name != "drift"}
    u = displacement_from_traction(truth, **GEL, **operator)
    assert error(traction_from_displacement_sparse(u, **GEL, **options), truth) < 2e-3


@pytest.mark.parametrize("noise_um", [0.004, 0.04])
@pytest.mark.parametrize("kernel", [[0.25, 0.5, 0.25], [0.1, 0.2, 0.4, 0.2, 0.1]])
def test_noise_behind_a_window_that_hides_short_waves_is_not_explained_by_traction(kernel, noise_um):
    """A start that explains the noise needs tractions beyond measure; what is found lies near the optimum."""
    truth, window = adhesions(), torch.tensor(kernel, dtype=torch.float64)
    u = with_noise(displacement_from_traction(truth, **GEL, transfer_function=window), noise_um)
    found = traction_from_displacement_sparse(u, **GEL, transfer_function=window)
    assert error(found, truth) < 1
    longer = traction_from_displacement_sparse(u, **GEL, transfer_function=window, iterations=3000, tolerance=0.0)
    assert error(found, truth) < 1.25 * error(longer, truth)
    assert error(found, longer) < 0.2


def test_noise_under_a_given_sparsity_is_solved_to_the_optimum():
    u = with_noise(displacement_from_traction(adhesions(24, 24), **GEL), 0.3)
    options = {"sparsity": 2e-5, "drift": "none"}
    found, longer = (
        traction_from_displacement_sparse(u, **GEL, **options, **more)
        for more in ({}, {"iterations": 3000, "tolerance": 0.0})
    )
    assert longer.any()
    assert error(found, longer) < 0.05


def test_fields_of_any_size_are_recovered():
    truth = adhesions(31, 46)
    u = displacement_from_traction(truth, **GEL)
    assert error(traction_from_displacement_sparse(u, **GEL), truth) < 2e-3


def test_single_precision_is_kept_and_suffices():
    truth = adhesions().float()
    found = traction_from_displacement_sparse(displacement_from_traction(truth, **GEL), **GEL)
    assert found.dtype == torch.float32
    assert error(found, truth) < 2e-3


@pytest.mark.parametrize("noise_um", [0.002, 0.01])
def test_with_noise_one_call_beats_fourier_cytometry_at_its_best(noise_um):
    truth = adhesions()
    u = with_noise(displacement_from_traction(truth, **GEL), noise_um)
    strengths = 10.0 ** np.arange(-11, -5, 0.5)
    fourier = min(error(traction_from_displacement(u, **GEL, regularization=s), truth) for s in strengths)
    assert error(traction_from_displacement_sparse(u, **GEL), truth) < 0.5 * fourier


def test_a_constant_drift_is_told_from_the_traction():
    truth = adhesions()
    u = with_noise(displacement_from_traction(truth, **GEL), 0.002)
    drift = torch.tensor([0.4, -0.7], dtype=torch.float64)[:, None, None]
    still = traction_from_displacement_sparse(u, **GEL)
    drifted = traction_from_displacement_sparse(u + drift, **GEL)
    assert error(drifted, still) < 0.01
    assert error(traction_from_displacement_sparse(u + drift, **GEL, drift="none"), truth) > 2 * error(drifted, truth)


@pytest.mark.parametrize("drifts", [False, True])
def test_the_result_fulfils_the_conditions_of_the_optimum(drifts):
    """G^T (u - c - G f) is lambda f / |f| where a pixel pulls, and no longer than lambda elsewhere."""
    side, lam = 6, 0.4
    G = matrix(side)
    u = torch.tensor(np.random.default_rng(3).normal(size=(2, side, side)))
    f = traction_from_displacement_sparse(
        u, **UNIT, sparsity=lam, iterations=3000, tolerance=0.0, drift="estimated" if drifts else "none"
    )
    residual = u - (G @ f.flatten()).reshape(u.shape)
    if drifts:
        residual = residual - residual.mean((-2, -1), keepdim=True)
    correlation = (G.T @ residual.flatten()).reshape(u.shape)
    length = f.norm(dim=0)
    pulls = length > 0
    assert 3 < int(pulls.sum()) < side * side
    torch.testing.assert_close(correlation[:, pulls], (lam * f / length)[:, pulls], rtol=0, atol=1e-6)
    assert float(correlation.norm(dim=0)[~pulls].max()) <= lam + 1e-6


def test_an_independent_optimiser_finds_the_same_minimum():
    """BFGS on the dense matrix, the kinks of |f| rounded off over 1e-7."""
    side, lam = 6, 0.3
    G = matrix(side).numpy()
    u = np.random.default_rng(5).normal(size=2 * side * side)
    n = side * side

    def smoothed(f):
        residual = G @ f - u
        length = np.sqrt(f[:n] ** 2 + f[n:] ** 2 + 1e-14)
        value = 0.5 * residual @ residual + lam * length.sum()
        return value, G.T @ residual + lam * f / np.tile(length, 2)

    options = {"gtol": 1e-9, "maxiter": 4000}
    reference = minimize(smoothed, np.full(2 * n, 0.1), jac=True, method="BFGS", options=options)
    found = traction_from_displacement_sparse(
        torch.tensor(u).reshape(2, side, side), **UNIT, sparsity=lam, iterations=2000, tolerance=0.0, drift="none"
    )
    mine = found.flatten().numpy()
    assert smoothed(mine)[0] == pytest.approx(reference.fun, rel=1e-5)
    assert np.linalg.norm(mine - reference.x) < 5e-3 * np.linalg.norm(mine)


def test_a_large_sparsity_leaves_nothing():
    u = displacement_from_traction(adhesions(), **GEL)
    assert not traction_from_displacement_sparse(u, **GEL, sparsity=1.0, drift="none").any()


@pytest.mark.parametrize("drift", ["none", "estimated"])
def test_no_displacement_no_traction(drift):
    assert not traction_from_displacement_sparse(torch.zeros(3, 2, 12, 12), **GEL, drift=drift).any()


@settings(deadline=None, max_examples=6)
@given(modulus=st.floats(0.1, 10), pixel=st.floats(0.1, 10), amplitude=st.floats(0.1, 10))
def test_units_scale_through(modulus, pixel, amplitude):
    u = with_noise(displacement_from_traction(adhesions(24, 24), **GEL), 0.01)
    plain = traction_from_displacement_sparse(u, **GEL, iterations=15)
    scaled = traction_from_displacement_sparse(
        u * (amplitude * pixel),
        pixel_size_um=GEL["pixel_size_um"] * pixel,
        youngs_modulus_pa=GEL["youngs_modulus_pa"] * modulus,
        poisson_ratio=GEL["poisson_ratio"],
        iterations=15,
    )
    torch.testing.assert_close(scaled, plain * (amplitude * modulus), rtol=1e-6, atol=1e-6 * float(scaled.abs().max()))


@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_mirrored_field_has_the_mirrored_traction(axis):
    u = with_noise(displacement_from_traction(adhesions(24, 30), **GEL), 0.01)
    mirrored = flip(traction_from_displacement_sparse(u, **GEL), axis)
    found = traction_from_displacement_sparse(flip(u, axis), **GEL)
    torch.testing.assert_close(found, mirrored, rtol=0, atol=1e-7 * float(mirrored.abs().max()))


def test_a_batch_is_its_fields_one_by_one():
    truth = torch.stack([adhesions(24, 24, seed) for seed in range(6)]).reshape(2, 3, 2, 24, 24)
    u = displacement_from_traction(truth, **GEL)
    u = u + with_noise(torch.zeros_like(u), 0.005) * torch.tensor([0.0, 1.0, 4.0])[:, None, None, None]
    together = traction_from_displacement_sparse(u, **GEL)
    assert together.shape == u.shape
    alone = torch.stack([traction_from_displacement_sparse(field, **GEL) for field in u.flatten(0, 1)])
    torch.testing.assert_close(together.flatten(0, 1), alone, rtol=0, atol=1e-7 * float(truth.abs().max()))


def test_sparsity_and_noise_may_differ_from_field_to_field():
    u = with_noise(displacement_from_traction(adhesions(24, 24), **GEL), 0.01).expand(2, -1, -1, -1)
    for name, values in (("sparsity", [2e-8, 2e-6]), ("noise_std_um", [0.001, 0.05])):
        weak, strong = traction_from_displacement_sparse(u, **GEL, **{name: torch.tensor(values)})
        assert int((weak.norm(dim=0) > 0).sum()) > int((strong.norm(dim=0) > 0).sum())
        alone = traction_from_displacement_sparse(u[1], **GEL, **{name: values[1]})
        torch.testing.assert_close(strong, alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.slow
def test_gradients_flow_through_the_iterations():
    u = torch.tensor(np.random.default_rng(7).normal(size=(2, 4, 5))).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: traction_from_displacement_sparse(x, **UNIT, sparsity=0.2, iterations=3, drift="none"), (u,)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_graphics_card_finds_the_same_traction():
    u = with_noise(displacement_from_traction(adhesions(24, 24), **GEL), 0.01).expand(3, -1, -1, -1)
    there = traction_from_displacement_sparse(u.cuda(), **GEL).cpu()
    here = traction_from_displacement_sparse(u, **GEL)
    torch.testing.assert_close(there, here, rtol=0, atol=1e-6 * float(here.abs().max()))


def test_noise_is_measured_beside_traction_and_drift():
    u = displacement_from_traction(adhesions(80, 80, share=0.02), **GEL).float()
    drift = torch.linspace(0, 3, 80)
    noisy = with_noise(u.double(), 0.02).float() + drift
    assert float(estimate_noise_std(noisy)) == pytest.approx(0.02, rel=0.1)
    assert float(estimate_noise_std(u)) < 1e-3
    assert estimate_noise_std(noisy.expand(3, 2, -1, -1, -1)).shape == (3, 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"drift": "linear"}, "drift must be 'none' or 'estimated'"),
        ({"tolerance": 1.0}, "tolerance must lie in"),
        ({"iterations": 0}, "iterations must be a positive whole number"),
        ({"sparsity": -1.0}, "sparsity must hold finite numbers from 0 on"),
        ({"sparsity": float("nan")}, "sparsity must hold finite numbers from 0 on"),
        ({"sparsity": torch.ones(3)}, "sparsity must broadcast over the leading dimensions"),
        ({"noise_std_um": -0.1}, "noise_std_um must hold finite numbers"),
        ({"noise_std_um": 0.1, "sparsity": 1.0}, "give one of the two"),
        ({"poisson_ratio": 0.6}, "poisson_ratio must lie in"),
        ({"pixel_size_um": 0.0}, "pixel_size_um must be a positive number"),
        ({"reach": "short"}, "reach must be 'full' or 'published'"),
        ({"transfer_function": torch.ones(2)}, "transfer_function must be a real kernel"),
    ],
)
def test_bad_arguments_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        traction_from_displacement_sparse(torch.ones(2, 2, 12, 12), **{**GEL, **changed})


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (torch.ones(3, 12, 12), "displacement_um must have shape"),
        (torch.full((2, 12, 12), torch.nan), "displacement_um must be finite"),
        (torch.ones(2, 6, 12), "at least 8 x 8 pixels for its noise to be measured"),
    ],
)
def test_bad_fields_are_refused(field, message):
    with pytest.raises(ValueError, match=message):
        traction_from_displacement_sparse(field, **GEL)
    with pytest.raises(ValueError, match=message):
        estimate_noise_std(field)
