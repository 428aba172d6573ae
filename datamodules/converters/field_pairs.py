"""Whether a stored traction explains the stored displacement: the elasticity that links them, as a check of a pair.

The displacement of the substrate under the traction (`physics.half_space`) is compared with the stored one. A pair that
was stored in another convention (components swapped, axes swapped, y pointing the other way, the cell's force on the
gel or the gel's on the cell) still fits, but only when it is read in that convention: such a pair is refused. What the
elasticity cannot tell: the mirror image at the diagonal of both fields, and anything about a displacement alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from physics.half_space import displacement_from_traction

Field = NDArray[np.float64]

CLEAN = 0.02
"""Residual below which no other reading is tried."""
MUCH_BETTER = 0.7
"""Another reading is right where it leaves less than this share of the residual; 0 to 0.6 on swapped real pairs."""
EXPLAINED = 0.6
"""Residual above which a reading explains nothing."""
GOOD_FIT = 0.1
"""Residual below which the modulus is judged to 10 %, else within a factor of 2."""

_READINGS: dict[str, Callable[[Field], Field]] = {
    "": lambda field: field,
    "with its components swapped": lambda field: field[::-1],
    "with its axes swapped": lambda field: field.transpose(0, 2, 1),
    "with axes and components swapped": lambda field: field[::-1].transpose(0, 2, 1),
    "with the sign of its y component turned": lambda field: field * np.array([1.0, -1.0])[:, None, None],
}
_OF_TRACTION = ("", "with its components swapped", "with the sign of its y component turned")
"""All others are one of these seen in the mirror, with another reading of the displacement."""


class _Operator(NamedTuple):
    """What may have made a pair."""

    options: dict[str, Any]
    """Of `explained_displacement`."""
    measured: Field
    """The displacement that is to be explained."""
    largest_residual: float
    """Below which it may have: Fourier cytometry explains nearly all, and a thin gel's more than a half space does."""


def explained_displacement(
    traction_pa: Field,
    *,
    modulus_pa: float,
    poisson_ratio: float,
    thickness_px: float | None = None,
    periodic: bool = False,
    exact: bool = False,
) -> Field:
    """Displacement in pixels of the field, (2, y, x), of a substrate under a traction (2, y, x) in Pa.

    Open boundary with Wang & Lin's centre element, and their reach where the field is square and even; `exact` with the
    exact element and full reach; `periodic` as Fourier transform traction cytometry has it, relative to the mean.
    """
    height, width = traction_pa.shape[1:]
    published = "published" if height == width and height % 2 == 0 else "full"
    if periodic:
        options = {"boundary": "periodic"}
    elif exact:
        options = {"centre_element": "exact", "reach": "full"}
    else:
        options = {"centre_element": "published", "reach": published}
    return displacement_from_traction(
        torch.from_numpy(np.ascontiguousarray(traction_pa)),
        pixel_size_um=1.0,
        youngs_modulus_pa=modulus_pa,
        poisson_ratio=poisson_ratio,
        thickness_um=thickness_px,
        **options,  # type: ignore[arg-type]
    ).numpy()


def forward_residual(displacement_px: Field, traction_pa: Field, **substrate: Any) -> float:
    """Return |G T - u| / |u| of one pair; `substrate` as for `explained_displacement`."""
    explained = explained_displacement(traction_pa, **substrate)
    return float(np.linalg.norm(explained - displacement_px) / np.linalg.norm(displacement_px))


def check_pair(
    where: str,
    displacement_px: Field,
    traction_pa: Field,
    *,
    modulus_pa: float,
    poisson_ratio: float,
    thickness_px: float | None = None,
    periodic: bool = False,
) -> None:
    """Raise ValueError where a pair fits the elasticity much better when it is read in another way.

    Args:
        where: What holds the pair, for the message.
        displacement_px: (2, y, x), in pixels of the field.
        traction_pa: (2, y, x), in Pa, for a substrate of `modulus_pa`.
        modulus_pa: Young's modulus in Pa.
        poisson_ratio: in (0, 0.5].
        thickness_px: of a gel bonded to rigid glass, in pixels of the field; None for a half space.
        periodic: the traction was computed by Fourier transform traction cytometry.
    """
    still, free = not displacement_px.any(), not traction_pa.any()
    if still or free:
        if still and free:
            return
        zero, other = ("displacement", "traction") if still else ("traction", "displacement")
        raise ValueError(
            f"{where}: the {zero} is zero everywhere but the {other} is not: they are no pair, replace one"
        )
    centred = displacement_px - displacement_px.mean(axis=(1, 2), keepdims=True)
    gel: dict[str, Any] = {"modulus_pa": modulus_pa, "poisson_ratio": poisson_ratio, "thickness_px": thickness_px}
    operators = [_Operator({**gel, "periodic": True}, centred, math.inf if periodic else GOOD_FIT)]
    if not periodic:  # which operator made it is not written: the one that fits best
        open_ones = (gel, {**gel, "exact": True})
        operators = [*(_Operator(options, displacement_px, math.inf) for options in open_ones), *operators]
    declared, explained, measured = 2.0, centred, centred
    for operator in operators:
        candidate = explained_displacement(traction_pa, **operator.options)
        residual = _residual(candidate, operator.measured)
        if residual < min(declared, operator.largest_residual):
            declared, explained, measured = residual, candidate, operator.measured
        if declared <= CLEAN:
            break
    if declared > CLEAN:
        _refuse_another_reading(where, operators, traction_pa, declared)
    if declared < EXPLAINED:
        stiffer = float((explained**2).sum() / (explained * measured).sum())
        latitude = 1.1 if declared < GOOD_FIT else 2.0
        if not 1 / latitude < stiffer < latitude:
            raise ValueError(
                f"{where}: the traction belongs to this displacement on a substrate of {stiffer * modulus_pa:.4g} Pa, "
                f"not {modulus_pa:.4g}: correct the modulus or the pixel sizes in conditions.json, add the "
                "gel_thickness_um of a thin gel, or write the modulus that the tractions are stored for as "
                "traction_modulus_pa (10 for training data of Wang & Lin)"
            )


def _refuse_another_reading(where: str, operators: Sequence[_Operator], traction_pa: Field, declared: float) -> None:
    found = (declared, "", "", 1)
    square = traction_pa.shape[1] == traction_pa.shape[2]
    for of_traction, operator in itertools.product(_OF_TRACTION, operators):
        explained = explained_displacement(_READINGS[of_traction](traction_pa), **operator.options)
        for of_displacement, read in _READINGS.items():
            if "axes" in of_displacement and not square:
                continue
            seen = read(operator.measured)
            for sign in (1, -1):
                residual, as_declared = _residual(sign * explained, seen), not (of_traction or of_displacement)
                if as_declared and sign == 1:
                    continue
                if residual < operator.largest_residual:
                    found = min(found, (residual, of_traction, of_displacement, sign))
    best, of_traction, of_displacement, sign = found
    if best >= MUCH_BETTER * declared or best >= EXPLAINED:
        return
    turned = [of_traction, "with its sign turned" if sign < 0 else ""]
    changes = [f"the traction is taken {' and '.join(filter(None, turned))}"] if any(turned) else []
    changes += [f"the displacement is taken {of_displacement}"] if of_displacement else []
    raise ValueError(
        f"{where}: the traction does not explain the displacement (residual {declared:.2g}), but it does "
        f"({best:.2g}) when {' and '.join(changes)}: store both in the same axes, the component along x first, as "
        "the force of the cell on the substrate"
    )


def _residual(explained: Field, measured: Field) -> float:
    """|s G T - u| / |u| with the best scale s >= 0: apart from the modulus."""
    size = float(np.sqrt((explained**2).sum() * (measured**2).sum()))
    cosine = float((explained * measured).sum()) / size if size > 0 else 0.0
    return float(np.sqrt(max(0.0, 1.0 - cosine**2))) if cosine > 0 else 1.0
