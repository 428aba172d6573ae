"""What the methods of `dl_tfm` are told of the operators: what the samples say, unless the settings do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from datamodules.batches import TractionBatch
from lightning_modules.dl_tfm import FourierTractionCytometry, SparseTractionCytometry
from physics.half_space import displacement_from_traction

OPERATORS = [
    {"poisson_ratio": 0.45, "centre_element": "published", "reach": "published"},
    {"poisson_ratio": 0.49, "centre_element": "exact", "reach": "full"},
]
AS_SAID: dict[str, Any] = {
    "centre_element": None,
    "reach": None,
    "poisson_ratio": None,
    "gel_thickness_um": None,
    "transfer_function": None,
}


def batch() -> TractionBatch:
    """Two fields, each made by an operator of its own, without noise."""
    traction = torch.zeros(2, 2, 24, 24)
    traction[:, 0, 8, 9], traction[:, 0, 15, 14] = 500.0, -500.0
    displacement = [
        displacement_from_traction(field, pixel_size_um=1.0, youngs_modulus_pa=1e4, **operator)
        for field, operator in zip(traction, OPERATORS, strict=True)
    ]
    ones, codes = torch.ones(2), torch.tensor([1, 0])
    mask = torch.ones(2, 24, 24, dtype=torch.bool)
    numbers = (1e4 * ones, torch.tensor([0.45, 0.49]), ones, codes, codes, torch.inf * ones)
    return TractionBatch(torch.stack(displacement), traction, mask, *numbers, ["a_0", "b_0"], ["a", "b"])


def sparse(**changes: Any) -> SparseTractionCytometry:
    settings = {"iterations": 40, "noise_px": None, "cutoff_percentile": None, "frame_border_px": 0}
    return SparseTractionCytometry(**{**settings, **AS_SAID, **changes})


def test_each_field_is_explained_by_the_operator_that_its_sample_names() -> None:
    prediction = sparse().predict_step(batch(), 0)
    assert prediction.traction_nrmse.max() < 0.02
    assert prediction.forward_residual.max() < 0.02


@pytest.mark.parametrize(
    "wrong", [{"centre_element": "exact"}, {"poisson_ratio": 0.3}, {"transfer_function": [0.1, 0.8, 0.1]}]
)
def test_a_setting_takes_the_place_of_what_the_samples_say(wrong: dict[str, Any]) -> None:
    told = sparse(**wrong).predict_step(batch(), 0).traction_nrmse
    assert told[0] > 0.04
    true = sparse(**{name: OPERATORS[0].get(name) for name in wrong}).predict_step(batch(), 0).traction_nrmse
    assert true[0] < 0.02


def test_fourier_cytometry_uses_the_poissons_ratio_that_it_is_told() -> None:
    settings = {
        "regularization": 1e-10,
        "choice": None,
        "mean_force": "zero",
        "cutoff_percentile": None,
        "frame_border_px": 0,
    }
    said, told = (
        FourierTractionCytometry(**{**settings, **AS_SAID, **changes}).predict_step(batch(), 0).traction_pa
        for changes in ({}, {"poisson_ratio": 0.49})
    )
    assert torch.equal(said[1], told[1])
    assert (said[0] - told[0]).abs().max() > 0.01 * said[0].abs().max()
