"""Forward elasticity of a soft substrate: traction on its surface -> in-plane displacement of that surface.

Half space (Boussinesq and Cerruti; Landau & Lifshitz, Theory of Elasticity, section 8), a = (1 + nu) / (pi E):
    G_xx = a [(1 - nu) / r + nu x^2 / r^3],  G_xy = a nu x y / r^3,  G_yy = a [(1 - nu) / r + nu y^2 / r^3].
Fourier space (Butler et al. 2002, 10.1152/ajpcell.00270.2001): eigenvalues along k and across it, V = 2 (1 + nu) / E:
    g_L = V (1 - nu) / k,  g_T = V / k.
A gel of finite thickness on rigid glass: `physics.elastic_layer`.

An open boundary is a linear convolution on the pixel grid: kernel values at pixel centres, its mean over the pixel at
the centre. For a layer that kernel is the half space's plus the inverse Hankel transform of the difference, so there is
no wrap-around and no padding to choose. A periodic boundary multiplies by the Green's tensor in Fourier space; k = 0 is
set to 0: the displacement is relative to its mean. The tensors are computed in float64, kept for the last few sizes and
substrates, and cast to the field's dtype and device.

`transfer_function`, here and in `traction_cytometry`, is what the displacement measurement (the PIV window) does to
the displacement: a real kernel on the field's own pixel grid, (n,) applied along y and along x or (n_y, n_x), odd
sizes, equal to itself turned by 180 degrees, usually of sum 1. The displacement is convolved with it; with an open
boundary the convolution sees the displacement beyond the frame too. It may require a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from physics.elastic_layer import excess, kernel_correction, mean_correction_over_pixel

PUBLISHED_CENTRE = 1.17  # px per unit of traction / E: 0.117 * 10 / E in Wang & Lin's generator
CPU_BLOCK = 2**18  # pixels transformed at once: larger blocks leave the cache and ask the system for fresh pages


def displacement_from_traction(
    traction_pa: Tensor,
    *,
    pixel_size_um: float,
    youngs_modulus_pa: float,
    poisson_ratio: float,
    boundary: str = "open",
    thickness_um: float | None = None,
    centre_element: str = "exact",
    reach: str = "full",
    transfer_function: Tensor | None = None,
) -> Tensor:
    """Displacement of the surface under a traction field.

    Args:
        traction_pa: (..., 2, y, x) in Pa, components (x, y), float32 or float64, constant over each pixel.
        pixel_size_um: edge of a pixel in um.
        youngs_modulus_pa: Young's modulus E in Pa.
        poisson_ratio: Poisson's ratio nu in (0, 0.5].
        boundary: "open": no traction outside the field, linear convolution; "periodic": the field repeats itself.
        thickness_um: thickness of a gel bonded to rigid glass, in um; None for a half space.
        centre_element: response of a pixel to its own traction. "exact": mean of the kernel over the pixel (1.2611 px
            / E at nu 0.45); "published": the constant 1.17 px / E of Wang & Lin's training data. Open boundary only.
        reach: "full": every source reaches every pixel; "published": only sources up to S/2 - 1 pixels away along x and
            y, Wang & Lin's (S-1) x (S-1) kernel under MATLAB's conv2(..., 'same'), for square fields of even size S.
            Open boundary only.
        transfer_function: kernel of the displacement measurement (see the module's docstring); None for a perfect one.

    Returns:
        (..., 2, y, x) in um, dtype and device of `traction_pa`; differentiable.

    Raises:
        ValueError: an argument outside the ranges above, or a traction that is not finite.

    """
    check_field("traction_pa", traction_pa)
    check_substrate(pixel_size_um, youngs_modulus_pa, poisson_ratio, thickness_um)
    check_choices(traction_pa, boundary, centre_element, reach)
    check_finite("traction_pa", traction_pa, traction_pa.sum())
    height, width = traction_pa.shape[-2:]
    thickness_px = None if thickness_um is None else thickness_um / pixel_size_um
    where = (traction_pa.dtype, traction_pa.device)
    if boundary == "periodic":
        rows, columns = height, width
        tensor = _periodic_spectrum(rows, columns, poisson_ratio, thickness_px, *where)
        halo_y = halo_x = 0
    else:
        halo_y, halo_x = (n // 2 for n in kernel_shape(transfer_function))
        rows, columns = fast_length(2 * (height + halo_y) - 1), fast_length(2 * (width + halo_x) - 1)
        extent = (height - 1 + halo_y, width - 1 + halo_x)
        furthest = height // 2 - 1 if reach == "published" else None
        tensor = open_spectrum(rows, columns, extent, poisson_ratio, thickness_px, centre_element, furthest, *where)
    if transfer_function is not None:
        tensor = tensor * transfer_spectrum(transfer_function, rows, columns, *where)[..., None]
    scaled = traction_pa * (pixel_size_um / youngs_modulus_pa)
    return convolve(scaled, tensor, rows, columns)


def green_tensor_space(
    extent_y: int,
    extent_x: int,
    *,
    pixel_size_um: float,
    youngs_modulus_pa: float,
    poisson_ratio: float,
    thickness_um: float | None = None,
    centre_element: str = "exact",
) -> Tensor:
    """Displacement in um at each offset from a pixel that carries 1 Pa: (3, 2 extent_y + 1, 2 extent_x + 1), float64.

    The first dimension holds xx, xy (= yx) and yy; offsets run from -extent to +extent pixels, so the centre element is
    at [extent_y, extent_x].

    Raises:
        ValueError: an argument outside the ranges of `displacement_from_traction`.

    """
    check_substrate(pixel_size_um, youngs_modulus_pa, poisson_ratio, thickness_um)
    if centre_element not in ("exact", "published"):
        raise ValueError(f"centre_element must be 'exact' or 'published', got {centre_element!r}")
    thickness_px = None if thickness_um is None else thickness_um / pixel_size_um
    unit = _unit_kernel((extent_y, extent_x), poisson_ratio, thickness_px, centre_element)
    return unit * (pixel_size_um / youngs_modulus_pa)


def green_tensor_fourier(
    height: int,
    width: int,
    *,
    pixel_size_um: float,
    youngs_modulus_pa: float,
    poisson_ratio: float,
    thickness_um: float | None = None,
) -> Tensor:
    """The Green's tensor in um/Pa on the half spectrum of `torch.fft.rfft2`: (3, height, width // 2 + 1), float64.

    The first dimension holds xx, xy (= yx) and yy. k = 0 is 0, and xy is 0 on the Nyquist row and column, where the
    sign of k is not defined.

    Raises:
        ValueError: an argument outside the ranges of `displacement_from_traction`.

    """
    check_substrate(pixel_size_um, youngs_modulus_pa, poisson_ratio, thickness_um)
    k_x, k_y = wave_vectors(height, width, pixel_size_um)
    k = torch.hypot(k_x, k_y)
    longitudinal, transverse = green_eigenvalues(k, youngs_modulus_pa, poisson_ratio, thickness_um)
    longitudinal[0, 0] = transverse[0, 0] = 0.0
    return tensor_from_eigenvalues(longitudinal, transverse, height, width)


def green_eigenvalues(
    wave_number_per_um: Tensor, youngs_modulus_pa: float, poisson_ratio: float, thickness_um: float | None = None
) -> tuple[Tensor, Tensor]:
    """Eigenvalues (along k, across k) of the Green's tensor in um/Pa; at k = 0 infinite, or V h for a layer."""
    compliance = 2 * (1 + poisson_ratio) / youngs_modulus_pa
    k = wave_number_per_um
    if thickness_um is None:
        return compliance * (1 - poisson_ratio) / k, compliance / k
    longitudinal, transverse = excess(k * thickness_um, poisson_ratio)
    shear = torch.full_like(k, compliance * thickness_um)
    thin = k * thickness_um < 1e-9  # 0 / 0; the next term is smaller by k h
    k = k.masked_fill(thin, 1.0)
    return (
        torch.where(thin, shear, compliance * (1 - poisson_ratio) / k * (1 + longitudinal)),
        torch.where(thin, shear, compliance / k * (1 + transverse)),
    )


def wave_vectors(height: int, width: int, pixel_size_um: float) -> tuple[Tensor, Tensor]:
    """Components (k_x, k_y) in rad/um on the half spectrum: each (height, width // 2 + 1), float64."""
    turn = 2 * math.pi
    k_x = turn * torch.fft.rfftfreq(width, pixel_size_um, dtype=torch.float64, device="cpu")
    k_y = turn * torch.fft.fftfreq(height, pixel_size_um, dtype=torch.float64, device="cpu")
    return k_x.expand(height, -1), k_y[:, None].expand(-1, width // 2 + 1)


def tensor_from_eigenvalues(longitudinal: Tensor, transverse: Tensor, height: int, width: int) -> Tensor:
    """Symmetric tensors with these eigenvalues along and across k: (..., y, kx) twice -> (..., 3, y, kx).

    Components xx, xy, yy; xy is 0 on the Nyquist row and column of even sizes. At k = 0 the mean of the two is taken.
    """
    along_x, along_y, product = _direction_products(height, width, longitudinal.dtype, longitudinal.device)
    extra = longitudinal - transverse
    parts = (torch.addcmul(transverse, extra, along_x), extra * product, torch.addcmul(transverse, extra, along_y))
    return torch.stack([part.mT for part in parts], dim=-3).mT  # stored with y fastest, see `convolve`


def centre_response(poisson_ratio: float, thickness_px: float | None = None) -> float:
    """Mean over the pixel of its response to its own traction, in px per unit of traction / E.

    Over the unit square the mean of 1 / r is 4 asinh 1, and that of x^2 / r^3 half of it. As the kernel has no length
    of its own, a square of any size is served with the thickness measured in its side.
    """
    mean = 2 * (2 - poisson_ratio) * math.asinh(1)
    if thickness_px is not None:
        mean += mean_correction_over_pixel(poisson_ratio, thickness_px)
    return mean * (1 + poisson_ratio) / math.pi


def convolve(field: Tensor, tensor: Tensor, rows: int, columns: int) -> Tensor:
    """Multiply a field, zero-padded to rows x columns, by real symmetric tensors in Fourier space, and crop it back.

    The transforms go one axis at a time, which spares those of empty rows. `field` is (..., 2, y, x); `tensor` is
    (..., 3, rows, columns // 2 + 1, 1 or 2), components xx, xy, yy, its last dimension the same for the real and the
    imaginary part; it is quickest as `for_convolution` stores it.
    """
    fields = max(1, CPU_BLOCK // (rows * columns))
    if field.device.type == "cpu" and tensor.ndim == 4 and field.shape[:-3].numel() > fields:
        blocks = field.flatten(0, -4).split(fields)
        return torch.cat([convolve(block, tensor, rows, columns) for block in blocks]).reshape(field.shape)
    height, width = field.shape[-2:]
    spectrum = torch.fft.fft(torch.fft.rfft(field, n=columns), n=rows, dim=-2)  # stored with y fastest
    vectors = torch.view_as_real(spectrum)
    product = vectors * tensor[..., ::2, :, :, :]  # xx x and yy y
    crossed = tensor[..., 1, :, :, :]
    product.select(-4, 0).addcmul_(crossed, vectors.select(-4, 1))
    product.select(-4, 1).addcmul_(crossed, vectors.select(-4, 0))
    lines = torch.fft.ifft(torch.view_as_complex(product), dim=-2)[..., :height, :]
    result = torch.fft.irfft(lines, n=columns)
    return result if columns == width else result[..., :width].contiguous()


def for_convolution(tensor: Tensor) -> Tensor:
    """A real tensor (..., y, kx) for `convolve`: (..., y, kx, 2), stored like the spectra that it multiplies."""
    swapped = tensor.mT.contiguous()
    return torch.stack((swapped, swapped), dim=-1).transpose(-3, -2)


def transfer_spectrum(
    transfer_function: Tensor, rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Fourier transform of the measurement's kernel on a grid: real, (rows, columns // 2 + 1).

    Raises:
        ValueError: a kernel of even size, larger than the grid, not finite, or changed by a half turn.

    """
    n_y, n_x = kernel_shape(transfer_function)
    kernel = transfer_function.to(device=device, dtype=dtype)
    if kernel.ndim == 1:
        kernel = torch.outer(kernel, kernel)
    if n_y > rows or n_x > columns:
        raise ValueError(f"transfer_function must not be larger than the field, got {n_y} x {n_x} px")
    padded = torch.nn.functional.pad(kernel, (0, columns - n_x, 0, rows - n_y))
    return torch.fft.rfft2(padded.roll((-(n_y // 2), -(n_x // 2)), (0, 1))).real


def fast_length(minimum: int) -> int:
    """Smallest even number from `minimum` on whose prime factors do not exceed 13: quick to transform."""
    length = minimum + minimum % 2
    while True:
        rest = length
        for prime in (2, 3, 5, 7, 11, 13):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2


def check_field(name: str, field: Tensor) -> None:
    """Refuse what is not a floating-point field (..., 2, y, x) of at least 2 x 2 pixels."""
    if field.ndim < 3 or field.shape[-3] != 2 or min(field.shape[-2:]) < 2:
        raise ValueError(f"{name} must have shape (..., 2, y, x) with at least 2 x 2 pixels, got {tuple(field.shape)}")
    if field.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be float32 or float64, got {field.dtype}")


def check_finite(name: str, field: Tensor, total: Tensor) -> None:
    """Refuse NaN and infinity; `total` is a sum or mean over the field, which tells in one pass when all is well."""
    if not bool(torch.isfinite(total).all()) and not bool(torch.isfinite(field).all()):
        raise ValueError(f"{name} must be finite: it holds NaN or infinite values")


def check_substrate(
    pixel_size_um: float, youngs_modulus_pa: float, poisson_ratio: float, thickness_um: float | None
) -> None:
    """Refuse numbers that are no substrate."""
    for name, value in (("pixel_size_um", pixel_size_um), ("youngs_modulus_pa", youngs_modulus_pa)):
        if value is None or not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value}")
    if poisson_ratio is None or not 0 < poisson_ratio <= 0.5:
        raise ValueError(f"poisson_ratio must lie in (0, 0.5], got {poisson_ratio}")
    if thickness_um is not None and not (math.isfinite(thickness_um) and thickness_um > 0):
        raise ValueError(f"thickness_um must be a positive number, or None for a half space, got {thickness_um}")


def check_choices(field: Tensor, boundary: str, centre_element: str, reach: str) -> None:
    """Refuse operators that do not exist, and those that do not fit the field."""
    choices = {
        "boundary": ("open", "periodic"),
        "centre_element": ("exact", "published"),
        "reach": ("full", "published"),
    }
    for (name, allowed), value in zip(choices.items(), (boundary, centre_element, reach), strict=True):
        if value not in allowed:
            raise ValueError(f"{name} must be {allowed[0]!r} or {allowed[1]!r}, got {value!r}")
        if name != "boundary" and boundary == "periodic" and value == "published":
            raise ValueError(f"{name} 'published' belongs to boundary 'open', got boundary 'periodic'")
    check_reach(reach, field.shape[-2:])


def check_reach(reach: str, shape_px: Sequence[int]) -> None:
    """Refuse the published reach where it does not fit a field of this shape (y, x)."""
    height, width = shape_px
    if reach == "published" and (height != width or height % 2):
        size = f"(y, x) = ({height}, {width})"
        raise ValueError(f"reach 'published' needs a square field of even size, got {size}: give reach 'full'")


def kernel_shape(transfer_function: Tensor | None) -> tuple[int, int]:
    """Rows and columns of the measurement's kernel, checked; 1 x 1 without one."""
    if transfer_function is None:
        return 1, 1
    if not isinstance(transfer_function, Tensor):
        raise ValueError(f"transfer_function must be a tensor, got a {type(transfer_function).__name__}")
    kernel = transfer_function.detach()
    if kernel.ndim not in (1, 2) or not kernel.is_floating_point() or any(n % 2 == 0 for n in kernel.shape):
        raise ValueError(
            f"transfer_function must be a real kernel (n,) or (n_y, n_x) of odd sizes, got {tuple(kernel.shape)}"
        )
    if not bool(torch.isfinite(kernel).all()):
        raise ValueError("transfer_function must be finite: it holds NaN or infinite values")
    if not torch.allclose(kernel, kernel.flip(tuple(range(kernel.ndim))), rtol=1e-5, atol=1e-7):
        raise ValueError("transfer_function must be equal to itself turned by 180 degrees")
    return kernel.shape[0], kernel.shape[-1]


@lru_cache(maxsize=8)
def _periodic_spectrum(
    rows: int, columns: int, nu: float, thickness_px: float | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Green's tensor for E = 1 and unit pixels, (3, y, kx, 2)."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in a later backward pass
        tensor = green_tensor_fourier(
            rows, columns, pixel_size_um=1.0, youngs_modulus_pa=1.0, poisson_ratio=nu, thickness_um=thickness_px
        )
        return for_convolution(tensor).to(device=device, dtype=dtype)


@lru_cache(maxsize=8)
def open_spectrum(
    rows: int,
    columns: int,
    extent: tuple[int, int],
    nu: float,
    thickness_px: float | None,
    centre_element: str,
    furthest: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Transform of the kernel for E = 1 and unit pixels, zero beyond `furthest`; real as it is even: (3, y, kx, 2)."""
    with torch.inference_mode(False):
        kernel = _unit_kernel(extent, nu, thickness_px, centre_element)
        if furthest is not None:
            for dim, half in ((1, extent[0]), (2, extent[1])):
                far = torch.arange(-half, half + 1, device="cpu").abs() > furthest
                kernel.masked_fill_(far.reshape([-1 if d == dim else 1 for d in range(3)]), 0.0)
        padded = torch.nn.functional.pad(kernel, (0, columns - kernel.shape[2], 0, rows - kernel.shape[1]))
        spectrum = torch.fft.rfft2(padded.roll((-extent[0], -extent[1]), (1, 2))).real
        return for_convolution(spectrum).to(device=device, dtype=dtype)


def _unit_kernel(extent: tuple[int, int], nu: float, thickness_px: float | None, centre_element: str) -> Tensor:
    """Kernel for E = 1 and unit pixels at offsets -extent..extent: (3, y, x) holding xx, xy, yy."""
    y, x = (torch.arange(-half, half + 1, dtype=torch.float64, device="cpu") for half in extent)
    y = y[:, None]
    r = torch.hypot(x, y)
    r[extent[0], extent[1]] = 1.0  # the centre is filled in below
    along, across = 1 / r, (1 - nu) / r  # G_rr and G_tt in units of a
    if thickness_px is not None:
        extra_along, extra_across = kernel_correction(r, nu, thickness_px)
        along, across = along + extra_along, across + extra_across
    own = centre_response(nu, thickness_px)
    if centre_element == "published":
        own += PUBLISHED_CENTRE - centre_response(nu)  # a layer's correction stays
    excess_along = along - across
    kernel = torch.stack(
        (across + excess_along * (x / r) ** 2, excess_along * x * y / r**2, across + excess_along * (y / r) ** 2)
    )
    kernel *= (1 + nu) / math.pi
    kernel[:, extent[0], extent[1]] = torch.tensor([own, 0.0, own], dtype=torch.float64, device="cpu")
    return kernel


@lru_cache(maxsize=8)
def _direction_products(
    height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """(k_x / k)^2, (k_y / k)^2 and k_x k_y / k^2 with the rules for k = 0 and Nyquist, stored with y fastest."""
    with torch.inference_mode(False):
        k_x, k_y = wave_vectors(height, width, 1.0)
        squared = k_x**2 + k_y**2
        squared[0, 0] = 1.0
        products = torch.stack((k_x**2 / squared, k_y**2 / squared, k_x * k_y / squared))
        products[:2, 0, 0] = 0.5
        if height % 2 == 0:
            products[2, height // 2] = 0.0
        if width % 2 == 0:
            products[2, :, width // 2] = 0.0
        along_x, along_y, product = products.mT.contiguous().mT.to(dtype=dtype, device=device)
        return along_x, along_y, product
