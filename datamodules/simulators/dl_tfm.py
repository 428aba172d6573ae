"""Synthetic pairs of traction and displacement (paper `dl_tfm`: Wang & Lin, bioRxiv 2020.05.20.107128, Biophys J 2021).

Family "wang_lin": outlines and protrusion signals from a simulated membrane (`legi_cells`), point stresses along the
rim (`point_stresses`), displacement by the authors' discrete Boussinesq convolution. Two recipes are known: "direct"
places the stresses on the field's own grid; "down" places them on a 160 grid and takes every pixel of the 104 grid from
there, which gives half as many non-zero pixels and is what the stored cells look like. A group is one cell; its samples
are its rotations, made by turning the polar angles and placing the stresses anew, never by interpolation.
Family "discs": Kratz et al. 2023 (`traction_discs`), fields drawn independently, displacement exact, traction as it is
at the pixel centres. They have no cell: the mask is the convex hull of the discs (ours).

The displacement holds no noise: that is added anew each time a sample is used.

Noise-free results on "wang_lin" are an inverse crime where the inversion uses the same `centre_element` and `reach`;
"published" both is what the stored data were made with. Not simulated: the source's radially symmetric patterns.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from datamodules.batches import Sample
from datamodules.simulators import legi_cells, point_stresses, traction_discs, traction_oracle
from datamodules.simulators.legi_cells import ANGLE_RAD, POINTS
from datamodules.simulators.sample_groups import equal_groups
from physics.half_space import displacement_from_traction
from physics.polygons import polygon_interior

Floats = NDArray[np.floating]

FIELDS: dict[str, dict[str, str]] = {
    "displacement_um": {"axes": "cyx", "unit": "um"},
    "traction_pa": {"axes": "cyx", "unit": "Pa"},
    "cell_mask": {"axes": "cyx", "unit": "mask"},
    "outline_px": {"axes": "nc", "unit": "px"},
    "outline_px_length": {"axes": "", "unit": "1"},
    "youngs_modulus_pa": {"axes": "", "unit": "Pa"},
    "poisson_ratio": {"axes": "", "unit": "1"},
    "pixel_size_um": {"axes": "", "unit": "um"},
    "recipe": {"axes": "", "unit": "code: 0 direct, 1 down, 2 discs"},
    "centre_element": {"axes": "", "unit": "code: 0 exact, 1 published"},
    "reach": {"axes": "", "unit": "code: 0 full, 1 published"},
}
SPLITS: dict[str, dict[str, Any]] = {"default": {"unit": "group", "train": 0.8, "val": 0.1, "test": 0.1}}
LICENCE = "CC0-1.0 (simulated)"
GROUP_KEY = "simulated cell"
DEFAULT_COUNT = 4000
"""250 cells in 16 rotations, ours; about 0.75 GB."""

GRIDS_PX = (104, 160, 256)
"""Wang & Lin's grids."""
NATIVE_PX = 104
"""The grid that all numbers in pixels refer to: a larger one sees the same field finer, magnification S / 104."""
DOWN_GRID_PX = 160
"""Grid on which "down" places the stresses."""
CODES = {"direct": 0, "down": 1, "discs": 2}
MOST_TRIALS = 200
"""Membranes simulated before a group gives up; about three in four are accepted with the defaults."""
RIM_POINTS = 48
"""Corners of a disc whose hull is taken."""
ORACLE_CELLS = 12
"""Fields per kind whose oracle error is averaged."""
MADE_ANEW = ("data.centre_element", "data.reach", "data.poisson_ratio", "data.transfer_function")
"""Settings with which the displacement is another one than the oracle's; null keeps it."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """All numbers of the simulator.

    Args:
        family: "wang_lin", "discs" or "mixed" (each group one of the two, by chance).
        recipe: "direct", "down" or "mixed" (each cell one of the two, by chance); "down" needs the 104 grid.
        grid_size_px: 104, 160 or 256 (Wang & Lin).
        pixel_size_um: side of a pixel of the 104 grid; 1.925 um (preprint). Larger grids have smaller pixels.
        rotations: samples per group when there are enough; 16 (final paper).
        youngs_modulus_pa, poisson_ratio: of the cells' substrate; 10,670 Pa and 0.45 (preprint).
        scale_to: what is the same for all cells: "mean_displacement" in the cell (preprint) or "max_traction" in it.
        mean_displacement_px: in pixels of the 104 grid; 0.4277 (preprint).
        max_traction_pa: 1000, 2000, 4000 or 8000 Pa in the source's tests.
        centre_element, reach: of the cells' displacement, see `physics.half_space`; "published" for parity with the
            stored data.
        membrane_spread: largest factor between a membrane's numbers and its preset's; ours.
        signal_threshold: net signals below it make no stress; 1 (source).
        imbalance: largest net force over the sum of forces, in any direction; 0.1 (source, along x and y).
        disc_youngs_modulus_pa, disc_poisson_ratio: of the discs' substrate; 1000 Pa and 0.49 (Kratz).
        disc_largest_traction: in units of Young's modulus; 0.5 (Kratz).
        disc_share: share of groups that are discs in the family "mixed"; ours.
        noise_px: magnitude of the white noise vector, in pixels, that `irreducible_error` refers to; the stored
            fields hold none. 0.0188 (preprint, as in its experiments).
    """

    family: str = "wang_lin"
    recipe: str = "down"
    grid_size_px: int = NATIVE_PX
    pixel_size_um: float = 1.925
    rotations: int = 16
    youngs_modulus_pa: float = 10670.0
    poisson_ratio: float = 0.45
    scale_to: str = "mean_displacement"
    mean_displacement_px: float = 0.4277
    max_traction_pa: float = 2000.0
    centre_element: str = "published"
    reach: str = "published"
    membrane_spread: float = 1.2
    signal_threshold: float = 1.0
    imbalance: float = 0.1
    disc_youngs_modulus_pa: float = 1000.0
    disc_poisson_ratio: float = 0.49
    disc_largest_traction: float = 0.5
    disc_share: float = 0.5
    noise_px: float = 0.0188

    def __post_init__(self) -> None:
        choices = {
            "family": ("wang_lin", "discs", "mixed"),
            "recipe": ("direct", "down", "mixed"),
            "grid_size_px": GRIDS_PX,
            "scale_to": ("mean_displacement", "max_traction"),
            "centre_element": ("exact", "published"),
            "reach": ("full", "published"),
        }
        for name, accepted in choices.items():
            value = getattr(self, name)
            if value not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(map(str, accepted))}, got {value!r}")
        for field in fields(self):
            if field.name in choices:
                continue
            value = getattr(self, field.name)
            least_allowed = field.name in ("signal_threshold", "noise_px", "disc_share")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
                raise ValueError(f"{field.name} must be a finite number, got {value!r}")
            if value < 0 or (value == 0 and not least_allowed):
                raise ValueError(f"{field.name} must be {'not negative' if least_allowed else 'positive'}, got {value}")
        if not isinstance(self.rotations, int):
            raise ValueError(f"rotations must be a whole number, got {self.rotations}")
        for name, most in (("poisson_ratio", 0.5), ("disc_poisson_ratio", 0.5), ("imbalance", 1), ("disc_share", 1)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most:g}, got {getattr(self, name)}")
        if self.membrane_spread < 1:
            raise ValueError(f"membrane_spread must be at least 1, got {self.membrane_spread}")
        if self.family != "discs" and self.recipe != "direct" and self.grid_size_px != NATIVE_PX:
            raise ValueError(f"recipe {self.recipe!r} needs grid_size_px {NATIVE_PX}, got {self.grid_size_px}")

    @property
    def magnification(self) -> float:
        """Pixels of the grid per pixel of the 104 grid."""
        return self.grid_size_px / NATIVE_PX

    @property
    def grid_pixel_um(self) -> float:
        """Side of a pixel of the grid."""
        return self.pixel_size_um / self.magnification


def group_sizes(count: int, parameters: Parameters) -> list[int]:
    """How many samples each group holds: `rotations` or fewer, at least four groups if count >= 4."""
    return equal_groups(count, groups=-(-count // parameters.rotations))


def irreducible_error(parameters: Parameters) -> dict[str, Any]:
    """Error of an oracle that knows where every stress is and where it points, and fits its strength to the noise.

    NRMSE inside the cell of least squares over all stresses with the operator that made the data: the root of
    sigma^2 tr (A^T A)^-1 over |T|, averaged over a few fields. 0 without noise. It is no strict bound: strengths are
    smooth along the rim and fixed in a blurred patch, and who has learned that can do better than least squares.
    """
    kinds = {
        "wang_lin": ("direct", "down") if parameters.recipe == "mixed" else (parameters.recipe,),
        "discs": ("discs",),
    }
    asked = [parameters.family] if parameters.family != "mixed" else list(kinds)
    values = {}
    for family in asked:
        for kind in kinds[family]:
            recipe = "direct" if kind == "discs" else kind
            unit = replace(parameters, family=family, recipe=recipe, noise_px=1.0)  # the same for every noise: kept
            values[kind] = parameters.noise_px * _oracle_error_per_px(unit) if parameters.noise_px else 0.0
    each = f" ({', '.join(f'{kind} {value:.3g}' for kind, value in values.items())})" if len(values) > 1 else ""
    return {
        "metric": "traction_nrmse",
        "value": float(np.mean(list(values.values()))),
        "match": {"data.noise_px": parameters.noise_px, **dict.fromkeys(MADE_ANEW)},
        "how": f"oracle, no strict bound: least squares with support and directions known, white noise of "
        f"{parameters.noise_px:g} px, mean of {ORACLE_CELLS} fields{each}; 0 without noise",
    }


def simulate_group(seed: int, group: int, size: int, parameters: Parameters) -> list[Sample]:
    """The first `size` rotations of cell `group`, or `size` independent fields of discs.

    Fields of a sample, S the grid size: `displacement_um` and `traction_pa` (2, S, S) float32, `cell_mask` (1, S, S)
    uint8, `outline_px` (360, 2) float32 with its length (x and y of the corners, pixel (0, 0) has its centre at 0, 0;
    beyond the length zeros), int8 codes of the recipe and of the operator behind the displacement, and the scalars of
    the substrate, float64. A pure function of its arguments; a shorter group is a prefix of a longer one.
    """
    if min(seed, group) < 0 or size < 1:
        raise ValueError(f"seed and group must not be negative and size must be positive, got {seed}, {group}, {size}")
    if size > parameters.rotations:
        raise ValueError(f"size must be at most rotations ({parameters.rotations}), got {size}")
    rng = np.random.default_rng([seed, group])
    chance = rng.random(2)
    if parameters.family == "mixed":
        discs = chance[0] < parameters.disc_share
    else:
        discs = parameters.family == "discs"
    if discs:
        return [
            _disc_sample(rng, f"discs{group:05d}_{index:03d}", f"discs{group:05d}", parameters) for index in range(size)
        ]
    recipe = ("direct", "down")[int(chance[1] < 0.5)] if parameters.recipe == "mixed" else parameters.recipe
    return _cell_samples(rng, f"cell{group:05d}", size, recipe, parameters)


# -- cells ------------------------------------------------------------------------------------------------------------


def _cell_samples(rng: np.random.Generator, group: str, size: int, recipe: str, parameters: Parameters) -> list[Sample]:
    radius, strength = _draw_cell(rng, parameters)
    step = 2 * np.pi / parameters.rotations
    rotations = rng.uniform(0.0, step) + step * np.arange(parameters.rotations)
    grid = DOWN_GRID_PX if recipe == "down" else parameters.grid_size_px
    # all rotations are placed, so that a shorter group is a prefix of a longer one
    placed = point_stresses.place(
        radius, ANGLE_RAD, strength, rotations_rad=rotations, grid_size_px=grid, magnification=grid / NATIVE_PX, rng=rng
    )
    placed = point_stresses.Placed(placed.stress[:size], placed.outline_px[:size])
    if recipe == "down":
        placed = point_stresses.shrunk(placed, parameters.grid_size_px)
    interior = polygon_interior(placed.outline_px, parameters.grid_size_px, parameters.grid_size_px)
    traction, displacement = _scaled(placed.stress, interior, parameters)
    return [
        _sample(
            f"{group}_{index:03d}", group, displacement[index], traction[index], interior[index],
            placed.outline_px[index], recipe, parameters,
        )
        for index in range(size)
    ]  # fmt: skip


def _draw_cell(rng: np.random.Generator, parameters: Parameters) -> tuple[Floats, Floats]:
    """Radius and strength, (360,) each, of the first simulated membrane that looks like a cell and can be balanced."""
    for _ in range(MOST_TRIALS):
        membrane = legi_cells.draw_membranes(rng, 1, spread=parameters.membrane_spread)
        outlines = legi_cells.simulate(membrane, rng)
        if not legi_cells.plausible(outlines)[0]:
            continue
        strength = point_stresses.balanced_strength(
            outlines.net_signal[0], ANGLE_RAD, threshold=parameters.signal_threshold
        )
        if point_stresses.imbalance(strength, ANGLE_RAD) < parameters.imbalance:
            return outlines.radius_px[0], strength
    raise ValueError(
        f"none of {MOST_TRIALS} simulated cells was balanced to imbalance {parameters.imbalance:g} with "
        f"signal_threshold {parameters.signal_threshold:g}; raise the first or lower the second"
    )


def _scaled(stress: Floats, interior: NDArray[np.bool_], parameters: Parameters) -> tuple[Floats, Floats]:
    """Traction in Pa and displacement in um, (n, 2, y, x) each, float32, of stresses of no particular unit."""
    stress = stress.astype(np.float32)
    displacement = _displaced(stress, parameters)
    if parameters.scale_to == "max_traction":
        largest = (np.hypot(stress[:, 0], stress[:, 1]) * interior).max(axis=(1, 2))
        factor = parameters.max_traction_pa / largest
    else:
        length = np.hypot(displacement[:, 0], displacement[:, 1])
        mean_um = (length * interior).sum(axis=(1, 2)) / interior.sum(axis=(1, 2))
        factor = parameters.mean_displacement_px * parameters.pixel_size_um / mean_um
    factor = factor.astype(np.float32)[:, None, None, None]
    return factor * stress, factor * displacement


def _displaced(traction_pa: Floats, parameters: Parameters) -> Floats:
    traction = torch.from_numpy(np.ascontiguousarray(traction_pa))
    return displacement_from_traction(traction, reach=parameters.reach, **_substrate(parameters)).numpy()


def _substrate(parameters: Parameters) -> dict[str, Any]:
    """What `physics.half_space` asks for."""
    return {
        "pixel_size_um": parameters.grid_pixel_um,
        "youngs_modulus_pa": parameters.youngs_modulus_pa,
        "poisson_ratio": parameters.poisson_ratio,
        "centre_element": parameters.centre_element,
    }


# -- discs ------------------------------------------------------------------------------------------------------------


def _disc_sample(rng: np.random.Generator, sample_id: str, group: str, parameters: Parameters) -> Sample:
    discs, size = _draw_discs(rng, parameters), parameters.grid_size_px
    # one disc at a time is faster: its arrays stay in the processor's cache
    alone = (traction_discs.Discs(*(part[[number]] for part in discs)) for number in range(len(discs.radius)))
    displacement, traction = (
        sum(each)[0] for each in zip(*(_disc_fields(disc, parameters) for disc in alone), strict=True)
    )
    outline = _hull(discs) * size - 0.5
    interior = polygon_interior(outline, size, size)
    return _sample(sample_id, group, displacement, traction, interior, outline, "discs", parameters)


def _draw_discs(rng: np.random.Generator, parameters: Parameters) -> traction_discs.Discs:
    return traction_discs.draw(rng, traction_discs.Draw(largest_traction=parameters.disc_largest_traction))


def _disc_fields(discs: traction_discs.Discs, parameters: Parameters) -> tuple[Floats, Floats]:
    """Displacement in um and traction in Pa of every disc alone, (n, 2, y, x) each."""
    x, y = traction_discs.pixel_centres(parameters.grid_size_px)
    displacement = traction_discs.displacement(discs, x, y, poisson_ratio=parameters.disc_poisson_ratio)
    side_um = NATIVE_PX * parameters.pixel_size_um
    return side_um * displacement, parameters.disc_youngs_modulus_pa * traction_discs.traction(discs, x, y)


def _hull(discs: traction_discs.Discs) -> Floats:
    """Corners of the convex hull of all discs, (2, n) with n <= 360, fractions of the side."""
    angle = np.arange(RIM_POINTS) * (2 * np.pi / RIM_POINTS)
    rim = discs.centre[:, None] + discs.radius[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = rim.reshape(-1, 2)
    return points[ConvexHull(points).vertices].T


# -- samples and their oracle -----------------------------------------------------------------------------------------


def _sample(
    sample_id: str,
    group: str,
    displacement_um: Floats,
    traction_pa: Floats,
    interior: NDArray[np.bool_],
    outline_px: Floats,
    recipe: str,
    parameters: Parameters,
) -> Sample:
    discs = recipe == "discs"
    length = outline_px.shape[1]
    padded = np.zeros((POINTS, 2), np.float32)
    padded[:length] = outline_px.T
    modulus = parameters.disc_youngs_modulus_pa if discs else parameters.youngs_modulus_pa
    ratio = parameters.disc_poisson_ratio if discs else parameters.poisson_ratio
    values: dict[str, np.ndarray] = {
        "displacement_um": displacement_um.astype(np.float32),
        "traction_pa": traction_pa.astype(np.float32),
        "cell_mask": interior[None].astype(np.uint8),
        "outline_px": padded,
        "outline_px_length": np.array(length, np.int32),
        "youngs_modulus_pa": np.array(modulus, np.float64),
        "poisson_ratio": np.array(ratio, np.float64),
        "pixel_size_um": np.array(parameters.grid_pixel_um, np.float64),
        "recipe": np.array(CODES[recipe], np.int8),
        "centre_element": np.array(not discs and parameters.centre_element == "published", np.int8),
        "reach": np.array(not discs and parameters.reach == "published", np.int8),
    }
    return Sample(sample_id, group, values)


@lru_cache(maxsize=16)
def _oracle_error_per_px(parameters: Parameters) -> float:
    """NRMSE of the oracle for a noise of 1 px and one recipe."""
    noise_um = parameters.grid_pixel_um / np.sqrt(2.0)
    errors = []
    for field in range(ORACLE_CELLS):
        rng = np.random.default_rng(field)
        if parameters.family == "discs":
            responses, stresses = _disc_fields(_draw_discs(rng, parameters), parameters)
            weights = (stresses**2).sum(axis=(1, 2, 3))
            truth = stresses.sum(axis=0)
        else:
            truth = _cell_samples(rng, "", 1, parameters.recipe, parameters)[0].fields["traction_pa"].astype(np.float64)
            strength = np.hypot(*truth)
            rows, columns = np.nonzero(strength)
            weights = np.ones(len(rows))
            directions = (truth / np.where(strength > 0, strength, 1.0))[:, rows, columns]
            responses = traction_oracle.pixel_responses(
                rows,
                columns,
                directions,
                size_px=parameters.grid_size_px,
                reach=parameters.reach,
                **_substrate(parameters),
            )
        errors.append(traction_oracle.fitted_error(responses, weights, truth, noise_um))
    return float(np.mean(errors))
