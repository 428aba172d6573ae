"""Traction from displacement without anything to learn: Fourier cytometry and the group-sparse solver as layers.

Units are those of the grid: displacement (batch, 2, y, x) in pixels, traction per Young's modulus (batch, 2, y, x). The
fields of a batch may lie on substrates of different stiffness and Poisson's ratio.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.networks.elastic_operator import ElasticOperator
from physics.half_space import kernel_shape
from physics.sparse_traction import traction_from_displacement_sparse
from physics.traction_cytometry import choose_regularization, traction_from_displacement

CHOICES = ("evidence", "gcv", "l_curve")
MEAN_FORCES = ("zero", "finite_domain")


class FourierInversion(nn.Module):
    """`physics.traction_cytometry`, lambda given or chosen.

    Args:
        regularization: lambda in (px/Pa)^2, as papers on pixel displacements give it; None has `choice` find one for
            each field.
        choice: "evidence", "gcv" or "l_curve"; None where `regularization` is given.
        mean_force: "zero" or "finite_domain", what becomes of the mean displacement.

    Raises:
        ValueError: both or none of the first two, or one out of its range.

    """

    def __init__(self, regularization: float | None, choice: str | None, mean_force: str = "zero") -> None:
        super().__init__()
        if (regularization is None) == (choice is None):
            raise ValueError("regularization or choice must be given, and the other one null")
        if regularization is not None and not 0 <= regularization < math.inf:
            raise ValueError(f"regularization must be finite and not negative, got {regularization}")
        if choice is not None and choice not in CHOICES:
            raise ValueError(f"choice must be one of {', '.join(CHOICES)}, got {choice!r}")
        if mean_force not in MEAN_FORCES:
            raise ValueError(f"mean_force must be one of {', '.join(MEAN_FORCES)}, got {mean_force!r}")
        self.regularization = regularization
        self.choice = choice
        self.mean_force = mean_force

    def forward(self, displacement_px: Tensor, youngs_modulus_pa: Tensor, operator: ElasticOperator) -> Tensor:
        """Displacement in px, modulus (batch,) in Pa and the fields' operators -> traction / E.

        Centre element and reach make no difference: a periodic field has neither.
        """
        return operator.each(self._invert, displacement_px, youngs_modulus_pa)

    def _invert(
        self, displacement_px: Tensor, modulus_pa: Tensor, *, centre_element: str, reach: str, **substrate: Any
    ) -> Tensor:
        if self.regularization is None:
            strength = choose_regularization(displacement_px, method=str(self.choice), **substrate)
        else:
            strength = self.regularization * modulus_pa.square()  # in units in which E is 1
        return traction_from_displacement(
            displacement_px, regularization=strength, mean_force=self.mean_force, **substrate
        )


class SparseInversion(nn.Module):
    """`physics.sparse_traction` with its own choice of the sparsity.

    Args:
        iterations: of the solver.
        noise_px: magnitude of the noise vector, sqrt(2) times a component's standard deviation; None measures it.

    Raises:
        ValueError: an argument is not positive.

    """

    def __init__(self, iterations: int, noise_px: float | None = None) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        if noise_px is not None and not 0 < noise_px < math.inf:
            raise ValueError(f"noise_px must be positive, or null to be measured, got {noise_px}")
        self.iterations = iterations
        self.noise_px = noise_px

    def forward(self, displacement_px: Tensor, youngs_modulus_pa: Tensor, operator: ElasticOperator) -> Tensor:
        """Displacement in px, modulus (batch,) in Pa and the fields' operators -> traction / E."""
        noise = None if self.noise_px is None else self.noise_px / math.sqrt(2)
        solve = partial(traction_from_displacement_sparse, iterations=self.iterations, noise_std_um=noise)
        return operator.each(solve, displacement_px)


def kernel_of(transfer_function: list[float] | None) -> Tensor | None:
    """The kernel of a displacement measurement as a tensor; None for a perfect one.

    Raises:
        ValueError: a kernel that `physics.half_space` refuses.

    """
    if transfer_function is None:
        return None
    kernel = torch.tensor(transfer_function, dtype=torch.float32)
    kernel_shape(kernel)
    return kernel
