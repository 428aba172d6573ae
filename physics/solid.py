"""Mechanics of a solid on a voxel grid: displacement -> deformation -> strain -> stress -> body force.

What a 3-D force microscope needs behind its displacement field. Duan et al., Biophys J 121:2180 (2022),
10.1016/j.bpj.2022.04.028, couple the constitutive relation of the matrix into their network; the text at hand, the
abstract, does not state it, so the relations are those of the textbooks (Holzapfel, Nonlinear Solid Mechanics):
    F = I + du/dX,  eps = (du/dX + du/dX^T) / 2,  E = (F^T F - I) / 2,  J = det F,
    linear:       sigma = 2 G eps + lambda tr(eps) I,  G = E / (2 (1 + nu)),  lambda = E nu / ((1 + nu) (1 - 2 nu)),
    neo-Hookean:  W = G / 2 (tr F^T F - 3) - G ln J + lambda / 2 (ln J)^2,  P = G (F - F^-T) + lambda ln J F^-T,
                  sigma = P F^T / J,
    equilibrium:  f = -div sigma (or -Div P on the undeformed grid), the force per volume that acts on the solid.

Fields are (..., 3, z, y, x) and (..., 3, 3, z, y, x), components in the order (x, y, z): x right, y down the rows, z
into the gel along the array axis z. Entry [i, j] of a gradient is du_i/dX_j, that of a stress the force along i on an
area whose normal is along j. Voxels may be anisotropic: `voxel_size_um` is in the order of the arrays, (z, y, x), one
triple or a tensor (..., 3) over the leading dimensions, as are the elastic constants.

Derivatives are second-order finite differences: central inside, one-sided at the six faces (three points), exact for
polynomials up to the second degree everywhere. The body force is the derivative of a derivative: its stencil is five
voxels wide, and noise is amplified twice; smooth the displacement first. NaN stays within that reach. Everything is
differentiable and keeps the dtype and device of its first argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SMALLEST_SIZE = 3  # voxels along an axis: the one-sided difference needs three
NANONEWTON_PER_N_PER_M3_UM3 = 1e-9
STRESS_MEASURES = ("first_piola_kirchhoff", "cauchy")


def displacement_gradient(displacement_um: Tensor, voxel_size_um: Sequence[float] | Tensor) -> Tensor:
    """Gradient du_i/dX_j of a displacement: (..., 3, z, y, x) in um -> (..., 3, 3, z, y, x), no unit.

    Args:
        displacement_um: (..., 3, z, y, x) in um, components (x, y, z), at least 3 voxels along each axis, float32 or
            float64.
        voxel_size_um: edges of a voxel in um, (z, y, x), or (..., 3) over the leading dimensions.

    Raises:
        ValueError: a field of another shape or dtype, or a voxel size that is not three positive numbers.

    """
    check_vectors("displacement_um", displacement_um)
    return _gradient(displacement_um, voxel_size_um)


def deformation_gradient(displacement_um: Tensor, voxel_size_um: Sequence[float] | Tensor) -> Tensor:
    """Deformation gradient F = I + du/dX: (..., 3, z, y, x) in um -> (..., 3, 3, z, y, x), no unit.

    Raises:
        ValueError: as `displacement_gradient`.

    """
    gradient = displacement_gradient(displacement_um, voxel_size_um)
    return gradient + _identity_like(gradient)


def strain(displacement_um: Tensor, voxel_size_um: Sequence[float] | Tensor) -> Tensor:
    """Small strain, the symmetric part of du/dX: (..., 3, z, y, x) in um -> (..., 3, 3, z, y, x), no unit.

    Raises:
        ValueError: as `displacement_gradient`.

    """
    gradient = displacement_gradient(displacement_um, voxel_size_um)
    return (gradient + gradient.transpose(-5, -4)) / 2


def green_lagrange(F: Tensor) -> Tensor:
    """Green-Lagrange strain (F^T F - I) / 2 of a deformation gradient: (..., 3, 3, z, y, x), no unit.

    Zero for every rigid rotation, which the small strain is not.

    Raises:
        ValueError: a field of another shape or dtype.

    """
    _check_tensors("F", F)
    gradient = F - _identity_like(F)
    transposed = gradient.transpose(-5, -4)
    return (gradient + transposed + _product(transposed, gradient)) / 2  # no large numbers that cancel


def stress(strain: Tensor, youngs_modulus_pa: float | Tensor, poisson_ratio: float | Tensor) -> Tensor:
    """Stress of a linear elastic isotropic solid, 2 G eps + lambda tr(eps) I: (..., 3, 3, z, y, x) -> the same, in Pa.

    With the Green-Lagrange strain instead of the small one this is the second Piola-Kirchhoff stress of the
    Saint Venant-Kirchhoff solid.

    Args:
        strain: (..., 3, 3, z, y, x), no unit.
        youngs_modulus_pa: Young's modulus E in Pa, a number or a tensor over the leading dimensions (...).
        poisson_ratio: Poisson's ratio nu in [0, 0.5), a number or a tensor over the leading dimensions.

    Raises:
        ValueError: a field of another shape or dtype, or constants outside these ranges. nu = 0.5 is refused: in an
            incompressible solid the strain does not determine the stress.

    """
    _check_tensors("strain", strain)
    shear, lame = _over_voxels(strain, youngs_modulus_pa, poisson_ratio)
    return 2 * shear * strain + lame * _trace(strain) * _identity_like(strain)


def neo_hookean_stress(
    F: Tensor,
    youngs_modulus_pa: float | Tensor,
    poisson_ratio: float | Tensor,
    *,
    measure: str = "first_piola_kirchhoff",
) -> Tensor:
    """Stress of a compressible neo-Hookean solid in Pa: (..., 3, 3, z, y, x) -> the same.

    Args:
        F: deformation gradient (..., 3, 3, z, y, x), its determinant positive.
        youngs_modulus_pa: as in `stress`, which this approaches for small strain.
        poisson_ratio: as in `stress`.
        measure: "first_piola_kirchhoff": force per undeformed area, not symmetric, the one whose divergence on the
            undeformed grid is the body force per undeformed volume; "cauchy": force per deformed area.

    Raises:
        ValueError: as `stress`; an unknown measure; or a determinant that is not positive, matter turned inside out.

    """
    _check_tensors("F", F)
    if measure not in STRESS_MEASURES:
        raise ValueError(f"measure must be one of {', '.join(STRESS_MEASURES)}, got {measure!r}")
    shear, lame = _over_voxels(F, youngs_modulus_pa, poisson_ratio)
    rows = F.unbind(-5)  # each (..., 3, z, y, x)
    cofactor = torch.stack([torch.linalg.cross(rows[i - 2], rows[i - 1], dim=-4) for i in range(3)], dim=-5)
    volume_ratio = (F * cofactor).sum(dim=(-5, -4), keepdim=True) / 3  # J, as F cof(F)^T = J I
    if bool((volume_ratio <= 0).any()):
        raise ValueError("F must have a positive determinant everywhere: a voxel is turned inside out")
    log_ratio = torch.log(volume_ratio)
    if measure == "cauchy":
        excess = F - _identity_like(F)
        transposed = excess.transpose(-5, -4)
        left = excess + transposed + _product(excess, transposed)  # F F^T - I
        return (shear * left + lame * log_ratio * _identity_like(F)) / volume_ratio
    return shear * F + (lame * log_ratio - shear) * cofactor / volume_ratio  # F^-T = cof(F) / J


def divergence(stress: Tensor, voxel_size_um: Sequence[float] | Tensor) -> Tensor:
    """Divergence d sigma_ij / dx_j of a stress: (..., 3, 3, z, y, x) in Pa -> (..., 3, z, y, x) in Pa/um.

    The force per volume that acts on the solid is its opposite: body_force_n_per_m3 = -1e6 * divergence.

    Raises:
        ValueError: as `displacement_gradient`.

    """
    _check_tensors("stress", stress)
    spacing = spacings(voxel_size_um, stress, trailing_dims=4)
    parts = [_derivative(stress.select(-4, axis), axis, step) for axis, step in enumerate(spacing)]
    return parts[0] + parts[1] + parts[2]


def body_force_n_per_m3(stress: Tensor, voxel_size_um: Sequence[float] | Tensor) -> Tensor:
    """Force per volume that acts on the solid, -div sigma: (..., 3, 3, z, y, x) in Pa -> (..., 3, z, y, x) in N/m^3.

    Raises:
        ValueError: as `displacement_gradient`.

    """
    return -1e6 * divergence(stress, voxel_size_um)


def surface_traction(stress: Tensor, normal: Sequence[float] | Tensor) -> Tensor:
    """Force per area on a surface, sigma n: (..., 3, 3, z, y, x) in Pa -> (..., 3, z, y, x) in Pa.

    Args:
        stress: (..., 3, 3, z, y, x) in Pa.
        normal: direction out of the solid, components (x, y, z) of any length: (3,) or (..., 3, z, y, x). The traction
            is then what the outside does to the solid; on top of a gel, at z = 0, the normal is (0, 0, -1). Where a
            field of normals is 0 so is the traction.

    Raises:
        ValueError: a stress or a normal of another shape, or a single normal of length 0.

    """
    _check_tensors("stress", stress)
    direction = torch.as_tensor(normal, dtype=stress.dtype, device=stress.device)
    if direction.shape == (3,):
        if not bool(direction.any()):
            raise ValueError("normal must not be zero")
        direction = direction[:, None, None, None]
    if direction.ndim < 4 or direction.shape[-4] != 3:
        raise ValueError(f"normal must have shape (3,) or (..., 3, z, y, x), got {tuple(direction.shape)}")
    length = torch.linalg.vector_norm(direction, dim=-4, keepdim=True)
    unit = direction / torch.where(length > 0, length, 1)
    return (stress * unit.unsqueeze(-5)).sum(dim=-4)


def total_force_nn(body_force_n_per_m3: Tensor, voxel_size_um: Sequence[float] | Tensor) -> Tensor:
    """Sum of a force density over the volume: (..., 3, z, y, x) in N/m^3 -> (..., 3) in nN, components (x, y, z).

    Every voxel counts with its whole volume.

    Raises:
        ValueError: as `displacement_gradient`.

    """
    check_vectors("body_force_n_per_m3", body_force_n_per_m3)
    step_x, step_y, step_z = spacings(voxel_size_um, body_force_n_per_m3, trailing_dims=1)  # beside the component
    total = body_force_n_per_m3.sum(dim=(-3, -2, -1))
    return total * (step_x * step_y * step_z * NANONEWTON_PER_N_PER_M3_UM3)


def total_moment_nn_um(body_force_n_per_m3: Tensor, voxel_size_um: Sequence[float] | Tensor) -> Tensor:
    """Sum of r x f over the volume, r from the centre of the array: (..., 3, z, y, x) in N/m^3 -> (..., 3) in nN um.

    Components (x, y, z); a positive one about z turns x towards y, clockwise as displayed.

    Raises:
        ValueError: as `displacement_gradient`.

    """
    check_vectors("body_force_n_per_m3", body_force_n_per_m3)
    steps = spacings(voxel_size_um, body_force_n_per_m3, trailing_dims=0)
    volume = steps[0] * steps[1] * steps[2] * NANONEWTON_PER_N_PER_M3_UM3
    forces = body_force_n_per_m3.unbind(-4)  # each (..., z, y, x)

    def first_moment(axis: int, component: int) -> Tensor:
        size = forces[component].shape[-1 - axis]
        arm = torch.arange(size, dtype=forces[0].dtype, device=forces[0].device) - (size - 1) / 2
        arm = arm.reshape(-1, *[1] * axis)
        return (forces[component] * arm).sum(dim=(-3, -2, -1)) * steps[axis]

    pairs = ((1, 2), (2, 0), (0, 1))
    return torch.stack([(first_moment(i, j) - first_moment(j, i)) * volume for i, j in pairs], dim=-1)


def voxel_positions_um(
    shape_zyx: Sequence[int],
    voxel_size_um: Sequence[float],
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Positions (x, y, z) in um of the voxels of an array, voxel [0, 0, 0] at the origin: (z, y, x, 3).

    Raises:
        ValueError: a shape that is not three positive sizes, or a voxel size that is not three positive numbers.

    """
    if len(shape_zyx) != 3 or min(shape_zyx) < 1:
        raise ValueError(f"shape_zyx must be three positive sizes, got {tuple(shape_zyx)}")
    check_voxel_size(voxel_size_um)
    axes = [
        torch.arange(size, dtype=dtype, device=device) * float(step)
        for size, step in zip(shape_zyx, voxel_size_um, strict=True)
    ]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack((x, y, z), dim=-1)


def lame_parameters_pa(
    youngs_modulus_pa: float | Tensor, poisson_ratio: float | Tensor
) -> tuple[float | Tensor, float | Tensor]:
    """Shear modulus G and Lame's first parameter lambda in Pa, numbers or tensors as the arguments are.

    Raises:
        ValueError: a modulus that is not positive, or a Poisson's ratio outside [0, 0.5).

    """
    if not _holds(youngs_modulus_pa, lambda value: (value > 0) & (value < math.inf)):
        raise ValueError(f"youngs_modulus_pa must be a positive number, got {youngs_modulus_pa}")
    if not _holds(poisson_ratio, lambda value: (value >= 0) & (value < 0.5)):
        raise ValueError(
            f"poisson_ratio must lie in [0, 0.5), got {poisson_ratio}: an incompressible solid has no stress of its own"
        )
    shear = youngs_modulus_pa / (2 * (1 + poisson_ratio))
    return shear, 2 * shear * poisson_ratio / (1 - 2 * poisson_ratio)


def spacings(voxel_size_um: Sequence[float] | Tensor, field: Tensor, *, trailing_dims: int) -> list[float | Tensor]:
    """Voxel edges along x, y and z: numbers, or tensors over the leading dimensions followed by ones.

    `trailing_dims` is how many dimensions of the result stand behind the leading ones.
    """
    check_voxel_size(voxel_size_um)
    if not isinstance(voxel_size_um, Tensor):
        return [float(step) for step in reversed(voxel_size_um)]
    steps = voxel_size_um.to(device=field.device, dtype=field.dtype).reshape(
        *voxel_size_um.shape[:-1], 3, *[1] * trailing_dims
    )
    return list(reversed(steps.unbind(-1 - trailing_dims)))


def check_vectors(name: str, field: Tensor) -> None:
    """Refuse what is no floating-point field (..., 3, z, y, x) of at least 3 voxels along each axis."""
    if field.ndim < 4 or field.shape[-4] != 3:
        raise ValueError(f"{name} must have shape (..., 3, z, y, x), got {tuple(field.shape)}")
    _check_grid(name, field)


def check_voxel_size(voxel_size_um: Sequence[float] | Tensor) -> None:
    """Refuse what is not three positive numbers (z, y, x), or (..., 3) of them."""
    size = torch.as_tensor(voxel_size_um).detach()
    if size.ndim == 0 or size.shape[-1] != 3 or not bool(((size > 0) & (size < math.inf)).all()):
        raise ValueError(f"voxel_size_um must be three positive numbers (z, y, x), got {voxel_size_um}")


def _check_tensors(name: str, field: Tensor) -> None:
    if field.ndim < 5 or field.shape[-5:-3] != (3, 3):
        raise ValueError(f"{name} must have shape (..., 3, 3, z, y, x), got {tuple(field.shape)}")
    _check_grid(name, field)


def _check_grid(name: str, field: Tensor) -> None:
    if min(field.shape[-3:]) < SMALLEST_SIZE:
        raise ValueError(f"{name} must have at least 3 voxels along z, y and x, got {tuple(field.shape[-3:])}")
    if field.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be float32 or float64, got {field.dtype}")


def _gradient(vectors: Tensor, voxel_size_um: Sequence[float] | Tensor) -> Tensor:
    steps = spacings(voxel_size_um, vectors, trailing_dims=4)
    return torch.stack([_derivative(vectors, axis, step) for axis, step in enumerate(steps)], dim=-4)


def _derivative(field: Tensor, axis: int, step_um: float | Tensor) -> Tensor:
    """Derivative along x, y or z (axis 0, 1 or 2), second-order up to the faces."""
    (difference,) = torch.gradient(field, dim=-1 - axis, edge_order=2)
    return difference / step_um


def _identity_like(tensors: Tensor) -> Tensor:
    """The unit tensor, (3, 3, 1, 1, 1)."""
    return torch.eye(3, dtype=tensors.dtype, device=tensors.device)[:, :, None, None, None]


def _trace(tensors: Tensor) -> Tensor:
    """Trace at every voxel, (..., 1, 1, z, y, x)."""
    return (tensors[..., 0, 0, :, :, :] + tensors[..., 1, 1, :, :, :] + tensors[..., 2, 2, :, :, :])[
        ..., None, None, :, :, :
    ]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product at every voxel: (..., 3, 3, z, y, x) twice -> the same."""
    return torch.stack([(a[..., i, :, None, :, :, :] * b).sum(dim=-5) for i in range(3)], dim=-5)


def _over_voxels(
    tensors: Tensor, youngs_modulus_pa: float | Tensor, poisson_ratio: float | Tensor
) -> tuple[float | Tensor, float | Tensor]:
    """Lame's parameters, ready to multiply tensors (..., 3, 3, z, y, x)."""
    for name, value in (("youngs_modulus_pa", youngs_modulus_pa), ("poisson_ratio", poisson_ratio)):
        leading = tensors.shape[:-5]
        if isinstance(value, Tensor) and value.shape not in (torch.Size(), leading):
            raise ValueError(
                f"{name} must be a number or have the leading shape {tuple(leading)}, got {tuple(value.shape)}"
            )
    shear, lame = (
        value.to(device=tensors.device, dtype=tensors.dtype)[..., None, None, None, None, None]
        if isinstance(value, Tensor)
        else value
        for value in lame_parameters_pa(youngs_modulus_pa, poisson_ratio)
    )
    return shear, lame


def _holds(value: float | Tensor, condition: Callable[[Tensor], Tensor]) -> bool:
    return bool(condition(torch.as_tensor(value).detach()).all())
