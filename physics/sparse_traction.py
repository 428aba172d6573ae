"""Sparse traction from displacement: few pixels of an elastic surface pull, and the boundary of the field is open.

With the operator G of `physics.half_space.displacement_from_traction` (open boundary), find the traction f and, where
the displacement drifted as a whole, a constant c that minimise
    1/2 |G f + c - u|^2 + lambda sum over pixels of |f(pixel)|,
both components of a pixel in one group (Yuan & Lin 2006, 10.1111/j.1467-9868.2005.00532.x). Sparsity in traction force
microscopy: Han et al. 2015 (10.1038/nmeth.3430) and Brask et al. 2015 (10.1016/j.actbio.2015.08.023), who penalise
every component by itself; grouped, the result turns with the field.

Solver: ADMM with two splits on the zero-padded torus, so that the quadratic step is a 2 x 2 system per wave vector
(Almeida & Figueiredo 2013, 10.1109/TIP.2013.2258354): y = G f, of which u is seen inside the frame only, and z = f,
which is sparse and zero outside it; over-relaxed (Eckstein & Bertsekas 1992). It starts from a few steps of conjugate
gradients on G f = u, preconditioned by the inverse of G on the torus, and of them from the one where the sum above is
least: without noise the last, which is the answer; with noise and a window that leaves little of short waves an early
one, since later ones explain the noise by tractions beyond measure. Such windows take many more steps of ADMM than
none, and at the default tolerance end some way off the optimum.

lambda, where not given, is STRENGTH s |g|: s the standard deviation of the noise per component, |g| the norm of G's
columns. It is linear in s as the universal threshold s |g| sqrt(2 log n) (Donoho & Johnstone 1994) is, but smaller,
since many neighbouring pixels pull. s is measured on the displacement by `estimate_noise_std`. Tried on simulated cells
and left out, as they raised the error: least squares on the support afterwards, and re-weighting (Candes et al. 2008).

STRENGTH, RELAXATION, DATA_PENALTY, SPARSE_STEP and the default tolerance are ours, set on simulated cells other than
those of any test.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from physics.half_space import (
    CPU_BLOCK,
    check_choices,
    check_field,
    check_finite,
    check_substrate,
    convolve,
    fast_length,
    kernel_shape,
    open_spectrum,
    transfer_spectrum,
)

STRENGTH = 1.7  # lambda in units of noise times column norm
RELAXATION = 1.6
DATA_PENALTY = 0.2  # weight of y = G f, in units of the weight of the data
SPARSE_STEP = 0.08  # traction by which one step shrinks, in units of the largest displacement over |g|
LEAST_PENALTY = 1e-3  # weight of z = f for vanishing lambda, in units of |g|^2
START_STEPS = 12
OFFSET_STEPS = 10
FLOOR = 0.1  # smallest eigenvalue that the start inverts, in units of |g|
LEAST_STEPS, STEPS_BETWEEN_TESTS = 40, 10  # before the first test of whether a field is finished, and from then on
SMALLEST_SIDE = 8  # pixels below which a field says nothing about its noise


def traction_from_displacement_sparse(
    displacement_um: Tensor,
    *,
    pixel_size_um: float,
    youngs_modulus_pa: float,
    poisson_ratio: float,
    sparsity: float | Tensor | None = None,
    noise_std_um: float | Tensor | None = None,
    drift: str = "estimated",
    iterations: int = 400,
    tolerance: float = 3e-4,
    thickness_um: float | None = None,
    centre_element: str = "exact",
    reach: str = "full",
    transfer_function: Tensor | None = None,
) -> Tensor:
    """Traction of few pixels that explains a displacement field.

    Args:
        displacement_um: (..., 2, y, x) in um, components (x, y), float32 or float64.
        pixel_size_um: distance between the points of the field in um.
        youngs_modulus_pa: Young's modulus E in Pa.
        poisson_ratio: Poisson's ratio nu in (0, 0.5].
        sparsity: lambda of the module's docstring in um^2/Pa, one number or a tensor that broadcasts over the leading
            dimensions; None chooses it from the noise, as the docstring says.
        noise_std_um: standard deviation of the noise per component in um, likewise, for the choice of `sparsity`; None
            measures it. To be given where the noise is correlated from pixel to pixel.
        drift: "estimated": the displacement contains an unknown constant vector per field, c of the module's docstring;
            "none": it does not, c = 0.
        iterations: largest number of steps of the solver.
        tolerance: a field is finished when, after 40 steps or more, one changes its traction by no more than this share
            of it, in the norm over all pixels; 0 takes all steps.
        thickness_um: thickness of a gel bonded to rigid glass, in um; None for a half space.
        centre_element: "exact" or "published", as in `physics.half_space.displacement_from_traction`.
        reach: "full" or "published", likewise.
        transfer_function: kernel of the displacement measurement, as in `physics.half_space`.

    Returns:
        (..., 2, y, x) in Pa, dtype and device of `displacement_um`; differentiable, with lambda taken as constant
        where it was chosen here.

    Raises:
        ValueError: an argument outside the ranges above, or a displacement that is not finite.

    """
    check_field("displacement_um", displacement_um)
    check_substrate(pixel_size_um, youngs_modulus_pa, poisson_ratio, thickness_um)
    check_choices(displacement_um, "open", centre_element, reach)
    if drift not in ("none", "estimated"):
        raise ValueError(f"drift must be 'none' or 'estimated', got {drift!r}")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations must be a positive whole number, got {iterations!r}")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must lie in [0, 1), got {tolerance!r}")
    if sparsity is not None and noise_std_um is not None:
        raise ValueError("noise_std_um serves to choose sparsity: give one of the two")
    check_finite("displacement_um", displacement_um, displacement_um.sum())
    thickness_px = None if thickness_um is None else thickness_um / pixel_size_um
    operator = _operator(displacement_um, poisson_ratio, thickness_px, centre_element, reach, transfer_function)
    norm = _column_norm(operator)
    if sparsity is not None:
        strength = _over_leading("sparsity", sparsity, displacement_um) * (youngs_modulus_pa / pixel_size_um**2)
    else:
        if noise_std_um is None:
            noise = estimate_noise_std(displacement_um)
        else:
            noise = _over_leading("noise_std_um", noise_std_um, displacement_um)
        strength = STRENGTH / pixel_size_um * noise * norm.detach()
    # from here in pixels, and traction in units of E
    fields = (displacement_um / pixel_size_um).reshape(-1, *displacement_um.shape[-3:])
    strength = strength.reshape(-1, 1, 1, 1)
    rows, columns = operator.shape[-3], 2 * (operator.shape[-2] - 1)
    block = max(1, CPU_BLOCK // (rows * columns)) if fields.device.type == "cpu" else max(1, len(fields))
    solved = [
        _solve(u, lam, operator, norm, iterations, tolerance, drift == "estimated")
        for u, lam in zip(fields.split(block), strength.split(block), strict=True)
    ]
    return torch.cat(solved).reshape(displacement_um.shape) * youngs_modulus_pa


@torch.no_grad()
def estimate_noise_std(displacement_um: Tensor) -> Tensor:
    """Standard deviation of white noise in displacement fields, per component, blind to smooth and to rare changes.

    The median magnitude of the second difference along x of the second difference along y (Immerkaer 1996,
    10.1006/cviu.1996.0060), both components together, over the median of |N(0, 1)| (Donoho & Johnstone 1994). Constant
    and linear drift cancel. Pulling pixels raise it as far as they are many: by 2 to 16 % where the cell fills a fifth
    of the field. Noise correlated from pixel to pixel, as overlapping PIV windows make it, is underestimated.

    Args:
        displacement_um: (..., 2, y, x) in um, float32 or float64, at least 8 x 8 pixels.

    Returns:
        (...) in um, dtype and device of the field.

    Raises:
        ValueError: not such a field, or one that is not finite.

    """
    check_field("displacement_um", displacement_um)
    check_finite("displacement_um", displacement_um, displacement_um.sum())
    if min(displacement_um.shape[-2:]) < SMALLEST_SIDE:
        raise ValueError(
            f"displacement_um must have at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels for its noise to be measured,"
            f" got (y, x) = {tuple(displacement_um.shape[-2:])}: say how strong it is"
        )
    difference = displacement_um.diff(n=2, dim=-1).diff(n=2, dim=-2) / 6  # 6 = |(1, -2, 1)|^2
    middle = difference.abs().flatten(-3).median(-1).values
    return middle / (math.sqrt(2) * torch.erfinv(torch.tensor(0.5)).item())


def _operator(
    field: Tensor,
    nu: float,
    thickness_px: float | None,
    centre_element: str,
    reach: str,
    transfer_function: Tensor | None,
) -> Tensor:
    """Spectrum of G on a torus without wrap-around, for E = 1 and unit pixels: (3, rows, columns // 2 + 1, 2)."""
    height, width = field.shape[-2:]
    halo_y, halo_x = (n // 2 for n in kernel_shape(transfer_function))
    rows, columns = fast_length(2 * (height + halo_y) - 1), fast_length(2 * (width + halo_x) - 1)
    extent = (height - 1 + halo_y, width - 1 + halo_x)
    furthest = height // 2 - 1 if reach == "published" else None
    where = (field.dtype, field.device)
    tensor = open_spectrum(rows, columns, extent, nu, thickness_px, centre_element, furthest, *where)
    if transfer_function is not None:
        tensor = tensor * transfer_spectrum(transfer_function, rows, columns, *where)[..., None]
    return tensor


def _column_norm(operator: Tensor) -> Tensor:
    """Norm of the displacement on the torus that a pixel's unit traction makes, by Parseval's theorem."""
    power = operator[..., 0].square().sum(0) + operator[1, ..., 0].square()  # both columns of the tensor
    width = power.shape[-1]
    twice = torch.full((width,), 2.0, dtype=power.dtype, device=power.device)
    twice[0] = twice[-1] = 1.0  # columns is even: the last is Nyquist's
    return ((power @ twice).sum() / (2 * power.shape[-2] * 2 * (width - 1))).sqrt()


def _solve(
    u: Tensor, lam: Tensor, operator: Tensor, norm: Tensor, iterations: int, tolerance: float, drifts: bool
) -> Tensor:
    """ADMM for fields (n, 2, y, x) and lambda (n or 1, 1, 1, 1); a scaled dual variable goes with each split."""
    height, width = u.shape[-2:]
    rows, columns = operator.shape[-3], 2 * (operator.shape[-2] - 1)
    margin = (0, columns - width, 0, rows - height)
    size = (rows, columns)
    tiny = torch.finfo(u.dtype).tiny
    step = SPARSE_STEP * u.abs().amax((-3, -2, -1), keepdim=True) / norm
    weight = torch.maximum(lam / step.clamp_min(tiny), LEAST_PENALTY * norm.square())  # of z = f
    threshold = lam / weight
    first = operator[..., 0]
    inverse = _inverse_of_normal(first, weight[..., 0])

    z, offset = _start(u, lam, operator, norm, drifts)
    sparse = torch.nn.functional.pad(z, margin)
    y = torch.fft.irfft2(_apply(first, torch.fft.rfft2(sparse)), s=size)
    data_dual = torch.zeros_like(u)
    magnitude = torch.linalg.vector_norm(z, dim=-3, keepdim=True)
    sparse_dual = torch.nn.functional.pad(threshold * z / magnitude.clamp_min(tiny), margin)
    finished, answer = torch.zeros_like(lam, dtype=torch.bool), z
    for taken in range(1, iterations + 1):
        target = torch.fft.rfft2(y - torch.nn.functional.pad(data_dual, margin))
        wanted = DATA_PENALTY * _apply(first, target) + weight * torch.fft.rfft2(sparse - sparse_dual)
        f = _apply(inverse, wanted)
        y = torch.lerp(y, torch.fft.irfft2(_apply(first, f), s=size), RELAXATION)
        seen = y[..., :height, :width] + data_dual
        if drifts:
            offset = (u - seen).mean((-2, -1), keepdim=True)
        inside = (u - offset + DATA_PENALTY * seen) / (1 + DATA_PENALTY)
        data_dual = seen - inside  # 0 outside the frame, where nothing was measured
        y = y + torch.nn.functional.pad(inside - y[..., :height, :width], margin)
        free = torch.lerp(sparse, torch.fft.irfft2(f, s=size), RELAXATION) + sparse_dual
        z = free[..., :height, :width]
        magnitude = torch.linalg.vector_norm(z, dim=-3, keepdim=True)
        z = z * ((magnitude - threshold).relu() / torch.maximum(magnitude, threshold).clamp_min(tiny))
        before, sparse = sparse, torch.nn.functional.pad(z, margin)
        sparse_dual = free - sparse
        if taken == iterations or (taken >= LEAST_STEPS and taken % STEPS_BETWEEN_TESTS == 0):
            # a field keeps what it had when it was finished, so that its answer does not depend on its batch
            answer = torch.where(finished, answer, z) if tolerance else z
            change = (sparse - before).detach()
            finished = finished | (_dot(change, change) <= tolerance**2 * _dot(z, z).detach())
            if tolerance and bool(finished.all()):
                break
    return answer


def _start(u: Tensor, lam: Tensor, operator: Tensor, norm: Tensor, drifts: bool) -> tuple[Tensor, Tensor]:
    """Traction (n, 2, y, x) and offset (n, 2, 1, 1) that explain the displacement, noise and all where lambda is small.

    Of all offsets, that of the least sum of |f(pixel)|, by re-weighted least squares: the limit of the problem for
    small lambda.
    """
    inverse = _stable_inverse(operator, FLOOR * norm)
    offset = torch.zeros_like(u[..., :1, :1])
    f = _conjugate_gradients(u, operator, inverse, lam)
    if not drifts:
        return f, offset
    constant = torch.eye(2, dtype=u.dtype, device=u.device)[..., None, None].expand(2, *u.shape[-3:])
    response = _conjugate_gradients(constant, operator, inverse, torch.zeros_like(lam[:1]))  # (2 offsets, 2, y, x)
    rest = f
    for _ in range(OFFSET_STEPS):
        magnitude = torch.linalg.vector_norm(rest, dim=-3, keepdim=True)
        smallest = 1e-6 * magnitude.amax((-2, -1), keepdim=True) + torch.finfo(u.dtype).tiny
        weighted = response / torch.maximum(magnitude, smallest)[:, None]  # (n, 2 offsets, 2, y, x)
        normal = torch.einsum("nacyx,bcyx->nab", weighted, response)
        right = torch.einsum("nacyx,ncyx->na", weighted, f)
        offset = torch.linalg.solve(normal, right)
        rest = f - torch.einsum("na,acyx->ncyx", offset, response)
    return rest, offset[..., None, None]


def _conjugate_gradients(u: Tensor, operator: Tensor, inverse: Tensor, lam: Tensor) -> Tensor:
    """A few steps towards G f = u, of them the one where the penalised sum is least; G is symmetric.

    A field on which G turns out not to be positive stops there.
    """
    rows, columns = operator.shape[-3], 2 * (operator.shape[-2] - 1)
    f, residual = torch.zeros_like(u), u
    direction = preconditioned = convolve(residual, inverse, rows, columns)
    length = _dot(residual, preconditioned)
    best, least = f, _dot(u, u) / 2
    for _ in range(START_STEPS):
        image = convolve(direction, operator, rows, columns)
        curvature = _dot(direction, image)
        going = (curvature > 0) & (length > 0)
        pace = torch.where(going, length / torch.where(going, curvature, 1.0), 0.0)
        f = f + pace * direction
        residual = residual - pace * image
        pulling = torch.linalg.vector_norm(f, dim=-3, keepdim=True).sum((-2, -1), keepdim=True)
        cost = _dot(residual, residual) / 2 + lam * pulling
        best, least = torch.where(cost < least, f, best), torch.minimum(cost, least)
        preconditioned = convolve(residual, inverse, rows, columns)
        renewed = _dot(residual, preconditioned)
        direction = preconditioned + torch.where(going, renewed / torch.where(going, length, 1.0), 0.0) * direction
        length = renewed
    return best


def _inverse_of_normal(operator: Tensor, weight: Tensor) -> Tensor:
    """(DATA_PENALTY G^2 + weight)^-1 per wave vector: (3, y, kx) and (n, 1, 1) -> (n, 3, y, kx)."""
    xx, xy, yy = operator
    a = DATA_PENALTY * (xx * xx + xy * xy) + weight
    b = (DATA_PENALTY * xy * (xx + yy)).expand_as(a)
    c = DATA_PENALTY * (yy * yy + xy * xy) + weight
    return torch.stack((c, -b, a), dim=-3) / (a * c - b * b).unsqueeze(-3)


def _stable_inverse(operator: Tensor, floor: Tensor) -> Tensor:
    """|G|^-1 per wave vector, eigenvalues below `floor` raised to it: shape and layout of the operator."""
    xx, xy, yy = operator
    mean, half = (xx + yy) / 2, (xx - yy) / 2
    spread = torch.hypot(half, xy).clamp_min(torch.finfo(operator.dtype).tiny)
    high, low = (1 / torch.maximum((mean + sign * spread).abs(), floor) for sign in (1, -1))
    slope = (high - low) / (2 * spread)
    middle = (high + low) / 2
    stacked = torch.stack((middle + slope * half, slope * xy, middle - slope * half))
    return torch.empty_like(operator, requires_grad=False).copy_(stacked)


def _apply(tensor: Tensor, spectrum: Tensor) -> Tensor:
    """Real symmetric tensors (..., 3, y, kx) times vectors (..., 2, y, kx)."""
    xx, xy, yy = tensor.unbind(-3)
    x, y = spectrum.unbind(-3)
    return torch.stack((xx * x + xy * y, xy * x + yy * y), dim=-3)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product per field: (n, 1, 1, 1)."""
    return (a * b).sum((-3, -2, -1), keepdim=True)


def _over_leading(name: str, value: float | Tensor, field: Tensor) -> Tensor:
    """A number or tensor from 0 on, broadcast over the leading dimensions, dtype and device of the field."""
    tensor = torch.as_tensor(value).to(field)
    if not bool((torch.isfinite(tensor) & (tensor >= 0)).all()):
        raise ValueError(f"{name} must hold finite numbers from 0 on")
    leading = field.shape[:-3]
    try:
        return tensor.expand(leading)
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast over the leading dimensions {tuple(leading)}, got shape {tuple(tensor.shape)}"
        ) from None
