"""The methods without training as layers: those of the physics, field by field, in units of the grid."""

import math

import pytest
import torch

from lightning_modules.networks.elastic_operator import ElasticOperator
from lightning_modules.networks.traction_inversions import FourierInversion, SparseInversion, kernel_of
from physics.half_space import displacement_from_traction
from physics.sparse_traction import traction_from_displacement_sparse
from physics.traction_cytometry import choose_regularization, traction_from_displacement

MODULI_PA = torch.tensor([10670.0, 2500.0, 10670.0, 40000.0])
RATIOS = [0.45, 0.5, 0.3, 0.45]
BLUR = [0.2, 0.6, 0.2]
FLOAT32 = 1e-5


def displacement(size=16):
    """Two pulls that balance, by the operator of the first substrate, and noise."""
    generator = torch.Generator().manual_seed(0)
    traction = torch.zeros(4, 2, size, size)
    traction[:, :, 5, 6] = torch.randn(4, 2, generator=generator)
    traction[:, :, 10, 9] = -traction[:, :, 5, 6]
    field = displacement_from_traction(traction, pixel_size_um=1.0, youngs_modulus_pa=1.0, poisson_ratio=0.45)
    return field + 0.01 * torch.randn(4, 2, size, size, generator=generator)


def measured_by(ratios, blur=None):
    """Operators of fields that differ in Poisson's ratio only."""
    return ElasticOperator(ratios, ["exact"] * len(ratios), ["full"] * len(ratios), kernel_of(blur))


def close(one, other):
    assert (one - other).abs().max() <= FLOAT32 * other.abs().max()


@pytest.mark.parametrize("strength", [0.0, 6e-10, 3e-9])
def test_lambda_is_in_square_pixels_per_square_pascal(strength):
    """As in the paper, where u is in pixels and T in Pa; the layer answers traction / E."""
    layer, fields = FourierInversion(strength, None), displacement()
    answer = layer(fields, MODULI_PA, measured_by(RATIOS))
    for number, (modulus, ratio) in enumerate(zip(MODULI_PA.tolist(), RATIOS, strict=True)):
        expected = traction_from_displacement(
            fields[number], pixel_size_um=1.0, youngs_modulus_pa=modulus, poisson_ratio=ratio, regularization=strength
        )
        close(answer[number] * modulus, expected)


@pytest.mark.parametrize("choice", ["evidence", "gcv", "l_curve"])
def test_lambda_may_be_chosen_for_each_field(choice):
    fields = displacement()
    answer = FourierInversion(None, choice)(fields, MODULI_PA, measured_by([0.45] * 4))
    substrate = {"pixel_size_um": 1.0, "youngs_modulus_pa": 1.0, "poisson_ratio": 0.45}
    for number in range(4):
        one = fields[number : number + 1]
        chosen = choose_regularization(one, method=choice, **substrate)
        expected = traction_from_displacement(one, regularization=chosen, **substrate)
        # the search for lambda ends at a tolerance of its own
        assert (answer[number] - expected[0]).abs().max() <= 1e-3 * expected.abs().max()


def test_the_sparse_layer_is_the_solver_of_the_physics():
    fields = displacement()
    layer, operator = SparseInversion(10), measured_by(RATIOS, BLUR)
    answer = layer(fields, MODULI_PA, operator)
    assert torch.equal(answer, layer(fields, 2 * MODULI_PA, operator))
    for number, ratio in enumerate(RATIOS):
        expected = traction_from_displacement_sparse(
            fields[number : number + 1],
            pixel_size_um=1.0,
            youngs_modulus_pa=1.0,
            poisson_ratio=ratio,
            iterations=10,
            transfer_function=torch.tensor(BLUR),
        )
        assert (answer[number] - expected[0]).abs().max() <= 1e-3 * expected.abs().max()


def test_the_sparse_layer_takes_the_noise_as_the_magnitude_of_a_vector():
    fields, operator = displacement()[:1], measured_by(RATIOS[:1], None)
    answer = SparseInversion(10, noise_px=0.02)(fields, MODULI_PA[:1], operator)
    substrate = {"pixel_size_um": 1.0, "youngs_modulus_pa": 1.0, "poisson_ratio": RATIOS[0]}
    expected = traction_from_displacement_sparse(fields, noise_std_um=0.02 / math.sqrt(2), iterations=10, **substrate)
    assert torch.equal(answer, expected)
    assert not torch.equal(answer, SparseInversion(10)(fields, MODULI_PA[:1], operator))


def test_a_known_transfer_function_is_undone():
    fields, layer = displacement(), FourierInversion(0.0, None)
    plain, blurred = (layer(fields, MODULI_PA, measured_by(RATIOS, kernel)) for kernel in (None, BLUR))
    assert blurred.square().sum() > 1.5 * plain.square().sum()  # what the window took away is put back


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None), "regularization or choice must be given"),
        ((1e-9, "gcv"), "regularization or choice must be given"),
        ((-1e-9, None), "regularization must be finite and not negative, got -1e-09"),
        ((math.inf, None), "regularization must be finite and not negative, got inf"),
        ((None, "bayes"), "choice must be one of evidence, gcv, l_curve, got 'bayes'"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        FourierInversion(*arguments)
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        SparseInversion(0)
    with pytest.raises(ValueError, match="noise_px must be positive, or null to be measured, got 0"):
        SparseInversion(10, noise_px=0.0)
