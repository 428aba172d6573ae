"""A cell that pulls on a gel through point forces, and what it does to the voxels of a volume.

The cell is elongated; near its two ends forces pull the gel inwards, inside the gel or on the surface of a half space,
without net force and moment. Every force is spread over a distance eps (`physics.point_forces`), so that its density is
smooth; displacement and density are exact solutions of linear elasticity. How strongly a cell pulls is said by the
largest |u| in the volume, in voxels of each axis; cell and eps grow until |grad u| stays below its limit, so strong
cells are large, pull broadly and reach out of a small volume, of which the first force's end stays in view.
Coordinates in um, components (x, y, z); the near corner of the first voxel is at (0, 0, 0), the surface of a half space
is z = 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from physics import point_forces, solid

MASK_SHARE = 0.01
"""Share of the largest force density from which on a voxel belongs to the cell's mask."""
LARGEST_AXIS = 0.35
"""Semi-axes of the cell over the shortest edge of the volume, at most, before it grows."""
SPREAD_EXPONENT = 0.5
"""eps grows more slowly than the cell: a strong one reaches out of the volume, but its forces stay places in it."""
COARSE_POINTS = 10
"""Points along an axis at which the gradient is looked at while eps is sought, beside those near the forces."""
END_SPREAD = 0.35
"""Standard deviation of each component of a force's direction from the centre, before the ends are told apart."""
GRADIENT_MARGIN = 0.95
"""Share of the limit that is aimed at: the search sees part of the points."""
MOST_TRIALS = 60


class Grid(NamedTuple):
    """The voxels of a volume."""

    shape_zyx: tuple[int, int, int]
    voxel_zyx_um: tuple[float, float, float]

    @property
    def voxel_xyz_um(self) -> NDArray[np.float64]:
        """Edges of a voxel in the order of the components."""
        return np.array(self.voxel_zyx_um[::-1])

    @property
    def edges_xyz_um(self) -> NDArray[np.float64]:
        """Of the whole volume, in the order of the components."""
        return self.voxel_xyz_um * self.shape_zyx[::-1]

    def centres_um(self, steps: tuple[int, ...] = (1, 1, 1)) -> Tensor:
        """Centres of every step-th voxel, (z, y, x, 3) float32."""
        z, y, x = (
            (torch.arange(0, size, step, dtype=torch.float32) + 0.5) * edge
            for size, step, edge in zip(self.shape_zyx, steps, self.voxel_zyx_um, strict=True)
        )
        return torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], dim=-1)


class ForceCell(NamedTuple):
    """Where a cell pulls, and how."""

    sources_um: Tensor
    """(n, 3); (n, 2) on a surface."""
    forces_nn: Tensor
    """(n, 3), on the gel; their sum and moment are zero."""

    @property
    def on_surface(self) -> bool:
        """Whether it sits on a half space."""
        return self.sources_um.shape[-1] == 2

    def enlarged(self, factor: float) -> ForceCell:
        """The same cell, larger, its first force where it was; the forces stay balanced."""
        fixed = self.sources_um[:1]
        return self._replace(sources_um=fixed + factor * (self.sources_um - fixed))


class Load(NamedTuple):
    """A cell in a gel."""

    cell: ForceCell
    spread_um: float
    youngs_modulus_pa: float
    poisson_ratio: float

    def displacement_um(self, points_um: Tensor) -> Tensor:
        """At points (..., 3) in um, all inside the gel; the dtype of the points."""
        cell = self.cell
        solution = point_forces.surface_force_displacement if cell.on_surface else point_forces.kelvin_displacement
        return solution(
            points_um,
            cell.sources_um,
            cell.forces_nn,
            youngs_modulus_pa=self.youngs_modulus_pa,
            poisson_ratio=self.poisson_ratio,
            regularization_um=self.spread_um,
        )

    def body_force_n_per_m3(self, grid: Grid) -> NDArray[np.float32]:
        """At the voxels, (3, z, y, x); 0 for a cell on a surface, whose force no voxel holds."""
        if self.cell.on_surface:
            return np.zeros((3, *grid.shape_zyx), np.float32)
        density = point_forces.kelvin_body_force_n_per_m3(
            grid.centres_um(), self.cell.sources_um, self.cell.forces_nn, regularization_um=self.spread_um
        )
        return density.permute(3, 0, 1, 2).contiguous().numpy()

    def surface_traction_pa(self, grid: Grid) -> NDArray[np.float32]:
        """On the face z = 0 below each column of voxels, (3, y, x); 0 for a cell inside the gel."""
        if not self.cell.on_surface:
            return np.zeros((3, *grid.shape_zyx[1:]), np.float32)
        face = grid.centres_um()[0].clone()
        face[..., 2] = 0
        traction = point_forces.surface_force_traction_pa(
            face, self.cell.sources_um, self.cell.forces_nn, regularization_um=self.spread_um
        )
        return traction.permute(2, 0, 1).contiguous().numpy()


def draw_cell(
    rng: np.random.Generator, grid: Grid, *, on_surface: bool, forces: int, radius_um: float, jitter: float = 0.3
) -> ForceCell:
    """A cell near the middle of the volume, or of its face z = 0, with forces of no particular strength.

    Args:
        rng: Source of randomness.
        grid: The volume.
        on_surface: Whether it sits on a half space.
        forces: Number of forces, at least 2.
        radius_um: Longest semi-axis; cut to 0.35 of the volume's shortest edge, the others are 0.3 to 0.8 of it.
        jitter: Standard deviation of each component of a force's deviation from the inward direction.
    """
    edges_um = grid.edges_xyz_um
    radius_um = min(radius_um, LARGEST_AXIS * float((edges_um[:2] if on_surface else edges_um).min()))
    axes_um = radius_um * np.array([1.0, *rng.uniform(0.3, 0.8, 2)])
    direction = END_SPREAD * rng.standard_normal((forces, 3))
    direction[:, 0] += np.where(np.arange(forces) % 2, 1.0, -1.0)  # in turn at either end
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    angle = rng.uniform(0, 2 * np.pi)
    centre_um = edges_um * (0.5 + rng.uniform(-0.08, 0.08, 3))
    if on_surface:
        direction[:, 2], centre_um[2] = 0.0, 0.0
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    arm_um = (direction * axes_um) @ turn.T
    inward = -arm_um / np.linalg.norm(arm_um, axis=1, keepdims=True)
    strength = rng.lognormal(0.0, 0.5, (forces, 1))
    pull = strength * (inward + jitter * rng.standard_normal((forces, 3)))
    sources = torch.from_numpy(centre_um + arm_um)
    balanced = point_forces.balanced(sources, torch.from_numpy(pull))
    dims = 2 if on_surface else 3
    return ForceCell(sources[:, :dims], balanced)


def load_to_peak(
    cell: ForceCell,
    grid: Grid,
    *,
    peak_voxels: float,
    largest_gradient: float,
    least_spread_um: float,
    youngs_modulus_pa: float,
    poisson_ratio: float,
) -> tuple[Load, NDArray[np.float32]]:
    """The cell pulling so that the largest |u| at any voxel is `peak_voxels`, and u in um, (3, z, y, x).

    Args:
        cell: Its forces are scaled.
        grid: The volume.
        peak_voxels: |u| counts voxels of each axis.
        largest_gradient: Limit of |grad u|, the root of the sum of the squares of its nine components.
        least_spread_um: eps where the limit allows it.
        youngs_modulus_pa: Of the gel.
        poisson_ratio: Of the gel.

    Raises:
        ValueError: no eps keeps the limit.
    """
    voxel_um = torch.from_numpy(grid.voxel_xyz_um).float()
    fine = grid.centres_um()
    spread_um = least_spread_um
    for _ in range(MOST_TRIALS):
        load = Load(cell, spread_um, youngs_modulus_pa, poisson_ratio)
        u, gradient = _with_gradient(load, _telling_points_um(load, grid))
        excess = float(gradient.max() * peak_voxels / (u / voxel_um).norm(dim=-1).max())
        growth = excess / (GRADIENT_MARGIN * largest_gradient)
        if growth <= 1:
            displacement = load.displacement_um(fine)
            factor = peak_voxels / float((displacement / voxel_um).norm(dim=-1).max())
            field = (factor * displacement).permute(3, 0, 1, 2).contiguous()
            if _largest_gradient(field, grid) < largest_gradient:
                return load._replace(cell=cell._replace(forces_nn=factor * cell.forces_nn)), field.numpy()
        growth = min(max(growth, 1.03), 1.5)
        spread_um *= growth**SPREAD_EXPONENT
        cell = cell.enlarged(growth)
    raise ValueError(
        f"no force is broad enough to move a volume of {list(grid.shape_zyx)} voxels by {peak_voxels:.3g} voxels with "
        f"a gradient below largest_gradient {largest_gradient:g}: raise it or the size, or lower peak_high_voxels"
    )


def cell_mask(
    body_force_n_per_m3: NDArray[np.floating], surface_traction_pa: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Voxels (z, y, x) with a density of at least 1 % of the largest, or in the first slice with such a traction.

    Outside, less than that is left of a spread force: the gel is in equilibrium but for its tail.
    """
    strength = np.linalg.norm(body_force_n_per_m3, axis=0)
    if not strength.any():
        strength[0] = np.linalg.norm(surface_traction_pa, axis=0)
    return strength >= MASK_SHARE * strength.max()


def _telling_points_um(load: Load, grid: Grid) -> Tensor:
    """Where |u| and |grad u| are largest or nearly so, (n, 3): at each force, around it, and on a coarse grid."""
    steps = tuple(max(size // COARSE_POINTS, 1) for size in grid.shape_zyx)
    coarse = grid.centres_um(steps).reshape(-1, 3)
    sources = load.cell.sources_um.float()
    if load.cell.on_surface:
        sources = torch.cat((sources, torch.zeros_like(sources[:, :1])), dim=1)
    around = 0.5 * load.spread_um * torch.cat((torch.zeros(1, 3), torch.eye(3), -torch.eye(3)))
    near = (sources[:, None] + around).reshape(-1, 3)
    inside = ((near >= 0) & (near < torch.from_numpy(grid.edges_xyz_um).float())).all(dim=1)
    return torch.cat((near[inside], coarse))


def _with_gradient(load: Load, points_um: Tensor) -> tuple[Tensor, Tensor]:
    """Displacement at points (..., 3) and |grad u| there, exact."""
    with torch.enable_grad():
        points = points_um.detach().requires_grad_()
        u = load.displacement_um(points)
        rows = [torch.autograd.grad(u[..., i].sum(), points, retain_graph=i < 2)[0] for i in range(3)]
    return u.detach(), torch.stack(rows, dim=-1).square().sum(dim=(-2, -1)).sqrt()


def _largest_gradient(displacement_um: Tensor, grid: Grid) -> float:
    gradient = solid.displacement_gradient(displacement_um, grid.voxel_zyx_um)
    return float(gradient.square().sum(dim=(0, 1)).max().sqrt())
