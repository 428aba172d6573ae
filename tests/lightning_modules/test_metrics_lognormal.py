"""Statistics of log-normal mixtures: Monte Carlo, scipy, numerical integration, and the paper's own figure."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from lightning_modules.metrics import lognormal
from lightning_modules.metrics.lognormal_scores import ForceDistribution

SETTINGS = settings(deadline=None, derandomize=True, max_examples=20)
THREE_DIGITS = 1e-3
REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "insilico_tfm"
FUNCTIONS = [
    lognormal.mean,
    lognormal.aleatoric_variance,
    lognormal.epistemic_variance,
    lognormal.variance,
    lognormal.coefficient_of_variation,
    lognormal.coefficient_of_variation_as_printed,
    lognormal.total_coefficient_of_variation,
    lognormal.entropy_bits,
    lognormal.entropy_bits_as_printed,
    lognormal.mixture_entropy_bits,
]


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def draws(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mu = 3 + 0.4 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return mu, 0.05 + 0.4 * torch.rand(*shape, generator=generator, dtype=torch.float64)


MU, SIGMA_SQUARED = tensor(2.0, 2.4, 1.7, 2.2), tensor(0.09, 0.25, 0.16, 0.04)


@pytest.fixture(scope="module")
def sampled():
    """1e6 forces of the mixture of MU and SIGMA_SQUARED, (components, 250,000), stratified within each component."""
    rng = np.random.default_rng(0)
    uniform = (np.arange(250_000) + rng.random((4, 250_000))) / 250_000
    return np.exp(MU[:, None].numpy() + SIGMA_SQUARED.sqrt()[:, None].numpy() * stats.norm.ppf(uniform))


def density(force):
    components = stats.lognorm(s=SIGMA_SQUARED.sqrt().numpy()[:, None], scale=MU.exp().numpy()[:, None])
    return components.pdf(force)


def test_equations_2_to_5_and_the_mixtures_own_against_a_million_samples(sampled):
    own = np.stack([density(row)[index] for index, row in enumerate(sampled)])
    mixed = np.stack([density(row).mean(axis=0) for row in sampled])
    expected = {
        "mean": sampled.mean(),
        "aleatoric_variance": sampled.var(axis=1).mean(),
        "epistemic_variance": sampled.mean(axis=1).var(),
        "variance": sampled.var(),
        "coefficient_of_variation": (sampled.std(axis=1) / sampled.mean(axis=1)).mean(),
        "total_coefficient_of_variation": sampled.std() / sampled.mean(),
        "entropy_bits": -np.log2(own).mean(),
        "mixture_entropy_bits": -np.log2(mixed).mean(),
    }
    for name, value in expected.items():
        ours = getattr(lognormal, name)(MU, SIGMA_SQUARED).item()
        assert ours == pytest.approx(value, rel=THREE_DIGITS), name
    lower, upper = lognormal.interval(MU, SIGMA_SQUARED, probability=0.9)
    assert [lower.item(), upper.item()] == pytest.approx(np.quantile(sampled, [0.05, 0.95]), rel=THREE_DIGITS)
    truth = 11.0
    score = np.abs(sampled - truth).mean() - np.abs(sampled.ravel() - rotated(sampled)).mean() / 2
    assert lognormal.crps(MU, SIGMA_SQUARED, torch.tensor(truth).double()).item() == pytest.approx(score, rel=0.01)


def rotated(sampled):
    return np.random.default_rng(1).permutation(sampled.ravel())


def test_one_draw_equals_scipys_log_normal():
    mu, square = 2.3, 0.49
    reference = stats.lognorm(s=0.7, scale=math.exp(mu))
    one = (tensor(mu), tensor(square))
    assert lognormal.mean(*one).item() == pytest.approx(reference.mean())
    assert lognormal.variance(*one).item() == pytest.approx(reference.var())
    assert lognormal.epistemic_variance(*one).item() == 0
    assert lognormal.entropy_bits(*one).item() == pytest.approx(reference.entropy() / math.log(2))
    assert lognormal.mixture_entropy_bits(*one).item() == pytest.approx(reference.entropy() / math.log(2), abs=2e-6)
    assert lognormal.total_coefficient_of_variation(*one).item() == pytest.approx(reference.std() / reference.mean())
    for probability in (1e-6, 0.16, 0.5, 0.975, 1 - 1e-9):
        ours = lognormal.quantile(*one, probability).item()
        assert ours == pytest.approx(reference.ppf(probability), rel=1e-9)


def test_printed_variants_are_off_by_what_the_print_is():
    mu, square = draws(5, 3)
    short = lognormal.entropy_bits(mu, square) - lognormal.entropy_bits_as_printed(mu, square)
    torch.testing.assert_close(short, torch.full_like(short, math.log2(2 * math.pi)))
    flat = lognormal.coefficient_of_variation_as_printed(tensor(0.0), tensor(1e-12)).item()
    assert flat == pytest.approx(math.sqrt(math.exp(0.5) - 1))


def test_quantiles_do_not_depend_on_the_pieces_that_are_searched_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    mu, square = torch.randn(4, 5, 7, generator=generator), 0.1 + torch.rand(4, 5, 7, generator=generator)
    whole = lognormal.quantile(mu, square, 0.9)
    monkeypatch.setattr(lognormal, "ROOT_PIXELS", 4)
    torch.testing.assert_close(lognormal.quantile(mu, square, 0.9), whole, rtol=1e-7, atol=0)


@pytest.mark.parametrize("draws", [1, 2, 1000])
def test_below_the_ceilings_every_number_of_a_wild_pixel_is_finite(draws):
    mu, squared = torch.full((draws, 1), 100.0), torch.full((draws, 1), 400.0)
    mu[1:2], squared[1:2] = 2.0, 1.0
    wild = ForceDistribution(mu, squared).bounded()
    numbers = [
        *(score(*wild) for score in (lognormal.mean, lognormal.variance, lognormal.coefficient_of_variation)),
        lognormal.crps(*wild, torch.tensor([10.0])),
        wild.median_pa(),
        *lognormal.interval(*wild),
    ]
    assert all(number.isfinite().all() for number in numbers)
    tame = ForceDistribution(torch.tensor([[3.0]]), torch.tensor([[0.5]]))
    assert all(torch.equal(*pair) for pair in zip(tame.bounded(), tame, strict=True))
    assert ForceDistribution(torch.tensor([[100.0]]), None).bounded().mean_pa().isfinite()


@pytest.mark.parametrize("probability", [1e-4, 0.05, 0.5, 0.975])
@pytest.mark.parametrize("seed", range(4))
def test_mixture_quantiles_against_scipys_root_finder(seed, probability):
    rng = np.random.default_rng(seed)
    mu, sigma = rng.normal(3, 2, 7), rng.uniform(0.01, 2, 7)

    def excess(log_force):
        return stats.norm.cdf((log_force - mu) / sigma).mean() - probability

    expected = math.exp(optimize.brentq(excess, -60, 60, xtol=1e-13))
    pair = torch.from_numpy(mu), torch.from_numpy(sigma**2)
    ours = lognormal.quantile(*pair, probability)
    assert ours.item() == pytest.approx(expected, rel=1e-8)
    assert lognormal.cdf(*pair, ours).item() == pytest.approx(probability, rel=1e-9)


@pytest.mark.parametrize(
    ("mu", "sigma"),
    [
        ([0.0, 0.0], [1.0, 0.01]),  # a spike inside of a hill
        ([0.0, 3.0, 3.0], [0.001, 1.0, 0.01]),
        ([2.0, 2.1, 2.5, 1.0, 4.0], [0.3, 0.5, 1.2, 0.1, 0.2]),
    ],
)
def test_mixture_entropy_against_adaptive_integration(mu, sigma):
    mu, sigma = np.array(mu), np.array(sigma)

    def integrand(log_force):
        value = stats.norm.pdf(log_force, mu, sigma).mean()
        return -value * math.log2(value) if value > 0 else 0.0

    edges = np.unique(np.concatenate([mu + k * sigma for k in (-9, -3, 0, 3, 9)]))
    parts = (integrate.quad(integrand, *piece, limit=200)[0] for piece in itertools.pairwise(edges))
    expected = sum(parts) + mu.mean() / math.log(2)
    ours = lognormal.mixture_entropy_bits(torch.from_numpy(mu), torch.from_numpy(sigma**2)).item()
    assert ours == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("seed", range(3))
def test_crps_against_its_integral(seed):
    mu, square = draws(4, seed=seed)
    sigma, truth = square.sqrt().numpy(), 22.0

    def below(force):
        return stats.norm.cdf((math.log(force) - mu.numpy()) / sigma).mean() if force > 0 else 0.0

    left, _ = integrate.quad(lambda force: below(force) ** 2, 0, truth)
    right, _ = integrate.quad(lambda force: (1 - below(force)) ** 2, truth, 1000, limit=200)
    assert lognormal.crps(mu, square, torch.tensor(truth).double()).item() == pytest.approx(left + right, rel=1e-6)


def test_crps_of_a_sure_prediction_is_the_absolute_error_and_zero_force_is_legal():
    sure = (torch.full((3, 2), math.log(5.0), dtype=torch.float64), torch.full((3, 2), 1e-16, dtype=torch.float64))
    torch.testing.assert_close(lognormal.crps(*sure, tensor(2.0, 0.0)), tensor(3.0, 5.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(lognormal.cdf(*sure, tensor(0.0, 9.0)), tensor(0.0, 1.0))


@SETTINGS
@given(seed=st.integers(0, 1000), factor=st.floats(-3, 3))
def test_the_unit_of_force_scales_through(seed, factor):
    mu, square = draws(4, 3, seed=seed)
    moved = mu + factor
    torch.testing.assert_close(lognormal.mean(moved, square), math.exp(factor) * lognormal.mean(mu, square))
    torch.testing.assert_close(lognormal.variance(moved, square), math.exp(2 * factor) * lognormal.variance(mu, square))
    for same in (lognormal.coefficient_of_variation, lognormal.total_coefficient_of_variation):
        torch.testing.assert_close(same(moved, square), same(mu, square))
    for entropy in (lognormal.entropy_bits, lognormal.mixture_entropy_bits):
        torch.testing.assert_close(entropy(moved, square), entropy(mu, square) + factor / math.log(2))
    torch.testing.assert_close(
        lognormal.interval(moved, square)[1], math.exp(factor) * lognormal.interval(mu, square)[1]
    )


@SETTINGS
@given(seed=st.integers(0, 1000))
def test_order_of_draws_does_not_matter_and_mixing_only_adds(seed):
    mu, square = draws(5, 2, seed=seed)
    shuffled = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    for function in FUNCTIONS:
        torch.testing.assert_close(function(mu[shuffled], square[shuffled]), function(mu, square))
    added = lognormal.mixture_entropy_bits(mu, square) - lognormal.entropy_bits(mu, square)
    assert (added >= -1e-5).all()
    assert (added <= math.log2(5) + 1e-5).all()
    assert (lognormal.epistemic_variance(mu, square) >= 0).all()


def test_equal_draws_have_no_epistemic_part():
    mu, square = (values.expand(6, 4) for values in draws(1, 4))
    assert lognormal.epistemic_variance(mu, square).max() == 0
    mixed = lognormal.mixture_entropy_bits(mu, square)
    torch.testing.assert_close(mixed, lognormal.entropy_bits(mu, square), atol=2e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("function", [*FUNCTIONS, lambda mu, square: lognormal.interval(mu, square)[1]])
def test_gradients_are_right(function):
    mu, square = draws(3, 2)
    assert torch.autograd.gradcheck(function, (mu.requires_grad_(), square.requires_grad_()))


def test_single_precision_is_kept_and_good():
    mu, square = draws(4, 3, 5)
    for function in FUNCTIONS:
        single = function(mu.float(), square.float())
        assert single.dtype == torch.float32
        assert single.shape == (3, 5)
        torch.testing.assert_close(single.double(), function(mu, square), rtol=1e-4, atol=1e-4)
    assert lognormal.quantile(mu.float(), square.float(), 0.3).dtype == torch.float32


@pytest.fixture(scope="module")
def predicted():
    """20,000 pixels of 3 draws with forces truly drawn from the mixture."""
    mu, square = draws(3, 20_000, seed=4)
    generator = torch.Generator().manual_seed(5)
    chosen = torch.randint(3, (1, 20_000), generator=generator)
    normal = torch.randn(20_000, generator=generator, dtype=torch.float64)
    return mu, square, (mu.gather(0, chosen)[0] + square.gather(0, chosen)[0].sqrt() * normal).exp()


def test_a_true_prediction_is_calibrated_and_a_boastful_one_is_not(predicted):
    mu, square, force = predicted
    spread = 4 * math.sqrt(0.25 / 20_000)
    torch.testing.assert_close(lognormal.coverage(mu, square, force), tensor(0.5, 0.68, 0.9, 0.95), atol=spread, rtol=0)
    curve = lognormal.calibration_curve(mu, square, force)
    torch.testing.assert_close(curve.observed, curve.expected, atol=spread, rtol=0)
    assert (lognormal.coverage(mu, square / 16, force) < tensor(0.5, 0.68, 0.9, 0.95) - 0.1).all()
    timid = lognormal.calibration_curve(mu, 16 * square, force, levels=(0.1, 0.9))
    assert timid.observed[0] < 0.05
    assert timid.observed[1] > 0.95
    scores = [lognormal.crps(mu, scale * square, force).mean() for scale in (1 / 16, 1, 16)]
    assert scores[1] < min(scores[0], scores[2])  # a proper score


def test_coverage_counts_what_lies_inside_of_the_interval(predicted):
    mu, square, force = predicted
    mask = force > 15
    lower, upper = lognormal.interval(mu, square, probability=0.68)
    inside = ((lower <= force) & (force <= upper))[mask].double().mean()
    share = lognormal.coverage(mu, square, force, probabilities=(0.68,), mask=mask)
    assert share.item() == pytest.approx(inside.item(), abs=1e-9)
    width = lognormal.sharpness(mu, square, probability=0.68, mask=mask)
    assert width.item() == pytest.approx((upper - lower)[mask].mean().item())


def test_sparsification_by_hand():
    error, uncertainty = tensor(1.0, 2.0, 3.0), tensor(0.1, 0.3, 0.2)
    torch.testing.assert_close(lognormal.sparsification_curve(error, uncertainty), tensor(1.0, 1.0, 0.5))
    torch.testing.assert_close(lognormal.sparsification_curve(error, error), tensor(1.0, 0.75, 0.5))
    assert lognormal.sparsification_error(error, uncertainty).item() == pytest.approx(0.25 / 3)
    torch.testing.assert_close(lognormal.sparsification_curve(error, torch.ones(3)), tensor(1.0, 1.0, 1.0))


@SETTINGS
@given(seed=st.integers(0, 1000))
def test_sparsification_sees_order_alone_and_is_zero_for_the_error_itself(seed):
    error, uncertainty = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    area = lognormal.sparsification_error(error, uncertainty)
    assert area >= 0
    torch.testing.assert_close(lognormal.sparsification_error(3 * error, uncertainty.exp()), area)
    assert lognormal.sparsification_error(error, error**2).item() == pytest.approx(0, abs=1e-12)
    assert lognormal.sparsification_error(error, -error) >= area


def test_bad_arguments_are_refused():
    mu, square = draws(2, 3)
    with pytest.raises(ValueError, match="mu and sigma_squared must have one shape"):
        lognormal.mean(mu, square[:1])
    with pytest.raises(ValueError, match="mu and sigma_squared must have one shape"):
        lognormal.entropy_bits(mu[:0], square[:0])
    for probability in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="probability must lie between 0 and 1"):
            lognormal.interval(mu, square, probability=probability)
    with pytest.raises(ValueError, match="force must have shape"):
        lognormal.crps(mu, square, torch.ones(2))
    with pytest.raises(ValueError, match="probabilities must lie"):
        lognormal.coverage(mu, square, torch.ones(3).double(), probabilities=(0.5, 95))
    with pytest.raises(ValueError, match="mask must be bool"):
        lognormal.sharpness(mu, square, mask=torch.ones(3))
    with pytest.raises(ValueError, match="mask must leave"):
        lognormal.sharpness(mu, square, mask=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="error and uncertainty must have one shape"):
        lognormal.sparsification_error(torch.ones(2), torch.ones(3))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real recordings are not beside the checkout")
def test_the_papers_figure_2_shows_the_printed_cv_and_the_corrected_entropy():
    with np.load(REAL / "digitised_frame0_20160810-002-xy6.npz") as stored:
        names = ("force_pred", "std_aleatoric", "std_epistemic", "cv", "entropy")
        mean, aleatoric, epistemic, cv, entropy = (torch.from_numpy(stored[name]).double() for name in names)
    agreed = (mean > 20) & (epistemic < 0.1 * mean) & (aleatoric < 360)  # the draws almost alike, no colour saturated
    square = torch.log1p((aleatoric / mean).square())[agreed][None]
    mu = mean[agreed].log()[None] - square / 2
    assert agreed.sum() > 5000

    def off(function, shown):
        return (function(mu, square) - shown[agreed]).abs().median().item()

    assert off(lognormal.coefficient_of_variation_as_printed, cv) < 0.02
    assert off(lognormal.coefficient_of_variation, cv) > 0.4
    assert off(lognormal.entropy_bits, entropy) < 0.1
    assert off(lognormal.entropy_bits_as_printed, entropy) > 2.5
