"""Fourier transform traction cytometry (FTTC): measured displacement -> traction, with Tikhonov regularisation.

Butler et al. 2002 (10.1152/ajpcell.00270.2001), regularised by Sabass et al. 2008 (10.1529/biophysj.107.113670). With
the eigenvalues g_L (along k) and g_T (across k) of `physics.half_space`, times the transfer function of the
displacement measurement if one is given, the traction minimises |G f - u|^2 + lambda |f|^2 for every wave vector:
    f_L = g_L u_L / (g_L^2 + lambda),  f_T = g_T u_T / (g_T^2 + lambda),  lambda in (um/Pa)^2.
The field counts as periodic. `choose_regularization` finds lambda.

Conventions of the public codes that are kept: odd or non-square fields are zero-padded at the far edges to an even
square, and the inverse tensor's off-diagonal element is 0 on the Nyquist row and column.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from physics.half_space import (
    centre_response,
    check_field,
    check_finite,
    check_substrate,
    convolve,
    for_convolution,
    green_eigenvalues,
    tensor_from_eigenvalues,
    transfer_spectrum,
    wave_vectors,
)
from physics.regularization_scores import cross_validation, l_curve_curvature, log_evidence, refined_maximum

UNSEEN = 1e-6  # a transfer function below it has removed the wave: what is left is rounding of a kernel in float32
CANDIDATES_PER_DECADE = 12
ROUNDING = 1e-12  # of the mean displacement: what varies less is its rounding in float64


def traction_from_displacement(
    displacement_um: Tensor,
    *,
    pixel_size_um: float,
    youngs_modulus_pa: float,
    poisson_ratio: float,
    regularization: float | Tensor = 0.0,
    mean_force: str = "zero",
    thickness_um: float | None = None,
    transfer_function: Tensor | None = None,
) -> Tensor:
    """Traction that explains a displacement field.

    Args:
        displacement_um: (..., 2, y, x) in um, components (x, y), float32 or float64.
        pixel_size_um: distance between the points of the field in um.
        youngs_modulus_pa: Young's modulus E in Pa.
        poisson_ratio: Poisson's ratio nu in (0, 0.5].
        regularization: lambda in (um/Pa)^2, one number or a tensor that broadcasts over the leading dimensions. A
            lambda in (px/Pa)^2, as papers on pixel displacements give it, is multiplied by pixel_size_um^2.
        mean_force: "zero": the mean displacement is drift; it is subtracted, and the traction's mean over the padded
            field is 0. "finite_domain": it is explained by a uniform traction on a square of the field's area at whose
            centre it is measured, f(0) = u(0) / g0 without regularisation (half space: g0 = 2 a L (2 - nu) asinh 1
            with a = (1 + nu) / (pi E) and the side L).
        thickness_um: thickness of a gel bonded to rigid glass, in um; None for a half space.
        transfer_function: kernel of the displacement measurement, as in `physics.half_space`. Waves that it removes
            entirely get no traction.

    Returns:
        (..., 2, y, x) in Pa, dtype and device of `displacement_um`; differentiable.

    Raises:
        ValueError: an argument outside the ranges above, or a displacement that is not finite.

    """
    check_field("displacement_um", displacement_um)
    check_substrate(pixel_size_um, youngs_modulus_pa, poisson_ratio, thickness_um)
    if mean_force not in ("zero", "finite_domain"):
        raise ValueError(f"mean_force must be 'zero' or 'finite_domain', got {mean_force!r}")
    mean = displacement_um.mean((-2, -1), keepdim=True)
    check_finite("displacement_um", displacement_um, mean)
    height, width = displacement_um.shape[-2:]
    side = max(height, width) + max(height, width) % 2
    where = (displacement_um.dtype, displacement_um.device)
    substrate = (pixel_size_um, youngs_modulus_pa, poisson_ratio, thickness_um)
    if not isinstance(regularization, Tensor) and transfer_function is None:
        _check_not_negative("regularization", regularization)
        inverse = _inverse_tensor(side, substrate, regularization, *where)
    else:
        strength = _over_leading("regularization", regularization, displacement_um)
        longitudinal, transverse = _eigenvalues(side, substrate, *where)
        if transfer_function is not None:
            seen = transfer_spectrum(transfer_function, side, side, torch.float64, displacement_um.device)
            seen = torch.where(seen.abs() > UNSEEN, seen, 0.0).to(displacement_um)
            longitudinal, transverse = longitudinal * seen, transverse * seen
        inverse = _compose(longitudinal, transverse, strength).unsqueeze(-1)
    traction_pa = convolve(displacement_um - mean, inverse, side, side)
    if mean_force == "zero":
        return traction_pa
    uniform = mean / _response_to_uniform(math.sqrt(height * width) * pixel_size_um, substrate)
    if transfer_function is not None:
        share = transfer_function.sum().to(mean)
        uniform = torch.where(share.abs() > UNSEEN, uniform / share, 0.0)
    return traction_pa + uniform


@torch.no_grad()
def choose_regularization(
    displacement_um: Tensor,
    *,
    method: str = "evidence",
    pixel_size_um: float,
    youngs_modulus_pa: float,
    poisson_ratio: float,
    noise_std_um: float | Tensor | None = None,
    thickness_um: float | None = None,
    transfer_function: Tensor | None = None,
) -> Tensor:
    """The regularisation that the data ask for, one per field; no gradient flows through it.

    The displacement is taken as G f plus white noise of standard deviation s, and f as white with standard deviation
    s / sqrt(lambda). "evidence" maximises the probability of the displacement under that model (Huang et al. 2019,
    10.1038/s41598-018-36896-x); s is `noise_std_um` (measured far from the cell, as they do) or, without it, the value
    that maximises it too. "gcv" minimises N |G f - u|^2 / trace(1 - influence matrix)^2 (Golub, Heath & Wahba 1979).
    "l_curve" takes the point of largest curvature of log |f|^2 over log |G f - u|^2 (Hansen 1992). All three are sums
    over the power of the Fourier coefficients. Candidates are 12 per decade over every lambda that makes a difference;
    the optimum is refined by a parabola. A field without measurable noise gets a lambda that changes nothing. A field
    at rest, displaced nowhere or alike everywhere, speaks for no traction and gets the largest candidate, as evidence
    at a known noise gives it; its traction is zero with any.

    Evidence comes nearest to the best traction when its own is sharp (adhesions of a pixel or two) and the noise is
    known; a smooth traction is no white one, and evidence then regularises too little. The L-curve has a corner only
    where noise dominates the unregularised traction; elsewhere it regularises far too much or not at all.

    Args:
        displacement_um: (..., 2, y, x) in um, float32 or float64.
        method: "evidence", "gcv" or "l_curve".
        pixel_size_um: distance between the points of the field in um.
        youngs_modulus_pa: Young's modulus in Pa.
        poisson_ratio: Poisson's ratio in (0, 0.5].
        noise_std_um: standard deviation of the noise per component in um, one number or a tensor that broadcasts over
            the leading dimensions; for "evidence" only.
        thickness_um: thickness of a gel bonded to rigid glass, in um; None for a half space.
        transfer_function: kernel of the displacement measurement, as in `physics.half_space`.

    Returns:
        lambda in (um/Pa)^2 over the leading dimensions (...), dtype and device of the field: the `regularization` of
        `traction_from_displacement`.

    Raises:
        ValueError: an argument outside the ranges above, or a displacement that is not finite.

    """
    check_field("displacement_um", displacement_um)
    check_substrate(pixel_size_um, youngs_modulus_pa, poisson_ratio, thickness_um)
    if method not in ("evidence", "gcv", "l_curve"):
        raise ValueError(f"method must be 'evidence', 'gcv' or 'l_curve', got {method!r}")
    if noise_std_um is not None and method != "evidence":
        raise ValueError(f"noise_std_um belongs to method 'evidence', got method {method!r}")
    field = displacement_um.double()
    mean = field.mean((-2, -1), keepdim=True)
    check_finite("displacement_um", field, mean)
    height, width = field.shape[-2:]
    count = _multiplicity(height, width).to(field.device)
    used = count > 0
    if not used.any():
        raise ValueError(
            f"displacement_um must have at least 3 pixels along x or y, got (y, x) = ({height}, {width}): say how "
            "strong the regularization is"
        )
    k_x, k_y = (k.to(field.device)[used] for k in wave_vectors(height, width, pixel_size_um))  # each (m,)
    k = torch.hypot(k_x, k_y)
    gain = torch.stack(green_eigenvalues(k, youngs_modulus_pa, poisson_ratio, thickness_um))  # (2, m)
    if transfer_function is not None:
        gain = gain * transfer_spectrum(transfer_function, height, width, torch.float64, field.device)[used]
    x, y = torch.fft.rfft2(field - mean, norm="ortho")[..., used].unbind(-2)  # (..., m)
    waves = torch.stack(((x * k_x + y * k_y) / k, (y * k_x - x * k_y) / k), dim=-2)
    power = (waves.abs().square() * count[used]).flatten(-2)  # (..., 2 m)
    rounding = height * width * (ROUNDING * mean.abs().amax((-3, -2, -1))).square()
    at_rest = power.sum(-1, keepdim=True) <= rounding.unsqueeze(-1)
    power = torch.where(at_rest, 1.0, power)
    gain, count = gain.square().flatten(), count[used].repeat(2)
    largest = math.log10(gain.max().item())
    smallest = max(math.log10(max(gain.min().item(), 1e-300)), largest - 8)
    steps = round((largest - smallest + 5) * CANDIDATES_PER_DECADE)
    logs = torch.linspace(smallest - 4, largest + 1, steps, dtype=torch.float64, device=field.device)
    if method == "evidence":
        noise = None if noise_std_um is None else _over_leading("noise_std_um", noise_std_um, field)
        if noise is not None and not bool((noise > 0).all()):
            raise ValueError("noise_std_um must be positive")
        score = log_evidence(power, gain, count, logs, noise)
    elif method == "gcv":
        score = cross_validation(power, gain, count, logs)
    else:
        score = l_curve_curvature(power, gain, logs)
    return (10 ** refined_maximum(logs, torch.where(at_rest, logs, score))).to(displacement_um.dtype)


def cutoff_filter(
    traction_pa: Tensor, cell_mask: Tensor, *, percentile: float = 98.0, frame_border_px: int = 0
) -> Tensor:
    """Set to zero the vectors that the background outside the cell could have made.

    Wang & Lin 2020 (10.1101/2020.05.20.107128): the threshold is the 98th percentile of the magnitude outside the cell.

    Args:
        traction_pa: (..., 2, y, x) in Pa.
        cell_mask: (..., y, x) boolean, true inside the cell; broadcasts over the leading dimensions.
        percentile: in [0, 100], interpolated linearly between the ordered magnitudes.
        frame_border_px: this many rows and columns along the frame, where periodic transforms leave artefacts, do not
            count as background. They are filtered like all others.

    Returns:
        The shape of `traction_pa`: vectors shorter than the threshold are 0, the others as they were.

    Raises:
        ValueError: an argument outside the ranges above, a traction that is not finite, or no background at all.

    """
    check_field("traction_pa", traction_pa)
    check_finite("traction_pa", traction_pa, traction_pa.sum())
    height, width = traction_pa.shape[-2:]
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must lie in [0, 100], got {percentile}")
    if frame_border_px < 0:
        raise ValueError(f"frame_border_px must not be negative, got {frame_border_px}")
    leading = traction_pa.shape[:-3]
    if cell_mask.dtype != torch.bool or cell_mask.shape[-2:] != (height, width):
        raise ValueError(
            f"cell_mask must be boolean and end in (y, x) = ({height}, {width}), "
            f"got {cell_mask.dtype} {tuple(cell_mask.shape)}"
        )
    try:
        background = ~cell_mask.expand(*leading, height, width)
    except RuntimeError:
        raise ValueError(
            f"cell_mask must broadcast over the leading dimensions {tuple(leading)}, got {tuple(cell_mask.shape)}"
        ) from None
    inner = torch.zeros(height, width, dtype=torch.bool, device=cell_mask.device)
    inner[frame_border_px : max(height - frame_border_px, 0), frame_border_px : max(width - frame_border_px, 0)] = True
    if not inner.any():
        raise ValueError(
            f"frame_border_px must leave something of a field of (y, x) = ({height}, {width}), got {frame_border_px}: "
            "lower it"
        )
    background = background & inner
    count = background.flatten(-2).sum(-1, keepdim=True)  # (..., 1)
    if not bool((count > 0).all()):
        raise ValueError(
            "cell_mask must leave background outside the cell and the frame's border in every field: give the cell's "
            "outline, or apply no cutoff"
        )
    magnitude = torch.linalg.vector_norm(traction_pa, dim=-3)
    ordered = magnitude.detach().masked_fill(~background, torch.inf).flatten(-2).sort(-1).values
    position = (count - 1).double() * (percentile / 100)
    below = position.long()
    low, high = ordered.gather(-1, below), ordered.gather(-1, torch.minimum(below + 1, count - 1))
    threshold = torch.lerp(low, high, (position - below).to(low))
    return torch.where((magnitude >= threshold.unsqueeze(-1)).unsqueeze(-3), traction_pa, 0.0)


@lru_cache(maxsize=8)
def _inverse_tensor(
    side: int,
    substrate: tuple[float, float, float, float | None],
    regularization: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The inverse in Pa/um for one lambda and a perfect measurement: (3, y, kx, 2)."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in a later backward pass
        strength = torch.tensor(regularization, dtype=torch.float64, device="cpu")
        eigenvalues = _eigenvalues(side, substrate, torch.float64, torch.device("cpu"))
        return for_convolution(_compose(*eigenvalues, strength)).to(device=device, dtype=dtype)


@lru_cache(maxsize=8)
def _eigenvalues(
    side: int, substrate: tuple[float, float, float, float | None], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(g_L, g_T) in um/Pa: (y, kx) each, stored with y fastest and 0 at k = 0."""
    pixel_size_um, youngs_modulus_pa, poisson_ratio, thickness_um = substrate
    with torch.inference_mode(False):
        k = torch.hypot(*wave_vectors(side, side, pixel_size_um))
        pair = torch.stack(green_eigenvalues(k, youngs_modulus_pa, poisson_ratio, thickness_um))
        pair[:, 0, 0] = 0.0
        longitudinal, transverse = pair.mT.contiguous().mT.to(device=device, dtype=dtype)
        return longitudinal, transverse


@lru_cache(maxsize=8)
def _response_to_uniform(frame_um: float, substrate: tuple[float, float, float, float | None]) -> float:
    """g0 in um/Pa: what a uniform traction on a square does at its centre."""
    _, youngs_modulus_pa, poisson_ratio, thickness_um = substrate
    layer = None if thickness_um is None else thickness_um / frame_um
    return frame_um / youngs_modulus_pa * float(centre_response(poisson_ratio, layer))


def _compose(longitudinal: Tensor, transverse: Tensor, strength: Tensor) -> Tensor:
    """Inverse tensor (..., 3, y, kx) from the eigenvalues under `strength` (...)."""
    strength = strength[..., None, None]
    side = longitudinal.shape[-2]
    return tensor_from_eigenvalues(_damped(longitudinal, strength), _damped(transverse, strength), side, side)


def _damped(g: Tensor, strength: Tensor) -> Tensor:
    """The regularised 1 / g, g / (g^2 + lambda), and 0 where both are 0."""
    return g / torch.addcmul(strength, g, g).clamp(min=torch.finfo(g.dtype).tiny)


def _multiplicity(height: int, width: int) -> Tensor:
    """How many real numbers a coefficient of the half spectrum stands for, (y, kx): 0 at k = 0 and Nyquist, else 2.

    On the column k_x = 0 both a coefficient and its conjugate are listed.
    """
    count = torch.full((height, width // 2 + 1), 2.0, dtype=torch.float64, device="cpu")
    count[:, 0] = 1.0
    count[0, 0] = 0.0
    if height % 2 == 0:
        count[height // 2] = 0.0
    if width % 2 == 0:
        count[:, width // 2] = 0.0
    return count


def _check_not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number from 0 on, got {value}")


def _over_leading(name: str, value: float | Tensor, field: Tensor) -> Tensor:
    """A non-negative number or tensor over the leading dimensions, dtype and device of the field."""
    if not isinstance(value, Tensor):
        _check_not_negative(name, value)
        return torch.tensor(value, dtype=field.dtype, device=field.device)
    leading = field.shape[:-3]
    if not bool((torch.isfinite(value) & (value >= 0)).all()):
        raise ValueError(f"{name} must hold finite numbers from 0 on")
    try:
        return value.to(field).expand(leading)
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast over the leading dimensions {tuple(leading)}, got shape {tuple(value.shape)}"
        ) from None
