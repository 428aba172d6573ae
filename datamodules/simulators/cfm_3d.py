"""Synthetic bead volumes before and after a cell deforms the gel (paper `cfm_3d`: Duan et al., Biophys J 2022).

The text at hand, the paper's abstract, states no simulation; all of this is ours. A cell is an ellipsoid on whose
surface 2 to 20 point forces pull the gel inwards, without net force and moment. Each is spread over a distance eps
(`physics.point_forces`), so that its density is smooth and voxels can hold it; displacement and density are the exact
solutions in an infinite solid (Kelvin) or, with forces on the free surface z = 0, in a half space (Cerruti,
Boussinesq). Each volume shows beads at random (`bead_volumes`), the deformed one the same beads at x = X + u(X),
drawn anew with photons and noise of its own. A group is one cell; its samples differ in how strongly it pulls, in their
beads and their noise.

The label is Lagrangian: u at the voxels of the undeformed grid. Its largest length is drawn for each sample in voxels
(of each axis), then cell and eps grow until |grad u| is below its limit (`force_cells`): small strain holds, beads stay
in order, and the forces of a strong cell lie in part outside the volume, where they balance those inside. eps is at
least 5 voxels: there second differences of the exact u, as `physics.solid` takes them, differ from the density by what
`irreducible_error` says.

Drift, where asked for, is a motion of the deformed volume that depends on depth alone (a cubic, zero at no depth in
particular), as stages and swelling gels make it. No method can tell it from displacement, so `displacement_um` includes
it: it is what the images show. `drift_um` holds it for each slice; subtract it before forces are derived.
`body_force_n_per_m3` is the cell's alone. In a half space no voxel holds a force: the density is 0 there, and
`surface_traction_pa` is what the cell exerts on the face (elsewhere 0).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.batches import Sample
from datamodules.simulators.bead_oracle import NEIGHBOURS, OracleErrors, oracle_errors
from datamodules.simulators.bead_volumes import (
    Blur,
    Camera,
    check_packing,
    localisation_sd_voxels,
    render,
    scatter_beads,
)
from datamodules.simulators.force_cells import ForceCell, Grid, Load, cell_mask, draw_cell, load_to_peak
from datamodules.simulators.sample_groups import equal_groups

Floats = NDArray[Any]

FIELDS: dict[str, dict[str, str]] = {
    "reference": {"axes": "czyx", "unit": "grey level"},
    "deformed": {"axes": "czyx", "unit": "grey level"},
    "displacement_um": {"axes": "czyx", "unit": "um"},
    "body_force_n_per_m3": {"axes": "czyx", "unit": "N/m3"},
    "cell_mask": {"axes": "czyx", "unit": "mask"},
    "drift_um": {"axes": "cz", "unit": "um"},
    "surface_traction_pa": {"axes": "cyx", "unit": "Pa"},
    "voxel_size_um": {"axes": "a", "unit": "um"},
    "youngs_modulus_pa": {"axes": "", "unit": "Pa"},
    "poisson_ratio": {"axes": "", "unit": "1"},
    "peak_displacement_voxels": {"axes": "", "unit": "px"},
    "force_spread_um": {"axes": "", "unit": "um"},
}
SPLITS: dict[str, dict[str, Any]] = {"default": {"unit": "group", "train": 0.8, "val": 0.1, "test": 0.1}}
LICENCE = "CC0-1.0 (simulated)"
GROUP_KEY = "simulated cell"
DEFAULT_COUNT = 400
"""200 cells in 2 states; 3 GB."""

SMALLEST_SIZE = 16
FEWEST_BEADS = 20
DRIFT_ORDER = 3
BRIGHTNESS = (0.5, 1.0)
"""Of the beads, uniform."""
ORACLE_FIELDS = 3


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """All numbers of the simulator; all ours. The defaults are the reference set, on which results are compared.

    Args:
        size_z, size_y, size_x: of the volumes in voxels, at least 16.
        voxel_z_um, voxel_xy_um: edges of a voxel.
        geometry: "infinite", a cell inside a 3-D culture, or "half_space", one on the surface z = 0 of a gel.
        states: samples per cell when there are enough.
        density: beads per voxel.
        bead_distance_voxels: least distance between two beads of the undeformed gel.
        blur_xy_voxels: standard deviation of the point-spread function along x and y.
        blur_z_low_voxels, blur_z_high_voxels: the same along z, drawn for each cell.
        photons: at the peak of the brightest bead; beads have a share of 0.5 to 1 of it.
        background_photons: in every voxel.
        read_noise_photons: standard deviation of the camera's noise. offset_grey: its grey level without light.
        peak_low_voxels, peak_high_voxels: the largest |u|, drawn uniformly for each sample; |u| counts voxels of each
            axis.
        largest_gradient: limit of |grad u|, the root of the sum of the squares of its nine components.
        spread_low_voxels, spread_high_voxels: eps, in the voxel's longest edge, drawn for each cell; raised where the
            limit of the gradient asks for it.
        forces_low, forces_high: number of forces.
        cell_radius_low_um, cell_radius_high_um: longest semi-axis of the cell; at most 0.35 of the shortest edge.
        youngs_modulus_pa: of the gel.
        poisson_low, poisson_high: Poisson's ratio of the gel, drawn for each cell.
        drift_voxels: largest drift in any slice, drawn between 0 and this for each sample.
    """

    size_z: int = 64
    size_y: int = 64
    size_x: int = 64
    voxel_z_um: float = 0.8
    voxel_xy_um: float = 0.8
    geometry: str = "infinite"
    states: int = 2
    density: float = 0.01
    bead_distance_voxels: float = 2.0
    blur_xy_voxels: float = 1.0
    blur_z_low_voxels: float = 1.5
    blur_z_high_voxels: float = 2.5
    photons: float = 200.0
    background_photons: float = 20.0
    read_noise_photons: float = 3.0
    offset_grey: float = 100.0
    peak_low_voxels: float = 0.5
    peak_high_voxels: float = 4.0
    largest_gradient: float = 0.2
    spread_low_voxels: float = 5.0
    spread_high_voxels: float = 10.0
    forces_low: int = 2
    forces_high: int = 20
    cell_radius_low_um: float = 10.0
    cell_radius_high_um: float = 18.0
    youngs_modulus_pa: float = 1000.0
    poisson_low: float = 0.3
    poisson_high: float = 0.45
    drift_voxels: float = 0.0

    def __post_init__(self) -> None:
        if self.geometry not in ("infinite", "half_space"):
            raise ValueError(f"geometry must be 'infinite' or 'half_space', got {self.geometry!r}")
        may_be_zero = {"bead_distance_voxels", "background_photons", "read_noise_photons", "offset_grey"}
        may_be_zero |= {"poisson_low", "poisson_high", "drift_voxels"}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "geometry":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
                raise ValueError(f"{field.name} must be a finite number, got {value!r}")
            if isinstance(field.default, int) and not isinstance(value, int):
                raise ValueError(f"{field.name} must be a whole number, got {value}")
            if value < 0 or (value == 0 and field.name not in may_be_zero):
                wanted = "not negative" if field.name in may_be_zero else "positive"
                raise ValueError(f"{field.name} must be {wanted}, got {value}")
        for name in ("size_z", "size_y", "size_x"):
            if getattr(self, name) < SMALLEST_SIZE:
                raise ValueError(f"{name} must be at least {SMALLEST_SIZE}, got {getattr(self, name)}")
        for low, high in (
            ("blur_z_low_voxels", "blur_z_high_voxels"),
            ("peak_low_voxels", "peak_high_voxels"),
            ("spread_low_voxels", "spread_high_voxels"),
            ("forces_low", "forces_high"),
            ("cell_radius_low_um", "cell_radius_high_um"),
            ("poisson_low", "poisson_high"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} must not be above {high}, got {getattr(self, low)} and {getattr(self, high)}")
        if self.poisson_high >= 0.5:
            raise ValueError(f"poisson_high must be below 0.5, got {self.poisson_high}")
        if self.forces_low < 2:
            raise ValueError(f"forces_low must be at least 2, one force cannot be balanced, got {self.forces_low}")
        if self.largest_gradient >= 1:
            raise ValueError(f"largest_gradient must be below 1, where beads could swap, got {self.largest_gradient}")
        check_packing(self.density, self.bead_distance_voxels)
        expected = self.density * self.size_z * self.size_y * self.size_x
        if expected < FEWEST_BEADS:
            raise ValueError(f"density must give a volume at least {FEWEST_BEADS} beads, this one has {expected:.3g}")

    @property
    def grid(self) -> Grid:
        """The voxels of a volume."""
        edges_um = (self.voxel_z_um, self.voxel_xy_um, self.voxel_xy_um)
        return Grid((self.size_z, self.size_y, self.size_x), edges_um)

    @property
    def camera(self) -> Camera:
        """The camera."""
        return Camera(self.photons, self.background_photons, self.read_noise_photons, self.offset_grey)


def group_sizes(count: int, parameters: Parameters) -> list[int]:
    """How many samples each group holds: `states` or fewer, at least four groups if count >= 4."""
    return equal_groups(count, groups=-(-count // parameters.states))


def simulate_group(seed: int, group: int, size: int, parameters: Parameters) -> list[Sample]:
    """The first `size` states of cell `group`.

    Fields of a sample, (z, y, x) the volume: `reference` and `deformed` (1, z, y, x) uint16, `displacement_um` and
    `body_force_n_per_m3` (3, z, y, x) float32, `cell_mask` (1, z, y, x) uint8, `drift_um` (3, z) and
    `surface_traction_pa` (3, y, x) float32, `voxel_size_um` (3,) in the order (z, y, x) and scalars, float64. A pure
    function of its arguments; a shorter group is a prefix of a longer one.
    """
    if min(seed, group) < 0 or size < 1:
        raise ValueError(f"seed and group must not be negative and size must be positive, got {seed}, {group}, {size}")
    if size > parameters.states:
        raise ValueError(f"size must be at most states ({parameters.states}), got {size}")
    shared = _draw_shared(np.random.default_rng([seed, group]), parameters)
    name = f"cell{group:05d}"
    samples = []
    for index in range(size):
        rng = np.random.default_rng([seed, group, index + 1])
        samples.append(Sample(f"{name}_{index:03d}", name, _fields(rng, shared, parameters)))
    return samples


# -- one sample -------------------------------------------------------------------------------------------------------


class _Shared(NamedTuple):
    """What all samples of a group have in common."""

    cell: ForceCell
    spread_um: float
    poisson_ratio: float
    blur: Blur


class _Beads(NamedTuple):
    """Places of the beads in voxels, (n, 3), components (x, y, z)."""

    reference: Floats
    deformed: Floats


def _draw_shared(rng: np.random.Generator, parameters: Parameters) -> _Shared:
    count = int(rng.integers(parameters.forces_low, parameters.forces_high + 1))
    radius_um = float(rng.uniform(parameters.cell_radius_low_um, parameters.cell_radius_high_um))
    spread = float(rng.uniform(parameters.spread_low_voxels, parameters.spread_high_voxels))
    poisson_ratio = float(rng.uniform(parameters.poisson_low, parameters.poisson_high))
    blur_z = float(rng.uniform(parameters.blur_z_low_voxels, parameters.blur_z_high_voxels))
    on_surface = parameters.geometry == "half_space"
    cell = draw_cell(rng, parameters.grid, on_surface=on_surface, forces=count, radius_um=radius_um)
    spread_um = spread * float(parameters.grid.voxel_xyz_um.max())
    return _Shared(cell, spread_um, poisson_ratio, Blur(parameters.blur_xy_voxels, blur_z))


def _draw_load(rng: np.random.Generator, shared: _Shared, parameters: Parameters) -> tuple[Load, Floats, float]:
    """The cell at the strength of one sample, its displacement (3, z, y, x) in um and the peak in voxels."""
    peak = float(rng.uniform(parameters.peak_low_voxels, parameters.peak_high_voxels))
    load, displacement = load_to_peak(
        shared.cell,
        parameters.grid,
        peak_voxels=peak,
        largest_gradient=parameters.largest_gradient,
        least_spread_um=shared.spread_um,
        youngs_modulus_pa=parameters.youngs_modulus_pa,
        poisson_ratio=shared.poisson_ratio,
    )
    return load, displacement, peak


def _draw_drift(rng: np.random.Generator, parameters: Parameters) -> Floats:
    """Coefficients (order + 1, 3) of a cubic of depth in voxels; its largest value in any slice is the one drawn."""
    largest = parameters.drift_voxels * rng.random()
    drift = rng.standard_normal((DRIFT_ORDER + 1, 3))
    slices = _drift_voxels(drift, np.arange(parameters.size_z), parameters)
    return drift * (largest / np.linalg.norm(slices, axis=1).max())


def _drift_voxels(drift: Floats, slices: Floats, parameters: Parameters) -> Floats:
    """Drift (n, 3), components (x, y, z), at n slices, whole or not, of the undeformed volume."""
    return np.polynomial.polynomial.polyval(slices / parameters.size_z, drift).T


def _draw_beads(
    rng: np.random.Generator, load: Load, drift: Floats, peak: float, blur: Blur, parameters: Parameters
) -> _Beads:
    """Beads in the volume and as far around it as they can come into view; none above a free surface."""
    grid = parameters.grid
    size = np.array(grid.shape_zyx[::-1])
    reach = np.array(blur.reach_xyz) + peak + parameters.drift_voxels
    low, high = -0.5 - reach, size - 0.5 + reach
    if load.cell.on_surface:
        low[2] = -0.5
    reference = scatter_beads(
        rng, low, high, density=parameters.density, distance_voxels=parameters.bead_distance_voxels
    )
    points_um = torch.from_numpy((reference + 0.5) * grid.voxel_xyz_um)
    moved = load.displacement_um(points_um).numpy() / grid.voxel_xyz_um
    return _Beads(reference, reference + moved + _drift_voxels(drift, reference[:, 2], parameters))


def _fields(rng: np.random.Generator, shared: _Shared, parameters: Parameters) -> dict[str, np.ndarray]:
    grid = parameters.grid
    load, displacement_um, peak = _draw_load(rng, shared, parameters)
    drift = _draw_drift(rng, parameters)
    beads = _draw_beads(rng, load, drift, peak, shared.blur, parameters)
    brightness = rng.uniform(*BRIGHTNESS, len(beads.reference))
    reference, deformed = (
        parameters.camera.expose(render(places, brightness, grid.shape_zyx, shared.blur), rng)[None] for places in beads
    )
    drift_um = _drift_voxels(drift, np.arange(parameters.size_z), parameters) * grid.voxel_xyz_um
    drift_um = drift_um.T.astype(np.float32)
    force, traction = load.body_force_n_per_m3(grid), load.surface_traction_pa(grid)
    return {
        "reference": reference,
        "deformed": deformed,
        "displacement_um": displacement_um + drift_um[:, :, None, None],
        "body_force_n_per_m3": force,
        "cell_mask": cell_mask(force, traction)[None].astype(np.uint8),
        "drift_um": drift_um,
        "surface_traction_pa": traction,
        "voxel_size_um": np.array(grid.voxel_zyx_um),
        "youngs_modulus_pa": np.array(load.youngs_modulus_pa),
        "poisson_ratio": np.array(load.poisson_ratio),
        "peak_displacement_voxels": np.array(peak),
        "force_spread_um": np.array(load.spread_um),
    }


# -- the oracle -------------------------------------------------------------------------------------------------------


def irreducible_error(parameters: Parameters) -> dict[str, Any]:
    """Error of an oracle that knows which bead is which and finds each as well as the photons allow.

    It localises the beads in both volumes with the standard deviation of the Cramer-Rao bound for an isolated bead and
    interpolates their displacement by a local thin-plate spline whose smoothing is the best for that field. No strict
    bound: elasticity says more about u than smoothness does.
    """
    found = _oracle(parameters)
    floor = ""
    if np.isfinite(found.body_force):
        floor = ". Second differences of the exact displacement differ from the stored body force by "
        floor += f"{found.body_force:.2g} (relative L2)"
    return {
        "metric": "displacement_median_error_vx",
        "value": found.localised_voxels,
        "how": f"oracle, no strict bound: beads matched and localised to the Cramer-Rao bound, {NEIGHBOURS} "
        f"nearest interpolated by a smoothing spline, mean of {ORACLE_FIELDS} fields; with exact places "
        f"{found.exact_voxels:.2g}, predicting no displacement {found.nothing_voxels:.2g}{floor}",
    }


@lru_cache(maxsize=8)
def _oracle(parameters: Parameters) -> OracleErrors:
    """Averaged over a few fields."""
    errors = []
    for field in range(ORACLE_FIELDS):
        rng = np.random.default_rng([field, 0x6F7261])
        shared = _draw_shared(rng, parameters)
        load, displacement_um, peak = _draw_load(rng, shared, parameters)
        beads = _draw_beads(rng, load, np.zeros((DRIFT_ORDER + 1, 3)), peak, shared.blur, parameters)
        sd_voxels = localisation_sd_voxels(shared.blur, parameters.camera, float(np.mean(BRIGHTNESS)))
        errors.append(oracle_errors(rng, parameters.grid, load, displacement_um, *beads, sd_voxels=sd_voxels))
    return OracleErrors(*(float(np.mean(values)) for values in zip(*errors, strict=True)))
