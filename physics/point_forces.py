"""Point forces in elastic solids: the displacement they cause in a 3-D culture and in a gel with a free surface.

Kelvin's force in an infinite solid, regularised (de Goes & James, Regularized Kelvinlets, ACM Trans. Graph. 36:40
(2017), 10.1145/3072959.3073595), with a = 1 / (4 pi G), b = a / (4 (1 - nu)), r_e = sqrt(r^2 + eps^2):
    u = [(a - b) / r_e + a eps^2 / (2 r_e^3)] F + b (F.r) r / r_e^3,   body force 15 eps^4 / (8 pi r_e^7) F,
whose integral is F; at eps = 0 it is Kelvin's own, u = [(3 - 4 nu) F / r + (F.r) r / r^3] / (16 pi G (1 - nu)).

A force on the surface of a half space z >= 0 (Boussinesq's normal and Cerruti's tangential one; Johnson, Contact
Mechanics, sections 3.2 and 3.6), with rho = r + z, t = (x, y), k = 1 - 2 nu:
    4 pi G u_t = F_t (1 / r + k / rho) + t (F_t.t) (1 / r^3 - k / (r rho^2)) + t F_z (z / r^3 - k / (r rho)),
    4 pi G u_z = (F_t.t) (z / r^3 + k / (r rho)) + F_z (z^2 / r^3 + 2 (1 - nu) / r).
At z = 0 its plane components are the kernel of `physics.half_space`. Its stress on the plane at depth z is
sigma n = -3 z (F.r) r / (2 pi r^5), n = (0, 0, 1), whatever the solid.

Coordinates as in `physics.solid`: x right, y down, z into the gel. Forces are those on the gel. Points are (..., p, 3),
sources (..., n, 3), the leading dimensions broadcast; where sources have none, the points may be a grid (z, y, x, 3).
Differentiable in positions and forces. Poisson's ratio 0.5 is refused as in `physics.solid`, which could not go back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from physics.solid import lame_parameters_pa

Vector = list[Tensor]  # components x, y and z

PA_UM2_PER_NN = 1e3
N_PER_M3_PER_NN_PER_UM3 = 1e9


def kelvin_displacement(
    points_um: Tensor,
    sources_um: Tensor,
    forces_nn: Tensor,
    *,
    youngs_modulus_pa: float,
    poisson_ratio: float,
    regularization_um: float = 0.0,
) -> Tensor:
    """Displacement in an infinite solid under the sum of forces inside it.

    Args:
        points_um: (..., p, 3) in um, components (x, y, z), float32 or float64.
        sources_um: (..., n, 3) in um, where the forces act.
        forces_nn: (..., n, 3) in nN.
        youngs_modulus_pa: Young's modulus E in Pa.
        poisson_ratio: Poisson's ratio nu in [0, 0.5).
        regularization_um: eps in um, over which a force is spread; 0 for a point.

    Returns:
        (..., p, 3) in um, dtype and device of `points_um`.

    Raises:
        ValueError: an argument outside these ranges or shapes, or a point at a source when `regularization_um` is 0.

    """
    shear, _ = lame_parameters_pa(youngs_modulus_pa, poisson_ratio)
    a = PA_UM2_PER_NN / (4 * math.pi * shear)
    b = a / (4 * (1 - poisson_ratio))

    def response(offset: Vector, force: Vector) -> Vector:
        distance = _length(offset, regularization_um)
        along = b * _dot(offset, force) / distance**3
        direct = (a - b) / distance + (a * regularization_um**2 / 2) / distance**3
        return [direct * f + along * r for f, r in zip(force, offset, strict=True)]

    return _superposed(response, _pairs(points_um, sources_um, forces_nn, regularization_um))


def kelvin_body_force_n_per_m3(
    points_um: Tensor, sources_um: Tensor, forces_nn: Tensor, *, regularization_um: float
) -> Tensor:
    """Density of the regularised forces: positions and forces as in `kelvin_displacement` -> (..., p, 3) in N/m^3.

    Raises:
        ValueError: as `kelvin_displacement`, or a `regularization_um` that is not positive: a point has no density.

    """
    if not regularization_um > 0:
        raise ValueError(f"regularization_um must be a positive number, got {regularization_um}")
    factor = 15 * regularization_um**4 / (8 * math.pi) * N_PER_M3_PER_NN_PER_UM3

    def response(offset: Vector, force: Vector) -> Vector:
        density = factor / _length(offset, regularization_um) ** 7
        return [density * f for f in force]

    return _superposed(response, _pairs(points_um, sources_um, forces_nn, regularization_um))


def surface_force_displacement(
    points_um: Tensor,
    sources_um: Tensor,
    forces_nn: Tensor,
    *,
    youngs_modulus_pa: float,
    poisson_ratio: float,
    regularization_um: float = 0.0,
) -> Tensor:
    """Displacement in a half space z >= 0 under the sum of forces on its surface.

    Args:
        points_um: (..., p, 3) in um, components (x, y, z), z >= 0.
        sources_um: (..., n, 2) in um, places (x, y) on the surface.
        forces_nn: (..., n, 3) in nN; a positive z component presses into the gel.
        youngs_modulus_pa: Young's modulus E in Pa.
        poisson_ratio: Poisson's ratio nu in [0, 0.5).
        regularization_um: height in um above the surface at which the forces act, through a layer of the same solid
            that is then taken away: exact elasticity under the smooth `surface_force_traction_pa`, whose net force is
            the force. Lifting a force adds the moment of its arm; together, forces of sum 0 add none.

    Returns:
        (..., p, 3) in um, dtype and device of `points_um`.

    Raises:
        ValueError: an argument outside these ranges or shapes, or a point at a source when `regularization_um` is 0.

    """
    shear, _ = lame_parameters_pa(youngs_modulus_pa, poisson_ratio)
    compliance, k = PA_UM2_PER_NN / (4 * math.pi * shear), 1 - 2 * poisson_ratio

    def response(offset: Vector, force: Vector) -> Vector:
        (x, y, z), (force_x, force_y, force_z) = offset, force
        r = _length(offset)
        rho = r + z
        pull = force_x * x + force_y * y
        direct = 1 / r + k / rho
        outward = pull * (1 / r**3 - k / (r * rho**2)) + force_z * (z / r**3 - k / (r * rho))
        down = pull * (z / r**3 + k / (r * rho)) + force_z * (z**2 / r**3 + 2 * (1 - poisson_ratio) / r)
        parts = (force_x * direct + x * outward, force_y * direct + y * outward, down)
        return [compliance * part for part in parts]

    return _superposed(response, _surface_pairs(points_um, sources_um, forces_nn, regularization_um))


def surface_force_traction_pa(
    points_um: Tensor, sources_um: Tensor, forces_nn: Tensor, *, regularization_um: float
) -> Tensor:
    """Traction that the forces of `surface_force_displacement` exert on the plane through each point, in Pa.

    At z = 0 what acts on the surface; deeper what the solid above a plane does to the solid below it. Positions and
    forces as there; (..., p, 3), components (x, y, z).

    Raises:
        ValueError: as `surface_force_displacement`.

    """
    factor = 3 / (2 * math.pi) * PA_UM2_PER_NN

    def response(offset: Vector, force: Vector) -> Vector:
        strength = factor * offset[2] * _dot(offset, force) / _length(offset) ** 5
        return [strength * r for r in offset]

    return _superposed(response, _surface_pairs(points_um, sources_um, forces_nn, regularization_um))


def moment_nn_um(sources_um: Tensor, forces_nn: Tensor) -> Tensor:
    """Sum of r x F about the origin: (..., n, 3) in um and nN -> (..., 3) in nN um.

    Raises:
        ValueError: shapes that are not those of positions and their forces.

    """
    _check_forces(sources_um, forces_nn, dims=3)
    return torch.linalg.cross(sources_um, forces_nn, dim=-1).sum(dim=-2)


def balanced(sources_um: Tensor, forces_nn: Tensor) -> Tensor:
    """The nearest forces (least squares) without net force and net moment, as a cell exerts them: (..., n, 3) in nN.

    What is taken away is t + w x r, the part in which the forces resemble a rigid motion. One force alone becomes 0,
    two become equal, opposite and along the line between them.

    Raises:
        ValueError: shapes that are not those of positions and their forces.

    """
    _check_forces(sources_um, forces_nn, dims=3)
    forces = forces_nn - forces_nn.mean(dim=-2, keepdim=True)
    arm = sources_um - sources_um.mean(dim=-2, keepdim=True)
    identity = torch.eye(3, dtype=arm.dtype, device=arm.device)
    inertia = arm.square().sum(dim=(-2, -1))[..., None, None] * identity - arm.mT @ arm
    turning = torch.linalg.cross(arm, forces, dim=-1).sum(dim=-2, keepdim=True)  # (..., 1, 3)
    rounding = 1e3 * torch.finfo(arm.dtype).eps  # the inertia is singular when the sources lie on one line
    rotation = turning @ torch.linalg.pinv(inertia, rtol=rounding, hermitian=True)
    return forces - torch.linalg.cross(rotation.expand_as(arm), arm, dim=-1)


def _superposed(response: Callable[[Vector, Vector], Vector], pairs: Iterator[tuple[Vector, Vector]]) -> Tensor:
    """Sum of the responses to one force after the other: (..., p, 3)."""
    total = response(*next(pairs))
    for pair in pairs:
        total = [t + part for t, part in zip(total, response(*pair), strict=True)]
    return torch.stack(total, dim=-1)


def _surface_pairs(
    points_um: Tensor, sources_um: Tensor, forces_nn: Tensor, height_um: float
) -> Iterator[tuple[Vector, Vector]]:
    """Offsets of all points from each surface force lifted by `height_um`, with that force, in components."""
    _check_forces(sources_um, forces_nn, dims=2)
    _check_points(points_um)
    if bool((points_um.detach()[..., 2] < 0).any()):
        raise ValueError("points_um must lie at z >= 0, inside the half space")
    on_surface = torch.cat((sources_um, torch.zeros_like(sources_um[..., :1])), dim=-1)
    for (x, y, z), force in _pairs(points_um, on_surface, forces_nn, height_um):
        yield [x, y, z + height_um], force


def _pairs(
    points_um: Tensor, sources_um: Tensor, forces_nn: Tensor, regularization_um: float
) -> Iterator[tuple[Vector, Vector]]:
    """Offsets of all points from one source after the other, with its force, in components: memory for one source."""
    _check_forces(sources_um, forces_nn, dims=3)
    _check_points(points_um)
    if not 0 <= regularization_um < math.inf:
        raise ValueError(f"regularization_um must be 0 or a positive number, got {regularization_um}")
    points = [component.contiguous() for component in points_um.unbind(-1)]
    for source, force in zip(
        sources_um.to(points_um).unbind(-2), forces_nn.to(points_um).unbind(-2), strict=True
    ):  # each (..., 3)
        offset = [p - s[..., None] for p, s in zip(points, source.unbind(-1), strict=True)]
        if regularization_um == 0 and bool((_length(offset).detach() == 0).any()):
            raise ValueError("points_um must not lie at a source unless regularization_um is positive")
        yield offset, [f[..., None] for f in force.unbind(-1)]


def _check_points(points_um: Tensor) -> None:
    if points_um.ndim < 2 or points_um.shape[-1] != 3:
        raise ValueError(f"points_um must have shape (..., p, 3), got {tuple(points_um.shape)}")
    if points_um.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"points_um must be float32 or float64, got {points_um.dtype}")


def _check_forces(sources_um: Tensor, forces_nn: Tensor, *, dims: int) -> None:
    if sources_um.ndim < 2 or sources_um.shape[-1] != dims or sources_um.shape[-2] < 1:
        raise ValueError(f"sources_um must have shape (..., n, {dims}) with n >= 1, got {tuple(sources_um.shape)}")
    if forces_nn.shape[-2:] != (sources_um.shape[-2], 3):
        raise ValueError(
            f"forces_nn must have shape (..., {sources_um.shape[-2]}, 3), one force per source, "
            f"got {tuple(forces_nn.shape)}"
        )


def _length(offset: Vector, softening_um: float = 0.0) -> Tensor:
    x, y, z = offset
    return torch.sqrt(x**2 + y**2 + z**2 + softening_um**2)


def _dot(offset: Vector, force: Vector) -> Tensor:
    return offset[0] * force[0] + offset[1] * force[1] + offset[2] * force[2]
