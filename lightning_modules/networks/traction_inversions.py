"""Traction from displacement without anything to learn: Fourier cytometry and the group-sparse solver as layers.

Units are those of the grid: displacement (batch, 2, y, x) in pixels, traction per Young's modulus (batch, 2, y, x). The
fields of a batch may lie on substrates of different stiffness and Poisson's ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from physics.half_space import kernel_shape
from physics.sparse_traction import traction_from_displacement_sparse
from physics.traction_cytometry import choose_regularization, traction_from_displacement

CHOICES = ("evidence", "gcv", "l_curve")
UNIT_SUBSTRATE = {"pixel_size_um": 1.0, "youngs_modulus_pa": 1.0}


class FourierInversion(nn.Module):
    """`physics.traction_cytometry`, lambda given or chosen.

    Args:
        regularization: lambda in (px/Pa)^2, as papers on pixel displacements give it; None has `choice` find one for
            each field.
        choice: "evidence", "gcv" or "l_curve"; None where `regularization` is given.
        transfer_function: kernel of the displacement measurement; None for a perfect one.

    Raises:
        ValueError: both or none of the first two, or one out of its range.

    """

    transfer_function: Tensor | None

    def __init__(
        self, regularization: float | None, choice: str | None, transfer_function: list[float] | None = None
    ) -> None:
        super().__init__()
        if (regularization is None) == (choice is None):
            raise ValueError("regularization or choice must be given, and the other one null")
        if regularization is not None and not 0 <= regularization < math.inf:
            raise ValueError(f"regularization must be finite and not negative, got {regularization}")
        if choice is not None and choice not in CHOICES:
            raise ValueError(f"choice must be one of {', '.join(CHOICES)}, got {choice!r}")
        self.regularization = regularization
        self.choice = choice
        self.register_buffer("transfer_function", kernel_of(transfer_function), persistent=False)

    def forward(
        self, displacement_px: Tensor, youngs_modulus_pa: Tensor, poisson_ratio: Tensor, **operator: Any
    ) -> Tensor:
        """Displacement in px, modulus (batch,) in Pa and Poisson's ratio (batch,) -> traction / E.

        `operator` makes no difference: a periodic field has no centre element and no reach.
        """
        return by_poisson_ratio(poisson_ratio, self._invert, displacement_px, youngs_modulus_pa)

    def _invert(self, poisson_ratio: float, displacement_px: Tensor, modulus_pa: Tensor) -> Tensor:
        substrate: dict[str, Any] = {**UNIT_SUBSTRATE, "poisson_ratio": poisson_ratio}
        substrate["transfer_function"] = self.transfer_function
        if self.regularization is None:
            strength = choose_regularization(displacement_px, method=str(self.choice), **substrate)
        else:
            strength = self.regularization * modulus_pa.square()  # in units in which E is 1
        return traction_from_displacement(displacement_px, regularization=strength, **substrate)


class SparseInversion(nn.Module):
    """`physics.sparse_traction` with its own choice of the sparsity.

    Args:
        iterations: of the solver.
        centre_element: of the operator, "exact" or "published".
        reach: of the operator, "full" or "published".
        transfer_function: kernel of the displacement measurement; None for a perfect one.

    Raises:
        ValueError: `iterations` is not positive.

    """

    transfer_function: Tensor | None

    def __init__(
        self, iterations: int, centre_element: str, reach: str, transfer_function: list[float] | None = None
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        self.options = {"iterations": iterations, "centre_element": centre_element, "reach": reach}
        self.register_buffer("transfer_function", kernel_of(transfer_function), persistent=False)

    def forward(
        self, displacement_px: Tensor, youngs_modulus_pa: Tensor, poisson_ratio: Tensor, **operator: Any
    ) -> Tensor:
        """Displacement in px, modulus (batch,) in Pa and Poisson's ratio (batch,) -> traction / E.

        `operator`: another centre_element, reach or transfer_function for these fields.
        """
        return by_poisson_ratio(poisson_ratio, partial(self._invert, operator), displacement_px)

    def _invert(self, operator: dict[str, Any], poisson_ratio: float, displacement_px: Tensor) -> Tensor:
        substrate: dict[str, Any] = {**UNIT_SUBSTRATE, "poisson_ratio": poisson_ratio}
        options = {**self.options, "transfer_function": self.transfer_function, **operator}
        return traction_from_displacement_sparse(displacement_px, **substrate, **options)


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


def by_poisson_ratio(poisson_ratio: Tensor, compute: Callable[..., Tensor], *fields: Tensor) -> Tensor:
    """Call `compute(poisson_ratio, *fields)` for the fields of each Poisson's ratio (batch,); join in their order."""
    ratios = [round(ratio, 6) for ratio in poisson_ratio.tolist()]  # .45 as float32 is .4499999
    if len(set(ratios)) == 1:
        return compute(ratios[0], *fields)
    parts: list[Tensor] = []
    order: list[int] = []
    for ratio in dict.fromkeys(ratios):
        chosen = [number for number, other in enumerate(ratios) if other == ratio]
        parts.append(compute(ratio, *(field[chosen] for field in fields)))
        order += chosen
    return torch.cat(parts)[torch.tensor(order).argsort()]
